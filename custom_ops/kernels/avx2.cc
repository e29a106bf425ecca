// AVX2. There is no vector population count, so mismatches are looked up, but not per nibble of
// xor(a, w): a 16-entry table row holds the mismatches of one activation nibble with every weight
// nibble, and vpshufb looks up 32 channels in it at once. A vector holds one byte of 32 output
// channels, whose two nibbles are split once for all pixels.
//
// Pixels are taken in pairs: the two halves of a table's byte count the mismatches of one pixel
// each. A step of 768 binary multiply-accumulates on 32 channels is then 3 vpshufb and 5 other
// operations; a pixel alone would take 6 vpshufb and 6 others, as its halves have no work to share.
//
// For bit output the mismatches are compared as 16-bit numbers, or as the bytes of a short window:
// sums of 32 bits took up to a third of a 1x1 convolution.
//
// For large images with float output the roles are swapped (ConvolvePlanes): a vector holds one
// byte of 32 pixels, channels are taken in pairs, and sums become rows of the output planes without
// a transpose.

#include <immintrin.h>

#include <cstring>

#include "kernels/micro_kernel.h"

// Register tiles are arrays: they stay in registers only if GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 16")
// For what must become part of an unrolled loop.
#define INLINE __attribute__((always_inline)) inline

namespace bnn_deploy {
namespace {

#include "kernels/vectors/avx2.inl"

constexpr int64_t kBlock = 32;       // output channels per vector
constexpr int64_t kGranule = 1;      // contiguous bytes of a channel
constexpr int kMaxVectors = 2;       // vectors per tile
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

// counts[16 * b + a][w] = popcount(a ^ w) + 16 * popcount(b ^ w): those of a pair of pixels.
struct PairMismatches {
  alignas(64) uint8_t counts[256][16];
};

constexpr PairMismatches CountPairMismatches() {
  PairMismatches table{};
  for (int b = 0; b < 16; ++b) {
    for (int a = 0; a < 16; ++a) {
      for (int w = 0; w < 16; ++w) {
        table.counts[16 * b + a][w] = static_cast<uint8_t>(kNibbleMismatches.counts[a][w] +
                                                           16 * kNibbleMismatches.counts[b][w]);
      }
    }
  }
  return table;
}

constexpr PairMismatches kPairMismatches = CountPairMismatches();

// The 16 bytes of a table at an offset, in both 128-bit halves.
INLINE __m256i TableRow(const void* table, unsigned offset) {
  const void* const row = static_cast<const char*>(table) + offset;
  return _mm256_broadcastsi128_si256(_mm_load_si128(static_cast<const __m128i*>(row)));
}

INLINE __m256i LoadVector(const void* from) {
  return _mm256_load_si256(static_cast<const __m256i*>(from));
}

INLINE void StoreVector(void* to, __m256i values) {
  _mm256_store_si256(static_cast<__m256i*>(to), values);
}

INLINE __m256i LowNibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }

INLINE __m256i HighNibbles(__m256i bytes) { return LowNibbles(_mm256_srli_epi16(bytes, 4)); }

// The 16-bit sums of a pixel: of each vector, those of its even channels and those of its odd ones.
template <int kVectors>
struct Sums {
  __m256i even[kVectors], odd[kVectors];

  INLINE void Clear() {
    UNROLL for (int v = 0; v < kVectors; ++v) even[v] = odd[v] = _mm256_setzero_si256();
  }

  INLINE void Add(const __m256i (&bytes)[kVectors]) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      even[v] = _mm256_add_epi16(even[v], _mm256_and_si256(bytes[v], _mm256_set1_epi16(0xff)));
      odd[v] = _mm256_add_epi16(odd[v], _mm256_srli_epi16(bytes[v], 8));
    }
  }

  // out[o] = from[o] + the sum of channel o.
  INLINE void AddTo(const int32_t* from, int32_t* out) const {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const auto add = [&](int64_t channel, __m128i sums) {
        StoreVector(out + channel,
                    _mm256_add_epi32(_mm256_cvtepu16_epi32(sums), LoadVector(from + channel)));
      };
      const __m256i low = _mm256_unpacklo_epi16(even[v], odd[v]);
      const __m256i high = _mm256_unpackhi_epi16(even[v], odd[v]);
      add(v * kBlock, _mm256_castsi256_si128(low));
      add(v * kBlock + 8, _mm256_castsi256_si128(high));
      add(v * kBlock + 16, _mm256_extracti128_si256(low, 1));
      add(v * kBlock + 24, _mm256_extracti128_si256(high, 1));
    }
  }
};

// Where the mismatches of a tile go: added to the sums of AccumulateArgs, ...
template <int kVectors>
class TileSums {
 public:
  explicit TileSums(const AccumulateArgs& args) : args_(args) {}

