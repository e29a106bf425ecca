#include "drivers/conv/driver.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Keeps gathered windows in the second-level cache.
constexpr int64_t kMaxGatheredWords = int64_t{1} << 15;
// Rows of different channels that are a multiple of 4096 bytes apart map to the same cache sets
// and, written 64 bytes at a time, evict each other. They are staged in a buffer with another
// stride and copied in pieces of kBlockPixels.
constexpr int64_t kConflictPixels = 4096 / sizeof(float);
constexpr int64_t kStagingStride = kBlockPixels + 16;

// Holds a run's copy of its input; it belongs to the thread that called Run.
Buffer<uint32_t>* KeptInput() {
  thread_local Buffer<uint32_t> kept;
  return &kept;
}

// Copies `count` bits of `from` to bits `first` and up of `to`, which must be 0.
void MergeBits(const uint32_t* from, int64_t count, int64_t first, uint32_t* to) {
  const int64_t shift = first % 32;
  to += first / 32;
  for (int64_t done = 0; done < count; done += 32, ++from, ++to) {
    *to |= *from << shift;
    if (shift + std::min<int64_t>(count - done, 32) > 32) to[1] |= *from >> (32 - shift);
  }
}

// Splits the pixels into parts of up to kTilePixels and calls body(part, index of its first pixel).
template <typename Body>
void ForEachTile(const AccumulateArgs& args, const Body& body) {
  AccumulateArgs part = args;
  for (int64_t first = 0; first < args.pixels; first += kTilePixels) {
    part.windows = args.windows + first;
    part.initial = args.initial + first;
    part.pixels = std::min(kTilePixels, args.pixels - first);
    body(part, first);
  }
}

}  // namespace

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights)
    : layer_(isa, std::move(spec)),
      tap_bits_(layer_, weights),
      weights_(PackWeights(layer_, weights)),
      plane_weights_(layer_.takes_planes ? PackPlaneWeights(layer_, weights)
                                         : std::vector<uint32_t>()) {}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const FloatConstants& constants)
    : ConvDriver(isa, std::move(spec), weights) {
  scale_ = PackPerChannel(layer_, constants.scale, 0.0f);
  // FinishFloatArgs doubles the sums, so levels take half of the scale.
  for (int64_t o = 0; layer_.spec.level_bits > 0 && o < layer_.table_width; ++o) {
    scale_.data()[o] *= 0.5f;
  }
  bias_ = PackPerChannel(layer_, constants.bias, 0.0f);
  if (constants.threshold != nullptr) {
    float_threshold_ =
        PackPerChannel(layer_, constants.threshold, std::numeric_limits<float>::quiet_NaN());
  }
}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const int32_t* threshold)
    : ConvDriver(isa, std::move(spec), weights) {
  threshold_.assign(threshold, threshold + layer_.spec.out_channels);
}

std::shared_ptr<const ConvPlan> ConvDriver::PlanFor(const BitBatch& input) const {
  return plans_.Get(input.height, input.width, input.depth, [&] {
    return MakeConvPlan(layer_, tap_bits_, threshold_, input.height, input.width, input.depth);
  });
}

