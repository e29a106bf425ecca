// The input of some rows of a direct convolution, copied and padded, with its columns split by
// their remainder modulo the stride: so one tap of neighbouring windows is one contiguous array,
// without im2col.

#ifndef BNN_DEPLOY_DRIVERS_DIRECT_BAND_H_
#define BNN_DEPLOY_DRIVERS_DIRECT_BAND_H_

#include <cstdint>
#include <type_traits>
#include <vector>

#include "base/buffer.h"
#include "base/scratch.h"
#include "drivers/direct/spec.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// The sizes for one size of images.
struct DirectSizes {
  int64_t rows;         // of the convolution
  int64_t columns;      // likewise
  int64_t out_rows;     // of the pool
  int64_t out_columns;  // likewise
  int64_t line;         // columns and slack
  int64_t phase_width;  // copied columns of one remainder modulo the stride
  int64_t copied_row;   // elements of a copied row, [stride][phase_width]
  int64_t band_rows;    // rows of the convolution whose input is copied at once
  int64_t copied_rows;  // input rows of a band
};

// Throws std::invalid_argument where pads or dilations ask for more memory than a convolution ever
// needs.
DirectSizes SizesOf(const DirectSpec& spec, const DirectKernels& kernels, const ImageBatch& input);

// Where in a band of floats the taps are, in the order [channels][kernel height][kernel width].
std::vector<int64_t> OffsetsOf(const DirectSpec& spec, const DirectSizes& sizes);

// Taps that one number of a band of integers holds, `group` neighbours of one column in the order
// [kernel height][channels]. In that order the channels repeat after a few numbers, the planes of
// the band, and so some rows further down the same planes hold the next taps.
struct TapGroup {
  int64_t offset;           // in the band
  int64_t taps[kMaxGroup];  // into [channels][kernel height][kernel width]; -1 behind the last
};
std::vector<TapGroup> GroupsOf(const DirectSpec& spec, const DirectSizes& sizes, int64_t group);

// Of floats, or of groups of integers, see DirectIntegersArgs.
template <typename Number>
class Band {
 public:
  using Level = std::conditional_t<std::is_same_v<Number, float>, float, int16_t>;

  // levels: [channels][kByteValues], what bytes stand for; null where images are floats. padding:
  // [channels], what stands for 0; null for 0. group: integers in a number, 1 for floats. spec,
  // sizes, levels and padding must outlive the band.
  Band(const DirectSpec& spec, const DirectSizes& sizes, const Level* levels, const Level* padding,
       int64_t group);

  // Copies the input rows from `top` on; rows above and below the image are padding. Those that the
  // last copy has, too, are moved.
  void Copy(const ImageBatch& input, int64_t image, int64_t top);
  // The input of row `y` of the convolution, counted from the band's first.
  const Number* Row(int64_t y) const { return band_ + y * spec_.height.stride * sizes_.copied_row; }

 private:
  // The levels of a row, padded, in order; padding above and below the image.
  void Expand(const ImageBatch& input, int64_t image, int64_t channel, int64_t y, Level* to) const;
  void CopyRow(const ImageBatch& input, int64_t image, int64_t plane, int64_t y, Number* to);

  static Buffer<Number>& Kept() {
    thread_local Buffer<Number> kept;
    return kept;
  }
  static Buffer<Level>& KeptRow() {
    thread_local Buffer<Level> kept;
    return kept;
  }

  const DirectSpec& spec_;
  const DirectSizes& sizes_;
  const Level* const levels_;
  const Level* const padding_;
  const int64_t group_;
  const int64_t planes_;
  Scratch<Number> scratch_;
  Scratch<Level> row_scratch_;
  Number* const band_;  // [planes][copied_rows][stride][phase_width]
  Level* const rows_;   // of levels, one for each integer of a number, each of copied_row
  int64_t image_ = -1;  // of the last copy
  int64_t top_ = 0;     // likewise
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_DIRECT_BAND_H_
