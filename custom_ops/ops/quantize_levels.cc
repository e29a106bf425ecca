#include "ops/quantize_levels.h"

#include "binarize_driver.h"
#include "conv_driver.h"
#include "dispatch.h"
#include "geometry.h"

namespace bnn_deploy {
namespace {

constexpr size_t kMinRank = 2;
constexpr size_t kMaxRank = 5;

std::string Text(int64_t value) { return std::to_string(value); }

// [N, spatial..., bits * ceil(C / 32)]. An unknown extent is -1.
Shape OutputShape(const Shape& x, int64_t bits) {
  Shape shape;
  shape.Append(x[0]);
  for (size_t i = 2; i < x.rank; ++i) shape.Append(x[i]);
  shape.Append(x[1] < 0 ? -1 : bits * WordsForBits(x[1]));
  return shape;
}

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
  if (x.shape.rank < kMinRank || x.shape.rank > kMaxRank || x.shape[1] != channels_) {
    label_.Fail("input X has shape " + x.shape.ToString() + ", but it must be [N, " +
                Text(channels_) + ", 0 to 3 spatial dimensions], as thresholds has " +
                Text(channels_) + " columns");
  }
  auto* const out = static_cast<uint32_t*>(context.Output(0, OutputShape(x.shape, bits_)));
  int64_t pixels = 1;
  for (size_t i = 2; i < x.shape.rank; ++i) {
    pixels = CheckedProduct({pixels, x.shape[i]}, "input X");
  }
  QuantizeLevelsBatch(isa_, x.As<float>(), thresholds_.data(), bits_, x.shape[0], channels_, pixels,
                      out, context);
}

void QuantizeLevels::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  const std::optional<int64_t> bits = context.Int("bits");
  if (!x || !bits || x->rank < kMinRank || x->rank > kMaxRank) return;
  context.SetOutputShape(0, OutputShape(*x, *bits), kOrtUint32);
}

}  // namespace bnn_deploy
