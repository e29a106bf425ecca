// AVX2. There is no vector population count, so counts are looked up, and not nibble by nibble of
// xor(a, w): a 16-entry table row holds the mismatches of one activation nibble with every weight
// nibble, and vpshufb looks up 32 channels of it at once. A vector holds one byte of 32 output
// channels; its two nibbles are split once for all pixels. A step of 256 binary
// multiply-accumulates is then 2 vpshufb + 2 vpaddb, where xor, two lookups and their masks would
// be 8 operations. Byte sums are widened before they can overflow. A tile of 4 pixels x 2 vectors
// fills the 16 registers.

#include <immintrin.h>

#include "micro_kernel.h"

// Register tiles are arrays, which stay in registers only when GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 8")

namespace bnn_deploy {
namespace {

constexpr int64_t kBlock = 32;       // output channels per vector
constexpr int64_t kGranule = 1;      // bytes of a channel side by side
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

// The table row at a byte offset, in both halves.
__m256i TableRow(unsigned offset) {
  const char* row = reinterpret_cast<const char*>(kNibbleMismatches.counts) + offset;
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(row)));
}

void AddTo(int32_t* out, __m128i sums) {
  __m256i* const to = reinterpret_cast<__m256i*>(out);
  _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), _mm256_cvtepu16_epi32(sums)));
}

template <int kPixels, int kVectors>
void AccumulateTile(const AccumulateArgs& args, int64_t pixel, int64_t block) {
  const int64_t block_size = args.runs * args.run_words * kBlock;
  const uint32_t* const first = args.weights + block * block_size;
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(first);
  const int64_t vector_stride = block_size * 4;
  int32_t* const out = args.mismatches + pixel * kTileChannels + block * kBlock;
  const __m256i zero = _mm256_setzero_si256();
  for (int p = 0; p < kPixels; ++p) {
    for (int i = 0; i < kVectors * kBlock; i += 8) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + p * kTileChannels + i), zero);
    }
  }
  // 16-bit sums: low[p][v] of the channels 0-7 and 16-23 of vector v, high[p][v] of the others.
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
      for (const int64_t end = k + bytes; k < end; ++k, weights += kBlock) {
        const __m256i nibble = _mm256_set1_epi8(15);
        __m256i w0[kVectors], w1[kVectors];
        UNROLL for (int v = 0; v < kVectors; ++v) {
          const __m256i w =
              _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + v * vector_stride));
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
void AccumulateVectors(const AccumulateArgs& args, int64_t block) {
  int64_t pixel = 0;
  for (; pixel + kMaxPixels <= args.pixels; pixel += kMaxPixels) {
    AccumulateTile<kMaxPixels, kVectors>(args, pixel, block);
  }
  for (; pixel < args.pixels; ++pixel) AccumulateTile<1, kVectors>(args, pixel, block);
}

void Accumulate(const AccumulateArgs& args) {
  static_assert(kMaxVectors * kBlock == kTileChannels, "a tile is one register tile wide");
  if (args.blocks == 2) {
    AccumulateVectors<2>(args, 0);
  } else {
    AccumulateVectors<1>(args, 0);
  }
}

// rows[i][j] becomes rows[j][i].
__attribute__((always_inline)) inline void Transpose8x8(__m256 rows[8]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      rows[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2f128_ps(rows[j], rows[j + 4], 0x20);
    t[j + 4] = _mm256_permute2f128_ps(rows[j], rows[j + 4], 0x31);
  }
  for (int j = 0; j < 8; ++j) rows[j] = t[j];
}

// All ones in the first `count` lanes, as the masked stores want it.
__m256i FirstLanes(int64_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
}

__m256i LoadInts(const int32_t* values) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
}

__m256 ScaledSums(const FinishFloatArgs& args, int64_t pixel, int64_t channel) {
  const __m256i mismatches = LoadInts(args.mismatches + pixel * kTileChannels + channel);
  const __m256i base = LoadInts(args.base[pixel] + channel);
  const __m256 sums = _mm256_cvtepi32_ps(_mm256_sub_epi32(base, _mm256_slli_epi32(mismatches, 1)));
  return _mm256_add_ps(_mm256_mul_ps(sums, _mm256_load_ps(args.scale + channel)),
                       _mm256_load_ps(args.bias + channel));
}

