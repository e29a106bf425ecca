// The attributes kernel_shape, strides, pads (begins, then ends: [top, left, bottom, right]) and
// dilations of windows over bits [N, spatial..., words] with 1 or 2 spatial dimensions, and the
// output shapes that they give.

#ifndef BNN_DEPLOY_OPS_WINDOW_ATTRIBUTES_H_
#define BNN_DEPLOY_OPS_WINDOW_ATTRIBUTES_H_

#include <optional>

#include "base/geometry.h"
#include "ort/api.h"

namespace bnn_deploy {

class WindowAttributes {
 public:
  static constexpr size_t kMaxRank = 2;

  explicit WindowAttributes(const NodeInfo& node);
  // Nullopt when an attribute is missing or malformed.
  static std::optional<WindowAttributes> Infer(const ShapeContext& context, size_t rank);

  size_t rank() const { return rank_; }
  // A single dimension is the width of an image of height 1.
  Axis height() const { return rank_ == 2 ? axes_[0] : Axis{1, 1, 1, 0, 0}; }
  Axis width() const { return axes_[rank_ - 1]; }

  // Throws unless x is [N, spatial..., words].
  void CheckInput(const Shape& x, int64_t words) const;
  // [N, output spatial...]. Throws when a window does not fit into the padded input.
  Shape OutputPixels(const Shape& x, Rounding rounding) const;

 private:
  WindowAttributes() = default;
  void SetAxes(const int64_t* kernel, const int64_t* strides, const int64_t* pads,
               const int64_t* dilations);

  size_t rank_ = 0;
  Axis axes_[kMaxRank];
};

// [N, output spatial...] with -1 for unknown extents; nullopt when nothing can be inferred.
std::optional<Shape> InferOutputPixels(const ShapeContext& context, Rounding rounding);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_WINDOW_ATTRIBUTES_H_
