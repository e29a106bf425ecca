#include "ops/direct_conv.h"

#include <algorithm>
#include <string>

#include "base/geometry.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

constexpr size_t kMaxRank = 2;
constexpr Axis kNoPool = {1, 1, 1, 0, 0};

std::string Text(int64_t value) { return std::to_string(value); }

// [N, C, spatial...] -> [N, spatial..., C].
Shape ChannelsLast(const Shape& x) {
  Shape shape;
  shape.Append(x[0]);
  for (size_t i = 2; i < x.rank; ++i) shape.Append(x[i]);
  shape.Append(x[1]);
  return shape;
}

}  // namespace

DirectConvNode::DirectConvNode(const NodeInfo& node, bool of_bytes)
    : of_bytes_(of_bytes),
      channels_last_(of_bytes && node.Int("channels_last", 0, 1) == 1),
      window_(node) {
  if (window_.rank() > kMaxRank) {
    Fail("attribute kernel_shape has " + Text(static_cast<int64_t>(window_.rank())) +
         " values: it must have 1 or 2, one per spatial dimension");
  }
  spec_.height = window_.height();
  spec_.width = window_.width();
  ReadPool(node);
  const Tensor weights = node.ConstantInput(1, "W");
  const Shape& shape = weights.shape;
  const bool fits = shape.rank == window_.rank() + 2 && shape[0] >= 1 && shape[1] >= 1 &&
                    shape.back() == spec_.width.kernel &&
                    (window_.rank() == 1 || shape[2] == spec_.height.kernel);
  if (!fits) {
    Fail("input W has shape " + shape.ToString() +
         ", but it must be [output channels, channels, kernel_shape...]");
  }
  spec_.out_channels = shape[0];
  spec_.channels = shape[1];
  weights_ = weights.As<float>();
  bias_ = PerOutput(node, 2, "bias");
  if (of_bytes) levels_ = Levels(node);
}

void DirectConvNode::ReadPool(const NodeInfo& node) {
  const size_t rank = window_.rank();
  int64_t shape[kMaxRank], strides[kMaxRank], pads[2 * kMaxRank];
  node.Ints("pool_shape", shape, rank, 1, kMaxPool);
  node.Ints("pool_strides", strides, rank, 1, kMaxExtent);
  node.Ints("pool_pads", pads, 2 * rank, 0, kMaxPool);
  Axis axes[kMaxRank];
  for (size_t i = 0; i < rank; ++i) {
    axes[i] = {shape[i], strides[i], 1, pads[i], pads[rank + i]};
    if (std::max(pads[i], pads[rank + i]) >= shape[i]) {
      Fail("attribute pool_pads must be below pool_shape = " + Text(shape[i]) + " in dimension " +
           Text(static_cast<int64_t>(i)) + ", so that no window is empty");
    }
  }
  spec_.pool_height = rank == 2 ? axes[0] : kNoPool;
  spec_.pool_width = axes[rank - 1];
}

DirectConvDriver DirectConvNode::Driver(const float* threshold) const {
  return DirectConvDriver(SelectIsa(), spec_, weights_, bias_, threshold, levels_);
}

const float* DirectConvNode::PerOutput(const NodeInfo& node, size_t index, const char* name) const {
  const Tensor tensor = node.ConstantInput(index, name);
  if (tensor.shape.rank != 1 || tensor.shape[0] != spec_.out_channels) {
    Fail(std::string("input ") + name + " has shape " + tensor.shape.ToString() + ", but W has " +
         Text(spec_.out_channels) + " output channels and needs [" + Text(spec_.out_channels) +
         "]");
  }
  return tensor.As<float>();
}

const float* DirectConvNode::Threshold(const NodeInfo& node) const {
  return PerOutput(node, of_bytes_ ? 4 : 3, "threshold");
}

const float* DirectConvNode::Levels(const NodeInfo& node) const {
  const Tensor tensor = node.ConstantInput(3, "levels");
  const Shape& shape = tensor.shape;
  if (shape.rank != 2 || shape[0] != spec_.channels || shape[1] != kByteValues) {
    Fail("input levels has shape " + shape.ToString() + ", but W has " + Text(spec_.channels) +
         " channels and needs [" + Text(spec_.channels) + ", " + Text(kByteValues) + "]");
  }
  return tensor.As<float>();
}

