#include "ops/quantize_levels.h"

#include "base/geometry.h"
#include "drivers/binarize_driver.h"
#include "drivers/conv_driver.h"
#include "kernels/dispatch.h"
#include "ops/float_planes.h"

namespace bnn_deploy {
namespace {

std::string Text(int64_t value) { return std::to_string(value); }

}  // namespace

const OpSchema QuantizeLevels::kSchema = {"QuantizeLevels", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

QuantizeLevels::QuantizeLevels(const NodeInfo& node)
    : label_(node.label()), isa_(SelectIsa()), bits_(node.Int("bits", 1, kMaxLevelBits)) {
  const Tensor thresholds = node.ConstantInput(1, "thresholds");
  const int64_t count = (int64_t{1} << bits_) - 1;
  if (thresholds.shape.rank != 2 || thresholds.shape[0] != count || thresholds.shape[1] < 1 ||
      thresholds.shape[1] > kMaxExtent) {
    label_.Fail("input thresholds has shape " + thresholds.shape.ToString() +
                ", but it must be [2^bits - 1, C] = [" + Text(count) +
                ", C] with one column per channel of X");
  }
  channels_ = thresholds.shape[1];
  const float* const values = thresholds.As<float>();
  thresholds_.assign(values, values + count * channels_);
  for (int64_t i = channels_; i < count * channels_; ++i) {
    if (!(values[i] >= values[i - channels_])) {
      label_.Fail("input thresholds[" + Text(i / channels_) + "][" + Text(i % channels_) +
                  "] = " + std::to_string(values[i]) + ", which is not at least the one before, " +
                  std::to_string(values[i - channels_]) +
                  ": the thresholds of a channel must ascend");
    }
  }
}

void QuantizeLevels::Compute(const Context& context) const {
  const Tensor x = context.Input(0, label_);
  const int64_t pixels =
      CheckPlanes(x, channels_, "thresholds has " + Text(channels_) + " columns", label_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfPlanes(x.shape, bits_)));
  QuantizeLevelsBatch(isa_, x.As<float>(), thresholds_.data(), bits_, x.shape[0], channels_, pixels,
                      out, context);
}

void QuantizeLevels::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = InferFloats(context);
  const std::optional<int64_t> bits = context.Int("bits");
  if (x && bits) context.SetOutputShape(0, BitsOfPlanes(*x, *bits), kOrtUint32);
}

}  // namespace bnn_deploy
