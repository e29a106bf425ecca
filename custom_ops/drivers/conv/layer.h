// A binary convolution, and the choices for an instruction set that do not depend on the image
// size.

#ifndef BNN_DEPLOY_DRIVERS_CONV_LAYER_H_
#define BNN_DEPLOY_DRIVERS_CONV_LAYER_H_

#include <cstdint>
#include <vector>

#include "base/geometry.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// One-dimensional convolutions have height 1, and those of one and two dimensions depth 1.
struct ConvSpec {
  int64_t channels;
  int64_t group;
  int64_t out_channels;
  Axis height;
  Axis width;
  std::vector<uint32_t> pad_bits;  // one per input channel; empty: zero padding
  // The number of bit planes of levels 0 to 2^level_bits - 1; 0: one plane of ±1. Levels have zero
  // padding and float output without bits, and their sums stay below 2^24.
  int64_t level_bits = 0;
  // BinaryConvBases: the sum of the products of `planes` bit planes of ±1 with `bases` weights of
  // ±1. It has zero padding and float output without bits. 0: one product, or levels.
  int64_t bases = 0;
  int64_t planes = 1;
  Axis depth = {1, 1, 1, 0, 0};

  int64_t taps() const { return depth.kernel * height.kernel * width.kernel; }
};
constexpr int64_t kMaxLevelBits = 4;
constexpr int64_t kTileWords = kTileChannels / 32;
constexpr int64_t kMaxDepthwiseTaps = 255;  // they are counted in bytes

// At most kTileChannels output channels of one group, with one of the bases of their weights. In a
// depthwise layer, the groups count as one.
struct ChannelTile {
  int64_t group;
  int64_t channel;  // first output channel
  int64_t channels;
  int64_t table_offset;    // index of `channel` in a row of ConvLayer::table_width values
  int64_t weights_offset;  // of the tile in the packed weights, in words
  int64_t plane_offset;    // the same in those for ConvolvePlanesFn
  int64_t blocks;
  int64_t base;
};

struct ConvLayer {
  // `isa` must outlive the layer.
  ConvLayer(const Isa& isa, ConvSpec spec);

  const Isa& isa;
  const ConvSpec spec;
  const int64_t group_channels;
  const int64_t group_words;
  const int64_t bit_planes;
  const int64_t bases;        // 1 unless spec.bases says more
  const int64_t pixel_words;  // words of an input pixel, all planes
  // Groups of one channel: all channels of a word are convolved together, by AccumulateDepthwise.
  const bool depthwise;
  const int64_t input_groups;  // the groups of the padded input, and the words of one's pixel
  const int64_t input_words;
  const bool copies_input;
  const bool rows_are_runs;    // the taps of a kernel row are contiguous in the (padded) input
  const bool encodes;          // the micro-kernel takes encoded windows
  const int64_t window_words;  // words of a window, whole granules where windows are gathered
  // Large images with float output go through isa.convolve_planes; not volumes.
  const bool takes_planes;
  std::vector<ChannelTile> tiles;  // those with the same channels follow each other
  int64_t table_width = 0;         // sum over the tiles of their channels, rounded up to 32
  int64_t weights_size = 0;        // words of the packed weights
  int64_t plane_weights_size = 0;  // the same of those for ConvolvePlanesFn

  // The row of a tile's channel in the weights, [out_channels][bases].
  int64_t Row(const ChannelTile& tile, int64_t channel) const {
    return (tile.channel + channel) * bases + tile.base;
  }
};

// The number of tasks for the convolution of `pixels` output pixels.
int64_t TaskCount(const ConvLayer& layer, int64_t pixels);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_CONV_LAYER_H_
