// The direct convolution of floats, written over an instruction set's vector type. A unit includes
// this into its anonymous namespace, after convolve_tiles.inl and vectors/<isa>.inl (see
// binarize.inl), which must also define
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
  static constexpr int kNumbers = 1;  // in a weight
  static constexpr int kSums = kDirectSums;
  static constexpr int kVectors = kDirectVectors;
  static Vector LoadSums(const float* from) { return Load(from); }
  static Vector LoadWeights(const float* from) { return Load(from); }
  static void StoreSums(float* to, Vector sums) { Store(to, sums); }
  static Vector Add(Vector sums, Vector w, const float* x, int p) {
    return AddProducts(sums, w, x, p);
  }
};

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

constexpr DirectKernels kDirect = {kLanes, kDirectVectors * kLanes, kDirectSums,
                                   DirectConvOf<FloatSums>, PoolRows};
