#include "base/geometry.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace bnn_deploy {

int64_t OutputExtent(const Axis& axis, int64_t input, Rounding rounding) {
  const int64_t window = (axis.kernel - 1) * axis.dilation + 1;
  const int64_t slack = input + axis.pad_begin + axis.pad_end - window;
  if (slack < 0) return 0;
  if (rounding == Rounding::kFloor) return slack / axis.stride + 1;
  const int64_t windows = CeilDiv(slack, axis.stride) + 1;
  const bool last_starts_inside = (windows - 1) * axis.stride < input + axis.pad_begin;
  return last_starts_inside ? windows : windows - 1;
}

TapRange TapsInside(const Axis& axis, int64_t input, int64_t index) {
  const int64_t start = index * axis.stride - axis.pad_begin;
  const int64_t first = start < 0 ? CeilDiv(-start, axis.dilation) : 0;
  const int64_t last =
      start < input ? std::min(axis.kernel, CeilDiv(input - start, axis.dilation)) : 0;
  if (first >= last) return {0, 0};
  return {first, last};
}

int64_t CheckedProduct(std::initializer_list<int64_t> factors, const char* what) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) {
      throw std::invalid_argument(std::string(what) + " exceeds 2^63 elements");
    }
  }
  return product;
}

}  // namespace bnn_deploy
