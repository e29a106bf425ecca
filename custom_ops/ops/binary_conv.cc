#include "ops/binary_conv.h"

#include <algorithm>

#include "base/geometry.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Sums below 2^24 are exact in float32.
constexpr int64_t kMaxProducts = (int64_t{1} << 24) - 1;
constexpr int64_t kMaxBases = 4;

std::string Text(int64_t value) { return std::to_string(value); }

}  // namespace

ConvNode::ConvNode(const NodeInfo& node, size_t pad_value_input) : window_(node) {
  ReadAttributes(node);
  ReadWeights(node);
  ReadPadValue(node, pad_value_input);
}

ConvNode::ConvNode(const NodeInfo& node, Planes planes) : window_(node) {
  if (planes == Planes::kLevels) {
    spec_.level_bits = node.Int("bits", 1, kMaxLevelBits);
  } else {
    spec_.planes = node.Int("planes", 1, kMaxLevelBits);
    spec_.bases = node.Int("bases", 1, kMaxBases);
  }
  ReadAttributes(node);
  ReadWeights(node);
}

void ConvNode::ReadAttributes(const NodeInfo& node) {
  spec_.depth = window_.depth();
  spec_.height = window_.height();
  spec_.width = window_.width();
  spec_.channels = node.Int("channels", 1, kMaxExtent);
  spec_.group = node.Int("group", 1, spec_.channels);
  if (spec_.channels % spec_.group != 0) {
    Fail("attribute group = " + Text(spec_.group) +
         " must divide channels = " + Text(spec_.channels));
  }
  const int64_t group_channels = spec_.channels / spec_.group;
  const int64_t taps = CheckedProduct({spec_.depth.kernel, spec_.height.kernel, spec_.width.kernel},
                                      "attribute kernel_shape");
  const int64_t highest = spec_.level_bits > 0 ? (1 << spec_.level_bits) - 1 : 1;
  if (taps > kMaxProducts / highest / group_channels) {
    const std::string levels =
        spec_.level_bits > 0 ? " and the highest level " + Text(highest) : std::string();
    Fail("channels / group = " + Text(group_channels) + " times " + Text(taps) + " kernel taps" +
         levels + " must be at most " + Text(kMaxProducts) + ", so that sums are exact in float32");
  }
}

void ConvNode::ReadWeights(const NodeInfo& node) {
  const Tensor weights = node.ConstantInput(1, "W");
  const int64_t group_channels = spec_.channels / spec_.group;
  const int64_t words = WordsForBits(group_channels);
  const int64_t bases = std::max<int64_t>(spec_.bases, 1);
  Shape expected;
  expected.Append(weights.shape[0]);
  if (window_.rank() == 3) expected.Append(spec_.depth.kernel);
  if (window_.rank() >= 2) expected.Append(spec_.height.kernel);
  expected.Append(spec_.width.kernel);
  expected.Append(bases * words);
  if (!(weights.shape == expected) || weights.shape[0] < 1) {
    Fail("input W has shape " + weights.shape.ToString() +
         ", but channels = " + Text(spec_.channels) + ", group = " + Text(spec_.group) +
         " and kernel_shape need [output channels, kernel_shape..., " +
         (spec_.bases > 0 ? "bases * " : "") + "ceil(" + Text(group_channels) +
         " / 32) = " + Text(bases * words) + "]");
  }
  spec_.out_channels = weights.shape[0];
  if (spec_.out_channels % spec_.group != 0) {
    Fail("input W has " + Text(spec_.out_channels) +
         " output channels, but group = " + Text(spec_.group) + " must divide them");
  }
  weights_ = weights.As<uint32_t>();
  if (group_channels % 32 == 0) return;
  const int64_t filter_taps = spec_.taps() * bases;
  for (int64_t tap = 0; tap < spec_.out_channels * filter_taps; ++tap) {
    const uint32_t last = weights_[(tap + 1) * words - 1];
    if (last >> (group_channels % 32) != 0) {
      Fail("input W has bits set beyond channel " + Text(group_channels - 1) + " (output channel " +
           Text(tap / filter_taps) + "): the unused bits of a last word must be 0");
    }
  }
}

