#include "ops/float_planes.h"

#include "base/geometry.h"

namespace bnn_deploy {
namespace {

constexpr size_t kMinRank = 2;
constexpr size_t kMaxRank = 5;

bool HasRank(const Shape& x) { return x.rank >= kMinRank && x.rank <= kMaxRank; }

}  // namespace

Tensor ReadThreshold(const NodeInfo& node) {
  const Tensor threshold = node.ConstantInput(1, "threshold");
  if (threshold.shape.rank != 1 || threshold.shape[0] < 1 || threshold.shape[0] > kMaxExtent) {
    node.label().Fail("input threshold has shape " + threshold.shape.ToString() +
                      ", but it must be [C] with one value per channel of X");
  }
  return threshold;
}

int64_t CheckPlanes(const Tensor& x, int64_t channels, const std::string& source,
                    const NodeLabel& label) {
  if (!HasRank(x.shape) || x.shape[1] != channels) {
    label.Fail("input X has shape " + x.shape.ToString() + ", but it must be [N, " +
               std::to_string(channels) + ", 0 to 3 spatial dimensions], as " + source);
  }
  int64_t pixels = 1;
  for (size_t i = 2; i < x.shape.rank; ++i) {
    pixels = CheckedProduct({pixels, x.shape[i]}, "input X");
  }
  return pixels;
}

int64_t CheckChannelsLast(const Tensor& x, int64_t channels, const NodeLabel& label) {
  if (!HasRank(x.shape) || x.shape.back() != channels) {
    const std::string count = std::to_string(channels);
    label.Fail("input X has shape " + x.shape.ToString() +
               ", but it must be [N, 0 to 3 spatial dimensions, " + count +
               "], as threshold has shape [" + count + "]");
  }
  int64_t pixels = 1;
  for (size_t i = 0; i + 1 < x.shape.rank; ++i) {
    pixels = CheckedProduct({pixels, x.shape[i]}, "input X");
  }
  return pixels;
}

std::optional<Shape> InferFloats(const ShapeContext& context) {
  const std::optional<Shape> x = context.InputShape(0);
  return x && HasRank(*x) ? x : std::nullopt;
}

Shape BitsOfPlanes(const Shape& x, int64_t planes) {
  Shape shape;
  shape.Append(x[0]);
  for (size_t i = 2; i < x.rank; ++i) shape.Append(x[i]);
  shape.Append(x[1] < 0 ? -1 : planes * WordsForBits(x[1]));
  return shape;
}

Shape BitsOfChannelsLast(const Shape& x) {
  Shape shape = x;
  shape.dims[x.rank - 1] = x.back() < 0 ? -1 : WordsForBits(x.back());
  return shape;
}

}  // namespace bnn_deploy
