// AVX-512 with VPOPCNTDQ. A vector holds one word of 16 output channels; the activation word is
// broadcast from memory, so a step of 512 binary multiply-accumulates is vpxord + vpopcntd +
// vpaddd. On the four 512-bit pipes of Zen 5 that allows 683 per cycle; the loop below reaches 660
// with weights in the first-level cache. A tile of 6 pixels x 4 vectors keeps its 24 sums in
// registers and needs 10 loads for 72 operations.
//
// For large images with float output the roles are swapped (ConvolvePlanes): a vector holds one
// word of 16 pixels, the weight word is broadcast, and the sums are rows of the output planes
// without a transpose. The transposing finish took 18 % of a 3x3 convolution of 64 channels at
// 56x56.

#include <immintrin.h>

#include "kernels/micro_kernel.h"

// Register tiles are arrays: they stay in registers only if GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 16")

namespace bnn_deploy {
namespace {

#include "kernels/vectors/avx512.inl"

constexpr int64_t kBlock = 16;      // output channels per vector
constexpr int64_t kGranule = 4;     // contiguous bytes of a channel
constexpr int kMaxPixels = 6;       // pixels per register tile
constexpr int64_t kMaxVectors = 4;  // vectors per register tile

// Calls finish(pixel, sums) with the sums of a register tile.
template <int kPixels, int kVectors, typename Finish>
void AccumulateTile(const AccumulateArgs& args, int64_t pixel, const Finish& finish) {
  const uint32_t* weights = args.weights;
  __m512i sums[kPixels][kVectors];
  UNROLL for (int p = 0; p < kPixels; ++p) {
    const int32_t* const initial = args.initial[pixel + p] + args.initial_offset;
    UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[p][v] = _mm512_load_si512(initial + v * kBlock);
    }
  }
  for (int64_t run = 0; run < args.runs; ++run) {
    const uint32_t* a[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) a[p] = args.windows[pixel + p] + args.run_offsets[run];
    for (int64_t k = 0; k < args.run_words; ++k) {
      __m512i w[kVectors];
      UNROLL for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(weights + v * kBlock);
      weights += kVectors * kBlock;
      UNROLL for (int p = 0; p < kPixels; ++p) {
        const __m512i word = _mm512_set1_epi32(static_cast<int>(a[p][k]));
        UNROLL for (int v = 0; v < kVectors; ++v) {
          const __m512i differing = _mm512_xor_si512(word, w[v]);
          sums[p][v] = _mm512_add_epi32(sums[p][v], _mm512_popcnt_epi32(differing));
        }
      }
    }
  }
  finish(pixel, sums);
}

template <int kVectors, typename Finish>
void AccumulateVectors(const AccumulateArgs& args, const Finish& finish) {
  int64_t pixel = 0;
  for (; pixel + kMaxPixels <= args.pixels; pixel += kMaxPixels) {
    AccumulateTile<kMaxPixels, kVectors>(args, pixel, finish);
  }
  switch (args.pixels - pixel) {
    case 5:
      return AccumulateTile<5, kVectors>(args, pixel, finish);
    case 4:
      return AccumulateTile<4, kVectors>(args, pixel, finish);
    case 3:
      return AccumulateTile<3, kVectors>(args, pixel, finish);
    case 2:
      return AccumulateTile<2, kVectors>(args, pixel, finish);
    case 1:
      return AccumulateTile<1, kVectors>(args, pixel, finish);
  }
}

template <typename Finish>
void AccumulateBlocks(const AccumulateArgs& args, const Finish& finish) {
  static_assert(kMaxVectors * kBlock == kTileChannels, "a tile is one register tile wide");
  switch (args.blocks) {
    case 4:
      return AccumulateVectors<4>(args, finish);
    case 3:
      return AccumulateVectors<3>(args, finish);
    case 2:
      return AccumulateVectors<2>(args, finish);
    case 1:
      return AccumulateVectors<1>(args, finish);
  }
}

// The outputs of a register tile: its sums (StoreSums), or their signs (StoreSigns).
struct StoreSums {
  int32_t* out;

