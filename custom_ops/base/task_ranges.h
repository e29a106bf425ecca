// The tasks of a run among threads.

#ifndef BNN_DEPLOY_BASE_TASK_RANGES_H_
#define BNN_DEPLOY_BASE_TASK_RANGES_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/tasks.h"

namespace bnn_deploy {

// The tasks of a run, in as many ranges as threads may come. A thread keeps to its own range, the
// same one in every run: there its caches hold what it made in the run before. When that is done,
// it takes a range that no thread has come for, or from the end of another's.
class TaskRanges {
 public:
  // As many ranges as `threads`, but none is empty.
  TaskRanges(int64_t count, int64_t threads)
      : ranges_(static_cast<size_t>(std::min(count, threads))) {
    const auto parts = static_cast<int64_t>(ranges_.size());
    for (int64_t i = 0; i < parts; ++i) {
      const Range part = Part(count, parts, i);
      ranges_[static_cast<size_t>(i)].left = Pack(part.begin, part.end);
    }
  }

  size_t size() const { return ranges_.size(); }

  // What the calling thread takes.
  class Mine : public Tasks {
   public:
    explicit Mine(TaskRanges* ranges) : ranges_(ranges), home_(ranges->Home()) {}

    int64_t Next() override {
      for (; at_ < 2 * ranges_->size(); ++at_, owned_ = false) {
        const bool first = at_ < ranges_->size();
        OneRange& range = ranges_->ranges_[(home_ + at_) % ranges_->size()];
        if (first && !owned_ && range.taken.exchange(true)) continue;
        owned_ = first;
        const int64_t task = Take(&range, first);
        if (task >= 0) return task;
      }
      return -1;
    }

   private:
    TaskRanges* const ranges_;
    const size_t home_;
    size_t at_ = 0;  // ranges from home on: those that no thread has come for, then all
    bool owned_ = false;
  };

 private:
  struct OneRange {
    std::atomic<bool> taken{false};
    std::atomic<uint64_t> left{0};  // the first task and the end
    char apart[48];                 // so that threads do not write to one cache line
  };

  static uint64_t Pack(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) | static_cast<uint64_t>(end) << 32;
  }

  // The first or the last task that is left, or -1.
  static int64_t Take(OneRange* range, bool first) {
    uint64_t left = range->left;
    while (true) {
      const auto begin = static_cast<int64_t>(left & 0xffffffff);
      const auto end = static_cast<int64_t>(left >> 32);
      if (begin == end) return -1;
      const uint64_t next = first ? Pack(begin + 1, end) : Pack(begin, end - 1);
      if (range->left.compare_exchange_weak(left, next)) return first ? begin : end - 1;
    }
  }

  // The range of the calling thread: the first one for that which made the ranges.
  size_t Home() const {
    static std::atomic<size_t> threads{0};
    thread_local const size_t thread = threads++;
    if (size() == 1 || std::this_thread::get_id() == maker_) return 0;
    return 1 + thread % (size() - 1);
  }

  std::vector<OneRange> ranges_;
  const std::thread::id maker_ = std::this_thread::get_id();
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_TASK_RANGES_H_