// Calls process(tile, pixels, products, args) for every channel tile and block of up to
// kBlockPixels pixels, numbered through the whole batch; args covers all pixels of the block and
// lacks the output. Tasks get disjoint ranges of pixels, cut at multiples of `grain`, and, if
// `split_channels`, of channel tiles.
template <typename Process>
void ConvDriver::ForEachBlock(const BitBatch& input, const ConvPlan& plan, int64_t grain,
                              bool split_channels, const TaskRunner& runner,
                              const Process& process) const {
  const int64_t pixels = input.batch * plan.ImagePixels();
  if (pixels == 0) return;
  Scratch<uint32_t> copy(KeptInput());
  const ConvImage image = PrepareInput(layer_, plan, input, runner, &copy);

  const int64_t grains = CeilDiv(pixels, grain);
  const auto channel_tiles = static_cast<int64_t>(layer_.tiles.size());
  const int64_t wanted = TaskCount(layer_, pixels);
  const int64_t pixel_parts = std::min(wanted, grains);
  const int64_t channel_parts =
      split_channels ? std::min(CeilDiv(wanted, pixel_parts), channel_tiles) : 1;

  const bool gathers =
      layer_.encodes || (layer_.isa.gathers &&
                         !(plan.run_offsets.size() == 1 && plan.run_words == layer_.window_words));
  const int64_t gathered_tiles =
      kMaxGatheredWords / (kTilePixels * layer_.bit_planes * layer_.window_words);
  const int64_t block_pixels =
      gathers ? std::clamp(gathered_tiles * kTilePixels, kTilePixels, kBlockPixels) : kBlockPixels;
  const int64_t no_offset = 0;

  RunTasks(runner, pixel_parts * channel_parts, [&](int64_t task) {
    const Range grain_range = Part(grains, pixel_parts, task / channel_parts);
    const Range channel_range = Part(channel_tiles, channel_parts, task % channel_parts);
    const int64_t task_end = std::min(grain_range.end * grain, pixels);
    thread_local Buffer<uint32_t> kept_windows;
    Scratch<uint32_t> windows(&kept_windows);
    const int64_t task_begin = grain_range.begin * grain;
    const int64_t row_pixels = std::min(block_pixels, task_end - task_begin);
    uint32_t* const rows =
        gathers ? windows.Reserve(layer_.bit_planes * row_pixels * layer_.window_words) : nullptr;
    PixelBlock block;
    AccumulateArgs args{};
    args.windows = block.windows;
    args.run_offsets = gathers ? &no_offset : plan.run_offsets.data();
    args.runs = gathers ? 1 : static_cast<int64_t>(plan.run_offsets.size());
    args.run_words = gathers ? layer_.window_words : plan.run_words;
    args.initial = block.initial;
    for (int64_t begin = task_begin; begin < task_end; begin += block_pixels) {
      args.pixels = std::min(block_pixels, task_end - begin);
      const Range range{begin, begin + args.pixels};
      int64_t located_group = -1;
      // Channels in the outer loop, pixels in the inner one: a tile's weights stay in the L1 cache.
      for (int64_t c = channel_range.begin; c < channel_range.end; ++c) {
        const ChannelTile& tile = layer_.tiles[static_cast<size_t>(c)];
        if (tile.group != located_group) {
          LocatePixels(layer_, plan, image, tile.group, range, &block);
          if (gathers) GatherWindows(layer_, plan, args.pixels, rows, &block);
          located_group = tile.group;
        }
        args.weights = weights_.data() + tile.weights_offset;
        args.blocks = tile.blocks;
        args.initial_offset = tile.table_offset;
        process(tile, range, block.products, args);
      }
    }
    const int64_t tiles = CeilDiv(task_end - task_begin, kTilePixels);
    CountCalls(layer_.isa, static_cast<uint64_t>((channel_range.end - channel_range.begin) * tiles *
                                                 layer_.bit_planes));
  });
}

bool ConvDriver::GroupsAreWholeWords() const {
  return layer_.spec.group == 1 || layer_.spec.out_channels / layer_.spec.group % 32 == 0;
}

// Calls fill(to, stride), which writes the words of a tile's pixels, either into `out`,
// [pixels][ceil(out_channels / 32)], or into a buffer that is then merged into `out`.
template <typename Fill>
void ConvDriver::WriteBits(const ChannelTile& tile, Range pixels, uint32_t* out,
                           const Fill& fill) const {
  const int64_t words = WordsForBits(layer_.spec.out_channels);
  const int64_t count = pixels.end - pixels.begin;
  uint32_t* const to = out + pixels.begin * words;
  if (GroupsAreWholeWords()) return fill(to + tile.channel / 32, words);
  // One task merges the groups that share words, into words that it clears first.
  if (tile.channel == 0) std::fill_n(to, count * words, 0u);
  constexpr int64_t kTileWords = kTileChannels / 32;
  uint32_t bits[kTilePixels * kTileWords];
  fill(bits, kTileWords);
  for (int64_t p = 0; p < count; ++p) {
    MergeBits(bits + p * kTileWords, tile.channels, tile.channel, to + p * words);
  }
}

