// Runs of one driver overlap in time, and their tasks run on threads: what ThreadSanitizer looks
// at.

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/task_ranges.h"
#include "base/tasks.h"
#include "check.h"
#include "conv_case.h"
#include "drivers/direct/driver.h"
#include "drivers/relu_linear.h"
#include "kernels/dispatch.h"

namespace bnn_deploy::tests {
namespace {

constexpr int kCallers = 4;
constexpr int kRuns = 3;

// Takes every second task on another thread.
class TwoThreads : public TaskRunner {
 public:
  void Run(int64_t count, void (*work)(void*, Tasks*), void* data) const override {
    const auto take = [&](int64_t first) {
      EveryTask tasks(count, first, 2);
      work(data, &tasks);
    };
    std::thread other(take, 1);
    take(0);
    other.join();
  }
};

// run(caller) on several threads at once, each several times.
template <typename Run>
void Overlap(const Run& run) {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&run, caller] {
      for (int i = 0; i < kRuns; ++i) run(caller);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(ConvolutionsOfSeveralSizes) {
  const ConvSpec spec{70, 1, 66, kPadded3, kPadded3, {}};
  std::vector<ConvCase> cases;
  for (int64_t size = 0; size < kCallers; ++size) cases.emplace_back(spec, 1, 17 + size, 19);
  for (const Isa* isa : AvailableIsas()) {
    for (const Epilogue epilogue : kEpilogues) {
      for (ConvCase& one : cases) {
        one.weights = cases[0].weights;
        one.scale = cases[0].scale;
        one.bias = cases[0].bias;
        one.float_threshold = cases[0].float_threshold;
        one.threshold = cases[0].threshold;
      }
      const ConvDriver driver = cases[0].MakeDriver(*isa, epilogue);
      bool same[kCallers];
      Overlap([&](int caller) {
        const ConvCase& one = cases[static_cast<size_t>(caller)];
        same[caller] = Same(one.Run(driver, epilogue, TwoThreads()), one.Run(*isa, epilogue));
      });
      for (int caller = 0; caller < kCallers; ++caller) {
        CHECK_IN(same[caller],
                 isa->name + (": " + cases[static_cast<size_t>(caller)].Text(epilogue)));
      }
    }
  }
}

TEST(NeighborsShareOneRun) {
  for (const bool alone : {true, false}) {
    std::atomic<int> runs[50] = {}, made{0}, jumps{0};
    const auto make = [&] {
      ++made;
      return [&, before = int64_t{-1}](int64_t task) mutable {
        if (before >= 0 && task != before + 1) ++jumps;
        before = task;
        ++runs[task];
      };
    };
    if (alone) {
      RunNeighbors(OneThread(), 50, make);
    } else {
      RunNeighbors(TwoThreads(), 50, make);  // has no neighbours
    }
    CHECK(made == (alone ? 1 : 50));
    CHECK(jumps == 0);
    for (const std::atomic<int>& run : runs) CHECK(run == 1);
  }
}

TEST(AThreadKeepsToItsRange) {
  for (int run = 0; run < 2; ++run) {
    TaskRanges ranges(11, 2);
    TaskRanges::Mine mine(&ranges);
    CHECK(mine.Next() == 0);
    std::vector<int64_t> theirs;
    // The other one begins in the middle, and takes what this one leaves from its end.
    std::thread other([&] {
      TaskRanges::Mine tasks(&ranges);
      for (int i = 0; i < 7; ++i) theirs.push_back(tasks.Next());
    });
    other.join();
    CHECK(theirs[0] == 6);
    for (int64_t task = 1; task < 4; ++task) CHECK(mine.Next() == task);
    CHECK(mine.Next() == -1);
    CHECK(theirs == std::vector<int64_t>({6, 7, 8, 9, 10, 5, 4}));
  }
}

TEST(TheFirstRangeWaitsForTheThreadThatMadeIt) {
  TaskRanges ranges(11, 2);
  std::thread other([&] { CHECK(TaskRanges::Mine(&ranges).Next() == 6); });
  other.join();
  CHECK(TaskRanges::Mine(&ranges).Next() == 0);
}

TEST(OneThreadTakesAllRangesInOrder) {
  TaskRanges ranges(11, 4);
  TaskRanges::Mine mine(&ranges);
  for (int64_t task = 0; task < 11; ++task) CHECK(mine.Next() == task);
  CHECK(mine.Next() == -1);
}

TEST(NoTaskIsTakenTwice) {
  constexpr int64_t kTasks = 20000;
  std::vector<std::atomic<int>> taken(kTasks);
  TaskRanges ranges(kTasks, 3);
  const auto take = [&] {
    TaskRanges::Mine tasks(&ranges);
    for (int64_t task; (task = tasks.Next()) >= 0;) ++taken[static_cast<size_t>(task)];
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 5; ++i) threads.emplace_back(take);
  for (std::thread& thread : threads) thread.join();
  for (const std::atomic<int>& times : taken) CHECK(times == 1);
}

TEST(FirstLayers) {
  constexpr int64_t kChannels = 3, kOutputs = 40, kSize = 90;
  constexpr Axis kAxis = {5, 1, 1, 2, 2}, kPool = {3, 2, 1, 1, 1};
  const DirectSpec spec{kChannels, kOutputs, kAxis, kAxis, kPool, kPool};
  const std::vector<float> weights = RandomFloats(kOutputs * spec.taps(), -1, 1);
  const std::vector<float> bias = RandomFloats(kOutputs, -1, 1);
  const std::vector<float> threshold = RandomFloats(kOutputs, -1, 1);
  std::vector<float> levels;
  for (int64_t i = 0; i < kChannels * kByteValues; ++i) {
    levels.push_back(static_cast<float>(i % kByteValues) / 100 - 1);
  }
  const std::vector<uint32_t> words = RandomBits(kSize * kSize, 32 * kChannels);
  const auto* const bytes = reinterpret_cast<const uint8_t*>(words.data());
  const ImageBatch image{nullptr, bytes, false, 1, kSize, kSize};
  constexpr size_t kOut = 45 * 45 * 2;
  for (const Isa* isa : AvailableIsas()) {
    const DirectConvDriver driver(*isa, spec, weights.data(), bias.data(), threshold.data(),
                                  levels.data());
    std::vector<uint32_t> expected(kOut);
    driver.Run(image, expected.data(), OneThread());
    bool same[kCallers];
    Overlap([&](int caller) {
      std::vector<uint32_t> out(kOut);
      driver.Run(image, out.data(), TwoThreads());
      same[caller] = out == expected;
    });
    for (const bool one : same) CHECK_IN(one, isa->name);
  }
}

TEST(LastLayers) {
  constexpr int64_t kBatch = 70, kChannels = 300, kOutputs = 100;
  const std::vector<float> x = RandomFloats(kBatch * kChannels, -1, 1);
  const std::vector<float> weights = RandomFloats(kChannels * kOutputs, -1, 1);
  const std::vector<float> bias = RandomFloats(kOutputs, -1, 1);
  for (const Isa* isa : AvailableIsas()) {
    const auto run = [&](const TaskRunner& runner) {
      std::vector<float> out(kBatch * kOutputs);
      ReluLinearBatch(
          *isa, {x.data(), kBatch, kChannels, weights.data(), bias.data(), kOutputs, out.data()},
          runner);
      return out;
    };
    const std::vector<float> expected = run(OneThread());
    bool same[kCallers];
    Overlap([&](int caller) { same[caller] = run(TwoThreads()) == expected; });
    for (const bool one : same) CHECK_IN(one, isa->name);
  }
}

}  // namespace
}  // namespace bnn_deploy::tests
