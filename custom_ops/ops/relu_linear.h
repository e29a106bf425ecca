// A linear layer of floats behind a ReLU, such as the last layer of a network:
//
//   ReluLinear(X float [N, ...], W float [C, O], bias float [O]) -> float [N, O]
//       y = bias + the sum over c of max(x[c], 0) * W[c], where X is taken as [N, C]
//
// W and bias are constants, W is finite: inputs that are not positive are left out. A NaN makes the
// outputs NaN.

#ifndef BNN_DEPLOY_OPS_RELU_LINEAR_H_
#define BNN_DEPLOY_OPS_RELU_LINEAR_H_

#include "kernels/micro_kernel.h"
#include "ort/api.h"

namespace bnn_deploy {

class ReluLinear {
 public:
  static const OpSchema kSchema;
  explicit ReluLinear(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  // Of the session, which keeps them.
  const Tensor weights_;
  const Tensor bias_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_RELU_LINEAR_H_
