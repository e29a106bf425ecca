// How a driver splits its work, without knowing whose threads run it.

#ifndef BNN_DEPLOY_BASE_TASKS_H_
#define BNN_DEPLOY_BASE_TASKS_H_

#include <cstdint>

namespace bnn_deploy {

// What one thread takes of the tasks of a run.
class Tasks {
 public:
  // A task that no thread has taken, or -1 where there is none.
  virtual int64_t Next() = 0;

 protected:
  ~Tasks() = default;
};

class TaskRunner {
 public:
  // Calls work(data, tasks) on one thread or several, so that each task of [0, count) is taken
  // once, and returns when all calls have. Rethrows an exception of one.
  virtual void Run(int64_t count, void (*work)(void*, Tasks*), void* data) const = 0;

 protected:
  ~TaskRunner() = default;
};

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

// Runs every task of [0, count) once, each by a call of what make() gives. A thread goes on with
// the same where its next task is the neighbour of the one before, so that what both need is made
// once.
template <typename Make>
void RunNeighbors(const TaskRunner& runner, int64_t count, const Make& make) {
  if (count == 1) return make()(0);
  const auto work = [](void* data, Tasks* tasks) {
    for (int64_t task = tasks->Next(); task >= 0;) {
      auto run = (*static_cast<const Make*>(data))();
      int64_t before = 0;
      do {
        run(task);
        before = task;
        task = tasks->Next();
      } while (task == before + 1);
    }
  };
  runner.Run(count, work, const_cast<Make*>(&make));
}

// Runs task(i) for i < count; a single task runs on the calling thread.
template <typename Task>
void RunTasks(const TaskRunner& runner, int64_t count, const Task& task) {
  RunNeighbors(runner, count, [&task] { return [&task](int64_t i) { task(i); }; });
}

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_BASE_TASKS_H_
