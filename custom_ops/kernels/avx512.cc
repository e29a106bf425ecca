// AVX-512 with VPOPCNTDQ. A vector holds one word of 16 output channels; the activation word is
// broadcast from memory, so a step of 512 binary multiply-accumulates is vpxord + vpopcntd +
// vpaddd. On the four 512-bit pipes of Zen 5 that allows 683 per cycle; the loop below reaches 660
// with weights in the first-level cache. A tile of 6 pixels x 4 vectors keeps its 24 sums in
// registers and needs 10 loads for 72 operations.
//
// Large images with float output go the other way round (ConvolvePlanes): a vector holds one word
// of 16 pixels, the weight word is broadcast, and the sums are rows of the output planes as they
// are. The finish that transposes took 18 % of a 3x3 convolution of 64 channels at 56x56.

#include <immintrin.h>

#include "kernels/micro_kernel.h"

// Register tiles are arrays, which stay in registers only when GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 16")

namespace bnn_deploy {
namespace {

constexpr int64_t kBlock = 16;      // output channels per vector
constexpr int64_t kGranule = 4;     // bytes of a channel side by side
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

// What becomes of the sums of a register tile.
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

// rows[i][j] becomes rows[j][i]: 32-bit pairs, then 64-bit pairs, then 128-bit lanes, twice.
__attribute__((always_inline)) inline void Transpose16x16(__m512 rows[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(t[i + j]);
      const __m512d high = _mm512_castps_pd(t[i + j + 2]);
      rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_f32x4(rows[i + j], rows[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_f32x4(rows[i + j], rows[i + j + 4], 0xdd);
    }
  }
  for (int j = 0; j < 8; ++j) {
    rows[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    rows[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
  }
}

// The first `count` lanes: none for a count below 0, all for one above 16.
__mmask16 FirstLanes(int64_t count) {
  return static_cast<__mmask16>(count < 0 ? 0 : count < 16 ? (1u << count) - 1 : 0xffffu);
}

// Lane p goes to out[p * pixel_stride].
void StoreColumn(__m512i words, __mmask16 mask, uint32_t* out, int64_t pixel_stride) {
  const __m512i offsets =
      _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int>(pixel_stride)),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  _mm512_mask_i32scatter_epi32(out, mask, offsets, words, 4);
}

// The values, without a residual, of 16 channels of a pixel.
__m512 ScaledSums(const FinishFloatArgs& args, int64_t pixel, int64_t channel) {
  const __m512 sums =
      _mm512_cvtepi32_ps(_mm512_load_si512(args.sums + pixel * kTileChannels + channel));
  const __m512 products = _mm512_set1_ps(args.products[pixel]);
  const __m512 dot = _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), sums, products);  // exact
  const __m512 scaled = _mm512_mul_ps(dot, _mm512_load_ps(args.scale + channel));
  return _mm512_add_ps(scaled, _mm512_load_ps(args.bias + channel));
}

// A block of up to 16 channels x 16 pixels. Returns the bits of the channels for each pixel.
template <bool kWhole, bool kResidual>
__m512i FinishBlock(const FinishFloatArgs& args, int64_t channel, int64_t pixel) {
  const int64_t pixels = args.pixels - pixel;
  const int64_t channels = args.channels - channel;
  __m512 rows[16];
  // Rows past the last pixel repeat it and are masked.
  for (int i = 0; i < 16; ++i) {
    rows[i] = ScaledSums(args, pixel + (kWhole || i < pixels ? i : pixels - 1), channel);
  }
  Transpose16x16(rows);
  const int64_t offset = channel * args.channel_stride + pixel;
  const __mmask16 mask = kWhole ? 0xffff : FirstLanes(pixels);
  if (kResidual) {
    const float* const residual = args.residual + offset;
    for (int i = 0; i < 16 && (kWhole || i < channels); ++i) {
      const __m512 other = _mm512_maskz_loadu_ps(mask, residual + i * args.channel_stride);
      rows[i] = _mm512_add_ps(rows[i], other);
    }
  } else if (args.factor != nullptr) {
    const __m512 factor = _mm512_maskz_loadu_ps(mask, args.factor + pixel);
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_mul_ps(rows[i], factor);
  }
  if (!kResidual || args.out != nullptr) {
    float* const out = args.out + offset;
    for (int i = 0; i < 16 && (kWhole || i < channels); ++i) {
      _mm512_mask_storeu_ps(out + i * args.channel_stride, mask, rows[i]);
    }
  }
  __m512i bits = _mm512_setzero_si512();
  if (kResidual && args.bits != nullptr) {
    for (int i = 0; i < 16; ++i) {
      const __m512 threshold = _mm512_set1_ps(args.threshold[channel + i]);
      const __mmask16 above = _mm512_cmp_ps_mask(rows[i], threshold, _CMP_GE_OQ);
      bits = _mm512_mask_or_epi32(bits, above, bits, _mm512_set1_epi32(1 << i));
    }
  }
  return bits;
}

template <bool kResidual>
void FinishTile(const FinishFloatArgs& args) {
  for (int64_t channel = 0; channel < args.channels; channel += 32) {
    for (int64_t pixel = 0; pixel < args.pixels; pixel += 16) {
      const int64_t pixels = args.pixels - pixel < 16 ? args.pixels - pixel : 16;
      __m512i bits = _mm512_setzero_si512();
      for (int64_t half = 0; half < 32 && channel + half < args.channels; half += 16) {
        const bool whole = pixels == 16 && args.channels - channel - half >= 16;
        const __m512i half_bits = whole
                                      ? FinishBlock<true, kResidual>(args, channel + half, pixel)
                                      : FinishBlock<false, kResidual>(args, channel + half, pixel);
        bits = _mm512_or_si512(bits, half == 0 ? half_bits : _mm512_slli_epi32(half_bits, 16));
      }
      if (kResidual && args.bits != nullptr) {
        StoreColumn(bits, FirstLanes(pixels), args.bits + pixel * args.bits_stride + channel / 32,
                    args.bits_stride);
      }
    }
  }
}

void FinishFloat(const FinishFloatArgs& args) {
  if (args.residual != nullptr) return FinishTile<true>(args);
  if (args.pixels > 1 || args.channel_stride > 1 || args.factor != nullptr) {
    return FinishTile<false>(args);
  }
  for (int64_t channel = 0; channel < args.channels; channel += 16) {  // fully connected
    _mm512_mask_storeu_ps(args.out + channel, FirstLanes(args.channels - channel),
                          ScaledSums(args, 0, channel));
  }
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

// Adds the mismatches of one word of a window; kFirst: to nothing.
template <bool kFirst, int kChannels, int kVectors>
__attribute__((always_inline)) inline void AddWord(const uint32_t* input, const uint32_t* weights,
                                                   __m512i (&sums)[kChannels][kVectors]) {
  __m512i a[kVectors];
  UNROLL for (int v = 0; v < kVectors; ++v) a[v] = _mm512_loadu_si512(input + v * 16);
  UNROLL for (int c = 0; c < kChannels; ++c) {
    const __m512i word = _mm512_set1_epi32(static_cast<int>(weights[c]));
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m512i counts = _mm512_popcnt_epi32(_mm512_xor_si512(word, a[v]));
      // Keeps GCC from making all differences first, for which there are no registers, and from
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

// A register tile of channels x vectors of 16 pixels. kWhole: all of them are there. words: the
// bits of 32 channels per pixel, to which those of this tile are added.
template <int kChannels, int kVectors, bool kWhole, bool kResidual>
void ConvolveTile(const ConvolvePlanesArgs& args, int64_t channel, uint32_t* words) {
  const uint32_t* weights = args.weights + channel * args.words;
  __m512i sums[kChannels][kVectors];
  AddWord<true>(args.input + args.offsets[0], weights, sums);
  for (int64_t k = 1; k < args.words; ++k) {
    weights += kChannels;
    AddWord<false>(args.input + args.offsets[k], weights, sums);
  }
  // A local copy, as far as the compiler knows no store changes it.
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
      if (kResidual) {
        const float* const residual = finish.residual + at + v * 16;
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, residual));
      } else if (finish.factor != nullptr) {
        value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, finish.factor + v * 16));
      }
      if (!kResidual || finish.out != nullptr) {
        _mm512_mask_storeu_ps(finish.out + at + v * 16, mask, value);
      }
      if (kResidual && finish.bits != nullptr) {
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

template <int kVectors, bool kWhole, bool kResidual>
void ConvolveVectors(const ConvolvePlanesArgs& args, uint32_t* words) {
  const int64_t channels = args.finish.channels;
  int64_t channel = 0;
  for (; channel + kPlaneChannels <= channels; channel += kPlaneChannels) {
    ConvolveTile<kPlaneChannels, kVectors, kWhole, kResidual>(args, channel, words);
  }
  switch (channels - channel) {
    case 5:
      return ConvolveTile<5, kVectors, kWhole, kResidual>(args, channel, words);
    case 4:
      return ConvolveTile<4, kVectors, kWhole, kResidual>(args, channel, words);
    case 3:
      return ConvolveTile<3, kVectors, kWhole, kResidual>(args, channel, words);
    case 2:
      return ConvolveTile<2, kVectors, kWhole, kResidual>(args, channel, words);
    case 1:
      return ConvolveTile<1, kVectors, kWhole, kResidual>(args, channel, words);
  }
}

template <bool kResidual>
void ConvolveResidual(const ConvolvePlanesArgs& args, uint32_t* words) {
  if (args.finish.pixels == 64) return ConvolveVectors<4, true, kResidual>(args, words);
  switch ((args.finish.pixels + 15) / 16) {
    case 4:
      return ConvolveVectors<4, false, kResidual>(args, words);
    case 3:
      return ConvolveVectors<3, false, kResidual>(args, words);
    case 2:
      return ConvolveVectors<2, false, kResidual>(args, words);
    case 1:
      return ConvolveVectors<1, false, kResidual>(args, words);
  }
}

void ConvolvePlanes(const ConvolvePlanesArgs& args) {
  static_assert(kTilePixels == 64 && kPlaneChannels == 6 && kMaxPatterns == 16,
                "what the tiles above are made for");
  const FinishFloatArgs& finish = args.finish;
  if (finish.residual == nullptr) return ConvolveResidual<false>(args, nullptr);
  alignas(64) uint32_t words[kTileChannels / 32 * kTilePixels] = {};
  ConvolveResidual<true>(args, words);
  if (finish.bits == nullptr) return;
  for (int64_t word = 0; word * 32 < finish.channels; ++word) {
    for (int64_t p = 0; p < finish.pixels; p += 16) {
      StoreColumn(_mm512_load_si512(words + word * kTilePixels + p), FirstLanes(finish.pixels - p),
                  finish.bits + p * finish.bits_stride + word, finish.bits_stride);
    }
  }
}

// Lane i of a vector collects the word of pixel i, one channel (bit) at a time. kVectors vectors
// are filled together: the longer the piece of a plane that is read at once, the less the planes
// get in each other's way in the caches. kWhole: there are 16 * kVectors pixels.
template <int kVectors, bool kWhole>
void BinarizeVectors(const BinarizeArgs& args, int64_t pixel) {
  const int64_t pixels = kWhole ? 16 * kVectors : args.pixels - pixel;
  const int64_t words = (args.channels + 31) / 32;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    __m512i bits[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) bits[v] = _mm512_setzero_si512();
    __m512i bit = _mm512_set1_epi32(1);
    for (int64_t c = begin; c < end; ++c) {
      const float* plane = args.planes + c * args.channel_stride + pixel;
      const __m512 threshold = _mm512_set1_ps(args.threshold[c]);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const __mmask16 mask = kWhole ? 0xffff : FirstLanes(pixels - v * 16);
        const __m512 x = _mm512_maskz_loadu_ps(mask, plane + v * 16);
        const __mmask16 above = _mm512_cmp_ps_mask(x, threshold, _CMP_GE_OQ);
        bits[v] = _mm512_mask_or_epi32(bits[v], above, bits[v], bit);
      }
      bit = _mm512_slli_epi32(bit, 1);
    }
    uint32_t* const out = args.out + pixel * words + word;
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __mmask16 mask = kWhole ? 0xffff : FirstLanes(pixels - v * 16);
      StoreColumn(bits[v], mask, out + v * 16 * words, words);
    }
  }
}

