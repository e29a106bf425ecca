#include "drivers/conv/input.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "base/popcount.h"

namespace bnn_deploy {
namespace {

// Some 2 microseconds, which a copy must save to be worth sharing.
constexpr int64_t kMinCopyTaskWords = 3 << 9;
constexpr int64_t kMaxCopyTasks = 256;
// The contract does not limit pads, but memory does.
constexpr int64_t kMaxPaddedWords = int64_t{1} << 31;

// bytes[b]: byte i is bit i of b.
struct Spread {
  constexpr Spread() {
    for (uint64_t b = 0; b < 256; ++b) {
      for (uint64_t i = 0; i < 8; ++i) bytes[b] |= (b >> i & 1) << (8 * i);
    }
  }
  uint64_t bytes[256] = {};
};
constexpr Spread kSpread;

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

// One row of the padded copy, [padded_width][group_words]. row: counted through all slices.
void CopyRow(const ConvLayer& layer, const ConvPlan& plan, const BitBatch& input, int64_t image,
             int64_t plane, int64_t group, int64_t row, uint32_t* out) {
  const ConvSpec& spec = layer.spec;
  const int64_t words = layer.input_words;
  const int64_t channels = spec.channels / layer.input_groups;
  const auto pad = [&](int64_t pixels) {
    if (spec.pad_bits.empty()) {
      out = std::fill_n(out, pixels * words, 0u);
      return;
    }
    for (int64_t i = 0; i < pixels; ++i, out += words) {
      CopyBits(spec.pad_bits.data(), group * channels, channels, out);
    }
  };
  const int64_t z = row / plan.padded_height - spec.depth.pad_begin;
  const int64_t y = row % plan.padded_height - spec.height.pad_begin;
  if (z < 0 || z >= input.depth || y < 0 || y >= input.height) return pad(plan.padded_width);
  const int64_t from_row = (image * input.depth + z) * input.height + y;
  const uint32_t* from =
      input.data + from_row * input.width * layer.pixel_words + plane * WordsForBits(spec.channels);
  pad(spec.width.pad_begin);
  if (layer.input_groups == 1 && layer.bit_planes == 1) {
    out = std::copy_n(from, input.width * words, out);
  } else if (layer.input_groups == 1) {
    for (int64_t x = 0; x < input.width; ++x, from += layer.pixel_words) {
      out = std::copy_n(from, words, out);
    }
  } else {
    for (int64_t x = 0; x < input.width; ++x, from += layer.pixel_words, out += words) {
      CopyBits(from, group * channels, channels, out);
    }
  }
  pad(spec.width.pad_end);
}

// The number of words of the padded input's copy, or of its planes. rows: of an image.
int64_t PaddedSize(const ConvLayer& layer, int64_t batch, int64_t rows, int64_t width) {
  const int64_t size = CheckedProduct(
      {batch, layer.bit_planes, layer.input_groups, rows, width, layer.input_words}, kPaddedInput);
  if (size > kMaxPaddedWords) {
    throw std::invalid_argument(std::string(kPaddedInput) + " has " + std::to_string(size) +
                                " words, at most " + std::to_string(kMaxPaddedWords) +
                                " are supported: use smaller pads or a smaller batch");
  }
  return size;
}

// The number of tasks for a copy of `rows` rows.
int64_t CopyTasks(int64_t rows, int64_t row_words) {
  return std::clamp(rows * row_words / kMinCopyTaskWords, int64_t{1},
                    std::min(rows, kMaxCopyTasks));
}

// Completes a gathered row, of which the words up to `end` are filled, and returns the next one.
uint32_t* EndRow(const ConvLayer& layer, uint32_t* row, uint32_t* end) {
  std::fill(end, row + layer.window_words, 0u);
  if (layer.encodes) layer.isa.encode(row, layer.window_words, false);
  return row + layer.window_words;
}

}  // namespace

const uint32_t* ClearUnusedBits(const uint32_t* bits, int64_t count, int64_t channels,
                                std::vector<uint32_t>* copy) {
  if (channels % 32 == 0) return bits;
  const int64_t words = WordsForBits(channels);
  const uint32_t unused = ~0u << (channels % 32);
  uint32_t found = 0;
  if (words == 1) {  // vectors of consecutive words
    for (int64_t i = 0; i < count; ++i) found |= bits[i];
  } else {
    for (int64_t i = 0; i < count; ++i) found |= bits[(i + 1) * words - 1];
  }
  if ((found & unused) == 0) return bits;
  copy->assign(bits, bits + count * words);
  for (int64_t i = 0; i < count; ++i) {
    (*copy)[static_cast<size_t>((i + 1) * words - 1)] &= ~unused;
  }
  return copy->data();
}

ConvImage PrepareInput(const ConvLayer& layer, const ConvPlan& plan, const BitBatch& input,
                       const TaskRunner& runner, Scratch<uint32_t>* copy) {
  if (!layer.copies_input) {
    const int64_t row_stride = input.width * layer.pixel_words;
    return {input.data,
            input.depth * input.height * row_stride,
            WordsForBits(layer.spec.channels),
            layer.input_words,
            input.height * row_stride,
            row_stride,
            layer.pixel_words};
  }
  const int64_t row_words = plan.padded_width * layer.input_words;
  const int64_t image_rows = plan.padded_depth * plan.padded_height;
  const int64_t rows = input.batch * layer.bit_planes * layer.input_groups * image_rows;
  uint32_t* const padded =
      copy->Reserve(PaddedSize(layer, input.batch, image_rows, plan.padded_width));
  const int64_t tasks = CopyTasks(rows, row_words);
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(rows, tasks, task);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t image_plane = i / image_rows / layer.input_groups;
      CopyRow(layer, plan, input, image_plane / layer.bit_planes, image_plane % layer.bit_planes,
              i / image_rows % layer.input_groups, i % image_rows, padded + i * row_words);
    }
  });
  const int64_t group_stride = image_rows * row_words;
  const int64_t plane_stride = layer.input_groups * group_stride;
  return {padded,           layer.bit_planes * plane_stride, plane_stride,
          group_stride,     plan.padded_height * row_words,  row_words,
          layer.input_words};
}

