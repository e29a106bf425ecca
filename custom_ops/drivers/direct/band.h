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

// One tap of the kernel, and where in a band it is. `other`: of pairs, the tap in the high halves,
// or -1 where their weight is 0.
struct Tap {
  int64_t offset;
  int64_t index;  // into [channels][kernel height][kernel width]
  int64_t other;
};
// In the order in which they are summed. Of pairs: two channels, and of the last odd channel two
// rows of the kernel.
std::vector<Tap> TapsOf(const DirectSpec& spec, const DirectSizes& sizes);
std::vector<Tap> PairsOf(const DirectSpec& spec, const DirectSizes& sizes);

// Of floats, or of pairs of 16-bit integers, those of two channels, or of a row of the last odd
// channel and the row that is the kernel's next.
template <typename Number>
class Band {
 public:
  using Level = std::conditional_t<std::is_same_v<Number, float>, float, int16_t>;

  // levels: [channels][kByteValues], what bytes stand for; null where images are floats. spec,
  // sizes and levels must outlive the band.
  Band(const DirectSpec& spec, const DirectSizes& sizes, const Level* levels);

  // Copies the input rows from `top` on; rows above and below the image are 0. Those that the last
  // copy has, too, are moved.
  void Copy(const ImageBatch& input, int64_t image, int64_t top);
  // The input of row `y` of the convolution, counted from the band's first.
  const Number* Row(int64_t y) const { return band_ + y * spec_.height.stride * sizes_.copied_row; }

 private:
  // The levels of a row, padded, in order; 0 above and below the image.
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
  const int64_t planes_;
  Scratch<Number> scratch_;
  Scratch<Level> row_scratch_;
  Number* const band_;  // [planes][copied_rows][stride][phase_width]
  Level* const rows_;   // two rows of levels, each of copied_row
  int64_t image_ = -1;  // of the last copy
  int64_t top_ = 0;     // likewise
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_DIRECT_BAND_H_
