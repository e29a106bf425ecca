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
//       of levels 0 to 2^bits - 1 instead of ±1, as QuantizeLevels makes them: X is bit planes
//       [N, spatial..., bits * ceil(C / 32)], least significant first; acc is the sum of
//       level * ±1, y as for BinaryConv, and a padded tap holds level 0. One more attribute: bits
//
// X bits [N, spatial..., ceil(C / 32)], W bits [O, kernel..., ceil(C / group / 32)], 1 or 2 spatial
// dimensions. pad_value ([1] or [C]): all 0, a padded tap adds nothing; else ±1 per input channel.
// Attributes, all required: channels, kernel_shape, strides, pads, dilations, group.

#ifndef BNN_DEPLOY_OPS_BINARY_CONV_H_
#define BNN_DEPLOY_OPS_BINARY_CONV_H_

#include <memory>

#include "drivers/conv_driver.h"
#include "ops/window_attributes.h"
#include "ort/api.h"

namespace bnn_deploy {

// What the operators share: attributes and inputs, read and checked.
class ConvNode {
 public:
  ConvNode(const NodeInfo& node, size_t pad_value_input);
  explicit ConvNode(const NodeInfo& node);  // of levels

  const NodeLabel& label() const { return label_; }
  const ConvSpec& spec() const { return spec_; }
  const uint32_t* weights() const { return weights_; }

  // A constant input with one value per output channel.
  Tensor PerOutput(const NodeInfo& node, size_t index, const char* name) const;
  // Input X, checked, and [N, output spatial...].
  BitBatch ReadInput(const Context& context, Shape* out_pixels) const;

 private:
  void ReadAttributes(const NodeInfo& node);
  void ReadWeights(const NodeInfo& node);
  void ReadPadValue(const NodeInfo& node, size_t index);

  NodeLabel label_;
  WindowAttributes window_;
  ConvSpec spec_{};
  const uint32_t* weights_ = nullptr;
};

class BinaryConv {
 public:
  static const OpSchema kSchema;
  explicit BinaryConv(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  ConvNode node_;
  std::unique_ptr<const ConvDriver> driver_;
};

class BinaryConvScaled {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvScaled(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  ConvNode node_;
  std::unique_ptr<const ConvDriver> driver_;
};

class BinaryConvLevels {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvLevels(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  ConvNode node_;
  std::unique_ptr<const ConvDriver> driver_;
};

class BinaryConvResidual {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvResidual(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  ConvNode node_;
  std::unique_ptr<const ConvDriver> driver_;
};

class BinaryConvThreshold {
 public:
  static const OpSchema kSchema;
  explicit BinaryConvThreshold(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  ConvNode node_;
  std::unique_ptr<const ConvDriver> driver_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARY_CONV_H_
