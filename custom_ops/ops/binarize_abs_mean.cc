#include "ops/binarize_abs_mean.h"

#include "drivers/binarize_driver.h"
#include "kernels/dispatch.h"
#include "ops/float_planes.h"

namespace bnn_deploy {

const OpSchema BinarizeAbsMean::kSchema = {
    "BinarizeAbsMean", {kOrtFloat, kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtUint32, kOrtFloat}};

BinarizeAbsMean::BinarizeAbsMean(const NodeInfo& node) : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = ReadThreshold(node);
  threshold_.assign(threshold.As<float>(), threshold.As<float>() + threshold.shape[0]);
  scale_ = PerChannel(node, 2, "scale");
  shift_ = PerChannel(node, 3, "shift");
}

std::vector<float> BinarizeAbsMean::PerChannel(const NodeInfo& node, size_t index,
                                               const char* name) const {
  const Tensor tensor = node.ConstantInput(index, name);
  if (tensor.shape.rank != 1 || tensor.shape[0] != static_cast<int64_t>(threshold_.size())) {
    const std::string count = std::to_string(threshold_.size());
    label_.Fail(std::string("input ") + name + " has shape " + tensor.shape.ToString() +
                ", but threshold has " + count + " values and it needs [" + count + "]");
  }
  return {tensor.As<float>(), tensor.As<float>() + tensor.shape[0]};
}

void BinarizeAbsMean::Compute(const Context& context) const {
  const Tensor x = context.Input(0, label_);
  const auto channels = static_cast<int64_t>(threshold_.size());
  const int64_t pixels =
      CheckPlanes(x, channels, "threshold has shape [" + std::to_string(channels) + "]", label_);
  auto* const bits = static_cast<uint32_t*>(context.Output(0, BitsOfPlanes(x.shape)));
  Shape mean_shape = x.shape;
  mean_shape.dims[1] = 1;
  auto* const mean = static_cast<float*>(context.Output(1, mean_shape));
  if (x.shape[0] == 0 || pixels == 0) return;  // an empty output has no address
  if (bits == nullptr || mean == nullptr) {
    label_.Fail(std::string("output ") + (bits == nullptr ? "bits" : "A") +
                " is absent: give both outputs a name, or use Binarize, which has no A");
  }
  BinarizeAbsMeanBatch(isa_, x.As<float>(), threshold_.data(), scale_.data(), shift_.data(),
                       x.shape[0], channels, pixels, bits, mean, context);
}

void BinarizeAbsMean::InferShape(const ShapeContext& context) {
  // Not of A: a node may lack it, onnxruntime does not say, and before 1.28 it aborts when told the
  // shape of an output that is not there. Converted models hold it in their value_info.
  const std::optional<Shape> x = InferFloats(context);
  if (x) context.SetOutputShape(0, BitsOfPlanes(*x), kOrtUint32);
}

}  // namespace bnn_deploy
