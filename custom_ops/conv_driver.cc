#include "conv_driver.h"

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "dispatch.h"

namespace bnn_deploy {
namespace {

// A task has at least this much work, some 10 to 20 microseconds with vector units: more than it
// costs to hand it to another thread.
constexpr int64_t kMinTaskWordOps = int64_t{1} << 19;
constexpr int64_t kMinCopyTaskWords = int64_t{1} << 16;
constexpr int64_t kMaxTasks = 256;
// Pads are unlimited in the contract, memory is not.
constexpr int64_t kMaxPaddedWords = int64_t{1} << 31;
constexpr const char* kPaddedInput = "the padded input";

bool HasPadding(const Axis& axis) { return axis.pad_begin > 0 || axis.pad_end > 0; }

// Copies `count` bits that begin at bit `first` of `from`; the unused bits of the last word are 0.
void CopyBits(const uint32_t* from, int64_t first, int64_t count, uint32_t* to) {
  const int64_t shift = first % 32;
  from += first / 32;
  for (int64_t done = 0; done < count; done += 32, ++from, ++to) {
    const int64_t bits = std::min<int64_t>(count - done, 32);
    uint32_t word = *from >> shift;
    if (shift + bits > 32) word |= from[1] << (32 - shift);
    *to = bits == 32 ? word : word & ((1u << bits) - 1);
  }
}

// Sets bits `first` and up of `to`, which are 0, to `count` bits of `from`.
void MergeBits(const uint32_t* from, int64_t count, int64_t first, uint32_t* to) {
  const int64_t shift = first % 32;
  to += first / 32;
  for (int64_t done = 0; done < count; done += 32, ++from, ++to) {
    *to |= *from << shift;
    if (shift + std::min<int64_t>(count - done, 32) > 32) to[1] |= *from >> (32 - shift);
  }
}

// The distinct TapRanges along an axis, and which one each window has.
struct Patterns {
  std::vector<TapRange> ranges;
  std::vector<int64_t> of_window;
};

Patterns FindPatterns(const Axis& axis, int64_t input, bool zero_padding) {
  const int64_t windows = OutputExtent(axis, input);
  if (!zero_padding) {
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

}  // namespace

struct ConvDriver::Plan {
  int64_t height;
  int64_t width;
  int64_t out_height;
  int64_t out_width;
  int64_t padded_height;
  int64_t padded_width;
  std::vector<int64_t> run_offsets;
  int64_t run_words;
  // table[row_offset[y] + column_offset[x] + tile.table_offset + o]
  std::vector<int64_t> row_offset;
  std::vector<int64_t> column_offset;
  Buffer<int32_t> table;
};

struct ConvDriver::Image {
  const uint32_t* data;
  int64_t image_stride;
  int64_t group_stride;
  int64_t row_stride;
  int64_t pixel_stride;
};

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights)
    : isa_(isa),
      spec_(std::move(spec)),
      group_channels_(spec_.channels / spec_.group),
      group_words_(WordsForBits(group_channels_)),
      copies_input_(HasPadding(spec_.height) || HasPadding(spec_.width) ||
                    (spec_.group > 1 && group_channels_ % 32 != 0)),
      window_words_(RoundUp(spec_.height.kernel * spec_.width.kernel * group_words_,
                            std::max<int64_t>(isa.granule / 4, 1))) {
  const int64_t group_outputs = spec_.out_channels / spec_.group;
  int64_t weights_size = 0;
  for (int64_t group = 0; group < spec_.group; ++group) {
    for (int64_t o = 0; o < group_outputs; o += kTileChannels) {
      const int64_t channels = std::min(group_outputs - o, kTileChannels);
      const int64_t blocks = CeilDiv(channels, isa_.channel_block);
      tiles_.push_back(
          {group, group * group_outputs + o, channels, table_width_, weights_size, blocks});
      table_width_ += RoundUp(channels, 32);
      weights_size += blocks * isa_.channel_block * window_words_;
    }
  }
  weights_ = Buffer<uint32_t>(weights_size, 0);
  PackWeights(weights);
  if (spec_.pad_bits.empty()) CountTapBits(weights);
}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights, const float* scale,
                       const float* bias)
    : ConvDriver(isa, std::move(spec), weights) {
  scale_ = Buffer<float>(table_width_, 0.0f);
  bias_ = Buffer<float>(table_width_, 0.0f);
  for (const ChannelTile& tile : tiles_) {
    std::copy_n(scale + tile.channel, tile.channels, scale_.data() + tile.table_offset);
    std::copy_n(bias + tile.channel, tile.channels, bias_.data() + tile.table_offset);
  }
}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const int32_t* threshold)
    : ConvDriver(isa, std::move(spec), weights) {
  threshold_.assign(threshold, threshold + spec_.out_channels);
}

