// Convolution of floats with few input channels, behind it max pooling, in one operator:
//
//   DirectConv(X, W, bias [O]) -> float [N, O, spatial...]
//       y = the maximum over the pool window of (bias[o] + the sum of x * w), added in the order of
//       DirectConvArgs
//   DirectConvThreshold(X, W, bias [O], threshold [O]) -> bits [N, spatial..., ceil(O / 32)]
//       bit = y >= threshold, and 0 for NaN
//
// X float [N, C, spatial...], W float [O, C, kernel...], 1 or 2 spatial dimensions. Attributes, all
// required: kernel_shape, strides, pads, dilations of the convolution, which pads with 0, and
// pool_shape, pool_strides, pool_pads of the pool, whose padding adds nothing; a pool_shape of 1
// does not pool.

#ifndef BNN_DEPLOY_OPS_DIRECT_CONV_H_
#define BNN_DEPLOY_OPS_DIRECT_CONV_H_

#include <optional>

#include "drivers/direct_conv.h"
#include "ops/window_attributes.h"
#include "ort/api.h"

namespace bnn_deploy {

// The attributes and constant inputs of both operators, read and checked.
class DirectConvNode {
 public:
  explicit DirectConvNode(const NodeInfo& node);

  DirectConvDriver Driver(const float* threshold) const;
  // A constant input with one value per output channel.
  const float* PerOutput(const NodeInfo& node, size_t index, const char* name) const;
  // Input X, checked. Sets out_pixels to [N, output spatial...].
  FloatBatch ReadInput(const Context& context, Shape* out_pixels) const;
  int64_t out_channels() const { return spec_.out_channels; }

 private:
  void ReadPool(const NodeInfo& node);

  WindowAttributes window_;
  DirectSpec spec_{};
  const float* weights_ = nullptr;
  const float* bias_ = nullptr;
};

class DirectConv {
 public:
  static const OpSchema kSchema;
  explicit DirectConv(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  DirectConvNode node_;
  DirectConvDriver driver_;
};

class DirectConvThreshold {
 public:
  static const OpSchema kSchema;
  explicit DirectConvThreshold(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  DirectConvNode node_;
  DirectConvDriver driver_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_DIRECT_CONV_H_
