#include "drivers/conv/driver.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/prefetch.h"
#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

// Keeps gathered windows in the second-level cache.
constexpr int64_t kMaxGatheredWords = int64_t{1} << 15;
// Rows of different channels that are a multiple of 4096 bytes apart map to the same cache sets
// and, written 64 bytes at a time, evict each other. They are staged in a buffer with another
// stride and copied in pieces of kBlockPixels.
constexpr int64_t kConflictPixels = 4096 / sizeof(float);
constexpr int64_t kStagingStride = kBlockPixels + 16;

// Holds a run's copy of its input; it belongs to the thread that called Run.
Buffer<uint32_t>* KeptInput() {
  thread_local Buffer<uint32_t> kept;
  return &kept;
}

// Copies `count` bits of `from` to bits `first` and up of `to`, which must be 0.
void MergeBits(const uint32_t* from, int64_t count, int64_t first, uint32_t* to) {
  const int64_t shift = first % 32;
  to += first / 32;
  for (int64_t done = 0; done < count; done += 32, ++from, ++to) {
    *to |= *from << shift;
    if (shift + std::min<int64_t>(count - done, 32) > 32) to[1] |= *from >> (32 - shift);
  }
}

// Splits the pixels into parts of up to kTilePixels and calls body(part, index of its first pixel).
template <typename Body>
void ForEachTile(const AccumulateArgs& args, const Body& body) {
  AccumulateArgs part = args;
  for (int64_t first = 0; first < args.pixels; first += kTilePixels) {
    part.windows = args.windows + first;
    part.initial = args.initial + first;
    part.pixels = std::min(kTilePixels, args.pixels - first);
    body(part, first);
  }
}

}  // namespace

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights)
    : layer_(isa, std::move(spec)),
      tap_bits_(layer_, weights),
      weights_(PackWeights(layer_, weights)),
      plane_weights_(layer_.takes_planes ? PackPlaneWeights(layer_, weights)
                                         : std::vector<uint32_t>()) {}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const FloatConstants& constants)
    : ConvDriver(isa, std::move(spec), weights) {
  scale_ = PackPerChannel(layer_, constants.scale, 0.0f);
  // FinishFloatArgs doubles the sums, so levels take half of the scale.
  for (int64_t o = 0; layer_.spec.level_bits > 0 && o < layer_.table_width; ++o) {
    scale_.data()[o] *= 0.5f;
  }
  bias_ = PackPerChannel(layer_, constants.bias, 0.0f);
  if (constants.threshold != nullptr) {
    float_threshold_ =
        PackPerChannel(layer_, constants.threshold, std::numeric_limits<float>::quiet_NaN());
  }
}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const int32_t* threshold)
    : ConvDriver(isa, std::move(spec), weights) {
  threshold_.assign(threshold, threshold + layer_.spec.out_channels);
}

ConvDriver::ConvDriver(const Isa& isa, ConvSpec spec, const uint32_t* weights,
                       const BasesConstants& constants)
    : ConvDriver(isa, std::move(spec), weights) {
  const int64_t outputs = layer_.spec.out_channels;
  const int64_t row = (layer_.bases + 1) * outputs;  // of a plane
  bases_scale_.assign(constants.scale, constants.scale + (layer_.bit_planes + 1) * row);
  bases_bias_.assign(constants.bias, constants.bias + outputs);
  scale_ = Buffer<float>(layer_.bit_planes * layer_.table_width, 0.0f);
  bias_ = Buffer<float>(layer_.table_width, 0.0f);
  for (int64_t plane = 0; plane < layer_.bit_planes; ++plane) {
    const float* const from = constants.scale + (plane + 1) * row;
    for (const ChannelTile& tile : layer_.tiles) {
      std::copy_n(from + (tile.base + 1) * outputs + tile.channel, tile.channels,
                  scale_.data() + plane * layer_.table_width + tile.table_offset);
    }
    sums_signs_ |= std::any_of(from, from + outputs, [](float value) { return value != 0.0f; });
  }
}

std::shared_ptr<const ConvPlan> ConvDriver::PlanFor(const BitBatch& input) const {
  return plans_.Get(input.height, input.width, input.depth, [&] {
    const auto plan =
        MakeConvPlan(layer_, tap_bits_, threshold_, input.height, input.width, input.depth);
    if (layer_.spec.bases > 0) {
      AddOffsets(layer_, tap_bits_, bases_scale_.data(), bases_bias_.data(), plan.get());
    }
    return plan;
  });
}

