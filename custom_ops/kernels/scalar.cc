// Portable C++, for machines without a supported vector unit, and the reference of the other units.
// A sum is a dot product of 64-bit words; the population count keeps eight byte counters in one
// word (Hacker's Delight, figure 5-2) and adds them up once for up to 31 words.

#include <string.h>

#include "kernels/micro_kernel.h"

namespace bnn_deploy {
namespace {

constexpr int64_t kWordGranule = 2;
constexpr int64_t kDirectChannels = 8;
constexpr int64_t kMaxByteSums = 31;  // 31 * 8 bits still fit into a byte counter

uint64_t CountBitsPerByte(uint64_t x) {
  x -= (x >> 1) & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  return (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}

// The sum of eight byte counters needs up to 11 bits, so pairs of bytes are added first; the
// multiply then adds the four 16-bit parts.
int32_t SumBytes(uint64_t x) {
  x = (x & 0x00ff00ff00ff00ffu) + ((x >> 8) & 0x00ff00ff00ff00ffu);
  return static_cast<int32_t>((x * 0x0001000100010001u) >> 48);
}

int32_t CountMismatches(const uint32_t* a, const uint32_t* w, int64_t words) {
  int32_t sum = 0;
  for (int64_t k = 0; k < words;) {
    const int64_t left = words - k;
    const int64_t end =
        k + (left < kMaxByteSums * kWordGranule ? left : kMaxByteSums * kWordGranule);
    uint64_t bytes = 0;
    for (; k < end; k += kWordGranule) {
      uint64_t x, y;
      memcpy(&x, a + k, sizeof(x));
      memcpy(&y, w + k, sizeof(y));
      bytes += CountBitsPerByte(x ^ y);
    }
    sum += SumBytes(bytes);
  }
  return sum;
}

void Accumulate(const AccumulateArgs& args) {
  for (int64_t o = 0; o < args.blocks; ++o) {
    const uint32_t* w = args.weights + o * args.run_words;
    for (int64_t p = 0; p < args.pixels; ++p) {
      args.sums[p * kTileChannels + o] =
          args.initial[p][args.initial_offset + o] +
          CountMismatches(args.windows[p] + args.run_offsets[0], w, args.run_words);
    }
  }
}

uint32_t Signs(const int32_t* sums, int64_t count) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint32_t>(sums[i] < 0) << i;
  return bits;
}

void AccumulateBits(const AccumulateBitsArgs& args) {
  Accumulate(args.accumulate);
  const int64_t channels = args.accumulate.blocks;  // a block is one channel
  for (int64_t p = 0; p < args.accumulate.pixels; ++p) {
    const int32_t* const sums = args.accumulate.sums + p * kTileChannels;
    for (int64_t begin = 0; begin < channels; begin += 32) {
      const int64_t left = channels - begin;  // a constant 32 makes a faster loop
      args.out[p * args.pixel_stride + begin / 32] =
          left < 32 ? Signs(sums + begin, left) : Signs(sums + begin, 32);
    }
  }
}

void FinishFloat(const FinishFloatArgs& args) {
  for (int64_t word = 0; word * 32 < args.channels; ++word) {
    const int64_t end = word * 32 + 32 < args.channels ? word * 32 + 32 : args.channels;
    uint32_t bits[kTilePixels] = {};
    for (int64_t o = word * 32; o < end; ++o) {
      for (int64_t p = 0; p < args.pixels; ++p) {
        const int64_t at = o * args.channel_stride + p;
        const float sum = static_cast<float>(args.sums[p * kTileChannels + o]);
        float value = args.scale[o] * (args.products[p] - 2.0f * sum) + args.bias[o];
        if (args.residual != nullptr) value += args.residual[at];
        if (args.factor != nullptr) value *= args.factor[p];
        if (args.out != nullptr) args.out[at] = value;
        if (args.bits != nullptr) {
          bits[p] |= static_cast<uint32_t>(value >= args.threshold[o]) << (o % 32);
        }
      }
    }
    for (int64_t p = 0; args.bits != nullptr && p < args.pixels; ++p) {
      args.bits[p * args.bits_stride + word] = bits[p];
    }
  }
}

void FinishRows(const FinishRowsArgs& args) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t o = 0; o < args.channels; ++o) {
      const float sum = static_cast<float>(args.sums[p * kTileChannels + o]);
      args.out[p * args.row_stride + o] =
          args.scale[o] * (args.products[p] - 2.0f * sum) + args.bias[o];
    }
  }
}

void Binarize(const BinarizeArgs& args) {
  const int64_t words = (args.channels + 31) / 32;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    for (int64_t p = 0; p < args.pixels; ++p) {
      uint32_t bits = 0;
      for (int64_t c = begin; c < end; ++c) {
        const bool bit = args.planes[c * args.channel_stride + p] >= args.threshold[c];
        bits |= static_cast<uint32_t>(bit) << (c - begin);
      }
      args.out[p * words + word] = bits;
    }
  }
}

void BinarizeAbsMean(const BinarizeAbsMeanArgs& args) {
  Binarize(
      {args.planes, args.channel_stride, args.threshold, args.channels, args.pixels, args.out});
  for (int64_t p = 0; p < args.pixels; ++p) {
    float sum = 0.0f;
    for (int64_t begin = 0; begin < args.channels; begin += 32) {
      const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
      float part = 0.0f;
      for (int64_t c = begin; c < end; ++c) {
        const float x = args.planes[c * args.channel_stride + p];
        part += __builtin_fabsf(args.scale[c] * x + args.shift[c]);
      }
      sum += part;
    }
    args.mean[p] = sum / static_cast<float>(args.channels);
  }
}

