// The integer form of a direct convolution of bytes to bits: sums of integers that decide almost
// every bit as the float sums do, provably, and tell which they cannot decide.
//
// A byte stands for a level x, and a level is an integer X times a step, plus an offset, plus a
// small rest; a weight w is s W plus a small rest; all rests are known. Where kernels take 8
// bits, they are given X less a shift, and the sums start at the shift times the sum of W. So
// the exact sum of w x is s times the integer sum of W X, plus a constant, within a bound on the
// rests; and the float sum, in the order of DirectConvArgs, is within the classic bound of the
// exact one (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., (3.3): n roundings
// of 2^-24 each of the sum of magnitudes). Where the integer sum is further from a threshold
// than both bounds, the bit is known.

#ifndef BNN_DEPLOY_DRIVERS_DIRECT_INTEGER_FORM_H_
#define BNN_DEPLOY_DRIVERS_DIRECT_INTEGER_FORM_H_

#include <cstdint>
#include <optional>

#include "base/buffer.h"
#include "drivers/direct/spec.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// The integer sums that decide a bit, [channels rounded up to whole vectors]; NEVER beyond them.
struct Decisions {
  Buffer<int32_t> reaches;  // a sum of at least this: 1
  Buffer<int32_t> may;      // a sum below this: 0
};

struct IntegerForm {
  Buffer<int16_t> levels;    // X - shift: [channels][kByteValues]
  Buffer<int16_t> padding;   // -shift: [channels]
  Buffer<uint32_t> weights;  // W: see DirectIntegersArgs
  int64_t groups;            // of taps, see GroupsOf
  Buffer<int32_t> starts;    // of the sums, for the shifts; one for each channel of `Decisions`
  Decisions inside;          // for windows that lie inside the image
  Decisions at_padding;      // for the others, where the offset of a padded tap is an error, too
};

// Nullopt where the bounds would leave many bits undecided, such as with levels that are no line.
// weights: [out_channels][channels][kernel height][kernel width]; levels: [channels][kByteValues];
// bias and threshold: [out_channels].
std::optional<IntegerForm> MakeIntegerForm(const DirectSpec& spec, const Kernels& kernels,
                                           const float* weights, const float* bias,
                                           const float* threshold, const float* levels);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_DIRECT_INTEGER_FORM_H_
