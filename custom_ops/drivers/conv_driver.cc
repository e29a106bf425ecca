#include "drivers/conv_driver.h"

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Work is shared from some 10 microseconds (with vector units) on, which is more than it costs to
// wake another thread; it is then cut into smaller tasks, so that the threads finish together.
constexpr double kMinSharedWordOps = 1 << 19;
constexpr double kTaskWordOps = 1 << 17;
constexpr int64_t kMinCopyTaskWords = int64_t{1} << 16;
constexpr int64_t kMaxTasks = 256;
// Pads are unlimited in the contract, memory is not.
constexpr int64_t kMaxPaddedWords = int64_t{1} << 31;
constexpr const char* kPaddedInput = "the padded input";
// Pixels as lanes pay where the transpose from channels to planes is dear: in images that are large
// enough for whole vectors of pixels, and for windows that are short. They take a copy of the input
// per column of the kernel (and stride), which should not outgrow the caches.
constexpr int64_t kMinPlanePixels = 256;
constexpr int64_t kMaxPlaneWords = 128;
constexpr int64_t kMaxPlaneCopies = 8;
// Pixels whose windows are looked up once for all output channels, and whose gathered windows stay
// in the second-level cache.
constexpr int64_t kBlockPixels = 4 * kTilePixels;
constexpr int64_t kMaxGatheredWords = int64_t{1} << 15;
// Rows of different channels that are a multiple of 4096 bytes apart fall into the same cache sets.
// Written 64 bytes at a time they push each other out, so they are put together in a buffer with
// another distance and copied in pieces of kBlockPixels.
constexpr int64_t kConflictPixels = 4096 / sizeof(float);
constexpr int64_t kStagingStride = kBlockPixels + 16;

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

// The distinct TapRanges along an axis, and which one each window has; one for all where padding
// needs no correction.
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

// Calls body(part, first) for parts of up to kTilePixels pixels, of which `first` is the first.
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

struct ConvDriver::Plan {
  int64_t height;
  int64_t width;
  int64_t out_height;
  int64_t out_width;
  int64_t padded_height;
  int64_t padded_width;
  std::vector<int64_t> run_offsets;
  int64_t run_words;
  // A row of pixels has pattern row_pattern[y], and its pixels have these initial sums (rows of
  // table_width in `table`) and numbers of products: [row pattern][out_width].
  std::vector<int64_t> row_pattern;
  std::vector<const int32_t*> initial;
  std::vector<float> products;
  Buffer<int32_t> table;

  // Only for micro-kernels that take pixels as lanes: the input is split into planes
  // [batch][group][word][kernel column][plane_height][out_width], which hold one word, at one
  // column of the kernel, of all output pixels. Its rows 0, stride, 2 * stride and so on come
  // first, then 1, 1 + stride and so on. So a tap of all windows of the image is one array.
  bool uses_planes = false;
  int64_t plane_height = 0;
  std::vector<int64_t> plane_offsets;  // of the words of a window
  Buffer<uint8_t> patterns;            // [out_height][out_width]
  Buffer<float> constant;              // [table_width][kMaxPatterns]: products - 2 * `table`

  // Where a row of the padded input is in its plane.
  int64_t PlaneRow(int64_t y, int64_t stride) const {
    return (y % stride * (plane_height / stride) + y / stride) * out_width;
  }
};

struct ConvDriver::Image {
  const uint32_t* data;
  int64_t image_stride;
  int64_t plane_stride;
  int64_t group_stride;
  int64_t row_stride;
  int64_t pixel_stride;
};

