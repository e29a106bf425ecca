#include "ops/binary_matmul.h"

#include <algorithm>
#include <string>

#include "base/geometry.h"
#include "drivers/conv/layer.h"
#include "drivers/matmul.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Sums below 2^24 are exact in float32.
constexpr int64_t kMaxSum = (int64_t{1} << 24) - 1;
constexpr float kMinScale = 0x1p-125f;  // half of it is exact

float ReadScale(const NodeInfo& node) {
  const Tensor scale = node.ConstantInput(2, "scale");
  if (scale.shape.rank != 1 || scale.shape[0] != 1) {
    Fail("input scale has shape " + scale.shape.ToString() + ", but it must be [1]");
  }
  const float value = *scale.As<float>();
  if (!(value >= kMinScale)) {
    Fail("input scale is " + std::to_string(value) + ": it must be at least 2^-125");
  }
  return value;
}

// As in ConvSpec.
int64_t ReadLevelBits(const NodeInfo& node) {
  const int64_t bits = node.Int("bits", 1, kMaxLevelBits);
  if (node.Int("signs", 0, 1) == 0) return bits;
  if (bits != 1) Fail("attribute bits = " + std::to_string(bits) + " must be 1 where signs = 1");
  return 0;
}

// [..., M, words] and N -> [..., M, N].
Shape ProductShape(const Shape& a, int64_t columns) {
  Shape shape = a;
  shape.dims[a.rank - 1] = columns;
  return shape;
}

}  // namespace

const OpSchema BinaryMatMul::kSchema = {
    "BinaryMatMul", {kOrtUint32, kOrtUint32, kOrtFloat}, {kOrtFloat}};

BinaryMatMul::BinaryMatMul(const NodeInfo& node)
    : isa_(SelectIsa()),
      level_bits_(ReadLevelBits(node)),
      channels_(node.Int("channels", 1, kMaxSum / std::max((1 << level_bits_) - 1, 1))),
      scale_(ReadScale(node)) {}

void BinaryMatMul::Compute(const Context& context) const {
  const Tensor a = context.Input(0);
  const Tensor b = context.Input(1);
  const int64_t words = WordsForBits(channels_);
  const int64_t planes = std::max<int64_t>(level_bits_, 1);
  if (a.shape.rank < 2 || a.shape.back() != planes * words) {
    Fail("input A has shape " + a.shape.ToString() + ", but it must be [..., M, " +
         std::to_string(planes * words) + "]");
  }
  Shape expected = a.shape;
  expected.dims[a.shape.rank - 1] = words;
  if (b.shape.rank == a.shape.rank) {
    expected.dims[a.shape.rank - 2] = b.shape[a.shape.rank - 2];
  }
  if (!(b.shape == expected)) {
    Fail("input B has shape " + b.shape.ToString() + ", but A has " + a.shape.ToString() +
         ": B must have its leading dimensions, and " + std::to_string(words) + " words");
  }
  const int64_t rows = a.shape[a.shape.rank - 2];
  const int64_t columns = b.shape[a.shape.rank - 2];
  int64_t batch = 1;
  for (size_t i = 0; i + 2 < a.shape.rank; ++i) {
    batch = CheckedProduct({batch, a.shape[i]}, "input A");
  }
  auto* const out = static_cast<float*>(context.Output(0, ProductShape(a.shape, columns)));
  if (CheckedProduct({batch, rows, columns}, "output Y") == 0) return;
  MultiplyBits(isa_, channels_, level_bits_, scale_,
               {a.As<uint32_t>(), b.As<uint32_t>(), batch, rows, columns}, out, context);
}

void BinaryMatMul::InferShape(const ShapeContext& context) {
  const std::optional<Shape> a = context.InputShape(0);
  const std::optional<Shape> b = context.InputShape(1);
  if (!a || a->rank < 2) return;
  const int64_t columns = b && b->rank == a->rank ? (*b)[a->rank - 2] : -1;
  context.SetOutputShape(0, ProductShape(*a, columns), kOrtFloat);
}

}  // namespace bnn_deploy
