// QuantizeLevels(X float [N, C, spatial...], thresholds float [2^bits - 1, C])
//     -> planes [N, spatial..., bits * ceil(C / 32)]:
// level = the number of thresholds of its channel that an element reaches, 0 for NaN; plane j, at
// words j * ceil(C / 32) and up, holds bit j of the levels. 0 to 3 spatial dimensions.
//
// The thresholds of a channel ascend. Attribute, required: bits, 1 to 4.

#ifndef BNN_DEPLOY_OPS_QUANTIZE_LEVELS_H_
#define BNN_DEPLOY_OPS_QUANTIZE_LEVELS_H_

#include <vector>

#include "kernels/micro_kernel.h"
#include "ort/api.h"

namespace bnn_deploy {

class QuantizeLevels {
 public:
  static const OpSchema kSchema;
  explicit QuantizeLevels(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  NodeLabel label_;
  const Isa& isa_;
  int64_t bits_;
  int64_t channels_;
  std::vector<float> thresholds_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_QUANTIZE_LEVELS_H_
