// Convolution of floats, or of images of bytes, with few input channels, behind it max pooling, in
// one operator:
//
//   DirectConv(X, W, bias [O]) -> float [N, O, spatial...]
//       y = the maximum over the pool window of (bias[o] + the sum of x * w), added in the order of
//       DirectConvArgs
//   DirectConvThreshold(X, W, bias [O], threshold [O]) -> bits [N, spatial..., ceil(O / 32)]
//       bit = y >= threshold, and 0 for NaN
//   ImageConv(X, W, bias [O], levels [C, 256]) -> float
//   ImageConvThreshold(X, W, bias [O], levels [C, 256], threshold [O]) -> bits
//       the same of x = levels[c][byte]
//
// X float [N, C, spatial...], W float [O, C, kernel...], 1 or 2 spatial dimensions. Attributes, all
// required: kernel_shape, strides, pads, dilations of the convolution, which pads with 0, and
// pool_shape, pool_strides, pool_pads of the pool, whose padding adds nothing; a pool_shape of 1
// does not pool. An image is uint8, [N, spatial..., C] with the attribute channels_last, 0 or 1.

#ifndef BNN_DEPLOY_OPS_DIRECT_CONV_H_
#define BNN_DEPLOY_OPS_DIRECT_CONV_H_

#include <optional>

#include "drivers/direct/driver.h"
#include "ops/window_attributes.h"
#include "ort/api.h"

namespace bnn_deploy {

// The attributes and constant inputs of these operators, read and checked.
class DirectConvNode {
 public:
  // of_bytes: whether it takes images of bytes.
  DirectConvNode(const NodeInfo& node, bool of_bytes);

  DirectConvDriver Driver(const float* threshold) const;
  // The last constant input, of the operators that give bits.
  const float* Threshold(const NodeInfo& node) const;
  // Input X, checked. Sets out_pixels to [N, output spatial...].
  ImageBatch ReadInput(const Context& context, Shape* out_pixels) const;
  int64_t out_channels() const { return spec_.out_channels; }

 private:
  void ReadPool(const NodeInfo& node);
  // A constant input with one value per output channel.
  const float* PerOutput(const NodeInfo& node, size_t index, const char* name) const;
  const float* Levels(const NodeInfo& node) const;

  bool of_bytes_;
  bool channels_last_;
  WindowAttributes window_;
  DirectSpec spec_{};
  const float* weights_ = nullptr;
  const float* bias_ = nullptr;
  const float* levels_ = nullptr;
};

template <bool kOfBytes>
class ConvToFloats {
 public:
  static const OpSchema kSchema;
  explicit ConvToFloats(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  DirectConvNode node_;
  DirectConvDriver driver_;
};
using DirectConv = ConvToFloats<false>;
using ImageConv = ConvToFloats<true>;
template <>
const OpSchema DirectConv::kSchema;
template <>
const OpSchema ImageConv::kSchema;

template <bool kOfBytes>
class ConvToBits {
 public:
  static const OpSchema kSchema;
  explicit ConvToBits(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  DirectConvNode node_;
  DirectConvDriver driver_;
};
using DirectConvThreshold = ConvToBits<false>;
using ImageConvThreshold = ConvToBits<true>;
template <>
const OpSchema DirectConvThreshold::kSchema;
template <>
const OpSchema ImageConvThreshold::kSchema;

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_DIRECT_CONV_H_
