// The direct convolution of floats, written over an instruction set's vector type. A unit includes
// this into its anonymous namespace, after vectors/<isa>.inl (see binarize.inl), which must also
// define
//
//     Larger(a, b)          a > b ? a : b
//     Transpose(rows)       rows[i][j] becomes rows[j][i], of kLanes vectors
//     AddProducts(sums, w, x, p)  sums + w * x[p], fused; w a vector of channels, x[p] a pixel
//     kDirectSums, kDirectVectors  the vectors of sums of a register tile, and the vectors of
//                           channels in it; a tile of fewer channels has more pixels

// What the sums of a tile are made of.
struct FloatSums {
  using Vector = Floats;
  using Number = float;
  using Sum = float;
  static constexpr int kSums = kDirectSums;
  static constexpr int kVectors = kDirectVectors;
  static Vector LoadSums(const float* from) { return Load(from); }
  static Vector LoadWeights(const float* from) { return Load(from); }
  static void StoreSums(float* to, Vector sums) { Store(to, sums); }
  static Vector Add(Vector sums, Vector w, const float* x, int p) {
    return AddProducts(sums, w, x, p);
  }
};

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
  for (int64_t k = 0; k < taps; ++k, weights += kVectors * kLanes) {
    const typename Sums::Number* const x = input + offsets[k];
    typename Sums::Vector w[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) w[v] = Sums::LoadWeights(weights + v * kLanes);
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
  constexpr int64_t kTaps = kBlockBytes / (kVectors * kLanes * 4);
  constexpr int kPixels = Sums::kSums / kVectors;
  // Of a smaller tile, for a rest that would leave much of a whole one unused: 8 sums, so that
  // multiply-adds wait for none before them.
  constexpr int kFewPixels = (8 + kVectors - 1) / kVectors;
  static_assert(kFewPixels <= kPixels, "a part of a tile");
  for (int64_t tap = 0; tap < args.taps; tap += kTaps) {
    const int64_t taps = args.taps - tap < kTaps ? args.taps - tap : kTaps;
    const auto tile = [&](const auto& kernel, int64_t pixel) {
      typename Sums::Sum* const out = args.out + pixel * args.out_stride + channel;
      kernel(args.input + pixel, args.offsets + tap, taps, weights + tap * kVectors * kLanes,
             tap == 0 ? args.bias + channel : out, tap == 0 ? 0 : args.out_stride, out,
             args.out_stride);
    };
    int64_t pixel = 0;
    for (; args.pixels - pixel > kPixels - kFewPixels; pixel += kPixels) {
      tile(DirectTile<Sums, kVectors, kPixels>, pixel);
    }
    for (; pixel < args.pixels; pixel += kFewPixels) {
      tile(DirectTile<Sums, kVectors, kFewPixels>, pixel);
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
    weights += tile.channels * args.taps;
    channel += tile.channels;
  }
}

// The maximum of the columns [first, last) of the rows, for kLanes channels.
Floats PoolColumns(const PoolRowsArgs& args, int64_t first, int64_t last, int64_t channel) {
  Floats most = Load(args.rows[0] + first * args.row_stride + channel);
  for (int64_t r = 0; r < args.row_count; ++r) {
    const float* from = args.rows[r] + first * args.row_stride + channel;
    for (int64_t x = first; x < last; ++x, from += args.row_stride) most = Larger(Load(from), most);
  }
  return most;
}

// The same of kSize rows and columns.
template <int kSize>
Floats PoolSquare(const PoolRowsArgs& args, int64_t first, int64_t channel) {
  Floats most = Load(args.rows[0] + first * args.row_stride + channel);
  UNROLL for (int r = 0; r < kSize; ++r) {
    const float* const from = args.rows[r] + first * args.row_stride + channel;
    UNROLL for (int x = r == 0 ? 1 : 0; x < kSize; ++x) {
      most = Larger(Load(from + x * args.row_stride), most);
    }
  }
  return most;
}

// The maximum of one window. kSize: of the pool's windows, where they are square and whole; 0 for
// any others.
template <int kSize>
Floats PoolWindow(const PoolRowsArgs& args, int64_t pixel, int64_t channel) {
  const int64_t start = pixel * args.stride - args.pad;
  if constexpr (kSize == 1) return Load(args.rows[0] + start * args.row_stride + channel);
  const int64_t end = start + args.kernel;
  if (kSize > 1 && start >= 0 && end <= args.width) return PoolSquare<kSize>(args, start, channel);
  return PoolColumns(args, start > 0 ? start : 0, end < args.width ? end : args.width, channel);
}

// The vectors of channels that are pooled together: neighbours in memory.
constexpr int kPoolVectors = 4;

// Squares of kLanes channels x kLanes pixels at a time.
template <int kSize>
void PoolWindows(const PoolRowsArgs& args) {
  for (int64_t first = 0; first < args.channels; first += kPoolVectors * kLanes) {
    const int64_t left = (args.channels - first + kLanes - 1) / kLanes;
    const int64_t vectors = left < kPoolVectors ? left : kPoolVectors;
    for (int64_t pixel = 0; pixel < args.pixels; pixel += kLanes) {
      const int64_t pixels = args.pixels - pixel < kLanes ? args.pixels - pixel : kLanes;
      Floats squares[kPoolVectors][kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        for (int64_t v = 0; v < vectors; ++v) {
          squares[v][i] =
              PoolWindow<kSize>(args, pixel + (i < pixels ? i : pixels - 1), first + v * kLanes);
        }
      }
      float* out = args.out + first * args.channel_stride + pixel;
      for (int64_t v = 0; v < vectors; ++v) {
        Transpose(squares[v]);
        const int64_t rest = args.channels - first - v * kLanes;
        for (int64_t c = 0; c < kLanes && c < rest; ++c, out += args.channel_stride) {
          if (pixels == kLanes) {
            Store(out, squares[v][c]);
          } else {
            StoreLanes(out, squares[v][c], FirstLanes(pixels));
          }
        }
      }
    }
  }
}

void PoolRows(const PoolRowsArgs& shared_args) {
  const PoolRowsArgs args = shared_args;  // no store can change a local copy
  const bool square = args.row_count == args.kernel;
  if (square && args.kernel == 1) return PoolWindows<1>(args);
  if (square && args.kernel == 2) return PoolWindows<2>(args);
  if (square && args.kernel == 3) return PoolWindows<3>(args);
  PoolWindows<0>(args);
}

constexpr DirectKernels MakeDirect(const PairKernels* pairs) {
  return {kLanes, kDirectVectors * kLanes, kDirectSums, DirectConvOf<FloatSums>, PoolRows, pairs};
}