// To the layout of AccumulateArgs::weights.
void ConvDriver::PackWeights(const uint32_t* weights) {
  const int64_t bytes = spec_.height.kernel * spec_.width.kernel * group_words_ * 4;
  const int64_t block = isa_.channel_block;
  const int64_t granule = isa_.granule;
  const auto* const all = reinterpret_cast<const uint8_t*>(weights);
  for (const ChannelTile& tile : tiles_) {
    auto* const packed = reinterpret_cast<uint8_t*>(weights_.data() + tile.weights_offset);
    for (int64_t o = 0; o < tile.channels; ++o) {
      const uint8_t* from = all + (tile.channel + o) * bytes;
      uint8_t* to = packed + o / block * block * window_words_ * 4 + o % block * granule;
      for (int64_t k = 0; k < bytes; ++k) to[k / granule * block * granule + k % granule] = from[k];
    }
  }
}

void ConvDriver::CountTapBits(const uint32_t* weights) {
  const int64_t rows = spec_.height.kernel;
  const int64_t columns = spec_.width.kernel;
  const int64_t stride = columns + 1;
  tap_bits_.assign(static_cast<size_t>(spec_.out_channels * (rows + 1) * stride), 0);
  for (int64_t o = 0; o < spec_.out_channels; ++o) {
    int32_t* sums = tap_bits_.data() + o * (rows + 1) * stride;
    for (int64_t y = 0; y < rows; ++y) {
      int32_t row_sum = 0;
      for (int64_t x = 0; x < columns; ++x) {
        for (int64_t k = 0; k < group_words_; ++k) row_sum += __builtin_popcount(*weights++);
        sums[(y + 1) * stride + x + 1] = sums[y * stride + x + 1] + row_sum;
      }
    }
  }
}

int32_t ConvDriver::TableEntry(int64_t channel, TapRange rows, TapRange columns) const {
  int64_t base = group_channels_ * (rows.last - rows.first) * (columns.last - columns.first);
  if (!tap_bits_.empty()) {
    const int64_t stride = spec_.width.kernel + 1;
    const int32_t* sums = tap_bits_.data() + channel * (spec_.height.kernel + 1) * stride;
    const auto at = [&](int64_t y, int64_t x) { return sums[y * stride + x]; };
    const int32_t inside = at(rows.last, columns.last) - at(rows.first, columns.last) -
                           at(rows.last, columns.first) + at(rows.first, columns.first);
    base += 2 * (at(spec_.height.kernel, spec_.width.kernel) - inside);
  }
  if (threshold_.empty()) return static_cast<int32_t>(base);
  // base - 2 * mis >= threshold  <=>  mis <= floor((base - threshold) / 2); no mis is negative.
  const int64_t slack = base - threshold_[static_cast<size_t>(channel)];
  if (slack < 0) return -1;
  return static_cast<int32_t>(std::min<int64_t>(slack / 2, std::numeric_limits<int32_t>::max()));
}

std::shared_ptr<const ConvDriver::Plan> ConvDriver::PlanFor(int64_t height, int64_t width) const {
  const std::lock_guard<std::mutex> lock(plan_mutex_);
  if (plan_ == nullptr || plan_->height != height || plan_->width != width) {
    plan_ = MakePlan(height, width);
  }
  return plan_;
}

