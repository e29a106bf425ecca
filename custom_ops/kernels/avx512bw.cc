// AVX-512 without VPOPCNTDQ: Skylake-X and Cascade Lake. A vector holds one byte, of 8 bits, of 64
// output channels, and the activation byte is broadcast. There is no vector population count, so
// the differences a ^ w of 32 such steps are added bit by bit, by a tree of full adders: sums of
// ones, twos, fours, eights and sixteens stay in registers, and only the carries to 32 are counted,
// by nibble lookups. The first adders take the differences as they are made, two at a time, in
// three vpternlogd:
//
//   u = S ^ a ^ w;  S' = u ^ a' ^ w';  carry = u ? ~S' : S
//
// Per step of 512 binary multiply-accumulates that is 1.5 operations, 0.94 for the other adders and
// 0.22 for the counts, on two ports: 385 per cycle. The broadcast of a byte would take the port of
// the shuffles, so the windows of a few pixels are copied with every byte four times over, and
// broadcast as words, which the load ports do.
//
// For large images with float output the roles are swapped (ConvolvePlanes): a vector holds one
// byte of 64 pixels, the weight byte is broadcast, and sums become rows of the output planes
// without a transpose.

#include <immintrin.h>
#include <string.h>

#include "kernels/micro_kernel.h"

// Register tiles are arrays: they stay in registers only if GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 16")
// For what must become part of an unrolled loop.
#define INLINE __attribute__((always_inline)) inline

namespace bnn_deploy {
namespace {

#include "kernels/vectors/avx512.inl"
#include "kernels/vectors/avx512_planes.inl"

constexpr int64_t kBlock = 32;      // output channels of half a vector
constexpr int64_t kGranule = 1;     // contiguous bytes of a channel
constexpr int kMaxPixels = 3;       // pixels per register tile; those of four would not fit
constexpr int64_t kPassWords = 72;  // whose weights, 18 KiB, stay in the first-level cache

// One vector of 64 channels.
struct Bytes64 {
  __m512i v;

  static constexpr int64_t kChannels = 64;
  static Bytes64 Zero() { return {_mm512_setzero_si512()}; }
  static Bytes64 Load(const void* from) { return {_mm512_load_si512(from)}; }
  static Bytes64 Broadcast(const uint32_t* word) {
    return {_mm512_set1_epi32(static_cast<int>(*word))};
  }
  static Bytes64 Row(const uint8_t* table) {
    const auto* const row = reinterpret_cast<const __m128i*>(table);
    return {_mm512_broadcast_i32x4(_mm_load_si128(row))};
  }
  template <int kOperation>
  static Bytes64 Logic(Bytes64 a, Bytes64 b, Bytes64 c) {
    return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, kOperation)};
  }
  Bytes64 operator&(Bytes64 other) const { return {_mm512_and_si512(v, other.v)}; }
  Bytes64 operator^(Bytes64 other) const { return {_mm512_xor_si512(v, other.v)}; }
  Bytes64 operator+(Bytes64 other) const { return {_mm512_add_epi8(v, other.v)}; }
  Bytes64 LowNibbles() const { return {_mm512_and_si512(v, _mm512_set1_epi8(15))}; }
  Bytes64 HighNibbles() const { return Bytes64{_mm512_srli_epi16(v, 4)}.LowNibbles(); }
  Bytes64 LookUp(Bytes64 nibbles) const { return {_mm512_shuffle_epi8(v, nibbles.v)}; }
};

// Half of one, of 32 channels.
struct Bytes32 {
  __m256i v;

