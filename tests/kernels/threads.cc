// Runs of one driver overlap in time, and their tasks run on threads: what ThreadSanitizer looks
// at.

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

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
  void Run(size_t count, void (*task)(void*, size_t), void* data) const override {
    const auto take = [&](size_t first) {
      for (size_t i = first; i < count; i += 2) task(data, i);
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

TEST(NeighborsRunOnce) {
  constexpr int64_t kTasks = 200;
  for (const bool alone : {true, false}) {
    std::atomic<int> runs[kTasks] = {}, made{0}, jumps{0};
    const auto make = [&] {
      ++made;
      return [&, before = int64_t{-1}](int64_t task) mutable {
        if (before >= 0 && task != before + 1) ++jumps;
        before = task;
        ++runs[task];
      };
    };
    if (alone) {
      RunNeighbors(OneThread(), kTasks, make);
      CHECK(made == 1);
    } else {
      RunNeighbors(TwoThreads(), kTasks, make);
    }
    CHECK(jumps == 0);
    for (const std::atomic<int>& run : runs) CHECK(run == 1);
  }
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
