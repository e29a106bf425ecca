// NEON of cores with the dot product instructions, Cortex-A76 and later, whose bit-select is
// one operation (on Cortex-A72 it is two). The NEON unit counts short windows; long ones are
// counted by carry-save addition of prefix XORs.
//
// Let d[0], d[1], ... be the vectors of bits that differ between a window and a channel, and P[k] =
// d[0] ^ ... ^ d[k]. A full adder of P[k], d[k + 1] and d[k + 2] has the sum P[k + 2], and its
// carry is P[k] where P[k + 1] is 0 and ~P[k + 2] where it is 1, as the eight cases show. So
//
//   number of bits = 2 * bits in all carries + bits in the last P,
//
// and with windows and weights stored as prefix XORs P[k] is a single eor. Per two vectors: 2 eor,
// 1 bit-select, 1 cnt and 1 sdot, which adds with the weight 2: 2.5 operations per vector instead
// of the 3 of the NEON unit. To save the inversion, the weights of every second P[k + 2] are stored
// inverted: the next adder then has the inverted state and its bit-select gives the inverted carry,
// whose count is subtracted from 128.
//
// By the model of llvm-mca for Cortex-A76, as tests/benchmarks/neon_model.py prints it for a build
// by GCC 12, in binary multiply-accumulates per cycle: the loop 102.3 (NEON unit: 85.3),
// a whole 3x3 convolution with bit output, gather and prefix XORs included, 89.4 with 256 channels
// and 94.5 with 512 (NEON unit: 84.3 and 84.8). With 192 channels it is no better, with 128 worse.

#include <arm_neon.h>

#include "kernels/micro_kernel.h"

// Register tiles are arrays: they stay in registers only if GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 8")

