// Windows that slide along an axis, and sizes that cannot overflow unnoticed.

#ifndef BNN_DEPLOY_BASE_GEOMETRY_H_
#define BNN_DEPLOY_BASE_GEOMETRY_H_

#include <cstdint>
#include <initializer_list>

namespace bnn_deploy {

// No attribute and no input extent is larger, so that a sum of a few products of two such values
// fits into int64.
constexpr int64_t kMaxExtent = INT32_MAX;

struct Axis {
  int64_t kernel;
  int64_t stride;
  int64_t dilation;
  int64_t pad_begin;
  int64_t pad_end;
};

enum class Rounding { kFloor, kCeil };

// The number of windows; 0 when the padded input is shorter than one window. With kCeil, as in ONNX
// MaxPool, the last window may hang over the end but must start inside the input or its begin pad.
int64_t OutputExtent(const Axis& axis, int64_t input, Rounding rounding = Rounding::kFloor);

// The taps [first, last) of window `index` that lie inside the input; [0, 0) when none does.
struct TapRange {
  int64_t first;
  int64_t last;
};
TapRange TapsInside(const Axis& axis, int64_t input, int64_t index);

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
constexpr int64_t WordsForBits(int64_t bits) { return CeilDiv(bits, 32); }

// The number of elements of a tensor. Throws std::invalid_argument with a message that begins with
// `what` when it exceeds int64.
int64_t CheckedProduct(std::initializer_list<int64_t> factors, const char* what);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_GEOMETRY_H_
