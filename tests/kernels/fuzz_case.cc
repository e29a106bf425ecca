#include "fuzz_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/buffer.h"
#include "conv_case.h"
#include "drivers/binarize.h"
#include "drivers/direct/driver.h"
#include "drivers/matmul.h"
#include "drivers/pool_bits.h"
#include "drivers/relu_linear.h"

namespace bnn_deploy::tests {
namespace {

using Isas = std::vector<const Isa*>;
using Floats = std::vector<float>;
using Words = std::vector<uint32_t>;

// Products of the plain loops, and of the units alone, beyond which a case takes too long.
constexpr int64_t kMaxChecked = int64_t{1} << 19;
constexpr int64_t kMaxWork = int64_t{1} << 22;

size_t Size(int64_t value) { return static_cast<size_t>(value); }

// Numbers from bytes; the lowest ones when no bytes are left.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  // In [low, high].
  int64_t In(int64_t low, int64_t high) {
    const auto range = static_cast<uint64_t>(high - low) + 1;
    uint64_t value = 0;
    for (uint64_t bound = 1; bound < range; bound <<= 8) {
      value = value << 8 | (data_ == end_ ? 0u : *data_++);
    }
    return low + static_cast<int64_t>(value % range);
  }
  bool Flag() { return In(0, 1) == 1; }

  Axis SmallAxis() { return {In(1, 4), In(1, 3), In(1, 3), In(0, 3), In(0, 3)}; }

  // Integers, whose sums of products are exact in any order, or numbers between them; a few are
  // odd, if asked for, but among integers none that only some sums can hold.
  Floats Numbers(int64_t count, bool integers, bool odd) {
    Floats out = RandomFloats(count, -4, 4);
    if (integers) {
      for (float& value : out) value = std::floor(value);
    }
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kOdd[] = {std::numeric_limits<float>::quiet_NaN(),
                              kInfinity,
                              -kInfinity,
                              0.0f,
                              -0.0f,
                              std::numeric_limits<float>::denorm_min(),
                              std::numeric_limits<float>::max()};
    for (int64_t i = odd ? In(0, 4) : 0; i > 0 && count > 0; --i) {
      out[Size(In(0, 65535) % count)] = kOdd[In(0, integers ? 4 : 6)];
    }
    return out;
  }

 private:
  const uint8_t* data_;
  const uint8_t* const end_;
};

// Its tasks run from the last to the first: no task may need another one's result.
class Backwards : public TaskRunner {
 public:
  void Run(int64_t count, void (*work)(void*, Tasks*), void* data) const override {
    EveryTask tasks(count, count - 1, -1);
    work(data, &tasks);
  }
};

bool SameNumber(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// But for the bits of a NaN and the sign of a 0.
bool SameNumbers(const Floats& a, const Floats& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), SameNumber);
}

bool SameResults(const ConvResult& a, const ConvResult& b) {
  return a.bits == b.bits && SameNumbers(a.floats, b.floats);
}

bool Bit(const Words& words, int64_t row, int64_t row_words, int64_t index) {
  return (words[Size(row * row_words + index / 32)] >> (index % 32) & 1) != 0;
}

void SetBit(Words* words, int64_t row, int64_t row_words, int64_t index) {
  (*words)[Size(row * row_words + index / 32)] |= 1u << (index % 32);
}

std::string Text(std::initializer_list<int64_t> numbers) {
  std::string text;
  for (const int64_t number : numbers) text += " " + std::to_string(number);
  return text;
}

std::string Differs(const Isa& isa, const std::string& text) {
  return std::string(isa.name) + " differs: " + text;
}

// ---- geometry --------------------------------------------------------------------------------

