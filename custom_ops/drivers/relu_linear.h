// A linear layer of floats behind a ReLU: the weights of inputs that are 0 are not read.

#ifndef BNN_DEPLOY_DRIVERS_RELU_LINEAR_H_
#define BNN_DEPLOY_DRIVERS_RELU_LINEAR_H_

#include <cstdint>

#include "base/tasks.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// out[n][o] = bias[o] + the sum over c of max(x[n][c], 0) * weights[c][o], in the order of
// AddRowsArgs; an x that is NaN counts as it is.
struct ReluLinearArgs {
  const float* x;  // [batch][channels]
  int64_t batch;
  int64_t channels;
  const float* weights;  // [channels][outputs], finite
  const float* bias;     // [outputs]
  int64_t outputs;
  float* out;
};
void ReluLinearBatch(const Isa& isa, const ReluLinearArgs& args, const TaskRunner& runner);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_RELU_LINEAR_H_
