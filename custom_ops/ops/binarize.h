// Binarize(X float [N, C, spatial...], threshold float [C]) -> bits [N, spatial..., ceil(C / 32)]:
// bit = X >= threshold, and 0 for NaN. 0 to 3 spatial dimensions.

#ifndef BNN_DEPLOY_OPS_BINARIZE_H_
#define BNN_DEPLOY_OPS_BINARIZE_H_

#include <vector>

#include "kernels/micro_kernel.h"
#include "ort/api.h"

namespace bnn_deploy {

class Binarize {
 public:
  static const OpSchema kSchema;
  explicit Binarize(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  NodeLabel label_;
  const Isa& isa_;
  std::vector<float> threshold_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARIZE_H_