  static constexpr int64_t kChannels = 32;
  static Bytes32 Zero() { return {_mm256_setzero_si256()}; }
  static Bytes32 Load(const void* from) {
    return {_mm256_load_si256(static_cast<const __m256i*>(from))};
  }
  static Bytes32 Broadcast(const uint32_t* word) {
    return {_mm256_set1_epi32(static_cast<int>(*word))};
  }
  static Bytes32 Row(const uint8_t* table) {
    const auto* const row = reinterpret_cast<const __m128i*>(table);
    return {_mm256_broadcastsi128_si256(_mm_load_si128(row))};
  }
  template <int kOperation>
  static Bytes32 Logic(Bytes32 a, Bytes32 b, Bytes32 c) {
    return {_mm256_ternarylogic_epi32(a.v, b.v, c.v, kOperation)};
  }
  Bytes32 operator&(Bytes32 other) const { return {_mm256_and_si256(v, other.v)}; }
  Bytes32 operator^(Bytes32 other) const { return {_mm256_xor_si256(v, other.v)}; }
  Bytes32 operator+(Bytes32 other) const { return {_mm256_add_epi8(v, other.v)}; }
  Bytes32 LowNibbles() const { return {_mm256_and_si256(v, _mm256_set1_epi8(15))}; }
  Bytes32 HighNibbles() const { return Bytes32{_mm256_srli_epi16(v, 4)}.LowNibbles(); }
  Bytes32 LookUp(Bytes32 nibbles) const { return {_mm256_shuffle_epi8(v, nibbles.v)}; }
};

// counts[i][n] = 2^i * popcount(n) of a nibble n.
struct NibbleCounts {
  alignas(64) uint8_t counts[5][16];
};

constexpr NibbleCounts CountNibbles() {
  NibbleCounts table{};
  for (int i = 0; i < 5; ++i) {
    for (int n = 0; n < 16; ++n) {
      for (int bits = n; bits != 0; bits &= bits - 1) {
        table.counts[i][n] = static_cast<uint8_t>(table.counts[i][n] + (1 << i));
      }
    }
  }
  return table;
}

constexpr NibbleCounts kNibbleCounts = CountNibbles();

// 2^exponent * the number of bits of each byte.
template <typename Bytes>
INLINE Bytes CountBits(Bytes x, int exponent) {
  const Bytes row = Bytes::Row(kNibbleCounts.counts[exponent]);
  return row.LookUp(x.LowNibbles()) + row.LookUp(x.HighNibbles());
}

constexpr int kXor3 = 0x96;
constexpr int kMajority = 0xe8;
constexpr int kSelect = 0x5c;  // a ? ~c : b

// Adds x and y to `sum`, bit by bit, and returns the carries.
template <typename Bytes>
INLINE Bytes AddBits(Bytes* sum, Bytes x, Bytes y) {
  const Bytes carry = Bytes::template Logic<kMajority>(x, *sum, y);
  *sum = Bytes::template Logic<kXor3>(*sum, x, y);
  return carry;
}

// The same of one summand.
template <typename Bytes>
INLINE Bytes AddBits(Bytes* sum, Bytes x) {
  const Bytes carry = *sum & x;
  *sum = *sum ^ x;
  return carry;
}

// The same of the differences of two steps, i and the next.
template <typename Bytes, typename Steps>
INLINE Bytes AddDifferences(Bytes* sum, const Steps& steps, int row, int i) {
  const Bytes u = steps.Add(*sum, row, i);
  const Bytes next = steps.Add(u, row, i + 1);
  const Bytes carry = Bytes::template Logic<kSelect>(u, *sum, next);
  *sum = next;
  return carry;
}

