// Memory for one run, which a thread keeps for its next run while it is small.

#ifndef BNN_DEPLOY_BASE_SCRATCH_H_
#define BNN_DEPLOY_BASE_SCRATCH_H_

#include <cstdint>

#include "base/buffer.h"

namespace bnn_deploy {

// Mapping and clearing fresh pages takes longer than a small run, so each thread keeps up to this
// many bytes per use. The memory of a large image is freed at the end of the run.
constexpr int64_t kMaxKeptBytes = int64_t{4} << 20;

template <typename T>
class Scratch {
 public:
  // `kept`: a thread_local buffer that nothing else uses meanwhile.
  explicit Scratch(Buffer<T>* kept) : kept_(kept) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least `size` elements with undefined values, valid as long as the Scratch; call it once.
  T* Reserve(int64_t size) {
    return size <= kMaxKeptBytes / static_cast<int64_t>(sizeof(T)) ? kept_->Reserve(size)
                                                                   : own_.Reserve(size);
  }

 private:
  Buffer<T>* kept_;
  Buffer<T> own_;
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_SCRATCH_H_
