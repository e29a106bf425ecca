#include "ops/binarize.h"

#include "drivers/binarize_driver.h"
#include "kernels/dispatch.h"
#include "ops/float_planes.h"

namespace bnn_deploy {

const OpSchema Binarize::kSchema = {"Binarize", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

Binarize::Binarize(const NodeInfo& node) : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = ReadThreshold(node);
  threshold_.assign(threshold.As<float>(), threshold.As<float>() + threshold.shape[0]);
}

void Binarize::Compute(const Context& context) const {
  const Tensor x = context.Input(0, label_);
  const auto channels = static_cast<int64_t>(threshold_.size());
  const int64_t pixels =
      CheckPlanes(x, channels, "threshold has shape [" + std::to_string(channels) + "]", label_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfPlanes(x.shape)));
  BinarizeBatch(isa_, x.As<float>(), threshold_.data(), x.shape[0], channels, pixels, out, context);
}

void Binarize::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = InferFloats(context);
  if (x) context.SetOutputShape(0, BitsOfPlanes(*x), kOrtUint32);
}

}  // namespace bnn_deploy
