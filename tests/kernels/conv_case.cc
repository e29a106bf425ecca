#include "conv_case.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "base/geometry.h"

namespace bnn_deploy::tests {
namespace {

std::mt19937& Random() {
  static std::mt19937 random(20161016);
  return random;
}

bool AddsResidual(Epilogue epilogue) {
  return epilogue == Epilogue::kResidual || epilogue == Epilogue::kInPlace;
}

int64_t Bit(const uint32_t* words, int64_t index) { return words[index / 32] >> (index % 32) & 1; }

}  // namespace

void SeedRandom(uint32_t seed) { Random().seed(seed); }

std::vector<uint32_t> RandomBits(int64_t rows, int64_t bits) {
  const int64_t words = WordsForBits(bits);
  std::vector<uint32_t> out(static_cast<size_t>(rows * words));
  for (uint32_t& word : out) word = static_cast<uint32_t>(Random()());
  if (bits % 32 == 0) return out;
  for (int64_t row = 1; row <= rows; ++row) {
    out[static_cast<size_t>(row * words - 1)] &= (1u << (bits % 32)) - 1;
  }
  return out;
}

std::vector<float> RandomFloats(int64_t count, float low, float high) {
  std::uniform_real_distribution<float> distribution(low, high);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& value : out) value = distribution(Random());
  return out;
}

bool Same(const ConvResult& a, const ConvResult& b) {
  return a.bits == b.bits && a.floats.size() == b.floats.size() &&
         (a.floats.empty() ||
          std::memcmp(a.floats.data(), b.floats.data(), a.floats.size() * sizeof(float)) == 0);
}

ConvCase::ConvCase(ConvSpec convolution, int64_t images, int64_t rows, int64_t columns,
                   int64_t slices)
    : spec(std::move(convolution)),
      batch(images),
      height(rows),
      width(columns),
      depth(slices),
      out_height(OutputExtent(spec.height, rows)),
      out_width(OutputExtent(spec.width, columns)),
      out_depth(OutputExtent(spec.depth, slices)),
      weights(RandomBits(spec.out_channels * std::max<int64_t>(spec.bases, 1) * spec.taps(),
                         spec.channels / spec.group)),
      input(RandomBits(batch * depth * height * width * std::max(spec.level_bits, spec.planes),
                       spec.channels)),
      scale(RandomFloats(spec.out_channels, -0.1f, 0.1f)),
      bias(RandomFloats(spec.out_channels, -1.0f, 1.0f)),
      float_threshold(RandomFloats(spec.out_channels, -1.0f, 1.0f)),
      residual(RandomFloats(spec.out_channels * OutPixels(), -1.0f, 1.0f)),
      factor(RandomFloats(OutPixels(), 0.0f, 2.0f)) {
  for (const float value : RandomFloats(spec.out_channels, -9.0f, 9.0f)) {
    threshold.push_back(static_cast<int32_t>(value));
  }
}

std::string ConvCase::Text(Epilogue epilogue) const {
  const auto axis = [](const Axis& a) {
    return std::to_string(a.kernel) + "/s" + std::to_string(a.stride) + "d" +
           std::to_string(a.dilation) + "p" + std::to_string(a.pad_begin) +
           std::to_string(a.pad_end);
  };
  return std::to_string(spec.channels) + " -> " + std::to_string(spec.out_channels) +
         " channels, group " + std::to_string(spec.group) + ", kernel " + axis(spec.depth) + " x " +
         axis(spec.height) + " x " + axis(spec.width) + ", image " + std::to_string(batch) + " x " +
         std::to_string(depth) + " x " + std::to_string(height) + " x " + std::to_string(width) +
         ", level bits " + std::to_string(spec.level_bits) + ", epilogue " +
         std::to_string(static_cast<int>(epilogue));
}

ConvDriver ConvCase::MakeDriver(const Isa& isa, Epilogue epilogue) const {
  if (epilogue == Epilogue::kBits) {
    return ConvDriver(isa, spec, weights.data(), threshold.data());
  }
  const float* const limit = AddsResidual(epilogue) ? float_threshold.data() : nullptr;
  return ConvDriver(isa, spec, weights.data(), FloatConstants{scale.data(), bias.data(), limit});
}

ConvResult ConvCase::Run(const Isa& isa, Epilogue epilogue) const {
  return Run(MakeDriver(isa, epilogue), epilogue);
}

