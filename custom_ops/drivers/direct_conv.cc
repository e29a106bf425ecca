#include "drivers/direct_conv.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/scratch.h"
#include "drivers/pool_bits.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// The copied rows of a band stay in the second-level cache.
constexpr int64_t kBandFloats = int64_t{1} << 14;
// The contract does not limit pads and dilations, but memory does.
constexpr int64_t kMaxBandFloats = int64_t{1} << 28;
// Multiply-adds of a task, some 40 us of one core; a run with fewer than two tasks stays on its
// thread.
constexpr double kTaskProducts = 1 << 21;
// Rows of the convolution in a task for each that its neighbour makes, too, for its pool windows.
constexpr int64_t kRowsPerOverlap = 16;
constexpr double kMaxTasks = 256;

// The sizes for one size of images.
struct Sizes {
  int64_t rows;         // of the convolution
  int64_t columns;      // likewise
  int64_t out_rows;     // of the pool
  int64_t out_columns;  // likewise
  int64_t line;         // columns and slack
  int64_t phase_width;  // copied columns of one remainder modulo the stride
  int64_t copied_row;   // floats of a copied row, [stride][phase_width]
  int64_t band_rows;    // rows of the convolution whose input is copied at once
  int64_t copied_rows;  // input rows of a band
};

Sizes SizesOf(const DirectSpec& spec, const DirectKernels& kernels, const FloatBatch& input) {
  const Axis& height = spec.height;
  const Axis& width = spec.width;
  Sizes sizes;
  sizes.rows = OutputExtent(height, input.height);
  sizes.columns = OutputExtent(width, input.width);
  sizes.out_rows = OutputExtent(spec.pool_height, sizes.rows);
  sizes.out_columns = OutputExtent(spec.pool_width, sizes.columns);
  sizes.line = sizes.columns + kernels.slack;
  sizes.phase_width = sizes.line + CeilDiv((width.kernel - 1) * width.dilation + 1, width.stride);
  constexpr const char* kRow = "a padded row of the input";
  sizes.copied_row = CheckedProduct({width.stride, sizes.phase_width}, kRow);
  const int64_t row_floats = CheckedProduct({spec.channels, sizes.copied_row}, kRow);
  // At least two windows high, so that most rows are copied once.
  const int64_t window = (height.kernel - 1) * height.dilation + 1;
  const int64_t wanted = std::max(kBandFloats / row_floats, 2 * window);
  sizes.band_rows = std::clamp((wanted - window) / height.stride + 1, int64_t{1}, sizes.rows);
  sizes.copied_rows = (sizes.band_rows - 1) * height.stride + window;
  constexpr const char* kBand = "the padded input under a row of windows";
  if (CheckedProduct({row_floats, sizes.copied_rows}, kBand) > kMaxBandFloats) {
    throw std::invalid_argument(std::string(kBand) + " has " +
                                std::to_string(row_floats * sizes.copied_rows) +
                                " floats, at most " + std::to_string(kMaxBandFloats) +
                                " are supported: the attributes pads and dilations are too large");
  }
  return sizes;
}

// The offsets of the taps in a band, in the order of the weights.
std::vector<int64_t> TapOffsets(const DirectSpec& spec, const Sizes& sizes) {
  std::vector<int64_t> offsets;
  for (int64_t c = 0; c < spec.channels; ++c) {
    for (int64_t i = 0; i < spec.height.kernel; ++i) {
      const int64_t row = c * sizes.copied_rows + i * spec.height.dilation;
      for (int64_t j = 0; j < spec.width.kernel; ++j) {
        const int64_t x = j * spec.width.dilation;
        offsets.push_back(row * sizes.copied_row + x % spec.width.stride * sizes.phase_width +
                          x / spec.width.stride);
      }
    }
  }
  return offsets;
}

// Copies a row of the input to [stride][phase_width], behind `pad` columns.
void SplitColumns(const float* from, int64_t width, int64_t pad, int64_t stride,
                  int64_t phase_width, float* to) {
  if (stride == 1) {
    std::copy_n(from, width, to + pad);
    return;
  }
  for (int64_t phase = 0; phase < stride; ++phase) {
    const int64_t skip = (phase + stride - pad % stride) % stride;
    float* const out = to + phase * phase_width + (pad + skip) / stride;
    for (int64_t x = skip, i = 0; x < width; x += stride, ++i) out[i] = from[x];
  }
}

