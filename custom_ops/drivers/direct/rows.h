// The rows of a direct convolution under a pool window, row y in slot y % kernel, for one task:
// makes them from a copied band of the input, and pools them to a row of the output.

#ifndef BNN_DEPLOY_DRIVERS_DIRECT_ROWS_H_
#define BNN_DEPLOY_DRIVERS_DIRECT_ROWS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "base/buffer.h"
#include "base/scratch.h"
#include "drivers/direct/band.h"
#include "drivers/direct/integer_form.h"
#include "drivers/direct/spec.h"
#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// What all tasks share; weights and bias as DirectConvArgs wants them.
struct DirectLayer {
  const Isa& isa;
  DirectSpec spec;
  int64_t row_channels;  // out_channels, rounded up to whole vectors
  Buffer<float> weights;
  Buffer<float> bias;       // [row_channels]
  Buffer<float> threshold;  // likewise, NaN beyond out_channels; empty for float output
  Buffer<float> levels;     // [channels][kByteValues]; empty where images are floats
  std::optional<IntegerForm> integers;
};

struct DirectRun {
  const ImageBatch& input;
  DirectSizes sizes;
  std::vector<int64_t> offsets;        // of the taps
  std::vector<int64_t> group_offsets;  // of groups of taps; empty without an integer form
};

// Process-wide numbers of bits that integer sums decided or left undecided, and of the latter.
struct IntegerBits {
  uint64_t all;
  uint64_t undecided;
};
IntegerBits CountedIntegerBits();

// Rows of floats, pooled to planes.
class FloatRows {
 public:
  FloatRows(const DirectLayer& layer, const DirectRun& run, float* out);

  // Copies the input of the rows from `y` on, sizes.band_rows of them.
  void Copy(int64_t image, int64_t y);
  // Makes row y, whose input is copied.
  void Make(int64_t y);
  // Pools the `count` rows from `first` on to row `out_y` of an image.
  void Pool(int64_t image, int64_t out_y, int64_t first, int64_t count);

 private:
  float* Row(int64_t y) const;

  const DirectLayer& layer_;
  const DirectRun& run_;
  float* const out_;
  Band<float> band_;
  int64_t band_begin_ = 0;
  Scratch<float> scratch_;
  float* const rows_;
};

// Rows of bits.
class BitRows {
 public:
  BitRows(const DirectLayer& layer, const DirectRun& run, uint32_t* out);
  BitRows(const BitRows&) = delete;
  ~BitRows();

  void Copy(int64_t image, int64_t y);
  void Make(int64_t y);
  void Pool(int64_t image, int64_t out_y, int64_t first, int64_t count);

 private:
  uint32_t* Row(int64_t y) const;
  void MakeByIntegers(int64_t y);
  // Decides the bits of the pixels [begin, end) of a row.
  void Decide(const Decisions& decisions, int64_t begin, int64_t end, uint32_t* row);
  // Sums again, as floats, what the integers left undecided.
  void SumAgain(int64_t y, uint32_t* row);

  const DirectLayer& layer_;
  const DirectRun& run_;
  const int64_t words_;
  uint32_t* const out_;
  Band<float> band_;
  std::optional<Band<uint32_t>> integers_;
  int64_t band_begin_ = 0;
  Scratch<float> float_scratch_;
  Scratch<int32_t> sum_scratch_;
  Scratch<uint32_t> bit_scratch_;
  float* const floats_;  // a row of the convolution
  int32_t* const sums_;  // likewise
  uint32_t* const rows_;
  uint32_t* const undecided_;  // one row
  IntegerBits counted_{};      // of this task
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_DIRECT_ROWS_H_
