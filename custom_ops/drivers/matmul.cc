#include "drivers/matmul.h"

#include <algorithm>
#include <vector>

#include "base/buffer.h"
#include "base/popcount.h"
#include "base/scratch.h"
#include "drivers/conv/input.h"
#include "drivers/conv/layer.h"
#include "drivers/conv/weights.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

ConvSpec PointSpec(int64_t channels, int64_t level_bits, int64_t columns) {
  constexpr Axis kPoint = {1, 1, 1, 0, 0};
  return {channels, 1, columns, kPoint, kPoint, {}, level_bits};
}

// The values in AccumulateArgs::initial of all rows of b, see drivers/conv/driver.h.
void FillInitial(const ConvLayer& layer, const uint32_t* b, int32_t* initial) {
  std::fill_n(initial, layer.table_width, 0);
  if (layer.spec.level_bits == 0) return;
  const int32_t highest = (1 << layer.spec.level_bits) - 1;
  for (const ChannelTile& tile : layer.tiles) {
    for (int64_t o = 0; o < tile.channels; ++o) {
      const auto ones = static_cast<int32_t>(PopCount(b, layer.group_words));
      initial[tile.table_offset + o] = -highest * ones;
      b += layer.group_words;
    }
  }
}

}  // namespace

void MultiplyBits(const Isa& isa, int64_t channels, int64_t level_bits, float scale,
                  const BitMatrices& given, float* out, const TaskRunner& runner) {
  const int64_t rows = given.rows, columns = given.columns;
  const ConvLayer layer(isa, PointSpec(channels, level_bits, columns));
  std::vector<uint32_t> a_copy, b_copy;
  BitMatrices matrices = given;
  matrices.a = ClearUnusedBits(given.a, given.batch * rows * layer.bit_planes, channels, &a_copy);
  matrices.b = ClearUnusedBits(given.b, given.batch * columns, channels, &b_copy);
  const bool gathers = layer.encodes || (isa.gathers && layer.group_words != layer.window_words);
  alignas(64) float scales[kTileChannels], biases[kTileChannels] = {};
  float products[kTilePixels];
  std::fill_n(scales, kTileChannels, level_bits > 0 ? 0.5f * scale : scale);
  std::fill_n(products, kTilePixels, level_bits > 0 ? 0.0f : static_cast<float>(channels));

  // A task gets whole blocks of up to kTilePixels rows of a, numbered through the whole batch.
  const int64_t row_blocks = CeilDiv(rows, kTilePixels);
  const int64_t blocks = matrices.batch * row_blocks;
  const int64_t tasks = std::min(TaskCount(layer, matrices.batch * rows), blocks);
  RunTasks(runner, tasks, [&](int64_t task) {
    thread_local Buffer<uint32_t> kept_weights, kept_rows;
    thread_local Buffer<int32_t> kept_initial;
    Scratch<uint32_t> weights_scratch(&kept_weights), rows_scratch(&kept_rows);
    Scratch<int32_t> initial_scratch(&kept_initial);
    uint32_t* const weights = weights_scratch.Reserve(layer.weights_size);
    int32_t* const initial = initial_scratch.Reserve(layer.table_width);
    uint32_t* const gathered =
        rows_scratch.Reserve(gathers ? layer.bit_planes * kTilePixels * layer.window_words : 1);
    alignas(64) int32_t sums[kTilePixels * kTileChannels];
    const uint32_t* windows[kMaxLevelBits * kBlockPixels];
    const int32_t* initials[kTilePixels];
    std::fill_n(initials, kTilePixels, initial);
    const int64_t no_offset = 0;
    AccumulateArgs args{};
    args.windows = windows;
    args.run_offsets = &no_offset;
    args.runs = 1;
    args.run_words = gathers ? layer.window_words : layer.group_words;
    args.initial = initials;
    args.sums = sums;
    int64_t packed = -1;  // the matrix of b that `weights` holds
    const Range range = Part(blocks, tasks, task);
    for (int64_t block = range.begin; block < range.end; ++block) {
      const int64_t image = block / row_blocks;
      const int64_t first = block % row_blocks * kTilePixels;
      if (image != packed) {
        const uint32_t* const from = matrices.b + image * columns * layer.group_words;
        PackWeights(layer, from, weights);
        FillInitial(layer, from, initial);
        packed = image;
      }
      args.pixels = std::min(kTilePixels, rows - first);
      const uint32_t* from = matrices.a + (image * rows + first) * layer.pixel_words;
      uint32_t* to = gathered;
      for (int64_t p = 0; p < args.pixels; ++p) {
        for (int64_t plane = 0; plane < layer.bit_planes; ++plane, from += layer.group_words) {
          windows[plane * kBlockPixels + p] = gathers ? to : from;
          if (gathers) to = GatherRow(layer, from, to);
        }
      }
      for (const ChannelTile& tile : layer.tiles) {
        args.weights = weights + tile.weights_offset;
        args.blocks = tile.blocks;
        args.initial_offset = tile.table_offset;
        Accumulate(layer, args);
        isa.finish_rows({sums, products, scales, biases, args.pixels, tile.channels,
                         out + (image * rows + first) * columns + tile.channel, columns});
      }
    }
    CountCalls(isa,
               static_cast<uint64_t>((range.end - range.begin) *
                                     static_cast<int64_t>(layer.tiles.size()) * layer.bit_planes));
  });
}

}  // namespace bnn_deploy