void ConvDriver::Run(const BitBatch& input, uint32_t* out, const TaskRunner& runner) const {
  const std::shared_ptr<const ConvPlan> plan = PlanFor(input);
  ForEachBlock(input, *plan, kTilePixels, GroupsAreWholeWords(), runner,
               [&](const ChannelTile& tile, Range block, const float*, const AccumulateArgs& args) {
                 alignas(64) int32_t sums[kTilePixels * kTileChannels];
                 ForEachTile(args, [&](AccumulateArgs part, int64_t first) {
                   const int64_t begin = block.begin + first;
                   part.sums = sums;
                   WriteBits(tile, Range{begin, begin + part.pixels}, out,
                             [&](uint32_t* to, int64_t stride) {
                               layer_.isa.accumulate_bits({part, to, stride});
                             });
                 });
               });
}

void ConvDriver::Run(const BitBatch& input, const FloatOutput& output,
                     const TaskRunner& runner) const {
  const std::shared_ptr<const ConvPlan> plan = PlanFor(input);
  if (plan->uses_planes) return RunWithPlanes(input, *plan, output, runner);
  const int64_t image_pixels = plan->ImagePixels();
  const bool staged = output.out != nullptr && image_pixels % kConflictPixels == 0;
  // Linear layers: the channels of an image of one pixel lie together.
  const bool in_rows = image_pixels == 1 && output.residual == nullptr && output.factor == nullptr;
  static_assert(kConflictPixels % kBlockPixels == 0, "a staged block lies in one image");
  const int64_t grain = staged ? kBlockPixels : kTilePixels;
  const bool split_channels = output.bits == nullptr || GroupsAreWholeWords();

  const auto process = [&](const ChannelTile& tile, Range block, const float* products,
                           const AccumulateArgs& args) {
    alignas(64) int32_t sums[kTilePixels * kTileChannels];
    thread_local Buffer<float> staging_buffer;
    float* const staging =
        staged ? staging_buffer.Reserve(kTileChannels * kStagingStride) : nullptr;
    const auto plane = [&](int64_t pixel) {  // index of the pixel in the tile's first channel
      const int64_t image = pixel / image_pixels;
      return (image * layer_.spec.out_channels + tile.channel) * image_pixels +
             pixel % image_pixels;
    };
    const auto copy_rows = [&](const float* from, int64_t from_stride, float* to,
                               int64_t to_stride) {
      for (int64_t o = 0; o < tile.channels; ++o) {
        std::copy_n(from + o * from_stride, args.pixels, to + o * to_stride);
      }
    };
    if (staged && output.residual != nullptr) {
      copy_rows(output.residual + plane(block.begin), image_pixels, staging, kStagingStride);
    }
    ForEachTile(args, [&](AccumulateArgs part, int64_t first) {
      part.sums = sums;
      Accumulate(layer_, part);
      if (in_rows) {
        float* const out =
            output.out + (block.begin + first) * layer_.spec.out_channels + tile.channel;
        return layer_.isa.finish_rows({sums, products + first, scale_.data() + tile.table_offset,
                                       bias_.data() + tile.table_offset, part.pixels, tile.channels,
                                       out, layer_.spec.out_channels});
      }
      // A tile can extend over several images; each has its own output planes.
      for (int64_t p = 0; p < part.pixels;) {
        const int64_t pixel = block.begin + first + p;
        const int64_t left = image_pixels - pixel % image_pixels;
        FinishFloatArgs finish{};
        finish.sums = sums + p * kTileChannels;
        finish.products = products + first + p;
        finish.scale = scale_.data() + tile.table_offset;
        finish.bias = bias_.data() + tile.table_offset;
        finish.pixels = std::min(part.pixels - p, left);
        finish.channels = tile.channels;
        finish.channel_stride = staged ? kStagingStride : image_pixels;
        if (output.out != nullptr) {
          finish.out = staged ? staging + first + p : output.out + plane(pixel);
        }
        if (output.residual != nullptr) {
          finish.residual = staged ? staging + first + p : output.residual + plane(pixel);
        }
        if (output.factor != nullptr) finish.factor = output.factor + pixel;
        if (output.bits != nullptr) {
          finish.threshold = float_threshold_.data() + tile.table_offset;
          WriteBits(tile, Range{pixel, pixel + finish.pixels}, output.bits,
                    [&](uint32_t* to, int64_t stride) {
                      finish.bits = to;
                      finish.bits_stride = stride;
                      layer_.isa.finish_float(finish);
                    });
        } else {
          layer_.isa.finish_float(finish);
        }
        p += finish.pixels;
      }
    });
    if (staged) copy_rows(staging, kStagingStride, output.out + plane(block.begin), image_pixels);
  };
  ForEachBlock(input, *plan, grain, split_channels, runner, process);
}

