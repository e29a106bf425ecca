// A direct convolution of floats, or of bytes that stand for floats, with few input channels, such
// as the first layer of a binary network, with max pooling, to floats or to bits.
//
// A row of the convolution has its channels last, which bits need; floats are transposed as they
// are pooled.

#ifndef BNN_DEPLOY_DRIVERS_DIRECT_DRIVER_H_
#define BNN_DEPLOY_DRIVERS_DIRECT_DRIVER_H_

#include <cstdint>

#include "base/tasks.h"
#include "drivers/direct/rows.h"
#include "drivers/direct/spec.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// Runs of one driver may overlap in time.
class DirectConvDriver {
 public:
  // weights: [out_channels][channels][kernel height][kernel width]; bias and threshold:
  // [out_channels], threshold null for float output; levels: [channels][kByteValues], what the
  // bytes of images stand for, null where images are floats. All are copied.
  DirectConvDriver(const Isa& isa, const DirectSpec& spec, const float* weights, const float* bias,
                   const float* threshold, const float* levels);

  // out[n][o][y][x] = the maximum of the convolution over the pool window. The driver has no
  // thresholds. Throws std::invalid_argument as SizesOf does.
  void Run(const ImageBatch& input, float* out, const TaskRunner& runner) const;
  // The bit of channel o in out[n][y][x] is 1 where the convolution reaches threshold[o] in the
  // pool window; NaN gives 0.
  void Run(const ImageBatch& input, uint32_t* out, const TaskRunner& runner) const;

 private:
  template <typename Rows, typename Element>
  void RunRows(const ImageBatch& input, Element* out, const TaskRunner& runner) const;

  DirectLayer layer_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_DIRECT_DRIVER_H_
