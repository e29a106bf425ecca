#include "drivers/conv/layer.h"

#include <algorithm>
#include <utility>

namespace bnn_deploy {
namespace {

// Pixels as lanes need kernel width / stride copies of the input, which should fit into the caches.
constexpr int64_t kMaxPlaneCopies = 8;

// Work of more than some 15 microseconds (with AVX2) is shared between threads: waking a thread
// that still spins takes 2 or 3. Smaller tasks let the threads finish together.
constexpr double kMinSharedWordOps = 1 << 18;
constexpr double kTaskWordOps = 1 << 16;
constexpr double kMaxTasks = 256;
// What an output takes beside its words, in words: the threshold or the scale, and the bookkeeping.
constexpr double kOutputWordOps = 4;

bool HasPadding(const Axis& axis) { return axis.pad_begin > 0 || axis.pad_end > 0; }

}  // namespace

ConvLayer::ConvLayer(const Isa& unit, ConvSpec convolution)
    : isa(unit),
      spec(std::move(convolution)),
      group_channels(spec.channels / spec.group),
      group_words(WordsForBits(group_channels)),
      bit_planes(std::max<int64_t>({spec.level_bits, spec.planes, 1})),
      bases(std::max<int64_t>(spec.bases, 1)),
      pixel_words(bit_planes * WordsForBits(spec.channels)),
      depthwise(spec.group > 1 && group_channels == 1 && spec.out_channels == spec.channels &&
                spec.level_bits == 0 && spec.bases == 0 && spec.taps() <= kMaxDepthwiseTaps),
      input_groups(depthwise ? 1 : spec.group),
      input_words(depthwise ? pixel_words : group_words),
      copies_input(HasPadding(spec.depth) || HasPadding(spec.height) || HasPadding(spec.width) ||
                   (input_groups > 1 && group_channels % 32 != 0) ||
                   (bit_planes > 1 && spec.width.kernel > 1)),  // separate planes make longer runs
      rows_are_runs(!depthwise && spec.width.dilation == 1 &&
                    (copies_input || pixel_words == group_words)),
      encodes(!depthwise && isa.encode != nullptr &&
              spec.taps() * group_words >= isa.encoded_words),
      window_words(RoundUp(spec.taps() * group_words,
                           !depthwise && (isa.gathers || encodes) ? isa.granule / 4 : 1)),
      takes_planes(!depthwise && isa.convolve_planes != nullptr && spec.level_bits == 0 &&
                   spec.bases == 0 && spec.depth.kernel == 1 && !HasPadding(spec.depth) &&
                   window_words <= isa.most_plane_words &&
                   spec.width.kernel <= kMaxPlaneCopies * spec.width.stride) {
  const int64_t group_outputs = spec.out_channels / input_groups;
  const int64_t numbers = window_words * 4 / isa.plane_bytes;
  for (int64_t group = 0; group < input_groups; ++group) {
    for (int64_t o = 0; o < group_outputs; o += kTileChannels) {
      const int64_t channels = std::min(group_outputs - o, kTileChannels);
      const int64_t blocks = CeilDiv(channels, isa.channel_block);
      for (int64_t base = 0; base < bases; ++base) {
        tiles.push_back({group, group * group_outputs + o, channels, table_width, weights_size,
                         plane_weights_size, blocks, base});
        table_width += RoundUp(channels, 32);
        plane_weights_size += isa.plane_pair_step > 0
                                  ? CeilDiv(channels, 2) * RoundUp(numbers, isa.plane_pair_step)
                                  : channels * numbers;
        weights_size +=
            depthwise ? kTileWords * window_words : blocks * isa.channel_block * window_words;
      }
    }
  }
}

int64_t TaskCount(const ConvLayer& layer, int64_t pixels) {
  const double work = static_cast<double>(pixels) *
                      static_cast<double>(layer.spec.out_channels * layer.bases) *
                      (static_cast<double>(layer.bit_planes * layer.window_words) + kOutputWordOps);
  if (work < kMinSharedWordOps) return 1;
  return static_cast<int64_t>(std::min(work / kTaskWordOps, kMaxTasks));
}

}  // namespace bnn_deploy
