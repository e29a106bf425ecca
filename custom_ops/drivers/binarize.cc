#include "drivers/binarize.h"

#include <algorithm>
#include <cmath>

#include "base/buffer.h"
#include "base/geometry.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

constexpr int64_t kMinTaskElements = int64_t{1} << 15;  // some 5 microseconds
constexpr int64_t kMinTaskBytes = int64_t{1} << 18;     // likewise
constexpr int64_t kMaxByteTasks = 256;
constexpr int64_t kPixelGranule = 256;  // most pixels that a vector unit handles at once

// Splits the pixels, of `bytes` bytes each, into ranges and calls run(range) in parallel.
template <typename Body>
void ForPixelRanges(int64_t bytes, int64_t pixels, const TaskRunner& runner, const Body& run) {
  if (pixels == 0) return;
  const int64_t tasks =
      std::clamp(bytes * pixels / kMinTaskBytes, int64_t{1}, std::min(pixels, kMaxByteTasks));
  RunTasks(runner, tasks, [&](int64_t task) { run(Part(pixels, tasks, task)); });
}

// Splits the pixels of each image, of `channels` floats each, into ranges and calls
// run(image, range) in parallel.
template <typename Body>
void ForImageRanges(const Isa& isa, int64_t batch, int64_t channels, int64_t pixels,
                    const TaskRunner& runner, const Body& run) {
  if (batch == 0 || pixels == 0) return;
  // An item is a range of pixels of one image; a task is one or more items.
  const int64_t item_pixels =
      std::max(kMinTaskElements / channels / kPixelGranule, int64_t{1}) * kPixelGranule;
  const int64_t items_per_image = CeilDiv(pixels, item_pixels);
  const int64_t items = batch * items_per_image;
  const int64_t elements = batch * channels * pixels;
  const int64_t tasks = std::clamp(elements / kMinTaskElements, int64_t{1}, items);
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(items, tasks, task);
    for (int64_t item = range.begin; item < range.end; ++item) {
      const int64_t pixel = item % items_per_image * item_pixels;
      run(item / items_per_image, Range{pixel, std::min(pixel + item_pixels, pixels)});
    }
    CountCalls(isa, static_cast<uint64_t>(range.end - range.begin));
  });
}

// The mean of a pixel's terms where their sum may exceed float32.
float ExactMean(const float* x, int64_t stride, const float* scale, const float* shift,
                int64_t channels) {
  double sum = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const float scaled = scale[c] * x[c * stride];
    sum += std::fabs(scaled + shift[c]);
  }
  return static_cast<float>(sum / static_cast<double>(channels));
}

}  // namespace

void BinarizeBatch(const Isa& isa, const float* x, const float* threshold, int64_t batch,
                   int64_t channels, int64_t pixels, uint32_t* out, const TaskRunner& runner) {
  const int64_t words = WordsForBits(channels);
  ForImageRanges(isa, batch, channels, pixels, runner, [&](int64_t image, Range range) {
    isa.binarize({x + image * channels * pixels + range.begin, pixels, threshold, channels,
                  range.end - range.begin, out + (image * pixels + range.begin) * words});
  });
}

void BinarizeAbsMeanBatch(const Isa& isa, const float* x, const float* threshold,
                          const float* scale, const float* shift, int64_t batch, int64_t channels,
                          int64_t pixels, uint32_t* out, float* mean, const TaskRunner& runner) {
  const int64_t words = WordsForBits(channels);
  ForImageRanges(isa, batch, channels, pixels, runner, [&](int64_t image, Range range) {
    const int64_t first = image * pixels + range.begin;
    isa.binarize_abs_mean({x + image * channels * pixels + range.begin, pixels, threshold, scale,
                           shift, channels, range.end - range.begin, out + first * words,
                           mean + first});
    for (int64_t p = first; p < first + range.end - range.begin; ++p) {
      if (std::isfinite(mean[p])) continue;
      const float* const pixel = x + (p - image * pixels) + image * channels * pixels;
      mean[p] = ExactMean(pixel, pixels, scale, shift, channels);
    }
  });
}

// Let r_i = 1 if element x reaches threshold i = 1, 2, ... The thresholds ascend, so the level is
// the largest i with r_i = 1. Bit j of the level is the parity of the number of multiples of 2^j up
// to the level, so plane j is the XOR of r_i over the multiples i of 2^j: for level 3, bit 1 is
// r_2.
void QuantizeLevelsBatch(const Isa& isa, const float* x, const float* thresholds, int64_t bits,
                         int64_t batch, int64_t channels, int64_t pixels, uint32_t* out,
                         const TaskRunner& runner) {
  const int64_t words = WordsForBits(channels);
  ForImageRanges(isa, batch, channels, pixels, runner, [&](int64_t image, Range range) {
    const int64_t count = range.end - range.begin;
    uint32_t* const to = out + (image * pixels + range.begin) * bits * words;
    std::fill_n(to, count * bits * words, 0u);
    thread_local Buffer<uint32_t> reached_buffer;
    uint32_t* const reached = reached_buffer.Reserve(count * words);
    for (int64_t i = 1; i < int64_t{1} << bits; ++i) {
      isa.binarize({x + image * channels * pixels + range.begin, pixels,
                    thresholds + (i - 1) * channels, channels, count, reached});
      for (int64_t plane = 0; i % (int64_t{1} << plane) == 0; ++plane) {
        for (int64_t p = 0; p < count; ++p) {
          uint32_t* const pixel_plane = to + (p * bits + plane) * words;
          for (int64_t w = 0; w < words; ++w) pixel_plane[w] ^= reached[p * words + w];
        }
      }
    }
  });
}

void BinarizeRowsBatch(const Isa& isa, const float* x, const float* threshold, int64_t channels,
                       int64_t pixels, uint32_t* out, const TaskRunner& runner) {
  ForPixelRanges(channels * static_cast<int64_t>(sizeof(float)), pixels, runner, [&](Range range) {
    isa.binarize_rows({x + range.begin * channels, threshold, channels, range.end - range.begin,
                       out + range.begin * WordsForBits(channels)});
    CountCalls(isa, 1);
  });
}

void BinarizeBytesBatch(const Isa& isa, const uint8_t* x, const uint8_t* level,
                        const uint32_t* reachable, int64_t channels, int64_t pixels, uint32_t* out,
                        const TaskRunner& runner) {
  ForPixelRanges(channels, pixels, runner, [&](Range range) {
    isa.binarize_bytes({x + range.begin * channels, level, reachable, channels,
                        range.end - range.begin, out + range.begin * WordsForBits(channels)});
    CountCalls(isa, 1);
  });
}

}  // namespace bnn_deploy