  // stored: whether some were added before, to the initial sums of the pixel.
  INLINE void Add(int64_t pixel, const Sums<kVectors>& sums, bool stored) const {
    int32_t* const out = args_.sums + pixel * kTileChannels;
    sums.AddTo(stored ? out : args_.initial[pixel] + args_.initial_offset, out);
  }

  INLINE void Add(int64_t pixel, const __m256i (&bytes)[kVectors]) const {
    const int32_t* const from = args_.initial[pixel] + args_.initial_offset;
    int32_t* const out = args_.sums + pixel * kTileChannels;
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const auto add = [&](int64_t channel, __m128i eight) {
        StoreVector(out + channel,
                    _mm256_add_epi32(_mm256_cvtepu8_epi32(eight), LoadVector(from + channel)));
      };
      const __m128i lower = _mm256_castsi256_si128(bytes[v]);
      const __m128i upper = _mm256_extracti128_si256(bytes[v], 1);
      add(v * kBlock, lower);
      add(v * kBlock + 8, _mm_unpackhi_epi64(lower, lower));
      add(v * kBlock + 16, upper);
      add(v * kBlock + 24, _mm_unpackhi_epi64(upper, upper));
    }
  }

 private:
  const AccumulateArgs& args_;
};

// ... or compared with what makes these negative, which takes no sums of 32 bits.
template <int kVectors>
class TileBits {
 public:
  static constexpr int64_t kMostWords = 1023;  // whose mismatches are positive 16-bit numbers

  explicit TileBits(const AccumulateBitsArgs& args) : args_(args) {}

  INLINE void Add(int64_t pixel, const Sums<kVectors>& sums, bool) {
    FindEnds(pixel);
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m256i even = _mm256_cmpgt_epi16(even_ends_[v], sums.even[v]);
      const __m256i odd = _mm256_cmpgt_epi16(odd_ends_[v], sums.odd[v]);
      Store(pixel, v, _mm256_movemask_epi8(Merge(even, odd)));
    }
  }

  INLINE void Add(int64_t pixel, const __m256i (&bytes)[kVectors]) {
    FindEnds(pixel);
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m256i left = _mm256_subs_epu8(byte_ends_[v], bytes[v]);
      Store(pixel, v, ~_mm256_movemask_epi8(_mm256_cmpeq_epi8(left, _mm256_setzero_si256())));
    }
  }

 private:
  // The even bytes of one, the odd bytes of the other.
  static __m256i Merge(__m256i even, __m256i odd) {
    return _mm256_blendv_epi8(odd, even, _mm256_set1_epi16(0xff));
  }

  INLINE void Store(int64_t pixel, int v, int bits) const {
    args_.out[pixel * args_.pixel_stride + v] = static_cast<uint32_t>(bits);
  }

  // The fewest mismatches with which the sums of a pixel are not negative: what its initial sums
  // lack to 0, at most 2^15 - 1, and 255 for bytes, of which both have fewer.
  INLINE void FindEnds(int64_t pixel) {
    const int32_t* const initial = args_.accumulate.initial[pixel];
    if (initial == initial_) return;
    initial_ = initial;
    const auto pack = [](__m256i a, __m256i b) {  // in order
      return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    };
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const auto load = [&](int64_t channel) {  // -1 - x, which overflows for none
        const __m256i sums =
            LoadVector(initial + args_.accumulate.initial_offset + v * kBlock + channel);
        return _mm256_xor_si256(sums, _mm256_set1_epi32(-1));
      };
      const __m256i one = _mm256_set1_epi16(1);
      const __m256i first = _mm256_adds_epi16(pack(load(0), load(8)), one);
      const __m256i second = _mm256_adds_epi16(pack(load(16), load(24)), one);
      const auto even = [](__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi32(0xffff)); };
      even_ends_[v] = pack(even(first), even(second));
      odd_ends_[v] = pack(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
      const auto byte = [](__m256i x) { return _mm256_min_epi16(x, _mm256_set1_epi16(255)); };
      byte_ends_[v] = Merge(byte(even_ends_[v]), _mm256_slli_epi16(byte(odd_ends_[v]), 8));
    }
  }

  const AccumulateBitsArgs& args_;
  const int32_t* initial_ = nullptr;  // those of the ends
  __m256i even_ends_[kVectors], odd_ends_[kVectors], byte_ends_[kVectors];
};

