// A binary convolution with its weights: padding, tiles and threads around the micro-kernels.
//
// With bits for +1 and -1, a window of n products with mis mismatching bits sums to
// acc = n - 2 * mis.
// Padded taps hold the given pad bits, or, for zero padding, 0 bits and a correction: let R be the
// taps of the window inside the image. A tap outside must contribute nothing, so n counts only the
// products of R, and the initial value of mis subtracts the popcount(W) of the taps outside:
//
//   n = channels / group * |R|   and   mis = -popcount(W outside R) + all counted mismatches.
//
// R is a rectangle (a box in volumes) that depends on the output row and column alone and takes few
// values (9 for a 3x3 kernel with padding 1), so n and the initial value of mis are a small table
// per image size and the micro-kernels know no special case. For bit output the initial value
// includes the threshold: acc >= threshold exactly where the sum is negative.
//
// Levels 0 .. M = 2^k - 1 are k bit planes. The product of a bit b and a weight of ±1 with bit v is
// v - (b ^ v), so with mis_j mismatches in plane j
//
//   sum of level * weight = M * popcount(W) - sum over j of 2^j * mis_j.
//
// The planes are added from the highest to the lowest, doubling the sum in between. A padded tap
// holds level 0, whose bits are 0, and so adds nothing without a correction.
//
// Bases are products of bit planes s_p of ±1 with weights B_q of ±1, each an acc as above, where
// s_0 = B_0 = 1. What depends on no data (s_0) is a table like the initial sums; the products with
// B_0 are one sum of signs per pixel and plane. Both fill the output, to which each product is then
// added like a residual.

#ifndef BNN_DEPLOY_DRIVERS_CONV_DRIVER_H_
#define BNN_DEPLOY_DRIVERS_CONV_DRIVER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "base/tasks.h"
#include "drivers/conv/input.h"
#include "drivers/conv/layer.h"
#include "drivers/conv/plan.h"
#include "drivers/conv/weights.h"

namespace bnn_deploy {

struct FloatConstants {
  const float* scale;
  const float* bias;
  const float* threshold;  // null: the driver outputs no bits next to floats
};

// y[o] = bias[o] + the sum over p <= planes, q <= bases of scale[p][q][o] * (sum of s_p * B_q[o]),
// added from left to right: p = 0 with q = 0, 1, ...; q = 0 with p = 1, 2, ...; then for q = 1, 2,
// ... all p from 1 on. Each product and each sum is rounded to float32.
struct BasesConstants {
  const float* scale;  // [planes + 1][bases + 1][out_channels]
  const float* bias;   // [out_channels]
};

// out[n][o][y][x] = scale[o] * acc + bias[o], plus residual[n][o][y][x] or times factor[n][y][x];
// bits[n][y][x]: the bit of channel o is out[n][o][y][x] >= threshold[o]. Volumes have [z][y][x].
// For levels, acc is the sum of level * weight, and half of scale[o] must be exact.
struct FloatOutput {
  float* out;                     // may be null next to bits
  const float* residual;          // null: none, and then no bits
  uint32_t* bits;                 // may be null
  const float* factor = nullptr;  // null: none; not with a residual
};

// Runs of one driver may overlap in time.
class ConvDriver {
 public:
  // weights: [out_channels][kernel depth][kernel height][kernel width][ceil(channels / group /
  // 32)], unused bits 0. Everything is copied. The caller has checked: group divides both channel
  // counts, and channels / group * taps < 2^24.
  ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
             const FloatConstants& constants);
  ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights, const int32_t* threshold);
  // weights: [out_channels][bases][kernel height] and so on.
  ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
             const BasesConstants& constants);

  // Float output; the driver has float constants, or those of bases: then with `out` alone.
  void Run(const BitBatch& input, const FloatOutput& output, const TaskRunner& runner) const;
  // Bit output; the driver has integer thresholds.
  // out: [batch][output depth][output height][output width][ceil(out_channels / 32)].
  void Run(const BitBatch& input, uint32_t* out, const TaskRunner& runner) const;

  // The number of plans made: one per image size while the sizes fit into the cache.
  int64_t plans_made() const { return plans_.made(); }

 private:
  ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights);
  // The input without unused bits, see ClearUnusedBits.
  BitBatch Cleared(const BitBatch& input, std::vector<uint32_t>* copy) const;
  std::shared_ptr<const ConvPlan> PlanFor(const BitBatch& input) const;
  void Prefill(const ChannelTile& tile, Range pixels, const ConvPlan& plan, const PixelBlock& block,
               float* out) const;
  void RunWithPlanes(const BitBatch& input, const ConvPlan& plan, const FloatOutput& output,
                     const TaskRunner& runner) const;
  // How a layer is cut into tasks: by pixels alone, or by channels, too. A thread takes neighbours
  // among the tasks: those of the same pixels for outputs whose words of a pixel lie together,
  // those of the same channels for planes, so that threads seldom write to the same cache line.
  enum class Cut { kPixels, kWords, kPlanes };
  template <typename Process>
  void ForEachBlock(const BitBatch& input, const ConvPlan& plan, int64_t grain, Cut cut,
                    const TaskRunner& runner, const Process& process) const;
  template <typename Fill>
  void WriteBits(const ChannelTile& tile, Range pixels, uint32_t* out, const Fill& fill) const;
  // Whether no two groups share an output word, so that different tasks can write their bits.
  bool GroupsAreWholeWords() const;

  const ConvLayer layer_;
  const TapBits tap_bits_;
  const Buffer<uint32_t> weights_;
  const std::vector<uint32_t> plane_weights_;  // for ConvolvePlanesFn
  Buffer<float> scale_;
  Buffer<float> bias_;
  Buffer<float> float_threshold_;   // NaN for unused channels
  std::vector<int32_t> threshold_;  // empty: float output
  std::vector<float> bases_scale_;  // of BasesConstants; scale_ then has a row for each bit plane
  std::vector<float> bases_bias_;
  bool sums_signs_ = false;  // whether some scale[p][0][o], p > 0, is not 0
  mutable ConvPlanCache plans_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_CONV_DRIVER_H_
