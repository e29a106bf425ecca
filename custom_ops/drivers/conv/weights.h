// The weights of a layer in the layouts that the micro-kernels and the plans read.
//
// weights: [out_channels][bases][kernel depth][kernel height][kernel width][group_words], unused
// bits 0.

#ifndef BNN_DEPLOY_DRIVERS_CONV_WEIGHTS_H_
#define BNN_DEPLOY_DRIVERS_CONV_WEIGHTS_H_

#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "base/geometry.h"
#include "drivers/conv/layer.h"

namespace bnn_deploy {

// Packs weights in the layout of AccumulateArgs::weights, each tile from its weights_offset on.
Buffer<uint32_t> PackWeights(const ConvLayer& layer, const uint32_t* weights);
// The same into `out`, [weights_size], 64-byte aligned.
void PackWeights(const ConvLayer& layer, const uint32_t* weights, uint32_t* out);

// Packs weights in the layout of ConvolvePlanesArgs::weights, each tile from its plane_offset on.
std::vector<uint32_t> PackPlaneWeights(const ConvLayer& layer, const uint32_t* weights);

// Spreads values [out_channels] to [table_width], with `unused` where there is no channel.
Buffer<float> PackPerChannel(const ConvLayer& layer, const float* values, float unused);

// A box of a kernel's taps.
struct TapBox {
  TapRange slices;
  TapRange rows;
  TapRange columns;

  int64_t Count() const {
    return (slices.last - slices.first) * (rows.last - rows.first) * (columns.last - columns.first);
  }
};

// The popcount of a row of the weights, that of ConvLayer::Row, in any box of taps.
class TapBits {
 public:
  TapBits(const ConvLayer& layer, const uint32_t* weights);

  int32_t Inside(int64_t row, const TapBox& box) const;
  int32_t All(int64_t row) const { return Inside(row, {{0, slices_}, {0, rows_}, {0, columns_}}); }

 private:
  int64_t slices_;
  int64_t rows_;
  int64_t columns_;
  // Summed-area table [out_channels][bases][slices + 1][rows + 1][columns + 1]: the popcount of the
  // taps in front of, above and left of each tap.
  std::vector<int32_t> sums_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_CONV_WEIGHTS_H_
