#include "ops/average_pool.h"

#include <string>

#include "drivers/average_pool.h"
#include "kernels/dispatch.h"
#include "ops/binarize.h"

namespace bnn_deploy {
namespace {

constexpr size_t kRank = 4;

// [N, C, H, W] -> [N, H, W, C].
Shape ChannelsLast(const Shape& x) {
  Shape shape;
  for (const size_t i : {0, 2, 3, 1}) shape.Append(x[i]);
  return shape;
}

}  // namespace

const OpSchema AveragePoolThreshold::kSchema = {
    "AveragePoolThreshold", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

AveragePoolThreshold::AveragePoolThreshold(const NodeInfo& node)
    : isa_(SelectIsa()),
      window_(node),
      relu_(node.Int("relu", 0, 1) == 1),
      threshold_(ReadThresholds(node)) {
  if (window_.rank() != kRank - 2) {
    Fail("attribute kernel_shape has " + std::to_string(window_.rank()) +
         " values: it must have 2, one per spatial dimension");
  }
}

void AveragePoolThreshold::Compute(const Context& context) const {
  const Tensor x = context.Input(0);
  const auto channels = static_cast<int64_t>(threshold_.size());
  if (x.shape.rank != kRank || x.shape[1] != channels) {
    Fail("input X has shape " + x.shape.ToString() + ", but it must be [N, " +
         std::to_string(channels) + ", H, W], as threshold has shape [" + std::to_string(channels) +
         "]");
  }
  const Shape last = ChannelsLast(x.shape);
  window_.CheckInput(last, channels);
  const Shape pixels = window_.OutputPixels(last, Rounding::kFloor);
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsShape(pixels, channels)));
  const AveragePoolSpec spec{
      window_.height(), window_.width(), relu_,     x.shape[0], channels,
      x.shape[2],       x.shape[3],      pixels[1], pixels[2],
  };
  AveragePoolBatch(isa_, spec, x.As<float>(), threshold_.data(), out, context);
}

void AveragePoolThreshold::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  const auto window = WindowAttributes::Infer(context, kRank - 2);
  if (!x || x->rank != kRank || !window) return;
  Shape shape;
  shape.Append((*x)[0]);
  const Axis axes[] = {window->height(), window->width()};
  for (size_t i = 0; i < 2; ++i) {
    const int64_t extent = (*x)[2 + i];
    shape.Append(extent < 0 ? -1 : OutputExtent(axes[i], extent));
  }
  context.SetOutputShape(0, BitsShape(shape, (*x)[1]), kOrtUint32);
}

}  // namespace bnn_deploy