// The mismatches of kRows rows of windows: low + 32 * high, each below 256. kShort: fewer than 8
// words, which have no carries to 32. Steps:
//
//     Begin(k)            before the rows of word k
//     BeginRow(row)       before a row of it
//     Add(sum, row, i)    sum ^ a ^ w of step i: 4 of each word
//     Next(k)             k words are done; the next is word 0
template <typename Bytes, int kRows, bool kShort, typename Steps>
INLINE void CountMismatches(Steps steps, int64_t words, Bytes (&low)[kRows], Bytes (&high)[kRows]) {
  Bytes ones[kRows], twos[kRows], fours[kRows], eights[kRows], sixteens[kRows];
  UNROLL for (int r = 0; r < kRows; ++r) {
    ones[r] = twos[r] = fours[r] = eights[r] = sixteens[r] = high[r] = Bytes::Zero();
  }
  // Calls use(row, carry to 4) for the rows of word k.
  const auto add_word = [&](int k, const auto& use) __attribute__((always_inline)) {
    steps.Begin(k);
    UNROLL for (int r = 0; r < kRows; ++r) {
      steps.BeginRow(r);
      const Bytes first = AddDifferences(&ones[r], steps, r, 4 * k);
      const Bytes second = AddDifferences(&ones[r], steps, r, 4 * k + 2);
      use(r, AddBits(&twos[r], first, second));
      __asm__ volatile("" : "+v"(ones[r].v));  // the rows in turn
    }
  };
  const auto add_sixteen = [&](int r, Bytes x) {
    const Bytes carry = AddBits(&sixteens[r], x);
    if (!kShort) high[r] = high[r] + CountBits(carry, 0);
  };
  for (; !kShort && words >= 8; words -= 8) {
    Bytes four[kRows], eight[kRows], sixteen[kRows];  // waiting for their second
    UNROLL for (int k = 0; k < 8; ++k) {
      add_word(k, [&](int r, Bytes carry) __attribute__((always_inline)) {
        if (k % 2 == 0) {
          four[r] = carry;
          return;
        }
        carry = AddBits(&fours[r], four[r], carry);
        if (k % 4 == 1) {
          eight[r] = carry;
          return;
        }
        carry = AddBits(&eights[r], eight[r], carry);
        if (k == 3) {
          sixteen[r] = carry;
          return;
        }
        high[r] = high[r] + CountBits(AddBits(&sixteens[r], sixteen[r], carry), 0);
      });
    }
    steps.Next(8);
  }
  if (words & 4) {
    Bytes four[kRows], eight[kRows];
    UNROLL for (int k = 0; k < 4; ++k) {
      add_word(k, [&](int r, Bytes carry) __attribute__((always_inline)) {
        if (k % 2 == 0) {
          four[r] = carry;
          return;
        }
        carry = AddBits(&fours[r], four[r], carry);
        if (k == 1) {
          eight[r] = carry;
        } else {
          add_sixteen(r, AddBits(&eights[r], eight[r], carry));
        }
      });
    }
    steps.Next(4);
  }
  if (words & 2) {
    Bytes four[kRows];
    UNROLL for (int k = 0; k < 2; ++k) {
      add_word(k, [&](int r, Bytes carry) __attribute__((always_inline)) {
        if (k == 0) {
          four[r] = carry;
        } else {
          add_sixteen(r, AddBits(&eights[r], AddBits(&fours[r], four[r], carry)));
        }
      });
    }
    steps.Next(2);
  }
  if (words & 1) {
    add_word(0, [&](int r, Bytes carry) __attribute__((always_inline)) {
      add_sixteen(r, AddBits(&eights[r], AddBits(&fours[r], carry)));
    });
  }
  UNROLL for (int r = 0; r < kRows; ++r) {
    low[r] = (CountBits(ones[r], 0) + CountBits(twos[r], 1)) +
             (CountBits(fours[r], 2) + CountBits(eights[r], 3)) + CountBits(sixteens[r], 4);
  }
}

// The steps of windows that lie `stride` expanded words apart, a row for each: vectors are weights.
template <typename Bytes, int kRows>
struct WindowSteps {
  const uint8_t* weights;
  const uint32_t* a[kRows];

  WindowSteps(const uint32_t* windows, int64_t stride, const uint8_t* first) : weights(first) {
    UNROLL for (int r = 0; r < kRows; ++r) a[r] = windows + r * stride;
  }
  INLINE void Begin(int) {}
  // GCC would copy the weights' registers, which vpternlogd overwrites, rather than load them once
  // more, and add up long displacements for pointers that it derives from one another.
  INLINE void BeginRow(int r) { __asm__ volatile("" : "+r"(weights), "+r"(a[r])); }
  INLINE Bytes Add(Bytes sum, int r, int i) const {
    const Bytes w = Bytes::Load(weights + i * Bytes::kChannels);
    return Bytes::template Logic<kXor3>(w, sum, Bytes::Broadcast(a[r] + i));
  }
  INLINE void Next(int k) {
    UNROLL for (int r = 0; r < kRows; ++r) a[r] += 4 * k;
    weights += 4 * k * Bytes::kChannels;
  }
};