void Binarize(const BinarizeArgs& args) {
  int64_t pixel = 0;
  for (; pixel + 256 <= args.pixels; pixel += 256) BinarizeVectors<16, true>(args, pixel);
  for (; pixel + 64 <= args.pixels; pixel += 64) BinarizeVectors<4, true>(args, pixel);
  if (args.pixels - pixel > 16) {
    BinarizeVectors<4, false>(args, pixel);
  } else if (args.pixels > pixel) {
    BinarizeVectors<1, false>(args, pixel);
  }
}

__m512 AbsoluteTerms(__m512 x, __m512 scale, __m512 shift) {
  return _mm512_abs_ps(_mm512_add_ps(_mm512_mul_ps(x, scale), shift));
}

// As BinarizeVectors, with a sum of the terms beside the bits. The sum of 32 channels is added to
// what the words before have left in `mean`.
template <int kVectors, bool kWhole>
void BinarizeAbsMeanVectors(const BinarizeAbsMeanArgs& args, int64_t pixel) {
  const int64_t pixels = kWhole ? 16 * kVectors : args.pixels - pixel;
  const int64_t words = (args.channels + 31) / 32;
  const __m512 count = _mm512_set1_ps(static_cast<float>(args.channels));
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    __m512i bits[kVectors];
    __m512 sums[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) {
      bits[v] = _mm512_setzero_si512();
      sums[v] = _mm512_setzero_ps();
    }
    __m512i bit = _mm512_set1_epi32(1);
    for (int64_t c = begin; c < end; ++c) {
      const float* plane = args.planes + c * args.channel_stride + pixel;
      const __m512 threshold = _mm512_set1_ps(args.threshold[c]);
      const __m512 scale = _mm512_set1_ps(args.scale[c]);
      const __m512 shift = _mm512_set1_ps(args.shift[c]);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const __mmask16 mask = kWhole ? 0xffff : FirstLanes(pixels - v * 16);
        const __m512 x = _mm512_maskz_loadu_ps(mask, plane + v * 16);
        const __mmask16 above = _mm512_cmp_ps_mask(x, threshold, _CMP_GE_OQ);
        bits[v] = _mm512_mask_or_epi32(bits[v], above, bits[v], bit);
        sums[v] = _mm512_add_ps(sums[v], AbsoluteTerms(x, scale, shift));
      }
      bit = _mm512_slli_epi32(bit, 1);
    }
    uint32_t* const out = args.out + pixel * words + word;
    float* const mean = args.mean + pixel;
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __mmask16 mask = kWhole ? 0xffff : FirstLanes(pixels - v * 16);
      StoreColumn(bits[v], mask, out + v * 16 * words, words);
      if (word > 0) sums[v] = _mm512_add_ps(sums[v], _mm512_maskz_loadu_ps(mask, mean + v * 16));
      if (word + 1 == words) sums[v] = _mm512_div_ps(sums[v], count);
      _mm512_mask_storeu_ps(mean + v * 16, mask, sums[v]);
    }
  }
}