// One pixel.
template <int kVectors, typename Tile>
void AccumulatePixel(const AccumulateArgs& args, int64_t pixel, Tile* tile) {
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(args.weights);
  Sums<kVectors> sums;
  sums.Clear();
  bool stored = false;
  int64_t words_in_sums = 0;
  for (int64_t run = 0; run < args.runs; ++run) {
    const uint8_t* const a =
        reinterpret_cast<const uint8_t*>(args.windows[pixel] + args.run_offsets[run]);
    const int64_t run_bytes = args.run_words * 4;
    for (int64_t k = 0; k < run_bytes;) {
      const int64_t bytes = run_bytes - k < kMaxBytes ? run_bytes - k : kMaxBytes;
      if (words_in_sums + bytes / 4 > kMaxWords) {
        tile->Add(pixel, sums, stored);
        stored = true;
        sums.Clear();
        words_in_sums = 0;
      }
      words_in_sums += bytes / 4;
      __m256i counts[kVectors];
      UNROLL for (int v = 0; v < kVectors; ++v) counts[v] = _mm256_setzero_si256();
      for (const int64_t end = k + bytes; k < end; ++k, weights += kVectors * kBlock) {
        const unsigned byte = a[k];  // a nibble times 16 is the offset of its table row
        const __m256i row0 = TableRow(&kNibbleMismatches, (byte << 4) & 0xf0);
        const __m256i row1 = TableRow(&kNibbleMismatches, byte & 0xf0);
        UNROLL for (int v = 0; v < kVectors; ++v) {
          const __m256i w = LoadVector(weights + v * kBlock);
          const __m256i both = _mm256_add_epi8(_mm256_shuffle_epi8(row0, LowNibbles(w)),
                                               _mm256_shuffle_epi8(row1, HighNibbles(w)));
          counts[v] = _mm256_add_epi8(counts[v], both);
        }
      }
      sums.Add(counts);
    }
  }
  tile->Add(pixel, sums, stored);
}

// Reads row offsets in order, four with a load: loads are what CountPair waits for.
class RowReader {
 public:
  INLINE explicit RowReader(const uint16_t* rows) : rows_(rows) {}

  // The i-th, after all before it.
  INLINE unsigned Next(int i) {
    if (i % 4 == 0) std::memcpy(&four_, rows_ + i, sizeof(four_));
    if (i % 4 == 2) four_ >>= 32;
    const auto two = static_cast<uint32_t>(four_);
    return i % 2 == 0 ? two & 0xffff : two >> 16;
  }

 private:
  const uint16_t* rows_;
  uint64_t four_ = 0;
};

// Pairs of pixels take a few words at a time, so that a pass's nibbles of weights and the pixels'
// sums stay in the first-level cache: 6, whose 48 nibbles are 16 sums of 3, or 3 that remain.
constexpr int64_t kPassWords = 6;

// Offsets of table rows for kWords words of two pixels: for the low nibbles of the even bytes,
// those of the odd bytes, and the same of the high nibbles. rows: two vectors longer than they are.
template <int kWords>
INLINE void FindRows(const uint32_t* first, const uint32_t* second, uint16_t* rows) {
  const auto load = [](const uint32_t* from) {
    const auto* const at = reinterpret_cast<const __m128i*>(from);
    const __m256i four = _mm256_castsi128_si256(_mm_loadu_si128(at));
    return kWords > 4 ? _mm256_inserti128_si256(four, _mm_loadl_epi64(at + 1), 1) : four;
  };
  const auto store = [rows](int quarter, __m256i offsets) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + quarter * 2 * kWords),
                        _mm256_and_si256(offsets, _mm256_set1_epi16(0x0ff0)));
  };
  const __m256i a = load(first), b = load(second);
  const __m256i low = _mm256_or_si256(LowNibbles(a), _mm256_slli_epi16(LowNibbles(b), 4));
  const __m256i high =
      _mm256_or_si256(HighNibbles(a), _mm256_andnot_si256(_mm256_set1_epi8(15), b));
  store(0, _mm256_slli_epi16(low, 4));
  store(1, _mm256_srli_epi16(low, 4));
  store(2, _mm256_slli_epi16(high, 4));
  store(3, _mm256_srli_epi16(high, 4));
}

// The nibbles of the weights of kWords words, in the order of FindRows.
template <int kWords, int kVectors>
void SplitWeights(const uint8_t* weights, uint8_t* nibbles) {
  constexpr int64_t kHalf = 4 * kWords;
  for (int64_t k = 0; k < kHalf; ++k) {
    const int64_t row = k % 2 * 2 * kWords + k / 2;
    for (int64_t v = 0; v < kVectors; ++v) {
      const __m256i w = LoadVector(weights + (k * kVectors + v) * kBlock);
      StoreVector(nibbles + (row * kVectors + v) * kBlock, LowNibbles(w));
      StoreVector(nibbles + ((row + kHalf) * kVectors + v) * kBlock, HighNibbles(w));
    }
  }
}

