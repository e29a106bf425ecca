// AVX2. There is no vector population count, so counts are looked up, and not nibble by nibble of
// xor(a, w): a 16-entry table row holds the mismatches of one activation nibble with every weight
// nibble, and vpshufb looks up 32 channels of it at once. A vector holds one byte of 32 output
// channels; its two nibbles are split once for all pixels. A step of 256 binary
// multiply-accumulates is then 2 vpshufb + 2 vpaddb, where xor, two lookups and their masks would
// be 8 operations. Byte sums are widened before they can overflow. A tile of 4 pixels x 2 vectors
// fills the 16 registers.

#include <immintrin.h>

#include "kernels/micro_kernel.h"

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

__m256i LoadInts(const int32_t* values) {
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
                         LoadInts(initial + i));
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
        const __m256 signs = _mm256_castsi256_ps(LoadInts(sums + block * kBlock + i));
        bits |= static_cast<uint32_t>(_mm256_movemask_ps(signs)) << i;
      }
      args.out[p * args.pixel_stride + block] = bits;
    }
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

// The values, without a residual, of 8 channels of a pixel.
__m256 ScaledSums(const FinishFloatArgs& args, int64_t pixel, int64_t channel) {
  const __m256 sums = _mm256_cvtepi32_ps(LoadInts(args.sums + pixel * kTileChannels + channel));
  const __m256 products = _mm256_broadcast_ss(args.products + pixel);
  const __m256 dot = _mm256_sub_ps(products, _mm256_add_ps(sums, sums));  // exact
  return _mm256_add_ps(_mm256_mul_ps(dot, _mm256_load_ps(args.scale + channel)),
                       _mm256_load_ps(args.bias + channel));
}

// A block of up to 8 channels x 8 pixels. Returns the bits of the channels for each pixel.
template <bool kResidual, bool kFactor>
__m256i FinishBlock(const FinishFloatArgs& args, int64_t channel, int64_t pixel) {
  const int64_t last = args.pixels - 1 - pixel;
  const int64_t channels = args.channels - channel < 8 ? args.channels - channel : 8;
  __m256 rows[8];
  // Rows past the last pixel repeat it and are masked.
  for (int i = 0; i < 8; ++i) rows[i] = ScaledSums(args, pixel + (i < last ? i : last), channel);
  Transpose8x8(rows);
  const int64_t offset = channel * args.channel_stride + pixel;
  const __m256i mask = FirstLanes(last + 1);
  if (kResidual) {
    for (int64_t i = 0; i < channels; ++i) {
      const float* const residual = args.residual + offset + i * args.channel_stride;
      rows[i] = _mm256_add_ps(rows[i], _mm256_maskload_ps(residual, mask));
    }
  }
  if (kFactor) {
    const __m256 factor = _mm256_maskload_ps(args.factor + pixel, mask);
    for (int i = 0; i < 8; ++i) rows[i] = _mm256_mul_ps(rows[i], factor);
  }
  if (args.out != nullptr) {
    float* const out = args.out + offset;
    if (last >= 7) {
      for (int64_t i = 0; i < channels; ++i) {
        _mm256_storeu_ps(out + i * args.channel_stride, rows[i]);
      }
    } else {
      for (int64_t i = 0; i < channels; ++i) {
        _mm256_maskstore_ps(out + i * args.channel_stride, mask, rows[i]);
      }
    }
  }
  __m256i bits = _mm256_setzero_si256();
  if (kResidual && args.bits != nullptr) {
    for (int i = 0; i < 8; ++i) {
      const __m256 threshold = _mm256_broadcast_ss(args.threshold + channel + i);
      const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(rows[i], threshold, _CMP_GE_OQ));
      bits = _mm256_or_si256(bits, _mm256_and_si256(above, _mm256_set1_epi32(1 << i)));
    }
  }
  return bits;
}

template <bool kResidual, bool kFactor>
void FinishTile(const FinishFloatArgs& args) {
  for (int64_t channel = 0; channel < args.channels; channel += 32) {
    for (int64_t pixel = 0; pixel < args.pixels; pixel += 8) {
      __m256i bits = _mm256_setzero_si256();
      for (int64_t i = 0; i < 32 && channel + i < args.channels; i += 8) {
        const __m256i part = FinishBlock<kResidual, kFactor>(args, channel + i, pixel);
        bits = _mm256_or_si256(bits, _mm256_slli_epi32(part, static_cast<int>(i)));
      }
      if (kResidual && args.bits != nullptr) {
        alignas(32) uint32_t words[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(words), bits);
        uint32_t* const out = args.bits + pixel * args.bits_stride + channel / 32;
        for (int64_t p = 0; p < 8 && pixel + p < args.pixels; ++p) {
          out[p * args.bits_stride] = words[p];
        }
      }
    }
  }
}

