#include "ops/window_attributes.h"

#include <algorithm>
#include <string>

namespace bnn_deploy {
namespace {

// What a padded X may have at most, in elements or in those of X, whichever is more: absurd pads
// are refused before memory for them is asked for.
constexpr double kMaxPadded = 1 << 26;
constexpr double kMaxPaddedRatio = 16;

constexpr const char* kLayouts[] = {"[N, L, ", "[N, H, W, ", "[N, D, H, W, "};

bool AllIn(const int64_t* values, size_t count, int64_t min) {
  return std::all_of(values, values + count,
                     [min](int64_t v) { return v >= min && v <= kMaxExtent; });
}

}  // namespace

WindowAttributes::WindowAttributes(const NodeInfo& node) : rank_(node.IntsCount("kernel_shape")) {
  if (rank_ < 1 || rank_ > kMaxRank) {
    Fail("attribute kernel_shape has " + std::to_string(rank_) +
         " values: it must have 1 to 3, one per spatial dimension");
  }
  int64_t kernel[kMaxRank], strides[kMaxRank], pads[2 * kMaxRank], dilations[kMaxRank];
  node.Ints("kernel_shape", kernel, rank_, 1, kMaxExtent);
  node.Ints("strides", strides, rank_, 1, kMaxExtent);
  node.Ints("pads", pads, 2 * rank_, 0, kMaxExtent);
  node.Ints("dilations", dilations, rank_, 1, kMaxExtent);
  SetAxes(kernel, strides, pads, dilations);
}

std::optional<WindowAttributes> WindowAttributes::Infer(const ShapeContext& context, size_t rank) {
  int64_t kernel[kMaxRank], strides[kMaxRank], pads[2 * kMaxRank], dilations[kMaxRank];
  if (rank < 1 || rank > kMaxRank) return std::nullopt;
  if (!context.Ints("kernel_shape", kernel, rank) || !AllIn(kernel, rank, 1)) return std::nullopt;
  if (!context.Ints("strides", strides, rank) || !AllIn(strides, rank, 1)) return std::nullopt;
  if (!context.Ints("pads", pads, 2 * rank) || !AllIn(pads, 2 * rank, 0)) return std::nullopt;
  if (!context.Ints("dilations", dilations, rank) || !AllIn(dilations, rank, 1)) {
    return std::nullopt;
  }
  WindowAttributes attributes;
  attributes.rank_ = rank;
  attributes.SetAxes(kernel, strides, pads, dilations);
  return attributes;
}

void WindowAttributes::SetAxes(const int64_t* kernel, const int64_t* strides, const int64_t* pads,
                               const int64_t* dilations) {
  for (size_t i = 0; i < rank_; ++i) {
    axes_[i] = {kernel[i], strides[i], dilations[i], pads[i], pads[rank_ + i]};
  }
}

void WindowAttributes::CheckInput(const Shape& x, int64_t words) const {
  const bool fits = x.rank == rank_ + 2 && x.back() == words &&
                    std::all_of(x.dims.begin(), x.dims.begin() + x.rank,
                                [](int64_t dim) { return dim <= kMaxExtent; });
  if (fits) return;
  Fail("input X has shape " + x.ToString() + ", but it must be " + kLayouts[rank_ - 1] +
       std::to_string(words) + "], each at most " + std::to_string(kMaxExtent));
}

void WindowAttributes::CheckPads(const Shape& x) const {
  // In floating point, where nothing overflows.
  double size = 1, padded = 1;
  for (size_t i = 0; i < x.rank; ++i) {
    const bool spatial = i >= 1 && i <= rank_;
    const int64_t pads = spatial ? axes_[i - 1].pad_begin + axes_[i - 1].pad_end : 0;
    size *= static_cast<double>(x[i]);
    padded *= static_cast<double>(x[i] + pads);
  }
  if (padded <= std::max(kMaxPadded, kMaxPaddedRatio * size)) return;
  constexpr double kMost = 1e18;  // that is written out
  Fail("attribute pads makes " + std::string(padded < kMost ? "" : "at least ") +
       std::to_string(static_cast<int64_t>(std::min(padded, kMost))) + " elements of input X " +
       x.ToString() + ": at most " + std::to_string(static_cast<int64_t>(kMaxPadded)) + ", or " +
       std::to_string(static_cast<int64_t>(kMaxPaddedRatio)) + " times those of X, are allowed");
}

Shape WindowAttributes::OutputPixels(const Shape& x, Rounding rounding) const {
  CheckPads(x);
  Shape shape;
  shape.Append(x[0]);
  for (size_t i = 0; i < rank_; ++i) {
    const Axis& axis = axes_[i];
    const int64_t window = (axis.kernel - 1) * axis.dilation + 1;
    if (window > x[1 + i] + axis.pad_begin + axis.pad_end) {
      Fail("spatial dimension " + std::to_string(i) + " of input X is " + std::to_string(x[1 + i]) +
           ", and with pads " + std::to_string(axis.pad_begin) + " and " +
           std::to_string(axis.pad_end) + " less than one window of " + std::to_string(window));
    }
    // 0 if an empty image is padded at its end alone: with kCeil its only window does not count.
    shape.Append(OutputExtent(axis, x[1 + i], rounding));
  }
  return shape;
}

std::optional<Shape> InferOutputPixels(const ShapeContext& context, Rounding rounding) {
  const std::optional<Shape> x = context.InputShape(0);
  if (!x || x->rank < 3) return std::nullopt;
  const auto attributes = WindowAttributes::Infer(context, x->rank - 2);
  if (!attributes) return std::nullopt;
  const Axis axes[] = {attributes->depth(), attributes->height(), attributes->width()};
  Shape shape;
  shape.Append((*x)[0]);
  for (size_t i = 0; i < attributes->rank(); ++i) {
    const int64_t extent = (*x)[1 + i];
    const Axis& axis = axes[WindowAttributes::kMaxRank - attributes->rank() + i];
    shape.Append(extent < 0 ? -1 : OutputExtent(axis, extent, rounding));
  }
  return shape;
}

int64_t InferOutputs(const ShapeContext& context) {
  const std::optional<Shape> weights = context.InputShape(1);
  return weights && weights->rank > 0 ? (*weights)[0] : -1;
}

Shape PlanesShape(const Shape& pixels, int64_t outputs) {
  Shape shape;
  shape.Append(pixels[0]);
  shape.Append(outputs);
  for (size_t i = 1; i < pixels.rank; ++i) shape.Append(pixels[i]);
  return shape;
}

Shape BitsShape(const Shape& pixels, int64_t outputs) {
  Shape shape = pixels;
  shape.Append(outputs < 0 ? -1 : WordsForBits(outputs));
  return shape;
}

}  // namespace bnn_deploy
