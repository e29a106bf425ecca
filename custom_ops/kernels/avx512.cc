// AVX-512 with VPOPCNTDQ. A vector holds one word of 16 output channels; the activation word is
// broadcast from memory, so a step of 512 binary multiply-accumulates is vpxord + vpopcntd +
// vpaddd: 341 per cycle on two 512-bit ports, 683 on the four of Zen 5. A tile of 6 pixels x 4
// vectors keeps its 24 sums in registers and needs 10 loads for 72 operations.
//
// Long windows are counted in pairs of words, by one level of full adders: with S the bits that
// wait for their second, and u = S ^ a ^ w,
//
//   S' = u ^ a' ^ w';  carry = u ? ~S' : S
//
// are 3 vpternlogd, and the carry's vpopcntd + vpaddd make 5 operations for what were 6: 410 per
// cycle on two ports. A second level would gain nothing: 4 words would take 10. A sum takes two
// registers, so a tile is half as wide.
//
// For large images with float output the roles are swapped (ConvolvePlanes): a vector holds one
// word of 16 pixels, the weight word is broadcast, and the sums are rows of the output planes
// without a transpose. The transposing finish took 18 % of a 3x3 convolution of 64 channels at
// 56x56.

#include <immintrin.h>

#include "kernels/micro_kernel.h"

// Register tiles are arrays: they stay in registers only if GCC unrolls these loops early.
#define UNROLL _Pragma("GCC unroll 16")
// For what must become part of an unrolled loop.
#define INLINE __attribute__((always_inline)) inline

namespace bnn_deploy {
namespace {

#include "kernels/vectors/avx512.inl"
#include "kernels/vectors/avx512_planes.inl"

constexpr int64_t kBlock = 16;      // output channels per vector
constexpr int64_t kGranule = 4;     // contiguous bytes of a channel
constexpr int kMaxPixels = 6;       // pixels per register tile
constexpr int64_t kMaxVectors = 4;  // vectors per register tile
constexpr int kPlaneChannels = 6;   // channels per register tile of planes

// Pairs of words from which on adders pay: each saves an operation, a single word costs one.
constexpr int64_t kAdderCost = 12;
constexpr int64_t kPlaneAdderCost = 6;

constexpr int kXor3 = 0x96;
constexpr int kSelect = 0x5c;  // a ? ~c : b

// sum ^ *word ^ w, the word broadcast. In assembly: GCC would broadcast it to a register first.
INLINE __m512i AddOnes(__m512i sum, const uint32_t* word, __m512i w) {
  static_assert(kXor3 == 0x96, "what the instruction does");
  __asm__ volatile("vpternlogd $0x96, %1%{1to16%}, %2, %0" : "+v"(w) : "m"(*word), "v"(sum));
  return w;
}

// Sums of mismatches: twice `twos`, and the bits of `ones`.
struct Counts {
  __m512i ones, twos;
};

// Adds the mismatches of the words at x and y with v and w, by one level of full adders.
INLINE void AddWords(Counts* counts, const uint32_t* x, const uint32_t* y, __m512i v, __m512i w) {
  const __m512i u = AddOnes(counts->ones, x, v);
  const __m512i next = AddOnes(u, y, w);
  const __m512i carry = _mm512_ternarylogic_epi32(u, counts->ones, next, kSelect);
  counts->ones = next;
  counts->twos = _mm512_add_epi32(counts->twos, _mm512_popcnt_epi32(carry));
  __asm__ volatile("" : "+v"(counts->ones), "+v"(counts->twos));  // one after the other
}

// The same of one word.
INLINE void AddWord(Counts* counts, const uint32_t* x, __m512i w) {
  const __m512i next = AddOnes(counts->ones, x, w);
  const __m512i carry = _mm512_andnot_si512(next, counts->ones);
  counts->ones = next;
  counts->twos = _mm512_add_epi32(counts->twos, _mm512_popcnt_epi32(carry));
  __asm__ volatile("" : "+v"(counts->ones), "+v"(counts->twos));
}

INLINE __m512i Total(__m512i initial, Counts counts) {
  const __m512i twice = _mm512_add_epi32(counts.twos, counts.twos);
  return _mm512_add_epi32(_mm512_add_epi32(initial, twice), _mm512_popcnt_epi32(counts.ones));
}

// Calls finish(pixel, vector, sums) with the sums of a register tile, `vector` vectors into the
// blocks.
template <int kPixels, int kVectors, typename Finish>
void AddUpTile(const AccumulateArgs& args, int64_t pixel, int64_t vector, const Finish& finish) {
  const int64_t step = args.blocks * kBlock;  // of a word's weights
  const uint32_t* weights = args.weights + vector * kBlock;
  Counts counts[kPixels][kVectors] = {};
  for (int64_t run = 0; run < args.runs; ++run) {
    const uint32_t* a[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) a[p] = args.windows[pixel + p] + args.run_offsets[run];
    int64_t k = 0;
    for (; k + 2 <= args.run_words; k += 2, weights += 2 * step) {
      __m512i w[2][kVectors];
      UNROLL for (int v = 0; v < kVectors; ++v) {
        w[0][v] = _mm512_load_si512(weights + v * kBlock);
        w[1][v] = _mm512_load_si512(weights + step + v * kBlock);
      }
      UNROLL for (int p = 0; p < kPixels; ++p) {
        UNROLL for (int v = 0; v < kVectors; ++v) {
          AddWords(&counts[p][v], a[p] + k, a[p] + k + 1, w[0][v], w[1][v]);
        }
      }
    }
    if (k == args.run_words) continue;
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m512i w = _mm512_load_si512(weights + v * kBlock);
      UNROLL for (int p = 0; p < kPixels; ++p) AddWord(&counts[p][v], a[p] + k, w);
    }
    weights += step;
  }
  __m512i sums[kPixels][kVectors];
  UNROLL for (int p = 0; p < kPixels; ++p) {
    const int32_t* const initial = args.initial[pixel + p] + args.initial_offset + vector * kBlock;
    UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[p][v] = Total(_mm512_load_si512(initial + v * kBlock), counts[p][v]);
    }
  }
  finish(pixel, vector, sums);
}