// As in AccumulateArgs and FinishFloatArgs.
struct ConvDriver::PixelBlock {
  const uint32_t* windows[kMaxLevelBits * kBlockPixels];  // of each plane, kBlockPixels
  const int32_t* initial[kBlockPixels];
  float products[kBlockPixels];
};

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights)
    : isa_(isa),
      spec_(std::move(spec)),
      group_channels_(spec_.channels / spec_.group),
      group_words_(WordsForBits(group_channels_)),
      bit_planes_(std::max<int64_t>(spec_.level_bits, 1)),
      pixel_words_(bit_planes_ * WordsForBits(spec_.channels)),
      copies_input_(HasPadding(spec_.height) || HasPadding(spec_.width) ||
                    (spec_.group > 1 && group_channels_ % 32 != 0) ||
                    (bit_planes_ > 1 && spec_.width.kernel > 1)),  // planes apart make longer runs
      rows_are_runs_(spec_.width.dilation == 1 && (copies_input_ || pixel_words_ == group_words_)),
      encodes_(isa.encode != nullptr &&
               spec_.height.kernel * spec_.width.kernel * group_words_ >= isa.encoded_words),
      window_words_(RoundUp(spec_.height.kernel * spec_.width.kernel * group_words_,
                            isa.gathers || encodes_ ? isa.granule / 4 : 1)) {
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
  if (isa_.convolve_planes != nullptr && spec_.level_bits == 0 && window_words_ <= kMaxPlaneWords &&
      spec_.width.kernel <= kMaxPlaneCopies * spec_.width.stride) {
    PackPlaneWeights(weights);
  }
  weights_ = Buffer<uint32_t>(weights_size, 0);
  PackWeights(weights);
  if (spec_.pad_bits.empty()) CountTapBits(weights);
}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const FloatConstants& constants)
    : ConvDriver(isa, std::move(spec), weights) {
  const auto by_tiles = [this](const float* values, float unused) {
    Buffer<float> padded(table_width_, unused);
    for (const ChannelTile& tile : tiles_) {
      std::copy_n(values + tile.channel, tile.channels, padded.data() + tile.table_offset);
    }
    return padded;
  };
  scale_ = by_tiles(constants.scale, 0.0f);
  // FinishFloatArgs doubles the sums.
  for (int64_t o = 0; spec_.level_bits > 0 && o < table_width_; ++o) scale_.data()[o] *= 0.5f;
  bias_ = by_tiles(constants.bias, 0.0f);
  if (constants.threshold != nullptr) {
    float_threshold_ = by_tiles(constants.threshold, std::numeric_limits<float>::quiet_NaN());
  }
}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const int32_t* threshold)
    : ConvDriver(isa, std::move(spec), weights) {
  threshold_.assign(threshold, threshold + spec_.out_channels);
}

// To the layout of AccumulateArgs::weights.
void ConvDriver::PackWeights(const uint32_t* weights) {
  const int64_t words = spec_.height.kernel * spec_.width.kernel * group_words_;
  const int64_t run_words = isa_.gathers || encodes_ ? window_words_
                            : rows_are_runs_         ? spec_.width.kernel * group_words_
                                                     : group_words_;
  const int64_t block = isa_.channel_block;
  std::vector<uint32_t> row(static_cast<size_t>(window_words_));  // of one channel
  for (const ChannelTile& tile : tiles_) {
    auto* const packed = reinterpret_cast<uint8_t*>(weights_.data() + tile.weights_offset);
    const int64_t width = block * (isa_.blocks_together ? tile.blocks : 1);  // of a row of pieces
    for (int64_t o = 0; o < tile.channels; ++o) {
      std::copy_n(weights + (tile.channel + o) * words, words, row.begin());
      std::fill(row.data() + words, row.data() + row.size(), 0u);
      if (encodes_) isa_.encode(row.data(), window_words_, true);
      const auto* const from = reinterpret_cast<const uint8_t*>(row.data());
      uint8_t* const to = packed + o / width * width * window_words_ * 4;
      for (int64_t k = 0; k < window_words_ * 4;) {
        int64_t piece = isa_.granule;
        while (piece > run_words * 4 - k % (run_words * 4)) piece /= 2;
        std::copy_n(from + k, piece, to + k * width + o % width * piece);
        k += piece;
      }
    }
  }
}

