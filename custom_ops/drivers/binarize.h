// Binarize over a whole batch: splits the pixels into tasks for the micro-kernel.

#ifndef BNN_DEPLOY_DRIVERS_BINARIZE_H_
#define BNN_DEPLOY_DRIVERS_BINARIZE_H_

#include <cstdint>

#include "base/tasks.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// x: [batch][channels][pixels], threshold: [channels], out: [batch][pixels][ceil(channels / 32)].
void BinarizeBatch(const Isa& isa, const float* x, const float* threshold, int64_t batch,
                   int64_t channels, int64_t pixels, uint32_t* out, const TaskRunner& runner);

// BinarizeBatch with mean: [batch][pixels], see BinarizeAbsMeanArgs. scale and shift: [channels].
void BinarizeAbsMeanBatch(const Isa& isa, const float* x, const float* threshold,
                          const float* scale, const float* shift, int64_t batch, int64_t channels,
                          int64_t pixels, uint32_t* out, float* mean, const TaskRunner& runner);

// Level: the number of thresholds that an element reaches, as bit planes. x as in BinarizeBatch;
// thresholds: [2^bits - 1][channels], ascending; out: [batch][pixels][bits][ceil(channels / 32)],
// least significant plane first.
void QuantizeLevelsBatch(const Isa& isa, const float* x, const float* thresholds, int64_t bits,
                         int64_t batch, int64_t channels, int64_t pixels, uint32_t* out,
                         const TaskRunner& runner);

// x: [pixels][channels], pixels counted through the whole batch; threshold: [channels];
// out: [pixels][ceil(channels / 32)].
void BinarizeRowsBatch(const Isa& isa, const float* x, const float* threshold, int64_t channels,
                       int64_t pixels, uint32_t* out, const TaskRunner& runner);

// x: [pixels][channels], pixels counted through the whole batch; level and reachable as in
// BinarizeBytesArgs; out: [pixels][ceil(channels / 32)].
void BinarizeBytesBatch(const Isa& isa, const uint8_t* x, const uint8_t* level,
                        const uint32_t* reachable, int64_t channels, int64_t pixels, uint32_t* out,
                        const TaskRunner& runner);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_BINARIZE_H_
