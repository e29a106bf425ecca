// BinarizeAbsMean(X float [N, C, spatial...], threshold, scale, shift float [C])
//     -> (bits [N, spatial..., ceil(C / 32)], A float [N, 1, spatial...]):
// bit = X >= threshold, and 0 for NaN; A = mean over the channels of |scale * X + shift|, a float32
// multiply and a float32 add, within min(C, C / 32 + 40) * 2^-24, in relative terms, of the exact
// mean of these terms. 0 to 3 spatial dimensions. A is what K of XNOR-Net (Rastegari et al., ECCV
// 2016, equation 11) filters.

#ifndef BNN_DEPLOY_OPS_BINARIZE_ABS_MEAN_H_
#define BNN_DEPLOY_OPS_BINARIZE_ABS_MEAN_H_

#include <vector>

#include "kernels/micro_kernel.h"
#include "ort/api.h"

namespace bnn_deploy {

class BinarizeAbsMean {
 public:
  static const OpSchema kSchema;
  explicit BinarizeAbsMean(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  std::vector<float> PerChannel(const NodeInfo& node, size_t index, const char* name) const;

  NodeLabel label_;
  const Isa& isa_;
  std::vector<float> threshold_;
  std::vector<float> scale_;
  std::vector<float> shift_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARIZE_ABS_MEAN_H_