ConvResult ConvCase::Run(const ConvDriver& driver, Epilogue epilogue,
                         const TaskRunner& runner) const {
  const int64_t pixels = OutPixels();
  const BitBatch images{input.data(), batch, height, width, depth};
  ConvResult result;
  if (epilogue == Epilogue::kBits || AddsResidual(epilogue)) {
    result.bits.assign(static_cast<size_t>(pixels * WordsForBits(spec.out_channels)), ~0u);
  }
  if (epilogue == Epilogue::kBits) {
    driver.Run(images, result.bits.data(), runner);
    return result;
  }
  result.floats.assign(static_cast<size_t>(pixels * spec.out_channels), -1e9f);
  if (epilogue == Epilogue::kInPlace) result.floats = residual;
  FloatOutput output{result.floats.data(), nullptr, nullptr};
  if (epilogue == Epilogue::kFactor) output.factor = factor.data();
  if (AddsResidual(epilogue)) {
    output.residual = epilogue == Epilogue::kInPlace ? output.out : residual.data();
    output.bits = result.bits.data();
  }
  driver.Run(images, output, runner);
  return result;
}

ConvResult ConvCase::Reference(Epilogue epilogue) const {
  const int64_t group_channels = spec.channels / spec.group;
  const int64_t group_words = WordsForBits(group_channels);
  const int64_t words = WordsForBits(spec.channels);
  const int64_t planes = std::max<int64_t>(spec.level_bits, 1);
  const int64_t taps = spec.taps();
  const int64_t out_words = WordsForBits(spec.out_channels);
  ConvResult result;
  const int64_t image_pixels = out_depth * out_height * out_width;
  const bool gives_bits = epilogue == Epilogue::kBits || AddsResidual(epilogue);
  if (gives_bits) result.bits.assign(static_cast<size_t>(batch * image_pixels * out_words), 0);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t o = 0; o < spec.out_channels; ++o) {
      const int64_t group = o / (spec.out_channels / spec.group);
      for (int64_t pixel = 0; pixel < image_pixels; ++pixel) {
        int64_t acc = 0;
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t z = pixel / out_width / out_height * spec.depth.stride -
                            spec.depth.pad_begin +
                            tap / spec.width.kernel / spec.height.kernel * spec.depth.dilation;
          const int64_t y = pixel / out_width % out_height * spec.height.stride -
                            spec.height.pad_begin +
                            tap / spec.width.kernel % spec.height.kernel * spec.height.dilation;
          const int64_t x = pixel % out_width * spec.width.stride - spec.width.pad_begin +
                            tap % spec.width.kernel * spec.width.dilation;
          const bool inside = z >= 0 && z < depth && y >= 0 && y < height && x >= 0 && x < width;
          const int64_t at_pixel = ((n * depth + z) * height + y) * width + x;
          for (int64_t c = 0; c < group_channels; ++c) {
            const int64_t channel = group * group_channels + c;
            int64_t value = 0;  // of a zero pad, and of a padded level
            if (inside && spec.level_bits == 0) {
              const uint32_t* const at = input.data() + at_pixel * words;
              value = 2 * Bit(at, channel) - 1;
            } else if (inside) {
              const uint32_t* const at = input.data() + at_pixel * planes * words;
              for (int64_t j = 0; j < planes; ++j) value += Bit(at + j * words, channel) << j;
            } else if (!spec.pad_bits.empty()) {
              value = 2 * Bit(spec.pad_bits.data(), channel) - 1;
            }
            const uint32_t* const filter = weights.data() + (o * taps + tap) * group_words;
            acc += value * (2 * Bit(filter, c) - 1);
          }
        }
        const auto channel = static_cast<size_t>(o);
        const int64_t at = (n * spec.out_channels + o) * image_pixels + pixel;
        float y = scale[channel] * static_cast<float>(acc) + bias[channel];
        if (epilogue == Epilogue::kFactor) {
          y *= factor[static_cast<size_t>(n * image_pixels + pixel)];
        }
        if (AddsResidual(epilogue)) y += residual[static_cast<size_t>(at)];
        if (epilogue != Epilogue::kBits) result.floats.push_back(y);
        const bool bit =
            epilogue == Epilogue::kBits ? acc >= threshold[channel] : y >= float_threshold[channel];
        if (gives_bits && bit) {
          const int64_t word = (n * image_pixels + pixel) * out_words + o / 32;
          result.bits[static_cast<size_t>(word)] |= 1u << (o % 32);
        }
      }
    }
  }
  return result;
}

}  // namespace bnn_deploy::tests