const uint32_t* SplitPlanes(const ConvLayer& layer, const ConvPlan& plan, const BitBatch& input,
                            const TaskRunner& runner, Scratch<uint32_t>* copy) {
  const Axis& columns = layer.spec.width;
  const int64_t group = layer.spec.group;
  uint32_t* const planes = copy->Reserve(
      PaddedSize(layer, input.batch, plan.plane_height, columns.kernel * plan.out_width) +
      kPlaneSlack / 4);
  const int64_t plane_size = plan.plane_height * plan.out_width;
  const int64_t rows = input.batch * group * plan.padded_height;
  const int64_t row_words = plan.padded_width * layer.group_words;
  const int64_t tasks = CopyTasks(rows, row_words);
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(rows, tasks, task);
    // Several rows at a time: a load that overlaps several recent narrower stores is slow.
    constexpr int64_t kRows = 16;
    thread_local Buffer<uint32_t> kept;
    Scratch<uint32_t> scratch(&kept);
    uint32_t* const buffered = scratch.Reserve(kRows * row_words + kRowSlack);
    SplitRowArgs args{};
    args.words = layer.group_words;
    args.stride = columns.stride;
    args.dilation = columns.dilation;
    args.kernel = columns.kernel;
    args.out_width = plan.out_width;
    args.plane_size = plane_size;
    for (int64_t first = range.begin; first < range.end; first += kRows) {
      const int64_t last = std::min(first + kRows, range.end);
      uint32_t* row = buffered;
      for (int64_t i = first; i < last; ++i, row += row_words) {
        const int64_t plane = i / plan.padded_height;
        CopyRow(layer, plan, input, plane / group, 0, plane % group, i % plan.padded_height, row);
      }
      args.row = buffered;
      for (int64_t i = first; i < last; ++i, args.row += row_words) {
        const int64_t plane = i / plan.padded_height;
        uint32_t* const to = planes + plane * layer.group_words * columns.kernel * plane_size;
        args.planes =
            reinterpret_cast<uint8_t*>(to) +
            plan.PlaneRow(i % plan.padded_height, layer.spec.height.stride) * layer.isa.plane_bytes;
        layer.isa.split_row(args);
      }
    }
  });
  return planes;
}

void LocatePixels(const ConvLayer& layer, const ConvPlan& plan, const ConvImage& image,
                  int64_t group, Range pixels, PixelBlock* block) {
  const int64_t step = layer.spec.width.stride * image.pixel_stride;
  int64_t x = pixels.begin % plan.out_width;
  int64_t y = pixels.begin / plan.out_width % plan.out_height;
  int64_t z = pixels.begin / plan.out_width / plan.out_height % plan.out_depth;
  int64_t n = pixels.begin / plan.ImagePixels();
  const int64_t count = pixels.end - pixels.begin;
  for (int64_t p = 0; p < count; x = 0) {
    const int64_t row_end = std::min(count, p + plan.out_width - x);
    const uint32_t* window = image.data + group * image.group_stride + n * image.image_stride +
                             z * layer.spec.depth.stride * image.slice_stride +
                             y * layer.spec.height.stride * image.row_stride + x * step;
    const auto row = static_cast<size_t>(z * plan.out_height + y);
    const int64_t first = plan.row_pattern[row] * plan.out_width + x;
    std::copy_n(plan.initial.data() + first, row_end - p, block->initial + p);
    std::copy_n(plan.products.data() + first, row_end - p, block->products + p);
    for (; p < row_end; ++p, window += step) block->windows[p] = window;
    if (++y < plan.out_height) continue;
    y = 0;
    if (++z < plan.out_depth) continue;
    z = 0;
    ++n;
  }
  for (int64_t plane = 1; plane < layer.bit_planes; ++plane) {
    const uint32_t** const windows = block->windows + plane * kBlockPixels;
    for (int64_t p = 0; p < count; ++p) {
      windows[p] = block->windows[p] + plane * image.plane_stride;
    }
  }
}