void FinishFloat(const FinishFloatArgs& args) {
  for (int64_t channel = 0; channel < args.channels; channel += 8) {
    const int64_t rest = args.channels - channel;
    const int64_t channels = rest < 8 ? rest : 8;
    float* out = args.out + channel * args.channel_stride;
    if (args.pixels == 1 && args.channel_stride == 1) {  // fully connected: rows are channels
      _mm256_maskstore_ps(out, FirstLanes(channels), ScaledSums(args, 0, channel));
      continue;
    }
    for (int64_t pixel = 0; pixel < args.pixels; pixel += 8) {
      const int64_t last = args.pixels - 1 - pixel;
      __m256 rows[8];
      // Rows past the last pixel repeat it; the mask keeps them from being stored.
      for (int i = 0; i < 8; ++i)
        rows[i] = ScaledSums(args, pixel + (i < last ? i : last), channel);
      Transpose8x8(rows);
      if (last >= 7) {
        for (int64_t i = 0; i < channels; ++i) {
          _mm256_storeu_ps(out + i * args.channel_stride + pixel, rows[i]);
        }
      } else {
        const __m256i mask = FirstLanes(last + 1);
        for (int64_t i = 0; i < channels; ++i) {
          _mm256_maskstore_ps(out + i * args.channel_stride + pixel, mask, rows[i]);
        }
      }
    }
  }
}

void FinishBits(const FinishBitsArgs& args) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    const int32_t* mismatches = args.mismatches + p * kTileChannels;
    for (int64_t word = 0; word < args.words; ++word) {
      uint32_t above = 0;
      for (int64_t i = 0; i < 32; i += 8) {
        const __m256i greater = _mm256_cmpgt_epi32(LoadInts(mismatches + word * 32 + i),
                                                   LoadInts(args.limit[p] + word * 32 + i));
        above |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(greater))) << i;
      }
      args.out[p * args.pixel_stride + word] = ~above;
    }
  }
}

// Lane i of a vector collects the word of pixel i, one channel (bit) at a time. kVectors vectors
// are filled together, so that each plane is read in pieces of several cache lines.
template <int kVectors>
void BinarizeVectors(const BinarizeArgs& args, int64_t pixel, int64_t pixels) {
  const int64_t words = (args.channels + 31) / 32;
  const __m256i mask = FirstLanes(pixels);
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    __m256i bits[kVectors];
    for (int v = 0; v < kVectors; ++v) bits[v] = _mm256_setzero_si256();
    __m256i bit = _mm256_set1_epi32(1);
    for (int64_t c = begin; c < end; ++c) {
      const float* plane = args.planes + c * args.channel_stride + pixel;
      const __m256 threshold = _mm256_set1_ps(args.threshold[c]);
      for (int v = 0; v < kVectors; ++v) {
        const __m256 x =
            kVectors == 1 ? _mm256_maskload_ps(plane, mask) : _mm256_loadu_ps(plane + v * 8);
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(x, threshold, _CMP_GE_OQ));
        bits[v] = _mm256_or_si256(bits[v], _mm256_and_si256(above, bit));
      }
      bit = _mm256_slli_epi32(bit, 1);
    }
    alignas(32) uint32_t column[kVectors * 8];
    for (int v = 0; v < kVectors; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(column + v * 8), bits[v]);
    }
    uint32_t* out = args.out + pixel * words + word;
    for (int64_t p = 0; p < pixels; ++p) out[p * words] = column[p];
  }
}

void Binarize(const BinarizeArgs& args) {
  int64_t pixel = 0;
  for (; pixel + 64 <= args.pixels; pixel += 64) BinarizeVectors<8>(args, pixel, 64);
  for (; pixel < args.pixels; pixel += 8) {
    BinarizeVectors<1>(args, pixel, args.pixels - pixel < 8 ? args.pixels - pixel : 8);
  }
}

}  // namespace

extern const Isa kIsaAvx2 = {
    "avx2", kBlock, kGranule, Accumulate, FinishFloat, FinishBits, Binarize,
};

}  // namespace bnn_deploy
