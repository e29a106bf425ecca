// What the operators that binarise floats have in common: X float [N, C, spatial...] with 0 to 3
// spatial dimensions, and a constant threshold.

#ifndef BNN_DEPLOY_OPS_FLOAT_PLANES_H_
#define BNN_DEPLOY_OPS_FLOAT_PLANES_H_

#include <optional>
#include <string>

#include "ort/api.h"

namespace bnn_deploy {

// The input threshold [C].
Tensor ReadThreshold(const NodeInfo& node);

// The number of pixels of one image of X, which must have this many channels. `source` says in an
// error where that number comes from.
int64_t CheckPlanes(const Tensor& x, int64_t channels, const std::string& source,
                    const NodeLabel& label);

// Like CheckPlanes, for [N, spatial..., C]; the pixels of the whole batch.
int64_t CheckChannelsLast(const Tensor& x, int64_t channels, const NodeLabel& label);

// The shape of X if it is known to be one that the operators take.
std::optional<Shape> InferFloats(const ShapeContext& context);

// [N, C, spatial...] -> [N, spatial..., planes * ceil(C / 32)]. An unknown extent is -1.
Shape BitsOfPlanes(const Shape& x, int64_t planes = 1);

// [N, spatial..., C] -> [N, spatial..., ceil(C / 32)]. An unknown extent is -1.
Shape BitsOfChannelsLast(const Shape& x);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_FLOAT_PLANES_H_
