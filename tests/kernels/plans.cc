#include <thread>

#include "check.h"
#include "conv_case.h"
#include "kernels/dispatch.h"

namespace bnn_deploy::tests {
namespace {

const ConvSpec kSpec{40, 1, 9, kPadded3, kPadded3, {}};

// The case with images of another size, and the same weights.
ConvCase OfSize(const ConvCase& one, int64_t height, int64_t width) {
  ConvCase other(one.spec, 1, height, width);
  other.weights = one.weights;
  other.scale = one.scale;
  other.bias = one.bias;
  return other;
}

// Runs the last task first.
class Backwards : public TaskRunner {
 public:
  void Run(int64_t count, void (*work)(void*, Tasks*), void* data) const override {
    tasks += count;
    EveryTask backwards(count, count - 1, -1);
    work(data, &backwards);
  }
  mutable int64_t tasks = 0;
};

// Layers that take some 15 microseconds and more are split, by pixels and by channels, and no task
// needs what another one writes.
TEST(TasksStandAlone) {
  for (const ConvCase& one : {ConvCase({192, 1, 96, kPoint, kPoint, {}}, 1, 32, 32),
                              ConvCase({64, 1, 128, kPadded3, kPadded3, {}}, 2, 9, 9),
                              ConvCase({70, 2, 66, kPadded3, kPadded3, {}}, 1, 17, 19)}) {
    for (const Epilogue epilogue : kEpilogues) {
      const ConvResult expected = one.Run(*AvailableIsas().back(), epilogue);
      for (const Isa* isa : AvailableIsas()) {
        const Backwards runner;
        CHECK_IN(Same(one.Run(one.MakeDriver(*isa, epilogue), epilogue, runner), expected),
                 isa->name + (": " + one.Text(epilogue)));
        CHECK_IN(runner.tasks >= 4, one.Text(epilogue));
      }
    }
  }
}

// Waking a thread takes longer than this.
TEST(SmallLayersAreNotSplit) {
  const ConvCase one({192, 1, 96, kPoint, kPoint, {}}, 1, 16, 16);
  const Backwards runner;
  one.Run(one.MakeDriver(*AvailableIsas().front(), Epilogue::kBits), Epilogue::kBits, runner);
  CHECK(runner.tasks == 0);
}

TEST(AlternatingSizesMakeTwoPlans) {
  const Isa& isa = *AvailableIsas().front();
  const ConvCase small(kSpec, 1, 5, 6);
  const ConvCase large = OfSize(small, 17, 19);
  const ConvDriver driver = small.MakeDriver(isa, Epilogue::kFloat);
  const ConvResult of_small = small.Reference(Epilogue::kFloat);
  const ConvResult of_large = large.Reference(Epilogue::kFloat);
  for (int i = 0; i < 5; ++i) {
    CHECK(Same(small.Run(driver, Epilogue::kFloat), of_small));
    CHECK(Same(large.Run(driver, Epilogue::kFloat), of_large));
  }
  CHECK(driver.plans_made() == 2);
}

TEST(HeightAndWidthAreNotMixedUp) {
  const ConvCase wide(kSpec, 1, 4, 9);
  const ConvCase tall = OfSize(wide, 9, 4);
  const ConvCase taller = OfSize(wide, 6, 9);
  const ConvDriver driver = wide.MakeDriver(*AvailableIsas().front(), Epilogue::kFloat);
  for (const ConvCase* one : {&wide, &tall, &taller, &wide}) {
    CHECK(Same(one->Run(driver, Epilogue::kFloat), one->Reference(Epilogue::kFloat)));
  }
  CHECK(driver.plans_made() == 3);
}

TEST(TheLeastRecentlyUsedPlanGoes) {
  const ConvCase first(kSpec, 1, 4, 4);
  const ConvDriver driver = first.MakeDriver(*AvailableIsas().front(), Epilogue::kFloat);
  const auto run = [&](int64_t size) {
    OfSize(first, size, size).Run(driver, Epilogue::kFloat);
    return driver.plans_made();
  };
  const auto most = static_cast<int64_t>(ConvPlanCache::kMaxPlans);
  for (int64_t size = 1; size <= most; ++size) CHECK(run(size) == size);
  CHECK(run(1) == most);             // still there, and now the last one used
  CHECK(run(most + 1) == most + 1);  // takes the place of 2
  CHECK(run(1) == most + 1);
  CHECK(run(2) == most + 2);
}

TEST(RunsAtTheSameTimeShareThePlans) {
  const ConvCase small(kSpec, 1, 5, 6);
  const ConvCase large = OfSize(small, 17, 19);
  const ConvDriver driver = small.MakeDriver(*AvailableIsas().front(), Epilogue::kFloat);
  const ConvResult of_small = small.Reference(Epilogue::kFloat);
  const ConvResult of_large = large.Reference(Epilogue::kFloat);
  int wrong[4] = {};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const bool is_small = (i + t) % 2 == 0;
        const ConvResult result = (is_small ? small : large).Run(driver, Epilogue::kFloat);
        wrong[t] += Same(result, is_small ? of_small : of_large) ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : wrong) CHECK(count == 0);
  CHECK(driver.plans_made() == 2);
}

}  // namespace
}  // namespace bnn_deploy::tests