// The same without adders, for few words.
template <int kPixels, int kVectors, typename Finish>
void CountTile(const AccumulateArgs& args, int64_t pixel, const Finish& finish) {
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
  finish(pixel, 0, sums);
}

template <int kPixels, int kVectors, bool kAddsUp, typename Finish>
INLINE void AccumulateTile(const AccumulateArgs& args, int64_t pixel, const Finish& finish) {
  if constexpr (!kAddsUp) {
    CountTile<kPixels, kVectors>(args, pixel, finish);
  } else if constexpr (kPixels <= 2 || kVectors <= 2) {
    AddUpTile<kPixels, kVectors>(args, pixel, 0, finish);
  } else {  // two vectors at a time: each sum takes two registers
    AddUpTile<kPixels, 2>(args, pixel, 0, finish);
    AddUpTile<kPixels, kVectors - 2>(args, pixel, 2, finish);
  }
}

template <int kVectors, bool kAddsUp, typename Finish>
void AccumulateVectors(const AccumulateArgs& args, const Finish& finish) {
  int64_t pixel = 0;
  for (; pixel + kMaxPixels <= args.pixels; pixel += kMaxPixels) {
    AccumulateTile<kMaxPixels, kVectors, kAddsUp>(args, pixel, finish);
  }
  switch (args.pixels - pixel) {
    case 5:
      return AccumulateTile<5, kVectors, kAddsUp>(args, pixel, finish);
    case 4:
      return AccumulateTile<4, kVectors, kAddsUp>(args, pixel, finish);
    case 3:
      return AccumulateTile<3, kVectors, kAddsUp>(args, pixel, finish);
    case 2:
      return AccumulateTile<2, kVectors, kAddsUp>(args, pixel, finish);
    case 1:
      return AccumulateTile<1, kVectors, kAddsUp>(args, pixel, finish);
  }
}

template <bool kAddsUp, typename Finish>
void AccumulateBlocks(const AccumulateArgs& args, const Finish& finish) {
  static_assert(kMaxVectors * kBlock == kTileChannels, "a tile is one register tile wide");
  switch (args.blocks) {
    case 4:
      return AccumulateVectors<4, kAddsUp>(args, finish);
    case 3:
      return AccumulateVectors<3, kAddsUp>(args, finish);
    case 2:
      return AccumulateVectors<2, kAddsUp>(args, finish);
    case 1:
      return AccumulateVectors<1, kAddsUp>(args, finish);
  }
}