void FinishFloat(const FinishFloatArgs& args) {
  if (args.residual != nullptr) return FinishTile<true, false>(args);
  if (args.factor != nullptr) return FinishTile<false, true>(args);
  if (args.pixels > 1 || args.channel_stride > 1) return FinishTile<false, false>(args);
  for (int64_t channel = 0; channel < args.channels; channel += 8) {  // fully connected
    _mm256_maskstore_ps(args.out + channel, FirstLanes(args.channels - channel),
                        ScaledSums(args, 0, channel));
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

__m256 AbsoluteTerms(__m256 x, __m256 scale, __m256 shift) {
  const __m256 term = _mm256_add_ps(_mm256_mul_ps(x, scale), shift);
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), term);
}

// As BinarizeVectors, with a sum of the terms beside the bits. The sum of 32 channels is added to
// what the words before have left in `mean`.
template <int kVectors>
void BinarizeAbsMeanVectors(const BinarizeAbsMeanArgs& args, int64_t pixel, int64_t pixels) {
  const int64_t words = (args.channels + 31) / 32;
  const __m256i mask = FirstLanes(pixels);
  const __m256 count = _mm256_set1_ps(static_cast<float>(args.channels));
  float* const mean = args.mean + pixel;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    __m256i bits[kVectors];
    __m256 sums[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) {
      bits[v] = _mm256_setzero_si256();
      sums[v] = _mm256_setzero_ps();
    }
    __m256i bit = _mm256_set1_epi32(1);
    for (int64_t c = begin; c < end; ++c) {
      const float* plane = args.planes + c * args.channel_stride + pixel;
      const __m256 threshold = _mm256_set1_ps(args.threshold[c]);
      const __m256 scale = _mm256_set1_ps(args.scale[c]);
      const __m256 shift = _mm256_set1_ps(args.shift[c]);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const __m256 x =
            kVectors == 1 ? _mm256_maskload_ps(plane, mask) : _mm256_loadu_ps(plane + v * 8);
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(x, threshold, _CMP_GE_OQ));
        bits[v] = _mm256_or_si256(bits[v], _mm256_and_si256(above, bit));
        sums[v] = _mm256_add_ps(sums[v], AbsoluteTerms(x, scale, shift));
      }
      bit = _mm256_slli_epi32(bit, 1);
    }
    alignas(32) uint32_t column[kVectors * 8];
    UNROLL for (int v = 0; v < kVectors; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(column + v * 8), bits[v]);
      float* const to = mean + v * 8;
      const __m256i lanes = kVectors == 1 ? mask : _mm256_set1_epi32(-1);
      if (word > 0) sums[v] = _mm256_add_ps(sums[v], _mm256_maskload_ps(to, lanes));
      if (word + 1 == words) sums[v] = _mm256_div_ps(sums[v], count);
      _mm256_maskstore_ps(to, lanes, sums[v]);
    }
    uint32_t* out = args.out + pixel * words + word;
    for (int64_t p = 0; p < pixels; ++p) out[p * words] = column[p];
  }
}

void BinarizeAbsMean(const BinarizeAbsMeanArgs& args) {
  int64_t pixel = 0;
  for (; pixel + 32 <= args.pixels; pixel += 32) BinarizeAbsMeanVectors<4>(args, pixel, 32);
  for (; pixel < args.pixels; pixel += 8) {
    BinarizeAbsMeanVectors<1>(args, pixel, args.pixels - pixel < 8 ? args.pixels - pixel : 8);
  }
}

void BinarizeRows(const BinarizeRowsArgs& args) {
  const float* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p, x += args.channels) {
    for (int64_t begin = 0; begin < args.channels; begin += 32) {
      uint32_t bits = 0;
      for (int64_t c = begin; c < begin + 32 && c < args.channels; c += 8) {
        const __m256i lanes = FirstLanes(args.channels - c);
        const __m256 value = _mm256_maskload_ps(x + c, lanes);
        const __m256 threshold = _mm256_maskload_ps(args.threshold + c, lanes);
        const __m256 reached =
            _mm256_and_ps(_mm256_cmp_ps(value, threshold, _CMP_GE_OQ), _mm256_castsi256_ps(lanes));
        bits |= static_cast<uint32_t>(_mm256_movemask_ps(reached)) << (c - begin);
      }
      *out++ = bits;
    }
  }
}

// The bytes of `x` that are at least those of `level`: x = max(x, level), as there is no unsigned
// compare.
uint32_t AtLeast(const uint8_t* x, const uint8_t* level) {
  const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i least = _mm256_load_si256(reinterpret_cast<const __m256i*>(level));
  const __m256i reached = _mm256_cmpeq_epi8(_mm256_max_epu8(value, least), value);
  return static_cast<uint32_t>(_mm256_movemask_epi8(reached));
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

extern const Isa kIsaAvx2 = {
    "avx2",      kBlock,   kGranule,        false,        true,          Accumulate, AccumulateBits,
    FinishFloat, Binarize, BinarizeAbsMean, BinarizeRows, BinarizeBytes, nullptr,    nullptr,
    nullptr,     0,
};

}  // namespace bnn_deploy
