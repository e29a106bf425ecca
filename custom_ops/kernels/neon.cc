// NEON (Armv8-A baseline). A vector of weights holds 128 bits of one output channel. Per pixel and
// step, 8 channels cost 8 eor, 8 cnt, a tree of 7 addp and one uadalp: 24 operations on two pipes
// for 1024 binary multiply-accumulates, 85.3 per cycle on Cortex-A72 and A76.
//
// Runs need not be whole vectors, so windows are not gathered: the last 64 or 32 bits of a run are
// processed for 2 or 4 channels per vector, with one or two levels of the tree fewer, at the cost
// of just a half or a quarter of a step (and a dup). By the model of llvm-mca, as
// tests/benchmarks/neon_model.py prints it for a build by GCC 12 (binary multiply-accumulates per
// cycle of a 3x3 convolution, inner loop, then with the other costs of the tile and of bit output,
// on A53, A72 and A76):
//
//   64 channels: 24.1, 83.0 and 83.0, 21.0, 77.9 and 78.9
//   128:         28.3, 85.3 and 85.3, 26.1, 83.3 and 83.2
//   192:         27.4, 84.5 and 84.5, 26.0, 83.3 and 83.2
//   512:         29.2, 85.3 and 85.3, 28.6, 84.9 and 84.8
//
// With the pixels one after the other Cortex-A53, which works in order, is at 20.6 for 512.
// Tiles of 8 pixels or 6 have more loads hidden but more pointers than registers, and are no
// faster. Prefix XORs and carry-save addition (neon_dotprod.cc) win only where a Q
// bit-select is one operation: on Cortex-A72 that loop is at 79 and its whole tile at 74 for 512
// channels.

#include <arm_neon.h>

#include "kernels/micro_kernel.h"

// Register tiles are arrays: they stay in registers only if GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 8")

namespace bnn_deploy {
namespace {

#include "kernels/vectors/neon.inl"

constexpr int64_t kBlock = 8;       // output channels per register tile
constexpr int64_t kGranule = 16;    // contiguous bytes of a channel; fewer at the end of a run
constexpr int kMaxPixels = 4;       // pixels per register tile
constexpr int64_t kMaxSteps = 511;  // 511 * 128 bits still fit into a 16-bit lane

// A step takes kVectors vectors of weights: 8 with 128 bits of a channel, or, at the end of a run,
// 4 with 64 bits of two channels or 2 with 32 bits of four. Loads the matching bits of a window,
// repeated to fill a vector.
template <int kVectors>
uint8x16_t LoadWindow(const uint32_t* window) {
  if (kVectors == 8) return vreinterpretq_u8_u32(vld1q_u32(window));
  if (kVectors == 2) return vreinterpretq_u8_u32(vld1q_dup_u32(window));
  return vreinterpretq_u8_u64(vdupq_lane_u64(vreinterpret_u64_u32(vld1_u32(window)), 0));
}

// Adds to lane c of each pixel's sums the number of bits in which its window and channel c differ.
// The pixels take turns, so that a CPU that works in order has something to do while it waits.
template <int kVectors, int kPixels>
__attribute__((always_inline)) inline void AddMismatches(const uint8x16_t (&windows)[kPixels],
                                                         const uint8x16_t (&w)[kVectors],
                                                         uint16x8_t* sums) {
  uint8x16_t counts[kVectors][kPixels];
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int p = 0; p < kPixels; ++p) counts[v][p] = vcntq_u8(veorq_u8(windows[p], w[v]));
  }
  UNROLL for (int n = kVectors / 2; n > 0; n /= 2) {
    UNROLL for (int v = 0; v < n; ++v) {
      UNROLL for (int p = 0; p < kPixels; ++p) {
        counts[v][p] = vpaddq_u8(counts[2 * v][p], counts[2 * v + 1][p]);
      }
    }
  }
  UNROLL for (int p = 0; p < kPixels; ++p) sums[p] = vpadalq_u8(sums[p], counts[0][p]);
}