// low + 32 * high of a vector of channels. Quarter i of `first` (a half, of half a vector) holds
// channels 16 * i to 16 * i + 7, that of `second` the 8 behind them.
struct Mismatches64 {
  __m512i first, second;
};

struct Mismatches32 {
  __m256i first, second;
};

constexpr short kLowAndHigh = 0x2001;  // low and high alternate

INLINE Mismatches64 AddUp(Bytes64 low, Bytes64 high) {
  const __m512i factors = _mm512_set1_epi16(kLowAndHigh);
  return {_mm512_maddubs_epi16(_mm512_unpacklo_epi8(low.v, high.v), factors),
          _mm512_maddubs_epi16(_mm512_unpackhi_epi8(low.v, high.v), factors)};
}

INLINE Mismatches32 AddUp(Bytes32 low, Bytes32 high) {
  const __m256i factors = _mm256_set1_epi16(kLowAndHigh);
  return {_mm256_maddubs_epi16(_mm256_unpacklo_epi8(low.v, high.v), factors),
          _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low.v, high.v), factors)};
}

// out[o] = from[o] + the mismatches of channel o.
INLINE void StoreSums(const Mismatches64& mismatches, const int32_t* from, int32_t* out) {
  const auto add = [&](int64_t channel, __m128i a, __m128i b) {
    const __m512i sums = _mm512_cvtepu16_epi32(_mm256_set_m128i(b, a));
    _mm512_store_si512(out + channel, _mm512_add_epi32(sums, _mm512_load_si512(from + channel)));
  };
  const __m512i first = mismatches.first, second = mismatches.second;
  add(0, _mm512_castsi512_si128(first), _mm512_castsi512_si128(second));
  add(16, _mm512_extracti32x4_epi32(first, 1), _mm512_extracti32x4_epi32(second, 1));
  add(32, _mm512_extracti32x4_epi32(first, 2), _mm512_extracti32x4_epi32(second, 2));
  add(48, _mm512_extracti32x4_epi32(first, 3), _mm512_extracti32x4_epi32(second, 3));
}

INLINE void StoreSums(const Mismatches32& mismatches, const int32_t* from, int32_t* out) {
  const auto add = [&](int64_t channel, __m128i a) {
    const auto* const old = reinterpret_cast<const __m256i*>(from + channel);
    const __m256i sums = _mm256_add_epi32(_mm256_cvtepu16_epi32(a), _mm256_load_si256(old));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + channel), sums);
  };
  add(0, _mm256_castsi256_si128(mismatches.first));
  add(8, _mm256_castsi256_si128(mismatches.second));
  add(16, _mm256_extracti128_si256(mismatches.first, 1));
  add(24, _mm256_extracti128_si256(mismatches.second, 1));
}

// What 32 initial sums lack to 0, at most 2^15 - 1: the fewest mismatches with which the sums are
// not negative.
INLINE __m512i FindEnds(const int32_t* initial) {
  const auto narrow = [](const int32_t* sums) {  // -1 - x, which overflows for none
    const __m512i complement = _mm512_xor_si512(_mm512_load_si512(sums), _mm512_set1_epi32(-1));
    return _mm512_cvtsepi32_epi16(complement);
  };
  const __m512i ends =
      _mm512_inserti64x4(_mm512_castsi256_si512(narrow(initial)), narrow(initial + 16), 1);
  return _mm512_adds_epi16(ends, _mm512_set1_epi16(1));
}

// Those of a vector of channels: in the order of its mismatches, and as bytes, at most 255.
template <typename Bytes>
struct Ends;

template <>
struct Ends<Bytes64> {
  Mismatches64 sums;
  __m512i bytes;

