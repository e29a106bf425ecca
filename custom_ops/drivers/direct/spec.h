// What a direct convolution is given: its geometry, and its images.

#ifndef BNN_DEPLOY_DRIVERS_DIRECT_SPEC_H_
#define BNN_DEPLOY_DRIVERS_DIRECT_SPEC_H_

#include <cstdint>

#include "base/geometry.h"

namespace bnn_deploy {

// Most rows and columns of a pool window.
constexpr int64_t kMaxPool = 16;
// The values of a byte.
constexpr int64_t kByteValues = 256;

// One-dimensional convolutions have height 1.
struct DirectSpec {
  int64_t channels;
  int64_t out_channels;
  Axis height;
  Axis width;
  // Windows over the output of the convolution, of up to kMaxPool, none of them empty. Without a
  // pool, kernel and stride are 1.
  Axis pool_height;
  Axis pool_width;

  int64_t taps() const { return channels * height.kernel * width.kernel; }
};

struct ImageBatch {
  const float* floats;   // [batch][channels][height][width]; or null, and
  const uint8_t* bytes;  // the same, or [batch][height][width][channels] if
  bool channels_last;
  int64_t batch;
  int64_t height;
  int64_t width;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_DIRECT_SPEC_H_
