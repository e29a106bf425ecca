#include "ops/binarize_channels_last.h"

#include <algorithm>

#include "base/geometry.h"
#include "drivers/binarize_driver.h"
#include "kernels/dispatch.h"
#include "ops/float_planes.h"

namespace bnn_deploy {
namespace {

void InferOutputShape(const ShapeContext& context) {
  const std::optional<Shape> x = InferFloats(context);
  if (x) context.SetOutputShape(0, BitsOfChannelsLast(*x), kOrtUint32);
}

}  // namespace

const OpSchema BinarizeChannelsLast::kSchema = {
    "BinarizeChannelsLast", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

BinarizeChannelsLast::BinarizeChannelsLast(const NodeInfo& node)
    : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = ReadThreshold(node);
  threshold_.assign(threshold.As<float>(), threshold.As<float>() + threshold.shape[0]);
}

void BinarizeChannelsLast::Compute(const Context& context) const {
  const Tensor x = context.Input(0, label_);
  const auto channels = static_cast<int64_t>(threshold_.size());
  const int64_t pixels = CheckChannelsLast(x, channels, label_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfChannelsLast(x.shape)));
  BinarizeRowsBatch(isa_, x.As<float>(), threshold_.data(), channels, pixels, out, context);
}

void BinarizeChannelsLast::InferShape(const ShapeContext& context) { InferOutputShape(context); }

const OpSchema BinarizeQuantized::kSchema = {
    "BinarizeQuantized", {kOrtUint8, kOrtInt32}, {kOrtUint32}};

BinarizeQuantized::BinarizeQuantized(const NodeInfo& node)
    : label_(node.label()), isa_(SelectIsa()) {
  const Tensor threshold = ReadThreshold(node);
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
  const int64_t pixels = CheckChannelsLast(x, channels_, label_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfChannelsLast(x.shape)));
  BinarizeBytesBatch(isa_, x.As<uint8_t>(), level_.data(), reachable_.data(), channels_, pixels,
                     out, context);
}

void BinarizeQuantized::InferShape(const ShapeContext& context) { InferOutputShape(context); }

}  // namespace bnn_deploy
