// A binary convolution with its weights: padding, tiles and threads around the micro-kernels.
//
// With bits for +1 and -1, a window of n products of which mis differ sums to acc = n - 2 * mis.
// Padded taps hold the given pad bits, or, for zero padding, 0 bits and a correction: let R be the
// taps of the window inside the image. A tap outside must contribute nothing, so n counts only the
// products of R, and the popcount(W there) that a tap outside adds to mis is taken off beforehand:
//
//   n = channels / group * |R|   and   mis = -popcount(W outside of R) + all counted mismatches.
//
// R is a rectangle that depends on the output row and column alone and takes few values (9 for a
// 3x3 kernel with padding 1), so n and the initial value of mis are a small table per image size
// and the micro-kernels know no special case. For bit output the threshold is part of the initial
// value, too: acc >= threshold exactly where the sum is negative.
//
// Levels 0 .. M = 2^k - 1 come as k planes of bits. The product of a bit b and a weight of ±1 whose
// bit is v is v - (b ^ v), so with mis_j mismatches in plane j
//
//   sum of level * weight = M * popcount(W) - sum over j of 2^j * mis_j.
//
// The planes are added from the top one down, doubling in between. A padded tap holds level 0,
// whose bits are 0, and so adds nothing without a correction.

#ifndef BNN_DEPLOY_DRIVERS_CONV_DRIVER_H_
#define BNN_DEPLOY_DRIVERS_CONV_DRIVER_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/buffer.h"
#include "base/geometry.h"
#include "base/tasks.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// One-dimensional convolutions have height 1.
struct ConvSpec {
  int64_t channels;
  int64_t group;
  int64_t out_channels;
  Axis height;
  Axis width;
  std::vector<uint32_t> pad_bits;  // of all channels; empty: zero padding
  // The planes of levels 0 to 2^level_bits - 1; 0: there is one, whose bits stand for ±1. Levels
  // have zero padding and float output without bits, and their sums stay below 2^24.
  int64_t level_bits = 0;
};
constexpr int64_t kMaxLevelBits = 4;

struct BitBatch {
  // [batch][height][width][planes][ceil(channels / 32)], least significant plane first, unused bits
  // 0; one plane but for levels.
  const uint32_t* data;
  int64_t batch;
  int64_t height;
  int64_t width;
};

struct FloatConstants {
  const float* scale;
  const float* bias;
  const float* threshold;  // null: the driver gives no bits next to floats
};

// out[n][o][y][x] = scale[o] * acc + bias[o], plus residual[n][o][y][x] or times factor[n][y][x].
// For levels, acc is their sum with the weights, and half of scale[o] must be exact;
// bits[n][y][x]: the bit of channel o is out[n][o][y][x] >= threshold[o].
struct FloatOutput {
  float* out;                     // may be null next to bits
  const float* residual;          // null: none, and then no bits
  uint32_t* bits;                 // may be null
  const float* factor = nullptr;  // null: none; not with a residual
};

class ConvDriver {
 public:
  // weights: [out_channels][kernel height][kernel width][ceil(channels / group / 32)], unused bits
  // 0. Everything is copied. The caller has checked: group divides both channel counts, and
  // channels / group * taps < 2^24.
  ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
             const FloatConstants& constants);
  ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights, const int32_t* threshold);

  // For a driver with float constants.
  void Run(const BitBatch& input, const FloatOutput& output, const TaskRunner& runner) const;
  // out: [batch][output height][output width][ceil(out_channels / 32)], for one with thresholds.
  void Run(const BitBatch& input, uint32_t* out, const TaskRunner& runner) const;

 private:
  // At most kTileChannels output channels of one group.
  struct ChannelTile {
    int64_t group;
    int64_t channel;  // the first output channel
    int64_t channels;
    int64_t table_offset;    // of the first channel in scale_, bias_, float_threshold_, table rows
    int64_t weights_offset;  // in weights_
    int64_t blocks;
  };
  struct Plan;        // what depends on the image size
  struct Image;       // where the words of a window are
  struct PixelBlock;  // where the windows of some pixels are

  ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights);
  void PackWeights(const uint32_t* weights);
  void PackPlaneWeights(const uint32_t* weights);
  void CountTapBits(const uint32_t* weights);
  std::shared_ptr<const Plan> PlanFor(int64_t height, int64_t width) const;
  std::shared_ptr<const Plan> MakePlan(int64_t height, int64_t width) const;
  int32_t InitialSum(int64_t channel, TapRange rows, TapRange columns) const;
  void Accumulate(const AccumulateArgs& args) const;
  Image Prepare(const BitBatch& input, const Plan& plan, const TaskRunner& runner) const;
  void CopyRow(const BitBatch& input, int64_t image, int64_t plane, int64_t group, int64_t row,
               int64_t padded_width, uint32_t* out) const;
  void LocatePixels(const Plan& plan, const Image& image, int64_t group, Range pixels,
                    PixelBlock* block) const;
  void GatherWindows(const Plan& plan, int64_t pixels, PixelBlock* block) const;
  void RunWithPlanes(const BitBatch& input, const Plan& plan, const FloatOutput& output,
                     const TaskRunner& runner) const;
  const uint32_t* SplitPlanes(const BitBatch& input, const Plan& plan,
                              const TaskRunner& runner) const;
  int64_t TaskCount(int64_t pixels, int64_t most) const;
  int64_t PaddedSize(int64_t batch, int64_t height, int64_t width) const;
  void AddPlanes(int64_t patterns, int64_t row_patterns,
                 const std::vector<int64_t>& column_patterns, Plan* plan) const;
  template <typename Process>
  void ForEachBlock(const BitBatch& input, const Plan& plan, int64_t grain, bool split_channels,
                    const TaskRunner& runner, const Process& process) const;
  template <typename Fill>
  void WriteBits(const ChannelTile& tile, Range pixels, uint32_t* out, const Fill& fill) const;
  // Whether tasks can write the bits of different groups, which then share no word.
  bool GroupsAreWholeWords() const;

  const Isa& isa_;
  const ConvSpec spec_;
  const int64_t group_channels_;
  const int64_t group_words_;
  const int64_t bit_planes_;
  const int64_t pixel_words_;  // of the input, all planes
  const bool copies_input_;
  const bool rows_are_runs_;    // the taps of a kernel row lie together in the (padded) input
  const bool encodes_;          // the micro-kernel takes encoded windows
  const int64_t window_words_;  // words of a window, padded where the micro-kernel gathers
  std::vector<ChannelTile> tiles_;
  int64_t table_width_ = 0;
  Buffer<uint32_t> weights_;
  std::vector<uint32_t> plane_weights_;  // for micro-kernels that take pixels as lanes
  // Per output channel, the set bits of the taps above and left of each tap (summed-area table).
  std::vector<int32_t> tap_bits_;
  Buffer<float> scale_;
  Buffer<float> bias_;
  Buffer<float> float_threshold_;   // NaN for unused channels
  std::vector<int32_t> threshold_;  // empty: float output

  mutable std::mutex plan_mutex_;
  mutable std::shared_ptr<const Plan> plan_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_CONV_DRIVER_H_
