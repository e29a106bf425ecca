// A direct convolution of floats with few input channels, such as the first layer of a binary
// network, with max pooling, to floats or to bits.
//
// The input is copied in bands of rows, padded, and its columns are split by their remainder modulo
// the stride: so one tap of neighbouring windows is one contiguous array, without im2col. A row of
// the convolution has its channels last, which bits need; floats are transposed as they are pooled.

#ifndef BNN_DEPLOY_DRIVERS_DIRECT_CONV_H_
#define BNN_DEPLOY_DRIVERS_DIRECT_CONV_H_

#include <cstdint>

#include "base/buffer.h"
#include "base/geometry.h"
#include "base/tasks.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// Most rows and columns of a pool window.
constexpr int64_t kMaxPool = 16;

// One-dimensional convolutions have height 1.
struct DirectSpec {
  int64_t channels;
  int64_t out_channels;
  Axis height;
  Axis width;
  // Windows over the output of the convolution, of up to kMaxPool, none of them empty. Without a
  // pool, kernel and stride are 1.
  Axis pool_height;
  Axis pool_width;
};

struct FloatBatch {
  const float* data;  // [batch][channels][height][width]
  int64_t batch;
  int64_t height;
  int64_t width;
};

// Runs of one driver may overlap in time.
class DirectConvDriver {
 public:
  // weights: [out_channels][channels][kernel height][kernel width]; bias and threshold:
  // [out_channels]; threshold is null for float output. All are copied.
  DirectConvDriver(const Isa& isa, const DirectSpec& spec, const float* weights, const float* bias,
                   const float* threshold);

  // out[n][o][y][x] = the maximum of the convolution over the pool window. The driver has no
  // thresholds. Throws std::invalid_argument where pads or dilations ask for more memory than a
  // convolution ever needs.
  void Run(const FloatBatch& input, float* out, const TaskRunner& runner) const;
  // The bit of channel o in out[n][y][x] is 1 where the convolution reaches threshold[o] in the
  // pool window; NaN gives 0.
  void Run(const FloatBatch& input, uint32_t* out, const TaskRunner& runner) const;

 private:
  template <typename Rows, typename Element>
  void RunRows(const FloatBatch& input, Element* out, const TaskRunner& runner) const;

  const Isa& isa_;
  const DirectSpec spec_;
  const int64_t taps_;
  const int64_t row_channels_;  // out_channels, rounded up to whole vectors
  Buffer<float> weights_;       // see DirectConvArgs
  Buffer<float> bias_;          // [row_channels_]
  Buffer<float> threshold_;     // likewise, NaN beyond out_channels; empty for float output
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_DIRECT_CONV_H_