// To the layout of ConvolvePlanesArgs::weights.
void ConvDriver::PackPlaneWeights(const uint32_t* weights) {
  for (const ChannelTile& tile : tiles_) {
    for (int64_t o = 0; o < tile.channels; o += kPlaneChannels) {
      const int64_t channels = std::min(kPlaneChannels, tile.channels - o);
      const uint32_t* const from = weights + (tile.channel + o) * window_words_;
      for (int64_t k = 0; k < window_words_; ++k) {
        for (int64_t c = 0; c < channels; ++c) {
          plane_weights_.push_back(from[c * window_words_ + k]);
        }
      }
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

int32_t ConvDriver::InitialSum(int64_t channel, TapRange rows, TapRange columns) const {
  int64_t outside = 0;
  if (!tap_bits_.empty()) {
    const int64_t stride = spec_.width.kernel + 1;
    const int32_t* sums = tap_bits_.data() + channel * (spec_.height.kernel + 1) * stride;
    const auto at = [&](int64_t y, int64_t x) { return sums[y * stride + x]; };
    if (spec_.level_bits > 0) {
      const int32_t highest = (1 << spec_.level_bits) - 1;
      return -highest * at(spec_.height.kernel, spec_.width.kernel);
    }
    const int32_t inside = at(rows.last, columns.last) - at(rows.first, columns.last) -
                           at(rows.last, columns.first) + at(rows.first, columns.first);
    outside = at(spec_.height.kernel, spec_.width.kernel) - inside;
  }
  if (threshold_.empty()) return static_cast<int32_t>(-outside);
  // With `counted` mismatches, acc = products + 2 * outside - 2 * counted, and
  // acc >= threshold  <=>  counted <= limit = floor((products + 2 * outside - threshold) / 2)
  //                   <=>  counted - limit - 1 < 0.
  const int64_t products =
      group_channels_ * (rows.last - rows.first) * (columns.last - columns.first);
  const int64_t slack = products + 2 * outside - threshold_[static_cast<size_t>(channel)];
  if (slack < 0) return 0;  // never: nothing counted is negative
  const int64_t limit = std::min<int64_t>(slack / 2, std::numeric_limits<int32_t>::max());
  return static_cast<int32_t>(-limit - 1);
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

  const int64_t pixel_words = copies_input_ ? group_words_ : pixel_words_;
  // No offset below exceeds the size of a padded plane.
  CheckedProduct({plan->padded_height, plan->padded_width, pixel_words}, kPaddedInput);
  plan->run_words = rows_are_runs_ ? spec_.width.kernel * group_words_ : group_words_;
  for (int64_t y = 0; y < spec_.height.kernel; ++y) {
    for (int64_t x = 0; x < (rows_are_runs_ ? 1 : spec_.width.kernel); ++x) {
      plan->run_offsets.push_back(
          (y * spec_.height.dilation * plan->padded_width + x * spec_.width.dilation) *
          pixel_words);
    }
  }

  const bool corrected = spec_.pad_bits.empty() && spec_.level_bits == 0;
  const Patterns rows = FindPatterns(spec_.height, height, corrected);
  const Patterns columns = FindPatterns(spec_.width, width, corrected);
  const auto row_patterns = static_cast<int64_t>(rows.ranges.size());
  const auto column_patterns = static_cast<int64_t>(columns.ranges.size());
  plan->row_pattern = rows.of_window;
  // The 0 of unused channels makes their bits 0.
  plan->table = Buffer<int32_t>(row_patterns * column_patterns * table_width_, 0);
  int32_t* entries = plan->table.data();
  for (const TapRange& row : rows.ranges) {
    for (const int64_t pattern : columns.of_window) {
      const TapRange& column = columns.ranges[static_cast<size_t>(pattern)];
      const int64_t taps = (row.last - row.first) * (column.last - column.first);
      plan->initial.push_back(entries + pattern * table_width_);
      const int64_t products = spec_.level_bits > 0 ? 0 : group_channels_ * taps;
      plan->products.push_back(static_cast<float>(products));
    }
    for (const TapRange& column : columns.ranges) {
      for (const ChannelTile& tile : tiles_) {
        for (int64_t o = 0; o < tile.channels; ++o) {
          entries[tile.table_offset + o] = InitialSum(tile.channel + o, row, column);
        }
      }
      entries += table_width_;
    }
  }

  const int64_t patterns = row_patterns * column_patterns;
  plan->uses_planes = threshold_.empty() && !plane_weights_.empty() && patterns <= kMaxPatterns &&
                      plan->out_height * plan->out_width >= kMinPlanePixels;
  if (plan->uses_planes) AddPlanes(patterns, row_patterns, columns.of_window, plan.get());
  return plan;
}

void ConvDriver::AddPlanes(int64_t patterns, int64_t row_patterns,
                           const std::vector<int64_t>& column_patterns, Plan* plan) const {
  const int64_t stride = spec_.height.stride;
  plan->plane_height = RoundUp(plan->padded_height, stride);
  for (int64_t y = 0; y < spec_.height.kernel; ++y) {
    const int64_t row = plan->PlaneRow(y * spec_.height.dilation, stride);
    for (int64_t x = 0; x < spec_.width.kernel; ++x) {
      for (int64_t word = 0; word < group_words_; ++word) {
        const int64_t plane = word * spec_.width.kernel + x;
        plan->plane_offsets.push_back(plane * plan->plane_height * plan->out_width + row);
      }
    }
  }
  const int64_t distinct_columns = patterns / row_patterns;
  plan->patterns =
      Buffer<uint8_t>(RoundUp(plan->out_height * plan->out_width, kPlaneSlack), uint8_t{0});
  std::vector<float> products(kMaxPatterns);
  uint8_t* to = plan->patterns.data();
  for (const int64_t row : plan->row_pattern) {
    for (int64_t x = 0; x < plan->out_width; ++x) {
      const int64_t pattern = row * distinct_columns + column_patterns[static_cast<size_t>(x)];
      *to++ = static_cast<uint8_t>(pattern);
      products[static_cast<size_t>(pattern)] =
          plan->products[static_cast<size_t>(row * plan->out_width + x)];
    }
  }
  plan->constant = Buffer<float>(table_width_ * kMaxPatterns, 0.0f);
  for (int64_t o = 0; o < table_width_; ++o) {
    for (int64_t pattern = 0; pattern < patterns; ++pattern) {
      plan->constant.data()[o * kMaxPatterns + pattern] =
          products[static_cast<size_t>(pattern)] -
          2.0f * static_cast<float>(plan->table.data()[pattern * table_width_ + o]);
    }
  }
}

// One row of the padded copy, [padded_width][group_words_].
void ConvDriver::CopyRow(const BitBatch& input, int64_t image, int64_t plane, int64_t group,
                         int64_t row, int64_t padded_width, uint32_t* out) const {
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
  const uint32_t* from = input.data + (image * input.height + y) * input.width * pixel_words_ +
                         plane * WordsForBits(spec_.channels);
  pad(spec_.width.pad_begin);
  if (spec_.group == 1 && bit_planes_ == 1) {
    out = std::copy_n(from, input.width * group_words_, out);
  } else if (spec_.group == 1) {
    for (int64_t x = 0; x < input.width; ++x, from += pixel_words_) {
      out = std::copy_n(from, group_words_, out);
    }
  } else {
    for (int64_t x = 0; x < input.width; ++x, from += pixel_words_, out += group_words_) {
      CopyBits(from, group * group_channels_, group_channels_, out);
    }
  }
  pad(spec_.width.pad_end);
}

// The words of copies of the padded input, or of its planes.
int64_t ConvDriver::PaddedSize(int64_t batch, int64_t height, int64_t width) const {
  const int64_t size =
      CheckedProduct({batch, bit_planes_, spec_.group, height, width, group_words_}, kPaddedInput);
  if (size > kMaxPaddedWords) {
    throw std::invalid_argument(std::string(kPaddedInput) + " has " + std::to_string(size) +
                                " words, at most " + std::to_string(kMaxPaddedWords) +
                                " are supported: use smaller pads or a smaller batch");
  }
  return size;
}

// The input itself, or its padded copy
// [batch][bit plane][group][padded_height][padded_width][group_words_], which belongs to the
// calling thread and lives until its next call.
ConvDriver::Image ConvDriver::Prepare(const BitBatch& input, const Plan& plan,
                                      const TaskRunner& runner) const {
  if (!copies_input_) {
    return {input.data,
            input.height * input.width * pixel_words_,
            WordsForBits(spec_.channels),
            group_words_,
            input.width * pixel_words_,
            pixel_words_};
  }
  const int64_t row_words = plan.padded_width * group_words_;
  const int64_t rows = input.batch * bit_planes_ * spec_.group * plan.padded_height;
  const int64_t size = PaddedSize(input.batch, plan.padded_height, plan.padded_width);
  thread_local Buffer<uint32_t> padded;
  uint32_t* const copy = padded.Reserve(size);
  const int64_t tasks = std::clamp(size / kMinCopyTaskWords, int64_t{1}, std::min(rows, kMaxTasks));
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(rows, tasks, task);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t image_plane = i / plan.padded_height / spec_.group;
      CopyRow(input, image_plane / bit_planes_, image_plane % bit_planes_,
              i / plan.padded_height % spec_.group, i % plan.padded_height, plan.padded_width,
              copy + i * row_words);
    }
  });
  const int64_t group_stride = plan.padded_height * row_words;
  const int64_t plane_stride = spec_.group * group_stride;
  return {copy, bit_planes_ * plane_stride, plane_stride, group_stride, row_words, group_words_};
}

