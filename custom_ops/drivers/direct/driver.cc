#include "drivers/direct/driver.h"

#include <algorithm>
#include <limits>

#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Multiply-adds of a task, some 40 us of one core; a run with fewer than two tasks stays on its
// thread.
constexpr double kTaskProducts = 1 << 21;
constexpr double kMaxTasks = 256;

Buffer<float> CopyOf(const float* from, int64_t count, int64_t size, float rest) {
  Buffer<float> copy(size, rest);
  std::copy_n(from, count, copy.data());
  return copy;
}

}  // namespace

DirectConvDriver::DirectConvDriver(const Isa& isa, const DirectSpec& spec, const float* weights,
                                   const float* bias, const float* threshold, const float* levels)
    : layer_{isa, spec, RoundUp(spec.out_channels, isa.direct->lanes), {}, {}, {}, {}, {}} {
  const int64_t taps = spec.taps();
  const int64_t channels = layer_.row_channels;
  layer_.weights = Buffer<float>(channels * taps, 0.0f);
  for (int64_t o = 0; o < spec.out_channels; ++o) {
    const DirectWidth tile = TileOf(o, channels, isa.direct->channels, isa.direct->lanes);
    float* const to = layer_.weights.data() + tile.first * taps + o - tile.first;
    for (int64_t k = 0; k < taps; ++k) to[k * tile.channels] = weights[o * taps + k];
  }
  const int64_t outputs = spec.out_channels;
  layer_.bias = CopyOf(bias, outputs, channels, 0.0f);
  if (threshold != nullptr) {
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
    layer_.threshold = CopyOf(threshold, outputs, channels, kNone);
  }
  if (levels != nullptr) {
    const int64_t values = spec.channels * kByteValues;
    layer_.levels = CopyOf(levels, values, values, 0.0f);
  }
  if (levels != nullptr && threshold != nullptr && isa.direct_integers != nullptr) {
    layer_.integers = MakeIntegerForm(spec, isa, weights, bias, threshold, levels);
  }
}

template <typename Rows, typename Element>
void DirectConvDriver::RunRows(const ImageBatch& input, Element* out,
                               const TaskRunner& runner) const {
  const DirectSpec& spec = layer_.spec;
  DirectRun run{input, SizesOf(spec, *layer_.isa.direct, input), {}, {}};
  const DirectSizes& sizes = run.sizes;
  run.offsets = OffsetsOf(spec, sizes);
  const Axis& pool = spec.pool_height;
  const int64_t all_rows = input.batch * sizes.out_rows;
  const double products = static_cast<double>(input.batch) * static_cast<double>(sizes.rows) *
                          static_cast<double>(sizes.columns) *
                          static_cast<double>(layer_.row_channels * spec.taps());
  const double most = std::clamp(static_cast<double>(all_rows), 1.0, kMaxTasks);
  const auto tasks = static_cast<int64_t>(std::clamp(products / kTaskProducts, 1.0, most));
  if (layer_.integers) {
    for (const TapGroup& group : GroupsOf(spec, sizes, layer_.isa.direct_integers->group)) {
      run.group_offsets.push_back(group.offset);
    }
  }
  RunNeighbors(runner, tasks, [&] {
    // next: the first row that is not made yet; the rows before band_end have their input copied.
    return [&, rows = Rows(layer_, run, out), image = int64_t{-1}, next = int64_t{0},
            band_end = int64_t{0}](int64_t task) mutable {
      const Range range = Part(all_rows, tasks, task);
      for (int64_t row = range.begin; row < range.end; ++row) {
        if (row / sizes.out_rows != image) {
          image = row / sizes.out_rows;
          next = band_end = 0;
        }
        const int64_t out_y = row % sizes.out_rows;
        const int64_t start = out_y * pool.stride - pool.pad_begin;
        const int64_t first = std::max(start, int64_t{0});
        const int64_t end = std::min(start + pool.kernel, sizes.rows);
        for (next = std::max(next, first); next < end; ++next) {
          if (next >= band_end) {
            rows.Copy(image, next);
            band_end = next + sizes.band_rows;
          }
          rows.Make(next);
        }
        rows.Pool(image, out_y, first, end - first);
      }
      CountCalls(layer_.isa, static_cast<uint64_t>(range.end - range.begin));
    };
  });
}

void DirectConvDriver::Run(const ImageBatch& input, float* out, const TaskRunner& runner) const {
  RunRows<FloatRows>(input, out, runner);
}

void DirectConvDriver::Run(const ImageBatch& input, uint32_t* out, const TaskRunner& runner) const {
  RunRows<BitRows>(input, out, runner);
}

}  // namespace bnn_deploy