// The byte sums of two pixels, from the rows of both and the nibbles of the weights. Three lookups
// are added before a half of a byte could run over. The upper halves of these sums, which are
// multiples of 16, are added by a tree of averages: each level halves its sums exactly, and after
// four of them the second pixel's sum has lost its factor 16. What is left of the sum of the whole
// bytes is the first pixel's.
template <int kWords, int kVectors>
INLINE void CountPair(const uint16_t* rows, const uint8_t* nibbles, __m256i (&first)[kVectors],
                      __m256i (&second)[kVectors]) {
  constexpr int kTriples = 8 * kWords / 3;
  static_assert(kTriples == 16 || kTriples == 8, "a full tree");
  __m256i waiting[kVectors][4];  // the left child on each level
  RowReader offsets(rows);
  UNROLL for (int t = 0; t < kTriples; ++t) {
    __m256i row[3];
    UNROLL for (int i = 0; i < 3; ++i) row[i] = TableRow(&kPairMismatches, offsets.Next(3 * t + i));
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const auto look_up = [&](int i) {
        return _mm256_shuffle_epi8(row[i],
                                   LoadVector(nibbles + ((3 * t + i) * kVectors + v) * kBlock));
      };
      const __m256i sum = _mm256_add_epi8(_mm256_add_epi8(look_up(0), look_up(1)), look_up(2));
      first[v] = t == 0 ? sum : _mm256_add_epi8(first[v], sum);
      __m256i upper = _mm256_and_si256(sum, _mm256_set1_epi8(static_cast<char>(0xf0)));
      int level = 0;
      UNROLL for (; (t >> level) % 2 == 1; ++level) {
        upper = _mm256_avg_epu8(upper, waiting[v][level]);
      }
      if (t + 1 < kTriples) {
        waiting[v][level] = upper;
      } else {  // 8 triples are three levels
        second[v] = kTriples == 16 ? upper : _mm256_srli_epi16(upper, 1);
      }
      __asm__ volatile("" : "+x"(first[v]));  // or GCC delays all additions, and spills
    }
  }
  UNROLL for (int v = 0; v < kVectors; ++v) {
    first[v] = _mm256_sub_epi8(first[v], _mm256_slli_epi16(LowNibbles(second[v]), 4));
  }
}

// Calls add(pixel, byte sums) for kWords words of each pixel.
template <int kWords, int kVectors, typename Add>
__attribute__((noinline)) void CountPairs(const uint32_t* const* words, int64_t pairs,
                                          const uint8_t* weights, Add add) {
  alignas(32) uint8_t nibbles[8 * kWords * kVectors * kBlock];
  SplitWeights<kWords, kVectors>(weights, nibbles);
  alignas(32) uint16_t rows[2][8 * kWords + 16];  // one ahead: loads so soon after would stall
  FindRows<kWords>(words[0], words[1], rows[0]);
  for (int64_t i = 0; i < pairs; ++i) {
    if (i + 1 < pairs) FindRows<kWords>(words[2 * i + 2], words[2 * i + 3], rows[(i + 1) % 2]);
    const uint8_t* loaded = nibbles;
    __asm__("" : "+r"(loaded));  // or GCC loads all of them once, and spills
    __m256i first[kVectors], second[kVectors];
    CountPair<kWords, kVectors>(rows[i % 2], loaded, first, second);
    add(2 * i, first);
    add(2 * i + 1, second);
  }
}