// Writes what the products with s_0 and with B_0 add to the output, for the pixels of a block that
// lie in one image. out: at the first pixel, in the tile's first channel.
void ConvDriver::Prefill(const ChannelTile& tile, Range pixels, const ConvPlan& plan,
                         const PixelBlock& block, float* out) const {
  const int64_t image_pixels = plan.ImagePixels();
  const int64_t outputs = layer_.spec.out_channels;
  for (int64_t p = pixels.begin; p < pixels.end;) {
    int64_t end = p + 1;
    while (end < pixels.end && block.initial[end] == block.initial[p]) ++end;
    const int64_t pattern = (block.initial[p] - plan.table.data()) / layer_.table_width;
    const float* const offsets = plan.offsets.data() + pattern * outputs + tile.channel;
    for (int64_t o = 0; o < tile.channels; ++o) {
      std::fill_n(out + o * image_pixels + p - pixels.begin, end - p, offsets[o]);
    }
    p = end;
  }
  for (int64_t plane = 0; sums_signs_ && plane < layer_.bit_planes; ++plane) {
    const float* const scale =
        bases_scale_.data() + (plane + 1) * (layer_.bases + 1) * outputs + tile.channel;
    const float* const signs = block.signs + plane * kBlockPixels + pixels.begin;
    for (int64_t o = 0; o < tile.channels; ++o) {
      float* const row = out + o * image_pixels;
      for (int64_t p = 0; p < pixels.end - pixels.begin; ++p) row[p] += scale[o] * signs[p];
    }
  }
}

// Calls process(tile, pixels, block, args) for every channel tile and block of up to
// kBlockPixels pixels, numbered through the whole batch; args covers all pixels of the block and
// lacks the output. Tasks get disjoint ranges of pixels, cut at multiples of `grain`, and those of
// channel tiles that `cut` allows.
template <typename Process>
void ConvDriver::ForEachBlock(const BitBatch& input, const ConvPlan& plan, int64_t grain, Cut cut,
                              const TaskRunner& runner, const Process& process) const {
  const int64_t pixels = input.batch * plan.ImagePixels();
  if (pixels == 0) return;
  Scratch<uint32_t> copy(KeptInput());
  const ConvImage image = PrepareInput(layer_, plan, input, runner, &copy);

  const int64_t grains = CeilDiv(pixels, grain);
  // The bases of some channels are added one after the other, so they stay in one task.
  const auto channel_tiles = static_cast<int64_t>(layer_.tiles.size()) / layer_.bases;
  const int64_t wanted = TaskCount(layer_, pixels);
  const int64_t pixel_parts = std::min(wanted, grains);
  const int64_t channel_parts =
      cut == Cut::kPixels ? 1 : std::min(CeilDiv(wanted, pixel_parts), channel_tiles);

  const bool gathers =
      layer_.encodes || (layer_.isa.gathers && !layer_.depthwise &&
                         !(plan.run_offsets.size() == 1 && plan.run_words == layer_.window_words));
  const int64_t gathered_tiles =
      kMaxGatheredWords / (kTilePixels * layer_.bit_planes * layer_.window_words);
  const int64_t block_pixels =
      gathers ? std::clamp(gathered_tiles * kTilePixels, kTilePixels, kBlockPixels) : kBlockPixels;
  const int64_t no_offset = 0;

  RunTasks(runner, pixel_parts * channel_parts, [&](int64_t task) {
    const bool by_channel = cut == Cut::kPlanes;
    const Range grain_range =
        Part(grains, pixel_parts, by_channel ? task % pixel_parts : task / channel_parts);
    const Range channels =
        Part(channel_tiles, channel_parts, by_channel ? task / pixel_parts : task % channel_parts);
    const Range channel_range{channels.begin * layer_.bases, channels.end * layer_.bases};
    const int64_t task_end = std::min(grain_range.end * grain, pixels);
    thread_local Buffer<uint32_t> kept_windows;
    Scratch<uint32_t> windows(&kept_windows);
    const int64_t task_begin = grain_range.begin * grain;
    const int64_t row_pixels = std::min(block_pixels, task_end - task_begin);
    uint32_t* const rows =
        gathers ? windows.Reserve(layer_.bit_planes * row_pixels * layer_.window_words) : nullptr;
    PixelBlock block;
    AccumulateArgs args{};
    args.windows = block.windows;
    args.run_offsets = gathers ? &no_offset : plan.run_offsets.data();
    args.runs = gathers ? 1 : static_cast<int64_t>(plan.run_offsets.size());
    args.run_words = gathers ? layer_.window_words : plan.run_words;
    args.initial = block.initial;
    for (int64_t begin = task_begin; begin < task_end; begin += block_pixels) {
      args.pixels = std::min(block_pixels, task_end - begin);
      const Range range{begin, begin + args.pixels};
      int64_t located_group = -1;
      // Channels in the outer loop, pixels in the inner one: a tile's weights stay in the L1 cache.
      for (int64_t c = channel_range.begin; c < channel_range.end; ++c) {
        const ChannelTile& tile = layer_.tiles[static_cast<size_t>(c)];
        if (tile.group != located_group) {
          LocatePixels(layer_, plan, image, tile.group, range, &block);
          if (sums_signs_) SumSigns(layer_, plan, args.pixels, &block);
          if (gathers) GatherWindows(layer_, plan, args.pixels, rows, &block);
          located_group = tile.group;
        }
        args.weights = weights_.data() + tile.weights_offset;
        args.blocks = tile.blocks;
        args.initial_offset = tile.table_offset;
        process(tile, range, block, args);
      }
    }
    const int64_t tiles = CeilDiv(task_end - task_begin, kTilePixels);
    CountCalls(layer_.isa, static_cast<uint64_t>((channel_range.end - channel_range.begin) * tiles *
                                                 layer_.bit_planes));
  });
}