std::string Geometry(Bytes* bytes) {
  const auto extent = [&](int64_t low) { return bytes->In(low, bytes->Flag() ? kMaxExtent : 9); };
  const Axis axis{extent(1), extent(1), extent(1), extent(0), extent(0)};
  const int64_t input = extent(0);
  const std::string text =
      Text({axis.kernel, axis.stride, axis.dilation, axis.pad_begin, axis.pad_end, input});
  // The formulas of ONNX for Conv and MaxPool.
  const int64_t free =
      input + axis.pad_begin + axis.pad_end - (axis.kernel - 1) * axis.dilation - 1;
  const int64_t floor = free < 0 ? 0 : free / axis.stride + 1;
  if (OutputExtent(axis, input) != floor) return "OutputExtent" + text;
  int64_t ceil = free < 0 ? 0 : (free + axis.stride - 1) / axis.stride + 1;
  if (ceil > 0 && (ceil - 1) * axis.stride >= input + axis.pad_begin) --ceil;
  const int64_t windows = OutputExtent(axis, input, Rounding::kCeil);
  if (windows != ceil) return "OutputExtent, ceil" + text;
  if (windows == 0) return "";
  const int64_t index = bytes->In(0, kMaxExtent) % windows;
  const TapRange taps = TapsInside(axis, input, index);
  const auto inside = [&](int64_t tap) {
    const int64_t at = index * axis.stride - axis.pad_begin + tap * axis.dilation;
    return at >= 0 && at < input;
  };
  if (taps.first < 0 || taps.last > axis.kernel || taps.first > taps.last)
    return "TapsInside" + text;
  if (taps.first == taps.last) {
    // Then none is; those nearest to the input are looked at.
    for (const int64_t tap : {int64_t{0}, axis.kernel / 2, axis.kernel - 1}) {
      if (inside(tap)) return "TapsInside, none" + text;
    }
    return "";
  }
  const bool holds = inside(taps.first) && inside(taps.last - 1) &&
                     !(taps.first > 0 && inside(taps.first - 1)) &&
                     !(taps.last < axis.kernel && inside(taps.last));
  return holds ? "" : "TapsInside" + text;
}

// ---- convolutions of bits --------------------------------------------------------------------

// Extents that give at least one window.
int64_t Extent(Bytes* bytes, const Axis& axis, int64_t most) {
  int64_t extent = bytes->In(1, most);
  while (OutputExtent(axis, extent) == 0) ++extent;
  return extent;
}

// Sets bits that must be ignored.
void SetUnusedBits(int64_t channels, Words* words) {
  if (channels % 32 == 0) return;
  const int64_t row = WordsForBits(channels);
  for (size_t i = Size(row - 1); i < words->size(); i += Size(row)) {
    (*words)[i] |= ~0u << (channels % 32);
  }
}

ConvSpec Spec(Bytes* bytes) {
  ConvSpec spec{
      bytes->In(1, bytes->Flag() ? 700 : 70), 1, 1, bytes->SmallAxis(), bytes->SmallAxis(), {}};
  if (bytes->Flag()) spec.height = kPoint;
  if (bytes->In(0, 3) == 3) spec.depth = bytes->SmallAxis();
  if (bytes->Flag()) {
    spec.group = bytes->In(1, spec.channels);
    while (spec.channels % spec.group != 0) --spec.group;
  }
  spec.out_channels = spec.group * bytes->In(1, std::max<int64_t>(140 / spec.group, 1));
  return spec;
}

ConvCase Images(Bytes* bytes, const ConvSpec& spec) {
  const int64_t most = bytes->Flag() ? 40 : 9;
  const int64_t height = Extent(bytes, spec.height, most);
  const int64_t width = Extent(bytes, spec.width, most);
  const bool volume = spec.depth.kernel > 1 || spec.depth.pad_begin + spec.depth.pad_end > 0;
  const int64_t depth = Extent(bytes, spec.depth, volume ? 4 : 1);
  return ConvCase(spec, bytes->In(1, 3), height, width, depth);
}

// Products of bits; a word takes as long as its first bit.
int64_t Work(const ConvCase& one) {
  const int64_t bits = RoundUp(one.spec.channels / one.spec.group, 32);
  return one.OutPixels() * one.spec.out_channels * one.spec.taps() * bits *
         std::max(one.spec.level_bits, one.spec.planes) * std::max<int64_t>(one.spec.bases, 1);
}