void BinarizeRows(const BinarizeRowsArgs& args) {
  const float* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t begin = 0; begin < args.channels; begin += 32) {
      const int64_t count = args.channels - begin < 32 ? args.channels - begin : 32;
      uint32_t bits = 0;
      for (int64_t i = 0; i < count; ++i) {
        bits |= static_cast<uint32_t>(*x++ >= args.threshold[begin + i]) << i;
      }
      *out++ = bits;
    }
  }
}

void BinarizeBytes(const BinarizeBytesArgs& args) {
  const uint8_t* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t begin = 0; begin < args.channels; begin += 32) {
      const int64_t count = args.channels - begin < 32 ? args.channels - begin : 32;
      uint32_t bits = 0;
      for (int64_t i = 0; i < count; ++i) {
        bits |= static_cast<uint32_t>(*x++ >= args.level[begin + i]) << i;
      }
      *out++ = bits & args.reachable[begin / 32];
    }
  }
}

// The sum of a window's column, of the input's column x, in one channel.
float SumOfRows(const AveragePoolArgs& args, const float* plane, PoolTaps rows, int64_t x) {
  if (x < 0 || x >= args.width) return 0.0f;
  float sum = 0.0f;
  for (int64_t i = 0; i < rows.count; ++i) {
    const float value = plane[rows.first + i * args.row_step + x];
    sum += args.relu && value < 0.0f ? 0.0f : value;
  }
  return sum;
}

void AveragePool(const AveragePoolArgs& args) {
  const int64_t words = (args.channels + 31) / 32;
  for (int64_t r = 0; r < args.out_rows; ++r) {
    for (int64_t x = 0; x < args.out_width; ++x) {
      uint32_t* const out = args.out + (r * args.out_width + x) * words;
      for (int64_t w = 0; w < words; ++w) out[w] = 0;
      for (int64_t c = 0; c < args.channels; ++c) {
        const float* const plane = args.planes + c * args.channel_stride;
        float sum = 0.0f;
        for (int64_t j = 0; j < args.kernel; ++j) {
          const int64_t column = x * args.stride - args.left + j * args.dilation;
          sum += SumOfRows(args, plane, args.rows[r], column);
        }
        out[c / 32] |= static_cast<uint32_t>(sum >= args.threshold[c]) << (c % 32);
      }
    }
  }
}

// The order of DirectConvArgs with a rounded product: without FMA, rounding once takes ten times as
// long.
void DirectConv(const DirectConvArgs& args) {
  const float* weights = args.weights;
  for (int64_t channel = 0; channel < args.channels; channel += kDirectChannels) {
    for (int64_t p = 0; p < args.pixels; ++p) {
      float sums[kDirectChannels];
      for (int64_t o = 0; o < kDirectChannels; ++o) sums[o] = args.bias[channel + o];
      for (int64_t k = 0; k < args.taps; ++k) {
        const float x = args.input[args.offsets[k] + p];
        const float* const w = weights + k * kDirectChannels;
        for (int64_t o = 0; o < kDirectChannels; ++o) sums[o] += w[o] * x;
      }
      float* const out = args.out + p * args.out_stride + channel;
      for (int64_t o = 0; o < kDirectChannels; ++o) out[o] = sums[o];
    }
    weights += args.taps * kDirectChannels;
  }
}

void PoolRows(const PoolRowsArgs& args) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    const int64_t start = p * args.stride - args.pad;
    const int64_t first = start > 0 ? start : 0;
    const int64_t last = start + args.kernel < args.width ? start + args.kernel : args.width;
    for (int64_t o = 0; o < args.channels; ++o) {
      float most = args.rows[0][first * args.row_stride + o];
      for (int64_t r = 0; r < args.row_count; ++r) {
        for (int64_t x = first; x < last; ++x) {
          const float value = args.rows[r][x * args.row_stride + o];
          most = value > most ? value : most;
        }
      }
      args.out[o * args.channel_stride + p] = most;
    }
  }
}

// Likewise.
void AddRows(const AddRowsArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    const float x = args.x[i];
    const float* const row = args.rows[i];
    for (int64_t o = 0; o < args.channels; ++o) args.sums[o] += x * row[o];
  }
}

void MultiplyRows(const MultiplyRowsArgs& args) {
  for (int64_t n = 0; n < args.images; ++n) {
    float* const sums = args.sums + n * args.sums_stride;
    for (int64_t i = 0; i < args.count; ++i) {
      const float* const row = args.rows + i * args.row_stride;
      AddRows({sums, args.x + n * args.x_stride + i, &row, 1, args.channels});
    }
  }
}

constexpr DirectKernels kDirect = {kDirectChannels, kDirectChannels, 0, DirectConv, PoolRows};
constexpr LinearKernels kLinear = {1, AddRows, MultiplyRows};

constexpr Kernels MakeKernels() {
  Kernels kernels;
  kernels.channel_block = 1;
  kernels.granule = kWordGranule * 4;
  kernels.gathers = true;
  kernels.accumulate = Accumulate;
  kernels.accumulate_bits = AccumulateBits;
  kernels.finish_float = FinishFloat;
  kernels.finish_rows = FinishRows;
  kernels.binarize = Binarize;
  kernels.binarize_abs_mean = BinarizeAbsMean;
  kernels.binarize_rows = BinarizeRows;
  kernels.binarize_bytes = BinarizeBytes;
  kernels.average_pool = AveragePool;
  kernels.direct = &kDirect;
  kernels.linear = &kLinear;
  return kernels;
}
static_assert(IsComplete(MakeKernels()), "a kernel is missing");

}  // namespace

constexpr Kernels kScalarKernels = MakeKernels();

}  // namespace bnn_deploy
