#include <algorithm>
#include <cstring>
#include <set>

#include "check.h"
#include "conv_case.h"
#include "kernels/dispatch.h"

namespace bnn_deploy::tests {
namespace {

// The scalar unit but for the layout of its weights.
Isa WithLayout(int64_t channel_block, int64_t granule, bool gathers, bool blocks_together) {
  Isa isa = *AvailableIsas().back();
  isa.channel_block = channel_block;
  isa.granule = granule;
  isa.gathers = gathers;
  isa.blocks_together = blocks_together;
  return isa;
}

ConvSpec RowOfThree(int64_t out_channels) {
  return {32, 1, out_channels, kPoint, {3, 1, 1, 0, 0}, {}};
}

std::vector<uint32_t> Words(const Buffer<uint32_t>& packed, const ConvLayer& layer) {
  return {packed.data(), packed.data() + layer.weights_size};
}

// Weight 10 * o + k is word k of output channel o.
const uint32_t kThreeChannels[] = {10, 11, 12, 20, 21, 22, 30, 31, 32};

TEST(GranulesOfABlockAlternate) {
  // A run of 12 bytes is a granule of 8 and half a one; the second block lacks a channel.
  const Isa isa = WithLayout(2, 8, false, false);
  const ConvLayer layer(isa, RowOfThree(3));
  CHECK(Words(PackWeights(layer, kThreeChannels), layer) ==
        std::vector<uint32_t>({10, 11, 20, 21, 12, 22, 30, 31, 0, 0, 32, 0}));
}

TEST(BlocksTogetherAlternateToo) {
  const Isa isa = WithLayout(2, 8, false, true);
  const ConvLayer layer(isa, RowOfThree(3));
  CHECK(Words(PackWeights(layer, kThreeChannels), layer) ==
        std::vector<uint32_t>({10, 11, 20, 21, 30, 31, 0, 0, 12, 22, 32, 0}));
}

TEST(GatheredWindowsAreWholeGranules) {
  const Isa isa = WithLayout(2, 8, true, false);
  const ConvLayer layer(isa, RowOfThree(2));
  CHECK(layer.window_words == 4);
  CHECK(Words(PackWeights(layer, kThreeChannels), layer) ==
        std::vector<uint32_t>({10, 11, 20, 21, 12, 0, 22, 0}));
}

TEST(BytesOfManyChannelsAlternate) {
  for (const bool together : {false, true}) {
    const Isa isa = WithLayout(32, 1, false, together);
    for (const int64_t channels : {1, 8, 45, 64}) {
      const ConvLayer layer(isa, RowOfThree(channels));
      constexpr int64_t kWords = 3, kBytes = 4 * kWords;
      const std::vector<uint32_t> weights = RandomBits(channels * kWords, 32);
      const auto* const from = reinterpret_cast<const uint8_t*>(weights.data());
      const int64_t width = 32 * (together ? layer.tiles[0].blocks : 1);
      std::vector<uint8_t> expected(static_cast<size_t>(layer.weights_size) * 4, 0);
      for (int64_t o = 0; o < channels; ++o) {
        for (int64_t k = 0; k < kBytes; ++k) {
          expected[static_cast<size_t>(o / width * width * kBytes + k * width + o % width)] =
              from[o * kBytes + k];
        }
      }
      const Buffer<uint32_t> packed = PackWeights(layer, weights.data());
      CHECK(std::memcmp(packed.data(), expected.data(), expected.size()) == 0);
      expected.back() ^= 1;
      CHECK(std::memcmp(packed.data(), expected.data(), expected.size()) != 0);
    }
  }
}

TEST(PlaneWeightsOfATileLieTogether) {
  Isa isa = WithLayout(2, 4, false, false);
  isa.plane_channels = 6;
  const ConvLayer layer(isa, {32, 1, 8, kPoint, {2, 1, 1, 0, 0}, {}});
  const uint32_t weights[] = {10, 11, 20, 21, 30, 31, 40, 41, 50, 51, 60, 61, 70, 71, 80, 81};
  CHECK(PackPlaneWeights(layer, weights) ==
        std::vector<uint32_t>({10, 20, 30, 40, 50, 60, 11, 21, 31, 41, 51, 61, 70, 80, 71, 81}));
}

TEST(PlaneWeightsOfBytesAreFourOfEach) {
  Isa isa = WithLayout(2, 4, false, false);
  isa.plane_channels = 2;
  isa.plane_bytes = 1;
  const ConvLayer layer(isa, {32, 1, 3, kPoint, kPoint, {}});
  const uint32_t weights[] = {0x04030201, 0x14131211, 0x24232221};
  CHECK(PackPlaneWeights(layer, weights) ==
        std::vector<uint32_t>({0x01010101, 0x11111111, 0x02020202, 0x12121212, 0x03030303,
                               0x13131313, 0x04040404, 0x14141414, 0x21212121, 0x22222222,
                               0x23232323, 0x24242424}));
}

TEST(PlaneWeightsOfPairsAreTheNibblesOfBoth) {
  Isa isa = WithLayout(2, 4, false, false);
  isa.plane_channels = 2;
  isa.plane_bytes = 1;
  isa.plane_pair_step = 6;
  const ConvLayer layer(isa, {32, 1, 3, kPoint, kPoint, {}});
  const uint32_t weights[] = {0x04030251, 0x141312a9, 0x24232221};
  CHECK(
      PackPlaneWeights(layer, weights) ==
      std::vector<uint32_t>({0x0a500910, 0x01000220, 0x01000330, 0x01000440, 0, 0,  // two channels
                             0x00200010, 0x00200020, 0x00200030, 0x00200040, 0, 0}));
}

TEST(TilesOfGroupsBeginAtWords) {
  const ConvLayer layer(*AvailableIsas().back(), {4, 2, 6, kPoint, kPoint, {}});
  CHECK(layer.tiles.size() == 2);
  CHECK(layer.table_width == 64);
  const float values[] = {1, 2, 3, 4, 5, 6};
  const Buffer<float> packed = PackPerChannel(layer, values, -1.0f);
  for (int64_t o = 0; o < layer.table_width; ++o) {
    const int64_t lane = o % 32;
    const float expected = lane < 3 ? values[o / 32 * 3 + lane] : -1.0f;
    CHECK_IN(packed.data()[o] == expected, std::to_string(o));
  }
}

// Every unit: no two weights share a bit, and none is lost.
TEST(EachWeightHasItsOwnBit) {
  for (const Isa* isa : AvailableIsas()) {
    for (const ConvSpec& spec :
         {ConvSpec{40, 1, 19, kPoint, {3, 1, 1, 0, 0}, {}}, ConvSpec{96, 1, 5, kPoint, kPoint, {}},
          ConvSpec{256, 2, 6, kPadded3, kPadded3, {}}}) {
      const ConvLayer layer(*isa, spec);
      const ConvCase data(spec, 1, 3, 3);
      std::vector<uint32_t> weights = data.weights;
      const std::vector<uint32_t> before = Words(PackWeights(layer, weights.data()), layer);
      std::set<std::pair<size_t, uint32_t>> seen;
      for (size_t i = 0; i < weights.size(); i += 7) {
        const uint32_t bit = 1u << (i % 8);
        weights[i] ^= bit;
        const std::vector<uint32_t> after = Words(PackWeights(layer, weights.data()), layer);
        weights[i] ^= bit;
        int changed = 0;
        for (size_t k = 0; k < after.size(); ++k) {
          changed += __builtin_popcount(after[k] ^ before[k]);
          if (after[k] != before[k]) seen.insert({k, after[k] ^ before[k]});
        }
        // An encoding may spread a bit.
        CHECK_IN(layer.encodes ? changed > 0 : changed == 1, isa->name);
      }
      CHECK_IN(layer.encodes || seen.size() == (weights.size() + 6) / 7, isa->name);
    }
  }
}

TEST(TapBitsCountsBoxes) {
  ConvSpec spec{72, 1, 3, kPadded3, {4, 1, 1, 0, 0}, {}};
  spec.depth = {2, 1, 1, 0, 0};
  const ConvLayer layer(*AvailableIsas().back(), spec);
  const std::vector<uint32_t> weights = RandomBits(3 * 2 * 3 * 4, 72);
  const TapBits tap_bits(layer, weights.data());
  const auto count_box = [&](int64_t o, const TapBox& box) {
    int32_t count = 0;
    for (int64_t z = box.slices.first; z < box.slices.last; ++z)
      for (int64_t y = box.rows.first; y < box.rows.last; ++y)
        for (int64_t word = box.columns.first * 3; word < box.columns.last * 3; ++word)
          count +=
              __builtin_popcount(weights[static_cast<size_t>(((o * 2 + z) * 3 + y) * 12 + word)]);
    return count;
  };
  std::vector<TapRange> slices, rows, columns;
  const auto add_ranges = [](int64_t size, std::vector<TapRange>* ranges) {
    for (int64_t first = 0; first <= size; ++first)
      for (int64_t last = first; last <= size; ++last) ranges->push_back({first, last});
  };
  add_ranges(2, &slices);
  add_ranges(3, &rows);
  add_ranges(4, &columns);
  for (int64_t o = 0; o < 3; ++o)
    for (const TapRange& slice : slices)
      for (const TapRange& row : rows)
        for (const TapRange& column : columns) {
          const TapBox box{slice, row, column};
          CHECK(tap_bits.Inside(o, box) == count_box(o, box));
        }
}

}  // namespace
}  // namespace bnn_deploy::tests
