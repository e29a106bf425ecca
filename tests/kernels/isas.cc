// Every unit that this machine can run against the scalar one, and that against the formulas: at
// every length up to two of the widest vectors plus one, beside corruptions that must show.

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "check.h"
#include "conv_case.h"
#include "drivers/binarize.h"
#include "kernels/dispatch.h"

namespace bnn_deploy::tests {
namespace {

constexpr int64_t kVectorBits = 512;
constexpr int64_t kVectorBytes = 64;
constexpr int64_t kVectorFloats = 16;

const Isa& Scalar() { return *AvailableIsas().back(); }

// body(isa) for all units but the scalar one.
template <typename Body>
void ForEachVectorIsa(const Body& body) {
  for (const Isa* isa : AvailableIsas()) {
    if (isa != &Scalar()) body(*isa);
  }
}

void CompareWithScalar(const ConvCase& one, Epilogue epilogue) {
  const ConvResult expected = one.Run(Scalar(), epilogue);
  ForEachVectorIsa([&](const Isa& isa) {
    CHECK_IN(Same(one.Run(isa, epilogue), expected), isa.name + (": " + one.Text(epilogue)));
  });
}

#if defined(__x86_64__) && !defined(__clang__)
// GCC's own reading of CPUID; zig's clang has none in its runtime library.
TEST(TheUnitsAreThoseThatTheCompilersLibraryFinds) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512bw = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
  const bool avx512 =
      avx512bw && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni");
  std::string expected, found;
  if (avx512) expected += "avx512 ";
  if (avx512bw) expected += "avx512bw ";
  if (avx2) expected += "avx2 ";
  for (const Isa* isa : AvailableIsas()) found += std::string(isa->name) + " ";
  CHECK_IN(found == expected + "scalar ", found);
}
#endif

TEST(TheseUnitsRun) {
  for (const Isa* isa : AvailableIsas()) std::printf("isa %s\n", isa->name);
  CHECK(std::string(Scalar().name) == "scalar");
}

std::vector<ConvCase> ManyKinds() {
  const Axis strided{3, 2, 1, 1, 0}, dilated{2, 1, 2, 2, 1};
  std::vector<ConvCase> cases;
  cases.push_back({{33, 1, 5, kPadded3, kPadded3, {}}, 2, 5, 4});
  cases.push_back({{33, 1, 5, kPadded3, kPadded3, RandomBits(1, 33)}, 2, 5, 4});
  cases.push_back({{20, 2, 6, strided, dilated, {}}, 2, 7, 6});
  cases.push_back({{20, 2, 6, strided, dilated, RandomBits(1, 20)}, 2, 7, 6});
  cases.push_back({{128, 2, 64, kPoint, kPadded3, {}}, 1, 1, 9});
  cases.push_back({{64, 1, 7, kPadded3, kPadded3, {}}, 2, 17, 16});  // large enough for planes
  cases.push_back({{40, 2, 4, strided, kPadded3, {}}, 1, 40, 17});   // likewise
  cases.push_back({{40, 1, 70, kPoint, kPoint, {}}, 1, 32, 32});     // rows 4096 bytes apart
  cases.push_back({{300, 1, 65, kPoint, kPoint, {}}, 3, 1, 1});
  return cases;
}

std::vector<ConvCase> Levels() {
  std::vector<ConvCase> cases;
  for (int64_t bits = 1; bits <= kMaxLevelBits; ++bits) {
    cases.push_back({{40, 1, 9, kPadded3, kPadded3, {}, bits}, 2, 5, 4});
    cases.push_back({{20, 2, 6, {3, 2, 1, 1, 0}, {2, 1, 2, 2, 1}, {}, bits}, 1, 7, 6});
  }
  return cases;
}

TEST(ScalarConvolutionsFollowTheFormulas) {
  for (const ConvCase& one : ManyKinds()) {
    for (const Epilogue epilogue : kEpilogues) {
      CHECK_IN(Same(one.Run(Scalar(), epilogue), one.Reference(epilogue)), one.Text(epilogue));
    }
  }
  for (const ConvCase& one : Levels()) {
    CHECK_IN(Same(one.Run(Scalar(), Epilogue::kFloat), one.Reference(Epilogue::kFloat)),
             one.Text(Epilogue::kFloat));
  }
}

TEST(ConvolutionsOfAllKinds) {
  for (const ConvCase& one : ManyKinds()) {
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(one, epilogue);
  }
  for (const ConvCase& one : Levels()) CompareWithScalar(one, Epilogue::kFloat);
}

// Random floats never meet: here all numbers are small integers.
TEST(ValuesThatEqualTheirThresholds) {
  for (ConvCase one : ManyKinds()) {
    for (float& value : one.scale) value = 1.0f;
    for (float& value : one.bias) value = 0.0f;
    for (float& value : one.residual) value = std::floor(2.0f * value);
    for (float& value : one.float_threshold) value = std::floor(8.0f * value);
    const ConvResult expected = one.Reference(Epilogue::kResidual);
    for (const Isa* isa : AvailableIsas()) {
      CHECK_IN(Same(one.Run(*isa, Epilogue::kResidual), expected), isa->name);
    }
  }
}

// Input channels of windows that units may count otherwise, of an odd number of words.
constexpr int64_t kWide = 32 * 33;

TEST(EveryTailOfInputChannels) {
  for (int64_t channels = 1; channels <= 2 * kVectorBits + 1; ++channels) {
    const ConvCase one({channels, 1, 3, kPoint, kPoint, {}}, 1, 1, 2);
    CompareWithScalar(one, Epilogue::kFloat);
    if (channels % 32 != 1) continue;
    const ConvCase window({channels, 1, 9, kPadded3, kPadded3, {}}, 1, 3, 3);
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(window, epilogue);
  }
}

TEST(EveryTailOfOutputChannels) {
  for (int64_t channels = 1; channels <= 2 * kTileChannels + 1; ++channels) {
    const ConvCase one({40, 1, channels, kPoint, kPoint, {}}, 1, 3, 3);
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(one, epilogue);
    const ConvCase rows({40, 1, channels, kPoint, kPoint, {}}, 3, 1, 1);  // a linear layer
    CompareWithScalar(rows, Epilogue::kFloat);
    const ConvCase wide({kWide + 32 * (channels % 2), 1, channels, kPoint, kPoint, {}}, 1, 3, 3);
    CompareWithScalar(wide, Epilogue::kFloat);
    CompareWithScalar(wide, Epilogue::kBits);
  }
}

TEST(EveryTailOfPixels) {
  for (int64_t pixels = 1; pixels <= 2 * kTilePixels + 1; ++pixels) {
    const ConvCase one({40, 1, 9, kPoint, kPoint, {}}, 1, 1, pixels);
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(one, epilogue);
    CompareWithScalar(ConvCase({40, 1, 9, kPoint, kPoint, {}}, pixels, 1, 1), Epilogue::kFloat);
    if (pixels > 16) continue;
    const ConvCase wide({kWide, 1, 2 * kTileChannels - 9, kPoint, kPoint, {}}, 1, 1, pixels);
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(wide, epilogue);
  }
}

// Images that are large enough for units which take pixels as lanes.
TEST(EveryTailOfPixelsInPlanes) {
  for (int64_t tail = 0; tail < kTilePixels; ++tail) {
    const ConvCase one({40, 1, 2 + tail % 6, kPoint, kPadded3, {}}, 1, 1, 4 * kTilePixels + tail);
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(one, epilogue);
    const ConvCase wide({kWide + 32 * (tail % 2), 1, 2 + tail % 6, kPoint, kPadded3, {}}, 1, 1,
                        4 * kTilePixels + tail);
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(wide, epilogue);
  }
}

TEST(EveryLengthOfWindowsInPlanes) {
  int64_t most = 0;
  for (const Isa* isa : AvailableIsas()) most = std::max(most, isa->most_plane_words);
  for (int64_t words = 1; words <= most + 1; ++words) {
    const ConvCase one({32 * words - 5, 1, 3, kPoint, kPoint, {}}, 1, 3, 2 * kTilePixels);
    for (const Epilogue epilogue : kEpilogues) CompareWithScalar(one, epilogue);
  }
}

void CompareWithReference(const ConvCase& one) {
  for (const Epilogue epilogue : kEpilogues) {
    const ConvResult expected = one.Reference(epilogue);
    for (const Isa* isa : AvailableIsas()) {
      CHECK_IN(Same(one.Run(*isa, epilogue), expected), isa->name + (": " + one.Text(epilogue)));
      if (epilogue == Epilogue::kBits) continue;  // a threshold can hide a flipped weight
      ConvCase flipped = one;
      flipped.weights.front() ^= 1;
      CHECK_IN(!Same(flipped.Run(*isa, epilogue), expected), isa->name);
    }
  }
}

// Groups of one channel, which share words.
TEST(DepthwiseLayersAtEveryTail) {
  const Axis strided{3, 2, 1, 1, 0}, dilated{2, 1, 2, 2, 1};
  for (int64_t channels = 2; channels <= 2 * kTileChannels + 1; ++channels) {
    CompareWithReference(ConvCase({channels, channels, channels, kPoint, kPadded3, {}}, 2, 1, 3));
  }
  for (const int64_t channels : {5, 64, 97}) {
    for (const auto& pad : {std::vector<uint32_t>(), RandomBits(1, channels)}) {
      CompareWithReference(
          ConvCase({channels, channels, channels, kPadded3, kPadded3, pad}, 2, 9, 8));
      CompareWithReference(
          ConvCase({channels, channels, channels, strided, dilated, pad}, 2, 9, 8));
    }
    CompareWithReference(ConvCase({channels, channels, channels, kPoint, kPoint, {}}, 1, 8, 9));
  }
  // The most taps that a byte counts, and one more.
  for (const int64_t taps : {kMaxDepthwiseTaps, kMaxDepthwiseTaps + 1}) {
    ConvCase one({3, 3, 3, kPoint, {taps, 1, 1, 0, 0}, {}}, 1, 1, taps + 1);
    std::fill(one.weights.begin(), one.weights.end(), 1u);
    std::fill(one.input.begin(), one.input.end(), 0u);
    CompareWithReference(one);
  }
}

// The same check, with one bit of the weights flipped.
TEST(AFlippedWeightShows) {
  for (const ConvCase& one : ManyKinds()) {
    for (const Epilogue epilogue : {Epilogue::kFloat, Epilogue::kResidual, Epilogue::kInPlace}) {
      const ConvResult expected = one.Run(Scalar(), epilogue);
      for (const Isa* isa : AvailableIsas()) {
        ConvCase flipped = one;
        flipped.weights.back() ^= 1;
        CHECK_IN(!Same(flipped.Run(*isa, epilogue), expected), isa->name);
      }
    }
  }
}

// The corruption is a threshold that is never reached.
TEST(AMovedThresholdShows) {
  for (const ConvCase& one : ManyKinds()) {
    const ConvResult expected = one.Run(Scalar(), Epilogue::kBits);
    for (const Isa* isa : AvailableIsas()) {
      ConvCase moved = one;
      for (int32_t& threshold : moved.threshold) threshold = 1 << 23;
      CHECK_IN(!Same(moved.Run(*isa, Epilogue::kBits), expected), isa->name);
    }
  }
}

struct Floats {
  Floats(int64_t channels, int64_t pixels)
      : channels(channels),
        pixels(pixels),
        x(RandomFloats(channels * pixels, -1.0f, 1.0f)),
        threshold(RandomFloats(channels, -0.5f, 0.5f)),
        scale(RandomFloats(channels, -2.0f, 2.0f)),
        shift(RandomFloats(channels, -1.0f, 1.0f)) {
    for (size_t i = 0; i < x.size(); i += 3) x[i] = threshold[i / static_cast<size_t>(pixels)];
    if (x.size() > 4) x[4] = std::nanf("");
  }

