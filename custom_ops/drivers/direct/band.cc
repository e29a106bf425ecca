#include "drivers/direct/band.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace bnn_deploy {
namespace {

// The copied rows of a band stay in the second-level cache.
constexpr int64_t kBandElements = int64_t{1} << 14;
// The contract does not limit pads and dilations, but memory does.
constexpr int64_t kMaxBandElements = int64_t{1} << 28;

// to[phase * phase_width + i] = from[i * stride + phase] for i < groups. kStride: the stride, or 0
// for any.
template <int kStride>
void SplitGroups(const float* from, int64_t any_stride, int64_t groups, int64_t phase_width,
                 float* __restrict to) {
  const int64_t stride = kStride > 0 ? kStride : any_stride;
  for (int64_t i = 0; i < groups; ++i) {
    for (int64_t phase = 0; phase < stride; ++phase) {
      to[phase * phase_width + i] = from[i * stride + phase];
    }
  }
}

// Splits a row by the remainder of the columns, behind `pad` columns, to [stride][phase_width].
void SplitColumns(const float* from, int64_t width, int64_t pad, int64_t stride,
                  int64_t phase_width, float* to) {
  if (stride == 1) {
    std::copy_n(from, width, to + pad);
    return;
  }
  const int64_t before = std::min((stride - pad % stride) % stride, width);
  const int64_t groups = (width - before) / stride;
  float* const group = to + (pad + before) / stride;
  if (stride == 2) {
    SplitGroups<2>(from + before, stride, groups, phase_width, group);
  } else if (stride == 4) {
    SplitGroups<4>(from + before, stride, groups, phase_width, group);
  } else {
    SplitGroups<0>(from + before, stride, groups, phase_width, group);
  }
  // The columns before and behind the whole groups.
  const auto copy = [&](int64_t x) {
    to[(pad + x) % stride * phase_width + (pad + x) / stride] = from[x];
  };
  for (int64_t x = 0; x < before; ++x) copy(x);
  for (int64_t x = before + groups * stride; x < width; ++x) copy(x);
}

// The input rows under one window.
int64_t WindowRows(const DirectSpec& spec) {
  return (spec.height.kernel - 1) * spec.height.dilation + 1;
}

// to[i] = the integers rows[k * row + i * stride], k < group.
template <int kGroup>
void Pack(const int16_t* rows, int64_t row, int64_t stride, int64_t count,
          uint32_t* __restrict to) {
  constexpr int kBits = 32 / kGroup;
  constexpr uint32_t kMask = (uint32_t{1} << kBits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t number = 0;
    for (int k = 0; k < kGroup; ++k) {
      number |= (static_cast<uint32_t>(rows[k * row + i * stride]) & kMask) << k * kBits;
    }
    to[i] = number;
  }
}

}  // namespace

DirectSizes SizesOf(const DirectSpec& spec, const DirectKernels& kernels, const ImageBatch& input) {
  const Axis& height = spec.height;
  const Axis& width = spec.width;
  DirectSizes sizes;
  sizes.rows = OutputExtent(height, input.height);
  sizes.columns = OutputExtent(width, input.width);
  sizes.out_rows = OutputExtent(spec.pool_height, sizes.rows);
  sizes.out_columns = OutputExtent(spec.pool_width, sizes.columns);
  sizes.line = sizes.columns + kernels.slack;
  sizes.phase_width = sizes.line + CeilDiv((width.kernel - 1) * width.dilation + 1, width.stride);
  constexpr const char* kRow = "a padded row of the input";
  sizes.copied_row = CheckedProduct({width.stride, sizes.phase_width}, kRow);
  const int64_t row_elements = CheckedProduct({spec.channels, sizes.copied_row}, kRow);
  // At least two windows high, so that most rows are copied once.
  const int64_t window = WindowRows(spec);
  const int64_t wanted = std::max(kBandElements / row_elements, 2 * window);
  sizes.band_rows = std::clamp((wanted - window) / height.stride + 1, int64_t{1}, sizes.rows);
  sizes.copied_rows = (sizes.band_rows - 1) * height.stride + window;
  constexpr const char* kBand = "the padded input under a row of windows";
  if (CheckedProduct({row_elements, sizes.copied_rows}, kBand) > kMaxBandElements) {
    throw std::invalid_argument(std::string(kBand) + " has " +
                                std::to_string(row_elements * sizes.copied_rows) +
                                " elements, at most " + std::to_string(kMaxBandElements) +
                                " are supported: the attributes pads and dilations are too large");
  }
  return sizes;
}

namespace {

// Of a band of groups of integers.
int64_t PlanesOf(int64_t channels, int64_t group) { return channels / std::gcd(channels, group); }

// The offset of a tap in a plane of the band.
int64_t OffsetOf(const DirectSpec& spec, const DirectSizes& sizes, int64_t plane, int64_t row,
                 int64_t column) {
  const int64_t x = column * spec.width.dilation;
  const int64_t stride = spec.width.stride;
  return (plane * sizes.copied_rows + row * spec.height.dilation) * sizes.copied_row +
         x % stride * sizes.phase_width + x / stride;
}

}  // namespace

