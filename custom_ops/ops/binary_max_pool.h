// BinaryMaxPool(X bits [N, spatial..., words]) -> bits: the OR over each window, which is the
// maximum of ±1 values; padding adds nothing. 1 to 3 spatial dimensions. Attributes, all required:
// kernel_shape, strides, pads, dilations, ceil_mode. Output sizes as ONNX MaxPool.

#ifndef BNN_DEPLOY_OPS_BINARY_MAX_POOL_H_
#define BNN_DEPLOY_OPS_BINARY_MAX_POOL_H_

#include "base/geometry.h"
#include "ops/window_attributes.h"
#include "ort/api.h"

namespace bnn_deploy {

class BinaryMaxPool {
 public:
  static const OpSchema kSchema;
  explicit BinaryMaxPool(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  WindowAttributes window_;
  Rounding rounding_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARY_MAX_POOL_H_