std::string Conv(Bytes* bytes, const Isas& isas) {
  ConvSpec spec = Spec(bytes);
  auto epilogue = static_cast<Epilogue>(bytes->In(0, 4));
  if (bytes->In(0, 3) == 3) {
    spec.level_bits = bytes->In(1, kMaxLevelBits);
    epilogue = Epilogue::kFloat;
  } else if (bytes->Flag()) {
    spec.pad_bits = RandomBits(1, spec.channels);
  }
  ConvCase one = Images(bytes, spec);
  if (Work(one) > kMaxWork) return "";
  if (bytes->Flag()) SetUnusedBits(spec.channels, &one.input);
  const bool integers = bytes->Flag();
  const bool odd = spec.level_bits == 0;  // half of their scale must be exact
  one.scale = bytes->Numbers(spec.out_channels, integers, odd);
  one.bias = bytes->Numbers(spec.out_channels, integers, true);
  one.float_threshold = bytes->Numbers(spec.out_channels, integers, true);
  one.residual = bytes->Numbers(static_cast<int64_t>(one.residual.size()), integers, true);
  one.factor = bytes->Numbers(static_cast<int64_t>(one.factor.size()), integers, true);
  if (bytes->Flag()) one.threshold.front() = std::numeric_limits<int32_t>::min();
  if (bytes->Flag()) one.threshold.back() = std::numeric_limits<int32_t>::max();
  // The loops are slow: the last unit is checked with smaller cases.
  const ConvResult expected =
      Work(one) <= kMaxChecked ? one.Reference(epilogue) : one.Run(*isas.back(), epilogue);
  for (const Isa* isa : isas) {
    const ConvDriver driver = one.MakeDriver(*isa, epilogue);
    if (!SameResults(one.Run(driver, epilogue), expected) ||
        !SameResults(one.Run(driver, epilogue, Backwards()), expected)) {
      return Differs(*isa, one.Text(epilogue));
    }
  }
  return "";
}

// Against the last unit: tests/operators compares it with the function body.
std::string Bases(Bytes* bytes, const Isas& isas) {
  ConvSpec spec = Spec(bytes);
  spec.planes = bytes->In(1, kMaxLevelBits);
  spec.bases = bytes->In(1, 4);
  const ConvCase one = Images(bytes, spec);
  if (Work(one) > kMaxWork) return "";
  const Floats scale =
      bytes->Numbers((spec.planes + 1) * (spec.bases + 1) * spec.out_channels, bytes->Flag(), true);
  const Floats bias = bytes->Numbers(spec.out_channels, bytes->Flag(), true);
  const auto run = [&](const Isa& isa, const TaskRunner& runner) {
    const ConvDriver driver(isa, spec, one.weights.data(),
                            BasesConstants{scale.data(), bias.data()});
    Floats out(Size(one.OutPixels() * spec.out_channels), -1e9f);
    driver.Run({one.input.data(), one.batch, one.height, one.width, one.depth},
               FloatOutput{out.data(), nullptr, nullptr}, runner);
    return out;
  };
  const Floats expected = run(*isas.back(), OneThread());
  for (const Isa* isa : isas) {
    if (!SameNumbers(run(*isa, Backwards()), expected)) {
      return Differs(*isa, one.Text(Epilogue::kFloat) + Text({spec.planes, spec.bases}));
    }
  }
  return "";
}

std::string MatMul(Bytes* bytes, const Isas& isas) {
  const int64_t channels = bytes->In(1, bytes->Flag() ? 700 : 70);
  const int64_t level_bits = bytes->In(0, kMaxLevelBits), planes = std::max<int64_t>(level_bits, 1);
  const int64_t batch = bytes->In(1, 3), rows = bytes->In(1, 140), columns = bytes->In(1, 140);
  if (batch * rows * columns * channels * planes > 8 * kMaxChecked) return "";
  const int64_t words = WordsForBits(channels);
  Words a = RandomBits(batch * rows * planes, channels);
  Words b = RandomBits(batch * columns, channels);
  Floats expected;
  const float scale = RandomFloats(1, 0.01f, 4).front();
  for (int64_t m = 0; m < batch * rows; ++m) {
    for (int64_t n = m / rows * columns; n < (m / rows + 1) * columns; ++n) {
      int64_t acc = 0;
      for (int64_t c = 0; c < channels; ++c) {
        int64_t value = level_bits == 0 ? 2 * Bit(a, m, words, c) - 1 : 0;
        for (int64_t j = 0; j < level_bits; ++j) value += Bit(a, m * planes + j, words, c) << j;
        acc += Bit(b, n, words, c) ? value : -value;
      }
      expected.push_back(scale * static_cast<float>(acc));
    }
  }
  if (bytes->Flag()) SetUnusedBits(channels, &a);
  if (bytes->Flag()) SetUnusedBits(channels, &b);
  for (const Isa* isa : isas) {
    Floats out(expected.size(), -1e9f);
    MultiplyBits(*isa, channels, level_bits, scale, {a.data(), b.data(), batch, rows, columns},
                 out.data(), Backwards());
    if (!SameNumbers(out, expected)) {
      return Differs(*isa, "matmul" + Text({channels, level_bits, batch, rows, columns}));
    }
  }
  return "";
}