void ConvDriver::RunWithPlanes(const BitBatch& input, const ConvPlan& plan,
                               const FloatOutput& output, const TaskRunner& runner) const {
  Scratch<uint32_t> copy(KeptInput());
  const uint32_t* const planes = SplitPlanes(layer_, plan, input, runner, &copy);
  const int64_t group_words =
      layer_.group_words * layer_.spec.width.kernel * plan.plane_height * plan.out_width;
  const int64_t image_pixels = plan.ImagePixels();
  const int64_t image_tiles = CeilDiv(image_pixels, kTilePixels);
  const int64_t tiles = input.batch * image_tiles;
  const int64_t tasks = std::min(TaskCount(layer_, input.batch * image_pixels), tiles);
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(tiles, tasks, task);
    ConvolvePlanesArgs args{};
    args.offsets = plan.plane_offsets.data();
    args.words = layer_.window_words;
    alignas(64) uint8_t patterns[kTilePixels] = {};
    args.patterns = patterns;
    args.finish.channel_stride = image_pixels;
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t image = i / image_tiles;
      const int64_t first = i % image_tiles * kTilePixels;
      args.finish.pixels = std::min(kTilePixels, image_pixels - first);
      plan.CopyPatterns(first, args.finish.pixels, patterns);
      if (output.factor != nullptr) {
        args.finish.factor = output.factor + image * image_pixels + first;
      }
      for (const ChannelTile& tile : layer_.tiles) {
        args.input = planes + (image * layer_.spec.group + tile.group) * group_words + first;
        args.weights = plane_weights_.data() + tile.channel * layer_.window_words;
        args.constant = plan.constant.data() + tile.table_offset * kMaxPatterns;
        const int64_t plane =
            (image * layer_.spec.out_channels + tile.channel) * image_pixels + first;
        args.finish.scale = scale_.data() + tile.table_offset;
        args.finish.bias = bias_.data() + tile.table_offset;
        args.finish.channels = tile.channels;
        if (output.out != nullptr) args.finish.out = output.out + plane;
        if (output.residual != nullptr) args.finish.residual = output.residual + plane;
        if (output.bits == nullptr) {
          layer_.isa.convolve_planes(args);
          continue;
        }
        args.finish.threshold = float_threshold_.data() + tile.table_offset;
        const int64_t begin = image * image_pixels + first;
        WriteBits(tile, Range{begin, begin + args.finish.pixels}, output.bits,
                  [&](uint32_t* to, int64_t to_stride) {
                    args.finish.bits = to;
                    args.finish.bits_stride = to_stride;
                    layer_.isa.convolve_planes(args);
                  });
      }
    }
    CountCalls(layer_.isa, static_cast<uint64_t>((range.end - range.begin) *
                                                 static_cast<int64_t>(layer_.tiles.size())));
  });
}

}  // namespace bnn_deploy