BitBatch ConvDriver::Cleared(const BitBatch& input, std::vector<uint32_t>* copy) const {
  BitBatch cleared = input;
  const int64_t pixels = input.batch * input.depth * input.height * input.width;
  cleared.data =
      ClearUnusedBits(input.data, pixels * layer_.bit_planes, layer_.spec.channels, copy);
  return cleared;
}

bool ConvDriver::GroupsAreWholeWords() const {
  return layer_.input_groups == 1 || layer_.spec.out_channels / layer_.spec.group % 32 == 0;
}

// Calls fill(to, stride), which writes the words of a tile's pixels, either into `out`,
// [pixels][ceil(out_channels / 32)], or into a buffer that is then merged into `out`.
template <typename Fill>
void ConvDriver::WriteBits(const ChannelTile& tile, Range pixels, uint32_t* out,
                           const Fill& fill) const {
  const int64_t words = WordsForBits(layer_.spec.out_channels);
  const int64_t count = pixels.end - pixels.begin;
  uint32_t* const to = out + pixels.begin * words;
  if (GroupsAreWholeWords()) return fill(to + tile.channel / 32, words);
  // One task merges the groups that share words, into words that it clears first.
  if (tile.channel == 0) std::fill_n(to, count * words, 0u);
  uint32_t bits[kTilePixels * kTileWords];
  fill(bits, kTileWords);
  for (int64_t p = 0; p < count; ++p) {
    MergeBits(bits + p * kTileWords, tile.channels, tile.channel, to + p * words);
  }
}

void ConvDriver::Run(const BitBatch& given, uint32_t* out, const TaskRunner& runner) const {
  std::vector<uint32_t> copy;
  const BitBatch input = Cleared(given, &copy);
  const std::shared_ptr<const ConvPlan> plan = PlanFor(input);
  ForEachBlock(
      input, *plan, kTilePixels, GroupsAreWholeWords() ? Cut::kWords : Cut::kPixels, runner,
      [&](const ChannelTile& tile, Range block, const PixelBlock&, const AccumulateArgs& args) {
        alignas(64) int32_t sums[kTilePixels * kTileChannels];
        ForEachTile(args, [&](AccumulateArgs part, int64_t first) {
          const int64_t begin = block.begin + first;
          part.sums = sums;
          WriteBits(tile, Range{begin, begin + part.pixels}, out,
                    [&](uint32_t* to, int64_t stride) {
                      if (!layer_.depthwise) {
                        return layer_.isa.accumulate_bits({part, to, stride});
                      }
                      AccumulateDepthwise(tile, part);
                      SignsOfSums(tile, part, to, stride);
                    });
        });
      });
}

