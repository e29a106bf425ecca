// AVX2. There is no vector population count, so counts are looked up, but not per nibble of
// xor(a, w): a 16-entry table row holds the mismatches of one activation nibble with every weight
// nibble, and vpshufb looks up 32 channels in it at once. A vector holds one byte of 32 output
// channels; its two nibbles are split once for all pixels. A step of 256 binary
// multiply-accumulates is then 2 vpshufb + 2 vpaddb, where xor, two lookups and their masks would
// be 8 operations. Byte sums are widened before they can overflow. A tile of 4 pixels x 2 vectors
// fills the 16 registers.

#include <immintrin.h>

#include "kernels/micro_kernel.h"

// Register tiles are arrays: they stay in registers only if GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 8")

namespace bnn_deploy {
namespace {

#include "kernels/vectors/avx2.inl"

constexpr int64_t kBlock = 32;       // output channels per vector
constexpr int64_t kGranule = 1;      // contiguous bytes of a channel
constexpr int kMaxPixels = 4;        // pixels per register tile
constexpr int kMaxVectors = 2;       // vectors per register tile
constexpr int64_t kMaxBytes = 28;    // 28 * 8 bits still fit into a byte lane, and are 7 words
constexpr int64_t kMaxWords = 2040;  // 2040 * 32 bits still fit into a 16-bit lane

// counts[a][w] = popcount(a ^ w) of two nibbles.
struct NibbleMismatches {
  alignas(64) uint8_t counts[16][16];
};

constexpr NibbleMismatches CountNibbleMismatches() {
  NibbleMismatches table{};
  for (int a = 0; a < 16; ++a) {
    for (int w = 0; w < 16; ++w) {
      for (int bits = a ^ w; bits != 0; bits &= bits - 1) ++table.counts[a][w];
    }
  }
  return table;
}

constexpr NibbleMismatches kNibbleMismatches = CountNibbleMismatches();

// The table row at a byte offset, in both 128-bit halves.
__m256i TableRow(unsigned offset) {
  const char* row = reinterpret_cast<const char*>(kNibbleMismatches.counts) + offset;
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(row)));
}

__m256i LoadSums(const int32_t* values) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
}

void AddTo(int32_t* out, __m128i sums) {
  __m256i* const to = reinterpret_cast<__m256i*>(out);
  _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), _mm256_cvtepu16_epi32(sums)));
}

