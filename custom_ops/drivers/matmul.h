// Products of two matrices of bits, for pairs of matrices that are known only at run time:
//
//   out[i][m][n] = scale * sum over k < channels of a[i][m][k] * b[i][n][k]
//
// The rows of b play the part of the weights of a 1x1 convolution, the rows of a that of its
// pixels: b is packed anew for each pair, and the micro-kernels of convolutions do the rest.

#ifndef BNN_DEPLOY_DRIVERS_MATMUL_H_
#define BNN_DEPLOY_DRIVERS_MATMUL_H_

#include <cstdint>

#include "base/tasks.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

struct BitMatrices {
  const uint32_t* a;  // [batch][rows][planes][ceil(channels / 32)], as BitBatch::data
  const uint32_t* b;  // [batch][columns][ceil(channels / 32)], of ±1
  int64_t batch;
  int64_t rows;
  int64_t columns;
};

// level_bits: as in ConvSpec; for levels, half of the scale must be exact. channels times the
// highest level is below 2^24. out: [batch][rows][columns].
void MultiplyBits(const Isa& isa, int64_t channels, int64_t level_bits, float scale,
                  const BitMatrices& matrices, float* out, const TaskRunner& runner);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_MATMUL_H_