// ---- bits of numbers -------------------------------------------------------------------------

// Two sums of terms that are not negative, in orders of their own, see BinarizeAbsMeanArgs.
bool MeansAgree(const Floats& a, const Floats& b, int64_t channels) {
  const double terms =
      std::min(static_cast<double>(channels), static_cast<double>(channels) / 32 + 40);
  for (size_t i = 0; i < a.size(); ++i) {
    if (SameNumber(a[i], b[i])) continue;
    const double difference = std::fabs(double{a[i]} - double{b[i]});
    const double unit = std::numeric_limits<float>::denorm_min() + std::ldexp(b[i], -24);
    if (!(difference <= 2 * (terms + 1) * unit)) return false;
  }
  return true;
}

std::string Binarize(Bytes* bytes, const Isas& isas) {
  const int64_t batch = bytes->In(1, 3);
  const int64_t channels = bytes->In(1, bytes->Flag() ? 500 : 70);
  const int64_t pixels = bytes->In(1, bytes->Flag() ? 500 : 70);
  const int64_t words = WordsForBits(channels), bits = bytes->In(1, kMaxLevelBits);
  const bool integers = bytes->Flag();
  const Floats x = bytes->Numbers(batch * channels * pixels, integers, true);
  const Floats threshold = bytes->Numbers(channels, integers, true);
  const Floats scale = bytes->Numbers(channels, integers, true);
  const Floats shift = bytes->Numbers(channels, integers, true);
  const int64_t count = (1 << bits) - 1;
  Floats levels(Size(count * channels));
  for (int64_t c = 0; c < channels; ++c) {
    Floats ascending = bytes->Numbers(count, integers, false);
    std::sort(ascending.begin(), ascending.end());
    for (int64_t i = 0; i < count; ++i) levels[Size(i * channels + c)] = ascending[Size(i)];
  }
  const Words random = RandomBits(batch * pixels, 8 * channels);
  const auto* const image = reinterpret_cast<const uint8_t*>(random.data());
  Buffer<uint8_t> level(RoundUp(channels, 64), 0);
  Buffer<uint32_t> reachable(words, 0u);
  for (int64_t c = 0; c < channels; ++c) {
    level.data()[c] = static_cast<uint8_t>(bytes->In(0, 255));
    if (bytes->In(0, 7) != 7) reachable.data()[c / 32] |= 1u << (c % 32);
  }
  const auto rows = [&](int64_t per_pixel) { return Words(Size(batch * pixels * per_pixel), 0u); };
  Words planes_bits = rows(words), rows_bits = rows(words), bytes_bits = rows(words);
  Words levels_bits = rows(words * bits);
  for (int64_t p = 0; p < batch * pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      const float value = x[Size((p / pixels * channels + c) * pixels + p % pixels)];
      if (value >= threshold[Size(c)]) SetBit(&planes_bits, p, words, c);
      if (x[Size(p * channels + c)] >= threshold[Size(c)]) SetBit(&rows_bits, p, words, c);
      const bool reached = image[p * channels + c] >= level.data()[c];
      if (reached && (reachable.data()[c / 32] >> (c % 32) & 1) != 0) {
        SetBit(&bytes_bits, p, words, c);
      }
      int64_t number = 0;
      for (int64_t i = 0; i < count; ++i) number += value >= levels[Size(i * channels + c)];
      for (int64_t j = 0; j < bits; ++j) {
        if ((number >> j & 1) != 0) SetBit(&levels_bits, p * bits + j, words, c);
      }
    }
  }
  const std::string text = Text({batch, channels, pixels, bits});
  Floats expected_mean;
  for (auto isa = isas.rbegin(); isa != isas.rend(); ++isa) {
    Words out(planes_bits.size(), ~0u);
    BinarizeBatch(**isa, x.data(), threshold.data(), batch, channels, pixels, out.data(),
                  Backwards());
    if (out != planes_bits) return Differs(**isa, "binarize" + text);
    out.assign(out.size(), ~0u);
    Floats mean(Size(batch * pixels), -1);
    BinarizeAbsMeanBatch(**isa, x.data(), threshold.data(), scale.data(), shift.data(), batch,
                         channels, pixels, out.data(), mean.data(), Backwards());
    if (out != planes_bits) return Differs(**isa, "binarize with means" + text);
    if (expected_mean.empty()) expected_mean = mean;  // of the last unit
    if (!MeansAgree(mean, expected_mean, channels)) return Differs(**isa, "means" + text);
    out.assign(out.size(), ~0u);
    BinarizeRowsBatch(**isa, x.data(), threshold.data(), channels, batch * pixels, out.data(),
                      Backwards());
    if (out != rows_bits) return Differs(**isa, "binarize rows" + text);
    out.assign(out.size(), ~0u);
    BinarizeBytesBatch(**isa, image, level.data(), reachable.data(), channels, batch * pixels,
                       out.data(), Backwards());
    if (out != bytes_bits) return Differs(**isa, "binarize bytes" + text);
    out.assign(levels_bits.size(), ~0u);
    QuantizeLevelsBatch(**isa, x.data(), levels.data(), bits, batch, channels, pixels, out.data(),
                        Backwards());
    if (out != levels_bits) return Differs(**isa, "levels" + text);
  }
  return "";
}

