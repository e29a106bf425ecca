#include "drivers/pool_bits.h"

#include <algorithm>

#include "base/buffer.h"

namespace bnn_deploy {
namespace {

// to = a | b, of `count` words.
void Or(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* to) {
  for (int64_t k = 0; k < count; ++k) to[k] = a[k] | b[k];
}

// The OR of the rows, [width][words].
const uint32_t* MergeRows(const PoolBitsArgs& args) {
  if (args.row_count == 1) return args.rows[0];
  const int64_t count = args.width * args.words;
  thread_local Buffer<uint32_t> buffer;
  uint32_t* const merged = buffer.Reserve(count);
  if (args.row_count == 0) {
    std::fill_n(merged, count, 0u);
    return merged;
  }
  Or(args.rows[0], args.rows[1], count, merged);
  for (int64_t i = 2; i < args.row_count; ++i) Or(merged, args.rows[i], count, merged);
  return merged;
}

// kWords: the words of a pixel; 0: args.words.
template <int64_t kWords>
void PoolColumns(const PoolBitsArgs& args, const uint32_t* row) {
  const int64_t words = kWords > 0 ? kWords : args.words;
  const Axis columns = args.columns;  // no store can change a local copy
  const int64_t width = args.width;
  const int64_t out_width = args.out_width;
  const int64_t last_tap = (columns.kernel - 1) * columns.dilation;
  uint32_t* out = args.out;
  for (int64_t out_x = 0; out_x < out_width; ++out_x, out += words) {
    const int64_t x = out_x * columns.stride - columns.pad_begin;
    const bool inside = x >= 0 && x + last_tap < width;
    const TapRange taps = inside ? TapRange{0, columns.kernel} : TapsInside(columns, width, out_x);
    for (int64_t k = 0; k < words; ++k) {
      uint32_t bits = 0;
      for (int64_t j = taps.first; j < taps.last; ++j) {
        bits |= row[(x + j * columns.dilation) * words + k];
      }
      out[k] = bits;
    }
  }
}

}  // namespace

void PoolBits(const PoolBitsArgs& args) {
  const uint32_t* const row = MergeRows(args);
  const Axis& columns = args.columns;
  const bool whole = columns.kernel == 1 && args.out_width == args.width;
  if (whole && columns.stride == 1 && columns.pad_begin == 0) {
    std::copy_n(row, args.out_width * args.words, args.out);
  } else if (args.words == 1) {
    PoolColumns<1>(args, row);
  } else {
    PoolColumns<0>(args, row);
  }
}

}  // namespace bnn_deploy
