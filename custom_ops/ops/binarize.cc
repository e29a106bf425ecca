#include "ops/binarize.h"

#include <algorithm>

#include "base/geometry.h"
#include "drivers/binarize.h"
#include "drivers/conv/layer.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

constexpr size_t kMinRank = 2;
constexpr size_t kMaxRank = 5;

std::string Text(int64_t value) { return std::to_string(value); }

bool HasRank(const Shape& x) { return x.rank >= kMinRank && x.rank <= kMaxRank; }

int64_t Size(const std::vector<float>& values) { return static_cast<int64_t>(values.size()); }

// The input threshold [C].
Tensor ReadThreshold(const NodeInfo& node) {
  const Tensor threshold = node.ConstantInput(1, "threshold");
  if (threshold.shape.rank != 1 || threshold.shape[0] < 1 || threshold.shape[0] > kMaxExtent) {
    Fail("input threshold has shape " + threshold.shape.ToString() +
         ", but it must be [C] with one value per channel of X");
  }
  return threshold;
}

std::vector<float> Floats(const Tensor& tensor) {
  return {tensor.As<float>(), tensor.As<float>() + tensor.shape[0]};
}

// A constant input [C], with the C of `threshold`.
std::vector<float> ReadPerChannel(const NodeInfo& node, size_t index, const char* name,
                                  const std::vector<float>& threshold) {
  const Tensor tensor = node.ConstantInput(index, name);
  if (tensor.shape.rank != 1 || tensor.shape[0] != Size(threshold)) {
    const std::string count = Text(Size(threshold));
    Fail(std::string("input ") + name + " has shape " + tensor.shape.ToString() +
         ", but threshold has " + count + " values and it needs [" + count + "]");
  }
  return Floats(tensor);
}

// The product of the dimensions from `begin` to before `end`.
int64_t CountPixels(const Shape& x, size_t begin, size_t end) {
  int64_t pixels = 1;
  for (size_t i = begin; i < end; ++i) pixels = CheckedProduct({pixels, x[i]}, "input X");
  return pixels;
}

struct Planes {
  Tensor x;
  int64_t pixels;  // of one image
};

// Input X [N, channels, spatial...]. `source` gives errors the origin of `channels`: "threshold has
// shape [64]".
Planes ReadPlanes(const Context& context, int64_t channels, const std::string& source) {
  const Tensor x = context.Input(0);
  if (!HasRank(x.shape) || x.shape[1] != channels) {
    Fail("input X has shape " + x.shape.ToString() + ", but it must be [N, " + Text(channels) +
         ", 0 to 3 spatial dimensions], as " + source);
  }
  return {x, CountPixels(x.shape, 2, x.shape.rank)};
}

Planes ReadPlanes(const Context& context, const std::vector<float>& threshold) {
  const int64_t channels = Size(threshold);
  return ReadPlanes(context, channels, "threshold has shape [" + Text(channels) + "]");
}

struct Rows {
  Tensor x;
  int64_t pixels;  // of the whole batch
};

// Input X [N, spatial..., channels].
Rows ReadRows(const Context& context, int64_t channels) {
  const Tensor x = context.Input(0);
  if (!HasRank(x.shape) || x.shape.back() != channels) {
    Fail("input X has shape " + x.shape.ToString() +
         ", but it must be [N, 0 to 3 spatial dimensions, " + Text(channels) +
         "], as threshold has shape [" + Text(channels) + "]");
  }
  return {x, CountPixels(x.shape, 0, x.shape.rank - 1)};
}

// The shape of X if it is known and the operators support it.
std::optional<Shape> InferFloats(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  return x && HasRank(*x) ? x : std::nullopt;
}

// [N, C, spatial...] -> [N, spatial..., planes * ceil(C / 32)]. An unknown extent is -1.
Shape BitsOfPlanes(const Shape& x, int64_t planes = 1) {
  Shape shape;
  shape.Append(x[0]);
  for (size_t i = 2; i < x.rank; ++i) shape.Append(x[i]);
  shape.Append(x[1] < 0 ? -1 : planes * WordsForBits(x[1]));
  return shape;
}

// [N, spatial..., C] -> [N, spatial..., ceil(C / 32)]. An unknown extent is -1.
Shape BitsOfRows(const Shape& x) {
  Shape shape = x;
  shape.dims[x.rank - 1] = x.back() < 0 ? -1 : WordsForBits(x.back());
  return shape;
}

}  // namespace

std::vector<float> ReadThresholds(const NodeInfo& node) { return Floats(ReadThreshold(node)); }

const OpSchema Binarize::kSchema = {"Binarize", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

Binarize::Binarize(const NodeInfo& node) : isa_(SelectIsa()), threshold_(ReadThresholds(node)) {}

void Binarize::Compute(const Context& context) const {
  const auto [x, pixels] = ReadPlanes(context, threshold_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfPlanes(x.shape)));
  BinarizeBatch(isa_, x.As<float>(), threshold_.data(), x.shape[0], x.shape[1], pixels, out,
                context);
}

void Binarize::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = InferFloats(context);
  if (x) context.SetOutputShape(0, BitsOfPlanes(*x), kOrtUint32);
}