void SumSigns(const ConvLayer& layer, const ConvPlan& plan, int64_t pixels, PixelBlock* block) {
  for (int64_t plane = 0; plane < layer.bit_planes; ++plane) {
    const uint32_t* const* const windows = block->windows + plane * kBlockPixels;
    float* const signs = block->signs + plane * kBlockPixels;
    for (int64_t p = 0; p < pixels; ++p) {
      uint32_t ones = 0;
      for (const int64_t offset : plan.run_offsets) {
        ones += PopCount(windows[p] + offset, plan.run_words);
      }
      signs[p] = 2.0f * static_cast<float>(ones) - block->products[p];
    }
  }
}

void GatherWindows(const ConvLayer& layer, const ConvPlan& plan, int64_t pixels, uint32_t* rows,
                   PixelBlock* block) {
  for (int64_t plane = 0; plane < layer.bit_planes; ++plane) {
    const uint32_t** const windows = block->windows + plane * kBlockPixels;
    for (int64_t p = 0; p < pixels; ++p) {
      uint32_t* to = rows;
      for (const int64_t offset : plan.run_offsets) {
        to = std::copy_n(windows[p] + offset, plan.run_words, to);
      }
      windows[p] = rows;
      rows = EndRow(layer, rows, to);
    }
  }
}

uint32_t* GatherRow(const ConvLayer& layer, const uint32_t* from, uint32_t* row) {
  return EndRow(layer, row, std::copy_n(from, layer.group_words, row));
}

void AccumulateDepthwise(const ChannelTile& tile, const AccumulateArgs& args) {
  const int64_t first = tile.channel / 32;
  const int64_t words = WordsForBits(tile.channels);
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t w = 0; w < words; ++w) {
      const uint32_t* const window = args.windows[p] + first + w;
      uint64_t counts[4] = {};  // a byte per channel
      for (int64_t tap = 0; tap < args.runs; ++tap) {
        const uint32_t differ = window[args.run_offsets[tap]] ^ args.weights[tap * kTileWords + w];
        for (int64_t i = 0; i < 4; ++i) counts[i] += kSpread.bytes[differ >> (8 * i) & 0xff];
      }
      uint8_t count[32];
      std::memcpy(count, counts, sizeof(count));
      const int32_t* const initial = args.initial[p] + args.initial_offset + 32 * w;
      int32_t* const sums = args.sums + p * kTileChannels + 32 * w;
      for (int64_t o = 0; o < 32; ++o) sums[o] = initial[o] + count[o];
    }
  }
}

void SignsOfSums(const ChannelTile& tile, const AccumulateArgs& args, uint32_t* out,
                 int64_t pixel_stride) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t w = 0; w < WordsForBits(tile.channels); ++w) {
      const int32_t* const sums = args.sums + p * kTileChannels + 32 * w;
      uint32_t bits = 0;
      for (int64_t o = 0; o < 32; ++o) bits |= static_cast<uint32_t>(sums[o] < 0) << o;
      out[p * pixel_stride + w] = bits;
    }
  }
}

void Accumulate(const ConvLayer& layer, const AccumulateArgs& args) {
  if (layer.bit_planes == 1) return layer.isa.accumulate(args);
  alignas(64) static constexpr int32_t kZeros[kTileChannels] = {};
  const int32_t* zero_rows[kTilePixels];
  std::fill_n(zero_rows, args.pixels, kZeros);
  AccumulateArgs higher = args;  // all planes but the last
  higher.initial = zero_rows;
  higher.initial_offset = 0;
  higher.windows = args.windows + (layer.bit_planes - 1) * kBlockPixels;
  layer.isa.accumulate(higher);
  alignas(64) int32_t plane_sums[kTilePixels * kTileChannels];
  const int64_t channels = args.blocks * layer.isa.channel_block;
  for (int64_t plane = layer.bit_planes - 2; plane >= 0; --plane) {
    AccumulateArgs next = plane > 0 ? higher : args;
    next.windows = args.windows + plane * kBlockPixels;
    next.sums = plane_sums;
    layer.isa.accumulate(next);
    for (int64_t p = 0; p < args.pixels; ++p) {
      int32_t* const to = args.sums + p * kTileChannels;
      const int32_t* const from = plane_sums + p * kTileChannels;
      for (int64_t o = 0; o < channels; ++o) to[o] = 2 * to[o] + from[o];
    }
  }
}

}  // namespace bnn_deploy
