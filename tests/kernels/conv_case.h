// A small binary convolution with random numbers, run by the driver or computed tap by tap.

#ifndef BNN_DEPLOY_TESTS_KERNELS_CONV_CASE_H_
#define BNN_DEPLOY_TESTS_KERNELS_CONV_CASE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/tasks.h"
#include "drivers/conv/driver.h"

namespace bnn_deploy::tests {

// The tasks first, first + step and so on of [0, count).
class EveryTask : public Tasks {
 public:
  EveryTask(int64_t count, int64_t first, int64_t step)
      : count_(count), next_(first), step_(step) {}
  int64_t Next() override {
    const int64_t task = next_;
    next_ += step_;
    return task >= 0 && task < count_ ? task : -1;
  }

 private:
  const int64_t count_;
  int64_t next_;
  const int64_t step_;
};

class OneThread : public TaskRunner {
 public:
  void Run(int64_t count, void (*work)(void*, Tasks*), void* data) const override {
    EveryTask tasks(count, 0, 1);
    work(data, &tasks);
  }
};

// Lets all random numbers begin anew.
void SeedRandom(uint32_t seed);
// Rows of this many random bits, in words; the unused bits of each row's last word are 0.
std::vector<uint32_t> RandomBits(int64_t rows, int64_t bits);
// In [low, high].
std::vector<float> RandomFloats(int64_t count, float low, float high);

// What the driver writes: y alone, y times a factor, y + residual beside bits, the same to where
// the residual lies, or bits alone.
enum class Epilogue { kFloat, kFactor, kResidual, kInPlace, kBits };
constexpr Epilogue kEpilogues[] = {Epilogue::kFloat, Epilogue::kFactor, Epilogue::kResidual,
                                   Epilogue::kInPlace, Epilogue::kBits};

struct ConvResult {
  std::vector<float> floats;
  std::vector<uint32_t> bits;
};
// Bit by bit.
bool Same(const ConvResult& a, const ConvResult& b);

struct ConvCase {
  // Fills all that follows with random numbers.
  ConvCase(ConvSpec spec, int64_t batch, int64_t height, int64_t width, int64_t depth = 1);

  std::string Text(Epilogue epilogue) const;
  int64_t OutPixels() const { return batch * out_depth * out_height * out_width; }
  ConvDriver MakeDriver(const Isa& isa, Epilogue epilogue) const;
  ConvResult Run(const Isa& isa, Epilogue epilogue) const;
  ConvResult Run(const ConvDriver& driver, Epilogue epilogue,
                 const TaskRunner& runner = OneThread()) const;
  // By the formulas of ops/binary_conv.h; not with bases.
  ConvResult Reference(Epilogue epilogue) const;

  ConvSpec spec;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t depth;
  int64_t out_height;
  int64_t out_width;
  int64_t out_depth;
  std::vector<uint32_t> weights;
  std::vector<uint32_t> input;
  std::vector<float> scale;
  std::vector<float> bias;
  std::vector<float> float_threshold;
  std::vector<int32_t> threshold;
  std::vector<float> residual;
  std::vector<float> factor;
};

constexpr Axis kPoint = {1, 1, 1, 0, 0};
constexpr Axis kPadded3 = {3, 1, 1, 1, 1};

}  // namespace bnn_deploy::tests

#endif  // BNN_DEPLOY_TESTS_KERNELS_CONV_CASE_H_