std::vector<int64_t> OffsetsOf(const DirectSpec& spec, const DirectSizes& sizes) {
  std::vector<int64_t> offsets;
  for (int64_t c = 0; c < spec.channels; ++c) {
    for (int64_t i = 0; i < spec.height.kernel; ++i) {
      for (int64_t j = 0; j < spec.width.kernel; ++j) {
        offsets.push_back(OffsetOf(spec, sizes, c, i, j));
      }
    }
  }
  return offsets;
}

std::vector<TapGroup> GroupsOf(const DirectSpec& spec, const DirectSizes& sizes, int64_t group) {
  std::vector<TapGroup> groups;
  const int64_t planes = PlanesOf(spec.channels, group);
  const int64_t rows = planes * group / spec.channels;  // from a plane's numbers to its next
  const int64_t width = spec.width.kernel, lines = spec.height.kernel * spec.channels;
  for (int64_t first = 0; first < lines; first += group) {
    const int64_t number = first / group;
    for (int64_t j = 0; j < width; ++j) {
      TapGroup taps{OffsetOf(spec, sizes, number % planes, number / planes * rows, j), {}};
      for (int64_t k = 0; k < kMaxGroup; ++k) {
        const int64_t line = first + k;
        const int64_t channel = line % spec.channels, row = line / spec.channels;
        const bool exists = k < group && line < lines;
        taps.taps[k] = exists ? (channel * spec.height.kernel + row) * width + j : -1;
      }
      groups.push_back(taps);
    }
  }
  return groups;
}

template <typename Number>
Band<Number>::Band(const DirectSpec& spec, const DirectSizes& sizes, const Level* levels,
                   const Level* padding, int64_t group)
    : spec_(spec),
      sizes_(sizes),
      levels_(levels),
      padding_(padding),
      group_(group),
      planes_(PlanesOf(spec.channels, group)),
      scratch_(&Kept()),
      row_scratch_(&KeptRow()),
      band_(scratch_.Reserve(planes_ * sizes.copied_rows * sizes.copied_row)),
      rows_(row_scratch_.Reserve(levels == nullptr ? 0 : group * sizes.copied_row)) {
  // The padding, which no copy of floats changes.
  std::fill_n(band_, planes_ * sizes.copied_rows * sizes.copied_row, Number{0});
}

template <typename Number>
void Band<Number>::Copy(const ImageBatch& input, int64_t image, int64_t top) {
  const int64_t all = sizes_.copied_rows, row = sizes_.copied_row;
  const bool moves = image == image_ && top >= top_;
  const int64_t steps = moves ? std::min(top - top_, all) : all;
  image_ = image;
  top_ = top;
  for (int64_t plane = 0; plane < planes_; ++plane) {
    Number* const rows = band_ + plane * all * row;
    if (steps > 0) std::copy(rows + steps * row, rows + all * row, rows);
    for (int64_t y = all - steps; y < all; ++y) {
      CopyRow(input, image, plane, top + y, rows + y * row);
    }
  }
}

template <typename Number>
void Band<Number>::Expand(const ImageBatch& input, int64_t image, int64_t channel, int64_t y,
                          Level* to) const {
  std::fill_n(to, sizes_.copied_row, padding_ == nullptr ? Level{0} : padding_[channel]);
  if (y < 0 || y >= input.height) return;
  to += spec_.width.pad_begin;
  const int64_t channels = spec_.channels;
  const int64_t step = input.channels_last ? channels : 1;
  const uint8_t* from =
      input.channels_last
          ? input.bytes + (image * input.height + y) * input.width * channels + channel
          : input.bytes + ((image * channels + channel) * input.height + y) * input.width;
  const Level* const levels = levels_ + channel * kByteValues;
  for (int64_t x = 0; x < input.width; ++x, from += step) to[x] = levels[*from];
}

template <>
void Band<float>::CopyRow(const ImageBatch& input, int64_t image, int64_t plane, int64_t y,
                          float* to) {
  if (y < 0 || y >= input.height) {
    std::fill_n(to, sizes_.copied_row, 0.0f);
    return;
  }
  const Axis& axis = spec_.width;
  const float* from;
  if (levels_ != nullptr) {
    Expand(input, image, plane, y, rows_);
    from = rows_ + axis.pad_begin;
  } else {
    from = input.floats + ((image * spec_.channels + plane) * input.height + y) * input.width;
  }
  SplitColumns(from, input.width, axis.pad_begin, axis.stride, sizes_.phase_width, to);
}

template <>
void Band<uint32_t>::CopyRow(const ImageBatch& input, int64_t image, int64_t plane, int64_t y,
                             uint32_t* to) {
  for (int64_t k = 0; k < group_; ++k) {
    const int64_t line = plane * group_ + k;
    Expand(input, image, line % spec_.channels, y + line / spec_.channels * spec_.height.dilation,
           rows_ + k * sizes_.copied_row);
  }
  const auto pack = group_ == 2 ? Pack<2> : Pack<4>;
  const int64_t stride = spec_.width.stride, width = sizes_.phase_width;
  for (int64_t phase = 0; phase < stride; ++phase) {
    pack(rows_ + phase, sizes_.copied_row, stride, width, to + phase * width);
  }
}

template class Band<float>;
template class Band<uint32_t>;

}  // namespace bnn_deploy
