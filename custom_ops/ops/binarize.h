// Floats to bits, for 0 to 3 spatial dimensions; the bit of a NaN is 0:
//
//   Binarize(X float [N, C, spatial...], threshold float [C]) -> bits [N, spatial..., ceil(C / 32)]
//       bit = X >= threshold
//   BinarizeChannelsLast(X float [N, spatial..., C], threshold float [C])
//       -> bits [N, spatial..., ceil(C / 32)]
//   BinarizeQuantized(X uint8 [N, spatial..., C], threshold int32 [C])
//       -> bits [N, spatial..., ceil(C / 32)]
//   BinarizeAbsMean(X float [N, C, spatial...], threshold, scale, shift float [C])
//       -> (bits [N, spatial..., ceil(C / 32)], A float [N, 1, spatial...])
//       A = mean over the channels of |scale * X + shift|, a float32 multiply and a float32 add,
//       within min(C, C / 32 + 40) * 2^-24, in relative terms, of the exact mean of these terms. A
//       is the input of the box filter that gives K of XNOR-Net (Rastegari et al., ECCV 2016,
//       equation 11).
//   QuantizeLevels(X float [N, C, spatial...], thresholds float [2^bits - 1, C])
//       -> planes [N, spatial..., bits * ceil(C / 32)]
//       level = the number of thresholds of its channel, in ascending order, that an element
//       reaches; plane j, at words j * ceil(C / 32) and up, holds bit j of the levels. Attribute,
//       required: bits, 1 to 4

#ifndef BNN_DEPLOY_OPS_BINARIZE_H_
#define BNN_DEPLOY_OPS_BINARIZE_H_

#include <vector>

#include "base/buffer.h"
#include "kernels/micro_kernel.h"
#include "ort/api.h"

namespace bnn_deploy {

// Input 1, threshold float [C], C at least 1; also of other operators that make bits of floats.
std::vector<float> ReadThresholds(const NodeInfo& node);

class Binarize {
 public:
  static const OpSchema kSchema;
  explicit Binarize(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  const std::vector<float> threshold_;
};

class BinarizeChannelsLast {
 public:
  static const OpSchema kSchema;
  explicit BinarizeChannelsLast(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  const std::vector<float> threshold_;
};

class BinarizeQuantized {
 public:
  static const OpSchema kSchema;
  explicit BinarizeQuantized(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  int64_t channels_;
  // The thresholds as bytes. A channel with a threshold above 255 has a 0 bit in reachable_.
  Buffer<uint8_t> level_;
  Buffer<uint32_t> reachable_;
};

class BinarizeAbsMean {
 public:
  static const OpSchema kSchema;
  explicit BinarizeAbsMean(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  const std::vector<float> threshold_;
  const std::vector<float> scale_;
  const std::vector<float> shift_;
};

class QuantizeLevels {
 public:
  static const OpSchema kSchema;
  explicit QuantizeLevels(const NodeInfo& node);
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext& context);

 private:
  const Isa& isa_;
  const int64_t bits_;
  int64_t channels_;
  std::vector<float> thresholds_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_BINARIZE_H_