// Copies the input rows from `top` on that a band needs; rows above and below the image are 0. The
// padding on the left and right is 0 already.
void CopyBand(const DirectSpec& spec, const Sizes& sizes, const FloatBatch& input, int64_t image,
              int64_t top, float* band) {
  for (int64_t c = 0; c < spec.channels; ++c) {
    const float* const plane =
        input.data + (image * spec.channels + c) * input.height * input.width;
    for (int64_t y = top; y < top + sizes.copied_rows; ++y, band += sizes.copied_row) {
      if (y < 0 || y >= input.height) {
        std::fill_n(band, sizes.copied_row, 0.0f);
      } else {
        SplitColumns(plane + y * input.width, input.width, spec.width.pad_begin, spec.width.stride,
                     sizes.phase_width, band);
      }
    }
  }
}

// The rows of the convolution under a pool window, row y in slot y % kernel, for one task: makes
// them, and pools them to a row of planes.
class FloatRows {
 public:
  FloatRows(const Isa& isa, const DirectSpec& spec, const Sizes& sizes, int64_t row_channels,
            const float* /*threshold*/, float* out)
      : isa_(isa),
        spec_(spec),
        sizes_(sizes),
        row_channels_(row_channels),
        out_(out),
        scratch_(&Kept()),
        rows_(scratch_.Reserve(spec.pool_height.kernel * sizes.line * row_channels)) {}

  void Make(DirectConvArgs args, int64_t y) {
    args.out = Row(y);
    isa_.direct->convolve(args);
  }

  // Pools the `count` rows from `first` on to row `out_y` of an image.
  void Pool(int64_t image, int64_t out_y, int64_t first, int64_t count) {
    const float* rows[kMaxPool];
    for (int64_t i = 0; i < count; ++i) rows[i] = Row(first + i);
    const Axis& pool = spec_.pool_width;
    const int64_t plane = sizes_.out_rows * sizes_.out_columns;
    isa_.direct->pool_rows({rows, count, row_channels_, sizes_.columns, pool.kernel, pool.stride,
                            pool.pad_begin, spec_.out_channels, sizes_.out_columns,
                            out_ + image * spec_.out_channels * plane + out_y * sizes_.out_columns,
                            plane});
  }

 private:
  static Buffer<float>& Kept() {
    thread_local Buffer<float> kept;
    return kept;
  }
  float* Row(int64_t y) const {
    return rows_ + y % spec_.pool_height.kernel * sizes_.line * row_channels_;
  }

  const Isa& isa_;
  const DirectSpec& spec_;
  const Sizes& sizes_;
  const int64_t row_channels_;
  float* const out_;
  Scratch<float> scratch_;
  float* const rows_;
};

// The same for bits: each row is compared with the thresholds when it is made.
class BitRows {
 public:
  BitRows(const Isa& isa, const DirectSpec& spec, const Sizes& sizes, int64_t row_channels,
          const float* threshold, uint32_t* out)
      : isa_(isa),
        spec_(spec),
        sizes_(sizes),
        row_channels_(row_channels),
        words_(WordsForBits(spec.out_channels)),
        threshold_(threshold),
        out_(out),
        float_scratch_(&KeptFloats()),
        bit_scratch_(&KeptBits()),
        floats_(float_scratch_.Reserve(sizes.line * row_channels)),
        rows_(bit_scratch_.Reserve(spec.pool_height.kernel * sizes.columns * words_)) {}

  void Make(DirectConvArgs args, int64_t y) {
    args.out = floats_;
    isa_.direct->convolve(args);
    isa_.binarize_rows({floats_, threshold_, row_channels_, sizes_.columns, Row(y)});
  }

  void Pool(int64_t image, int64_t out_y, int64_t first, int64_t count) {
    const uint32_t* rows[kMaxPool];
    for (int64_t i = 0; i < count; ++i) rows[i] = Row(first + i);
    PoolBits({rows, count, words_, sizes_.columns, spec_.pool_width, sizes_.out_columns,
              out_ + (image * sizes_.out_rows + out_y) * sizes_.out_columns * words_});
  }

 private:
  static Buffer<float>& KeptFloats() {
    thread_local Buffer<float> kept;
    return kept;
  }
  static Buffer<uint32_t>& KeptBits() {
    thread_local Buffer<uint32_t> kept;
    return kept;
  }
  uint32_t* Row(int64_t y) const {
    return rows_ + y % spec_.pool_height.kernel * sizes_.columns * words_;
  }

  const Isa& isa_;
  const DirectSpec& spec_;
  const Sizes& sizes_;
  const int64_t row_channels_;
  const int64_t words_;
  const float* const threshold_;
  uint32_t* const out_;
  Scratch<float> float_scratch_;
  Scratch<uint32_t> bit_scratch_;
  float* const floats_;  // a row of the convolution
  uint32_t* const rows_;
};

}  // namespace

