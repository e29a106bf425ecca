// Compares the convolution with the peak rate of the instruction set. Measures in turn, for each
// instruction set of the machine:
//
// * the bound: a loop of the unit's own xor + population count + add whose sums all stay in
//   registers, so that it waits for no load, and has no stores and no epilogue;
// * the convolution driver on one thread, bits in, float32 out, on 3x3 layers of 115.6 million
//   multiply-accumulates (MAC).
//
// Prints 10^9 MAC per second, from the median time and from the best one, and the percentage of the
// bound. kernel_bound.py builds and runs it.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "drivers/conv/driver.h"
#include "kernels/dispatch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define UNROLL _Pragma("GCC unroll 32")
// Makes the compiler assume that the value has changed, and keep it in a register.
#define OPAQUE(constraint, value) __asm__ volatile("" : "+" constraint(value))
// What vpternlogd overwrites comes from memory, which is free beside it; GCC would copy a register.
#define BROADCAST(to, word) __asm__ volatile("vpbroadcastd %1, %0" : "=v"(to) : "m"(word))

namespace {

using namespace bnn_deploy;

constexpr int64_t kSteps = 1000;

// Each bound runs its loop and returns the number of multiply-accumulates.

// 64 binary multiply-accumulates in general registers: xor, the byte counts of Hacker's Delight
// figure 5-2 (10 operations), add.
int64_t BoundScalar() {
  uint64_t sums[4] = {};
  uint64_t a = 0x0123456789abcdef, w = 0xfedcba9876543210;
  for (int64_t step = 0; step < kSteps; ++step) {
    UNROLL for (int i = 0; i < 4; ++i) {
      OPAQUE("r", a);
      OPAQUE("r", w);
      uint64_t x = a ^ w;
      x -= (x >> 1) & 0x5555555555555555u;
      x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
      sums[i] += (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
      OPAQUE("r", sums[i]);
    }
  }
  return kSteps * 4 * 64;
}

#if defined(__x86_64__)
// 768 per step, two pixels in the halves of a byte: 3 vpshufb, 3 vpaddb (two of them between the
// lookups), and vpand + vpavgb for the upper halves.
__attribute__((target("avx2"))) int64_t BoundAvx2() {
  __m256i first[4], second[4], row = _mm256_set1_epi8(1), w0 = row, w1 = row, w2 = row;
  const __m256i upper_halves = _mm256_set1_epi8(static_cast<char>(0xf0));
  UNROLL for (int i = 0; i < 4; ++i) first[i] = second[i] = _mm256_setzero_si256();
  for (int64_t step = 0; step < kSteps; ++step) {
    UNROLL for (int i = 0; i < 4; ++i) {
      OPAQUE("x", w0);
      OPAQUE("x", w1);
      OPAQUE("x", w2);
      const __m256i sum = _mm256_add_epi8(
          _mm256_add_epi8(_mm256_shuffle_epi8(row, w0), _mm256_shuffle_epi8(row, w1)),
          _mm256_shuffle_epi8(row, w2));
      first[i] = _mm256_add_epi8(first[i], sum);
      second[i] = _mm256_avg_epu8(second[i], _mm256_and_si256(sum, upper_halves));
      OPAQUE("x", first[i]);
      OPAQUE("x", second[i]);
    }
  }
  return kSteps * 4 * 768;
}

// 16384 per step and chain, 32 differences added bit by bit: 2 x 3 + 2 vpternlogd for each 4 of
// them, 2 for each of the 7 further full adders, and the count of the last carry (2 vpshufb, 2
// vpand, vpsrlw, 2 vpaddb).
__attribute__((target("avx512f,avx512bw"))) int64_t BoundAvx512bw() {
  constexpr int kChains = 3;
  __m512i sums[kChains][5] = {}, high[kChains] = {}, a = _mm512_set1_epi32(1);
  const __m512i counts = a, low_nibbles = _mm512_set1_epi8(15);
  const int broadcast = 1;
  for (int64_t step = 0; step < kSteps; ++step) {
    __m512i waiting[kChains][5], carry;  // of each level, the first of two carries
    UNROLL for (int word = 0; word < 8; ++word) {
      UNROLL for (int i = 0; i < kChains; ++i) {
        UNROLL for (int half = 0; half < 2; ++half) {
          __m512i u, next;
          BROADCAST(u, broadcast);
          u = _mm512_ternarylogic_epi32(u, sums[i][0], a, 0x96);
          BROADCAST(next, broadcast);
          next = _mm512_ternarylogic_epi32(next, u, a, 0x96);
          carry = _mm512_ternarylogic_epi32(u, sums[i][0], next, 0x5c);
          sums[i][0] = next;
          if (half == 0) waiting[i][0] = carry;
        }
        int level = 0;
        UNROLL for (int done = 2 * word + 1; done % 2 == 1; done /= 2, ++level) {
          const __m512i sum = sums[i][level + 1], other = waiting[i][level];
          sums[i][level + 1] = _mm512_ternarylogic_epi32(sum, other, carry, 0x96);
          carry = _mm512_ternarylogic_epi32(other, sum, carry, 0xe8);
        }
        if (level < 4) {
          waiting[i][level] = carry;
          continue;
        }
        const __m512i upper = _mm512_and_si512(_mm512_srli_epi16(carry, 4), low_nibbles);
        const __m512i lower = _mm512_and_si512(carry, low_nibbles);
        high[i] = _mm512_add_epi8(high[i], _mm512_add_epi8(_mm512_shuffle_epi8(counts, lower),
                                                           _mm512_shuffle_epi8(counts, upper)));
      }
    }
  }
  UNROLL for (int i = 0; i < kChains; ++i) {
    UNROLL for (int level = 0; level < 5; ++level) OPAQUE("v", sums[i][level]);
    OPAQUE("v", high[i]);
  }
  return kSteps * kChains * 16384;
}

// 1024 per step: 3 vpternlogd for a full adder of two differences, vpopcntd, vpaddd.
__attribute__((target("avx512f,avx512vpopcntdq"))) int64_t BoundAvx512() {
  __m512i ones[8], twos[8], w = _mm512_set1_epi32(1);
  const int word = 1;
  UNROLL for (int i = 0; i < 8; ++i) ones[i] = twos[i] = _mm512_setzero_si512();
  for (int64_t step = 0; step < kSteps; ++step) {
    UNROLL for (int i = 0; i < 8; ++i) {
      __m512i u, next;
      BROADCAST(u, word);
      u = _mm512_ternarylogic_epi32(u, ones[i], w, 0x96);
      BROADCAST(next, word);
      next = _mm512_ternarylogic_epi32(next, u, w, 0x96);
      const __m512i carry = _mm512_ternarylogic_epi32(u, ones[i], next, 0x5c);
      ones[i] = next;
      twos[i] = _mm512_add_epi32(twos[i], _mm512_popcnt_epi32(carry));
      OPAQUE("v", ones[i]);
      OPAQUE("v", twos[i]);
    }
  }
  return kSteps * 8 * 1024;
}
#elif defined(__aarch64__)
// 1024 per step: 8 eor, 8 cnt, 7 addp, 1 uadalp.
int64_t BoundNeon() {
  uint16x8_t sums[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};
  uint8x16_t a = vdupq_n_u8(1), w = vdupq_n_u8(2);
  for (int64_t step = 0; step < kSteps; ++step) {
    UNROLL for (int i = 0; i < 4; ++i) {
      uint8x16_t counts[8];
      UNROLL for (int c = 0; c < 8; ++c) {
        OPAQUE("w", w);
        counts[c] = vcntq_u8(veorq_u8(a, w));
      }
      const uint8x16_t low =
          vpaddq_u8(vpaddq_u8(counts[0], counts[1]), vpaddq_u8(counts[2], counts[3]));
      const uint8x16_t high =
          vpaddq_u8(vpaddq_u8(counts[4], counts[5]), vpaddq_u8(counts[6], counts[7]));
      sums[i] = vpadalq_u8(sums[i], vpaddq_u8(low, high));
      OPAQUE("w", sums[i]);
    }
  }
  return kSteps * 4 * 1024;
}
#endif

struct Bound {
  const char* isa;
  const char* operations;
  int64_t (*run)();
};

constexpr Bound kBounds[] = {
#if defined(__x86_64__)
    {"avx512", "1024 MAC = 3 vpternlogd + vpopcntd + vpaddd", BoundAvx512},
    {"avx512bw", "16384 MAC = 78 vpternlogd + 7 to count the carry", BoundAvx512bw},
    {"avx2", "768 MAC = 3 vpshufb + 3 vpaddb + vpand + vpavgb", BoundAvx2},
#elif defined(__aarch64__)
    {"neon", "1024 MAC = 8 eor + 8 cnt + 7 addp + 1 uadalp", BoundNeon},
#endif
    {"scalar", "64 MAC = xor + byte counts by shifts and masks + add", BoundScalar},
};

// Null if kBounds has no loop for the instruction set.
const Bound* BoundOf(const Isa& isa) {
  for (const Bound& bound : kBounds) {
    if (std::strcmp(bound.isa, isa.name) == 0) return &bound;
  }
  return nullptr;
}

class OneThread : public TaskRunner {
 public:
  void Run(int64_t count, void (*work)(void*, Tasks*), void* data) const override {
    InOrder tasks;
    tasks.count = count;
    work(data, &tasks);
  }

 private:
  struct InOrder : Tasks {
    int64_t count = 0, next = 0;
    int64_t Next() override { return next < count ? next++ : -1; }
  };
};

struct Layer {
  int64_t channels;
  int64_t size;
};
constexpr Layer kLayers[] = {{64, 56}, {128, 28}, {256, 14}, {512, 7}};

// A 3x3 convolution with padding 1 and as many output as input channels.
class Convolution {
 public:
  Convolution(const Isa& isa, Layer layer) : layer_(layer) {
    std::mt19937 random(1);
    const int64_t words = layer.channels / 32;
    std::vector<uint32_t> weights(static_cast<size_t>(layer.channels * 9 * words));
    input_.resize(static_cast<size_t>(layer.size * layer.size * words));
    for (uint32_t& word : weights) word = random();
    for (uint32_t& word : input_) word = random();
    const std::vector<float> scale(static_cast<size_t>(layer.channels), 0.01f);
    const std::vector<float> bias(static_cast<size_t>(layer.channels), 0.5f);
    const Axis axis{3, 1, 1, 1, 1};
    driver_ = std::make_unique<ConvDriver>(
        isa, ConvSpec{layer.channels, 1, layer.channels, axis, axis, {}}, weights.data(),
        FloatConstants{scale.data(), bias.data(), nullptr});
    output_.Reserve(layer.channels * layer.size * layer.size);
  }

  int64_t Run() {
    driver_->Run({input_.data(), 1, layer_.size, layer_.size}, {output_.data(), nullptr, nullptr},
                 OneThread());
    return layer_.channels * layer_.channels * 9 * layer_.size * layer_.size;
  }

 private:
  Layer layer_;
  std::vector<uint32_t> input_;
  Buffer<float> output_;
  std::unique_ptr<const ConvDriver> driver_;
};

struct Series {
  std::function<int64_t()> run;
  std::vector<double> rates;  // 10^9 MAC per second

  void Measure() {
    const auto start = std::chrono::steady_clock::now();
    const int64_t macs = run();
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    rates.push_back(static_cast<double>(macs) / time.count());
  }
  double Median() {
    const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
    std::nth_element(rates.begin(), middle, rates.end());
    return *middle;
  }
  double Best() const { return *std::max_element(rates.begin(), rates.end()); }
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 500;
  if (rounds < 1) {
    std::fprintf(stderr, "usage: kernel_bound [rounds], at least 1\n");
    return 2;
  }
  std::printf("%d rounds, 1 thread, 10^9 MAC per second: median (best)\n", rounds);
  for (const Isa* isa : AvailableIsas()) {
    const Bound* const bound = BoundOf(*isa);
    if (bound == nullptr) {
      std::printf("\n%-8s has no bound here\n", isa->name);
      continue;
    }
    std::vector<Series> series{{[bound] { return bound->run(); }, {}}};
    std::vector<std::unique_ptr<Convolution>> layers;
    for (const Layer layer : kLayers) {
      layers.push_back(std::make_unique<Convolution>(*isa, layer));
      series.push_back({[convolution = layers.back().get()] { return convolution->Run(); }, {}});
    }
    for (Series& one : series) one.run();
    const int isa_rounds = std::strcmp(isa->name, "scalar") == 0 ? (rounds + 9) / 10 : rounds;
    for (int round = 0; round < isa_rounds; ++round) {
      for (Series& one : series) one.Measure();
    }
    const double median = series[0].Median();
    const double best = series[0].Best();
    std::printf("\n%-8s %-18s %7.0f (%5.0f)   %s\n", isa->name, "bound", median, best,
                bound->operations);
    for (size_t i = 0; i < layers.size(); ++i) {
      Series& one = series[i + 1];
      std::printf("%-8s 3x3 %3d @ %2dx%-2d     %7.0f (%5.0f)   %5.1f %% (%5.1f %%) of the bound\n",
                  isa->name, static_cast<int>(kLayers[i].channels),
                  static_cast<int>(kLayers[i].size), static_cast<int>(kLayers[i].size),
                  one.Median(), one.Best(), 100 * one.Median() / median, 100 * one.Best() / best);
    }
  }
  return 0;
}