// No unit has kernels of its own.
std::string Pool(Bytes* bytes) {
  const Axis columns = bytes->SmallAxis();
  const int64_t words = bytes->In(1, 4), rows = bytes->In(0, 4);
  const int64_t width = Extent(bytes, columns, 40);
  const int64_t out_width =
      OutputExtent(columns, width, bytes->Flag() ? Rounding::kCeil : Rounding::kFloor);
  const Words image = RandomBits(rows * width, 32 * words);
  std::vector<const uint32_t*> starts;
  for (int64_t row = 0; row < rows; ++row) starts.push_back(image.data() + row * width * words);
  Words out(Size(out_width * words), ~0u), expected(out.size(), 0u);
  for (int64_t i = 0; i < out_width * words; ++i) {
    for (int64_t tap = 0; tap < columns.kernel; ++tap) {
      const int64_t at = i / words * columns.stride - columns.pad_begin + tap * columns.dilation;
      if (at < 0 || at >= width) continue;
      for (const uint32_t* row : starts) expected[Size(i)] |= row[at * words + i % words];
    }
  }
  PoolBits({starts.data(), rows, words, width, columns, out_width, out.data()});
  return out == expected ? "" : "pool" + Text({words, rows, width, out_width});
}

// ---- layers of floats ------------------------------------------------------------------------

struct DirectCase {
  DirectSpec spec;
  int64_t batch;
  int64_t height = 0, width = 0, out_height = 0, out_width = 0;
  Floats weights = {}, bias = {}, threshold = {};

  Floats Run(const Isa& isa, const ImageBatch& images, const float* levels) const {
    const DirectConvDriver driver(isa, spec, weights.data(), bias.data(), nullptr, levels);
    Floats out(Size(batch * out_height * out_width * spec.out_channels), -1e9f);
    driver.Run(images, out.data(), Backwards());
    return out;
  }
  Words RunToBits(const Isa& isa, const ImageBatch& images, const float* levels) const {
    const DirectConvDriver driver(isa, spec, weights.data(), bias.data(), threshold.data(), levels);
    Words out(Size(batch * out_height * out_width * WordsForBits(spec.out_channels)), ~0u);
    driver.Run(images, out.data(), Backwards());
    return out;
  }
};

