#include "ops/relu_linear.h"

#include <cstring>
#include <string>

#include "base/geometry.h"
#include "drivers/relu_linear.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Without branches, so that it runs at the speed of memory.
bool AllFinite(const float* values, int64_t count) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t infinite = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    infinite |= static_cast<uint32_t>((bits & kExponent) == kExponent);
  }
  return infinite == 0;
}

Tensor ReadWeights(const NodeInfo& node) {
  const Tensor weights = node.ConstantInput(1, "W");
  if (weights.shape.rank != 2 || weights.shape[0] < 1 || weights.shape[1] < 1) {
    Fail("input W has shape " + weights.shape.ToString() +
         ", but it must be [input channels, output channels]");
  }
  const int64_t count = CheckedProduct({weights.shape[0], weights.shape[1]}, "input W");
  if (!AllFinite(weights.As<float>(), count)) {
    Fail(
        "input W holds NaN or infinity: the weights of inputs that are 0 are not read, so they "
        "must "
        "be finite");
  }
  return weights;
}

Tensor ReadBias(const NodeInfo& node, int64_t outputs) {
  const Tensor bias = node.ConstantInput(2, "bias");
  if (bias.shape.rank != 1 || bias.shape[0] != outputs) {
    Fail("input bias has shape " + bias.shape.ToString() + ", but W has " +
         std::to_string(outputs) + " output channels and needs [" + std::to_string(outputs) + "]");
  }
  return bias;
}

Shape RowsOf(int64_t batch, int64_t outputs) {
  Shape shape;
  shape.Append(batch);
  shape.Append(outputs);
  return shape;
}

}  // namespace

const OpSchema ReluLinear::kSchema = {"ReluLinear", {kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtFloat}};

ReluLinear::ReluLinear(const NodeInfo& node)
    : isa_(SelectIsa()), weights_(ReadWeights(node)), bias_(ReadBias(node, weights_.shape[1])) {}

void ReluLinear::Compute(const Context& context) const {
  const Tensor x = context.Input(0);
  const int64_t channels = weights_.shape[0];
  int64_t found = 1;
  for (size_t i = 1; i < x.shape.rank; ++i) found = CheckedProduct({found, x.shape[i]}, "input X");
  if (x.shape.rank < 2 || found != channels) {
    Fail("input X has shape " + x.shape.ToString() + ", but W has " + std::to_string(channels) +
         " input channels and needs [N, " + std::to_string(channels) +
         "], or several dimensions of that product");
  }
  const int64_t outputs = weights_.shape[1];
  auto* const out = static_cast<float*>(context.Output(0, RowsOf(x.shape[0], outputs)));
  if (x.shape[0] == 0) return;  // an empty output has no address
  ReluLinearBatch(
      isa_,
      {x.As<float>(), x.shape[0], channels, weights_.As<float>(), bias_.As<float>(), outputs, out},
      context);
}

void ReluLinear::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  const std::optional<Shape> weights = context.InputShape(1);
  if (!x || x->rank < 2 || !weights || weights->rank != 2) return;
  context.SetOutputShape(0, RowsOf((*x)[0], (*weights)[1]), kOrtFloat);
}

}  // namespace bnn_deploy