template <typename Finish>
void AccumulateBlocks(const AccumulateArgs& args, const Finish& finish) {
  const int64_t saved = args.runs * (args.run_words / 2 - args.run_words % 2);
  if (saved > kAdderCost) {
    AccumulateBlocks<true>(args, finish);
  } else {
    AccumulateBlocks<false>(args, finish);
  }
}

// The outputs of a register tile: its sums (StoreSums), or their signs (StoreSigns).
struct StoreSums {
  int32_t* out;

  template <int kPixels, int kVectors>
  void operator()(int64_t pixel, int64_t vector, const __m512i (&sums)[kPixels][kVectors]) const {
    int32_t* const to = out + pixel * kTileChannels + vector * kBlock;
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
  void operator()(int64_t pixel, int64_t vector, const __m512i (&sums)[kPixels][kVectors]) const {
    uint32_t* const to = out + pixel * pixel_stride + vector / 2;
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

void SplitRow(const SplitRowArgs& args) {
  auto* const planes = static_cast<uint32_t*>(args.planes);
  SplitWords(args, [&](int64_t plane, int64_t first, __m512i words) {
    uint32_t* const to = planes + plane * args.plane_size + first;
    _mm512_mask_storeu_epi32(to, FirstLanes(args.out_width - first), words);
  });
}

// The mismatches of a register tile of channels x vectors of 16 pixels.
template <int kChannels, int kVectors>
INLINE void AddUpPlanes(const ConvolvePlanesArgs& args, const uint32_t* input,
                        const uint32_t* weights, __m512i (&sums)[kChannels][kVectors]) {
  Counts counts[kChannels][kVectors] = {};
  int64_t k = 0;
  for (; k + 2 <= args.numbers; k += 2, weights += 2 * kChannels) {
    const uint32_t* const first = input + args.offsets[k];
    const uint32_t* const second = input + args.offsets[k + 1];
    __m512i a[kVectors], b[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) {
      a[v] = _mm512_loadu_si512(first + v * 16);
      b[v] = _mm512_loadu_si512(second + v * 16);
    }
    UNROLL for (int c = 0; c < kChannels; ++c) {
      UNROLL for (int v = 0; v < kVectors; ++v) {
        AddWords(&counts[c][v], weights + c, weights + kChannels + c, a[v], b[v]);
      }
    }
  }
  if (k < args.numbers) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m512i a = _mm512_loadu_si512(input + args.offsets[k] + v * 16);
      UNROLL for (int c = 0; c < kChannels; ++c) AddWord(&counts[c][v], weights + c, a);
    }
  }
  UNROLL for (int c = 0; c < kChannels; ++c) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[c][v] = Total(_mm512_setzero_si512(), counts[c][v]);
    }
  }
}

// Adds the mismatches of one word of a window to `sums`; kFirst: overwrites `sums` with them.
template <bool kFirst, int kChannels, int kVectors>
INLINE void CountWord(const uint32_t* input, const uint32_t* weights,
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

// AddUpPlanes without adders, for few words.
template <int kChannels, int kVectors>
INLINE void CountPlanes(const ConvolvePlanesArgs& args, const uint32_t* input,
                        const uint32_t* weights, __m512i (&sums)[kChannels][kVectors]) {
  CountWord<true>(input + args.offsets[0], weights, sums);
  for (int64_t k = 1; k < args.numbers; ++k) {
    weights += kChannels;
    CountWord<false>(input + args.offsets[k], weights, sums);
  }
}

// What a register tile is: kAddsUp: by adders; kWhole: no pixel is missing.
template <bool kAdders, bool kFull, Epilogue kLast>
struct TileKind {
  static constexpr bool kAddsUp = kAdders;
  static constexpr bool kWhole = kFull;
  static constexpr Epilogue kEpilogue = kLast;
};

// A register tile of channels x vectors of 16 pixels, from pixel `first` on. words: the bits of 32
// channels per pixel, in which the tile sets its own.
template <typename Kind, int kChannels, int kVectors>
void ConvolveTile(const ConvolvePlanesArgs& args, int64_t channel, int64_t first, uint32_t* words) {
  constexpr bool kWhole = Kind::kWhole;
  const uint32_t* const input = static_cast<const uint32_t*>(args.input) + first;
  const uint32_t* const weights = args.weights + channel * args.numbers;
  __m512i sums[kChannels][kVectors];
  if constexpr (Kind::kAddsUp) {
    AddUpPlanes(args, input, weights, sums);
  } else {
    CountPlanes(args, input, weights, sums);
  }
  // A local copy: the compiler can assume that no store changes it.
  const FinishFloatArgs finish = args.finish;
  __m512i patterns[kVectors];
  UNROLL for (int v = 0; v < kVectors; ++v) patterns[v] = LoadPatterns(args, first + v * 16);
  const __mmask16 last_mask = FirstLanes(finish.pixels - first - (kVectors - 1) * 16);
  UNROLL for (int c = 0; c < kChannels; ++c) {
    const __m512 constant = _mm512_load_ps(args.constant + (channel + c) * kMaxPatterns);
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const __mmask16 mask = kWhole || v + 1 < kVectors ? kAllLanes : last_mask;
      FinishPixels<Kind::kEpilogue>(finish, channel + c, first + v * 16, mask, sums[c][v],
                                    _mm512_permutexvar_ps(patterns[v], constant), words);
    }
  }
}