// The first 2 * pairs pixels.
template <int kVectors, typename Tile>
void AccumulatePairs(const AccumulateArgs& args, int64_t pairs, Tile* tile) {
  constexpr int64_t kWordBytes = 4 * kVectors * kBlock;  // of weights
  const int64_t pixels = 2 * pairs;
  Sums<kVectors> sums[kTilePixels];
  alignas(32) uint32_t copies[kTilePixels][kPassWords + 2];  // of words that do not lie together
  alignas(32) uint8_t padded[kPassWords * kWordBytes];
  for (int64_t p = 0; p < pixels; ++p) sums[p].Clear();
  bool stored = false;
  const auto store = [&] {
    for (int64_t p = 0; p < pixels; ++p) tile->Add(p, sums[p], stored);
    stored = true;
  };
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(args.weights);
  int64_t words_in_sums = 0;
  int64_t run = 0, at = 0;  // where the next word is
  for (int64_t left = args.runs * args.run_words; left > 0;) {
    const int64_t count = left < kPassWords ? left : kPassWords;
    if (words_in_sums + count > kMaxWords) {
      store();
      for (int64_t p = 0; p < pixels; ++p) sums[p].Clear();
      words_in_sums = 0;
    }
    const uint32_t* words[kTilePixels];
    if (count == kPassWords && args.run_words - at >= count) {
      const int64_t offset = args.run_offsets[run] + at;
      for (int64_t p = 0; p < pixels; ++p) words[p] = args.windows[p] + offset;
      at += count;
      if (at == args.run_words) {
        at = 0;
        ++run;
      }
    } else {
      int64_t offsets[kPassWords];
      for (int64_t k = 0; k < count; ++k) {
        offsets[k] = args.run_offsets[run] + at;
        if (++at == args.run_words) {
          at = 0;
          ++run;
        }
      }
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t k = 0; k < count; ++k) copies[p][k] = args.windows[p][offsets[k]];
        for (int64_t k = count; k < kPassWords; ++k) copies[p][k] = 0;
        words[p] = copies[p];
      }
    }
    const uint8_t* from = weights;
    if (count % 3 != 0) {  // words of zeros on both sides have no mismatches
      for (int64_t i = 0; i < kPassWords * kWordBytes; i += 32) {
        StoreVector(padded + i,
                    i < count * kWordBytes ? LoadVector(weights + i) : _mm256_setzero_si256());
      }
      from = padded;
    }
    const auto count_pairs = [&](auto add) {
      if (count > 3) {
        CountPairs<6, kVectors>(words, pairs, from, add);
      } else {
        CountPairs<3, kVectors>(words, pairs, from, add);
      }
    };
    if (args.runs * args.run_words <= kPassWords) {
      return count_pairs([tile](int64_t p, const __m256i(&bytes)[kVectors])
                             __attribute__((always_inline)) { tile->Add(p, bytes); });
    }
    count_pairs([&sums](int64_t p, const __m256i(&bytes)[kVectors])
                    __attribute__((always_inline)) { sums[p].Add(bytes); });
    words_in_sums += count;
    left -= count;
    weights += count * kWordBytes;
  }
  store();
}

// Planes of bytes. The nibbles of a tile's pixels are split once for all channels, and the rows of
// the table that a pair of channels takes were found when its weights were packed.

// A tile's nibbles, 18 KiB, stay in the first-level cache.
constexpr int64_t kMostPlaneWords = 36;
constexpr int64_t kPlaneStep = 12;  // bytes: the fewest that CountPair takes

// Of each 4 bytes one of each quarter of the 32 pixels, in order: the 16-bit sums of all of these
// become vectors of neighbours without a shuffle.
INLINE __m256i InterleaveQuarters(__m256i pixels) {
  const __m256i fours =
      _mm256_permutevar8x32_epi32(pixels, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  return _mm256_shuffle_epi8(
      fours, _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1,
                              5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}

// The nibbles of `numbers` bytes of each pixel, and zeros up to whole steps.
template <int kVectors>
void SplitPixels(const uint8_t* input, const int64_t* offsets, int64_t numbers, uint8_t* nibbles) {
  int64_t k = 0;
  for (; k < numbers; ++k, nibbles += 2 * kVectors * kBlock) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m256i x = InterleaveQuarters(LoadWords(input + offsets[k] + v * kBlock));
      StoreVector(nibbles + v * kBlock, LowNibbles(x));
      StoreVector(nibbles + (kVectors + v) * kBlock, HighNibbles(x));
    }
  }
  for (; k % kPlaneStep != 0; ++k) {
    UNROLL for (int v = 0; v < 2 * kVectors; ++v, nibbles += kBlock) {
      StoreVector(nibbles, _mm256_setzero_si256());
    }
  }
}

template <int kWords>
struct WordCount {
  static constexpr int kCount = kWords;
};

// The mismatches of two channels. The byte sums of all steps become 16-bit sums at the end, when
// these have registers.
template <int kVectors>
__attribute__((noinline)) void CountChannels(const uint32_t* weights, int64_t numbers,
                                             const uint8_t* nibbles, Sums<kVectors>* out) {
  constexpr int64_t kMostSteps = kMostPlaneWords / kPassWords + 1;  // the last words may take two
  __m256i before[2][kMostSteps][kVectors];  // the last step, whose sums are these
  __m256i first[kVectors] = {}, second[kVectors] = {};
  int64_t steps = 0;
  const auto* rows = reinterpret_cast<const uint16_t*>(weights);
  const auto count = [&](auto words) __attribute__((always_inline)) {
    constexpr int kWords = decltype(words)::kCount;
    if (steps > 0) {
      UNROLL for (int v = 0; v < kVectors; ++v) {
        before[0][steps - 1][v] = first[v];
        before[1][steps - 1][v] = second[v];
      }
    }
    ++steps;
    __asm__("" : "+r"(nibbles));  // or GCC loads all of them once, and spills
    CountPair<kWords, kVectors>(rows, nibbles, first, second);
    rows += 8 * kWords;
    nibbles += 8 * kWords * kVectors * kBlock;
  };
  for (; numbers >= 24; numbers -= 24) count(WordCount<6>());
  for (; numbers > 0; numbers -= 12) count(WordCount<3>());
  Sums<kVectors> sums[2];
  sums[0].Clear();
  sums[1].Clear();
  sums[0].Add(first);
  sums[1].Add(second);
  for (int64_t i = 0; i < steps - 1; ++i) {
    sums[0].Add(before[0][i]);
    sums[1].Add(before[1][i]);
  }
  out[0] = sums[0];
  out[1] = sums[1];
}