  void Find(const int32_t* initial) {
    const __m512i a = FindEnds(initial), b = FindEnds(initial + 32);
    sums = {_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd)};
    bytes = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtusepi16_epi8(a)),
                               _mm512_cvtusepi16_epi8(b), 1);
  }
  INLINE void StoreBelow(Bytes64 found, uint32_t* out) const {
    const uint64_t bits = _mm512_cmplt_epu8_mask(found.v, bytes);
    memcpy(out, &bits, sizeof bits);
  }
  INLINE void StoreBelow(const Mismatches64& found, uint32_t* out) const {
    const __mmask32 first = _mm512_cmplt_epu16_mask(found.first, sums.first);
    const __mmask32 second = _mm512_cmplt_epu16_mask(found.second, sums.second);
    const __m128i bits = _mm_unpacklo_epi8(_mm_cvtsi32_si128(static_cast<int>(first)),
                                           _mm_cvtsi32_si128(static_cast<int>(second)));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), bits);
  }
};

template <>
struct Ends<Bytes32> {
  Mismatches32 sums;
  __m256i bytes;

  void Find(const int32_t* initial) {
    const __m512i ends = FindEnds(initial);
    const __m256i a = _mm512_castsi512_si256(ends), b = _mm512_extracti64x4_epi64(ends, 1);
    sums = {_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)};
    bytes = _mm512_cvtusepi16_epi8(ends);
  }
  INLINE void StoreBelow(Bytes32 found, uint32_t* out) const {
    *out = _mm256_cmplt_epu8_mask(found.v, bytes);
  }
  INLINE void StoreBelow(const Mismatches32& found, uint32_t* out) const {
    const __mmask16 first = _mm256_cmplt_epu16_mask(found.first, sums.first);
    const __mmask16 second = _mm256_cmplt_epu16_mask(found.second, sums.second);
    const __m128i bits = _mm_unpacklo_epi8(_mm_cvtsi32_si128(first), _mm_cvtsi32_si128(second));
    *out = static_cast<uint32_t>(_mm_cvtsi128_si32(bits));
  }
};

// Where the mismatches of a tile go: added to the sums of AccumulateArgs, ...
template <typename Bytes>
class TileSums {
 public:
  explicit TileSums(const AccumulateArgs& args) : args_(args) {}

  // kShort: high is 0. stored: whether some were added before, to the initial sums of the pixel.
  template <bool kShort>
  INLINE void Add(int64_t pixel, Bytes low, Bytes high, bool stored) const {
    int32_t* const out = args_.sums + pixel * kTileChannels;
    StoreSums(AddUp(low, high), stored ? out : args_.initial[pixel] + args_.initial_offset, out);
  }

 private:
  const AccumulateArgs& args_;
};

// ... or, all at once, compared with what makes these negative, which takes no sums of 32 bits.
template <typename Bytes>
class TileBits {
 public:
  explicit TileBits(const AccumulateBitsArgs& args) : args_(args) {}

  template <bool kShort>
  INLINE void Add(int64_t pixel, Bytes low, Bytes high, bool) {
    const int32_t* const initial = args_.accumulate.initial[pixel];
    if (initial != initial_) {
      initial_ = initial;
      ends_.Find(initial + args_.accumulate.initial_offset);
    }
    uint32_t* const out = args_.out + pixel * args_.pixel_stride;
    if constexpr (kShort) {
      ends_.StoreBelow(low, out);
    } else {
      ends_.StoreBelow(AddUp(low, high), out);
    }
  }

 private:
  const AccumulateBitsArgs& args_;
  const int32_t* initial_ = nullptr;  // those of the ends
  Ends<Bytes> ends_;
};

// Words of all windows that are taken at once, and the pieces of 4, 2 and 1 words in which they are
// copied, all inside a run: the last 4 of a run may overlap those before them.
struct Pass {
  struct Piece {
    int64_t from;  // words from the window
    int64_t to;    // expanded words
  };
  struct Pieces {
    int64_t count = 0;
    Piece at[kPassWords];
    void Add(int64_t from, int64_t to) { at[count++] = {from, 4 * to}; }
  };