ImageBatch DirectConvNode::ReadInput(const Context& context, Shape* out_pixels) const {
  const Tensor x = context.Input(0);
  const size_t rank = window_.rank();
  if (x.shape.rank != rank + 2 || x.shape[channels_last_ ? rank + 1 : 1] != spec_.channels) {
    const std::string spatial = rank == 2 ? ", H, W" : ", L";
    const std::string channels = ", " + Text(spec_.channels);
    Fail("input X has shape " + x.shape.ToString() + ", but it must be [N" +
         (channels_last_ ? spatial + channels : channels + spatial) + "]");
  }
  const Shape pixels = channels_last_ ? x.shape : ChannelsLast(x.shape);
  window_.CheckInput(pixels, spec_.channels);
  *out_pixels = window_.OutputPixels(pixels, Rounding::kFloor);
  for (size_t i = 0; i < rank; ++i) {
    const Axis& pool = i + 1 == rank ? spec_.pool_width : spec_.pool_height;
    const int64_t extent = OutputExtent(pool, (*out_pixels)[1 + i]);
    if (extent == 0) {
      Fail("the convolution of input X " + x.shape.ToString() + " has " +
           Text((*out_pixels)[1 + i]) + " elements in spatial dimension " +
           Text(static_cast<int64_t>(i)) + ", less than one window of the pool, " +
           Text(pool.kernel));
    }
    out_pixels->dims[1 + i] = extent;
  }
  return {of_bytes_ ? nullptr : x.As<float>(),
          of_bytes_ ? x.As<uint8_t>() : nullptr,
          channels_last_,
          x.shape[0],
          window_.Height(pixels),
          window_.Width(pixels)};
}

namespace {

// [N, output spatial...] with -1 for unknown extents; nullopt when nothing can be inferred.
std::optional<Shape> InferPooledPixels(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  if (!x || x->rank < 3 || x->rank > kMaxRank + 2) return std::nullopt;
  const size_t rank = x->rank - 2;
  const auto window = WindowAttributes::Infer(context, rank);
  int64_t shape[kMaxRank], strides[kMaxRank], pads[2 * kMaxRank];
  if (!window || !context.Ints("pool_shape", shape, rank) ||
      !context.Ints("pool_strides", strides, rank) || !context.Ints("pool_pads", pads, 2 * rank)) {
    return std::nullopt;
  }
  const size_t first = context.Int("channels_last").value_or(0) == 1 ? 1 : 2;
  Shape pixels;
  pixels.Append((*x)[0]);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t extent = (*x)[first + i];
    if (extent < 0 || extent > kMaxExtent) {
      pixels.Append(-1);
      continue;
    }
    if (shape[i] < 1 || shape[i] > kMaxPool || strides[i] < 1 || strides[i] > kMaxExtent ||
        std::min(pads[i], pads[rank + i]) < 0 || std::max(pads[i], pads[rank + i]) > kMaxPool) {
      return std::nullopt;
    }
    const Axis& axis = i + 1 == rank ? window->width() : window->height();
    pixels.Append(OutputExtent({shape[i], strides[i], 1, pads[i], pads[rank + i]},
                               OutputExtent(axis, extent)));
  }
  return pixels;
}

}  // namespace

template <>
const OpSchema DirectConv::kSchema = {"DirectConv", {kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtFloat}};
template <>
const OpSchema ImageConv::kSchema = {
    "ImageConv", {kOrtUint8, kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtFloat}};

template <bool kOfBytes>
ConvToFloats<kOfBytes>::ConvToFloats(const NodeInfo& node)
    : node_(node, kOfBytes), driver_(node_.Driver(nullptr)) {}

template <bool kOfBytes>
void ConvToFloats<kOfBytes>::Compute(const Context& context) const {
  Shape pixels;
  const ImageBatch input = node_.ReadInput(context, &pixels);
  auto* const out =
      static_cast<float*>(context.Output(0, PlanesShape(pixels, node_.out_channels())));
  if (input.batch > 0) driver_.Run(input, out, context);
}

template <bool kOfBytes>
void ConvToFloats<kOfBytes>::InferShape(const ShapeContext& context) {
  const std::optional<Shape> pixels = InferPooledPixels(context);
  if (pixels) context.SetOutputShape(0, PlanesShape(*pixels, InferOutputs(context)), kOrtFloat);
}

template <>
const OpSchema DirectConvThreshold::kSchema = {
    "DirectConvThreshold", {kOrtFloat, kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtUint32}};
template <>
const OpSchema ImageConvThreshold::kSchema = {
    "ImageConvThreshold", {kOrtUint8, kOrtFloat, kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtUint32}};

template <bool kOfBytes>
ConvToBits<kOfBytes>::ConvToBits(const NodeInfo& node)
    : node_(node, kOfBytes), driver_(node_.Driver(node_.Threshold(node))) {}

template <bool kOfBytes>
void ConvToBits<kOfBytes>::Compute(const Context& context) const {
  Shape pixels;
  const ImageBatch input = node_.ReadInput(context, &pixels);
  auto* const out =
      static_cast<uint32_t*>(context.Output(0, BitsShape(pixels, node_.out_channels())));
  if (input.batch > 0) driver_.Run(input, out, context);
}

template <bool kOfBytes>
void ConvToBits<kOfBytes>::InferShape(const ShapeContext& context) {
  const std::optional<Shape> pixels = InferPooledPixels(context);
  const int64_t outputs = InferOutputs(context);
  if (pixels && outputs > 0) context.SetOutputShape(0, BitsShape(*pixels, outputs), kOrtUint32);
}

template class ConvToFloats<false>;
template class ConvToFloats<true>;
template class ConvToBits<false>;
template class ConvToBits<true>;

}  // namespace bnn_deploy
