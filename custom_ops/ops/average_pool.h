// AveragePoolThreshold(X float [N, C, H, W], threshold float [C]) -> bits [N, H', W', ceil(C / 32)]
//     bit = the sum of X, or of max(X, 0) if relu is 1, over the window >= threshold; 0 for NaN
//
// In float32, the rows of a window from top to bottom, then these sums from left to right; padding
// adds 0. Attributes, all required: kernel_shape, strides, pads, dilations, relu. Output sizes as
// ONNX AveragePool, rounded down.

#ifndef BNN_DEPLOY_OPS_AVERAGE_POOL_H_
#define BNN_DEPLOY_OPS_AVERAGE_POOL_H_

#include <vector>

#include "kernels/micro_kernel.h"
#include "ops/window_attributes.h"
#include "ort/api.h"

namespace bnn_deploy {

class AveragePoolThreshold {
 public:
  static const OpSchema kSchema;
  explicit AveragePoolThreshold(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  const WindowAttributes window_;
  const bool relu_;
  std::vector<float> threshold_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_AVERAGE_POOL_H_