  Pass(const AccumulateArgs& args, int64_t first_word, int64_t pass_words)
      : begin(first_word), words(pass_words) {
    int64_t run = begin / args.run_words;
    int64_t first = begin % args.run_words;
    for (int64_t to = 0; to < words; ++run, first = 0) {
      const int64_t left = words - to;
      const int64_t count = args.run_words - first < left ? args.run_words - first : left;
      const int64_t from = args.run_offsets[run] + first;
      if (count >= 4) {
        for (int64_t k = 0; k + 4 <= count; k += 4) fours.Add(from + k, to + k);
        if (count % 4 != 0) fours.Add(from + count - 4, to + count - 4);
      } else {
        if (count & 2) twos.Add(from, to);
        if (count & 1) ones.Add(from + count - 1, to + count - 1);
      }
      to += count;
    }
  }

  int64_t begin;
  int64_t words;
  Pieces fours, twos, ones;
};

// Between the expanded windows, so that they do not share cache sets.
constexpr int64_t kStride = kPassWords * 4 + 16;

// Copies the words of a pass from the windows of kPixels pixels, each byte four times over.
template <int kPixels>
INLINE void Expand(const AccumulateArgs& args, int64_t pixel, const Pass& pass, uint32_t* out) {
  const __m512i bytes =
      _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                       0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                       0x03030303, 0x02020202, 0x01010101, 0);
  const uint32_t* windows[kPixels];
  UNROLL for (int p = 0; p < kPixels; ++p) windows[p] = args.windows[pixel + p];
  const auto copy = [&](const Pass::Pieces& pieces, const auto& expand) {
    for (int64_t i = 0; i < pieces.count; ++i) {
      const Pass::Piece piece = pieces.at[i];
      UNROLL for (int p = 0; p < kPixels; ++p) {
        expand(windows[p] + piece.from, out + p * kStride + piece.to);
      }
    }
  };
  copy(pass.fours, [bytes](const uint32_t* from, uint32_t* to) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    _mm512_storeu_si512(to, _mm512_shuffle_epi8(_mm512_broadcast_i32x4(words), bytes));
  });
  copy(pass.twos, [bytes](const uint32_t* from, uint32_t* to) {
    const __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(to),
        _mm256_shuffle_epi8(_mm256_broadcastq_epi64(words), _mm512_castsi512_si256(bytes)));
  });
  copy(pass.ones, [bytes](const uint32_t* from, uint32_t* to) {
    const __m128i word = _mm_cvtsi32_si128(static_cast<int>(*from));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_shuffle_epi8(word, _mm512_castsi512_si128(bytes)));
  });
}

// As many groups of kPixels pixels as there are; returns the first pixel that is left. The windows
// of a group are expanded before those of the one before it are used, so that these stores are done
// when they are loaded.
template <typename Bytes, int kPixels, bool kShort, typename Tile>
__attribute__((noinline)) int64_t AccumulateGroups(const AccumulateArgs& args, int64_t pixel,
                                                   const Pass& pass, Tile* tile) {
  if (pixel + kPixels > args.pixels) return pixel;
  alignas(64) uint32_t windows[2][kPixels * kStride];
  const uint8_t* const weights =
      reinterpret_cast<const uint8_t*>(args.weights) + pass.begin * 4 * Bytes::kChannels;
  Expand<kPixels>(args, pixel, pass, windows[0]);
  for (int64_t group = 0; pixel + kPixels <= args.pixels; pixel += kPixels, ++group) {
    if (pixel + 2 * kPixels <= args.pixels) {
      Expand<kPixels>(args, pixel + kPixels, pass, windows[(group + 1) % 2]);
    }
    Bytes low[kPixels], high[kPixels];
    CountMismatches<Bytes, kPixels, kShort>(
        WindowSteps<Bytes, kPixels>(windows[group % 2], kStride, weights), pass.words, low, high);
    UNROLL for (int p = 0; p < kPixels; ++p) {
      tile->template Add<kShort>(pixel + p, low[p], high[p], pass.begin > 0);
    }
  }
  return pixel;
}

template <typename Bytes, bool kShort, typename Tile>
void AccumulatePass(const AccumulateArgs& args, const Pass& pass, Tile* tile) {
  int64_t pixel = AccumulateGroups<Bytes, kMaxPixels, kShort>(args, 0, pass, tile);
  pixel = AccumulateGroups<Bytes, 2, kShort>(args, pixel, pass, tile);
  AccumulateGroups<Bytes, 1, kShort>(args, pixel, pass, tile);
}

