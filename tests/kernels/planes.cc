// The plans and copies for units that take pixels as lanes, on machines without such a unit, too.

#include <algorithm>
#include <cstring>

#include "check.h"
#include "conv_case.h"
#include "drivers/conv/input.h"
#include "kernels/dispatch.h"

namespace bnn_deploy::tests {
namespace {

template <typename Number>
void SplitRow(const SplitRowArgs& args) {
  constexpr int64_t kNumbers = 4 / static_cast<int64_t>(sizeof(Number));  // of a word
  auto* const planes = static_cast<Number*>(args.planes);
  for (int64_t w = 0; w < args.words; ++w) {
    for (int64_t x = 0; x < args.kernel; ++x) {
      for (int64_t i = 0; i < args.out_width; ++i) {
        const uint32_t word = args.row[(i * args.stride + x * args.dilation) * args.words + w];
        for (int64_t b = 0; b < kNumbers; ++b) {
          planes[((w * args.kernel + x) * kNumbers + b) * args.plane_size + i] =
              static_cast<Number>(word >> (8 * b));
        }
      }
    }
  }
}

// The scalar unit with a split_row, into words or bytes; convolve_planes is never called here.
Isa PlanesUnit(int64_t plane_bytes) {
  Isa isa = *AvailableIsas().back();
  isa.gathers = false;
  isa.granule = 4;
  isa.split_row = plane_bytes == 4 ? SplitRow<uint32_t> : SplitRow<uint8_t>;
  isa.convolve_planes = [](const ConvolvePlanesArgs&) {};
  isa.plane_bytes = plane_bytes;
  isa.plane_channels = 1;
  isa.most_plane_words = 128;
  return isa;
}

struct Prepared {
  Prepared(const Isa& isa, const ConvCase& one)
      : layer(isa, one.spec),
        tap_bits(layer, one.weights.data()),
        plan(MakeConvPlan(layer, tap_bits, {}, one.height, one.width)) {}
  ConvLayer layer;
  TapBits tap_bits;
  std::shared_ptr<const ConvPlan> plan;
};

std::vector<ConvCase> Cases() {
  const Axis strided{3, 2, 1, 1, 0}, dilated{2, 1, 2, 2, 1};
  std::vector<ConvCase> cases;
  cases.push_back({{64, 1, 7, kPadded3, kPadded3, {}}, 2, 17, 16});
  cases.push_back({{40, 2, 4, strided, dilated, {}}, 2, 41, 17});
  cases.push_back({{33, 1, 70, kPadded3, {3, 2, 1, 1, 1}, RandomBits(1, 33)}, 1, 33, 31});
  cases.push_back({{32, 1, 3, kPadded3, kPoint, {}}, 1, 300, 1});
  cases.push_back({{32, 1, 3, kPoint, kPadded3, {}}, 1, 1, 321});
  return cases;
}

TEST(ConstantsOfPatternsAreThoseOfPixels) {
  const Isa isa = PlanesUnit(4);
  for (const ConvCase& one : Cases()) {
    const Prepared prepared(isa, one);
    const ConvPlan& plan = *prepared.plan;
    CHECK_IN(plan.uses_planes, one.Text(Epilogue::kFloat));
    const int64_t pixels = plan.out_height * plan.out_width;
    for (int64_t first = 0; first < pixels; first += kTilePixels) {
      uint8_t patterns[kTilePixels];
      const int64_t count = std::min(kTilePixels, pixels - first);
      plan.CopyPatterns(first, count, patterns);
      for (int64_t p = 0; p < count; ++p) {
        const int64_t row = plan.row_pattern[static_cast<size_t>((first + p) / plan.out_width)];
        const auto at = static_cast<size_t>(row * plan.out_width + (first + p) % plan.out_width);
        for (int64_t o = 0; o < prepared.layer.table_width; ++o) {
          const float expected = plan.products[at] - 2.0f * static_cast<float>(plan.initial[at][o]);
          CHECK_IN(plan.constant.data()[o * kMaxPatterns + patterns[p]] == expected,
                   one.Text(Epilogue::kFloat));
        }
      }
    }
  }
}

// The bits of a tap of an output pixel in the split input, gathered back from the input itself.
void CheckTaps(int64_t plane_bytes) {
  const Isa isa = PlanesUnit(plane_bytes);
  const int64_t numbers = 4 / plane_bytes;
  for (const ConvCase& one : Cases()) {
    const Prepared prepared(isa, one);
    const ConvLayer& layer = prepared.layer;
    const ConvPlan& plan = *prepared.plan;
    Buffer<uint32_t> kept;
    Scratch<uint32_t> scratch(&kept);
    const uint32_t* const planes = SplitPlanes(
        layer, plan, {one.input.data(), one.batch, one.height, one.width}, OneThread(), &scratch);
    const Axis& rows = one.spec.height;
    const Axis& columns = one.spec.width;
    const int64_t group_size =
        layer.group_words * columns.kernel * plan.plane_height * plan.out_width;
    const int64_t pixels = plan.out_height * plan.out_width;
    const auto bit = [](const uint32_t* words, int64_t i) { return words[i / 32] >> (i % 32) & 1; };
    int64_t wrong = 0;
    for (int64_t plane = 0; plane < one.batch * one.spec.group; ++plane) {
      for (int64_t k = 0; k < layer.window_words; ++k) {
        const int64_t tap = k / layer.group_words;
        for (int64_t p = 0; p < pixels; ++p) {
          uint32_t word = 0;
          for (int64_t b = 0; b < numbers; ++b) {
            const int64_t offset = plan.plane_offsets[static_cast<size_t>(k * numbers + b)] + p;
            const auto* const group = reinterpret_cast<const uint8_t*>(planes + plane * group_size);
            uint32_t number = 0;
            std::memcpy(&number, group + offset * plane_bytes, static_cast<size_t>(plane_bytes));
            word |= number << (8 * b);
          }
          const int64_t y = p / plan.out_width * rows.stride - rows.pad_begin +
                            tap / columns.kernel * rows.dilation;
          const int64_t x = p % plan.out_width * columns.stride - columns.pad_begin +
                            tap % columns.kernel * columns.dilation;
          const bool inside = y >= 0 && y < one.height && x >= 0 && x < one.width;
          for (int64_t i = 0; i < 32; ++i) {
            const int64_t c = k % layer.group_words * 32 + i;
            const int64_t channel = plane % one.spec.group * layer.group_channels + c;
            const int64_t image = plane / one.spec.group;
            const uint32_t* const at =
                one.input.data() + ((image * one.height + y) * one.width + x) * layer.pixel_words;
            uint32_t expected = 0;
            if (c >= layer.group_channels) {
              expected = 0;
            } else if (inside) {
              expected = bit(at, channel);
            } else if (!one.spec.pad_bits.empty()) {
              expected = bit(one.spec.pad_bits.data(), channel);
            }
            wrong += (word >> i & 1) != expected;
          }
        }
      }
    }
    CHECK_IN(wrong == 0, one.Text(Epilogue::kFloat));
  }
}

TEST(ATapOfAllWindowsIsOneArrayOfWords) { CheckTaps(4); }

TEST(ATapOfAllWindowsIsFourArraysOfBytes) { CheckTaps(1); }

}  // namespace
}  // namespace bnn_deploy::tests