void ConvDriver::LocatePixels(const Plan& plan, const Image& image, int64_t group, Range pixels,
                              PixelBlock* block) const {
  const int64_t step = spec_.width.stride * image.pixel_stride;
  int64_t x = pixels.begin % plan.out_width;
  int64_t y = pixels.begin / plan.out_width % plan.out_height;
  int64_t n = pixels.begin / plan.out_width / plan.out_height;
  const int64_t count = pixels.end - pixels.begin;
  for (int64_t p = 0; p < count; x = 0) {
    const int64_t row_end = std::min(count, p + plan.out_width - x);
    const uint32_t* window = image.data + group * image.group_stride + n * image.image_stride +
                             y * spec_.height.stride * image.row_stride + x * step;
    const int64_t first = plan.row_pattern[static_cast<size_t>(y)] * plan.out_width + x;
    std::copy_n(plan.initial.data() + first, row_end - p, block->initial + p);
    std::copy_n(plan.products.data() + first, row_end - p, block->products + p);
    for (; p < row_end; ++p, window += step) block->windows[p] = window;
    if (++y < plan.out_height) continue;
    y = 0;
    ++n;
  }
  for (int64_t plane = 1; plane < bit_planes_; ++plane) {
    const uint32_t** const windows = block->windows + plane * kBlockPixels;
    for (int64_t p = 0; p < count; ++p) {
      windows[p] = block->windows[p] + plane * image.plane_stride;
    }
  }
}

