#include "ops/binary_linear.h"

#include <string>

#include "base/geometry.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Sums below 2^24 are exact in float32.
constexpr int64_t kMaxChannels = (int64_t{1} << 24) - 1;
constexpr Axis kOnePixel = {1, 1, 1, 0, 0};

Tensor ReadWeights(const NodeInfo& node, int64_t channels) {
  const Tensor weights = node.ConstantInput(1, "W");
  const int64_t words = WordsForBits(channels);
  if (weights.shape.rank != 2 || weights.shape[0] < 1 || weights.shape[1] != words) {
    Fail("input W has shape " + weights.shape.ToString() +
         ", but channels = " + std::to_string(channels) + " needs [output channels, ceil(" +
         std::to_string(channels) + " / 32) = " + std::to_string(words) + "]");
  }
  for (int64_t o = 0; channels % 32 != 0 && o < weights.shape[0]; ++o) {
    if (weights.As<uint32_t>()[(o + 1) * words - 1] >> (channels % 32) != 0) {
      Fail("input W has bits set beyond channel " + std::to_string(channels - 1) +
           " (output channel " + std::to_string(o) + "): the unused bits of a last word must be 0");
    }
  }
  return weights;
}

const float* PerOutput(const NodeInfo& node, size_t index, const char* name, int64_t outputs) {
  const Tensor tensor = node.ConstantInput(index, name);
  if (tensor.shape.rank != 1 || tensor.shape[0] != outputs) {
    Fail(std::string("input ") + name + " has shape " + tensor.shape.ToString() + ", but W has " +
         std::to_string(outputs) + " output channels and needs [" + std::to_string(outputs) + "]");
  }
  return tensor.As<float>();
}

ConvDriver MakeDriver(const NodeInfo& node) {
  ConvSpec spec{};
  spec.channels = node.Int("channels", 1, kMaxChannels);
  spec.group = 1;
  spec.height = spec.width = kOnePixel;
  const Tensor weights = ReadWeights(node, spec.channels);
  spec.out_channels = weights.shape[0];
  const FloatConstants constants = {PerOutput(node, 2, "scale", spec.out_channels),
                                    PerOutput(node, 3, "bias", spec.out_channels), nullptr};
  return ConvDriver(SelectIsa(), spec, weights.As<uint32_t>(), constants);
}

// [N, ..., words] -> [N, ..., O].
Shape WithLast(const Shape& shape, int64_t last) {
  Shape result;
  for (size_t i = 0; i + 1 < shape.rank; ++i) result.Append(shape[i]);
  result.Append(last);
  return result;
}

}  // namespace

const OpSchema BinaryLinear::kSchema = {
    "BinaryLinear", {kOrtUint32, kOrtUint32, kOrtFloat, kOrtFloat}, {kOrtFloat}};

BinaryLinear::BinaryLinear(const NodeInfo& node)
    : words_(WordsForBits(node.Int("channels", 1, kMaxChannels))),
      outputs_(node.ConstantInput(1, "W").shape[0]),
      driver_(MakeDriver(node)) {}

void BinaryLinear::Compute(const Context& context) const {
  const Tensor x = context.Input(0);
  if (x.shape.rank < 2 || x.shape[x.shape.rank - 1] != words_) {
    Fail("input X has shape " + x.shape.ToString() + ", but it must be [N, ..., " +
         std::to_string(words_) + "]");
  }
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < x.shape.rank; ++i) {
    rows = CheckedProduct({rows, x.shape[i]}, "input X");
  }
  auto* const out = static_cast<float*>(context.Output(0, WithLast(x.shape, outputs_)));
  if (rows > 0) driver_.Run({x.As<uint32_t>(), rows, 1, 1}, {out, nullptr, nullptr}, context);
}

void BinaryLinear::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  const std::optional<Shape> weights = context.InputShape(1);
  if (!x || x->rank < 2) return;
  const int64_t outputs = weights && weights->rank > 0 ? (*weights)[0] : -1;
  context.SetOutputShape(0, WithLast(*x, outputs), kOrtFloat);
}

}  // namespace bnn_deploy
