// NEON (Armv8-A baseline). A vector holds 128 bits of one output channel and windows are gathered
// into rows of whole vectors, so that the loop has plain 128-bit loads only. Per pixel and step,
// 8 channels cost 8 eor, 8 cnt, a tree of 7 addp and one uadalp: 24 operations on two pipes for
// 1024 binary multiply-accumulates, 85.3 per cycle on Cortex-A72 and A76.

#include <arm_neon.h>

#include "micro_kernel.h"

namespace bnn_deploy {
namespace {

constexpr int64_t kBlock = 8;        // output channels per register tile
constexpr int64_t kWordGranule = 4;  // words per vector
constexpr int kMaxPixels = 4;        // pixels per register tile
constexpr int64_t kMaxSteps = 511;   // 511 * 128 bits still fit into a 16-bit lane

// Lane c: the number of bits that differ from channel c, added to sums.
uint16x8_t AddMismatches(uint16x8_t sums, uint8x16_t a, const uint8x16_t w[8]) {
  uint8x16_t counts[8];
  for (int c = 0; c < 8; ++c) counts[c] = vcntq_u8(veorq_u8(a, w[c]));
  const uint8x16_t c01 = vpaddq_u8(counts[0], counts[1]);
  const uint8x16_t c23 = vpaddq_u8(counts[2], counts[3]);
  const uint8x16_t c45 = vpaddq_u8(counts[4], counts[5]);
  const uint8x16_t c67 = vpaddq_u8(counts[6], counts[7]);
  return vpadalq_u8(sums, vpaddq_u8(vpaddq_u8(c01, c23), vpaddq_u8(c45, c67)));
}

template <int kPixels>
void AccumulateTile(const AccumulateArgs& args, int64_t pixel, int64_t block) {
  const uint32_t* weights = args.weights + block * args.run_words * kBlock;
  uint32x4_t low[kPixels], high[kPixels];
  for (int p = 0; p < kPixels; ++p) {
    const int32_t* const initial = args.initial[pixel + p] + args.initial_offset + block * kBlock;
    low[p] = vreinterpretq_u32_s32(vld1q_s32(initial));
    high[p] = vreinterpretq_u32_s32(vld1q_s32(initial + 4));
  }
  const int64_t steps = args.run_words / kWordGranule;
  for (int64_t step = 0; step < steps;) {
    const int64_t end = steps - step < kMaxSteps ? steps : step + kMaxSteps;
    uint16x8_t sums[kPixels];
    const uint32_t* a[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      sums[p] = vdupq_n_u16(0);
      a[p] = args.windows[pixel + p] + args.run_offsets[0];
    }
    for (; step < end; ++step) {
      uint8x16_t w[8];
      for (int c = 0; c < 8; ++c)
        w[c] = vreinterpretq_u8_u32(vld1q_u32(weights + c * kWordGranule));
      weights += kBlock * kWordGranule;
      for (int p = 0; p < kPixels; ++p) {
        const uint8x16_t word = vreinterpretq_u8_u32(vld1q_u32(a[p] + step * kWordGranule));
        sums[p] = AddMismatches(sums[p], word, w);
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      low[p] = vaddw_u16(low[p], vget_low_u16(sums[p]));
      high[p] = vaddw_u16(high[p], vget_high_u16(sums[p]));
    }
  }
  int32_t* out = args.sums + pixel * kTileChannels + block * kBlock;
  for (int p = 0; p < kPixels; ++p) {
    vst1q_s32(out + p * kTileChannels, vreinterpretq_s32_u32(low[p]));
    vst1q_s32(out + p * kTileChannels + 4, vreinterpretq_s32_u32(high[p]));
  }
}

void Accumulate(const AccumulateArgs& args) {
  for (int64_t block = 0; block < args.blocks; ++block) {
    int64_t pixel = 0;
    for (; pixel + kMaxPixels <= args.pixels; pixel += kMaxPixels) {
      AccumulateTile<kMaxPixels>(args, pixel, block);
    }
    for (; pixel < args.pixels; ++pixel) AccumulateTile<1>(args, pixel, block);
  }
}

void AccumulateBits(const AccumulateBitsArgs& args) {
  Accumulate(args.accumulate);
  const int32_t lanes[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(lanes);
  const int64_t channels = args.accumulate.blocks * kBlock;
  for (int64_t p = 0; p < args.accumulate.pixels; ++p) {
    const int32_t* const sums = args.accumulate.sums + p * kTileChannels;
    for (int64_t begin = 0; begin < channels; begin += 32) {
      uint32_t bits = 0;
      for (int64_t i = 0; i < 32 && begin + i < channels; i += 4) {
        const uint32x4_t values = vreinterpretq_u32_s32(vld1q_s32(sums + begin + i));
        bits |= vaddvq_u32(vshlq_u32(vshrq_n_u32(values, 31), lane)) << i;
      }
      args.out[p * args.pixel_stride + begin / 32] = bits;
    }
  }
}

// rows[i][j] becomes rows[j][i].
void Transpose4x4(float32x4_t rows[4]) {
  const float32x4x2_t even = vtrnq_f32(rows[0], rows[1]);
  const float32x4x2_t odd = vtrnq_f32(rows[2], rows[3]);
  for (int i = 0; i < 2; ++i) {
    rows[i] = vcombine_f32(vget_low_f32(even.val[i]), vget_low_f32(odd.val[i]));
    rows[i + 2] = vcombine_f32(vget_high_f32(even.val[i]), vget_high_f32(odd.val[i]));
  }
}

// The values, without a residual, of 4 channels of a pixel.
float32x4_t ScaledSums(const FinishFloatArgs& args, int64_t pixel, int64_t channel) {
  const float32x4_t sums = vcvtq_f32_s32(vld1q_s32(args.sums + pixel * kTileChannels + channel));
  const float32x4_t products = vdupq_n_f32(args.products[pixel]);
  const float32x4_t dot = vfmsq_f32(products, sums, vdupq_n_f32(2.0f));  // exact
  const float32x4_t scaled = vmulq_f32(dot, vld1q_f32(args.scale + channel));
  return vaddq_f32(scaled, vld1q_f32(args.bias + channel));
}

float32x4_t LoadFirst(const float* values, int64_t count) {
  if (count >= 4) return vld1q_f32(values);
  float32x4_t row = vld1q_dup_f32(values);
  if (count > 1) row = vld1q_lane_f32(values + 1, row, 1);
  if (count > 2) row = vld1q_lane_f32(values + 2, row, 2);
  return row;
}

void StoreFirst(float* out, float32x4_t row, int64_t count) {
  if (count >= 4) return vst1q_f32(out, row);
  vst1q_lane_f32(out, row, 0);
  if (count > 1) vst1q_lane_f32(out + 1, row, 1);
  if (count > 2) vst1q_lane_f32(out + 2, row, 2);
}

// A block of up to 4 channels x 4 pixels. Returns the bits of the channels for each pixel.
uint32x4_t FinishBlock(const FinishFloatArgs& args, int64_t channel, int64_t pixel) {
  const int64_t last = args.pixels - 1 - pixel;
  const int64_t channels = args.channels - channel < 4 ? args.channels - channel : 4;
  float32x4_t rows[4];
  // Rows past the last pixel repeat it and are not stored.
  for (int i = 0; i < 4; ++i) rows[i] = ScaledSums(args, pixel + (i < last ? i : last), channel);
  Transpose4x4(rows);
  uint32x4_t bits = vdupq_n_u32(0);
  for (int64_t i = 0; i < channels; ++i) {
    const int64_t at = (channel + i) * args.channel_stride + pixel;
    if (args.residual != nullptr) {
      rows[i] = vaddq_f32(rows[i], LoadFirst(args.residual + at, last + 1));
    }
    if (args.out != nullptr) StoreFirst(args.out + at, rows[i], last + 1);
    if (args.bits != nullptr) {
      const uint32x4_t above = vcgeq_f32(rows[i], vdupq_n_f32(args.threshold[channel + i]));
      bits = vorrq_u32(bits, vandq_u32(above, vdupq_n_u32(1u << ((channel + i) % 32))));
    }
  }
  return bits;
}

void FinishFloat(const FinishFloatArgs& args) {
  if (args.pixels == 1 && args.channel_stride == 1 && args.residual == nullptr) {
    for (int64_t channel = 0; channel < args.channels; channel += 4) {  // fully connected
      StoreFirst(args.out + channel, ScaledSums(args, 0, channel), args.channels - channel);
    }
    return;
  }
  for (int64_t channel = 0; channel < args.channels; channel += 32) {
    for (int64_t pixel = 0; pixel < args.pixels; pixel += 4) {
      uint32x4_t bits = vdupq_n_u32(0);
      for (int64_t i = 0; i < 32 && channel + i < args.channels; i += 4) {
        bits = vorrq_u32(bits, FinishBlock(args, channel + i, pixel));
      }
      if (args.bits != nullptr) {
        uint32_t words[4];
        vst1q_u32(words, bits);
        uint32_t* const out = args.bits + pixel * args.bits_stride + channel / 32;
        for (int64_t p = 0; p < 4 && pixel + p < args.pixels; ++p) {
          out[p * args.bits_stride] = words[p];
        }
      }
    }
  }
}

// Lane i of a vector collects the word of pixel i, one channel (bit) at a time. kVectors vectors
// are filled together, so that each plane is read in pieces of a cache line.
template <int kVectors>
void BinarizeVectors(const BinarizeArgs& args, int64_t pixel) {
  const int64_t words = (args.channels + 31) / 32;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    uint32x4_t bits[kVectors];
    for (int v = 0; v < kVectors; ++v) bits[v] = vdupq_n_u32(0);
    uint32x4_t bit = vdupq_n_u32(1);
    for (int64_t c = begin; c < end; ++c) {
      const float* plane = args.planes + c * args.channel_stride + pixel;
      const float32x4_t threshold = vdupq_n_f32(args.threshold[c]);
      for (int v = 0; v < kVectors; ++v) {
        bits[v] =
            vorrq_u32(bits[v], vandq_u32(vcgeq_f32(vld1q_f32(plane + v * 4), threshold), bit));
      }
      bit = vshlq_n_u32(bit, 1);
    }
    uint32_t column[kVectors * 4];
    for (int v = 0; v < kVectors; ++v) vst1q_u32(column + v * 4, bits[v]);
    uint32_t* out = args.out + pixel * words + word;
    for (int64_t p = 0; p < kVectors * 4; ++p) out[p * words] = column[p];
  }
}

void BinarizePixel(const BinarizeArgs& args, int64_t pixel) {
  const int64_t words = (args.channels + 31) / 32;
  for (int64_t word = 0; word < words; ++word) args.out[pixel * words + word] = 0;
  for (int64_t c = 0; c < args.channels; ++c) {
    const bool bit = args.planes[c * args.channel_stride + pixel] >= args.threshold[c];
    args.out[pixel * words + c / 32] |= static_cast<uint32_t>(bit) << (c % 32);
  }
}

void Binarize(const BinarizeArgs& args) {
  int64_t pixel = 0;
  for (; pixel + 16 <= args.pixels; pixel += 16) BinarizeVectors<4>(args, pixel);
  for (; pixel + 4 <= args.pixels; pixel += 4) BinarizeVectors<1>(args, pixel);
  for (; pixel < args.pixels; ++pixel) BinarizePixel(args, pixel);
}

void BinarizeRows(const BinarizeRowsArgs& args) {
  const uint32_t kPlaces[4] = {1, 2, 4, 8};
  const uint32x4_t places = vld1q_u32(kPlaces);
  const float* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p, x += args.channels) {
    for (int64_t begin = 0; begin < args.channels; begin += 32) {
      const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
      uint32_t bits = 0;
      int64_t c = begin;
      for (; c + 4 <= end; c += 4) {
        const uint32x4_t reached = vcgeq_f32(vld1q_f32(x + c), vld1q_f32(args.threshold + c));
        bits |= vaddvq_u32(vandq_u32(reached, places)) << (c - begin);
      }
      for (; c < end; ++c) {
        bits |= static_cast<uint32_t>(x[c] >= args.threshold[c]) << (c - begin);
      }
      *out++ = bits;
    }
  }
}

// The bytes of `x` that are at least those of `level`, as 32 bits: each keeps the bit of its place
// in a group of eight, and three pairwise additions collect the groups.
uint32_t AtLeast(const uint8_t* x, const uint8_t* level) {
  static const uint8_t kPlaces[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t places = vld1q_u8(kPlaces);
  const uint8x16_t low = vandq_u8(vcgeq_u8(vld1q_u8(x), vld1q_u8(level)), places);
  const uint8x16_t high = vandq_u8(vcgeq_u8(vld1q_u8(x + 16), vld1q_u8(level + 16)), places);
  uint8x16_t sums = vpaddq_u8(low, high);
  sums = vpaddq_u8(sums, sums);
  sums = vpaddq_u8(sums, sums);
  return vgetq_lane_u32(vreinterpretq_u32_u8(sums), 0);
}

void BinarizeBytes(const BinarizeBytesArgs& args) {
  const int64_t whole = args.channels / 32;
  const int64_t rest = args.channels % 32;
  const uint8_t* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t word = 0; word < whole; ++word, x += 32) {
      *out++ = AtLeast(x, args.level + word * 32) & args.reachable[word];
    }
    if (rest > 0) {
      uint8_t tail[32] = {};
      for (int64_t i = 0; i < rest; ++i) tail[i] = *x++;
      *out++ = AtLeast(tail, args.level + whole * 32) & args.reachable[whole];
    }
  }
}

}  // namespace

extern const Isa kIsaNeon = {
    "neon",      kBlock,   kWordGranule * 4, false,         Accumulate, AccumulateBits,
    FinishFloat, Binarize, BinarizeRows,     BinarizeBytes, nullptr,    nullptr,
};

}  // namespace bnn_deploy