std::shared_ptr<const ConvDriver::Plan> ConvDriver::MakePlan(int64_t height, int64_t width) const {
  auto plan = std::make_shared<Plan>();
  plan->height = height;
  plan->width = width;
  plan->out_height = OutputExtent(spec_.height, height);
  plan->out_width = OutputExtent(spec_.width, width);
  plan->padded_height = height + spec_.height.pad_begin + spec_.height.pad_end;
  plan->padded_width = width + spec_.width.pad_begin + spec_.width.pad_end;

  const int64_t pixel_words = copies_input_ ? group_words_ : WordsForBits(spec_.channels);
  // No offset below exceeds the size of a padded plane.
  CheckedProduct({plan->padded_height, plan->padded_width, pixel_words}, kPaddedInput);
  const bool rows_are_runs = spec_.width.dilation == 1 && pixel_words == group_words_;
  plan->run_words = rows_are_runs ? spec_.width.kernel * group_words_ : group_words_;
  for (int64_t y = 0; y < spec_.height.kernel; ++y) {
    for (int64_t x = 0; x < (rows_are_runs ? 1 : spec_.width.kernel); ++x) {
      plan->run_offsets.push_back(
          (y * spec_.height.dilation * plan->padded_width + x * spec_.width.dilation) *
          pixel_words);
    }
  }

  const bool zero_padding = spec_.pad_bits.empty();
  const Patterns rows = FindPatterns(spec_.height, height, zero_padding);
  const Patterns columns = FindPatterns(spec_.width, width, zero_padding);
  const auto row_patterns = static_cast<int64_t>(rows.ranges.size());
  const auto column_patterns = static_cast<int64_t>(columns.ranges.size());
  for (const int64_t pattern : rows.of_window) {
    plan->row_offset.push_back(pattern * column_patterns * table_width_);
  }
  for (const int64_t pattern : columns.of_window) {
    plan->column_offset.push_back(pattern * table_width_);
  }
  // The -1 of unused channels makes their bits 0.
  plan->table = Buffer<int32_t>(row_patterns * column_patterns * table_width_, -1);
  int32_t* entries = plan->table.data();
  for (const TapRange& row : rows.ranges) {
    for (const TapRange& column : columns.ranges) {
      for (const ChannelTile& tile : tiles_) {
        for (int64_t o = 0; o < tile.channels; ++o) {
          entries[tile.table_offset + o] = TableEntry(tile.channel + o, row, column);
        }
      }
      entries += table_width_;
    }
  }
  return plan;
}

// One row of the padded copy, [padded_width][group_words_].
void ConvDriver::CopyRow(const BitBatch& input, int64_t image, int64_t group, int64_t row,
                         int64_t padded_width, uint32_t* out) const {
  const auto pad = [&](int64_t pixels) {
    if (spec_.pad_bits.empty()) {
      out = std::fill_n(out, pixels * group_words_, 0u);
      return;
    }
    for (int64_t i = 0; i < pixels; ++i, out += group_words_) {
      CopyBits(spec_.pad_bits.data(), group * group_channels_, group_channels_, out);
    }
  };
  const int64_t y = row - spec_.height.pad_begin;
  if (y < 0 || y >= input.height) return pad(padded_width);
  const int64_t words = WordsForBits(spec_.channels);
  const uint32_t* from = input.data + (image * input.height + y) * input.width * words;
  pad(spec_.width.pad_begin);
  if (spec_.group == 1) {
    out = std::copy_n(from, input.width * words, out);
  } else {
    for (int64_t x = 0; x < input.width; ++x, from += words, out += group_words_) {
      CopyBits(from, group * group_channels_, group_channels_, out);
    }
  }
  pad(spec_.width.pad_end);
}

// The input itself, or its padded copy [batch][group][padded_height][padded_width][group_words_],
// which belongs to the calling thread and lives until its next call.
ConvDriver::Image ConvDriver::Prepare(const BitBatch& input, const Plan& plan,
                                      const TaskRunner& runner) const {
  if (!copies_input_) {
    const int64_t words = WordsForBits(spec_.channels);
    return {input.data, input.height * input.width * words, group_words_, input.width * words,
            words};
  }
  const int64_t row_words = CheckedProduct({plan.padded_width, group_words_}, kPaddedInput);
  const int64_t rows = CheckedProduct({input.batch, spec_.group, plan.padded_height}, kPaddedInput);
  const int64_t size = CheckedProduct({rows, row_words}, kPaddedInput);
  if (size > kMaxPaddedWords) {
    throw std::invalid_argument(std::string(kPaddedInput) + " has " + std::to_string(size) +
                                " words, at most " + std::to_string(kMaxPaddedWords) +
                                " are supported: use smaller pads or a smaller batch");
  }
  thread_local Buffer<uint32_t> padded;
  uint32_t* const copy = padded.Reserve(size);
  const int64_t tasks = std::clamp(size / kMinCopyTaskWords, int64_t{1}, std::min(rows, kMaxTasks));
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(rows, tasks, task);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t plane = i / plan.padded_height;
      CopyRow(input, plane / spec_.group, plane % spec_.group, i % plan.padded_height,
              plan.padded_width, copy + i * row_words);
    }
  });
  const int64_t plane_words = plan.padded_height * row_words;
  return {copy, spec_.group * plane_words, plane_words, row_words, group_words_};
}