// The bits of the first `rest` channels, fewer than 32.
uint32_t BinarizeTail(const float* x, const float* threshold, int64_t rest) {
  const uint32_t lanes = (1u << rest) - 1;
  const auto low = static_cast<__mmask16>(lanes);
  const auto high = static_cast<__mmask16>(lanes >> 16);
  const __mmask16 first = _mm512_mask_cmp_ps_mask(
      low, _mm512_maskz_loadu_ps(low, x), _mm512_maskz_loadu_ps(low, threshold), _CMP_GE_OQ);
  const __mmask16 second =
      _mm512_mask_cmp_ps_mask(high, _mm512_maskz_loadu_ps(high, x + 16),
                              _mm512_maskz_loadu_ps(high, threshold + 16), _CMP_GE_OQ);
  return _mm512_kunpackw(second, first);
}

void BinarizeRows(const BinarizeRowsArgs& args) {
  const int64_t whole = args.channels / 32;
  const int64_t rest = args.channels % 32;
  const float* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p) {
    const float* threshold = args.threshold;
    for (int64_t word = 0; word < whole; ++word, x += 32, threshold += 32) {
      const __mmask16 first =
          _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_loadu_ps(threshold), _CMP_GE_OQ);
      const __mmask16 second =
          _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(threshold + 16), _CMP_GE_OQ);
      *out++ = _mm512_kunpackw(second, first);
    }
    if (rest > 0) *out++ = BinarizeTail(x, threshold, rest);
    x += rest;
  }
}

