#include "base/geometry.h"

#include <stdexcept>
#include <vector>

#include "base/tasks.h"
#include "check.h"

namespace bnn_deploy {
namespace {

std::string Text(const Axis& axis, int64_t input) {
  return "kernel " + std::to_string(axis.kernel) + " stride " + std::to_string(axis.stride) +
         " dilation " + std::to_string(axis.dilation) + " pads " + std::to_string(axis.pad_begin) +
         ", " + std::to_string(axis.pad_end) + " input " + std::to_string(input);
}

template <typename Body>
void ForEachAxis(const Body& body) {
  for (int64_t input = 0; input <= 7; ++input)
    for (int64_t kernel = 1; kernel <= 4; ++kernel)
      for (int64_t stride = 1; stride <= 3; ++stride)
        for (int64_t dilation = 1; dilation <= 3; ++dilation)
          for (int64_t begin = 0; begin <= 3; ++begin)
            for (int64_t end = 0; end <= 3; ++end)
              body(Axis{kernel, stride, dilation, begin, end}, input);
}

// Whether a window that begins `start` elements into the padded input fits into it.
bool Fits(const Axis& axis, int64_t input, int64_t start) {
  return start + (axis.kernel - 1) * axis.dilation < input + axis.pad_begin + axis.pad_end;
}

// Windows are counted one by one. With a ceiling, one that hangs over the end counts if it begins
// before the end pad.
int64_t CountWindows(const Axis& axis, int64_t input, Rounding rounding) {
  if (!Fits(axis, input, 0)) return 0;
  int64_t windows = 0;
  int64_t start = 0;
  for (; Fits(axis, input, start); start += axis.stride) ++windows;
  const bool reaches_the_end =
      (windows - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1 ==
      input + axis.pad_begin + axis.pad_end;
  if (rounding == Rounding::kFloor || reaches_the_end) return windows;
  return start < input + axis.pad_begin ? windows + 1 : windows;
}

// The last window that the ceiling adds must be dropped, too, where it begins in the end pad.
TEST(OutputExtentCountsWindows) {
  ForEachAxis([](const Axis& axis, int64_t input) {
    CHECK_IN(OutputExtent(axis, input) == CountWindows(axis, input, Rounding::kFloor),
             Text(axis, input));
  });
}

TEST(CeilingAsInOnnxMaxPool) {
  // kernel 2, stride 2: 5 elements make 3 windows, the last of which hangs over.
  CHECK(OutputExtent({2, 2, 1, 0, 0}, 5, Rounding::kCeil) == 3);
  CHECK(OutputExtent({2, 2, 1, 0, 0}, 5, Rounding::kFloor) == 2);
  CHECK(OutputExtent({2, 2, 1, 0, 0}, 4, Rounding::kCeil) == 2);
  // A window that begins in the end pad does not count.
  CHECK(OutputExtent({1, 2, 1, 0, 1}, 4, Rounding::kCeil) == 2);
  CHECK(OutputExtent({9, 1, 1, 0, 0}, 5, Rounding::kCeil) == 0);
}

TEST(TapsInsideAreThoseOfTheInput) {
  ForEachAxis([](const Axis& axis, int64_t input) {
    for (int64_t i = 0; i < OutputExtent(axis, input, Rounding::kCeil); ++i) {
      const TapRange range = TapsInside(axis, input, i);
      for (int64_t tap = 0; tap < axis.kernel; ++tap) {
        const int64_t at = i * axis.stride - axis.pad_begin + tap * axis.dilation;
        const bool inside = at >= 0 && at < input;
        CHECK_IN(inside == (tap >= range.first && tap < range.last),
                 Text(axis, input) + " window " + std::to_string(i));
      }
    }
  });
}

TEST(ProductsThatOverflowAreErrors) {
  CHECK(CheckedProduct({3, 5, 0}, "x") == 0);
  CHECK(CheckedProduct({int64_t{1} << 31, int64_t{1} << 31}, "x") == int64_t{1} << 62);
  bool caught = false;
  try {
    CheckedProduct({int64_t{1} << 31, int64_t{1} << 31, 2}, "the padded input");
  } catch (const std::invalid_argument& error) {
    caught = std::string(error.what()) == "the padded input exceeds 2^63 elements";
  }
  CHECK(caught);
}

TEST(PartsAreDisjointAndAll) {
  for (int64_t count = 0; count <= 20; ++count) {
    for (int64_t parts = 1; parts <= 7; ++parts) {
      int64_t next = 0;
      for (int64_t i = 0; i < parts; ++i) {
        const Range range = Part(count, parts, i);
        CHECK(range.begin == next);
        CHECK(range.end - range.begin == count / parts ||
              range.end - range.begin == count / parts + 1);
        next = range.end;
      }
      CHECK(next == count);
    }
  }
}

}  // namespace
}  // namespace bnn_deploy
