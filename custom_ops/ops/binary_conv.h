// Convolution of ±1 activations and weights, both packed into bits, with an integer sum acc:
//
//   BinaryConv(X, W, scale [O], bias [O], pad_value) -> float [N, O, spatial...]
//       y = scale * float(acc) + bias, a float32 multiply and then a float32 add
//   BinaryConvScaled(X, W, scale [O], bias [O], pad_value, factor float [N, 1, spatial...])
//       -> float [N, O, spatial...]
//       y = (scale * float(acc) + bias) * factor, roundings in this order
//   BinaryConvThreshold(X, W, threshold int32 [O], pad_value) -> bits [N, spatial..., ceil(O / 32)]
//       bit = acc >= threshold
//   BinaryConvResidual(X, W, scale [O], bias [O], pad_value, residual float [N, O, spatial...],
//                      threshold float [O])
//       -> (Y float [N, O, spatial...], bits [N, spatial..., ceil(O / 32)])
//       y = (scale * float(acc) + bias) + residual, bit = y >= threshold and 0 for NaN;
//       either output may be absent, but not both
//   BinaryConvLevels(X, W, scale [O], bias [O]) -> float [N, O, spatial...]
//       for levels 0 to 2^bits - 1 (QuantizeLevels) instead of ±1: X is bit planes
//       [N, spatial..., bits * ceil(C / 32)], least significant first; acc is the sum of
//       level * ±1, y as for BinaryConv, and a padded tap holds level 0. One more attribute: bits
//
// X bits [N, spatial..., ceil(C / 32)], W bits [O, kernel..., ceil(C / group / 32)], 1 to 3 spatial
// dimensions. pad_value ([1] or [C]): all 0, a padded tap adds nothing; else ±1 per input channel.
// Attributes, all required: channels, kernel_shape, strides, pads, dilations, group.

#ifndef BNN_DEPLOY_OPS_BINARY_CONV_H_
#define BNN_DEPLOY_OPS_BINARY_CONV_H_

#include "drivers/conv/driver.h"
#include "ops/window_attributes.h"
#include "ort/api.h"

namespace bnn_deploy {

// The attributes and constant inputs that all these operators share, read and checked.
class ConvNode {
 public:
  // What several bit planes of X hold: bits of levels, for BinaryConvLevels, or signs, for
  // BinaryConvBases.
  enum class Planes { kLevels, kSigns };

  ConvNode(const NodeInfo& node, size_t pad_value_input);
  ConvNode(const NodeInfo& node, Planes planes);

  const ConvSpec& spec() const { return spec_; }
  const uint32_t* weights() const { return weights_; }

  // A constant input with one value per output channel.
  Tensor PerOutput(const NodeInfo& node, size_t index, const char* name) const;
  // Inputs 2 (scale) and 3 (bias).
  FloatConstants ScaleAndBias(const NodeInfo& node) const;
  // Input X, checked. Sets out_pixels to [N, output spatial...].
  BitBatch ReadInput(const Context& context, Shape* out_pixels) const;

 private:
  void ReadAttributes(const NodeInfo& node);
  void ReadWeights(const NodeInfo& node);
  void ReadPadValue(const NodeInfo& node, size_t index);

  WindowAttributes window_;
  ConvSpec spec_{};
  const uint32_t* weights_ = nullptr;
};

class BinaryConv {
 public:
  static const OpSchema kSchema;
  explicit BinaryConv(const NodeInfo& node);
  void Compute(const Context& context) const;
  // Sets the shape of output 0 only. A BinaryConvResidual node may lack its bits, which onnxruntime
  // does not report, and before 1.28 it aborts when it gets the shape of an absent output.
  // Converted models have the shape in value_info.
  static void InferShape(const ShapeContext& context);

 protected:
  BinaryConv(const ConvNode& node, const FloatConstants& constants);
  BinaryConv(const ConvNode& node, const uint32_t* weights, const BasesConstants& constants);

  const ConvNode node_;
  const ConvDriver driver_;
};

class BinaryConvScaled : public BinaryConv {
 public:
  static const OpSchema kSchema;
  using BinaryConv::BinaryConv;
  void Compute(const Context& context) const;
};

class BinaryConvLevels : public BinaryConv {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvLevels(const NodeInfo& node);

 private:
  BinaryConvLevels(const NodeInfo& node, const ConvNode& conv);
};

class BinaryConvResidual : public BinaryConv {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvResidual(const NodeInfo& node);
  void Compute(const Context& context) const;

 private:
  BinaryConvResidual(const NodeInfo& node, const ConvNode& conv);
};

class BinaryConvThreshold {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvThreshold(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const ConvNode node_;
  const ConvDriver driver_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARY_CONV_H_