// The mean of a row of channels.
float AbsMeanRow(const BinarizeAbsMeanArgs& args) {
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t c = 0; c < args.channels; c += 32) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = c + half * 16;
      const __mmask16 mask = FirstLanes(args.channels - at);
      const __m512 x = _mm512_maskz_loadu_ps(mask, args.planes + at);
      const __m512 scale = _mm512_maskz_loadu_ps(mask, args.scale + at);
      const __m512 shift = _mm512_maskz_loadu_ps(mask, args.shift + at);
      sums[half] = _mm512_add_ps(sums[half], AbsoluteTerms(x, scale, shift));
    }
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) / static_cast<float>(args.channels);
}

void BinarizeAbsMean(const BinarizeAbsMeanArgs& args) {
  if (args.pixels == 1 && args.channel_stride == 1) {  // fully connected
    BinarizeRows({args.planes, args.threshold, args.channels, 1, args.out});
    *args.mean = AbsMeanRow(args);
    return;
  }
  int64_t pixel = 0;
  for (; pixel + 128 <= args.pixels; pixel += 128) BinarizeAbsMeanVectors<8, true>(args, pixel);
  for (; pixel + 64 <= args.pixels; pixel += 64) BinarizeAbsMeanVectors<4, true>(args, pixel);
  if (args.pixels - pixel > 16) {
    BinarizeAbsMeanVectors<4, false>(args, pixel);
  } else if (args.pixels > pixel) {
    BinarizeAbsMeanVectors<1, false>(args, pixel);
  }
}

void BinarizeBytes(const BinarizeBytesArgs& args) {
  const uint8_t* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t begin = 0; begin < args.channels; begin += 64) {
      const int64_t rest = args.channels - begin;
      const __mmask64 lanes = rest < 64 ? (__mmask64{1} << rest) - 1 : ~__mmask64{0};
      const __m512i value = _mm512_maskz_loadu_epi8(lanes, x + begin);
      const uint64_t reached =
          _mm512_mask_cmpge_epu8_mask(lanes, value, _mm512_load_si512(args.level + begin));
      *out++ = static_cast<uint32_t>(reached) & args.reachable[begin / 32];
      if (rest > 32) *out++ = static_cast<uint32_t>(reached >> 32) & args.reachable[begin / 32 + 1];
    }
    x += args.channels;
  }
}

}  // namespace

extern const Isa kIsaAvx512 = {
    "avx512",    kBlock,   kGranule,        false,        true,          Accumulate, AccumulateBits,
    FinishFloat, Binarize, BinarizeAbsMean, BinarizeRows, BinarizeBytes, SplitRow,   ConvolvePlanes,
    nullptr,     0,
};

}  // namespace bnn_deploy
