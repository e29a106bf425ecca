#include "drivers/conv/weights.h"

#include <algorithm>
#include <cstring>

#include "base/popcount.h"

namespace bnn_deploy {
namespace {

constexpr int64_t kSide = 8;

// Byte i of rows[j] becomes byte j of rows[i].
void Transpose(uint64_t* rows) {
  constexpr uint64_t kLowHalves[] = {0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0x00000000ffffffff};
  for (int64_t stage = 2; stage >= 0; --stage) {
    const int64_t distance = int64_t{1} << stage;
    for (int64_t i = 0; i < kSide; ++i) {
      if (i & distance) continue;
      const uint64_t swapped =
          ((rows[i] >> (8 * distance)) ^ rows[i + distance]) & kLowHalves[stage];
      rows[i] ^= swapped << (8 * distance);
      rows[i + distance] ^= swapped;
    }
  }
}

// The nibbles of two bytes in the order of ConvolvePlanesArgs.
uint32_t PairOfBytes(uint32_t a, uint32_t b) {
  return (a & 15) << 4 | (b & 15) << 8 | a >> 4 << 20 | b >> 4 << 24;
}

// PackWeights of a tile for a unit with a granule of one byte, of which those of `width` channels
// alternate: eight bytes of eight channels at a time.
void PackBytes(const ConvLayer& layer, const ChannelTile& tile, const uint32_t* weights,
               int64_t width, uint8_t* packed) {
  const int64_t words = layer.spec.taps() * layer.group_words;
  for (int64_t o = 0; o < tile.channels; o += kSide) {
    uint8_t* to = packed + o / width * width * layer.window_words * 4 + o % width;
    const int64_t channels = std::min(kSide, tile.channels - o);
    const uint32_t* from[kSide];
    for (int64_t c = 0; c < channels; ++c) from[c] = weights + layer.Row(tile, o + c) * words;
    for (int64_t k = 0; k < words; k += 2) {
      const int64_t bytes = 4 * std::min<int64_t>(2, words - k);
      uint64_t rows[kSide] = {};
      for (int64_t c = 0; c < channels; ++c) {
        std::memcpy(&rows[c], from[c] + k, static_cast<size_t>(bytes));
      }
      Transpose(rows);
      for (int64_t i = 0; i < bytes; ++i, to += width) std::memcpy(to, &rows[i], kSide);
    }
  }
}

}  // namespace

Buffer<uint32_t> PackWeights(const ConvLayer& layer, const uint32_t* weights) {
  Buffer<uint32_t> packed;
  PackWeights(layer, weights, packed.Reserve(layer.weights_size));
  return packed;
}

void PackWeights(const ConvLayer& layer, const uint32_t* weights, uint32_t* out) {
  const Isa& isa = layer.isa;
  const ConvSpec& spec = layer.spec;
  const int64_t words = spec.taps() * layer.group_words;
  const int64_t run_words = isa.gathers || layer.encodes ? layer.window_words
                            : layer.rows_are_runs        ? spec.width.kernel * layer.group_words
                                                         : layer.group_words;
  std::fill_n(out, layer.weights_size, 0u);
  std::vector<uint32_t> row(static_cast<size_t>(layer.window_words));  // of one channel
  for (const ChannelTile& tile : layer.tiles) {
    if (layer.depthwise) {
      uint32_t* const to = out + tile.weights_offset;
      for (int64_t o = 0; o < tile.channels; ++o) {
        const uint32_t* const from = weights + (tile.channel + o) * words;
        for (int64_t tap = 0; tap < words; ++tap) {
          to[tap * kTileWords + o / 32] |= (from[tap] & 1) << (o % 32);
        }
      }
      continue;
    }
    auto* const packed = reinterpret_cast<uint8_t*>(out + tile.weights_offset);
    // The number of channels whose pieces alternate.
    const int64_t width = isa.channel_block * (isa.blocks_together ? tile.blocks : 1);
    if (isa.granule == 1 && !layer.encodes && width % kSide == 0) {
      PackBytes(layer, tile, weights, width, packed);
      continue;
    }
    for (int64_t o = 0; o < tile.channels; ++o) {
      std::copy_n(weights + layer.Row(tile, o) * words, words, row.begin());
      std::fill(row.data() + words, row.data() + row.size(), 0u);
      if (layer.encodes) isa.encode(row.data(), layer.window_words, true);
      const auto* const from = reinterpret_cast<const uint8_t*>(row.data());
      uint8_t* const to = packed + o / width * width * layer.window_words * 4;
      for (int64_t k = 0; k < layer.window_words * 4;) {
        int64_t piece = isa.granule;
        while (piece > run_words * 4 - k % (run_words * 4)) piece /= 2;
        std::copy_n(from + k, piece, to + k * width + o % width * piece);
        k += piece;
      }
    }
  }
}

std::vector<uint32_t> PackPlaneWeights(const ConvLayer& layer, const uint32_t* weights) {
  const Isa& isa = layer.isa;
  const int64_t words = layer.window_words;
  std::vector<uint32_t> packed(static_cast<size_t>(layer.plane_weights_size));
  for (const ChannelTile& tile : layer.tiles) {
    uint32_t* to = packed.data() + tile.plane_offset;
    const uint32_t* from = weights + tile.channel * words;
    const auto byte = [&](int64_t channel, int64_t i) {
      return channel < tile.channels ? from[channel * words + i / 4] >> (8 * (i % 4)) & 0xff : 0;
    };
    for (int64_t o = 0; isa.plane_pair_step > 0 && o < tile.channels; o += 2) {
      for (int64_t i = 0; i < words * 4; ++i) to[i] = PairOfBytes(byte(o, i), byte(o + 1, i));
      to += RoundUp(words * 4, isa.plane_pair_step);
    }
    if (isa.plane_pair_step > 0) continue;
    const int64_t numbers = 4 / isa.plane_bytes;  // of a word
    for (int64_t o = 0; o < tile.channels; o += isa.plane_channels) {
      const int64_t end = std::min(o + isa.plane_channels, tile.channels);
      for (int64_t i = 0; i < words * numbers; ++i) {
        for (int64_t c = o; c < end; ++c) {
          *to++ = numbers == 1 ? from[c * words + i] : 0x01010101 * byte(c, i);
        }
      }
    }
  }
  return packed;
}

Buffer<float> PackPerChannel(const ConvLayer& layer, const float* values, float unused) {
  Buffer<float> packed(layer.table_width, unused);
  for (const ChannelTile& tile : layer.tiles) {
    std::copy_n(values + tile.channel, tile.channels, packed.data() + tile.table_offset);
  }
  return packed;
}

TapBits::TapBits(const ConvLayer& layer, const uint32_t* weights)
    : slices_(layer.spec.depth.kernel),
      rows_(layer.spec.height.kernel),
      columns_(layer.spec.width.kernel) {
  const int64_t stride = columns_ + 1;
  const int64_t area = (rows_ + 1) * stride;
  const int64_t volume = (slices_ + 1) * area;
  const int64_t rows = layer.spec.out_channels * layer.bases;
  sums_.assign(static_cast<size_t>(rows * volume), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t z = 0; z < slices_; ++z) {
      const int32_t* const front = sums_.data() + row * volume + z * area;
      int32_t* const sums = sums_.data() + row * volume + (z + 1) * area;
      for (int64_t y = 0; y < rows_; ++y) {
        int32_t row_sum = 0;  // of this slice's row, up to column x
        for (int64_t x = 0; x < columns_; ++x) {
          row_sum += static_cast<int32_t>(PopCount(weights, layer.group_words));
          weights += layer.group_words;
          const int64_t above = y * stride + x + 1;
          const int64_t here = above + stride;
          sums[here] = front[here] + sums[above] - front[above] + row_sum;
        }
      }
    }
  }
}

int32_t TapBits::Inside(int64_t row, const TapBox& box) const {
  const int64_t stride = columns_ + 1;
  const int64_t area = (rows_ + 1) * stride;
  const int32_t* const sums = sums_.data() + row * (slices_ + 1) * area;
  const auto up_to = [&](int64_t z) {
    const auto at = [&](int64_t y, int64_t x) { return sums[z * area + y * stride + x]; };
    const TapRange rows = box.rows;
    const TapRange columns = box.columns;
    return at(rows.last, columns.last) - at(rows.first, columns.last) -
           at(rows.last, columns.first) + at(rows.first, columns.first);
  };
  return up_to(box.slices.last) - up_to(box.slices.first);
}

}  // namespace bnn_deploy