namespace bnn_deploy {
namespace {

#include "kernels/vectors/neon_bits.inl"

constexpr int64_t kBlock = 8;      // output channels in a block of weights
constexpr int kChannels = 4;       // output channels per register tile
constexpr int kMaxPixels = 2;      // pixels per register tile
constexpr int64_t kGranule = 16;   // contiguous bytes of a channel
constexpr int64_t kMinWords = 72;  // faster than the NEON unit from here on: 256 channels, 3x3

uint8x16_t Load(const uint32_t* words) { return vreinterpretq_u8_u32(vld1q_u32(words)); }

// Prefix XORs of vectors. In the weights, every second adder state is inverted, beginning with the
// first adder's result (even number of vectors) or with the first vector (odd number).
void Encode(uint32_t* row, int64_t words, bool weights) {
  const int64_t vectors = words / 4;
  uint32x4_t prefix = vdupq_n_u32(0);
  for (int64_t k = 0; k < vectors; ++k) {
    prefix = veorq_u32(prefix, vld1q_u32(row + k * 4));
    vst1q_u32(row + k * 4, prefix);
  }
  if (!weights) return;
  for (int64_t k = 1 - vectors % 2; k < vectors; k += 4) {
    vst1q_u32(row + k * 4, vmvnq_u32(vld1q_u32(row + k * 4)));
  }
}

// A full adder over two vectors of each window and channel, which adds the bits of its carries
// times kWeight (-2 for inverted carries) to `sums`. kFirst: the adder's state is 0.
template <int kWeight, bool kFirst, int kPixels>
__attribute__((always_inline)) inline const uint32_t* AddCarries(
    const uint32_t* weights, const uint32_t* (&windows)[kPixels],
    uint8x16_t (&states)[kPixels][kChannels], int32x4_t (&sums)[kPixels][kChannels]) {
  uint8x16_t a[kPixels], b[kPixels];
  UNROLL for (int p = 0; p < kPixels; ++p) {
    a[p] = Load(windows[p]);
    b[p] = Load(windows[p] + 4);
    windows[p] += 8;
  }
  UNROLL for (int c = 0; c < kChannels; ++c) {
    const uint8x16_t middle = Load(weights + c * 4);
    const uint8x16_t end = Load(weights + (kBlock + c) * 4);
    UNROLL for (int p = 0; p < kPixels; ++p) {
      const uint8x16_t select = veorq_u8(a[p], middle);
      const uint8x16_t state = veorq_u8(b[p], end);
      const uint8x16_t carry =
          kFirst ? vandq_u8(select, state) : vbslq_u8(select, state, states[p][c]);
      const int8x16_t counts = vreinterpretq_s8_u8(vcntq_u8(carry));
      sums[p][c] = vdotq_s32(sums[p][c], counts, vdupq_n_s8(kWeight));
      states[p][c] = state;
      // Keeps Clang from processing too many sums at once, which would spill registers.
      __asm__ volatile("" : "+w"(sums[p][c])::);
    }
  }
  return weights + 2 * kBlock * 4;
}

// Accumulates all whole register tiles, kPixels pixels and kChannels channels each, from `pixel`
// on.
template <int kPixels>
__attribute__((noinline)) void AccumulateTiles(const AccumulateArgs& args, int64_t channel,
                                               int64_t pixel) {
  const int64_t vectors = args.run_words / 4;
  const int64_t adders = (vectors - 1) / 2;  // without the first adder of an even number of vectors
  const bool last_is_inverted = adders % 2 == 0;
  // 2 * 128 for each inverted carry, and 128 for the last state if it is inverted; a quarter in
  // each lane.
  const int64_t inverted = (adders + 1) / 2;
  const int32x4_t base =
      vdupq_n_s32(static_cast<int32_t>(128 / 4 * (2 * inverted + (last_is_inverted ? 1 : 0))));
  const int8x16_t last_weight = vdupq_n_s8(last_is_inverted ? -1 : 1);
  const uint32_t* const tile_weights =
      args.weights + channel / kBlock * kBlock * args.run_words + channel % kBlock * 4;
  const int64_t initial_channel = args.initial_offset + channel;
  for (; pixel + kPixels <= args.pixels; pixel += kPixels) {
    const uint32_t* weights = tile_weights;
    const uint32_t* windows[kPixels];
    uint8x16_t states[kPixels][kChannels];
    int32x4_t sums[kPixels][kChannels];
    UNROLL for (int p = 0; p < kPixels; ++p) {
      windows[p] = args.windows[pixel + p] + args.run_offsets[0];
      UNROLL for (int c = 0; c < kChannels; ++c) sums[p][c] = base;
    }
    if (vectors % 2 == 0) {
      weights = AddCarries<2, true>(weights, windows, states, sums);
    } else {
      UNROLL for (int p = 0; p < kPixels; ++p) {
        const uint8x16_t a = Load(windows[p]);
        windows[p] += 4;
        UNROLL for (int c = 0; c < kChannels; ++c) {
          states[p][c] = veorq_u8(a, Load(weights + c * 4));
        }
      }
      weights += kBlock * 4;
    }
    int64_t left = adders;
    for (; left >= 2; left -= 2) {
      weights = AddCarries<-2, false>(weights, windows, states, sums);
      weights = AddCarries<2, false>(weights, windows, states, sums);
    }
    if (left > 0) AddCarries<-2, false>(weights, windows, states, sums);
    const int32_t* const* const initial = args.initial + pixel;
    int32_t* const out = args.sums + pixel * kTileChannels + channel;
    UNROLL for (int p = 0; p < kPixels; ++p) {
      UNROLL for (int c = 0; c < kChannels; ++c) {
        const int8x16_t counts = vreinterpretq_s8_u8(vcntq_u8(states[p][c]));
        sums[p][c] = vdotq_s32(sums[p][c], counts, last_weight);
      }
      const int32x4_t total =
          vpaddq_s32(vpaddq_s32(sums[p][0], sums[p][1]), vpaddq_s32(sums[p][2], sums[p][3]));
      vst1q_s32(out + p * kTileChannels, vaddq_s32(total, vld1q_s32(initial[p] + initial_channel)));
    }
  }
}

bool IsEncoded(const AccumulateArgs& args) { return args.runs * args.run_words >= kMinWords; }

void Accumulate(const AccumulateArgs& args) {
  if (!IsEncoded(args)) return kNeonKernels.accumulate(args);
  static_assert(kMaxPixels == 2, "a last pixel may be left");
  for (int64_t channel = 0; channel < args.blocks * kBlock; channel += kChannels) {
    AccumulateTiles<kMaxPixels>(args, channel, 0);
    if (args.pixels % 2 == 1) AccumulateTiles<1>(args, channel, args.pixels - 1);
  }
}

// Byte i is 0xff where value i of 16 is negative, by its most significant byte, else 0.
uint8x16_t BelowZero(const int32_t* values) {
  uint16x8_t halves[2];
  UNROLL for (int i = 0; i < 2; ++i, values += 8) {
    halves[i] = vuzp2q_u16(vreinterpretq_u16_s32(vld1q_s32(values)),
                           vreinterpretq_u16_s32(vld1q_s32(values + 4)));
  }
  const uint8x16_t last =
      vuzp2q_u8(vreinterpretq_u8_u16(halves[0]), vreinterpretq_u8_u16(halves[1]));
  return vcltzq_s8(vreinterpretq_s8_u8(last));
}

void AccumulateBits(const AccumulateBitsArgs& args) {
  if (!IsEncoded(args.accumulate)) return kNeonKernels.accumulate_bits(args);
  Accumulate(args.accumulate);
  const int64_t channels = args.accumulate.blocks * kBlock;
  for (int64_t begin = 0; begin < channels; begin += 32) {
    const uint32_t used = channels - begin < 32 ? (1u << (channels - begin)) - 1 : ~0u;
    const int32_t* sums = args.accumulate.sums + begin;
    uint32_t* out = args.out + begin / 32;
    for (int64_t p = 0; p < args.accumulate.pixels; ++p) {
      *out = CollectBits(BelowZero(sums), BelowZero(sums + 16)) & used;
      sums += kTileChannels;
      out += args.pixel_stride;
    }
  }
}

constexpr int kLanes = 4;
uint32_t ReachedLanes(const int32_t* sums, const int32_t* least) {
  static const uint32_t kPlaces[kLanes] = {1, 2, 4, 8};
  const uint32x4_t reached = vcgeq_s32(vld1q_s32(sums), vld1q_s32(least));
  return vaddvq_u32(vandq_u32(reached, vld1q_u32(kPlaces)));
}

// Byte i is 0xff where sum i of 16 is at least `least`, else 0.
uint8x16_t Reached16(const int32_t* sums, const int32_t* least) {
  uint16x8_t halves[2];
  UNROLL for (int i = 0; i < 2; ++i, sums += 8, least += 8) {
    const uint32x4_t low = vcgeq_s32(vld1q_s32(sums), vld1q_s32(least));
    const uint32x4_t high = vcgeq_s32(vld1q_s32(sums + 4), vld1q_s32(least + 4));
    halves[i] = vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
  }
  return vuzp1q_u8(vreinterpretq_u8_u16(halves[0]), vreinterpretq_u8_u16(halves[1]));
}

uint32_t ReachedWord(const int32_t* sums, const int32_t* least) {
  return CollectBits(Reached16(sums, least), Reached16(sums + 16, least + 16));
}

#include "kernels/generic/convolve_tiles.inl"
#include "kernels/generic/direct_integers.inl"

// The sums of a direct convolution in groups of four 8-bit integers, with weights of 16 bits in two
// limbs: two operations for 16 multiply-accumulates, where floats take four.
struct QuadSums {
  struct Vector {
    int32x4_t high, low;
  };
  using Number = uint32_t;
  using Sum = int32_t;
  static constexpr int kNumbers = 2;
  static constexpr int kSums = 8;
  static constexpr int kVectors = 2;

