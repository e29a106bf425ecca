#include "drivers/direct/integer_form.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "drivers/direct/band.h"

namespace bnn_deploy {
namespace {

constexpr double kMaxInt16 = std::numeric_limits<int16_t>::max();
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
    line.largest_level = std::max(line.largest_level, std::fabs(level));
  }
  line.offset = (least + most) / 2;
  line.rest_bound = (most - least) / 2;
  return line;
}

// One output channel.
struct Filter {
  double step;       // of the weights, each for a level's integer
  double constant;   // what the integers leave out, if no tap lies in the padding
  double magnitude;  // of the float sum
  double bound, bound_at_padding;
  double deviation;  // of the sum, roughly
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
  filter.step = std::max(largest_weight / kMaxInt16,
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
    filter.bound_at_padding +=
        lost + std::fabs(weight) * std::max(line.rest_bound, std::fabs(line.offset));
    flushed += (std::fabs(weight) + line.largest_level + 1) * kLeastFloat;
    const double deviation = weight * line.step * line.largest / 3;
    variance += deviation * deviation;
  }
  filter.deviation = std::sqrt(variance);
  const double roundings = static_cast<double>(spec.taps() + 1);
  const double rounding = roundings * kFloatRounding / (1 - roundings * kFloatRounding);
  const double always = (rounding + kDoubleRounding) * filter.magnitude + flushed;
  filter.bound += always;
  filter.bound_at_padding += always;
  return filter;
}

// The half width of the undecided sums, of both kinds of windows, as a fraction of their deviation.
double Width(const std::vector<Filter>& filters) {
  double total = 0;
  for (const Filter& filter : filters) {
    if (!(filter.magnitude < std::numeric_limits<float>::max() / 2)) {
      return std::numeric_limits<double>::infinity();  // NaN, too
    }
    if (filter.deviation > 0) {
      total += (filter.bound + filter.bound_at_padding) / filter.deviation;
    }
  }
  return total / static_cast<double>(filters.size());
}

int32_t ToInteger(double sum) {
  return sum >= kNever ? kNever : sum <= kAlways ? kAlways : static_cast<int32_t>(sum);
}

// A channel's decisions: a NaN threshold is never reached.
void Decide(const Filter& filter, double bound, float threshold, int64_t o, Decisions* to) {
  if (std::isnan(threshold)) return;
  const double middle = threshold - filter.constant;
  to->reaches.data()[o] = ToInteger(std::ceil((middle + bound) / filter.step) + 1);
  to->may.data()[o] = ToInteger(std::floor((middle - bound) / filter.step) - 1);
}

}  // namespace

std::optional<IntegerForm> MakeIntegerForm(const DirectSpec& spec, const DirectKernels& kernels,
                                           const float* weights, const float* bias,
                                           const float* threshold, const float* levels) {
  const int64_t taps = spec.taps();
  const auto is_finite = [](float level) { return std::isfinite(level); };
  if (!std::all_of(levels, levels + spec.channels * kByteValues, is_finite)) return std::nullopt;
  std::vector<Line> lines, some_lines;
  std::vector<Filter> filters, some_filters;
  double width = kWidest;
  for (int fineness = 1; fineness <= kFinestStep; fineness *= 2) {
    some_lines.clear();
    some_filters.clear();
    double largest = 0;
    for (int64_t c = 0; c < spec.channels; ++c) {
      some_lines.push_back(LineOf(levels + c * kByteValues, fineness));
      largest = std::max(largest, some_lines.back().largest);
    }
    if (!(largest <= kMaxInt16)) break;
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
  for (int64_t i = 0; i < spec.channels * kByteValues; ++i) {
    form.levels.data()[i] =
        static_cast<int16_t>(std::nearbyint(levels[i] / lines.data()[i / kByteValues].step));
  }
  const std::vector<Tap> pairs = PairsOf(spec, DirectSizes{});  // their offsets are not used
  const int64_t row_channels = RoundUp(spec.out_channels, kernels.lanes);
  form.taps = static_cast<int64_t>(pairs.size());
  form.weights = Buffer<uint32_t>(row_channels * form.taps, 0);
  form.zeros = Buffer<int32_t>(row_channels, 0);
  for (Decisions* decisions : {&form.inside, &form.at_padding}) {
    decisions->reaches = Buffer<int32_t>(row_channels, kNever);
    decisions->may = Buffer<int32_t>(row_channels, kNever);
  }
  for (int64_t o = 0; o < spec.out_channels; ++o) {
    const auto integer = [&](int64_t k) -> uint32_t {
      if (k < 0) return 0;
      const Line& line = lines.data()[k / (spec.height.kernel * spec.width.kernel)];
      const double nearest =
          std::nearbyint(weights[o * taps + k] * line.step / filters.data()[o].step);
      return static_cast<uint16_t>(static_cast<int16_t>(nearest));
    };
    const DirectWidth tile = TileOf(o, row_channels, kernels.pairs->channels, kernels.lanes);
    uint32_t* to = form.weights.data() + tile.first * form.taps + o - tile.first;
    for (const Tap& pair : pairs) {
      *to = integer(pair.index) | integer(pair.other) << 16;
      to += tile.channels;
    }
    Decide(filters.data()[o], filters.data()[o].bound, threshold[o], o, &form.inside);
    Decide(filters.data()[o], filters.data()[o].bound_at_padding, threshold[o], o,
           &form.at_padding);
  }
  return form;
}

}  // namespace bnn_deploy
