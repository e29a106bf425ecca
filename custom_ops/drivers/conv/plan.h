// The tables of a convolution for one image size, and a cache of them.

#ifndef BNN_DEPLOY_DRIVERS_CONV_PLAN_H_
#define BNN_DEPLOY_DRIVERS_CONV_PLAN_H_

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "base/buffer.h"
#include "drivers/conv/layer.h"
#include "drivers/conv/weights.h"

namespace bnn_deploy {

// Names the padded input in errors about its size.
constexpr const char* kPaddedInput = "the padded input";

struct ConvPlan {
  int64_t depth;
  int64_t height;
  int64_t width;
  int64_t out_depth;
  int64_t out_height;
  int64_t out_width;
  int64_t padded_depth;
  int64_t padded_height;
  int64_t padded_width;
  std::vector<int64_t> run_offsets;
  int64_t run_words;
  // Row y of output pixels, counted through all depths, has pattern row_pattern[y]. `initial`
  // (pointers to rows of table_width initial sums in `table`) and `products` (numbers of products)
  // are [row pattern][out_width].
  std::vector<int64_t> row_pattern;
  std::vector<const int32_t*> initial;
  std::vector<float> products;
  std::vector<int64_t> pattern_products;  // the products of each row of `table`
  Buffer<int32_t> table;
  // Only with bases: the part of the output that depends on no data, [rows of table][out_channels].
  std::vector<float> offsets;

  // Only for micro-kernels that take pixels as lanes: the input is split into planes
  // [batch][group][word][kernel column][plane_height][out_width]. A plane holds one word, at one
  // kernel column, for all output pixels. Its rows 0, stride, 2 * stride and so on come first, then
  // 1, 1 + stride and so on (0, 2, 1, 3 for 4 rows and stride 2), so that one tap of all windows of
  // the image is one contiguous array.
  bool uses_planes = false;
  int64_t plane_height = 0;
  std::vector<int64_t> plane_offsets;  // of each word of a window
  std::vector<uint8_t> patterns;       // [row pattern][out_width]
  Buffer<float> constant;              // [table_width][kMaxPatterns]: products - 2 * `table`

  // The number of output pixels of an image.
  int64_t ImagePixels() const { return out_depth * out_height * out_width; }
  // The offset in a plane of row `y` of the padded input.
  int64_t PlaneRow(int64_t y, int64_t stride) const {
    return (y % stride * (plane_height / stride) + y / stride) * out_width;
  }
  // Copies the patterns of `count` pixels of an image, from pixel `first` on.
  void CopyPatterns(int64_t first, int64_t count, uint8_t* to) const;
};

// thresholds: [out_channels], or empty for float output. Throws std::invalid_argument when the
// padded input exceeds 2^63 words.
std::shared_ptr<ConvPlan> MakeConvPlan(const ConvLayer& layer, const TapBits& tap_bits,
                                       const std::vector<int32_t>& thresholds, int64_t height,
                                       int64_t width, int64_t depth = 1);
// Sets plan->offsets from the scale and bias of BasesConstants.
void AddOffsets(const ConvLayer& layer, const TapBits& tap_bits, const float* scale,
                const float* bias, ConvPlan* plan);

// The plans of the most recently used image sizes. Concurrent runs share them.
class ConvPlanCache {
 public:
  // Enough for the sizes of an image pyramid; a plan takes some ten kilobytes.
  static constexpr size_t kMaxPlans = 8;

  // The cached plan of this size, else the result of make(), called under the lock.
  template <typename Make>
  std::shared_ptr<const ConvPlan> Get(int64_t height, int64_t width, int64_t depth,
                                      const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto plan = plans_.begin(); plan != plans_.end(); ++plan) {
      const ConvPlan& one = **plan;
      if (one.height != height || one.width != width || one.depth != depth) continue;
      plans_.splice(plans_.begin(), plans_, plan);
      return plans_.front();
    }
    plans_.push_front(make());
    ++made_;
    if (plans_.size() > kMaxPlans) plans_.pop_back();
    return plans_.front();
  }

  // The number of calls of make().
  int64_t made() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return made_;
  }

 private:
  mutable std::mutex mutex_;
  std::list<std::shared_ptr<const ConvPlan>> plans_;  // most recently used first
  int64_t made_ = 0;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_DRIVERS_CONV_PLAN_H_