// The patterns of the pixels of a tile.
struct TilePatterns {
  const uint8_t* numbers;
  bool same[kTilePixels / kLanes];  // those of a vector

  explicit TilePatterns(const uint8_t* patterns) : numbers(patterns) {
    for (int64_t i = 0; i < kTilePixels / kLanes; ++i) {
      const __m256i first = _mm256_set1_epi32(patterns[i * kLanes]);
      same[i] = _mm256_movemask_epi8(_mm256_cmpeq_epi32(Numbers(i * kLanes), first)) == -1;
    }
  }

  // Of 8 pixels, as words.
  INLINE __m256i Numbers(int64_t pixel) const {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers + pixel)));
  }

  // The constants of 8 pixels, from those of a channel.
  INLINE __m256 Constants(const float* of_pattern, int64_t pixel) const {
    if (__builtin_expect(same[pixel / kLanes], true)) {
      return _mm256_broadcast_ss(of_pattern + numbers[pixel]);
    }
    const __m256i patterns = Numbers(pixel);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_load_ps(of_pattern), patterns),
                            _mm256_permutevar8x32_ps(_mm256_load_ps(of_pattern + 8), patterns),
                            _mm256_castsi256_ps(_mm256_slli_epi32(patterns, 28)));
  }
};

// The outputs of a channel.
template <Epilogue kEpilogue, bool kWhole>
struct ChannelFinish {
  const FinishFloatArgs& finish;
  int64_t first;  // output
  __m256 scale, bias, threshold;
  uint32_t bit;
  uint32_t* words;  // with this bit, of each pixel

  INLINE ChannelFinish(const FinishFloatArgs& args, int64_t channel, uint32_t* tile_words)
      : finish(args),
        first(channel * args.channel_stride),
        scale(_mm256_broadcast_ss(args.scale + channel)),
        bias(_mm256_broadcast_ss(args.bias + channel)) {
    if (kEpilogue == Epilogue::kResidual && args.bits != nullptr) {
      threshold = _mm256_broadcast_ss(args.threshold + channel);
      bit = 1u << (channel % 32);
      words = tile_words + channel / 32 * kTilePixels;
    }
  }

  // Those of 8 pixels, of which `lanes` exist.
  INLINE void Pixels(int64_t pixel, Lanes lanes, __m256i mismatches, __m256 constant) const {
    const int64_t at = first + pixel;
    const auto load = [&](const float* from) {
      return kWhole ? Load(from) : LoadLanes(from, lanes);
    };
    const __m256 dot =  // exact
        _mm256_fnmadd_ps(_mm256_set1_ps(2.0f), _mm256_cvtepi32_ps(mismatches), constant);
    __m256 value = _mm256_add_ps(_mm256_mul_ps(dot, scale), bias);
    if (kEpilogue == Epilogue::kResidual) value = _mm256_add_ps(value, load(finish.residual + at));
    if (kEpilogue == Epilogue::kFactor) value = _mm256_mul_ps(value, load(finish.factor + pixel));
    if (kEpilogue != Epilogue::kResidual || finish.out != nullptr) {
      if (kWhole) {
        Store(finish.out + at, value);
      } else {
        StoreLanes(finish.out + at, value, lanes);
      }
    }
    if (kEpilogue == Epilogue::kResidual && finish.bits != nullptr) {
      uint32_t* const word = words + pixel;
      StoreVector(word, OrWhereAtLeast(LoadVector(word), value, threshold, SplatWord(bit)));
    }
  }
};