// Copies the words of each window to a row of whole granules and points to these rows instead. The
// rows belong to the calling thread and live until its next call.
void ConvDriver::GatherWindows(const Plan& plan, int64_t pixels, PixelBlock* block) const {
  thread_local Buffer<uint32_t> gathered;
  uint32_t* row = gathered.Reserve(bit_planes_ * pixels * window_words_);
  for (int64_t plane = 0; plane < bit_planes_; ++plane) {
    const uint32_t** const windows = block->windows + plane * kBlockPixels;
    for (int64_t p = 0; p < pixels; ++p) {
      uint32_t* to = row;
      for (const int64_t offset : plan.run_offsets) {
        to = std::copy_n(windows[p] + offset, plan.run_words, to);
      }
      std::fill(to, row + window_words_, 0u);
      if (encodes_) isa_.encode(row, window_words_, false);
      windows[p] = row;
      row += window_words_;
    }
  }
}

// isa_.accumulate, over all bit planes; the windows of each are kBlockPixels further.
void ConvDriver::Accumulate(const AccumulateArgs& args) const {
  if (bit_planes_ == 1) return isa_.accumulate(args);
  alignas(64) static constexpr int32_t kZeros[kTileChannels] = {};
  const int32_t* zero_rows[kTilePixels];
  std::fill_n(zero_rows, args.pixels, kZeros);
  AccumulateArgs higher = args;  // all planes but the last
  higher.initial = zero_rows;
  higher.initial_offset = 0;
  higher.windows = args.windows + (bit_planes_ - 1) * kBlockPixels;
  isa_.accumulate(higher);
  alignas(64) int32_t plane_sums[kTilePixels * kTileChannels];
  const int64_t channels = args.blocks * isa_.channel_block;
  for (int64_t plane = bit_planes_ - 2; plane >= 0; --plane) {
    AccumulateArgs next = plane > 0 ? higher : args;
    next.windows = args.windows + plane * kBlockPixels;
    next.sums = plane_sums;
    isa_.accumulate(next);
    for (int64_t p = 0; p < args.pixels; ++p) {
      int32_t* const to = args.sums + p * kTileChannels;
      const int32_t* const from = plane_sums + p * kTileChannels;
      for (int64_t o = 0; o < channels; ++o) to[o] = 2 * to[o] + from[o];
    }
  }
}