void ConvNode::ReadPadValue(const NodeInfo& node, size_t index) {
  const Tensor pad_value = node.ConstantInput(index, "pad_value");
  const int64_t count = pad_value.shape[0];
  if (pad_value.shape.rank != 1 || (count != 1 && count != spec_.channels)) {
    Fail("input pad_value has shape " + pad_value.shape.ToString() +
         ", but it must be [1] or [channels] = [" + Text(spec_.channels) + "]");
  }
  const float* const values = pad_value.As<float>();
  if (std::all_of(values, values + count, [](float v) { return v == 0.0f; })) return;
  spec_.pad_bits.assign(static_cast<size_t>(WordsForBits(spec_.channels)), 0);
  for (int64_t c = 0; c < spec_.channels; ++c) {
    const float value = values[count == 1 ? 0 : c];
    if (value != 1.0f && value != -1.0f) {
      Fail("input pad_value[" + Text(count == 1 ? 0 : c) + "] = " + std::to_string(value) +
           ": its values must be all 0, or each -1 or +1");
    }
    const auto bit = static_cast<uint32_t>(value == 1.0f);
    spec_.pad_bits[static_cast<size_t>(c / 32)] |= bit << (c % 32);
  }
}

Tensor ConvNode::PerOutput(const NodeInfo& node, size_t index, const char* name) const {
  const Tensor tensor = node.ConstantInput(index, name);
  if (tensor.shape.rank != 1 || tensor.shape[0] != spec_.out_channels) {
    Fail(std::string("input ") + name + " has shape " + tensor.shape.ToString() + ", but W has " +
         Text(spec_.out_channels) + " output channels and needs [" + Text(spec_.out_channels) +
         "]");
  }
  return tensor;
}

FloatConstants ConvNode::ScaleAndBias(const NodeInfo& node) const {
  return {PerOutput(node, 2, "scale").As<float>(), PerOutput(node, 3, "bias").As<float>(), nullptr};
}

BitBatch ConvNode::ReadInput(const Context& context, Shape* out_pixels) const {
  const Tensor x = context.Input(0);
  const int64_t planes = std::max(spec_.level_bits, spec_.planes);
  window_.CheckInput(x.shape, planes * WordsForBits(spec_.channels));
  *out_pixels = window_.OutputPixels(x.shape, Rounding::kFloor);
  return {x.As<uint32_t>(), x.shape[0], window_.Height(x.shape), window_.Width(x.shape),
          window_.Depth(x.shape)};
}

const OpSchema BinaryConv::kSchema = {
    "BinaryConv", {kOrtUint32, kOrtUint32, kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtFloat}};

BinaryConv::BinaryConv(const NodeInfo& node)
    : node_(node, 4),
      driver_(SelectIsa(), node_.spec(), node_.weights(), node_.ScaleAndBias(node)) {}

BinaryConv::BinaryConv(const ConvNode& node, const FloatConstants& constants)
    : node_(node), driver_(SelectIsa(), node_.spec(), node_.weights(), constants) {}

BinaryConv::BinaryConv(const ConvNode& node, const uint32_t* weights,
                       const BasesConstants& constants)
    : node_(node), driver_(SelectIsa(), node_.spec(), weights, constants) {}

void BinaryConv::Compute(const Context& context) const {
  Shape pixels;
  const BitBatch input = node_.ReadInput(context, &pixels);
  const Shape shape = PlanesShape(pixels, node_.spec().out_channels);
  auto* const out = static_cast<float*>(context.Output(0, shape));
  if (input.batch > 0) driver_.Run(input, {out, nullptr, nullptr}, context);
}

void BinaryConv::InferShape(const ShapeContext& context) {
  const std::optional<Shape> pixels = InferOutputPixels(context, Rounding::kFloor);
  if (pixels) context.SetOutputShape(0, PlanesShape(*pixels, InferOutputs(context)), kOrtFloat);
}

const OpSchema BinaryConvScaled::kSchema = {
    "BinaryConvScaled",
    {kOrtUint32, kOrtUint32, kOrtFloat, kOrtFloat, kOrtFloat, kOrtFloat},
    {kOrtFloat}};