template <Epilogue kEpilogue, int kVectors, bool kWhole>
INLINE void FinishChannel(const ConvolvePlanesArgs& args, const TilePatterns& patterns,
                          int64_t channel, const Sums<kVectors>& sums, uint32_t* words) {
  const FinishFloatArgs finish = args.finish;  // no store can change a local copy
  const ChannelFinish<kEpilogue, kWhole> of_channel(finish, channel, words);
  const float* const constants = args.constant + channel * kMaxPatterns;
  const auto finish_pixels = [&](int64_t pixel, __m256i mismatches) __attribute__((always_inline)) {
    if (!kWhole && pixel >= finish.pixels) return;
    of_channel.Pixels(pixel, FirstLanes(finish.pixels - pixel), mismatches,
                      patterns.Constants(constants, pixel));
  };
  UNROLL for (int v = 0; v < kVectors; ++v) {
    const auto lower = [](__m256i pairs) {
      return _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
    };
    const auto upper = [](__m256i pairs) { return _mm256_srli_epi32(pairs, 16); };
    finish_pixels(v * kBlock, lower(sums.even[v]));
    finish_pixels(v * kBlock + 8, lower(sums.odd[v]));
    finish_pixels(v * kBlock + 16, upper(sums.even[v]));
    finish_pixels(v * kBlock + 24, upper(sums.odd[v]));
  }
}

template <Epilogue kEpilogue, int kVectors, bool kWhole>
void ConvolveTile(const ConvolvePlanesArgs& args, uint32_t* words) {
  static_assert(kMostPlaneWords * 4 % kPlaneStep == 0, "zeros have room");
  alignas(32) uint8_t nibbles[kMostPlaneWords * 8 * kVectors * kBlock];
  const auto* const input = static_cast<const uint8_t*>(args.input);
  SplitPixels<kVectors>(input, args.offsets, args.numbers, nibbles);
  const TilePatterns patterns(args.patterns);
  const int64_t channels = args.finish.channels;
  const int64_t row = (args.numbers + kPlaneStep - 1) / kPlaneStep * kPlaneStep;
  for (int64_t c = 0; c < channels; c += 2) {
    Sums<kVectors> sums[2];
    CountChannels<kVectors>(args.weights + c / 2 * row, args.numbers, nibbles, sums);
    for (int64_t i = 0; i < 2 && c + i < channels; ++i) {
      FinishChannel<kEpilogue, kVectors, kWhole>(args, patterns, c + i, sums[i], words);
    }
  }
}

template <Epilogue kEpilogue>
void ConvolveEpilogue(const ConvolvePlanesArgs& args, uint32_t* words) {
  if (args.finish.pixels == kTilePixels) return ConvolveTile<kEpilogue, 2, true>(args, words);
  if (args.finish.pixels > kBlock) return ConvolveTile<kEpilogue, 2, false>(args, words);
  return ConvolveTile<kEpilogue, 1, false>(args, words);
}

void SplitRow(const SplitRowArgs& args) {
  const int64_t step = args.stride * args.words;
  const __m256i bytes = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4,
                                         8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m256i quarters = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t plane = 0; plane < args.words * args.kernel; ++plane) {
    const uint32_t* from =
        args.row + plane % args.kernel * args.dilation * args.words + plane / args.kernel;
    uint8_t* to = static_cast<uint8_t*>(args.planes) + plane * 4 * args.plane_size;
    int64_t left = args.out_width;
    for (; left >= kLanes; left -= kLanes, from += kLanes * step, to += kLanes) {
      const auto word = [&](int64_t i) { return static_cast<int>(from[i * step]); };
      const __m256i words =
          _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7));
      const __m256i split =
          _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(words, bytes), quarters);
      const auto store = [&](int64_t i, __m128i halves) {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i * args.plane_size), halves);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to + (i + 1) * args.plane_size),
                         _mm_unpackhi_epi64(halves, halves));
      };
      store(0, _mm256_castsi256_si128(split));
      store(2, _mm256_extracti128_si256(split, 1));
    }
    for (; left > 0; --left, from += step, ++to) {
      for (int64_t b = 0; b < 4; ++b) {
        to[b * args.plane_size] = static_cast<uint8_t>(*from >> (8 * b));
      }
    }
  }
}

constexpr int kShortPixels = 4;

// Windows that are too short for pairs, whose weights and sums are prepared once per pass of 3 or 6
// words: up to 7 words, but for 6, which are a whole pass. Their byte sums, of up to kMaxBytes
// bytes, stay in registers: 1.1 to 1.35 times as fast as pairs at 1 to 2 words.
bool IsShort(const AccumulateArgs& args) {
  const int64_t words = args.runs * args.run_words;
  return words * 4 <= kMaxBytes && words != kPassWords;
}

