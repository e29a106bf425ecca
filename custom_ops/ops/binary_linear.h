// A linear layer over the last dimension, with ±1 activations and weights packed into bits:
//
//   BinaryLinear(X bits [N, ..., ceil(C / 32)], W bits [O, ceil(C / 32)], scale float [O],
//                bias float [O]) -> float [N, ..., O]
//       y = scale * float(acc) + bias, a float32 multiply and then a float32 add
//
// X has 2 to 5 dimensions. Attribute, required: channels.

#ifndef BNN_DEPLOY_OPS_BINARY_LINEAR_H_
#define BNN_DEPLOY_OPS_BINARY_LINEAR_H_

#include "drivers/conv/driver.h"
#include "ort/api.h"

namespace bnn_deploy {

class BinaryLinear {
 public:
  static const OpSchema kSchema;
  explicit BinaryLinear(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const int64_t words_;
  const int64_t outputs_;
  // Each row is an image of one pixel, so that its outputs lie together.
  const ConvDriver driver_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARY_LINEAR_H_
