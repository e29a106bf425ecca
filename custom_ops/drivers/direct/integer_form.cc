#include "drivers/direct/integer_form.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "drivers/direct/band.h"

namespace bnn_deploy {
namespace {

constexpr double kMaxLevel = std::numeric_limits<int16_t>::max();
// The largest that two limbs of 8 bits hold, 256 * high + low; both are signed.
constexpr double kMaxWeight = 257 * std::numeric_limits<int8_t>::max();
constexpr int32_t kAlways = std::numeric_limits<int32_t>::min();
constexpr int32_t kNever = std::numeric_limits<int32_t>::max();
// Every sum is below kNever, and none is as low as kAlways.
constexpr double kMaxSum = kNever - 1.0;
// The finest steps of the levels, as a fraction of the step between neighbouring bytes: the finer,
// the nearer to an integer is the level of the padding, 0, but the coarser may the weights be.
constexpr int kFinestStep = 64;
// The largest half width of the undecided sums beside a threshold, inside and at the padding
// together, as a fraction of the sums' deviation: about that part of all bits is computed again.
constexpr double kWidest = 1.0 / 16;

constexpr double kFloatRounding = 0x1p-24;  // relative, of an addition or multiply-add
constexpr double kLeastFloat = 0x1p-126;    // that is not denormal
// Relative to the sum of magnitudes: all roundings in float64 of what follows, generously.
constexpr double kDoubleRounding = 1e-12;

// The levels of one channel as step * X + offset + rest, -rest_bound <= rest <= rest_bound.
struct Line {
  double step;
  double offset;
  double rest_bound;
  double largest;  // |X|
  double lowest;   // X; at most 0, which stands for the padding
  double highest;  // likewise, at least 0
  double largest_level;
};

Line LineOf(const float* levels, int fineness) {
  const double slope =
      (static_cast<double>(levels[kByteValues - 1]) - levels[0]) / (kByteValues - 1);
  Line line{};
  line.step = slope == 0 ? 1.0 : slope / fineness;
  double least = std::numeric_limits<double>::infinity(), most = -least;
  for (int64_t q = 0; q < kByteValues; ++q) {
    const double level = levels[q];
    const double integer = std::nearbyint(level / line.step);
    least = std::min(least, level - line.step * integer);
    most = std::max(most, level - line.step * integer);
    line.largest = std::max(line.largest, std::fabs(integer));
    line.lowest = std::min(line.lowest, integer);
    line.highest = std::max(line.highest, integer);
    line.largest_level = std::max(line.largest_level, std::fabs(level));
  }
  line.offset = (least + most) / 2;
  line.rest_bound = (most - least) / 2;
  return line;
}

// One output channel.
struct Filter {
  double step;         // of the weights, each for a level's integer
  double constant;     // what the integers leave out, if no tap lies in the padding
  double magnitude;    // of the float sum
  double bound;        // of the error where no tap lies in the padding
  double over, under;  // by which taps in the padding make the sum too large or too small at most
  double deviation;    // of the sum, roughly
};

Filter FilterOf(const DirectSpec& spec, const std::vector<Line>& lines, const float* weights,
                float bias) {
  const int64_t plane = spec.height.kernel * spec.width.kernel;
  const double slack = static_cast<double>(spec.taps()) / 2;  // of rounded weights
  double largest_weight = 0, largest_sum = 0, largest_level = 0;
  for (int64_t k = 0; k < spec.taps(); ++k) {
    const Line& line = lines.data()[k / plane];
    const double weight = std::fabs(weights[k] * line.step);
    largest_weight = std::max(largest_weight, weight);
    largest_sum += weight * line.largest;
    largest_level = std::max(largest_level, line.largest);
  }
  Filter filter{};
  filter.step = std::max(largest_weight / kMaxWeight,
                         largest_sum / std::max(kMaxSum - slack * largest_level, 1.0));
  if (filter.step == 0) filter.step = 1;
  filter.magnitude = std::fabs(bias);
  filter.constant = bias;
  double variance = 0;
  double flushed = 0;  // where denormal numbers are taken for 0: operands, and results
  for (int64_t k = 0; k < spec.taps(); ++k) {
    const Line& line = lines.data()[k / plane];
    const double weight = weights[k];
    const double integer = std::nearbyint(weight * line.step / filter.step);
    const double lost = std::fabs(weight * line.step - filter.step * integer) * line.largest;
    filter.constant += weight * line.offset;
    filter.magnitude += std::fabs(weight) * line.largest_level;
    filter.bound += lost + std::fabs(weight) * line.rest_bound;
    filter.over += std::max(weight * line.offset, 0.0);
    filter.under += std::max(-weight * line.offset, 0.0);
    flushed += (std::fabs(weight) + line.largest_level + 1) * kLeastFloat;
    const double deviation = weight * line.step * line.largest / 3;
    variance += deviation * deviation;
  }
  filter.deviation = std::sqrt(variance);
  const double roundings = static_cast<double>(spec.taps() + 1);
  const double rounding = roundings * kFloatRounding / (1 - roundings * kFloatRounding);
  filter.bound += (rounding + kDoubleRounding) * filter.magnitude + flushed;
  return filter;
}

// What is subtracted from a channel's X, so that they fit into 8 bits.
double ShiftOf(const Line& line, const IntegerKernels& kernels) {
  return kernels.limbs == 1 ? 0 : line.lowest - std::numeric_limits<int8_t>::min();
}

bool Fits(const Line& line, const IntegerKernels& kernels) {
  return kernels.limbs == 1 ? line.largest <= kMaxLevel : line.highest - line.lowest < kByteValues;
}

// The half width of the undecided sums, of both kinds of windows, as a fraction of their deviation.
double Width(const std::vector<Filter>& filters) {
  double total = 0;
  for (const Filter& filter : filters) {
    if (!(filter.magnitude < std::numeric_limits<float>::max() / 2)) {
      return std::numeric_limits<double>::infinity();  // NaN, too
    }
    if (filter.deviation > 0) {
      total += (2 * filter.bound + (filter.over + filter.under) / 2) / filter.deviation;
    }
  }
  return total / static_cast<double>(filters.size());
}

int32_t ToInteger(double sum) {
  return sum >= kNever ? kNever : sum <= kAlways ? kAlways : static_cast<int32_t>(sum);
}

// A channel's decisions, of sums that are too large by `over` or too small by `under` at most: a
// NaN threshold is never reached.
void Decide(const Filter& filter, double over, double under, float threshold, int64_t o,
            Decisions* to) {
  if (std::isnan(threshold)) return;
  const double middle = threshold - filter.constant;
  to->reaches.data()[o] = ToInteger(std::ceil((middle + over) / filter.step) + 1);
  to->may.data()[o] = ToInteger(std::floor((middle - under) / filter.step) - 1);
}

}  // namespace

std::optional<IntegerForm> MakeIntegerForm(const DirectSpec& spec, const Kernels& kernels,
                                           const float* weights, const float* bias,
                                           const float* threshold, const float* levels) {
  const IntegerKernels& integers = *kernels.direct_integers;
  const int64_t taps = spec.taps();
  const auto is_finite = [](float level) { return std::isfinite(level); };
  if (!std::all_of(levels, levels + spec.channels * kByteValues, is_finite)) return std::nullopt;
  std::vector<Line> lines, some_lines;
  std::vector<Filter> filters, some_filters;
  double width = kWidest;
  for (int fineness = 1; fineness <= kFinestStep; fineness *= 2) {
    some_lines.clear();
    some_filters.clear();
    bool fit = true;
    for (int64_t c = 0; c < spec.channels; ++c) {
      some_lines.push_back(LineOf(levels + c * kByteValues, fineness));
      fit = fit && Fits(some_lines.back(), integers);
    }
    if (!fit) break;
    for (int64_t o = 0; o < spec.out_channels; ++o) {
      some_filters.push_back(FilterOf(spec, some_lines, weights + o * taps, bias[o]));
    }
    const double some_width = Width(some_filters);
    if (some_width < width) {
      width = some_width;
      lines.swap(some_lines);
      filters.swap(some_filters);
    }
  }
  if (lines.empty()) return std::nullopt;

  IntegerForm form;
  form.levels = Buffer<int16_t>(spec.channels * kByteValues, 0);
  form.padding = Buffer<int16_t>(spec.channels, 0);
  for (int64_t c = 0; c < spec.channels; ++c) {
    const Line& line = lines.data()[c];
    const double shift = ShiftOf(line, integers);
    form.padding.data()[c] = static_cast<int16_t>(-shift);
    for (int64_t i = c * kByteValues; i < (c + 1) * kByteValues; ++i) {
      form.levels.data()[i] = static_cast<int16_t>(std::nearbyint(levels[i] / line.step) - shift);
    }
  }
  const std::vector<TapGroup> groups = GroupsOf(spec, DirectSizes{}, integers.group);
  const int64_t lanes = kernels.direct->lanes, row_channels = RoundUp(spec.out_channels, lanes);
  form.groups = static_cast<int64_t>(groups.size());
  form.weights = Buffer<uint32_t>(row_channels * form.groups * integers.limbs, 0);
  form.starts = Buffer<int32_t>(row_channels, 0);
  for (Decisions* decisions : {&form.inside, &form.at_padding}) {
    decisions->reaches = Buffer<int32_t>(row_channels, kNever);
    decisions->may = Buffer<int32_t>(row_channels, kNever);
  }
  for (int64_t o = 0; o < spec.out_channels; ++o) {
    const DirectWidth tile = TileOf(o, row_channels, integers.channels, lanes);
    const int64_t vector = (o - tile.first) / lanes, lane = (o - tile.first) % lanes;
    uint32_t* to =
        form.weights.data() + integers.limbs * (tile.first * form.groups + vector * lanes) + lane;
    const Filter& filter = filters.data()[o];
    double start = 0;
    for (const TapGroup& group : groups) {
      for (int64_t k = 0; k < integers.group && group.taps[k] >= 0; ++k) {
        const int64_t tap = group.taps[k];
        const Line& line = lines.data()[tap / (spec.height.kernel * spec.width.kernel)];
        const auto weight =
            static_cast<int32_t>(std::nearbyint(weights[o * taps + tap] * line.step / filter.step));
        start += weight * ShiftOf(line, integers);
        if (integers.limbs == 1) {
          to[0] |= static_cast<uint32_t>(static_cast<uint16_t>(weight)) << 16 * k;
        } else {
          const auto low = static_cast<int8_t>(weight);
          to[0] |= static_cast<uint32_t>(static_cast<uint8_t>((weight - low) / 256)) << 8 * k;
          to[lanes] |= static_cast<uint32_t>(static_cast<uint8_t>(low)) << 8 * k;
        }
      }
      to += integers.limbs * tile.channels;
    }
    form.starts.data()[o] =
        static_cast<int32_t>(static_cast<uint32_t>(static_cast<int64_t>(start)));
    Decide(filter, filter.bound, filter.bound, threshold[o], o, &form.inside);
    Decide(filter, filter.bound + filter.over, filter.bound + filter.under, threshold[o], o,
           &form.at_padding);
  }
  return form;
}

}  // namespace bnn_deploy
