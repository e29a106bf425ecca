// The input of a convolution, padded and laid out as the micro-kernels read it.

#ifndef BNN_DEPLOY_DRIVERS_CONV_INPUT_H_
#define BNN_DEPLOY_DRIVERS_CONV_INPUT_H_

#include <cstdint>

#include "base/scratch.h"
#include "base/tasks.h"
#include "drivers/conv/layer.h"
#include "drivers/conv/plan.h"

namespace bnn_deploy {

struct BitBatch {
  // [batch][height][width][planes][ceil(channels / 32)], least significant plane first, unused bits
  // 0; one plane but for levels.
  const uint32_t* data;
  int64_t batch;
  int64_t height;
  int64_t width;
};

// Where the words of a window are: elements from one image, bit plane and so on to the next.
struct ConvImage {
  const uint32_t* data;
  int64_t image_stride;
  int64_t plane_stride;
  int64_t group_stride;
  int64_t row_stride;
  int64_t pixel_stride;
};

// Pixels whose windows are looked up once for all output channels.
constexpr int64_t kBlockPixels = 4 * kTilePixels;

// As in AccumulateArgs and FinishFloatArgs.
struct PixelBlock {
  const uint32_t* windows[kMaxLevelBits * kBlockPixels];  // of each plane, kBlockPixels
  const int32_t* initial[kBlockPixels];
  float products[kBlockPixels];
};

// The copies of an input take as long as the run, in `copy`. Both throw std::invalid_argument when
// a copy is too large.

// The input itself, or its padded copy
// [batch][bit plane][group][padded_height][padded_width][group_words] where layer.copies_input.
ConvImage PrepareInput(const ConvLayer& layer, const ConvPlan& plan, const BitBatch& input,
                       const TaskRunner& runner, Scratch<uint32_t>* copy);
// The padded input as planes, see ConvPlan::uses_planes.
const uint32_t* SplitPlanes(const ConvLayer& layer, const ConvPlan& plan, const BitBatch& input,
                            const TaskRunner& runner, Scratch<uint32_t>* copy);

// The windows, initial sums and numbers of products of these pixels, which are counted through the
// whole batch.
void LocatePixels(const ConvLayer& layer, const ConvPlan& plan, const ConvImage& image,
                  int64_t group, Range pixels, PixelBlock* block);
// Copies the words of each window to a row of whole granules, encoded where the layer is, and
// points to these rows instead. rows: [bit plane][pixels][window_words].
void GatherWindows(const ConvLayer& layer, const ConvPlan& plan, int64_t pixels, uint32_t* rows,
                   PixelBlock* block);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_CONV_INPUT_H_