  template <int kPixels, int kVectors>
  void operator()(int64_t pixel, const __m512i (&sums)[kPixels][kVectors]) const {
    int32_t* const to = out + pixel * kTileChannels;
    UNROLL for (int p = 0; p < kPixels; ++p) {
      UNROLL for (int v = 0; v < kVectors; ++v) {
        _mm512_store_si512(to + p * kTileChannels + v * kBlock, sums[p][v]);
      }
    }
  }
};

struct StoreSigns {
  uint32_t* out;
  int64_t pixel_stride;

  template <int kPixels, int kVectors>
  void operator()(int64_t pixel, const __m512i (&sums)[kPixels][kVectors]) const {
    uint32_t* const to = out + pixel * pixel_stride;
    UNROLL for (int p = 0; p < kPixels; ++p) {
      UNROLL for (int v = 0; v < kVectors; v += 2) {
        const __mmask16 low = _mm512_movepi32_mask(sums[p][v]);
        const __mmask16 high = v + 1 < kVectors ? _mm512_movepi32_mask(sums[p][v + 1]) : 0;
        to[p * pixel_stride + v / 2] = _mm512_kunpackw(high, low);
      }
    }
  }
};

void Accumulate(const AccumulateArgs& args) { AccumulateBlocks(args, StoreSums{args.sums}); }

void AccumulateBits(const AccumulateBitsArgs& args) {
  AccumulateBlocks(args.accumulate, StoreSigns{args.out, args.pixel_stride});
}

// to[i] = from[i * step], from `step` vectors at a time. kStep: the step, or 0 for any up to 16.
template <int kStep>
void CopyStrided(const uint32_t* from, int64_t any_step, int64_t count, uint32_t* to) {
  const int step = kStep > 0 ? kStep : static_cast<int>(any_step);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(step));
  const __m512i vectors = _mm512_srli_epi32(index, 4);  // a permutation takes the index modulo 16
  for (int64_t i = 0; i < count; i += 16, from += 16 * step) {
    __m512i words = _mm512_permutexvar_epi32(index, _mm512_loadu_si512(from));
    UNROLL for (int v = 1; v < step; ++v) {
      const __mmask16 mask = _mm512_cmpeq_epi32_mask(vectors, _mm512_set1_epi32(v));
      const __m512i vector = _mm512_loadu_si512(from + v * 16);
      words = _mm512_mask_permutexvar_epi32(words, mask, index, vector);
    }
    _mm512_mask_storeu_epi32(to + i, FirstLanes(count - i), words);
  }
}

void SplitRow(const SplitRowArgs& args) {
  const int64_t step = args.stride * args.words;
  static_assert(kRowSlack >= 16 * 16, "what the vectors of the largest step read");
  uint32_t* to = args.planes;
  for (int64_t word = 0; word < args.words; ++word) {
    for (int64_t x = 0; x < args.kernel; ++x, to += args.plane_words) {
      const uint32_t* const from = args.row + x * args.dilation * args.words + word;
      if (step == 1) {
        CopyStrided<1>(from, step, args.out_width, to);
      } else if (step == 2) {
        CopyStrided<2>(from, step, args.out_width, to);
      } else if (step == 4) {
        CopyStrided<4>(from, step, args.out_width, to);
      } else if (step <= 16) {
        CopyStrided<0>(from, step, args.out_width, to);
      } else {
        for (int64_t i = 0; i < args.out_width; ++i) to[i] = from[i * step];
      }
    }
  }
}

