#include "drivers/direct/rows.h"

#include <algorithm>
#include <atomic>

#include "base/prefetch.h"
#include "base/tasks.h"
#include "drivers/pool_bits.h"

namespace bnn_deploy {
namespace {

// Undecided sums that are computed together.
constexpr int64_t kPoints = 64;

// Distinct buffers for distinct uses: a thread's rows use them all at once.
template <typename Use, typename T>
Buffer<T>* Kept() {
  thread_local Buffer<T> kept;
  return &kept;
}

std::atomic<uint64_t> counted_all{0}, counted_undecided{0};

template <typename Number, typename Sum>
DirectArgs<Number, Sum> ArgsOf(const DirectLayer& layer, const DirectRun& run, const Number* input,
                               Sum* out) {
  DirectArgs<Number, Sum> args{};
  args.input = input;
  args.channels = layer.row_channels;
  args.pixels = run.sizes.columns;
  args.out = out;
  args.out_stride = layer.row_channels;
  return args;
}

void Convolve(const DirectLayer& layer, const DirectRun& run, const float* input, float* out) {
  DirectConvArgs args = ArgsOf(layer, run, input, out);
  args.offsets = run.offsets.data();
  args.taps = static_cast<int64_t>(run.offsets.size());
  args.weights = layer.weights.data();
  args.bias = layer.bias.data();
  layer.isa.direct->convolve(args);
}

int64_t Top(const DirectLayer& layer, int64_t y) {
  return y * layer.spec.height.stride - layer.spec.height.pad_begin;
}

// The windows [begin, end) along an axis that lie inside the image.
Range Inside(const Axis& axis, int64_t input, int64_t windows) {
  const int64_t last = input + axis.pad_begin - (axis.kernel - 1) * axis.dilation - 1;
  const int64_t end = last < 0 ? 0 : std::min(last / axis.stride + 1, windows);
  return {std::min(CeilDiv(axis.pad_begin, axis.stride), end), end};
}

}  // namespace

IntegerBits CountedIntegerBits() {
  return {counted_all.load(std::memory_order_relaxed),
          counted_undecided.load(std::memory_order_relaxed)};
}

FloatRows::FloatRows(const DirectLayer& layer, const DirectRun& run, float* out)
    : layer_(layer),
      run_(run),
      out_(out),
      band_(layer.spec, run.sizes, layer.levels.data(), nullptr, 1),
      scratch_(Kept<FloatRows, float>()),
      rows_(scratch_.Reserve(layer.spec.pool_height.kernel * run.sizes.line * layer.row_channels)) {
}

float* FloatRows::Row(int64_t y) const {
  return rows_ + y % layer_.spec.pool_height.kernel * run_.sizes.line * layer_.row_channels;
}

void FloatRows::Copy(int64_t image, int64_t y) {
  band_begin_ = y;
  band_.Copy(run_.input, image, Top(layer_, y));
}

void FloatRows::Make(int64_t y) { Convolve(layer_, run_, band_.Row(y - band_begin_), Row(y)); }

void FloatRows::Pool(int64_t image, int64_t out_y, int64_t first, int64_t count) {
  const float* rows[kMaxPool];
  for (int64_t i = 0; i < count; ++i) rows[i] = Row(first + i);
  const DirectSizes& sizes = run_.sizes;
  const Axis& pool = layer_.spec.pool_width;
  const int64_t outputs = layer_.spec.out_channels;
  const int64_t plane = sizes.out_rows * sizes.out_columns;
  layer_.isa.direct->pool_rows({rows, count, layer_.row_channels, sizes.columns, pool.kernel,
                                pool.stride, pool.pad_begin, outputs, sizes.out_columns,
                                out_ + image * outputs * plane + out_y * sizes.out_columns, plane});
  if (out_y + 1 < sizes.out_rows) {
    PrefetchPlanes(out_ + image * outputs * plane + (out_y + 1) * sizes.out_columns, plane, outputs,
                   sizes.out_columns);
  }
}

BitRows::BitRows(const DirectLayer& layer, const DirectRun& run, uint32_t* out)
    : layer_(layer),
      run_(run),
      words_(WordsForBits(layer.spec.out_channels)),
      out_(out),
      band_(layer.spec, run.sizes, layer.levels.data(), nullptr, 1),
      float_scratch_(Kept<BitRows, float>()),
      sum_scratch_(Kept<BitRows, int32_t>()),
      bit_scratch_(Kept<BitRows, uint32_t>()),
      floats_(float_scratch_.Reserve(layer.integers ? 0 : run.sizes.line * layer.row_channels)),
      sums_(sum_scratch_.Reserve(layer.integers ? run.sizes.line * layer.row_channels : 0)),
      rows_(bit_scratch_.Reserve((layer.spec.pool_height.kernel + 1) * run.sizes.columns * words_)),
      undecided_(rows_ + layer.spec.pool_height.kernel * run.sizes.columns * words_) {
  if (layer.integers) {
    integers_.emplace(layer.spec, run.sizes, layer.integers->levels.data(),
                      layer.integers->padding.data(), layer.isa.direct_integers->group);
  }
}

BitRows::~BitRows() {
  counted_all.fetch_add(counted_.all, std::memory_order_relaxed);
  counted_undecided.fetch_add(counted_.undecided, std::memory_order_relaxed);
}

uint32_t* BitRows::Row(int64_t y) const {
  return rows_ + y % layer_.spec.pool_height.kernel * run_.sizes.columns * words_;
}

void BitRows::Copy(int64_t image, int64_t y) {
  band_begin_ = y;
  band_.Copy(run_.input, image, Top(layer_, y));
  if (integers_) integers_->Copy(run_.input, image, Top(layer_, y));
}

void BitRows::Make(int64_t y) {
  if (integers_) return MakeByIntegers(y);
  Convolve(layer_, run_, band_.Row(y - band_begin_), floats_);
  layer_.isa.binarize_rows(
      {floats_, layer_.threshold.data(), layer_.row_channels, run_.sizes.columns, Row(y)});
}

void BitRows::MakeByIntegers(int64_t y) {
  const IntegerForm& form = *layer_.integers;
  DirectIntegersArgs args = ArgsOf(layer_, run_, integers_->Row(y - band_begin_), sums_);
  args.offsets = run_.group_offsets.data();
  args.taps = form.groups;
  args.weights = form.weights.data();
  args.bias = form.starts.data();
  layer_.isa.direct_integers->convolve(args);

  const int64_t columns = run_.sizes.columns;
  const Range rows = Inside(layer_.spec.height, run_.input.height, run_.sizes.rows);
  Range inside = Inside(layer_.spec.width, run_.input.width, columns);
  if (y < rows.begin || y >= rows.end) inside = {0, 0};
  uint32_t* const row = Row(y);
  Decide(form.at_padding, 0, inside.begin, row);
  Decide(form.inside, inside.begin, inside.end, row);
  Decide(form.at_padding, inside.end, columns, row);
  SumAgain(y, row);
  counted_.all += static_cast<uint64_t>(columns * layer_.spec.out_channels);
}

void BitRows::Decide(const Decisions& decisions, int64_t begin, int64_t end, uint32_t* row) {
  if (begin == end) return;
  layer_.isa.direct_integers->decide({sums_ + begin * layer_.row_channels, decisions.reaches.data(),
                                      decisions.may.data(), layer_.row_channels, end - begin,
                                      row + begin * words_, undecided_ + begin * words_});
}

void BitRows::SumAgain(int64_t y, uint32_t* row) {
  const float* const input = band_.Row(y - band_begin_);
  const DirectKernels& kernels = *layer_.isa.direct;
  const auto taps = static_cast<int64_t>(run_.offsets.size());
  SumAt points[kPoints];
  int64_t channels[kPoints], words[kPoints];
  int64_t count = 0;
  const auto sum = [&] {
    float sums[kPoints];
    layer_.isa.direct_integers->sums_at({points, count, run_.offsets.data(), taps, sums});
    for (int64_t i = 0; i < count; ++i) {
      const bool bit = sums[i] >= layer_.threshold.data()[channels[i]];
      row[words[i]] |= static_cast<uint32_t>(bit) << channels[i] % 32;
    }
    counted_.undecided += static_cast<uint64_t>(count);
    count = 0;
  };
  for (int64_t i = 0; i < run_.sizes.columns * words_; ++i) {
    for (uint32_t left = undecided_[i]; left != 0; left &= left - 1) {
      const int64_t o = i % words_ * 32 + __builtin_ctz(left);
      const DirectWidth tile = TileOf(o, layer_.row_channels, kernels.channels, kernels.lanes);
      points[count] = {input + i / words_,
                       layer_.weights.data() + tile.first * taps + o - tile.first, tile.channels,
                       layer_.bias.data()[o]};
      channels[count] = o;
      words[count] = i;
      if (++count == kPoints) sum();
    }
  }
  if (count > 0) sum();
}

void BitRows::Pool(int64_t image, int64_t out_y, int64_t first, int64_t count) {
  const uint32_t* rows[kMaxPool];
  for (int64_t i = 0; i < count; ++i) rows[i] = Row(first + i);
  const DirectSizes& sizes = run_.sizes;
  PoolBits({rows, count, words_, sizes.columns, layer_.spec.pool_width, sizes.out_columns,
            out_ + (image * sizes.out_rows + out_y) * sizes.out_columns * words_});
}

}  // namespace bnn_deploy