// How many tasks, at most `most`, the convolution of `pixels` pixels is worth.
int64_t ConvDriver::TaskCount(int64_t pixels, int64_t most) const {
  const double work = static_cast<double>(pixels) * static_cast<double>(spec_.out_channels) *
                      static_cast<double>(bit_planes_ * window_words_);
  if (work < kMinSharedWordOps) return 1;
  return static_cast<int64_t>(std::min(work / kTaskWordOps, static_cast<double>(most)));
}

// Calls process(tile, pixels, products, args) for every tile of channels and block of up to
// kBlockPixels pixels, which are counted through the whole batch; args lacks the output and counts
// all pixels of the block. Tasks get disjoint ranges of pixels, cut at multiples of `grain`, and,
// where `split_channels` allows it, of channel tiles.
template <typename Process>
void ConvDriver::ForEachBlock(const BitBatch& input, const Plan& plan, int64_t grain,
                              bool split_channels, const TaskRunner& runner,
                              const Process& process) const {
  const int64_t pixels = input.batch * plan.out_height * plan.out_width;
  if (pixels == 0) return;
  const Image image = Prepare(input, plan, runner);

  const int64_t grains = CeilDiv(pixels, grain);
  const auto channel_tiles = static_cast<int64_t>(tiles_.size());
  const int64_t wanted = TaskCount(pixels, kMaxTasks);
  const int64_t pixel_parts = std::min(wanted, grains);
  const int64_t channel_parts =
      split_channels ? std::min(CeilDiv(wanted, pixel_parts), channel_tiles) : 1;

  const bool gathers =
      encodes_ ||
      (isa_.gathers && !(plan.run_offsets.size() == 1 && plan.run_words == window_words_));
  const int64_t gathered_tiles = kMaxGatheredWords / (kTilePixels * bit_planes_ * window_words_);
  const int64_t block_pixels =
      gathers ? std::clamp(gathered_tiles * kTilePixels, kTilePixels, kBlockPixels) : kBlockPixels;
  const int64_t no_offset = 0;

  RunTasks(runner, pixel_parts * channel_parts, [&](int64_t task) {
    const Range grain_range = Part(grains, pixel_parts, task / channel_parts);
    const Range channel_range = Part(channel_tiles, channel_parts, task % channel_parts);
    const int64_t task_end = std::min(grain_range.end * grain, pixels);
    PixelBlock block;
    AccumulateArgs args{};
    args.windows = block.windows;
    args.run_offsets = gathers ? &no_offset : plan.run_offsets.data();
    args.runs = gathers ? 1 : static_cast<int64_t>(plan.run_offsets.size());
    args.run_words = gathers ? window_words_ : plan.run_words;
    args.initial = block.initial;
    for (int64_t begin = grain_range.begin * grain; begin < task_end; begin += block_pixels) {
      args.pixels = std::min(block_pixels, task_end - begin);
      const Range range{begin, begin + args.pixels};
      int64_t located_group = -1;
      // Channels outside, pixels inside: the weights of a tile stay in the first-level cache.
      for (int64_t c = channel_range.begin; c < channel_range.end; ++c) {
        const ChannelTile& tile = tiles_[static_cast<size_t>(c)];
        if (tile.group != located_group) {
          LocatePixels(plan, image, tile.group, range, &block);
          if (gathers) GatherWindows(plan, args.pixels, &block);
          located_group = tile.group;
        }
        args.weights = weights_.data() + tile.weights_offset;
        args.blocks = tile.blocks;
        args.initial_offset = tile.table_offset;
        process(tile, range, block.products, args);
      }
    }
    const int64_t tiles = CeilDiv(task_end - grain_range.begin * grain, kTilePixels);
    CountCalls(isa_, static_cast<uint64_t>((channel_range.end - channel_range.begin) * tiles *
                                           bit_planes_));
  });
}