DirectConvDriver::DirectConvDriver(const Isa& isa, const DirectSpec& spec, const float* weights,
                                   const float* bias, const float* threshold)
    : isa_(isa),
      spec_(spec),
      taps_(spec.channels * spec.height.kernel * spec.width.kernel),
      row_channels_(RoundUp(spec.out_channels, isa.direct->lanes)),
      weights_(row_channels_ * taps_, 0.0f),
      bias_(row_channels_, 0.0f) {
  for (int64_t o = 0; o < spec.out_channels; ++o) {
    const int64_t first = o / isa.direct->channels * isa.direct->channels;  // of the tile
    const int64_t tile_channels = std::min(isa.direct->channels, row_channels_ - first);
    float* const to = weights_.data() + first * taps_ + o - first;
    for (int64_t k = 0; k < taps_; ++k) to[k * tile_channels] = weights[o * taps_ + k];
  }
  std::copy_n(bias, spec.out_channels, bias_.data());
  if (threshold != nullptr) {
    threshold_ = Buffer<float>(row_channels_, std::numeric_limits<float>::quiet_NaN());
    std::copy_n(threshold, spec.out_channels, threshold_.data());
  }
}

template <typename Rows, typename Element>
void DirectConvDriver::RunRows(const FloatBatch& input, Element* out,
                               const TaskRunner& runner) const {
  const Sizes sizes = SizesOf(spec_, *isa_.direct, input);
  const std::vector<int64_t> offsets = TapOffsets(spec_, sizes);
  const Axis& height = spec_.height;
  const Axis& pool = spec_.pool_height;
  const int64_t all_rows = input.batch * sizes.out_rows;
  const double products = static_cast<double>(input.batch) * static_cast<double>(sizes.rows) *
                          static_cast<double>(sizes.columns) *
                          static_cast<double>(row_channels_ * taps_);
  const int64_t overlap = std::max(pool.kernel - pool.stride, int64_t{0});
  // At least the input of a window is copied for a task.
  const int64_t window_rows = CeilDiv((height.kernel - 1) * height.dilation + 1, height.stride);
  const int64_t least_rows = CeilDiv(std::max(overlap * kRowsPerOverlap, window_rows), pool.stride);
  const double most = std::clamp(static_cast<double>(all_rows / least_rows), 1.0, kMaxTasks);
  const auto tasks = static_cast<int64_t>(std::clamp(products / kTaskProducts, 1.0, most));
  RunTasks(runner, tasks, [&](int64_t task) {
    Rows rows(isa_, spec_, sizes, row_channels_, threshold_.data(), out);
    thread_local Buffer<float> kept_band;
    Scratch<float> scratch(&kept_band);
    const int64_t band_floats = spec_.channels * sizes.copied_rows * sizes.copied_row;
    float* const band = scratch.Reserve(band_floats);
    std::fill_n(band, band_floats, 0.0f);
    DirectConvArgs args{};
    args.offsets = offsets.data();
    args.taps = taps_;
    args.weights = weights_.data();
    args.bias = bias_.data();
    args.channels = row_channels_;
    args.pixels = sizes.columns;
    args.out_stride = row_channels_;
    int64_t image = -1;
    int64_t next = 0;                      // the first row that is not made yet
    int64_t band_begin = 0, band_end = 0;  // the rows whose input is in `band`
    const Range range = Part(all_rows, tasks, task);
    for (int64_t row = range.begin; row < range.end; ++row) {
      if (row / sizes.out_rows != image) {
        image = row / sizes.out_rows;
        next = band_begin = band_end = 0;
      }
      const int64_t out_y = row % sizes.out_rows;
      const int64_t start = out_y * pool.stride - pool.pad_begin;
      const int64_t first = std::max(start, int64_t{0});
      const int64_t end = std::min(start + pool.kernel, sizes.rows);
      for (next = std::max(next, first); next < end; ++next) {
        if (next >= band_end) {
          band_begin = next;
          band_end = next + sizes.band_rows;
          CopyBand(spec_, sizes, input, image, next * height.stride - height.pad_begin, band);
        }
        args.input = band + (next - band_begin) * height.stride * sizes.copied_row;
        rows.Make(args, next);
      }
      rows.Pool(image, out_y, first, end - first);
    }
    CountCalls(isa_, static_cast<uint64_t>(range.end - range.begin));
  });
}

void DirectConvDriver::Run(const FloatBatch& input, float* out, const TaskRunner& runner) const {
  RunRows<FloatRows>(input, out, runner);
}

void DirectConvDriver::Run(const FloatBatch& input, uint32_t* out, const TaskRunner& runner) const {
  RunRows<BitRows>(input, out, runner);
}

}  // namespace bnn_deploy
