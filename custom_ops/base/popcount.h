// Population counts in code that is built for the baseline of the architecture.

#ifndef BNN_DEPLOY_BASE_POPCOUNT_H_
#define BNN_DEPLOY_BASE_POPCOUNT_H_

#include <cstdint>

namespace bnn_deploy {

// The number of bits that are 1. Without the instruction for it, this is faster than the builtin.
inline uint32_t PopCount(const uint32_t* words, int64_t count) {
  uint32_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t x = words[i];
    x -= (x >> 1) & 0x55555555u;
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0fu;
    x += x >> 8;
    total += (x + (x >> 16)) & 0x3fu;
  }
  return total;
}

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_POPCOUNT_H_