bool ConvDriver::GroupsAreWholeWords() const {
  return spec_.group == 1 || spec_.out_channels / spec_.group % 32 == 0;
}

// Calls fill(to, stride), which writes the words of a tile's pixels, and sees to it that they end
// up in `out`: [pixels][ceil(out_channels / 32)].
template <typename Fill>
void ConvDriver::WriteBits(const ChannelTile& tile, Range pixels, uint32_t* out,
                           const Fill& fill) const {
  const int64_t words = WordsForBits(spec_.out_channels);
  const int64_t count = pixels.end - pixels.begin;
  uint32_t* const to = out + pixels.begin * words;
  if (GroupsAreWholeWords()) return fill(to + tile.channel / 32, words);
  // Groups that share words are merged by one task, into words that are 0.
  if (tile.channel == 0) std::fill_n(to, count * words, 0u);
  constexpr int64_t kTileWords = kTileChannels / 32;
  uint32_t bits[kTilePixels * kTileWords];
  fill(bits, kTileWords);
  for (int64_t p = 0; p < count; ++p) {
    MergeBits(bits + p * kTileWords, tile.channels, tile.channel, to + p * words);
  }
}

void ConvDriver::Run(const BitBatch& input, uint32_t* out, const TaskRunner& runner) const {
  const std::shared_ptr<const Plan> plan = PlanFor(input.height, input.width);
  ForEachBlock(input, *plan, kTilePixels, GroupsAreWholeWords(), runner,
               [&](const ChannelTile& tile, Range block, const float*, const AccumulateArgs& args) {
                 alignas(64) int32_t sums[kTilePixels * kTileChannels];
                 ForEachTile(args, [&](AccumulateArgs part, int64_t first) {
                   const int64_t begin = block.begin + first;
                   part.sums = sums;
                   WriteBits(tile, Range{begin, begin + part.pixels}, out,
                             [&](uint32_t* to, int64_t stride) {
                               isa_.accumulate_bits({part, to, stride});
                             });
                 });
               });
}

void ConvDriver::Run(const BitBatch& input, const FloatOutput& output,
                     const TaskRunner& runner) const {
  const std::shared_ptr<const Plan> plan = PlanFor(input.height, input.width);
  if (plan->uses_planes) return RunWithPlanes(input, *plan, output, runner);
  const int64_t image_pixels = plan->out_height * plan->out_width;
  const bool staged = output.out != nullptr && image_pixels % kConflictPixels == 0;
  static_assert(kConflictPixels % kBlockPixels == 0, "a staged block lies in one image");
  const int64_t grain = staged ? kBlockPixels : kTilePixels;
  const bool split_channels = output.bits == nullptr || GroupsAreWholeWords();

  const auto process = [&](const ChannelTile& tile, Range block, const float* products,
                           const AccumulateArgs& args) {
    alignas(64) int32_t sums[kTilePixels * kTileChannels];
    thread_local Buffer<float> staging_buffer;
    float* const staging =
        staged ? staging_buffer.Reserve(kTileChannels * kStagingStride) : nullptr;
    const auto plane = [&](int64_t pixel) {  // where the tile's first channel has this pixel
      const int64_t image = pixel / image_pixels;
      return (image * spec_.out_channels + tile.channel) * image_pixels + pixel % image_pixels;
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
      Accumulate(part);
      // A tile can run over several images; each has its own planes.
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
                      isa_.finish_float(finish);
                    });
        } else {
          isa_.finish_float(finish);
        }
        p += finish.pixels;
      }
    });
    if (staged) copy_rows(staging, kStagingStride, output.out + plane(block.begin), image_pixels);
  };
  ForEachBlock(input, *plan, grain, split_channels, runner, process);
}

