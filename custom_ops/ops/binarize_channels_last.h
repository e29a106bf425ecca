// BinarizeChannelsLast(X float [N, spatial..., C], threshold float [C]) and BinarizeQuantized(X
// uint8 [N, spatial..., C], threshold int32 [C]) -> bits [N, spatial..., ceil(C / 32)]: bit = X >=
// threshold, and 0 for NaN. 0 to 3 spatial dimensions.

#ifndef BNN_DEPLOY_OPS_BINARIZE_CHANNELS_LAST_H_
#define BNN_DEPLOY_OPS_BINARIZE_CHANNELS_LAST_H_

#include <vector>

#include "base/buffer.h"
#include "kernels/micro_kernel.h"
#include "ort/api.h"

namespace bnn_deploy {

class BinarizeChannelsLast {
 public:
  static const OpSchema kSchema;
  explicit BinarizeChannelsLast(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  NodeLabel label_;
  const Isa& isa_;
  std::vector<float> threshold_;
};

class BinarizeQuantized {
 public:
  static const OpSchema kSchema;
  explicit BinarizeQuantized(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  NodeLabel label_;
  const Isa& isa_;
  int64_t channels_;
  // The thresholds as bytes; those above 255, which no byte reaches, have a 0 in reachable_.
  Buffer<uint8_t> level_;
  Buffer<uint32_t> reachable_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARIZE_CHANNELS_LAST_H_