template <typename Kind, int kVectors>
void ConvolveVectors(const ConvolvePlanesArgs& args, int64_t first, uint32_t* words) {
  const int64_t channels = args.finish.channels;
  int64_t channel = 0;
  for (; channel + kPlaneChannels <= channels; channel += kPlaneChannels) {
    ConvolveTile<Kind, kPlaneChannels, kVectors>(args, channel, first, words);
  }
  switch (channels - channel) {
    case 5:
      return ConvolveTile<Kind, 5, kVectors>(args, channel, first, words);
    case 4:
      return ConvolveTile<Kind, 4, kVectors>(args, channel, first, words);
    case 3:
      return ConvolveTile<Kind, 3, kVectors>(args, channel, first, words);
    case 2:
      return ConvolveTile<Kind, 2, kVectors>(args, channel, first, words);
    case 1:
      return ConvolveTile<Kind, 1, kVectors>(args, channel, first, words);
  }
}

template <Epilogue kEpilogue>
void ConvolveEpilogue(const ConvolvePlanesArgs& args, uint32_t* words) {
  const int64_t pixels = args.finish.pixels;
  if (args.numbers / 2 > kPlaneAdderCost) {
    using Whole = TileKind<true, true, kEpilogue>;
    using Rest = TileKind<true, false, kEpilogue>;
    int64_t first = 0;
    for (; first + 32 <= pixels; first += 32) ConvolveVectors<Whole, 2>(args, first, words);
    if (pixels - first > 16) return ConvolveVectors<Rest, 2>(args, first, words);
    if (pixels > first) return ConvolveVectors<Rest, 1>(args, first, words);
    return;
  }
  if (pixels == 64) return ConvolveVectors<TileKind<false, true, kEpilogue>, 4>(args, 0, words);
  using Rest = TileKind<false, false, kEpilogue>;
  switch ((pixels + 15) / 16) {
    case 4:
      return ConvolveVectors<Rest, 4>(args, 0, words);
    case 3:
      return ConvolveVectors<Rest, 3>(args, 0, words);
    case 2:
      return ConvolveVectors<Rest, 2>(args, 0, words);
    case 1:
      return ConvolveVectors<Rest, 1>(args, 0, words);
  }
}

static_assert(kTilePixels == 64, "what the tiles above are made for");

// Loop parameters of binarize.inl, explained there.
constexpr int kBinarizeVectors = 16;
constexpr int kAbsMeanVectors = 8;
constexpr int kFewVectors = 4;
constexpr bool kMeansRows = true;

constexpr int kPairSums = 24;
constexpr int kPairVectors = 3;
void StoreWords(void* to, Words words) { _mm512_storeu_si512(to, words); }
uint32_t ReachedLanes(const int32_t* sums, const int32_t* least) {
  return _mm512_cmpge_epi32_mask(LoadWords(sums), LoadWords(least));
}
uint32_t ReachedWord(const int32_t* sums, const int32_t* least) {
  uint32_t reached = 0;
  UNROLL for (int i = 0; i < 32; i += kLanes) reached |= ReachedLanes(sums + i, least + i) << i;
  return reached;
}
// GCC 12 would copy the sums to other registers and back.
Words AddPairs(Words sums, Words w, const uint32_t* x, int p) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(w), "v"(SplatWord(x[p])));
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
  kernels.plane_channels = kPlaneChannels;
  kernels.most_plane_words = kMostPlaneWords;
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr Kernels kAvx512Kernels = MakeKernels();

}  // namespace bnn_deploy