// A step for all pixels of a register tile, k words after the beginning of a run.
template <int kVectors, int kPixels>
__attribute__((always_inline)) inline const uint32_t* AddStep(const uint32_t* weights,
                                                              const uint32_t* const (&a)[kPixels],
                                                              int64_t k,
                                                              uint16x8_t (&sums)[kPixels]) {
  uint8x16_t w[kVectors];
  UNROLL for (int v = 0; v < kVectors; ++v) {
    w[v] = vreinterpretq_u8_u32(vld1q_u32(weights + v * 4));
  }
  UNROLL for (int p = 0; p + 1 < kPixels; p += 2) {
    AddMismatches({LoadWindow<kVectors>(a[p] + k), LoadWindow<kVectors>(a[p + 1] + k)}, w,
                  sums + p);
  }
  if (kPixels % 2 == 1) {
    AddMismatches({LoadWindow<kVectors>(a[kPixels - 1] + k)}, w, sums + kPixels - 1);
  }
  return weights + kVectors * 4;
}

// Accumulates all whole register tiles, kPixels pixels and a block of channels each, from `pixel`
// on. Calls finish(pixel, channel, mismatches) for each. A window has at most kMaxSteps steps.
template <int kPixels, typename Finish>
__attribute__((noinline)) void AccumulateTiles(const AccumulateArgs& args, int64_t block,
                                               int64_t pixel, const Finish& finish) {
  // Local copies: the compiler can assume that no store changes them.
  const int64_t* const offsets = args.run_offsets;
  const int64_t runs = args.runs;
  const int64_t run_words = args.run_words;
  const uint32_t* const block_weights = args.weights + block * runs * run_words * kBlock;
  for (; pixel + kPixels <= args.pixels; pixel += kPixels) {
    const uint32_t* const* const windows = args.windows + pixel;
    const uint32_t* weights = block_weights;
    uint16x8_t sums[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) sums[p] = vdupq_n_u16(0);
    for (int64_t run = 0; run < runs; ++run) {
      const uint32_t* a[kPixels];
      UNROLL for (int p = 0; p < kPixels; ++p) a[p] = windows[p] + offsets[run];
      int64_t k = 0;
      for (; k + 4 <= run_words; k += 4) weights = AddStep<8>(weights, a, k, sums);
      if (run_words & 2) {
        weights = AddStep<4>(weights, a, k, sums);
        k += 2;
      }
      if (run_words & 1) weights = AddStep<2>(weights, a, k, sums);
    }
    finish(pixel, block * kBlock, sums);
  }
}

template <typename Finish>
void AccumulateBlock(const AccumulateArgs& args, int64_t block, const Finish& finish) {
  static_assert(kMaxPixels == 4, "one case for each smaller tile");
  const int64_t rest = args.pixels % kMaxPixels;
  AccumulateTiles<kMaxPixels>(args, block, 0, finish);
  switch (rest) {
    case 3:
      return AccumulateTiles<3>(args, block, args.pixels - rest, finish);
    case 2:
      return AccumulateTiles<2>(args, block, args.pixels - rest, finish);
    case 1:
      return AccumulateTiles<1>(args, block, args.pixels - rest, finish);
  }
}

// Adds the mismatches of a register tile to the initial sums, and stores the result.
struct StoreSums {
  const int32_t* const* initial;
  int64_t initial_offset;
  int32_t* out;

  template <int kPixels>
  void operator()(int64_t pixel, int64_t channel, const uint16x8_t (&mismatches)[kPixels]) const {
    const int32_t* const* const rows = initial + pixel;
    const int64_t first = initial_offset + channel;
    int32_t* const to = out + pixel * kTileChannels + channel;
    UNROLL for (int p = 0; p < kPixels; ++p) {
      const uint32x4_t low = vreinterpretq_u32_s32(vld1q_s32(rows[p] + first));
      const uint32x4_t high = vreinterpretq_u32_s32(vld1q_s32(rows[p] + first + 4));
      const uint32x4_t low_sums = vaddw_u16(low, vget_low_u16(mismatches[p]));
      const uint32x4_t high_sums = vaddw_high_u16(high, mismatches[p]);
      vst1q_s32(to + p * kTileChannels, vreinterpretq_s32_u32(low_sums));
      vst1q_s32(to + p * kTileChannels + 4, vreinterpretq_s32_u32(high_sums));
    }
  }
};

// Whether a window needs more steps than a register tile may take.
bool IsLong(const AccumulateArgs& args) {
  const int64_t run_steps = args.run_words / 4 + 2;  // up to two partial steps end a run
  return args.runs * run_steps > kMaxSteps;
}