// Adds the mismatches of one word of a window to `sums`; kFirst: overwrites `sums` with them.
template <bool kFirst, int kChannels, int kVectors>
__attribute__((always_inline)) inline void AddWord(const uint32_t* input, const uint32_t* weights,
                                                   __m512i (&sums)[kChannels][kVectors]) {
  __m512i a[kVectors];
  UNROLL for (int v = 0; v < kVectors; ++v) a[v] = _mm512_loadu_si512(input + v * 16);
  UNROLL for (int c = 0; c < kChannels; ++c) {
    const __m512i word = _mm512_set1_epi32(static_cast<int>(weights[c]));
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m512i counts = _mm512_popcnt_epi32(_mm512_xor_si512(word, a[v]));
      // Keeps GCC from computing all differences first, which would spill registers, and from
      // copying the sums.
      if (kFirst) {
        sums[c][v] = counts;
        __asm__ volatile("" : "+v"(sums[c][v]));
      } else {
        __asm__ volatile("vpaddd %1, %0, %0" : "+v"(sums[c][v]) : "v"(counts));
      }
    }
  }
}

// A register tile of channels x vectors of 16 pixels. kWhole: no pixel is missing. words: the bits
// of 32 channels per pixel, in which the tile sets its own.
template <int kChannels, int kVectors, bool kWhole, Epilogue kEpilogue>
void ConvolveTile(const ConvolvePlanesArgs& args, int64_t channel, uint32_t* words) {
  const uint32_t* weights = args.weights + channel * args.words;
  __m512i sums[kChannels][kVectors];
  AddWord<true>(args.input + args.offsets[0], weights, sums);
  for (int64_t k = 1; k < args.words; ++k) {
    weights += kChannels;
    AddWord<false>(args.input + args.offsets[k], weights, sums);
  }
  // A local copy: the compiler can assume that no store changes it.
  const FinishFloatArgs finish = args.finish;
  __m512i patterns[kVectors];
  UNROLL for (int v = 0; v < kVectors; ++v) {
    patterns[v] = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(args.patterns + v * 16)));
  }
  const __mmask16 last_mask = FirstLanes(finish.pixels - (kVectors - 1) * 16);
  int64_t at = channel * finish.channel_stride;
  UNROLL for (int c = 0; c < kChannels; ++c) {
    const int64_t o = channel + c;
    const __m512 constant = _mm512_load_ps(args.constant + o * kMaxPatterns);
    const __m512 scale = _mm512_set1_ps(finish.scale[o]);
    const __m512 bias = _mm512_set1_ps(finish.bias[o]);
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __mmask16 mask =
          kWhole || v + 1 < kVectors ? static_cast<__mmask16>(0xffff) : last_mask;
      const __m512 dot =  // exact
          _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), _mm512_cvtepi32_ps(sums[c][v]),
                           _mm512_permutexvar_ps(patterns[v], constant));
      __m512 value = _mm512_add_ps(_mm512_mul_ps(dot, scale), bias);
      if (kEpilogue == Epilogue::kResidual) {
        const float* const residual = finish.residual + at + v * 16;
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, residual));
      } else if (kEpilogue == Epilogue::kFactor) {
        value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, finish.factor + v * 16));
      }
      if (kEpilogue != Epilogue::kResidual || finish.out != nullptr) {
        _mm512_mask_storeu_ps(finish.out + at + v * 16, mask, value);
      }
      if (kEpilogue == Epilogue::kResidual && finish.bits != nullptr) {
        const __m512 threshold = _mm512_set1_ps(finish.threshold[o]);
        const __mmask16 above = _mm512_cmp_ps_mask(value, threshold, _CMP_GE_OQ);
        uint32_t* const word = words + o / 32 * kTilePixels + v * 16;
        const __m512i bits = _mm512_load_si512(word);
        const __m512i bit = _mm512_set1_epi32(static_cast<int>(1u << (o % 32)));
        _mm512_store_si512(word, _mm512_mask_or_epi32(bits, above, bits, bit));
      }
    }
    at += finish.channel_stride;
  }
}

