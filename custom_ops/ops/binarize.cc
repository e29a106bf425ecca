#include "ops/binarize.h"

#include "binarize_driver.h"
#include "dispatch.h"
#include "geometry.h"

namespace bnn_deploy {
namespace {

constexpr size_t kMinRank = 2;
constexpr size_t kMaxRank = 5;

Shape OutputShape(const Shape& x) {
  Shape shape;
  shape.Append(x[0]);
  for (size_t i = 2; i < x.rank; ++i) shape.Append(x[i]);
  shape.Append(x[1] < 0 ? -1 : WordsForBits(x[1]));
  return shape;
}

}  // namespace

const OpSchema Binarize::kSchema = {"Binarize", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

Binarize::Binarize(const NodeInfo& node) : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = node.ConstantInput(1, "threshold");
  if (threshold.shape.rank != 1 || threshold.shape[0] < 1 || threshold.shape[0] > kMaxExtent) {
    label_.Fail("input threshold has shape " + threshold.shape.ToString() +
                ", but it must be [C] with one value per channel of X");
  }
  threshold_.assign(threshold.As<float>(), threshold.As<float>() + threshold.shape[0]);
}

void Binarize::Compute(const Context& context) const {
  const Tensor x = context.Input(0, label_);
  const auto channels = static_cast<int64_t>(threshold_.size());
  if (x.shape.rank < kMinRank || x.shape.rank > kMaxRank || x.shape[1] != channels) {
    label_.Fail("input X has shape " + x.shape.ToString() + ", but it must be [N, " +
                std::to_string(channels) +
                ", 0 to 3 spatial dimensions], as threshold has shape [" +
                std::to_string(channels) + "]");
  }
  const Shape shape = OutputShape(x.shape);
  auto* const out = static_cast<uint32_t*>(context.Output(0, shape));
  int64_t pixels = 1;
  for (size_t i = 2; i < x.shape.rank; ++i) {
    pixels = CheckedProduct({pixels, x.shape[i]}, "input X");
  }
  BinarizeBatch(isa_, x.As<float>(), threshold_.data(), x.shape[0], channels, pixels, out, context);
}

void Binarize::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  if (!x || x->rank < kMinRank || x->rank > kMaxRank) return;
  context.SetOutputShape(0, OutputShape(*x), kOrtUint32);
}

}  // namespace bnn_deploy
