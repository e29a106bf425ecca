// AVX-512 with VPOPCNTDQ. A vector holds one word of 16 output channels; the activation word is
// broadcast from memory, so a step of 512 binary multiply-accumulates is vpxord + vpopcntd +
// vpaddd. On the four 512-bit pipes of Zen 5 that allows 683 per cycle; the loop below reaches 660
// with weights in the first-level cache. A tile of 6 pixels x 4 vectors keeps its 24 sums in
// registers and needs 10 loads for 72 operations.

#include <immintrin.h>

#include "micro_kernel.h"

// Register tiles are arrays, which stay in registers only when GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 8")

namespace bnn_deploy {
namespace {

constexpr int64_t kBlock = 16;      // output channels per vector
constexpr int64_t kGranule = 4;     // bytes of a channel side by side
constexpr int kMaxPixels = 6;       // pixels per register tile
constexpr int64_t kMaxVectors = 4;  // vectors per register tile

template <int kPixels, int kVectors>
void AccumulateTile(const AccumulateArgs& args, int64_t pixel, int64_t block) {
  const int64_t block_size = args.runs * args.run_words * kBlock;
  const uint32_t* weights = args.weights + block * block_size;
  __m512i sums[kPixels][kVectors];
  UNROLL for (int p = 0; p < kPixels; ++p) {
    UNROLL for (int v = 0; v < kVectors; ++v) sums[p][v] = _mm512_setzero_si512();
  }
  for (int64_t run = 0; run < args.runs; ++run) {
    const uint32_t* a[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) a[p] = args.windows[pixel + p] + args.run_offsets[run];
    for (int64_t k = 0; k < args.run_words; ++k) {
      __m512i w[kVectors];
      UNROLL for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(weights + v * block_size);
      weights += kBlock;
      UNROLL for (int p = 0; p < kPixels; ++p) {
        const __m512i word = _mm512_set1_epi32(static_cast<int>(a[p][k]));
        UNROLL for (int v = 0; v < kVectors; ++v) {
          const __m512i differing = _mm512_xor_si512(word, w[v]);
          sums[p][v] = _mm512_add_epi32(sums[p][v], _mm512_popcnt_epi32(differing));
        }
      }
    }
  }
  int32_t* out = args.mismatches + pixel * kTileChannels + block * kBlock;
  UNROLL for (int p = 0; p < kPixels; ++p) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      _mm512_store_si512(out + p * kTileChannels + v * kBlock, sums[p][v]);
    }
  }
}

template <int kVectors>
void AccumulateVectors(const AccumulateArgs& args, int64_t block) {
  int64_t pixel = 0;
  for (; pixel + kMaxPixels <= args.pixels; pixel += kMaxPixels) {
    AccumulateTile<kMaxPixels, kVectors>(args, pixel, block);
  }
  switch (args.pixels - pixel) {
    case 5:
      return AccumulateTile<5, kVectors>(args, pixel, block);
    case 4:
      return AccumulateTile<4, kVectors>(args, pixel, block);
    case 3:
      return AccumulateTile<3, kVectors>(args, pixel, block);
    case 2:
      return AccumulateTile<2, kVectors>(args, pixel, block);
    case 1:
      return AccumulateTile<1, kVectors>(args, pixel, block);
  }
}

void Accumulate(const AccumulateArgs& args) {
  static_assert(kMaxVectors * kBlock == kTileChannels, "a tile is one register tile wide");
  switch (args.blocks) {
    case 4:
      return AccumulateVectors<4>(args, 0);
    case 3:
      return AccumulateVectors<3>(args, 0);
    case 2:
      return AccumulateVectors<2>(args, 0);
    case 1:
      return AccumulateVectors<1>(args, 0);
  }
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

__m512 ScaledSums(const FinishFloatArgs& args, int64_t pixel, int64_t channel) {
  const __m512i mismatches = _mm512_load_si512(args.mismatches + pixel * kTileChannels + channel);
  const __m512i base = _mm512_load_si512(args.base[pixel] + channel);
  const __m512i sums = _mm512_sub_epi32(base, _mm512_slli_epi32(mismatches, 1));
  const __m512 scaled =
      _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_load_ps(args.scale + channel));
  return _mm512_add_ps(scaled, _mm512_load_ps(args.bias + channel));
}