template <typename Bytes, typename Tile>
void AccumulateTile(const AccumulateArgs& args, Tile tile) {
  static_assert(Bytes64::kChannels == kTileChannels && Bytes32::kChannels == kBlock,
                "a tile is one vector, or half a one");
  // Passes of like lengths, whole multiples of 4 words but for the last.
  const int64_t words = args.runs * args.run_words;
  const int64_t passes = (words + kPassWords - 1) / kPassWords;
  const int64_t most = ((words + passes - 1) / passes + 3) / 4 * 4;
  for (int64_t begin = 0; begin < words; begin += most) {
    const Pass pass(args, begin, begin + most < words ? most : words - begin);
    if (pass.words < 8) {
      AccumulatePass<Bytes, true>(args, pass, &tile);
    } else {
      AccumulatePass<Bytes, false>(args, pass, &tile);
    }
  }
}

void Accumulate(const AccumulateArgs& args) {
  if (args.blocks == 2) {
    AccumulateTile<Bytes64>(args, TileSums<Bytes64>(args));
  } else {
    AccumulateTile<Bytes32>(args, TileSums<Bytes32>(args));
  }
}

void AccumulateBits(const AccumulateBitsArgs& args) {
  const AccumulateArgs& accumulate = args.accumulate;
  if (accumulate.runs * accumulate.run_words <= kPassWords) {
    if (accumulate.blocks == 2) {
      AccumulateTile<Bytes64>(accumulate, TileBits<Bytes64>(args));
    } else {
      AccumulateTile<Bytes32>(accumulate, TileBits<Bytes32>(args));
    }
    return;
  }
  Accumulate(accumulate);
  for (int64_t p = 0; p < accumulate.pixels; ++p) {
    const int32_t* const sums = accumulate.sums + p * kTileChannels;
    for (int64_t block = 0; block < accumulate.blocks; ++block) {
      const __mmask16 low = _mm512_movepi32_mask(_mm512_load_si512(sums + block * kBlock));
      const __mmask16 high = _mm512_movepi32_mask(_mm512_load_si512(sums + block * kBlock + 16));
      args.out[p * args.pixel_stride + block] = _mm512_kunpackw(high, low);
    }
  }
}

// Planes of bytes: a vector holds a byte of 64 pixels.
void SplitRow(const SplitRowArgs& args) {
  auto* const planes = static_cast<uint8_t*>(args.planes);
  SplitWords(args, [&](int64_t plane, int64_t first, __m512i words) {
    uint8_t* to = planes + plane * 4 * args.plane_size + first;
    const __mmask16 mask = FirstLanes(args.out_width - first);
    UNROLL for (int b = 0; b < 4; ++b, to += args.plane_size) {
      _mm512_mask_cvtepi32_storeu_epi8(to, mask, words);
      words = _mm512_srli_epi32(words, 8);
    }
  });
}

// The steps of a tile of planes, a row for each channel: vectors are pixels.
template <int kRows>
struct PlaneSteps {
  const uint8_t* input;
  const int64_t* offsets;
  const uint32_t* weights;  // [step][kRows]
  Bytes64 pixels[4];        // of the word

  INLINE void Begin(int k) {
    UNROLL for (int i = 0; i < 4; ++i) {
      pixels[i] = {_mm512_loadu_si512(input + offsets[k * 4 + i])};
    }
  }
  INLINE void BeginRow(int) {}
  // In assembly: GCC would have the weight as a memory operand, and copy the pixels.
  INLINE Bytes64 Add(Bytes64 sum, int r, int i) const {
    __m512i w;
    __asm__ volatile("vpbroadcastd %1, %0" : "=v"(w) : "m"(weights[i * kRows + r]));
    return Bytes64::Logic<kXor3>({w}, sum, pixels[i % 4]);
  }
  INLINE void Next(int k) {
    offsets += 4 * k;
    weights += 4 * k * kRows;
  }
};

constexpr int kPlaneChannels = 3;

