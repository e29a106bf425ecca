// The attributes kernel_shape, strides, pads (begins, then ends: [top, left, bottom, right]) and
// dilations of windows over bits [N, spatial..., words] with 1 to 3 spatial dimensions, and the
// output shapes that they give.

#ifndef BNN_DEPLOY_OPS_WINDOW_ATTRIBUTES_H_
#define BNN_DEPLOY_OPS_WINDOW_ATTRIBUTES_H_

#include <optional>

#include "base/geometry.h"
#include "ort/api.h"

namespace bnn_deploy {

class WindowAttributes {
 public:
  static constexpr size_t kMaxRank = 3;

  explicit WindowAttributes(const NodeInfo& node);
  // Nullopt when an attribute is missing or malformed.
  static std::optional<WindowAttributes> Infer(const ShapeContext& context, size_t rank);

  size_t rank() const { return rank_; }
  // A single dimension is the width of an image of height 1, and two are those of one of depth 1.
  Axis depth() const { return rank_ == 3 ? axes_[0] : Axis{1, 1, 1, 0, 0}; }
  Axis height() const { return rank_ >= 2 ? axes_[rank_ - 2] : Axis{1, 1, 1, 0, 0}; }
  Axis width() const { return axes_[rank_ - 1]; }
  // The sizes of x, [N, spatial..., words] or [N, spatial...], along them.
  int64_t Depth(const Shape& x) const { return rank_ == 3 ? x[1] : 1; }
  int64_t Height(const Shape& x) const { return rank_ >= 2 ? x[rank_ - 1] : 1; }
  int64_t Width(const Shape& x) const { return x[rank_]; }

  // Throws unless x is [N, spatial..., words].
  void CheckInput(const Shape& x, int64_t words) const;
  // [N, output spatial...]. Throws when a window does not fit into the padded input, or when pads
  // are absurd.
  Shape OutputPixels(const Shape& x, Rounding rounding) const;

 private:
  // Throws when pads ask for much more memory than x.
  void CheckPads(const Shape& x) const;
  WindowAttributes() = default;
  void SetAxes(const int64_t* kernel, const int64_t* strides, const int64_t* pads,
               const int64_t* dilations);

  size_t rank_ = 0;
  Axis axes_[kMaxRank];
};

// [N, output spatial...] with -1 for unknown extents; nullopt when nothing can be inferred.
std::optional<Shape> InferOutputPixels(const ShapeContext& context, Rounding rounding);
// The number of output channels O of a convolution, dimension 0 of input 1, or -1.
int64_t InferOutputs(const ShapeContext& context);

// [N, spatial...] -> [N, O, spatial...]. An unknown extent is -1.
Shape PlanesShape(const Shape& pixels, int64_t outputs);
// [N, spatial...] -> [N, spatial..., ceil(O / 32)]. An unknown extent is -1.
Shape BitsShape(const Shape& pixels, int64_t outputs);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_WINDOW_ATTRIBUTES_H_
