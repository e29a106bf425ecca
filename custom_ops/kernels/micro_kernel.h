// The contract between the drivers and the micro-kernels: raw pointers and counts, no C++ library.
//
// A unit `kernels/<isa>.cc` is compiled with the flags of its instruction set, so nothing that the
// linker could share with other units may be defined here or there: no inline function, no
// template with external linkage, no standard library. Each unit includes the shared code
// (generic/*.inl) into its own anonymous namespace, after the vector type that this code uses
// (vectors/*.inl).

#ifndef BNN_DEPLOY_KERNELS_MICRO_KERNEL_H_
#define BNN_DEPLOY_KERNELS_MICRO_KERNEL_H_

#include <stdint.h>

namespace bnn_deploy {

// The sums of a tile stay in the first-level cache between accumulation and output.
constexpr int64_t kTilePixels = 64;    // a multiple of 16
constexpr int64_t kTileChannels = 64;  // a multiple of 32, so that tiles begin at word boundaries

// sums[p][o] = initial[p][initial_offset + o] + sum over r < runs, k < run_words of
//     popcount(windows[p][run_offsets[r] + k] ^ W[o][r * run_words + k])
// for p < pixels and o < blocks * channel_block.
//
// Units: offsets, lengths and strides count elements (32-bit words). K = runs * run_words.
// weights: [blocks][4 * K / granule][channel_block][granule] bytes (words are little-endian), or
// [4 * K / granule][blocks][channel_block][granule] where the unit takes the blocks together;
// aligned to the last two dimensions (at most 64 bytes). Where 4 * run_words is no multiple of
// granule, each run ends with pieces of granule / 2, granule / 4 and so on bytes, every size at
// most once and in that order, each laid out like a granule: [channel_block][granule / 2]. Example:
// channel_block 8, granule 16 and one run of 5 words give [8][16] bytes, then [8][4].
//
// windows: word aligned, read only inside the runs (no over-read). A unit with
// `gathers` gets one run of whole granules.
//
// initial: rows readable up to the next multiple of 32 channels, 64-byte aligned at
// initial_offset; no value is positive. The population counts add up to at most 32 * K, and the
// caller keeps K below 2^26.
//
// sums: [pixels][kTileChannels], 64-byte aligned; lanes beyond the last block are not written.
struct AccumulateArgs {
  const uint32_t* const* windows;
  int64_t pixels;  // 1 .. kTilePixels
  const int64_t* run_offsets;
  int64_t runs;
  int64_t run_words;
  const uint32_t* weights;
  int64_t blocks;  // blocks * channel_block <= kTileChannels
  const int32_t* const* initial;
  int64_t initial_offset;
  int32_t* sums;
};
using AccumulateFn = void (*)(const AccumulateArgs& args);

// The signs of the sums of AccumulateArgs: bit o % 32 of out[p * pixel_stride + o / 32] =
// (sums[p][o] < 0) for p < pixels and o < 32 * ceil(blocks * channel_block / 32); 0 beyond the last
// block.
//
// accumulate.sums is scratch space. out: word aligned; every word is stored, possibly byte by byte.
struct AccumulateBitsArgs {
  AccumulateArgs accumulate;
  uint32_t* out;
  int64_t pixel_stride;
};
using AccumulateBitsFn = void (*)(const AccumulateBitsArgs& args);

// value[p][o] = scale[o] * (products[p] - 2 * sums[p][o]) + bias[o], plus
//     residual[o * channel_stride + p] unless residual is null, or times factor[p] unless factor
//     is null;
// out[o * channel_stride + p] = value[p][o] unless out is null;
// bit o % 32 of bits[p * bits_stride + o / 32] = (value[p][o] >= threshold[o]) unless bits is null;
// for p < pixels and o < channels. Without a residual, out is not null and bits is null;
// residual and factor are not both given.
//
// products and the parenthesis are integers below 2^24 in magnitude, so they are exact in float32.
// A float32 multiply by scale and a float32 add of bias follow, then the float32 add of the
// residual or multiply by the factor. A NaN gives bit 0, and the unused bits of the last word are
// 0; every word of bits is stored once.
//
// sums: as in AccumulateArgs; lanes up to the next multiple of 16 are read and may hold anything.
// scale, bias, threshold (read only for bits): readable up to the next multiple of 32 channels,
// 64-byte aligned; threshold holds NaN beyond the channels. out, residual, factor and bits: aligned
// to their elements, out may be residual; no other element is read or written.
struct FinishFloatArgs {
  const int32_t* sums;
  const float* products;
  const float* scale;
  const float* bias;
  int64_t pixels;
  int64_t channels;
  int64_t channel_stride;
  float* out;
  const float* residual;
  const float* factor;
  const float* threshold;
  uint32_t* bits;
  int64_t bits_stride;
};
using FinishFloatFn = void (*)(const FinishFloatArgs& args);

// out[p * row_stride + o] = scale[o] * (products[p] - 2 * sums[p][o]) + bias[o] for p < pixels and
// o < channels: FinishFloat without an epilogue, where the channels of a pixel lie together, as the
// outputs of linear layers do. The other conditions are those of FinishFloatArgs.
struct FinishRowsArgs {
  const int32_t* sums;
  const float* products;
  const float* scale;
  const float* bias;
  int64_t pixels;
  int64_t channels;
  float* out;
  int64_t row_stride;
};
using FinishRowsFn = void (*)(const FinishRowsArgs& args);

// The last operation on the value of FinishFloatArgs; a unit has one code path for each.
enum class Epilogue { kBias, kResidual, kFactor };

// The convolution fused with FinishFloat, for units that take pixels as the lanes of a vector, so
// that sums need no transpose to become planes of floats: FinishFloatArgs with
//
// products[p] - 2 * sums[p][o] = constant[o * kMaxPatterns + patterns[p]] - 2 * mismatches[p][o],
// mismatches[p][o] = sum over k < numbers of popcount(input[offsets[k] + p] ^ W[o][k]).
//
// Numbers are of the unit's plane_bytes: words, or the four bytes of each word. The constant, the
// mismatches and the result are integers up to 2^24 in magnitude. numbers: of 1 to most_plane_words
// words. weights: [numbers][plane_channels] for every plane_channels channels, and
// [numbers][channels] for the remaining channels, where a byte is a word of four of it. Where
// plane_pair_step is not 0: [ceil(channels / 2)][numbers, rounded up to plane_pair_step] words of
// the nibbles of the bytes of two channels, a.low << 4 | b.low << 8 | a.high << 20 | b.high << 24;
// what does not exist is 0. patterns: below kMaxPatterns. input: readable up to the next multiple
// of kPlaneSlack bytes of pixels; patterns: for kTilePixels pixels. constant: 64-byte aligned.
// finish.sums and finish.products are not used.
constexpr int64_t kMaxPatterns = 16;
constexpr int64_t kPlaneSlack = 64;
struct ConvolvePlanesArgs {
  const void* input;
  const int64_t* offsets;
  int64_t numbers;
  const uint8_t* patterns;
  const float* constant;
  const uint32_t* weights;
  FinishFloatArgs finish;
};
using ConvolvePlanesFn = void (*)(const ConvolvePlanesArgs& args);

// planes[(w * kernel + x) * plane_size + i] = row[(i * stride + x * dilation) * words + w]
// for w < words, x < kernel and i < out_width, where numbers are words; byte b of the same word is
// planes[((w * kernel + x) * 4 + b) * plane_size + i] where they are bytes.
//
// Aligned to numbers; up to kRowSlack words after the end of the row may be read.
constexpr int64_t kRowSlack = 256;
struct SplitRowArgs {
  const uint32_t* row;
  int64_t words;
  int64_t stride;
  int64_t dilation;
  int64_t kernel;
  int64_t out_width;
  void* planes;
  int64_t plane_size;  // in numbers
};
using SplitRowFn = void (*)(const SplitRowArgs& args);

// Bit c % 32 of out[p * ceil(channels / 32) + c / 32] = (planes[c * channel_stride + p] >=
// threshold[c]) for p < pixels and c < channels; the unused bits of the last word are 0, and so is
// the bit of a NaN. Float and word aligned, no over-read.
struct BinarizeArgs {
  const float* planes;
  int64_t channel_stride;
  const float* threshold;
  int64_t channels;
  int64_t pixels;
  uint32_t* out;
};
using BinarizeFn = void (*)(const BinarizeArgs& args);

// Two results from one pass over the planes:
//
// * out: as in BinarizeArgs;
// * mean[p] = (sum over c < channels of |scale[c] * planes[c * channel_stride + p] + shift[c]|)
//             / channels for p < pixels.
//
// Each term is a float32 multiply and a float32 add. They are summed in float32 in any order that
// adds at most 32 terms sequentially, and then at most channels / 32 of these sums; a division
// follows. No term is negative, so the result is within min(channels, channels / 32 + 40)
// * 2^-24, in relative terms, of the exact mean of these terms. A NaN makes its mean NaN. All:
// float and word aligned, no over-read; mean is also used as scratch space.
struct BinarizeAbsMeanArgs {
  const float* planes;
  int64_t channel_stride;
  const float* threshold;
  const float* scale;
  const float* shift;
  int64_t channels;
  int64_t pixels;
  uint32_t* out;
  float* mean;
};
using BinarizeAbsMeanFn = void (*)(const BinarizeAbsMeanArgs& args);

// Bit c % 32 of out[p * words + c / 32] = (x[p * channels + c] >= threshold[c]) for p < pixels and
// c < channels, words = ceil(channels / 32); the unused bits of the last word are 0, and so is the
// bit of a NaN. x, threshold and out: element aligned, no over-read.
struct BinarizeRowsArgs {
  const float* x;
  const float* threshold;
  int64_t channels;
  int64_t pixels;
  uint32_t* out;
};
using BinarizeRowsFn = void (*)(const BinarizeRowsArgs& args);

// Bit c % 32 of out[p * words + c / 32] = (x[p * channels + c] >= level[c]), where bit c % 32 of
// reachable[c / 32] is set, else 0; for p < pixels and c < channels, words = ceil(channels / 32).
// The unused bits of the last word are 0 in out and in reachable.
//
// level: readable up to the next multiple of 64 channels, 64-byte aligned. x: no over-read.
struct BinarizeBytesArgs {
  const uint8_t* x;
  const uint8_t* level;
  const uint32_t* reachable;
  int64_t channels;
  int64_t pixels;
  uint32_t* out;
};
using BinarizeBytesFn = void (*)(const BinarizeBytesArgs& args);

// Bit c % 32 of out[(r * out_width + x) * ceil(channels / 32) + c / 32] = (sum >= threshold[c]) for
// r < out_rows, x < out_width and c < channels, where sum is
//     row(0) + row(1) + ... of the taps of row r, 0 where it has none;
//     row(i) is the plane's row at rows[r].first + i * row_step, of width floats, or what is larger
//     in each place, it or 0, if relu, between zeros: left before it, and as many as are read
//     behind it;
// and then column(0) + column(1) + ... + column(kernel - 1) of this row of sums, where column(j) is
// its element at x * stride + j * dilation. All sums are in float32, in this order; the unused bits
// of the last word are 0, and so is the bit of a NaN.
//
// span: a multiple of stride, at least out_width * stride, left + width, and the number of columns
// that a row's windows reach over. sums: scratch space of out_rows * span + kernel * dilation
// floats; reached: of out_rows * span / stride words. planes: no over-read.
struct PoolTaps {
  int64_t first;
  int64_t count;
};
struct AveragePoolArgs {
  const float* planes;
  int64_t channel_stride;
  int64_t channels;
  int64_t width;
  bool relu;
  const PoolTaps* rows;
  int64_t row_step;
  int64_t out_rows;
  int64_t left;
  int64_t kernel;
  int64_t stride;
  int64_t dilation;
  int64_t out_width;
  int64_t span;
  const float* threshold;
  float* sums;
  uint32_t* reached;
  uint32_t* out;
};
using AveragePoolFn = void (*)(const AveragePoolArgs& args);

// Rewrites `row`, a gathered window or a channel's weights in the same order of words, in place to
// the form that the unit's accumulate functions expect for rows of this length. row: word aligned.
using EncodeFn = void (*)(uint32_t* row, int64_t words, bool weights);

// out[p * out_stride + o] = bias[o] + the sum over k < taps of
//     W[o][k] * input[offsets[k] + p]
// for p < pixels and o < channels, added in this order: bias first,
// then k = 0, 1, ..., each a fused multiply-add in float32 (kScalarKernels rounds the product,
// too).
//
// channels: a multiple of the unit's `lanes`. weights: [tiles][taps][tile channels], the tiles
// being those of TileOf. input may be read, and out written, for up to the unit's `slack` pixels
// more. All: element aligned.
template <typename Number, typename Sum>
struct DirectArgs {
  const Number* input;
  const int64_t* offsets;
  int64_t taps;
  const Number* weights;
  const Sum* bias;
  int64_t channels;
  int64_t pixels;
  Sum* out;
  int64_t out_stride;
};

struct DirectWidth {
  int64_t first;
  int64_t channels;
};

namespace {

// The register tile of a direct convolution that holds `channel`: tiles of `widest` channels, and
// at last the rest. A rest of one vector, which would need a load for each product, shares with
// the tile before it.
[[maybe_unused]] constexpr DirectWidth TileOf(int64_t channel, int64_t channels, int64_t widest,
                                              int64_t lanes) {
  const int64_t half = 2 * lanes;
  const int64_t shared = channels - 2 * half;
  if (widest == 3 * lanes && shared >= 0 && channels % widest == lanes && channel >= shared) {
    return {shared + (channel - shared) / half * half, half};
  }
  const int64_t first = channel / widest * widest;
  return {first, channels - first < widest ? channels - first : widest};
}

}  // namespace

using DirectConvArgs = DirectArgs<float, float>;
using DirectConvFn = void (*)(const DirectConvArgs& args);

// The same, but for `channels`, which is that of IntegerKernels, where a number of the input is a
// group of integers, the first in the low bits: 2 of 16 bits or 4 of 8. Its product is the sum of
// the products with the integers of a weight, each of 16 bits. Where `limbs` is 1, a weight is one
// number, made as the input's. Where it is 2, a weight is two numbers of integers of 8 bits, first
// those of `high`, then those of `low`, of the weights 256 * high + low; and weights are
// [tiles][taps][tile channels / lanes][limbs][lanes]. Sums are taken modulo 2^32.
using DirectIntegersArgs = DirectArgs<uint32_t, int32_t>;
using DirectIntegersFn = void (*)(const DirectIntegersArgs& args);
constexpr int64_t kMaxGroup = 4;

// Bit o % 32 of out[p * words + o / 32] = (sums[p * channels + o] >= reaches[o]), and likewise of
// undecided (may[o] <= sums[p * channels + o] < reaches[o]), for p < pixels and o < channels, words
// = ceil(channels / 32); the unused bits of the last words are 0.
//
// channels: a multiple of the unit's `lanes`. All: element aligned, no over-read.
struct DecideArgs {
  const int32_t* sums;
  const int32_t* reaches;
  const int32_t* may;
  int64_t channels;
  int64_t pixels;
  uint32_t* out;
  uint32_t* undecided;
};
using DecideFn = void (*)(const DecideArgs& args);

// One sum of DirectConvArgs: of the pixel at `input`, with the weights weights[k * stride].
struct SumAt {
  const float* input;
  const float* weights;
  int64_t stride;
  float bias;
};

// out[i] = the sum at points[i], in the order of DirectConvArgs, for i < count. No over-read.
struct SumsAtArgs {
  const SumAt* points;
  int64_t count;
  const int64_t* offsets;
  int64_t taps;
  float* out;
};
using SumsAtFn = void (*)(const SumsAtArgs& args);

// out[o * channel_stride + p] = the maximum of rows[r][x * row_stride + o] over r < row_count and
// the x of the window, p * stride - pad <= x < p * stride - pad + kernel and 0 <= x < width, for
// p < pixels and o < channels. Of two zeros and where one is NaN, the earlier one counts, in the
// order r, x.
//
// No window is empty. rows: readable up to the next multiple of the unit's `lanes` channels. out:
// element aligned, nothing else is written.
struct PoolRowsArgs {
  const float* const* rows;
  int64_t row_count;
  int64_t row_stride;
  int64_t width;
  int64_t kernel;
  int64_t stride;
  int64_t pad;
  int64_t channels;
  int64_t pixels;
  float* out;
  int64_t channel_stride;
};
using PoolRowsFn = void (*)(const PoolRowsArgs& args);

// The kernels of a direct convolution in integers, with the `lanes` of DirectKernels.
struct IntegerKernels {
  int64_t group;     // integers in a number of the input, 2 or 4
  int64_t limbs;     // numbers in a weight: 1 for groups of 2, 2 for groups of 4
  int64_t channels;  // of a register tile, a multiple of `lanes`
  DirectIntegersFn convolve;
  DecideFn decide;
  SumsAtFn sums_at;
};

// The kernels of a direct convolution of floats, and the sizes of their register tiles.
struct DirectKernels {
  int64_t lanes;     // channels in a vector
  int64_t channels;  // of a register tile, a multiple of `lanes`
  int64_t slack;     // pixels
  DirectConvFn convolve;
  PoolRowsFn pool_rows;
};

// The next two functions sum rows of floats to `sums`, in this order: what is in sums first, then
// row 0, 1, ..., each by a fused multiply-add in float32 (kScalarKernels rounds the product, too).
// A row of sums is readable and writable up to the next multiple of 16 floats; nothing else is read
// or written beyond what is said. All: float aligned.

// sums[o] += the sum over i < count of x[i] * rows[i][o], for o < channels.
struct AddRowsArgs {
  float* sums;
  const float* x;
  const float* const* rows;
  int64_t count;
  int64_t channels;
};
using AddRowsFn = void (*)(const AddRowsArgs& args);

// The same for several images with the same rows: sums[n * sums_stride + o] += the sum over i <
// count of x[n * x_stride + i] * rows[i * row_stride + o], for n < images and o < channels.
//
// images: a multiple of the unit's `images`. packed: scratch space of count * channels floats,
// channels rounded up to a multiple of 16.
struct MultiplyRowsArgs {
  float* sums;
  int64_t sums_stride;
  const float* x;
  int64_t x_stride;
  int64_t images;
  const float* rows;
  int64_t row_stride;
  int64_t count;
  int64_t channels;
  float* packed;
};
using MultiplyRowsFn = void (*)(const MultiplyRowsArgs& args);

struct LinearKernels {
  int64_t images;  // of a register tile
  AddRowsFn add_rows;
  MultiplyRowsFn multiply_rows;
};

// The kernels and layout constants of a unit. A unit assigns the entries by name; an entry that it
// leaves out is null or 0, and IsComplete then returns false unless the entry is optional.
struct Kernels {
  int64_t channel_block = 0;     // output channels in a block of packed weights; divides 32
  int64_t granule = 0;           // contiguous bytes of a channel, a power of two
  bool gathers = false;          // windows are gathered, and padded to whole granules
  bool blocks_together = false;  // the blocks of a tile alternate in its weights, which the
                                 // micro-kernel then reads sequentially: from memory, a single
                                 // stream is faster than one per block
  AccumulateFn accumulate = nullptr;
  AccumulateBitsFn accumulate_bits = nullptr;
  FinishFloatFn finish_float = nullptr;
  FinishRowsFn finish_rows = nullptr;
  BinarizeFn binarize = nullptr;
  BinarizeAbsMeanFn binarize_abs_mean = nullptr;
  BinarizeRowsFn binarize_rows = nullptr;
  BinarizeBytesFn binarize_bytes = nullptr;
  AveragePoolFn average_pool = nullptr;
  const DirectKernels* direct = nullptr;
  const LinearKernels* linear = nullptr;
  const IntegerKernels* direct_integers = nullptr;  // optional: where they are faster than floats
  SplitRowFn split_row = nullptr;              // optional, with convolve_planes: null where the
  ConvolvePlanesFn convolve_planes = nullptr;  // unit does not take pixels as lanes
  int64_t plane_bytes = 4;                     // of a number of the planes: 4 or 1
  int64_t plane_channels = 0;                  // of a register tile
  int64_t plane_pair_step = 0;                 // numbers, where channels are paired
  int64_t most_plane_words = 0;                // of the windows for which pixels as lanes pay
  EncodeFn encode = nullptr;  // optional; windows of encoded_words or more words are
  int64_t encoded_words = 0;  // encoded, and gathered even where `gathers` is false
};

namespace {

// For a static_assert beside each table; in an anonymous namespace, like all definitions in units.
[[maybe_unused]] constexpr bool IsComplete(const Kernels& kernels) {
  return kernels.channel_block > 0 && 32 % kernels.channel_block == 0 && kernels.granule > 0 &&
         (kernels.granule & (kernels.granule - 1)) == 0 && kernels.accumulate != nullptr &&
         kernels.accumulate_bits != nullptr && kernels.finish_float != nullptr &&
         kernels.finish_rows != nullptr && kernels.binarize != nullptr &&
         kernels.binarize_abs_mean != nullptr && kernels.binarize_rows != nullptr &&
         kernels.binarize_bytes != nullptr && kernels.average_pool != nullptr &&
         kernels.direct != nullptr && kernels.linear != nullptr &&
         (kernels.split_row == nullptr) == (kernels.convolve_planes == nullptr) &&
         (kernels.split_row == nullptr) == (kernels.plane_channels == 0) &&
         (kernels.split_row == nullptr) == (kernels.most_plane_words == 0) &&
         (kernels.encode == nullptr) == (kernels.encoded_words == 0);
}

}  // namespace

// The tables of all units, those of other architectures included.
#define BNN_DEPLOY_ISA(name, kernels, architecture, runs_here) extern const Kernels kernels;
#include "kernels/isas.inc"
#undef BNN_DEPLOY_ISA

// Of both NEON units.
extern const DirectKernels kNeonDirect;
extern const LinearKernels kNeonLinear;

// A unit with the name that BNN_DEPLOY_ISA and the library's reports use.
struct Isa : Kernels {
  const char* name;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_KERNELS_MICRO_KERNEL_H_