// Pixels with short windows.
template <int kPixels, int kVectors, typename Tile>
void AccumulateShort(const AccumulateArgs& args, int64_t pixel, Tile* tile) {
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(args.weights);
  __m256i counts[kPixels][kVectors];
  UNROLL for (int p = 0; p < kPixels; ++p) {
    UNROLL for (int v = 0; v < kVectors; ++v) counts[p][v] = _mm256_setzero_si256();
  }
  for (int64_t run = 0; run < args.runs; ++run) {
    const uint8_t* a[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) {
      a[p] = reinterpret_cast<const uint8_t*>(args.windows[pixel + p] + args.run_offsets[run]);
    }
    for (int64_t k = 0; k < args.run_words * 4; ++k, weights += kVectors * kBlock) {
      __m256i low[kVectors], high[kVectors];
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const __m256i w = LoadVector(weights + v * kBlock);
        low[v] = LowNibbles(w);
        high[v] = HighNibbles(w);
      }
      UNROLL for (int p = 0; p < kPixels; ++p) {
        const unsigned byte = a[p][k];  // a nibble times 16 is the offset of its table row
        const __m256i row0 = TableRow(&kNibbleMismatches, (byte << 4) & 0xf0);
        const __m256i row1 = TableRow(&kNibbleMismatches, byte & 0xf0);
        UNROLL for (int v = 0; v < kVectors; ++v) {
          const __m256i both = _mm256_add_epi8(_mm256_shuffle_epi8(row0, low[v]),
                                               _mm256_shuffle_epi8(row1, high[v]));
          counts[p][v] = _mm256_add_epi8(counts[p][v], both);
        }
      }
    }
  }
  UNROLL for (int p = 0; p < kPixels; ++p) tile->Add(pixel + p, counts[p]);
}

template <int kVectors, typename Tile>
void AccumulateTile(const AccumulateArgs& args, Tile tile) {
  if (IsShort(args)) {
    int64_t pixel = 0;
    for (; pixel + kShortPixels <= args.pixels; pixel += kShortPixels) {
      AccumulateShort<kShortPixels, kVectors>(args, pixel, &tile);
    }
    for (; pixel < args.pixels; ++pixel) AccumulateShort<1, kVectors>(args, pixel, &tile);
    return;
  }
  const int64_t pairs = args.pixels / 2;
  if (pairs > 0) AccumulatePairs<kVectors>(args, pairs, &tile);
  if (args.pixels % 2 == 1) AccumulatePixel<kVectors>(args, args.pixels - 1, &tile);
}

void Accumulate(const AccumulateArgs& args) {
  static_assert(kMaxVectors * kBlock == kTileChannels, "a tile is one register tile wide");
  if (args.blocks == 2) {
    AccumulateTile<2>(args, TileSums<2>(args));
  } else {
    AccumulateTile<1>(args, TileSums<1>(args));
  }
}

void AccumulateBits(const AccumulateBitsArgs& args) {
  const AccumulateArgs& accumulate = args.accumulate;
  if (accumulate.runs * accumulate.run_words <= TileBits<1>::kMostWords) {
    if (accumulate.blocks == 2) {
      AccumulateTile<2>(accumulate, TileBits<2>(args));
    } else {
      AccumulateTile<1>(accumulate, TileBits<1>(args));
    }
    return;
  }
  Accumulate(accumulate);
  for (int64_t p = 0; p < accumulate.pixels; ++p) {
    const int32_t* const sums = accumulate.sums + p * kTileChannels;
    for (int64_t block = 0; block < accumulate.blocks; ++block) {
      uint32_t bits = 0;
      for (int64_t i = 0; i < kBlock; i += 8) {
        const __m256 signs = _mm256_castsi256_ps(LoadVector(sums + block * kBlock + i));
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

Words AddPairs(Words sums, Words w, const uint32_t* x, int p) {
  const __m256i products = _mm256_madd_epi16(w, SplatWord(x[p]));
  // In place and in order: the compiler would compute products ahead, for which there are no
  // registers, and copy sums.
  __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products));
  return sums;
}

#include "kernels/generic/average_pool.inl"
#include "kernels/generic/binarize.inl"
#include "kernels/generic/convolve_planes.inl"
#include "kernels/generic/convolve_tiles.inl"
#include "kernels/generic/direct_conv.inl"
#include "kernels/generic/direct_integers.inl"
#include "kernels/generic/finish.inl"
#include "kernels/generic/finish_transposed.inl"
#include "kernels/generic/linear.inl"
#include "kernels/generic/pair_sums.inl"

constexpr IntegerKernels kIntegers = MakeIntegers<PairSums>(2);

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
  kernels.average_pool = AveragePool;
  kernels.direct = &kDirect;
  kernels.linear = &kLinear;
  kernels.direct_integers = &kIntegers;
  kernels.split_row = SplitRow;
  kernels.convolve_planes = ConvolvePlanes;
  kernels.plane_bytes = 1;
  kernels.plane_channels = 2;
  kernels.plane_pair_step = kPlaneStep;
  kernels.most_plane_words = kMostPlaneWords;
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr Kernels kAvx2Kernels = MakeKernels();

}  // namespace bnn_deploy
