// Convolution of few levels with weights of few values, as a sum of binary convolutions:
//
//   BinaryConvBases(X, W, scale [planes + 1, bases + 1, O], bias [O]) -> float [N, O, spatial...]
//       y = bias[o] + the sum over p, q of scale[p][q][o] * float(acc)
//       acc: the integer sum over the window of s_p * B_q[o], where a padded tap adds nothing
//
// s_1, s_2 and so on are the planes of X, [N, spatial..., planes * ceil(C / 32)]; B_1, B_2 and so
// on those of W, [O, kernel..., bases * ceil(C / group / 32)], all ±1; s_0 = B_0 = 1. The order of
// the sum is that of BasesConstants in drivers/conv/driver.h. Attributes: those of BinaryConv,
// planes and bases.

#ifndef BNN_DEPLOY_OPS_BINARY_CONV_BASES_H_
#define BNN_DEPLOY_OPS_BINARY_CONV_BASES_H_

#include "ops/binary_conv.h"

namespace bnn_deploy {

class BinaryConvBases : public BinaryConv {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvBases(const NodeInfo& node);

 private:
  BinaryConvBases(const NodeInfo& node, const ConvNode& conv);
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARY_CONV_BASES_H_
