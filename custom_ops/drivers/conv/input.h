// The input of a convolution, padded and laid out as the micro-kernels read it, and its sums.

#ifndef BNN_DEPLOY_DRIVERS_CONV_INPUT_H_
#define BNN_DEPLOY_DRIVERS_CONV_INPUT_H_

#include <cstdint>
#include <vector>

#include "base/scratch.h"
#include "base/tasks.h"
#include "drivers/conv/layer.h"
#include "drivers/conv/plan.h"

namespace bnn_deploy {

struct BitBatch {
  // [batch][depth][height][width][planes][ceil(channels / 32)], least significant plane first,
  // whose unused bits are ignored; one plane unless the input is levels.
  const uint32_t* data;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t depth = 1;
};

// The `count` vectors of [ceil(channels / 32)] words at `bits` with their unused bits 0: `bits`
// itself where they are, as in all that an operator of ours made, or else a copy in `copy`.
const uint32_t* ClearUnusedBits(const uint32_t* bits, int64_t count, int64_t channels,
                                std::vector<uint32_t>* copy);

// Locates the words of a window: strides in words between images, bit planes, groups, slices (at
// the next depth), rows and pixels.
struct ConvImage {
  const uint32_t* data;
  int64_t image_stride;
  int64_t plane_stride;
  int64_t group_stride;
  int64_t slice_stride;
  int64_t row_stride;
  int64_t pixel_stride;
};

// Pixels whose windows are looked up once for all output channels.
constexpr int64_t kBlockPixels = 4 * kTilePixels;

// The pointers and products of AccumulateArgs and FinishFloatArgs, per pixel of a block.
struct PixelBlock {
  const uint32_t* windows[kMaxLevelBits * kBlockPixels];  // [bit plane][kBlockPixels]
  const int32_t* initial[kBlockPixels];
  float products[kBlockPixels];
  float signs[kMaxLevelBits * kBlockPixels];  // [bit plane][kBlockPixels], only with bases
};

// The next two functions keep a copy of the input in `copy`, for one run. They throw
// std::invalid_argument when it is too large.

// The input itself, or its padded copy
// [batch][bit plane][group][padded_depth][padded_height][padded_width][group_words] where
// layer.copies_input.
ConvImage PrepareInput(const ConvLayer& layer, const ConvPlan& plan, const BitBatch& input,
                       const TaskRunner& runner, Scratch<uint32_t>* copy);
// The padded input as planes, see ConvPlan::uses_planes.
const uint32_t* SplitPlanes(const ConvLayer& layer, const ConvPlan& plan, const BitBatch& input,
                            const TaskRunner& runner, Scratch<uint32_t>* copy);

// Fills `block` with the windows, initial sums and numbers of products of these pixels, which are
// numbered through the whole batch.
void LocatePixels(const ConvLayer& layer, const ConvPlan& plan, const ConvImage& image,
                  int64_t group, Range pixels, PixelBlock* block);
// Fills block->signs: the sum of the ±1 of each plane in each window, those outside the image not
// counted. Before GatherWindows, and for zero padding only.
void SumSigns(const ConvLayer& layer, const ConvPlan& plan, int64_t pixels, PixelBlock* block);
// im2col: copies the words of each window to a row of whole granules, encodes it if layer.encodes,
// and points the windows of `block` to these rows. rows: [bit plane][pixels][window_words].
void GatherWindows(const ConvLayer& layer, const ConvPlan& plan, int64_t pixels, uint32_t* rows,
                   PixelBlock* block);

// The same for one window of a 1x1 kernel, at `from`. Returns the end of the row.
uint32_t* GatherRow(const ConvLayer& layer, const uint32_t* from, uint32_t* row);

// The sums of a tile of a depthwise layer, whose windows are those of LocatePixels.
// weights: [taps][kTileWords], bit c % 32 of word c / 32 that of the tile's channel c.
void AccumulateDepthwise(const ChannelTile& tile, const AccumulateArgs& args);
// Their signs, as AccumulateBitsFn writes them.
void SignsOfSums(const ChannelTile& tile, const AccumulateArgs& args, uint32_t* out,
                 int64_t pixel_stride);

// isa.accumulate over all bit planes. The windows of plane j begin at args.windows + j *
// kBlockPixels.
void Accumulate(const ConvLayer& layer, const AccumulateArgs& args);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_CONV_INPUT_H_