// Splits long windows into parts; each part adds to the sums of the earlier parts.
void AccumulateParts(const AccumulateArgs& args) {
  constexpr int64_t kPartWords = (kMaxSteps - 2) * 4;
  for (int64_t block = 0; block < args.blocks; ++block) {
    AccumulateArgs part = args;
    part.weights += block * args.runs * args.run_words * kBlock;
    part.runs = 1;
    int32_t* const sums = args.sums + block * kBlock;
    const int32_t* rows[kTilePixels];
    for (int64_t p = 0; p < args.pixels; ++p) rows[p] = sums + p * kTileChannels;
    StoreSums store{args.initial, args.initial_offset + block * kBlock, sums};
    for (int64_t run = 0; run < args.runs; ++run) {
      for (int64_t k = 0; k < args.run_words; k += part.run_words) {
        const int64_t left = args.run_words - k;
        const int64_t offset = args.run_offsets[run] + k;
        part.run_offsets = &offset;
        part.run_words = left < kPartWords ? left : kPartWords;
        AccumulateBlock(part, 0, store);
        part.weights += part.run_words * kBlock;
        store.initial = rows;
        store.initial_offset = 0;
      }
    }
  }
}

void Accumulate(const AccumulateArgs& args) {
  if (IsLong(args)) return AccumulateParts(args);
  const StoreSums store{args.initial, args.initial_offset, args.sums};
  for (int64_t block = 0; block < args.blocks; ++block) AccumulateBlock(args, block, store);
}

// Stores the signs of the sums. Initial sums are at most 0, so a sum is negative where the
// mismatches are below limit = -initial, which saturates at 65535: a register tile counts fewer.
struct StoreSigns {
  const uint16_t* const* limits;
  uint8_t* out;
  int64_t pixel_bytes;

