// Floats that are asked for before they are needed.

#ifndef BNN_DEPLOY_BASE_PREFETCH_H_
#define BNN_DEPLOY_BASE_PREFETCH_H_

#include <cstdint>

namespace bnn_deploy {

// To write it: another core's copy goes, too.
inline void PrefetchToWrite(const float* at) {
#if defined(__x86_64__)
  __asm__ volatile("prefetchw %0" : : "m"(*at));  // GCC would only read
#else
  __builtin_prefetch(at, 1);
#endif
}

// planes[o * stride + p] for o < channels and p < pixels, which will be written. What tiles read
// and write are short pieces of many planes, of which no hardware prefetcher knows; in batches they
// come from memory, and with several threads from the caches of others.
inline void PrefetchPlanes(const float* planes, int64_t stride, int64_t channels, int64_t pixels) {
  constexpr int64_t kLineFloats = 16;
  if (pixels <= 0) return;
  for (int64_t o = 0; o < channels; ++o) {
    const float* const row = planes + o * stride;
    for (int64_t p = 0; p < pixels; p += kLineFloats) PrefetchToWrite(row + p);
    PrefetchToWrite(row + pixels - 1);
    __asm__ volatile("");  // GCC drops calls of a function that only prefetches
  }
}

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_PREFETCH_H_
