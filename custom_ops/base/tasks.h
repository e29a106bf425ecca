// How a driver splits its work, without knowing whose threads run it.

#ifndef BNN_DEPLOY_BASE_TASKS_H_
#define BNN_DEPLOY_BASE_TASKS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bnn_deploy {

class TaskRunner {
 public:
  // Runs task(data, i) for i < count, possibly in parallel, and returns when all are done. Rethrows
  // an exception of a task.
  virtual void Run(size_t count, void (*task)(void*, size_t), void* data) const = 0;

 protected:
  ~TaskRunner() = default;
};

// Runs task(i) for i < count; a single task runs on the calling thread.
template <typename Task>
void RunTasks(const TaskRunner& runner, int64_t count, const Task& task) {
  if (count == 1) return task(0);
  const auto call = [](void* data, size_t i) {
    (*static_cast<const Task*>(data))(static_cast<int64_t>(i));
  };
  runner.Run(static_cast<size_t>(count), call, const_cast<Task*>(&task));
}

// Runs every task of [0, count) once, each by a call of what make() gives. A thread goes on from a
// task to the next one, with the same, unless another thread has begun that: so what two neighbours
// need is made once, on one thread for all of them.
template <typename Make>
void RunNeighbors(const TaskRunner& runner, int64_t count, const Make& make) {
  std::vector<std::atomic<bool>> begun(static_cast<size_t>(count));
  const auto begin = [&](int64_t task) { return !begun[static_cast<size_t>(task)].exchange(true); };
  RunTasks(runner, count, [&](int64_t task) {
    if (!begin(task)) return;
    auto run = make();
    do run(task);
    while (++task < count && begin(task));
  });
}

struct Range {
  int64_t begin;
  int64_t end;
};

// Part `index` of `count` items that are split into `parts` of nearly equal size.
inline Range Part(int64_t count, int64_t parts, int64_t index) {
  const int64_t size = count / parts;
  const int64_t larger = count % parts;
  const int64_t begin = index * size + (index < larger ? index : larger);
  return {begin, begin + size + (index < larger ? 1 : 0)};
}

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_TASKS_H_