// Finds the window and the table row of each pixel.
void ConvDriver::LocatePixels(const Plan& plan, const Image& image, const ChannelTile& tile,
                              Range pixels, const uint32_t** windows, const int32_t** rows) const {
  const uint32_t* const group = image.data + tile.group * image.group_stride;
  const int32_t* const table = plan.table.data() + tile.table_offset;
  int64_t x = pixels.begin % plan.out_width;
  int64_t y = pixels.begin / plan.out_width % plan.out_height;
  int64_t n = pixels.begin / plan.out_width / plan.out_height;
  for (int64_t p = 0; p < pixels.end - pixels.begin; ++p) {
    windows[p] = group + n * image.image_stride + y * spec_.height.stride * image.row_stride +
                 x * spec_.width.stride * image.pixel_stride;
    rows[p] = table + plan.row_offset[static_cast<size_t>(y)] +
              plan.column_offset[static_cast<size_t>(x)];
    if (++x < plan.out_width) continue;
    x = 0;
    if (++y < plan.out_height) continue;
    y = 0;
    ++n;
  }
}

// Copies the words of each window to a row of whole granules and points to these rows instead.
void ConvDriver::GatherWindows(const Plan& plan, int64_t pixels, const uint32_t** windows,
                               Buffer<uint32_t>& gathered) const {
  uint32_t* row = gathered.Reserve(kTilePixels * window_words_);
  for (int64_t p = 0; p < pixels; ++p) {
    uint32_t* to = row;
    for (const int64_t offset : plan.run_offsets) {
      to = std::copy_n(windows[p] + offset, plan.run_words, to);
    }
    std::fill(to, row + window_words_, 0u);
    windows[p] = row;
    row += window_words_;
  }
}

