// Memory for one run, which a thread keeps for its next run while it is small.

#ifndef BNN_DEPLOY_BASE_SCRATCH_H_
#define BNN_DEPLOY_BASE_SCRATCH_H_

#include <cstdint>

#include "base/buffer.h"

namespace bnn_deploy {

// A small run is over before fresh pages are mapped and cleared, so each thread keeps up to this
// many bytes per use. What a large image asks for goes back with the run.
constexpr int64_t kMaxKeptBytes = int64_t{4} << 20;

template <typename T>
class Scratch {
 public:
  // `kept`: a thread_local buffer that nothing else uses meanwhile.
  explicit Scratch(Buffer<T>* kept) : kept_(kept) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least `size` elements until the Scratch ends, undefined ones; not to be called twice.
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