// One block of up to 16 channels x 16 pixels. Rows past the last pixel repeat it and are masked.
template <bool kWhole>
void FinishBlock(const FinishFloatArgs& args, int64_t channel, int64_t pixel) {
  const int64_t pixels = args.pixels - pixel;
  const int64_t channels = args.channels - channel;
  __m512 rows[16];
  for (int i = 0; i < 16; ++i) {
    rows[i] = ScaledSums(args, pixel + (kWhole || i < pixels ? i : pixels - 1), channel);
  }
  Transpose16x16(rows);
  float* out = args.out + channel * args.channel_stride + pixel;
  if (kWhole) {
    for (int i = 0; i < 16; ++i) _mm512_storeu_ps(out + i * args.channel_stride, rows[i]);
    return;
  }
  const __mmask16 mask = static_cast<__mmask16>(pixels < 16 ? (1u << pixels) - 1 : 0xffffu);
  for (int i = 0; i < 16 && i < channels; ++i) {
    _mm512_mask_storeu_ps(out + i * args.channel_stride, mask, rows[i]);
  }
}

void FinishFloat(const FinishFloatArgs& args) {
  for (int64_t channel = 0; channel < args.channels; channel += 16) {
    const int64_t channels = args.channels - channel;
    if (args.pixels == 1 && args.channel_stride == 1) {  // fully connected: rows are channels
      const __mmask16 mask = static_cast<__mmask16>(channels < 16 ? (1u << channels) - 1 : 0xffffu);
      _mm512_mask_storeu_ps(args.out + channel, mask, ScaledSums(args, 0, channel));
      continue;
    }
    for (int64_t pixel = 0; pixel < args.pixels; pixel += 16) {
      if (channels >= 16 && args.pixels - pixel >= 16) {
        FinishBlock<true>(args, channel, pixel);
      } else {
        FinishBlock<false>(args, channel, pixel);
      }
    }
  }
}

void FinishBits(const FinishBitsArgs& args) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    const int32_t* mismatches = args.mismatches + p * kTileChannels;
    const int32_t* limit = args.limit[p];
    for (int64_t word = 0; word < args.words; ++word) {
      const __mmask16 low = _mm512_cmple_epi32_mask(_mm512_load_si512(mismatches + word * 32),
                                                    _mm512_load_si512(limit + word * 32));
      const __mmask16 high = _mm512_cmple_epi32_mask(_mm512_load_si512(mismatches + word * 32 + 16),
                                                     _mm512_load_si512(limit + word * 32 + 16));
      args.out[p * args.pixel_stride + word] = _mm512_kunpackw(high, low);
    }
  }
}

// Lane i of a vector collects the word of pixel i, one channel (bit) at a time. kVectors vectors
// are filled together, so that each plane is read in pieces of several cache lines.
template <int kVectors>
void BinarizeVectors(const BinarizeArgs& args, int64_t pixel, __mmask16 mask) {
  const int64_t words = (args.channels + 31) / 32;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    __m512i bits[kVectors];
    for (int v = 0; v < kVectors; ++v) bits[v] = _mm512_setzero_si512();
    __m512i bit = _mm512_set1_epi32(1);
    for (int64_t c = begin; c < end; ++c) {
      const float* plane = args.planes + c * args.channel_stride + pixel;
      const __m512 threshold = _mm512_set1_ps(args.threshold[c]);
      for (int v = 0; v < kVectors; ++v) {
        const __m512 x = _mm512_maskz_loadu_ps(mask, plane + v * 16);
        const __mmask16 above = _mm512_cmp_ps_mask(x, threshold, _CMP_GE_OQ);
        bits[v] = _mm512_mask_or_epi32(bits[v], above, bits[v], bit);
      }
      bit = _mm512_slli_epi32(bit, 1);
    }
    uint32_t* out = args.out + pixel * words + word;
    for (int v = 0; v < kVectors; ++v) {
      const __m512i offsets = _mm512_mullo_epi32(
          _mm512_set1_epi32(static_cast<int>(words)),
          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
      _mm512_mask_i32scatter_epi32(out + v * 16 * words, mask, offsets, bits[v], 4);
    }
  }
}

void Binarize(const BinarizeArgs& args) {
  int64_t pixel = 0;
  for (; pixel + 64 <= args.pixels; pixel += 64) BinarizeVectors<4>(args, pixel, 0xffff);
  for (; pixel + 16 <= args.pixels; pixel += 16) BinarizeVectors<1>(args, pixel, 0xffff);
  if (pixel < args.pixels) {
    BinarizeVectors<1>(args, pixel, static_cast<__mmask16>((1u << (args.pixels - pixel)) - 1));
  }
}

}  // namespace

extern const Isa kIsaAvx512 = {
    "avx512", kBlock, kGranule, Accumulate, FinishFloat, FinishBits, Binarize,
};

}  // namespace bnn_deploy