template <Epilogue kEpilogue, int kChannels, bool kShort>
void ConvolveTile(const ConvolvePlanesArgs& args, int64_t channel, uint32_t* words) {
  Bytes64 low[kChannels], high[kChannels];
  const auto* const input = static_cast<const uint8_t*>(args.input);
  CountMismatches<Bytes64, kChannels, kShort>(
      PlaneSteps<kChannels>{input, args.offsets, args.weights + channel * args.numbers, {}},
      args.numbers / 4, low, high);
  const FinishFloatArgs finish = args.finish;  // no store can change a local copy
  __m512i patterns[4];
  UNROLL for (int v = 0; v < 4; ++v) patterns[v] = LoadPatterns(args, v * 16);
  const __m512i factors = _mm512_set1_epi16(kLowAndHigh);
  UNROLL for (int c = 0; c < kChannels; ++c) {
    // Of each quarter of 16 pixels, the first and the last 8; then quarters in order.
    const __m512i first = _mm512_maddubs_epi16(_mm512_unpacklo_epi8(low[c].v, high[c].v), factors);
    const __m512i last = _mm512_maddubs_epi16(_mm512_unpackhi_epi8(low[c].v, high[c].v), factors);
    const __m512i halves[2] = {
        _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), last),
        _mm512_permutex2var_epi64(first, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), last)};
    const __m512 constant = _mm512_load_ps(args.constant + (channel + c) * kMaxPatterns);
    UNROLL for (int v = 0; v < 4; ++v) {
      if (v * 16 >= finish.pixels) break;
      const __m256i quarter = v % 2 == 0 ? _mm512_castsi512_si256(halves[v / 2])
                                         : _mm512_extracti64x4_epi64(halves[v / 2], 1);
      FinishPixels<kEpilogue>(finish, channel + c, v * 16, FirstLanes(finish.pixels - v * 16),
                              _mm512_cvtepu16_epi32(quarter),
                              _mm512_permutexvar_ps(patterns[v], constant), words);
    }
  }
}

template <Epilogue kEpilogue, bool kShort>
void ConvolveTiles(const ConvolvePlanesArgs& args, uint32_t* words) {
  const int64_t channels = args.finish.channels;
  int64_t channel = 0;
  for (; channel + kPlaneChannels <= channels; channel += kPlaneChannels) {
    ConvolveTile<kEpilogue, kPlaneChannels, kShort>(args, channel, words);
  }
  switch (channels - channel) {
    case 2:
      return ConvolveTile<kEpilogue, 2, kShort>(args, channel, words);
    case 1:
      return ConvolveTile<kEpilogue, 1, kShort>(args, channel, words);
  }
}

template <Epilogue kEpilogue>
void ConvolveEpilogue(const ConvolvePlanesArgs& args, uint32_t* words) {
  static_assert(kTilePixels == 64, "a vector of bytes");
  static_assert(kMostPlaneWords < 256, "each word has at most one carry to 32");
  if (args.numbers < 4 * 8) {
    ConvolveTiles<kEpilogue, true>(args, words);
  } else {
    ConvolveTiles<kEpilogue, false>(args, words);
  }
}

// Loop parameters of binarize.inl, explained there.
constexpr int kBinarizeVectors = 16;
constexpr int kAbsMeanVectors = 8;
constexpr int kFewVectors = 4;
constexpr bool kMeansRows = true;

#include "kernels/generic/average_pool.inl"
#include "kernels/generic/binarize.inl"
#include "kernels/generic/convolve_planes.inl"
#include "kernels/generic/convolve_tiles.inl"
#include "kernels/generic/direct_conv.inl"
#include "kernels/generic/finish.inl"
#include "kernels/generic/finish_transposed.inl"
#include "kernels/generic/linear.inl"

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
  // No direct_integers: without VNNI a product of pairs takes two operations for 32
  // multiply-accumulates, as floats do.
  kernels.split_row = SplitRow;
  kernels.convolve_planes = ConvolvePlanes;
  kernels.plane_bytes = 1;
  kernels.plane_channels = kPlaneChannels;
  kernels.most_plane_words = kMostPlaneWords;
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr Kernels kAvx512bwKernels = MakeKernels();

}  // namespace bnn_deploy
