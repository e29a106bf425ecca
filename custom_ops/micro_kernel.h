// The contract between the drivers and the micro-kernels: raw pointers and counts, no C++ library.
//
// A unit `kernels_<isa>.cc` is compiled with the flags of its instruction set, so nothing that the
// linker could share with other units may be defined here or there: no inline function, no
// template with external linkage, no standard library.

#ifndef BNN_DEPLOY_MICRO_KERNEL_H_
#define BNN_DEPLOY_MICRO_KERNEL_H_

#include <stdint.h>

namespace bnn_deploy {

// A tile is what stays in the first-level cache between accumulation and output.
constexpr int64_t kTilePixels = 64;    // a multiple of 16
constexpr int64_t kTileChannels = 64;  // a multiple of 32, so that tiles meet at word boundaries

// mismatches[p][o] = sum over r < runs, k < run_words of
//     popcount(windows[p][run_offsets[r] + k] ^ W[o][r * run_words + k])
// for p < pixels and o < blocks * channel_block.
//
// Units: offsets, lengths and strides count elements (32-bit words). K = runs * run_words.
// weights: [blocks][4 * K / granule][channel_block][granule] bytes (words are little-endian),
// aligned to the last two dimensions (at most 64 bytes).
// windows: word aligned, read only inside the runs (no over-read).
// granule > 4: runs is 1 and 4 * run_words is a multiple of granule.
// mismatches: [pixels][kTileChannels], 64-byte aligned; lanes beyond the last block keep their
// value. A sum is at most 32 * K, and the caller keeps K below 2^26.
struct AccumulateArgs {
  const uint32_t* const* windows;
  int64_t pixels;  // 1 .. kTilePixels
  const int64_t* run_offsets;
  int64_t runs;
  int64_t run_words;
  const uint32_t* weights;
  int64_t blocks;  // blocks * channel_block <= kTileChannels
  int32_t* mismatches;
};
using AccumulateFn = void (*)(const AccumulateArgs& args);

// out[o * channel_stride + p] = scale[o] * float(base[p][o] - 2 * mismatches[p][o]) + bias[o]
// for p < pixels and o < channels, as a float32 multiply and then a float32 add.
//
// mismatches: as above. base[p], scale, bias: readable up to the next multiple of 32 channels,
// 64-byte aligned. out: float aligned; nothing outside the formula is written.
struct FinishFloatArgs {
  const int32_t* mismatches;
  const int32_t* const* base;
  const float* scale;
  const float* bias;
  int64_t pixels;
  int64_t channels;
  float* out;
  int64_t channel_stride;
};
using FinishFloatFn = void (*)(const FinishFloatArgs& args);

// Bit o % 32 of out[p * pixel_stride + o / 32] = (mismatches[p][o] <= limit[p][o])
// for p < pixels and o < 32 * words.
//
// All 32 * words lanes of mismatches and limit are readable and 64-byte aligned; a limit of -1
// gives the 0 of an unused bit. out: word aligned, every word is stored once.
struct FinishBitsArgs {
  const int32_t* mismatches;
  const int32_t* const* limit;
  int64_t pixels;
  int64_t words;
  uint32_t* out;
  int64_t pixel_stride;
};
using FinishBitsFn = void (*)(const FinishBitsArgs& args);

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

struct Isa {
  const char* name;
  int64_t channel_block;  // output channels in a block of packed weights; divides 32
  int64_t granule;        // bytes of a channel that lie together; more than 4: windows are
                          // gathered, and padded to a multiple of it
  AccumulateFn accumulate;
  FinishFloatFn finish_float;
  FinishBitsFn finish_bits;
  BinarizeFn binarize;
};

extern const Isa kIsaScalar;
extern const Isa kIsaAvx2;
extern const Isa kIsaAvx512;
extern const Isa kIsaNeon;

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_MICRO_KERNEL_H_