// Calls finish(tile, pixels, mismatches, table rows) for every tile of channels and pixels; pixels
// are counted through the whole batch. Tasks get disjoint ranges of pixels, and, where
// `split_channels` allows it, of channel tiles.
template <typename Finish>
void ConvDriver::ForEachTile(const BitBatch& input, bool split_channels, const TaskRunner& runner,
                             const Finish& finish) const {
  const std::shared_ptr<const Plan> plan_owner = PlanFor(input.height, input.width);
  const Plan& plan = *plan_owner;
  const int64_t image_pixels = plan.out_height * plan.out_width;
  const int64_t pixels = input.batch * image_pixels;
  if (pixels == 0) return;
  const Image image = Prepare(input, plan, runner);

  const int64_t pixel_tiles = CeilDiv(pixels, kTilePixels);
  const auto channel_tiles = static_cast<int64_t>(tiles_.size());
  const double work = static_cast<double>(pixels) * static_cast<double>(spec_.out_channels) *
                      static_cast<double>(window_words_);
  const auto wanted =
      static_cast<int64_t>(std::clamp(work / kMinTaskWordOps, 1.0, static_cast<double>(kMaxTasks)));
  const int64_t pixel_parts = std::min(wanted, pixel_tiles);
  const int64_t channel_parts =
      split_channels ? std::min(CeilDiv(wanted, pixel_parts), channel_tiles) : 1;

  const bool gathers =
      isa_.granule > 4 && !(plan.run_offsets.size() == 1 && plan.run_words == window_words_);
  const int64_t no_offset = 0;

  RunTasks(runner, pixel_parts * channel_parts, [&](int64_t task) {
    const Range pixel_range = Part(pixel_tiles, pixel_parts, task / channel_parts);
    const Range channel_range = Part(channel_tiles, channel_parts, task % channel_parts);
    // Lanes that no micro-kernel writes stay 0, above the limit of -1 that unused channels have.
    alignas(64) int32_t mismatches[kTilePixels * kTileChannels] = {};
    const uint32_t* windows[kTilePixels];
    const int32_t* rows[kTilePixels];
    thread_local Buffer<uint32_t> gathered;

    AccumulateArgs args;
    args.windows = windows;
    args.mismatches = mismatches;
    args.run_offsets = gathers ? &no_offset : plan.run_offsets.data();
    args.runs = gathers ? 1 : static_cast<int64_t>(plan.run_offsets.size());
    args.run_words = gathers ? window_words_ : plan.run_words;
    // Channels outside, pixels inside: the weights of a tile stay in the first-level cache.
    for (int64_t c = channel_range.begin; c < channel_range.end; ++c) {
      const ChannelTile& tile = tiles_[static_cast<size_t>(c)];
      args.weights = weights_.data() + tile.weights_offset;
      args.blocks = tile.blocks;
      for (int64_t t = pixel_range.begin; t < pixel_range.end; ++t) {
        const int64_t begin = t * kTilePixels;
        const int64_t count = std::min(kTilePixels, pixels - begin);
        LocatePixels(plan, image, tile, Range{begin, begin + count}, windows, rows);
        if (gathers) GatherWindows(plan, count, windows, gathered);
        args.pixels = count;
        isa_.accumulate(args);
        finish(tile, Range{begin, begin + count}, mismatches, rows);
      }
    }
    CountCalls(isa_, static_cast<uint64_t>((channel_range.end - channel_range.begin) *
                                           (pixel_range.end - pixel_range.begin)));
  });
}

void ConvDriver::Run(const BitBatch& input, float* out, const TaskRunner& runner) const {
  const int64_t image_pixels =
      OutputExtent(spec_.height, input.height) * OutputExtent(spec_.width, input.width);
  ForEachTile(
      input, true, runner,
      [&](const ChannelTile& tile, Range pixels, const int32_t* mismatches,
          const int32_t* const* rows) {
        // A tile can run over several images; each has its own planes.
        for (int64_t pixel = pixels.begin; pixel < pixels.end;) {
          const int64_t image = pixel / image_pixels;
          const int64_t end = std::min(pixels.end, (image + 1) * image_pixels);
          const int64_t first = pixel - pixels.begin;
          isa_.finish_float({mismatches + first * kTileChannels, rows + first,
                             scale_.data() + tile.table_offset, bias_.data() + tile.table_offset,
                             end - pixel, tile.channels,
                             out + (image * spec_.out_channels + tile.channel) * image_pixels +
                                 pixel % image_pixels,
                             image_pixels});
          pixel = end;
        }
      });
}

void ConvDriver::Run(const BitBatch& input, uint32_t* out, const TaskRunner& runner) const {
  const int64_t words = WordsForBits(spec_.out_channels);
  // Groups that share words of the output are merged by one task, into words that are 0.
  const bool aligned = spec_.group == 1 || spec_.out_channels / spec_.group % 32 == 0;
  ForEachTile(
      input, aligned, runner,
      [&](const ChannelTile& tile, Range pixels, const int32_t* mismatches,
          const int32_t* const* rows) {
        const int64_t count = pixels.end - pixels.begin;
        const int64_t tile_words = WordsForBits(tile.channels);
        uint32_t* const to = out + pixels.begin * words;
        if (aligned) {
          isa_.finish_bits({mismatches, rows, count, tile_words, to + tile.channel / 32, words});
          return;
        }
        if (tile.channel == 0) std::fill_n(to, count * words, 0u);
        constexpr int64_t kTileWords = kTileChannels / 32;
        uint32_t bits[kTilePixels * kTileWords];
        isa_.finish_bits({mismatches, rows, count, tile_words, bits, kTileWords});
        for (int64_t p = 0; p < count; ++p) {
          MergeBits(bits + p * kTileWords, tile.channels, tile.channel, to + p * words);
        }
      });
}

}  // namespace bnn_deploy
