#include "ops/binarize_quantized.h"

#include <algorithm>

#include "binarize_driver.h"
#include "dispatch.h"
#include "geometry.h"

namespace bnn_deploy {
namespace {

constexpr size_t kMinRank = 2;
constexpr size_t kMaxRank = 5;

Shape OutputShape(const Shape& x) {
  Shape shape = x;
  shape.dims[x.rank - 1] = x.back() < 0 ? -1 : WordsForBits(x.back());
  return shape;
}

}  // namespace

const OpSchema BinarizeQuantized::kSchema = {
    "BinarizeQuantized", {kOrtUint8, kOrtInt32}, {kOrtUint32}};

BinarizeQuantized::BinarizeQuantized(const NodeInfo& node)
    : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = node.ConstantInput(1, "threshold");
  if (threshold.shape.rank != 1 || threshold.shape[0] < 1 || threshold.shape[0] > kMaxExtent) {
    label_.Fail("input threshold has shape " + threshold.shape.ToString() +
                ", but it must be [C] with one value per channel of X");
  }
  channels_ = threshold.shape[0];
  level_ = Buffer<uint8_t>(RoundUp(channels_, 64), 0);
  reachable_ = Buffer<uint32_t>(WordsForBits(channels_), 0);
  for (int64_t c = 0; c < channels_; ++c) {
    const int32_t value = threshold.As<int32_t>()[c];
    level_.data()[c] = static_cast<uint8_t>(std::clamp(value, 0, 255));
    if (value <= 255) reachable_.data()[c / 32] |= 1u << (c % 32);
  }
}

void BinarizeQuantized::Compute(const Context& context) const {
  const Tensor x = context.Input(0, label_);
  if (x.shape.rank < kMinRank || x.shape.rank > kMaxRank || x.shape.back() != channels_) {
    const std::string channels = std::to_string(channels_);
    label_.Fail("input X has shape " + x.shape.ToString() +
                ", but it must be [N, 0 to 3 spatial dimensions, " + channels +
                "], as threshold has shape [" + channels + "]");
  }
  auto* const out = static_cast<uint32_t*>(context.Output(0, OutputShape(x.shape)));
  int64_t pixels = 1;
  for (size_t i = 0; i + 1 < x.shape.rank; ++i) {
    pixels = CheckedProduct({pixels, x.shape[i]}, "input X");
  }
  BinarizeBytesBatch(isa_, x.As<uint8_t>(), level_.data(), reachable_.data(), channels_, pixels,
                     out, context);
}

void BinarizeQuantized::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  if (!x || x->rank < kMinRank || x->rank > kMaxRank) return;
  context.SetOutputShape(0, OutputShape(*x), kOrtUint32);
}

}  // namespace bnn_deploy
