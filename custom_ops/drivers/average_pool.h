// Average pooling of floats to bits.

#ifndef BNN_DEPLOY_DRIVERS_AVERAGE_POOL_H_
#define BNN_DEPLOY_DRIVERS_AVERAGE_POOL_H_

#include <cstdint>

#include "base/geometry.h"
#include "base/tasks.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// x: [batch][channels][height][width], threshold: [channels],
// out: [batch][out_height][out_width][ceil(channels / 32)].
struct AveragePoolSpec {
  Axis rows;
  Axis columns;
  bool relu;
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t out_height;
  int64_t out_width;
};
void AveragePoolBatch(const Isa& isa, const AveragePoolSpec& spec, const float* x,
                      const float* threshold, uint32_t* out, const TaskRunner& runner);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_AVERAGE_POOL_H_