  std::vector<uint32_t> Bits() const {
    return std::vector<uint32_t>(static_cast<size_t>(pixels * WordsForBits(channels)), ~0u);
  }
  std::vector<uint32_t> Binarize(const Isa& isa) const {
    std::vector<uint32_t> out = Bits();
    BinarizeBatch(isa, x.data(), threshold.data(), 1, channels, pixels, out.data(), OneThread());
    return out;
  }
  // X is then [pixels][channels].
  std::vector<uint32_t> BinarizeRows(const Isa& isa) const {
    std::vector<uint32_t> out = Bits();
    BinarizeRowsBatch(isa, x.data(), threshold.data(), channels, pixels, out.data(), OneThread());
    return out;
  }
  ConvResult AbsMean(const Isa& isa) const {
    ConvResult out{std::vector<float>(static_cast<size_t>(pixels), -1.0f), Bits()};
    BinarizeAbsMeanBatch(isa, x.data(), threshold.data(), scale.data(), shift.data(), 1, channels,
                         pixels, out.bits.data(), out.floats.data(), OneThread());
    return out;
  }

  int64_t channels;
  int64_t pixels;
  std::vector<float> x;
  std::vector<float> threshold;
  std::vector<float> scale;
  std::vector<float> shift;
};

// The orders of summation differ: see BinarizeAbsMeanArgs.
bool MeansAgree(const ConvResult& a, const ConvResult& b, int64_t channels) {
  const double terms = std::fmin(channels, static_cast<double>(channels) / 32 + 40);
  for (size_t i = 0; i < a.floats.size(); ++i) {
    if (std::isnan(a.floats[i]) != std::isnan(b.floats[i])) return false;
    const double difference = std::fabs(double{a.floats[i]} - double{b.floats[i]});
    if (difference > 2 * terms * std::ldexp(1.0, -24) * b.floats[i]) return false;
  }
  return a.bits == b.bits;
}

TEST(ScalarBinarizeFollowsTheFormula) {
  const Floats one(37, 11);
  const std::vector<uint32_t> planes = one.Binarize(Scalar());
  const std::vector<uint32_t> rows = one.BinarizeRows(Scalar());
  for (int64_t p = 0; p < 11; ++p) {
    for (int64_t c = 0; c < 64; ++c) {
      const auto bit = [&](const std::vector<uint32_t>& words) {
        return words[static_cast<size_t>(p * 2 + c / 32)] >> (c % 32) & 1;
      };
      const auto expected = [&](int64_t at) {
        return c < 37 && one.x[static_cast<size_t>(at)] >= one.threshold[static_cast<size_t>(c)];
      };
      CHECK(bit(planes) == (expected(c * 11 + p) ? 1u : 0u));
      CHECK(bit(rows) == (expected(p * 37 + c) ? 1u : 0u));
    }
  }
}

void CompareBinarize(const Floats& one) {
  const std::string text = std::to_string(one.channels) + " x " + std::to_string(one.pixels);
  const ConvResult mean = one.AbsMean(Scalar());
  ForEachVectorIsa([&](const Isa& isa) {
    CHECK_IN(one.Binarize(isa) == one.Binarize(Scalar()), isa.name + (" " + text));
    CHECK_IN(one.BinarizeRows(isa) == one.BinarizeRows(Scalar()), isa.name + (" " + text));
    CHECK_IN(MeansAgree(one.AbsMean(isa), mean, one.channels), isa.name + (" " + text));
  });
}

TEST(BinarizeAtEveryTail) {
  for (int64_t pixels = 1; pixels <= 8 * kVectorFloats + 1; ++pixels) {
    CompareBinarize(Floats(5, pixels));
  }
  for (int64_t channels = 1; channels <= 2 * kVectorFloats + 65; ++channels) {
    CompareBinarize(Floats(channels, 5));
  }
}

TEST(AMovedFloatThresholdShows) {
  for (const Isa* isa : AvailableIsas()) {
    Floats one(37, 19);
    const std::vector<uint32_t> planes = one.Binarize(Scalar());
    const std::vector<uint32_t> rows = one.BinarizeRows(Scalar());
    const ConvResult mean = one.AbsMean(Scalar());
    Floats moved = one;
    moved.threshold[36] = 2.0f;
    CHECK_IN(moved.Binarize(*isa) != planes, isa->name);
    CHECK_IN(moved.BinarizeRows(*isa) != rows, isa->name);
    CHECK_IN(!MeansAgree(moved.AbsMean(*isa), mean, 37), isa->name);
    Floats scaled = one;
    scaled.shift[36] += 0.01f;
    CHECK_IN(!MeansAgree(scaled.AbsMean(*isa), mean, 37), isa->name);
  }
}

// x [pixels][channels] against levels of which some are never reached.
std::vector<uint32_t> BinarizeBytes(const Isa& isa, const std::vector<uint32_t>& random,
                                    int64_t channels, int64_t pixels, int step) {
  Buffer<uint8_t> level(RoundUp(channels, 64), 0);
  Buffer<uint32_t> reachable(WordsForBits(channels), 0u);
  for (int64_t c = 0; c < channels; ++c) {
    level.data()[c] = static_cast<uint8_t>(c * 37 + step);
    if (c % 5 != 0) reachable.data()[c / 32] |= 1u << (c % 32);
  }
  std::vector<uint32_t> out(static_cast<size_t>(pixels * WordsForBits(channels)), ~0u);
  BinarizeBytesBatch(isa, reinterpret_cast<const uint8_t*>(random.data()), level.data(),
                     reachable.data(), channels, pixels, out.data(), OneThread());
  return out;
}

TEST(BytesAtEveryTail) {
  constexpr int64_t kPixels = 5;
  for (int64_t channels = 1; channels <= 2 * kVectorBytes + 1; ++channels) {
    const std::vector<uint32_t> random = RandomBits(1, channels * kPixels * 8);
    const auto run = [&](const Isa& isa, int step) {
      return BinarizeBytes(isa, random, channels, kPixels, step);
    };
    ForEachVectorIsa([&](const Isa& isa) {
      CHECK_IN(run(isa, 0) == run(Scalar(), 0), isa.name + std::to_string(channels));
      if (channels >= 64) CHECK_IN(run(isa, 40) != run(Scalar(), 0), isa.name);
    });
  }
}

TEST(LevelsAsPlanes) {
  for (int64_t bits = 1; bits <= kMaxLevelBits; ++bits) {
    constexpr int64_t kChannels = 35, kPixels = 19, kWords = 2;
    const Floats one(kChannels, kPixels);
    const int64_t count = (1 << bits) - 1;
    std::vector<float> thresholds;
    for (int64_t i = 0; i < count; ++i) {
      for (const float first : one.threshold) {
        thresholds.push_back(first + static_cast<float>(i) * 0.1f);
      }
    }
    for (const Isa* isa : AvailableIsas()) {
      std::vector<uint32_t> out(static_cast<size_t>(kPixels * bits * kWords), ~0u);
      QuantizeLevelsBatch(*isa, one.x.data(), thresholds.data(), bits, 1, kChannels, kPixels,
                          out.data(), OneThread());
      for (int64_t p = 0; p < kPixels; ++p) {
        for (int64_t c = 0; c < kChannels; ++c) {
          int64_t expected = 0;
          for (int64_t i = 0; i < count; ++i) {
            expected += one.x[static_cast<size_t>(c * kPixels + p)] >=
                        thresholds[static_cast<size_t>(i * kChannels + c)];
          }
          int64_t level = 0;
          for (int64_t j = 0; j < bits; ++j) {
            const auto word = static_cast<size_t>((p * bits + j) * kWords + c / 32);
            level += int64_t{out[word] >> (c % 32) & 1} << j;
          }
          CHECK_IN(level == expected, isa->name);
        }
      }
    }
  }
}

}  // namespace
}  // namespace bnn_deploy::tests