void BinaryConvScaled::Compute(const Context& context) const {
  Shape pixels;
  const BitBatch input = node_.ReadInput(context, &pixels);
  const Tensor factor = context.Input(5);
  const Shape expected = PlanesShape(pixels, 1);
  if (!(factor.shape == expected)) {
    Fail("input factor has shape " + factor.shape.ToString() +
         ", but it must have one value per pixel of Y, " + expected.ToString());
  }
  const Shape shape = PlanesShape(pixels, node_.spec().out_channels);
  auto* const out = static_cast<float*>(context.Output(0, shape));
  if (input.batch > 0) driver_.Run(input, {out, nullptr, nullptr, factor.As<float>()}, context);
}

const OpSchema BinaryConvLevels::kSchema = {
    "BinaryConvLevels", {kOrtUint32, kOrtUint32, kOrtFloat, kOrtFloat}, {kOrtFloat}};

BinaryConvLevels::BinaryConvLevels(const NodeInfo& node)
    : BinaryConvLevels(node, ConvNode(node, ConvNode::Planes::kLevels)) {}

BinaryConvLevels::BinaryConvLevels(const NodeInfo& node, const ConvNode& conv)
    : BinaryConv(conv, conv.ScaleAndBias(node)) {
  const float* const scale = conv.ScaleAndBias(node).scale;
  for (int64_t o = 0; o < conv.spec().out_channels; ++o) {
    if (scale[o] * 0.5f * 2.0f != scale[o] && scale[o] == scale[o]) {
      Fail("input scale[" + Text(o) +
           "] is too small: it must be 0 or at least 2^-125 in magnitude");
    }
  }
}

const OpSchema BinaryConvResidual::kSchema = {
    "BinaryConvResidual",
    {kOrtUint32, kOrtUint32, kOrtFloat, kOrtFloat, kOrtFloat, kOrtFloat, kOrtFloat},
    {kOrtFloat, kOrtUint32},
    5};

BinaryConvResidual::BinaryConvResidual(const NodeInfo& node)
    : BinaryConvResidual(node, ConvNode(node, 4)) {}

BinaryConvResidual::BinaryConvResidual(const NodeInfo& node, const ConvNode& conv)
    : BinaryConv(conv, [&] {
        FloatConstants constants = conv.ScaleAndBias(node);
        constants.threshold = conv.PerOutput(node, 6, "threshold").As<float>();
        return constants;
      }()) {}

void BinaryConvResidual::Compute(const Context& context) const {
  Shape pixels;
  const BitBatch input = node_.ReadInput(context, &pixels);
  const Shape shape = PlanesShape(pixels, node_.spec().out_channels);
  const Tensor residual = context.Input(5);
  if (!(residual.shape == shape)) {
    Fail("input residual has shape " + residual.shape.ToString() +
         ", but it must have the shape of Y, " + shape.ToString());
  }
  // onnxruntime gives null for an absent output.
  auto* const out = static_cast<float*>(context.Output(0, shape));
  const Shape bits_shape = BitsShape(pixels, node_.spec().out_channels);
  auto* const bits = static_cast<uint32_t*>(context.Output(1, bits_shape));
  if (input.batch == 0) return;  // an empty output has no address either
  if (out == nullptr && bits == nullptr) {
    Fail("both outputs are absent: give Y or bits a name");
  }
  driver_.Run(input, {out, residual.As<float>(), bits}, context);
}

const OpSchema BinaryConvThreshold::kSchema = {
    "BinaryConvThreshold", {kOrtUint32, kOrtUint32, kOrtInt32, kOrtFloat}, {kOrtUint32}};

BinaryConvThreshold::BinaryConvThreshold(const NodeInfo& node)
    : node_(node, 3),
      driver_(SelectIsa(), node_.spec(), node_.weights(),
              node_.PerOutput(node, 2, "threshold").As<int32_t>()) {}

void BinaryConvThreshold::Compute(const Context& context) const {
  Shape pixels;
  const BitBatch input = node_.ReadInput(context, &pixels);
  const Shape shape = BitsShape(pixels, node_.spec().out_channels);
  auto* const out = static_cast<uint32_t*>(context.Output(0, shape));
  if (input.batch > 0) driver_.Run(input, out, context);
}

void BinaryConvThreshold::InferShape(const ShapeContext& context) {
  const std::optional<Shape> pixels = InferOutputPixels(context, Rounding::kFloor);
  if (pixels) context.SetOutputShape(0, BitsShape(*pixels, InferOutputs(context)), kOrtUint32);
}

}  // namespace bnn_deploy
