// The register tiles of a direct convolution, over what its sums are made of:
//
//     struct Sums {
//       using Vector = ...;  // of sums, and of weights, of kLanes channels
//       using Number = ...;  // of the input
//       using Sum = ...;
//       static constexpr int kNumbers;           // in a weight
//       static constexpr int kSums, kVectors;    // of a tile: its vectors of sums, and the vectors
//                                                // of channels in it; a tile of fewer channels has
//                                                // more pixels
//       LoadSums(from), LoadWeights(from), StoreSums(to, sums)
//       Add(sums, w, x, p)  sums + w * x[p]; w a vector of channels, x[p] a pixel
//     };
//
// A unit includes this into its anonymous namespace, where kLanes is defined.

// A block of a tile's weights stays in the L1 cache, beside the input.
constexpr int64_t kBlockBytes = 20 << 10;

// `taps` of the taps of kPixels pixels; `from`: the sums before these, for each pixel at the next
// from_stride.
template <typename Sums, int kVectors, int kPixels>
void DirectTile(const typename Sums::Number* input, const int64_t* offsets, int64_t taps,
                const typename Sums::Number* weights, const typename Sums::Sum* from,
                int64_t from_stride, typename Sums::Sum* out, int64_t out_stride) {
  typename Sums::Vector sums[kPixels][kVectors];
  UNROLL for (int p = 0; p < kPixels; ++p) {
    UNROLL for (int v = 0; v < kVectors; ++v) sums[p][v] = Sums::LoadSums(from + v * kLanes);
    from += from_stride;
  }
  constexpr int kWeights = kLanes * Sums::kNumbers;
  for (int64_t k = 0; k < taps; ++k, weights += kVectors * kWeights) {
    const typename Sums::Number* const x = input + offsets[k];
    typename Sums::Vector w[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) w[v] = Sums::LoadWeights(weights + v * kWeights);
    UNROLL for (int p = 0; p < kPixels; ++p) {
      UNROLL for (int v = 0; v < kVectors; ++v) sums[p][v] = Sums::Add(sums[p][v], w[v], x, p);
    }
  }
  UNROLL for (int p = 0; p < kPixels; ++p) {
    UNROLL for (int v = 0; v < kVectors; ++v) Sums::StoreSums(out + v * kLanes, sums[p][v]);
    out += out_stride;
  }
}

template <typename Sums>
using ArgsOf = DirectArgs<typename Sums::Number, typename Sums::Sum>;

template <typename Sums, int kVectors>
void DirectTiles(const ArgsOf<Sums>& args, int64_t channel, const typename Sums::Number* weights) {
  constexpr int64_t kTapWeights = kVectors * kLanes * Sums::kNumbers;
  constexpr int64_t kTaps = kBlockBytes / (kTapWeights * 4);
  constexpr int kPixels = Sums::kSums / kVectors;
  // Of a smaller tile, for a rest that would leave much of a whole one unused: 8 sums, so that
  // multiply-adds wait for none before them.
  constexpr int kFewPixels = (8 + kVectors - 1) / kVectors;
  static_assert(kFewPixels <= kPixels, "a part of a tile");
  for (int64_t tap = 0; tap < args.taps; tap += kTaps) {
    const int64_t taps = args.taps - tap < kTaps ? args.taps - tap : kTaps;
    const auto tile = [&](const auto& kernel, int64_t pixel) {
      typename Sums::Sum* const out = args.out + pixel * args.out_stride + channel;
      kernel(args.input + pixel, args.offsets + tap, taps, weights + tap * kTapWeights,
             tap == 0 ? args.bias + channel : out, tap == 0 ? 0 : args.out_stride, out,
             args.out_stride);
    };
    int64_t pixel = 0;
    for (; args.pixels - pixel > kPixels - kFewPixels; pixel += kPixels) {
      tile(DirectTile<Sums, kVectors, kPixels>, pixel);
    }
    if constexpr (kFewPixels < kPixels) {
      for (; pixel < args.pixels; pixel += kFewPixels) {
        tile(DirectTile<Sums, kVectors, kFewPixels>, pixel);
      }
    }
  }
}

// Channels in the outer loop, pixels in the inner one.
template <typename Sums>
void DirectConvOf(const ArgsOf<Sums>& args) {
  constexpr int kVectors = Sums::kVectors;
  static_assert(kVectors >= 2 && kVectors <= 4, "the cases below");
  const typename Sums::Number* weights = args.weights;
  for (int64_t channel = 0; channel < args.channels;) {
    const DirectWidth tile = TileOf(channel, args.channels, kVectors * kLanes, kLanes);
    switch (tile.channels / kLanes) {
      case 1:
        DirectTiles<Sums, 1>(args, channel, weights);
        break;
      case 2:
        DirectTiles<Sums, 2>(args, channel, weights);
        break;
      case 3:
        DirectTiles < Sums, kVectors<3 ? kVectors : 3>(args, channel, weights);
        break;
      default:
        DirectTiles<Sums, kVectors>(args, channel, weights);
    }
    weights += tile.channels * args.taps * Sums::kNumbers;
    channel += tile.channels;
  }
}