void ConvDriver::Run(const BitBatch& given, const FloatOutput& output,
                     const TaskRunner& runner) const {
  std::vector<uint32_t> copy;
  const BitBatch input = Cleared(given, &copy);
  const std::shared_ptr<const ConvPlan> plan = PlanFor(input);
  if (plan->uses_planes) return RunWithPlanes(input, *plan, output, runner);
  const int64_t image_pixels = plan->ImagePixels();
  const bool staged = output.out != nullptr && image_pixels % kConflictPixels == 0;
  const bool bases = layer_.spec.bases > 0;
  // Linear layers: the channels of an image of one pixel lie together.
  const bool in_rows =
      image_pixels == 1 && output.residual == nullptr && output.factor == nullptr && !bases;
  static_assert(kConflictPixels % kBlockPixels == 0, "a staged block lies in one image");
  const int64_t grain = staged ? kBlockPixels : kTilePixels;
  const Cut cut = output.bits == nullptr || GroupsAreWholeWords() ? Cut::kPlanes : Cut::kPixels;
  const int64_t passes = bases ? layer_.bit_planes : 1;
  const float* const added = bases ? output.out : output.residual;

  const auto process = [&](const ChannelTile& tile, Range block, const PixelBlock& located,
                           const AccumulateArgs& args) {
    alignas(64) int32_t sums[kTilePixels * kTileChannels];
    thread_local Buffer<float> staging_buffer;
    float* const staging =
        staged ? staging_buffer.Reserve(kTileChannels * kStagingStride) : nullptr;
    const auto plane = [&](int64_t pixel) {  // index of the pixel in the tile's first channel
      const int64_t image = pixel / image_pixels;
      return (image * layer_.spec.out_channels + tile.channel) * image_pixels +
             pixel % image_pixels;
    };
    const auto copy_rows = [&](const float* from, int64_t from_stride, float* to,
                               int64_t to_stride) {
      for (int64_t o = 0; o < tile.channels; ++o) {
        std::copy_n(from + o * from_stride, args.pixels, to + o * to_stride);
      }
    };
    for (int64_t pixel = block.begin; bases && tile.base == 0 && pixel < block.end;) {
      const int64_t end = std::min(block.end, (pixel / image_pixels + 1) * image_pixels);
      Prefill(tile, Range{pixel - block.begin, end - block.begin}, *plan, located,
              output.out + plane(pixel));
      pixel = end;
    }
    if (staged && added != nullptr) {
      copy_rows(added + plane(block.begin), image_pixels, staging, kStagingStride);
    }
    // The sums of a tile to the output. A tile can extend over several images; each has its own
    // output planes.
    const auto finish_tile = [&](int64_t first, int64_t pixels, const float* scale) {
      for (int64_t p = 0; p < pixels;) {
        const int64_t pixel = block.begin + first + p;
        const int64_t left = image_pixels - pixel % image_pixels;
        FinishFloatArgs finish{};
        finish.sums = sums + p * kTileChannels;
        finish.products = located.products + first + p;
        finish.scale = scale;
        finish.bias = bias_.data() + tile.table_offset;
        finish.pixels = std::min(pixels - p, left);
        finish.channels = tile.channels;
        finish.channel_stride = staged ? kStagingStride : image_pixels;
        if (output.out != nullptr) {
          finish.out = staged ? staging + first + p : output.out + plane(pixel);
        }
        if (added != nullptr) {
          finish.residual = staged ? staging + first + p : added + plane(pixel);
        }
        if (output.factor != nullptr) finish.factor = output.factor + pixel;
        if (output.bits != nullptr) {
          finish.threshold = float_threshold_.data() + tile.table_offset;
          WriteBits(tile, Range{pixel, pixel + finish.pixels}, output.bits,
                    [&](uint32_t* to, int64_t stride) {
                      finish.bits = to;
                      finish.bits_stride = stride;
                      layer_.isa.finish_float(finish);
                    });
        } else {
          layer_.isa.finish_float(finish);
        }
        p += finish.pixels;
      }
    };
    ForEachTile(args, [&](AccumulateArgs part, int64_t first) {
      part.sums = sums;
      if (output.residual != nullptr && !staged) {
        const int64_t pixel = block.begin + first;
        const int64_t left = image_pixels - pixel % image_pixels;
        PrefetchPlanes(output.residual + plane(pixel), image_pixels, tile.channels,
                       std::min(part.pixels, left));
      }
      for (int64_t pass = 0; pass < passes; ++pass, part.windows += kBlockPixels) {
        if (bases) {
          layer_.isa.accumulate(part);
        } else if (layer_.depthwise) {
          AccumulateDepthwise(tile, part);
        } else {
          Accumulate(layer_, part);
        }
        if (in_rows) {
          float* const out =
              output.out + (block.begin + first) * layer_.spec.out_channels + tile.channel;
          return layer_.isa.finish_rows({sums, located.products + first,
                                         scale_.data() + tile.table_offset,
                                         bias_.data() + tile.table_offset, part.pixels,
                                         tile.channels, out, layer_.spec.out_channels});
        }
        finish_tile(first, part.pixels,
                    scale_.data() + pass * layer_.table_width + tile.table_offset);
      }
    });
    if (staged) copy_rows(staging, kStagingStride, output.out + plane(block.begin), image_pixels);
  };
  ForEachBlock(input, *plan, grain, cut, runner, process);
}