  static Vector LoadSums(const int32_t* from) { return {vdupq_n_s32(0), vld1q_s32(from)}; }
  static Vector LoadWeights(const uint32_t* from) {
    return {vreinterpretq_s32_u32(vld1q_u32(from)),
            vreinterpretq_s32_u32(vld1q_u32(from + kLanes))};
  }
  static void StoreSums(int32_t* to, Vector sums) {
    vst1q_s32(to, vaddq_s32(vshlq_n_s32(sums.high, 8), sums.low));
  }
  template <int kPixel>
  static Vector AddPixel(Vector sums, Vector w, int8x16_t pixels) {
    return {vdotq_laneq_s32(sums.high, vreinterpretq_s8_s32(w.high), pixels, kPixel),
            vdotq_laneq_s32(sums.low, vreinterpretq_s8_s32(w.low), pixels, kPixel)};
  }
  static Vector Add(Vector sums, Vector w, const uint32_t* x, int p) {
    const int8x16_t pixels = vreinterpretq_s8_u32(vld1q_u32(x + p / 4 * 4));
    switch (p % 4) {
      case 0:
        return AddPixel<0>(sums, w, pixels);
      case 1:
        return AddPixel<1>(sums, w, pixels);
      case 2:
        return AddPixel<2>(sums, w, pixels);
      default:
        return AddPixel<3>(sums, w, pixels);
    }
  }
};
constexpr IntegerKernels kIntegers = MakeIntegers<QuadSums>(4);

void FinishFloat(const FinishFloatArgs& args) { kNeonKernels.finish_float(args); }
void FinishRows(const FinishRowsArgs& args) { kNeonKernels.finish_rows(args); }
void Binarize(const BinarizeArgs& args) { kNeonKernels.binarize(args); }
void BinarizeAbsMean(const BinarizeAbsMeanArgs& args) { kNeonKernels.binarize_abs_mean(args); }
void BinarizeRows(const BinarizeRowsArgs& args) { kNeonKernels.binarize_rows(args); }
void BinarizeBytes(const BinarizeBytesArgs& args) { kNeonKernels.binarize_bytes(args); }
void AveragePool(const AveragePoolArgs& args) { kNeonKernels.average_pool(args); }

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
  kernels.direct_integers = &kIntegers;
  kernels.encode = Encode;
  kernels.encoded_words = kMinWords;
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr Kernels kNeonDotprodKernels = MakeKernels();

}  // namespace bnn_deploy
