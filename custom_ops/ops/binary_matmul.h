// The product of two activations that are packed into bits along their last dimension:
//
//   BinaryMatMul(A bits [..., M, bits * ceil(C / 32)], B bits [..., N, ceil(C / 32)],
//                scale float [1]) -> float [..., M, N]
//       y[m][n] = scale * float(sum over c of a[m][c] * b[n][c])
//
// Attributes, required: channels, bits and signs. a is ±1 where signs = 1, and bits is then 1; else
// a is levels 0 to 2^bits - 1, in so many planes. b is ±1. The leading dimensions of A and B are
// the same, up to 6.

#ifndef BNN_DEPLOY_OPS_BINARY_MATMUL_H_
#define BNN_DEPLOY_OPS_BINARY_MATMUL_H_

#include "kernels/micro_kernel.h"
#include "ort/api.h"

namespace bnn_deploy {

class BinaryMatMul {
 public:
  static const OpSchema kSchema;
  explicit BinaryMatMul(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  const int64_t level_bits_;
  const int64_t channels_;
  const float scale_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARY_MATMUL_H_