void ConvDriver::RunWithPlanes(const BitBatch& input, const ConvPlan& plan,
                               const FloatOutput& output, const TaskRunner& runner) const {
  Scratch<uint32_t> copy(KeptInput());
  const uint32_t* const planes = SplitPlanes(layer_, plan, input, runner, &copy);
  const int64_t group_words =
      layer_.group_words * layer_.spec.width.kernel * plan.plane_height * plan.out_width;
  const int64_t image_pixels = plan.ImagePixels();
  const int64_t image_tiles = CeilDiv(image_pixels, kTilePixels);
  const int64_t tiles = input.batch * image_tiles;
  const int64_t tasks = std::min(TaskCount(layer_, input.batch * image_pixels), tiles);
  RunTasks(runner, tasks, [&](int64_t task) {
    const Range range = Part(tiles, tasks, task);
    ConvolvePlanesArgs args{};
    args.offsets = plan.plane_offsets.data();
    args.numbers = static_cast<int64_t>(plan.plane_offsets.size());
    alignas(64) uint8_t patterns[kTilePixels] = {};
    args.patterns = patterns;
    args.finish.channel_stride = image_pixels;
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t image = i / image_tiles;
      const int64_t first = i % image_tiles * kTilePixels;
      args.finish.pixels = std::min(kTilePixels, image_pixels - first);
      plan.CopyPatterns(first, args.finish.pixels, patterns);
      if (output.factor != nullptr) {
        args.finish.factor = output.factor + image * image_pixels + first;
      }
      for (const ChannelTile& tile : layer_.tiles) {
        const uint32_t* const group =
            planes + (image * layer_.spec.group + tile.group) * group_words;
        args.input = reinterpret_cast<const uint8_t*>(group) + first * layer_.isa.plane_bytes;
        args.weights = plane_weights_.data() + tile.plane_offset;
        args.constant = plan.constant.data() + tile.table_offset * kMaxPatterns;
        const int64_t plane =
            (image * layer_.spec.out_channels + tile.channel) * image_pixels + first;
        args.finish.scale = scale_.data() + tile.table_offset;
        args.finish.bias = bias_.data() + tile.table_offset;
        args.finish.channels = tile.channels;
        if (output.out != nullptr) args.finish.out = output.out + plane;
        if (output.residual != nullptr) {
          args.finish.residual = output.residual + plane;
          const int64_t next = std::min(kTilePixels, image_pixels - first - args.finish.pixels);
          PrefetchPlanes(args.finish.residual + args.finish.pixels, image_pixels, tile.channels,
                         next);
        }
        if (output.bits == nullptr) {
          layer_.isa.convolve_planes(args);
          continue;
        }
        args.finish.threshold = float_threshold_.data() + tile.table_offset;
        const int64_t begin = image * image_pixels + first;
        WriteBits(tile, Range{begin, begin + args.finish.pixels}, output.bits,
                  [&](uint32_t* to, int64_t to_stride) {
                    args.finish.bits = to;
                    args.finish.bits_stride = to_stride;
                    layer_.isa.convolve_planes(args);
                  });
      }
    }
    CountCalls(layer_.isa, static_cast<uint64_t>((range.end - range.begin) *
                                                 static_cast<int64_t>(layer_.tiles.size())));
  });
}

}  // namespace bnn_deploy
