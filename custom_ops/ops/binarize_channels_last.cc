#include "ops/binarize_channels_last.h"

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

void InferOutputShape(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  if (!x || x->rank < kMinRank || x->rank > kMaxRank) return;
  context.SetOutputShape(0, OutputShape(*x), kOrtUint32);
}

Tensor Threshold(const NodeInfo& node) {
  const Tensor threshold = node.ConstantInput(1, "threshold");
  if (threshold.shape.rank != 1 || threshold.shape[0] < 1 || threshold.shape[0] > kMaxExtent) {
    node.label().Fail("input threshold has shape " + threshold.shape.ToString() +
                      ", but it must be [C] with one value per channel of X");
  }
  return threshold;
}

// The number of pixels of X, which must have `channels` channels.
int64_t CheckedPixels(const Shape& x, int64_t channels, const NodeLabel& label) {
  if (x.rank < kMinRank || x.rank > kMaxRank || x.back() != channels) {
    const std::string count = std::to_string(channels);
    label.Fail("input X has shape " + x.ToString() +
               ", but it must be [N, 0 to 3 spatial dimensions, " + count +
               "], as threshold has shape [" + count + "]");
  }
  int64_t pixels = 1;
  for (size_t i = 0; i + 1 < x.rank; ++i) pixels = CheckedProduct({pixels, x[i]}, "input X");
  return pixels;
}

}  // namespace

const OpSchema BinarizeChannelsLast::kSchema = {
    "BinarizeChannelsLast", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

BinarizeChannelsLast::BinarizeChannelsLast(const NodeInfo& node)
    : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = Threshold(node);
  threshold_.assign(threshold.As<float>(), threshold.As<float>() + threshold.shape[0]);
}

void BinarizeChannelsLast::Compute(const Context& context) const {
  const Tensor x = context.Input(0, label_);
  const auto channels = static_cast<int64_t>(threshold_.size());
  const int64_t pixels = CheckedPixels(x.shape, channels, label_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, OutputShape(x.shape)));
  BinarizeRowsBatch(isa_, x.As<float>(), threshold_.data(), channels, pixels, out, context);
}

void BinarizeChannelsLast::InferShape(const ShapeContext& context) { InferOutputShape(context); }

const OpSchema BinarizeQuantized::kSchema = {
    "BinarizeQuantized", {kOrtUint8, kOrtInt32}, {kOrtUint32}};

BinarizeQuantized::BinarizeQuantized(const NodeInfo& node)
    : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = Threshold(node);
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
  const int64_t pixels = CheckedPixels(x.shape, channels_, label_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, OutputShape(x.shape)));
  BinarizeBytesBatch(isa_, x.As<uint8_t>(), level_.data(), reachable_.data(), channels_, pixels,
                     out, context);
}

void BinarizeQuantized::InferShape(const ShapeContext& context) { InferOutputShape(context); }

}  // namespace bnn_deploy
