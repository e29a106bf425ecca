#include "drivers/conv/plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

namespace bnn_deploy {
namespace {

// Pixels as lanes pay where the transpose from channels to planes is expensive: in images large
// enough for whole vectors of pixels.
constexpr int64_t kMinPlanePixels = 256;

// The distinct TapRanges along an axis, and the index of each window's TapRange. Without a padding
// correction all windows share one TapRange, the whole kernel.
struct Patterns {
  std::vector<TapRange> ranges;
  std::vector<int64_t> of_window;
};

Patterns FindPatterns(const Axis& axis, int64_t input, bool corrected) {
  const int64_t windows = OutputExtent(axis, input);
  if (!corrected) {
    return {{{0, axis.kernel}}, std::vector<int64_t>(static_cast<size_t>(windows), 0)};
  }
  Patterns patterns;
  patterns.of_window.reserve(static_cast<size_t>(windows));
  std::map<std::pair<int64_t, int64_t>, int64_t> index;
  for (int64_t i = 0; i < windows; ++i) {
    const TapRange range = TapsInside(axis, input, i);
    const auto next = static_cast<int64_t>(patterns.ranges.size());
    const auto [entry, is_new] = index.try_emplace({range.first, range.last}, next);
    if (is_new) patterns.ranges.push_back(range);
    patterns.of_window.push_back(entry->second);
  }
  return patterns;
}

// The number of products of a window with these taps inside the image.
int64_t Products(const ConvLayer& layer, const TapBox& inside) {
  return layer.spec.level_bits > 0 ? 0 : layer.group_channels * inside.Count();
}

// The value in AccumulateArgs::initial of an output channel, whose weights are the row
// `weights_row`, for a window with these taps inside the image.
int32_t InitialSum(const ConvLayer& layer, const TapBits& tap_bits,
                   const std::vector<int32_t>& thresholds, int64_t channel, int64_t weights_row,
                   const TapBox& inside) {
  if (layer.spec.level_bits > 0) {
    const int32_t highest = (1 << layer.spec.level_bits) - 1;
    return -highest * tap_bits.All(weights_row);
  }
  const int64_t outside = tap_bits.All(weights_row) - tap_bits.Inside(weights_row, inside);
  if (thresholds.empty()) return static_cast<int32_t>(-outside);
  // With `counted` mismatches, acc = products + 2 * outside - 2 * counted, and
  // acc >= threshold  <=>  counted <= limit = floor((products + 2 * outside - threshold) / 2)
  //                   <=>  counted - limit - 1 < 0.
  const int64_t slack =
      Products(layer, inside) + 2 * outside - thresholds[static_cast<size_t>(channel)];
  if (slack < 0) return 0;  // bit always 0: no count is negative
  const int64_t limit = std::min<int64_t>(slack / 2, std::numeric_limits<int32_t>::max());
  return static_cast<int32_t>(-limit - 1);
}

void AddRuns(const ConvLayer& layer, ConvPlan* plan) {
  const Axis& rows = layer.spec.height;
  const Axis& columns = layer.spec.width;
  const int64_t pixel_words = layer.copies_input ? layer.input_words : layer.pixel_words;
  // No offset below exceeds the size of a padded volume.
  CheckedProduct({plan->padded_depth, plan->padded_height, plan->padded_width, pixel_words},
                 kPaddedInput);
  plan->run_words = layer.rows_are_runs ? columns.kernel * layer.group_words : layer.group_words;
  for (int64_t z = 0; z < layer.spec.depth.kernel; ++z) {
    for (int64_t y = 0; y < rows.kernel; ++y) {
      const int64_t row = z * layer.spec.depth.dilation * plan->padded_height + y * rows.dilation;
      for (int64_t x = 0; x < (layer.rows_are_runs ? 1 : columns.kernel); ++x) {
        plan->run_offsets.push_back((row * plan->padded_width + x * columns.dilation) *
                                    pixel_words);
      }
    }
  }
}

void AddPlanes(const ConvLayer& layer, const Patterns& rows, const Patterns& columns,
               ConvPlan* plan) {
  const int64_t stride = layer.spec.height.stride;
  const int64_t numbers = 4 / layer.isa.plane_bytes;  // of a word
  plan->uses_planes = true;
  plan->plane_height = RoundUp(plan->padded_height, stride);
  for (int64_t y = 0; y < layer.spec.height.kernel; ++y) {
    const int64_t row = plan->PlaneRow(y * layer.spec.height.dilation, stride);
    for (int64_t x = 0; x < layer.spec.width.kernel; ++x) {
      for (int64_t i = 0; i < layer.group_words * numbers; ++i) {
        const int64_t plane = (i / numbers * layer.spec.width.kernel + x) * numbers + i % numbers;
        plan->plane_offsets.push_back(plane * plan->plane_height * plan->out_width + row);
      }
    }
  }
  for (size_t row = 0; row < rows.ranges.size(); ++row) {
    for (const int64_t column : columns.of_window) {
      const size_t pattern = row * columns.ranges.size() + static_cast<size_t>(column);
      plan->patterns.push_back(static_cast<uint8_t>(pattern));
    }
  }
  const int64_t width = layer.table_width;
  plan->constant = Buffer<float>(width * kMaxPatterns, 0.0f);
  for (size_t pattern = 0; pattern < plan->pattern_products.size(); ++pattern) {
    const int32_t* const sums = plan->table.data() + static_cast<int64_t>(pattern) * width;
    for (int64_t o = 0; o < width; ++o) {
      plan->constant.data()[o * kMaxPatterns + static_cast<int64_t>(pattern)] =
          static_cast<float>(plan->pattern_products[pattern]) - 2.0f * static_cast<float>(sums[o]);
    }
  }
}

}  // namespace

void ConvPlan::CopyPatterns(int64_t first, int64_t count, uint8_t* to) const {
  int64_t x = first % out_width;
  for (int64_t y = first / out_width; count > 0; ++y, x = 0) {
    const int64_t length = std::min(count, out_width - x);
    const int64_t row = row_pattern[static_cast<size_t>(y)];
    to = std::copy_n(patterns.data() + row * out_width + x, length, to);
    count -= length;
  }
}

std::shared_ptr<ConvPlan> MakeConvPlan(const ConvLayer& layer, const TapBits& tap_bits,
                                       const std::vector<int32_t>& thresholds, int64_t height,
                                       int64_t width, int64_t depth) {
  const ConvSpec& spec = layer.spec;
  auto plan = std::make_shared<ConvPlan>();
  plan->depth = depth;
  plan->height = height;
  plan->width = width;
  plan->out_depth = OutputExtent(spec.depth, depth);
  plan->out_height = OutputExtent(spec.height, height);
  plan->out_width = OutputExtent(spec.width, width);
  plan->padded_depth = depth + spec.depth.pad_begin + spec.depth.pad_end;
  plan->padded_height = height + spec.height.pad_begin + spec.height.pad_end;
  plan->padded_width = width + spec.width.pad_begin + spec.width.pad_end;
  AddRuns(layer, plan.get());

  const bool corrected = spec.pad_bits.empty() && spec.level_bits == 0;
  const Patterns slices = FindPatterns(spec.depth, depth, corrected);
  const Patterns rows = FindPatterns(spec.height, height, corrected);
  const Patterns columns = FindPatterns(spec.width, width, corrected);
  for (const int64_t slice : slices.of_window) {
    for (const int64_t row : rows.of_window) {
      plan->row_pattern.push_back(slice * static_cast<int64_t>(rows.ranges.size()) + row);
    }
  }
  const auto patterns =
      static_cast<int64_t>(slices.ranges.size() * rows.ranges.size() * columns.ranges.size());
  // Initial sum 0 makes the bits of unused channels 0.
  plan->table = Buffer<int32_t>(patterns * layer.table_width, 0);
  int32_t* entries = plan->table.data();
  const auto add_row = [&](const TapRange& slice, const TapRange& row) {
    for (const int64_t pattern : columns.of_window) {
      const TapBox inside{slice, row, columns.ranges[static_cast<size_t>(pattern)]};
      plan->initial.push_back(entries + pattern * layer.table_width);
      plan->products.push_back(static_cast<float>(Products(layer, inside)));
    }
    for (const TapRange& column : columns.ranges) {
      const TapBox inside{slice, row, column};
      plan->pattern_products.push_back(Products(layer, inside));
      for (const ChannelTile& tile : layer.tiles) {
        for (int64_t o = 0; o < tile.channels; ++o) {
          entries[tile.table_offset + o] =
              InitialSum(layer, tap_bits, thresholds, tile.channel + o, layer.Row(tile, o), inside);
        }
      }
      entries += layer.table_width;
    }
  };
  for (const TapRange& slice : slices.ranges) {
    for (const TapRange& row : rows.ranges) add_row(slice, row);
  }
  if (layer.takes_planes && depth == 1 && thresholds.empty() && patterns <= kMaxPatterns &&
      plan->out_height * plan->out_width >= kMinPlanePixels) {
    AddPlanes(layer, rows, columns, plan.get());
  }
  return plan;
}

void AddOffsets(const ConvLayer& layer, const TapBits& tap_bits, const float* scale,
                const float* bias, ConvPlan* plan) {
  const int64_t outputs = layer.spec.out_channels;
  plan->offsets.resize(plan->pattern_products.size() * static_cast<size_t>(outputs));
  const int32_t* outside = plan->table.data();  // minus the popcount of the weights outside
  float* offsets = plan->offsets.data();
  for (const int64_t products : plan->pattern_products) {
    for (int64_t o = 0; o < outputs; ++o) {
      offsets[o] = bias[o] + 0.0f;  // 0 for -0
      offsets[o] += scale[o] * static_cast<float>(products);
    }
    for (const ChannelTile& tile : layer.tiles) {
      for (int64_t o = 0; o < tile.channels; ++o) {
        const int64_t ones = tap_bits.All(layer.Row(tile, o)) + outside[tile.table_offset + o];
        const int64_t channel = tile.channel + o;
        offsets[channel] +=
            scale[(tile.base + 1) * outputs + channel] * static_cast<float>(2 * ones - products);
      }
    }
    outside += layer.table_width;
    offsets += outputs;
  }
}

}  // namespace bnn_deploy
