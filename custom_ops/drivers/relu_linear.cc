#include "drivers/relu_linear.h"

#include <algorithm>

#include "base/geometry.h"
#include "base/scratch.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Rows of weights that all images of a task take before the next ones: they stay in the
// second-level cache.
constexpr int64_t kBlockFloats = int64_t{1} << 15;
constexpr int64_t kLeastRows = 16;
// Outputs of a task are whole cache lines, and enough of them to read memory in long pieces.
constexpr int64_t kLineFloats = 16;
constexpr int64_t kLeastOutputs = 480;
constexpr int64_t kTaskImages = 32;  // so that a task's weights are read for many of them
constexpr double kTaskProducts = 1 << 20;
constexpr double kMaxTasks = 256;

// max(value, 0), or NaN.
float Relu(float value) { return value <= 0.0f ? 0.0f : value; }

// Some images and outputs, of `args`.
void RunTask(const Isa& isa, const ReluLinearArgs& args, Range images, Range outputs) {
  const int64_t count = images.end - images.begin;
  const int64_t width = outputs.end - outputs.begin;
  const int64_t stride = RoundUp(width, kLineFloats);
  const int64_t block = std::min(std::max(kBlockFloats / width, kLeastRows), args.channels);
  const int64_t together = isa.linear->images;
  const int64_t dense = count / together * together;  // images whose products are all made
  thread_local Buffer<float> kept_sums, kept_values, kept_weights;
  thread_local Buffer<const float*> kept_rows;
  Scratch<float> sums_scratch(&kept_sums), values_scratch(&kept_values);
  Scratch<float> weights_scratch(&kept_weights);
  Scratch<const float*> rows_scratch(&kept_rows);
  float* const sums = sums_scratch.Reserve(count * stride);
  float* const values = values_scratch.Reserve(std::max(dense, int64_t{1}) * block);
  float* const packed = dense > 0 ? weights_scratch.Reserve(block * stride) : nullptr;
  const float** const rows = rows_scratch.Reserve(block);
  const float* const x = args.x + images.begin * args.channels;
  const float* const weights = args.weights + outputs.begin;
  for (int64_t n = 0; n < count; ++n) {
    std::copy_n(args.bias + outputs.begin, width, sums + n * stride);
    std::fill(sums + n * stride + width, sums + (n + 1) * stride, 0.0f);
  }
  for (int64_t first = 0; first < args.channels; first += block) {
    const int64_t last = std::min(first + block, args.channels);
    if (dense > 0) {
      for (int64_t n = 0; n < dense; ++n) {
        std::transform(x + n * args.channels + first, x + n * args.channels + last,
                       values + n * block, Relu);
      }
      isa.linear->multiply_rows({sums, stride, values, block, dense, weights + first * args.outputs,
                                 args.outputs, last - first, width, packed});
    }
    for (int64_t n = dense; n < count; ++n) {
      const float* const from = x + n * args.channels;
      int64_t used = 0;
      for (int64_t c = first; c < last; ++c) {  // without a branch, as signs are random
        values[used] = from[c];
        rows[used] = weights + c * args.outputs;
        used += static_cast<int64_t>(!(from[c] <= 0.0f));
      }
      isa.linear->add_rows({sums + n * stride, values, rows, used, width});
    }
  }
  for (int64_t n = 0; n < count; ++n) {
    std::copy_n(sums + n * stride, width,
                args.out + (images.begin + n) * args.outputs + outputs.begin);
  }
}

}  // namespace

void ReluLinearBatch(const Isa& isa, const ReluLinearArgs& args, const TaskRunner& runner) {
  const double products = static_cast<double>(args.batch) * static_cast<double>(args.channels) *
                          static_cast<double>(args.outputs);
  const auto wanted = static_cast<int64_t>(std::clamp(products / kTaskProducts, 1.0, kMaxTasks));
  // Tasks of different outputs read different weights, but not whole rows, which packing wants.
  const int64_t lines = CeilDiv(args.outputs, kLineFloats);
  const int64_t most_parts =
      args.batch < isa.linear->images ? std::max(args.outputs / kLeastOutputs, int64_t{1}) : 1;
  const int64_t output_parts = std::min(wanted, most_parts);
  const int64_t batch_parts =
      std::min(CeilDiv(wanted, output_parts), CeilDiv(args.batch, kTaskImages));
  RunTasks(runner, output_parts * batch_parts, [&](int64_t task) {
    const Range part = Part(lines, output_parts, task / batch_parts);
    RunTask(isa, args, Part(args.batch, batch_parts, task % batch_parts),
            {part.begin * kLineFloats, std::min(part.end * kLineFloats, args.outputs)});
    CountCalls(isa, 1);
  });
}

}  // namespace bnn_deploy