// The largest sum in each window of the pool; of NaN and of zeros, the earlier one counts.
Floats DirectReference(const DirectCase& one, const Floats& x) {
  const DirectSpec& spec = one.spec;
  const int64_t rows = OutputExtent(spec.height, one.height);
  const int64_t columns = OutputExtent(spec.width, one.width);
  const auto sum = [&](int64_t n, int64_t o, int64_t y, int64_t x_at) {
    float acc = one.bias[Size(o)];
    for (int64_t k = 0; k < spec.taps(); ++k) {
      const int64_t i = k / spec.width.kernel % spec.height.kernel, j = k % spec.width.kernel;
      const int64_t c = k / spec.width.kernel / spec.height.kernel;
      const int64_t row = y * spec.height.stride - spec.height.pad_begin + i * spec.height.dilation;
      const int64_t at = x_at * spec.width.stride - spec.width.pad_begin + j * spec.width.dilation;
      const bool inside = row >= 0 && row < one.height && at >= 0 && at < one.width;
      const float value =
          inside ? x[Size(((n * spec.channels + c) * one.height + row) * one.width + at)] : 0.0f;
      acc += value * one.weights[Size(o * spec.taps() + k)];
    }
    return acc;
  };
  Floats out;
  for (int64_t n = 0; n < one.batch; ++n) {
    for (int64_t o = 0; o < spec.out_channels; ++o) {
      for (int64_t pixel = 0; pixel < one.out_height * one.out_width; ++pixel) {
        bool first = true;
        float most = 0;
        const Axis &tall = spec.pool_height, &wide = spec.pool_width;
        for (int64_t i = 0; i < tall.kernel * wide.kernel; ++i) {
          const int64_t y = pixel / one.out_width * tall.stride - tall.pad_begin + i / wide.kernel;
          const int64_t at = pixel % one.out_width * wide.stride - wide.pad_begin + i % wide.kernel;
          if (y < 0 || y >= rows || at < 0 || at >= columns) continue;
          const float value = sum(n, o, y, at);
          if (first || value > most) most = value;
          first = false;
        }
        out.push_back(most);
      }
    }
  }
  return out;
}

std::string Direct(Bytes* bytes, const Isas& isas) {
  const auto pool = [&] {
    const int64_t kernel = bytes->Flag() ? bytes->In(1, 4) : 1;
    return Axis{kernel, bytes->In(1, 3), 1, bytes->In(0, kernel - 1), bytes->In(0, kernel - 1)};
  };
  DirectCase one{{bytes->In(1, 5), bytes->In(1, bytes->Flag() ? 80 : 9), bytes->SmallAxis(),
                  bytes->SmallAxis(), pool(), pool()},
                 bytes->In(1, 2)};
  if (bytes->Flag()) one.spec.height = one.spec.pool_height = kPoint;
  const DirectSpec& spec = one.spec;
  const auto extent = [&](const Axis& axis, const Axis& over) {
    int64_t size = bytes->In(1, bytes->Flag() ? 60 : 12);
    while (OutputExtent(axis, size) == 0 || OutputExtent(over, OutputExtent(axis, size)) == 0)
      ++size;
    return size;
  };
  one.height = extent(spec.height, spec.pool_height);
  one.width = extent(spec.width, spec.pool_width);
  one.out_height = OutputExtent(spec.pool_height, OutputExtent(spec.height, one.height));
  one.out_width = OutputExtent(spec.pool_width, OutputExtent(spec.width, one.width));
  const int64_t pixels = one.out_height * one.out_width, words = WordsForBits(spec.out_channels);
  if (one.batch * pixels * spec.out_channels * spec.taps() * spec.pool_height.kernel *
          spec.pool_width.kernel >
      kMaxChecked) {
    return "";
  }
  const bool integers = bytes->Flag();
  one.weights = bytes->Numbers(spec.out_channels * spec.taps(), integers, false);
  one.bias = bytes->Numbers(spec.out_channels, integers, false);
  one.threshold = bytes->Numbers(spec.out_channels, integers, true);
  // Images of bytes, and what they stand for: a line, as most do, or anything.
  const int64_t plane = one.height * one.width;
  const Words random = RandomBits(one.batch * spec.channels, 8 * plane);
  std::vector<uint8_t> image(
      reinterpret_cast<const uint8_t*>(random.data()),
      reinterpret_cast<const uint8_t*>(random.data()) + one.batch * spec.channels * plane);
  Floats levels = bytes->Numbers(spec.channels * kByteValues, integers, bytes->In(0, 7) == 7);
  if (bytes->Flag()) {
    const Floats ends = bytes->Numbers(2, integers, false);
    for (size_t i = 0; i < levels.size(); ++i) {
      levels[i] = ends[0] + static_cast<float>(i % kByteValues) * (integers ? 1 : ends[1]);
    }
  }
  Floats x(image.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = levels[i / Size(plane) % Size(spec.channels) * kByteValues + image[i]];
  }
  const bool last = bytes->Flag();
  if (last) {
    const std::vector<uint8_t> planes = image;
    for (size_t i = 0; i < image.size(); ++i) {
      const size_t c = i % Size(spec.channels), p = i / Size(spec.channels);
      image[i] =
          planes[(p / Size(plane) * Size(spec.channels) + c) * Size(plane) + p % Size(plane)];
    }
  }
  const ImageBatch floats{x.data(), nullptr, false, one.batch, one.height, one.width};
  const ImageBatch packed{nullptr, image.data(), last, one.batch, one.height, one.width};
  const std::string text =
      "direct" + Text({spec.channels, spec.out_channels, one.batch, one.height, one.width});
  const Floats expected = integers ? DirectReference(one, x) : Floats();
  for (const Isa* isa : isas) {
    const Floats out = one.Run(*isa, floats, nullptr);
    if (integers && !SameNumbers(out, expected)) return Differs(*isa, text);
    const Floats of_bytes = one.Run(*isa, packed, levels.data());
    if (!SameNumbers(of_bytes, out)) return Differs(*isa, text + " of bytes");
    const Words bits = one.RunToBits(*isa, floats, nullptr);
    for (int64_t n = 0; n < one.batch; ++n) {
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t o = 0; o < 32 * words; ++o) {
          // A window with a NaN has the bit of its other sums, which the pool of floats may hide.
          const bool used = o < spec.out_channels;
          const float value = used ? out[Size((n * spec.out_channels + o) * pixels + p)] : 0;
          if (std::isnan(value)) continue;
          const bool reached = used && value >= one.threshold[Size(o)];
          if (Bit(bits, n * pixels + p, words, o) != reached) {
            return Differs(*isa, text + " to bits");
          }
        }
      }
    }
    if (one.RunToBits(*isa, packed, levels.data()) != bits) {
      return Differs(*isa, text + " of bytes to bits");
    }
  }
  return "";
}