template <int kVectors, bool kWhole, Epilogue kEpilogue>
void ConvolveVectors(const ConvolvePlanesArgs& args, uint32_t* words) {
  const int64_t channels = args.finish.channels;
  int64_t channel = 0;
  for (; channel + kPlaneChannels <= channels; channel += kPlaneChannels) {
    ConvolveTile<kPlaneChannels, kVectors, kWhole, kEpilogue>(args, channel, words);
  }
  switch (channels - channel) {
    case 5:
      return ConvolveTile<5, kVectors, kWhole, kEpilogue>(args, channel, words);
    case 4:
      return ConvolveTile<4, kVectors, kWhole, kEpilogue>(args, channel, words);
    case 3:
      return ConvolveTile<3, kVectors, kWhole, kEpilogue>(args, channel, words);
    case 2:
      return ConvolveTile<2, kVectors, kWhole, kEpilogue>(args, channel, words);
    case 1:
      return ConvolveTile<1, kVectors, kWhole, kEpilogue>(args, channel, words);
  }
}

template <Epilogue kEpilogue>
void ConvolveEpilogue(const ConvolvePlanesArgs& args, uint32_t* words) {
  if (args.finish.pixels == 64) return ConvolveVectors<4, true, kEpilogue>(args, words);
  switch ((args.finish.pixels + 15) / 16) {
    case 4:
      return ConvolveVectors<4, false, kEpilogue>(args, words);
    case 3:
      return ConvolveVectors<3, false, kEpilogue>(args, words);
    case 2:
      return ConvolveVectors<2, false, kEpilogue>(args, words);
    case 1:
      return ConvolveVectors<1, false, kEpilogue>(args, words);
  }
}

void ConvolvePlanes(const ConvolvePlanesArgs& args) {
  static_assert(kTilePixels == 64 && kPlaneChannels == 6 && kMaxPatterns == 16,
                "what the tiles above are made for");
  const FinishFloatArgs& finish = args.finish;
  if (finish.residual == nullptr && finish.factor == nullptr) {
    return ConvolveEpilogue<Epilogue::kBias>(args, nullptr);
  }
  if (finish.residual == nullptr) return ConvolveEpilogue<Epilogue::kFactor>(args, nullptr);
  alignas(64) uint32_t words[kTileChannels / 32 * kTilePixels] = {};
  ConvolveEpilogue<Epilogue::kResidual>(args, words);
  if (finish.bits == nullptr) return;
  for (int64_t word = 0; word * 32 < finish.channels; ++word) {
    for (int64_t p = 0; p < finish.pixels; p += 16) {
      StoreColumn(_mm512_load_si512(words + word * kTilePixels + p), finish.pixels - p,
                  finish.bits + p * finish.bits_stride + word, finish.bits_stride);
    }
  }
}

// Loop parameters of binarize.inl, explained there.
constexpr int kBinarizeVectors = 16;
constexpr int kAbsMeanVectors = 8;
constexpr int kFewVectors = 4;
constexpr bool kMeansRows = true;

Words AddPairs(Words sums, Words w, const uint32_t* x, int p) {
  return _mm512_dpwssd_epi32(sums, w, SplatWord(x[p]));
}

#include "kernels/generic/binarize.inl"
#include "kernels/generic/direct_conv.inl"
#include "kernels/generic/direct_pairs.inl"
#include "kernels/generic/finish.inl"
#include "kernels/generic/finish_transposed.inl"
#include "kernels/generic/linear.inl"

constexpr DirectKernels kDirect = MakeDirect(&kPairs);

constexpr Kernels MakeKernels() {
  Kernels kernels;
  kernels.channel_block = kBlock;
  kernels.granule = kGranule;
  kernels.blocks_together = true;
  kernels.accumulate = Accumulate;
  kernels.accumulate_bits = AccumulateBits;
  kernels.finish_float = FinishFloat;
  kernels.finish_rows = FinishRows;
  kernels.binarize = Binarize;
  kernels.binarize_abs_mean = BinarizeAbsMean;
  kernels.binarize_rows = BinarizeRows;
  kernels.binarize_bytes = BinarizeBytes;
  kernels.direct = &kDirect;
  kernels.linear = &kLinear;
  kernels.split_row = SplitRow;
  kernels.convolve_planes = ConvolvePlanes;
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr Kernels kAvx512Kernels = MakeKernels();

}  // namespace bnn_deploy
