#include "drivers/average_pool.h"

#include <algorithm>
#include <vector>

#include "base/buffer.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

constexpr int64_t kMinTaskSums = int64_t{1} << 16;  // some 10 microseconds
constexpr int64_t kMaxTasks = 256;
constexpr int64_t kBandFloats = 4096;  // sums of a channel that stay in the L1 cache

// The columns of a row of sums: a multiple of the stride, so that windows of all rows are evenly
// spaced.
struct RowOfSums {
  int64_t stride;
  int64_t span;
};

RowOfSums RowFor(const AveragePoolSpec& spec) {
  const Axis& columns = spec.columns;
  // A single window has no stride; two or more make it smaller than the padded width.
  const int64_t stride = spec.out_width > 1 ? columns.stride : 1;
  return {stride, RoundUp(columns.pad_begin + spec.width + columns.pad_end, stride)};
}

// The output rows [first, first + rows) of an image.
void PoolBand(const Isa& isa, const AveragePoolSpec& spec, const RowOfSums& row, const float* image,
              const float* threshold, int64_t first, int64_t rows, uint32_t* out) {
  thread_local std::vector<PoolTaps> taps;
  taps.clear();
  for (int64_t y = first; y < first + rows; ++y) {
    const TapRange inside = TapsInside(spec.rows, spec.height, y);
    const int64_t top =
        y * spec.rows.stride - spec.rows.pad_begin + inside.first * spec.rows.dilation;
    taps.push_back({inside.last > inside.first ? top * spec.width : 0, inside.last - inside.first});
  }
  thread_local Buffer<float> sums;
  thread_local Buffer<uint32_t> reached;
  AveragePoolArgs args{};
  args.planes = image;
  args.channel_stride = spec.height * spec.width;
  args.channels = spec.channels;
  args.width = spec.width;
  args.relu = spec.relu;
  args.rows = taps.data();
  args.row_step = spec.rows.dilation * spec.width;
  args.out_rows = rows;
  args.left = spec.columns.pad_begin;
  args.kernel = spec.columns.kernel;
  args.stride = row.stride;
  args.dilation = spec.columns.dilation;
  args.out_width = spec.out_width;
  args.span = row.span;
  args.threshold = threshold;
  args.sums = sums.Reserve(rows * row.span + spec.columns.kernel * spec.columns.dilation);
  args.reached = reached.Reserve(rows * row.span / row.stride);
  args.out = out;
  isa.average_pool(args);
}

}  // namespace

void AveragePoolBatch(const Isa& isa, const AveragePoolSpec& spec, const float* x,
                      const float* threshold, uint32_t* out, const TaskRunner& runner) {
  if (spec.batch == 0 || spec.out_height == 0 || spec.out_width == 0) return;
  const RowOfSums row = RowFor(spec);
  const int64_t band = std::clamp(kBandFloats / row.span, int64_t{1}, spec.out_height);
  const int64_t bands = CeilDiv(spec.out_height, band);
  const int64_t items = spec.batch * bands;
  const int64_t sums = spec.batch * spec.channels * spec.out_height * row.span;
  const int64_t tasks = std::clamp(sums / kMinTaskSums, int64_t{1}, std::min(items, kMaxTasks));
  const int64_t out_row_words = spec.out_width * WordsForBits(spec.channels);
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(items, tasks, task);
    for (int64_t item = range.begin; item < range.end; ++item) {
      const int64_t image = item / bands;
      const int64_t first = item % bands * band;
      const int64_t rows = std::min(band, spec.out_height - first);
      PoolBand(isa, spec, row, x + image * spec.channels * spec.height * spec.width, threshold,
               first, rows, out + (image * spec.out_height + first) * out_row_words);
    }
    CountCalls(isa, static_cast<uint64_t>(range.end - range.begin));
  });
}

}  // namespace bnn_deploy