std::string Linear(Bytes* bytes, const Isas& isas) {
  const int64_t batch = bytes->In(1, bytes->Flag() ? 70 : 5);
  const int64_t channels = bytes->In(1, 400), outputs = bytes->In(1, 120);
  const Floats x = bytes->Numbers(batch * channels, true, true);
  const Floats weights = bytes->Numbers(channels * outputs, true, false);
  const Floats bias = bytes->Numbers(outputs, true, true);
  Floats expected;
  for (int64_t i = 0; i < batch * outputs; ++i) {
    float sum = bias[Size(i % outputs)];
    for (int64_t c = 0; c < channels; ++c) {
      const float value = x[Size(i / outputs * channels + c)];
      if (!(value <= 0)) sum += value * weights[Size(c * outputs + i % outputs)];
    }
    expected.push_back(sum);
  }
  for (const Isa* isa : isas) {
    Floats out(expected.size(), -1e9f);
    ReluLinearBatch(*isa,
                    {x.data(), batch, channels, weights.data(), bias.data(), outputs, out.data()},
                    Backwards());
    if (!SameNumbers(out, expected)) {
      return Differs(*isa, "linear" + Text({batch, channels, outputs}));
    }
  }
  return "";
}

}  // namespace

std::string RunFuzzCase(const uint8_t* data, size_t size, const std::vector<const Isa*>& isas) {
  Bytes bytes(data, size);
  const auto kind = static_cast<FuzzKind>(bytes.In(0, kFuzzKinds - 1));
  SeedRandom(static_cast<uint32_t>(bytes.In(0, 65535)));
  switch (kind) {
    case FuzzKind::kGeometry:
      return Geometry(&bytes);
    case FuzzKind::kConv:
      return Conv(&bytes, isas);
    case FuzzKind::kBases:
      return Bases(&bytes, isas);
    case FuzzKind::kMatMul:
      return MatMul(&bytes, isas);
    case FuzzKind::kBinarize:
      return Binarize(&bytes, isas);
    case FuzzKind::kPool:
      return Pool(&bytes);
    case FuzzKind::kDirect:
      return Direct(&bytes, isas);
    case FuzzKind::kLinear:
      return Linear(&bytes, isas);
  }
  return "";
}

}  // namespace bnn_deploy::tests