  template <int kPixels>
  void operator()(int64_t pixel, int64_t channel, const uint16x8_t (&mismatches)[kPixels]) const {
    static const uint16_t kPlaces[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t places = vld1q_u16(kPlaces);
    // Three pairwise additions collect the bits of the eight channels in one lane per pixel.
    uint16x8_t bits[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) {
      const uint16x8_t limit = vld1q_u16(limits[pixel + p] + channel);
      bits[p] = vandq_u16(vcltq_u16(mismatches[p], limit), places);
    }
    const uint16x8_t first = vpaddq_u16(bits[0], bits[kPixels > 1 ? 1 : 0]);
    const uint16x8_t last =
        kPixels > 2 ? vpaddq_u16(bits[kPixels > 2 ? 2 : 0], bits[kPixels - 1]) : first;
    uint16x8_t words = vpaddq_u16(first, last);
    words = vpaddq_u16(words, words);
    const uint8x16_t bytes = vreinterpretq_u8_u16(words);
    const int64_t step = pixel_bytes;
    uint8_t* const to = out + pixel * step + channel / 8;
    vst1q_lane_u8(to, bytes, 0);
    if (kPixels > 1) vst1q_lane_u8(to + step, bytes, 2);
    if (kPixels > 2) vst1q_lane_u8(to + 2 * step, bytes, 4);
    if (kPixels > 3) vst1q_lane_u8(to + 3 * step, bytes, 6);
  }
};

void AccumulateLongBits(const AccumulateBitsArgs& args) {
  Accumulate(args.accumulate);
  const int64_t channels = args.accumulate.blocks * kBlock;
  for (int64_t p = 0; p < args.accumulate.pixels; ++p) {
    const int32_t* const sums = args.accumulate.sums + p * kTileChannels;
    for (int64_t begin = 0; begin < channels; begin += 32) {
      uint32_t bits = 0;
      for (int64_t i = 0; i < 32 && begin + i < channels; ++i) {
        bits |= static_cast<uint32_t>(sums[begin + i] < 0) << i;
      }
      args.out[p * args.pixel_stride + begin / 32] = bits;
    }
  }
}

void AccumulateBits(const AccumulateBitsArgs& args) {
  const AccumulateArgs& accumulate = args.accumulate;
  if (IsLong(accumulate)) return AccumulateLongBits(args);
  const int64_t channels = accumulate.blocks * kBlock;
  // Neighbouring pixels often share their initial sums, and so their limits.
  uint16_t rows[kTilePixels * kTileChannels];
  const uint16_t* limits[kTilePixels];
  uint16_t* row = rows;
  for (int64_t p = 0; p < accumulate.pixels; ++p) {
    if (p > 0 && accumulate.initial[p] == accumulate.initial[p - 1]) {
      limits[p] = limits[p - 1];
      continue;
    }
    const int32_t* const initial = accumulate.initial[p] + accumulate.initial_offset;
    for (int64_t c = 0; c < channels; c += 4) {
      vst1_u16(row + c, vqmovun_s32(vqnegq_s32(vld1q_s32(initial + c))));
    }
    limits[p] = row;
    row += kTileChannels;
  }
  for (int64_t p = 0; channels % 32 != 0 && p < accumulate.pixels; ++p) {
    args.out[p * args.pixel_stride + channels / 32] = 0;
  }
  const StoreSigns store{limits, reinterpret_cast<uint8_t*>(args.out), args.pixel_stride * 4};
  for (int64_t block = 0; block < accumulate.blocks; ++block) {
    AccumulateBlock(accumulate, block, store);
  }
}

// Lanes of a vector in FinishFloat: (channel c, pixel p), (c, p + 1), (c + 2, p), (c + 2, p + 1).
// The pairs for c and c + 1 are the first half of a 4x4 transpose and are stored directly: the
// second half, zips, takes longer than narrower stores on Cortex-A72.
float32x4_t PairLanes(const float* channels, int odd) {
  const float32x4_t values = vld1q_f32(channels);
  return odd ? vtrn2q_f32(values, values) : vtrn1q_f32(values, values);
}

// FinishFloat's constants of 4 channels, for even c ([0]) and for odd c ([1]).
struct ChannelConstants {
  float32x4_t scale[2];
  float32x4_t bias[2];
  float32x4_t threshold[2];
  uint32x4_t place[2];  // of the channels' bits in their words
};

template <Epilogue kEpilogue>
ChannelConstants LoadConstants(const FinishFloatArgs& args, int64_t channel) {
  ChannelConstants constants;
  UNROLL for (int odd = 0; odd < 2; ++odd) {
    constants.scale[odd] = PairLanes(args.scale + channel, odd);
    constants.bias[odd] = PairLanes(args.bias + channel, odd);
    if (kEpilogue != Epilogue::kResidual || args.bits == nullptr) continue;
    constants.threshold[odd] = PairLanes(args.threshold + channel, odd);
    const uint32_t place = 1u << (channel % 32 + odd);
    constants.place[odd] = vcombine_u32(vdup_n_u32(place), vdup_n_u32(place * 4));
  }
  return constants;
}

// 4 channels x 2 pixels; kWhole: all 8 exist. Sets the bits of the channels in words[0] to
// words[3], in the order of the lanes.
template <Epilogue kEpilogue, bool kWhole>
__attribute__((always_inline)) inline void FinishPair(const FinishFloatArgs& args,
                                                      const ChannelConstants& constants,
                                                      const int32_t* products, const float* factors,
                                                      int64_t channel, int64_t pixel,
                                                      uint32_t* words) {
  const bool makes_bits = kEpilogue == Epilogue::kResidual && args.bits != nullptr;
  const bool both = kWhole || pixel + 1 < args.pixels;
  const int64_t channels = kWhole ? 4 : args.channels - channel;
  const int32_t* const sums = args.sums + pixel * kTileChannels + channel;
  const int32x4_t first = vld1q_s32(sums);
  const int32x4_t second = both ? vld1q_s32(sums + kTileChannels) : first;
  const int32x4_t lane_products =
      vreinterpretq_s32_u64(vdupq_lane_u64(vreinterpret_u64_s32(vld1_s32(products + pixel)), 0));
  uint32x4_t bits = vdupq_n_u32(0);
  UNROLL for (int odd = 0; odd < 2; ++odd) {
    const int32x4_t pairs = odd ? vtrn2q_s32(first, second) : vtrn1q_s32(first, second);
    const int32x4_t dot = vsubq_s32(lane_products, vaddq_s32(pairs, pairs));
    const float32x4_t scaled = vmulq_f32(vcvtq_f32_s32(dot), constants.scale[odd]);
    float32x4_t value = vaddq_f32(scaled, constants.bias[odd]);
    const int64_t low = (channel + odd) * args.channel_stride + pixel;
    const int64_t high = low + 2 * args.channel_stride;
    if (kEpilogue == Epilogue::kResidual && kWhole) {
      const float32x2_t low_pair = vld1_f32(args.residual + low);
      value = vaddq_f32(value, vcombine_f32(low_pair, vld1_f32(args.residual + high)));
    } else if (kEpilogue == Epilogue::kResidual) {
      float other[4] = {};
      if (odd < channels) other[0] = args.residual[low];
      if (odd < channels && both) other[1] = args.residual[low + 1];
      if (odd + 2 < channels) other[2] = args.residual[high];
      if (odd + 2 < channels && both) other[3] = args.residual[high + 1];
      value = vaddq_f32(value, vld1q_f32(other));
    } else if (kEpilogue == Epilogue::kFactor) {
      const float32x2_t pair = vld1_f32(factors + pixel);
      value = vmulq_f32(value, vcombine_f32(pair, pair));
    }
    if (kEpilogue != Epilogue::kResidual || args.out != nullptr) {
      if (kWhole) {
        const float64x2_t pairs_of_floats = vreinterpretq_f64_f32(value);
        vst1q_lane_f64(reinterpret_cast<double*>(args.out + low), pairs_of_floats, 0);
        vst1q_lane_f64(reinterpret_cast<double*>(args.out + high), pairs_of_floats, 1);
      } else {
        if (odd < channels) vst1q_lane_f32(args.out + low, value, 0);
        if (odd < channels && both) vst1q_lane_f32(args.out + low + 1, value, 1);
        if (odd + 2 < channels) vst1q_lane_f32(args.out + high, value, 2);
        if (odd + 2 < channels && both) vst1q_lane_f32(args.out + high + 1, value, 3);
      }
    }
    if (makes_bits) {
      const uint32x4_t above = vcgeq_f32(value, constants.threshold[odd]);
      bits = vorrq_u32(bits, vandq_u32(above, constants.place[odd]));
    }
  }
  if (makes_bits) vst1q_u32(words, vorrq_u32(vld1q_u32(words), bits));
}

// Pixels in the inner loop, so that few planes are written at a time.
template <Epilogue kEpilogue>
void FinishTile(const FinishFloatArgs& shared_args) {
  const FinishFloatArgs args = shared_args;  // no store can change a local copy
  int32_t products[kTilePixels] = {};
  for (int64_t p = 0; p < args.pixels; ++p) products[p] = static_cast<int32_t>(args.products[p]);
  float factors[kTilePixels] = {};  // readable in pairs
  for (int64_t p = 0; kEpilogue == Epilogue::kFactor && p < args.pixels; ++p) {
    factors[p] = args.factor[p];
  }
  for (int64_t begin = 0; begin < args.channels; begin += 32) {
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    uint32_t words[2 * kTilePixels] = {};  // in FinishPair's order of lanes
    for (int64_t channel = begin; channel < end; channel += 4) {
      const ChannelConstants constants = LoadConstants<kEpilogue>(args, channel);
      int64_t pixel = 0;
      for (; channel + 4 <= end && pixel + 2 <= args.pixels; pixel += 2) {
        FinishPair<kEpilogue, true>(args, constants, products, factors, channel, pixel,
                                    words + 2 * pixel);
      }
      for (; pixel < args.pixels; pixel += 2) {
        FinishPair<kEpilogue, false>(args, constants, products, factors, channel, pixel,
                                     words + 2 * pixel);
      }
    }
    if (kEpilogue != Epilogue::kResidual || args.bits == nullptr) continue;
    for (int64_t p = 0; p < args.pixels; ++p) {
      const uint32_t* const lanes = words + p / 2 * 4 + p % 2;
      args.bits[p * args.bits_stride + begin / 32] = lanes[0] | lanes[2];
    }
  }
}

// Loop parameters of binarize.inl, explained there.
constexpr int kBinarizeVectors = 4;
constexpr int kAbsMeanVectors = 4;
constexpr int kFewVectors = 1;
constexpr bool kMeansRows = true;

#include "kernels/generic/average_pool.inl"
#include "kernels/generic/binarize.inl"
#include "kernels/generic/convolve_tiles.inl"
#include "kernels/generic/direct_conv.inl"
#include "kernels/generic/finish.inl"
#include "kernels/generic/linear.inl"

constexpr Kernels MakeKernels() {
  Kernels kernels;
  kernels.channel_block = kBlock;
  kernels.granule = kGranule;
  kernels.accumulate = Accumulate;
  kernels.accumulate_bits = AccumulateBits;
  kernels.finish_float = FinishFloat;
  kernels.finish_rows = FinishRows;
  kernels.binarize = Binarize;
  kernels.binarize_abs_mean = BinarizeAbsMean;
  kernels.binarize_rows = BinarizeRows;
  kernels.binarize_bytes = BinarizeBytes;
  kernels.average_pool = AveragePool;
  kernels.direct = &kNeonDirect;
  kernels.linear = &kNeonLinear;
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr DirectKernels kNeonDirect = kDirect;
constexpr LinearKernels kNeonLinear = kLinear;
constexpr Kernels kNeonKernels = MakeKernels();

}  // namespace bnn_deploy
