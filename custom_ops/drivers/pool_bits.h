// Max pooling of bits: an OR.

#ifndef BNN_DEPLOY_DRIVERS_POOL_BITS_H_
#define BNN_DEPLOY_DRIVERS_POOL_BITS_H_

#include <cstdint>

#include "base/geometry.h"

namespace bnn_deploy {

// out[x][w] = the OR of rows[i][c][w] over i < row_count and the columns c of window x that are
// inside; 0 where there are none.
struct PoolBitsArgs {
  const uint32_t* const* rows;  // [row_count][width][words]
  int64_t row_count;
  int64_t words;
  int64_t width;
  Axis columns;
  int64_t out_width;
  uint32_t* out;
};
void PoolBits(const PoolBitsArgs& args);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_POOL_BITS_H_