const OpSchema BinarizeChannelsLast::kSchema = {
    "BinarizeChannelsLast", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

BinarizeChannelsLast::BinarizeChannelsLast(const NodeInfo& node)
    : isa_(SelectIsa()), threshold_(ReadThresholds(node)) {}

void BinarizeChannelsLast::Compute(const Context& context) const {
  const auto [x, pixels] = ReadRows(context, Size(threshold_));
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfRows(x.shape)));
  BinarizeRowsBatch(isa_, x.As<float>(), threshold_.data(), x.shape.back(), pixels, out, context);
}

void BinarizeChannelsLast::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = InferFloats(context);
  if (x) context.SetOutputShape(0, BitsOfRows(*x), kOrtUint32);
}

const OpSchema BinarizeQuantized::kSchema = {
    "BinarizeQuantized", {kOrtUint8, kOrtInt32}, {kOrtUint32}};

BinarizeQuantized::BinarizeQuantized(const NodeInfo& node) : isa_(SelectIsa()) {
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
  const auto [x, pixels] = ReadRows(context, channels_);
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfRows(x.shape)));
  BinarizeBytesBatch(isa_, x.As<uint8_t>(), level_.data(), reachable_.data(), channels_, pixels,
                     out, context);
}

void BinarizeQuantized::InferShape(const ShapeContext& context) {
  BinarizeChannelsLast::InferShape(context);
}

const OpSchema BinarizeAbsMean::kSchema = {
    "BinarizeAbsMean", {kOrtFloat, kOrtFloat, kOrtFloat, kOrtFloat}, {kOrtUint32, kOrtFloat}};

BinarizeAbsMean::BinarizeAbsMean(const NodeInfo& node)
    : isa_(SelectIsa()),
      threshold_(ReadThresholds(node)),
      scale_(ReadPerChannel(node, 2, "scale", threshold_)),
      shift_(ReadPerChannel(node, 3, "shift", threshold_)) {}

void BinarizeAbsMean::Compute(const Context& context) const {
  const auto [x, pixels] = ReadPlanes(context, threshold_);
  auto* const bits = static_cast<uint32_t*>(context.Output(0, BitsOfPlanes(x.shape)));
  Shape mean_shape = x.shape;
  mean_shape.dims[1] = 1;
  auto* const mean = static_cast<float*>(context.Output(1, mean_shape));
  if (x.shape[0] == 0 || pixels == 0) return;  // an empty output has no address
  if (bits == nullptr || mean == nullptr) {
    Fail(std::string("output ") + (bits == nullptr ? "bits" : "A") +
         " is absent: give both outputs a name, or use Binarize, which has no A");
  }
  BinarizeAbsMeanBatch(isa_, x.As<float>(), threshold_.data(), scale_.data(), shift_.data(),
                       x.shape[0], x.shape[1], pixels, bits, mean, context);
}

// Sets no shape for A: a node may lack A, which onnxruntime does not report, and before 1.28 it
// aborts when it gets the shape of an absent output. Converted models have A's shape in value_info.
void BinarizeAbsMean::InferShape(const ShapeContext& context) { Binarize::InferShape(context); }

const OpSchema QuantizeLevels::kSchema = {"QuantizeLevels", {kOrtFloat, kOrtFloat}, {kOrtUint32}};

QuantizeLevels::QuantizeLevels(const NodeInfo& node)
    : isa_(SelectIsa()), bits_(node.Int("bits", 1, kMaxLevelBits)) {
  const Tensor thresholds = node.ConstantInput(1, "thresholds");
  const int64_t count = (int64_t{1} << bits_) - 1;
  if (thresholds.shape.rank != 2 || thresholds.shape[0] != count || thresholds.shape[1] < 1 ||
      thresholds.shape[1] > kMaxExtent) {
    Fail("input thresholds has shape " + thresholds.shape.ToString() +
         ", but it must be [2^bits - 1, C] = [" + Text(count) +
         ", C] with one column per channel of X");
  }
  channels_ = thresholds.shape[1];
  const float* const values = thresholds.As<float>();
  thresholds_.assign(values, values + count * channels_);
  for (int64_t i = channels_; i < count * channels_; ++i) {
    if (!(values[i] >= values[i - channels_])) {
      Fail("input thresholds[" + Text(i / channels_) + "][" + Text(i % channels_) +
           "] = " + std::to_string(values[i]) + ", which is not at least the one before, " +
           std::to_string(values[i - channels_]) + ": the thresholds of a channel must ascend");
    }
  }
}

void QuantizeLevels::Compute(const Context& context) const {
  const auto [x, pixels] =
      ReadPlanes(context, channels_, "thresholds has " + Text(channels_) + " columns");
  auto* const out = static_cast<uint32_t*>(context.Output(0, BitsOfPlanes(x.shape, bits_)));
  QuantizeLevelsBatch(isa_, x.As<float>(), thresholds_.data(), bits_, x.shape[0], channels_, pixels,
                      out, context);
}

void QuantizeLevels::InferShape(const ShapeContext& context) {
  const std::optional<Shape> x = InferFloats(context);
  const std::optional<int64_t> bits = context.Int("bits");
  if (!x || !bits || *bits < 1 || *bits > kMaxLevelBits) return;
  context.SetOutputShape(0, BitsOfPlanes(*x, *bits), kOrtUint32);
}

}  // namespace bnn_deploy