template <int kPixels, int kVectors>
void AccumulateTile(const AccumulateArgs& args, int64_t pixel) {
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(args.weights);
  int32_t* const out = args.sums + pixel * kTileChannels;
  const __m256i zero = _mm256_setzero_si256();
  for (int p = 0; p < kPixels; ++p) {
    const int32_t* const initial = args.initial[pixel + p] + args.initial_offset;
    for (int i = 0; i < kVectors * kBlock; i += 8) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + p * kTileChannels + i),
                         LoadSums(initial + i));
    }
  }
  // 16-bit sums: low[p][v] has channels 0-7 and 16-23 of vector v, high[p][v] channels 8-15 and
  // 24-31.
  __m256i low[kPixels][kVectors], high[kPixels][kVectors];
  int64_t words_in_sums = 0;
  const auto flush = [&] {
    UNROLL for (int p = 0; p < kPixels; ++p) {
      UNROLL for (int v = 0; v < kVectors; ++v) {
        if (words_in_sums > 0) {
          int32_t* const to = out + p * kTileChannels + v * kBlock;
          AddTo(to, _mm256_castsi256_si128(low[p][v]));
          AddTo(to + 8, _mm256_castsi256_si128(high[p][v]));
          AddTo(to + 16, _mm256_extracti128_si256(low[p][v], 1));
          AddTo(to + 24, _mm256_extracti128_si256(high[p][v], 1));
        }
        low[p][v] = high[p][v] = zero;
      }
    }
    words_in_sums = 0;
  };
  flush();
  for (int64_t run = 0; run < args.runs; ++run) {
    const uint8_t* a[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) {
      const uint32_t* const words = args.windows[pixel + p] + args.run_offsets[run];
      a[p] = reinterpret_cast<const uint8_t*>(words);
    }
    const int64_t run_bytes = args.run_words * 4;
    for (int64_t k = 0; k < run_bytes;) {
      const int64_t bytes = run_bytes - k < kMaxBytes ? run_bytes - k : kMaxBytes;
      if (words_in_sums + bytes / 4 > kMaxWords) flush();
      words_in_sums += bytes / 4;
      __m256i sums[kPixels][kVectors];
      UNROLL for (int p = 0; p < kPixels; ++p) {
        UNROLL for (int v = 0; v < kVectors; ++v) sums[p][v] = zero;
      }
      for (const int64_t end = k + bytes; k < end; ++k, weights += kVectors * kBlock) {
        const __m256i nibble = _mm256_set1_epi8(15);
        __m256i w0[kVectors], w1[kVectors];
        UNROLL for (int v = 0; v < kVectors; ++v) {
          const __m256i w =
              _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + v * kBlock));
          w0[v] = _mm256_and_si256(w, nibble);
          w1[v] = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        }
        UNROLL for (int p = 0; p < kPixels; ++p) {
          const unsigned byte = a[p][k];  // a nibble times 16 is the offset of its table row
          const __m256i row0 = TableRow((byte << 4) & 0xf0);
          const __m256i row1 = TableRow(byte & 0xf0);
          UNROLL for (int v = 0; v < kVectors; ++v) {
            const __m256i counts =
                _mm256_add_epi8(_mm256_shuffle_epi8(row0, w0[v]), _mm256_shuffle_epi8(row1, w1[v]));
            sums[p][v] = _mm256_add_epi8(sums[p][v], counts);
          }
        }
      }
      UNROLL for (int p = 0; p < kPixels; ++p) {
        UNROLL for (int v = 0; v < kVectors; ++v) {
          low[p][v] = _mm256_add_epi16(low[p][v], _mm256_unpacklo_epi8(sums[p][v], zero));
          high[p][v] = _mm256_add_epi16(high[p][v], _mm256_unpackhi_epi8(sums[p][v], zero));
        }
      }
    }
  }
  flush();
}

template <int kVectors>
void AccumulateVectors(const AccumulateArgs& args) {
  int64_t pixel = 0;
  for (; pixel + kMaxPixels <= args.pixels; pixel += kMaxPixels) {
    AccumulateTile<kMaxPixels, kVectors>(args, pixel);
  }
  for (; pixel < args.pixels; ++pixel) AccumulateTile<1, kVectors>(args, pixel);
}

void Accumulate(const AccumulateArgs& args) {
  static_assert(kMaxVectors * kBlock == kTileChannels, "a tile is one register tile wide");
  if (args.blocks == 2) {
    AccumulateVectors<2>(args);
  } else {
    AccumulateVectors<1>(args);
  }
}

void AccumulateBits(const AccumulateBitsArgs& args) {
  Accumulate(args.accumulate);
  for (int64_t p = 0; p < args.accumulate.pixels; ++p) {
    const int32_t* const sums = args.accumulate.sums + p * kTileChannels;
    for (int64_t block = 0; block < args.accumulate.blocks; ++block) {
      uint32_t bits = 0;
      for (int64_t i = 0; i < kBlock; i += 8) {
        const __m256 signs = _mm256_castsi256_ps(LoadSums(sums + block * kBlock + i));
        bits |= static_cast<uint32_t>(_mm256_movemask_ps(signs)) << i;
      }
      args.out[p * args.pixel_stride + block] = bits;
    }
  }
}

// Loop parameters of binarize.inl, explained there.
constexpr int kBinarizeVectors = 8;
constexpr int kAbsMeanVectors = 4;
constexpr int kFewVectors = 1;
constexpr bool kMeansRows = false;

#include "kernels/generic/binarize.inl"
#include "kernels/generic/finish.inl"
#include "kernels/generic/finish_transposed.inl"

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
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr Kernels kAvx2Kernels = MakeKernels();

}  // namespace bnn_deploy