// The padded input as planes, which belong to the calling thread and live until its next call.
const uint32_t* ConvDriver::SplitPlanes(const BitBatch& input, const Plan& plan,
                                        const TaskRunner& runner) const {
  thread_local Buffer<uint32_t> buffer;
  uint32_t* const planes = buffer.Reserve(
      PaddedSize(input.batch, plan.plane_height, spec_.width.kernel * plan.out_width) +
      kPlaneSlack);
  const int64_t plane_words = plan.plane_height * plan.out_width;
  const int64_t rows = input.batch * spec_.group * plan.padded_height;
  const int64_t row_words = plan.padded_width * group_words_;
  const int64_t tasks =
      std::clamp(rows * row_words / kMinCopyTaskWords, int64_t{1}, std::min(rows, kMaxTasks));
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(rows, tasks, task);
    // Some rows at a time: what was just stored in pieces is slow to load in others.
    constexpr int64_t kRows = 16;
    thread_local Buffer<uint32_t> row_buffer;
    uint32_t* const buffered = row_buffer.Reserve(kRows * row_words + kRowSlack);
    SplitRowArgs args{};
    args.words = group_words_;
    args.stride = spec_.width.stride;
    args.dilation = spec_.width.dilation;
    args.kernel = spec_.width.kernel;
    args.out_width = plan.out_width;
    args.plane_words = plane_words;
    for (int64_t first = range.begin; first < range.end; first += kRows) {
      const int64_t last = std::min(first + kRows, range.end);
      uint32_t* row = buffered;
      for (int64_t i = first; i < last; ++i, row += row_words) {
        const int64_t plane = i / plan.padded_height;
        CopyRow(input, plane / spec_.group, 0, plane % spec_.group, i % plan.padded_height,
                plan.padded_width, row);
      }
      args.row = buffered;
      for (int64_t i = first; i < last; ++i, args.row += row_words) {
        const int64_t plane = i / plan.padded_height;
        args.planes = planes + plane * group_words_ * spec_.width.kernel * plane_words +
                      plan.PlaneRow(i % plan.padded_height, spec_.height.stride);
        isa_.split_row(args);
      }
    }
  });
  return planes;
}

void ConvDriver::RunWithPlanes(const BitBatch& input, const Plan& plan, const FloatOutput& output,
                               const TaskRunner& runner) const {
  const uint32_t* const planes = SplitPlanes(input, plan, runner);
  const int64_t group_words =
      group_words_ * spec_.width.kernel * plan.plane_height * plan.out_width;
  const int64_t image_pixels = plan.out_height * plan.out_width;
  const int64_t image_tiles = CeilDiv(image_pixels, kTilePixels);
  const int64_t tiles = input.batch * image_tiles;
  const int64_t tasks = TaskCount(input.batch * image_pixels, std::min(tiles, kMaxTasks));
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(tiles, tasks, task);
    ConvolvePlanesArgs args{};
    args.offsets = plan.plane_offsets.data();
    args.words = window_words_;
    args.finish.channel_stride = image_pixels;
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t image = i / image_tiles;
      const int64_t first = i % image_tiles * kTilePixels;
      args.patterns = plan.patterns.data() + first;
      args.finish.pixels = std::min(kTilePixels, image_pixels - first);
      if (output.factor != nullptr) {
        args.finish.factor = output.factor + image * image_pixels + first;
      }
      for (const ChannelTile& tile : tiles_) {
        args.input = planes + (image * spec_.group + tile.group) * group_words + first;
        args.weights = plane_weights_.data() + tile.channel * window_words_;
        args.constant = plan.constant.data() + tile.table_offset * kMaxPatterns;
        const int64_t plane = (image * spec_.out_channels + tile.channel) * image_pixels + first;
        args.finish.scale = scale_.data() + tile.table_offset;
        args.finish.bias = bias_.data() + tile.table_offset;
        args.finish.channels = tile.channels;
        if (output.out != nullptr) args.finish.out = output.out + plane;
        if (output.residual != nullptr) args.finish.residual = output.residual + plane;
        if (output.bits == nullptr) {
          isa_.convolve_planes(args);
          continue;
        }
        args.finish.threshold = float_threshold_.data() + tile.table_offset;
        const int64_t begin = image * image_pixels + first;
        WriteBits(tile, Range{begin, begin + args.finish.pixels}, output.bits,
                  [&](uint32_t* to, int64_t to_stride) {
                    args.finish.bits = to;
                    args.finish.bits_stride = to_stride;
                    isa_.convolve_planes(args);
                  });
      }
    }
    CountCalls(isa_, static_cast<uint64_t>((range.end - range.begin) *
                                           static_cast<int64_t>(tiles_.size())));
  });
}

}  // namespace bnn_deploy
