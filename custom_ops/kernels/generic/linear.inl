// Sums of rows of floats, written over an instruction set's vector type. A unit includes this into
// its anonymous namespace, after vectors/<isa>.inl (see binarize.inl), which must also define
//
//     MultiplyAdd(a, b, c)  a * b + c, fused
//     kDirectSums, kDirectVectors  see direct_conv.inl

constexpr int kTileImages = kDirectSums / kDirectVectors;
constexpr int kRowsTogether = 4;  // so that sums are loaded and stored less often

// All rows, whose columns are kVectors vectors.
template <int kVectors>
void AddNarrowRows(const AddRowsArgs& args) {
  const Lanes last = FirstLanes(args.channels - (kVectors - 1) * kLanes);
  Floats sums[kVectors];
  UNROLL for (int v = 0; v < kVectors; ++v) sums[v] = Load(args.sums + v * kLanes);
  for (int64_t i = 0; i < args.count; ++i) {
    const float* const row = args.rows[i];
    const Floats x = Splat(args.x[i]);
    UNROLL for (int v = 0; v + 1 < kVectors; ++v) {
      sums[v] = MultiplyAdd(x, Load(row + v * kLanes), sums[v]);
    }
    const Floats end = LoadLanes(row + (kVectors - 1) * kLanes, last);
    sums[kVectors - 1] = MultiplyAdd(x, end, sums[kVectors - 1]);
  }
  UNROLL for (int v = 0; v < kVectors; ++v) Store(args.sums + v * kLanes, sums[v]);
}

// kCount rows from `first` on: each is read from its begin to its end, as memory likes it.
template <int kCount>
void AddWideRows(const AddRowsArgs& args, int64_t first) {
  const float* row[kCount];
  Floats x[kCount];
  UNROLL for (int i = 0; i < kCount; ++i) {
    row[i] = args.rows[first + i];
    x[i] = Splat(args.x[first + i]);
  }
  float* const sums = args.sums;
  const int64_t channels = args.channels;
  int64_t o = 0;
  for (; o + kLanes <= channels; o += kLanes) {
    Floats sum = Load(sums + o);
    UNROLL for (int i = 0; i < kCount; ++i) sum = MultiplyAdd(x[i], Load(row[i] + o), sum);
    Store(sums + o, sum);
  }
  if (o == channels) return;
  const Lanes lanes = FirstLanes(channels - o);
  Floats sum = Load(sums + o);
  UNROLL for (int i = 0; i < kCount; ++i) {
    sum = MultiplyAdd(x[i], LoadLanes(row[i] + o, lanes), sum);
  }
  Store(sums + o, sum);
}

void AddRows(const AddRowsArgs& args) {
  if (args.channels <= kLanes) return AddNarrowRows<1>(args);
  if (args.channels <= 2 * kLanes) return AddNarrowRows<2>(args);
  int64_t i = 0;
  for (; i + kRowsTogether <= args.count; i += kRowsTogether) AddWideRows<kRowsTogether>(args, i);
  for (; i < args.count; ++i) AddWideRows<1>(args, i);
}

// Copies the rows, from their begins to their ends, as memory likes it, to [tiles][count][tile
// columns].
void PackRows(const MultiplyRowsArgs& args) {
  constexpr int64_t kColumns = kDirectVectors * kLanes;
  const int64_t whole = args.channels / kColumns * kColumns;
  const int64_t rest = (args.channels - whole + kLanes - 1) / kLanes * kLanes;
  const float* row = args.rows;
  for (int64_t i = 0; i < args.count; ++i, row += args.row_stride) {
    float* to = args.packed + i * kColumns;
    int64_t o = 0;
    for (; o < whole; o += kColumns, to += args.count * kColumns) {
      UNROLL for (int v = 0; v < kDirectVectors; ++v) {
        Store(to + v * kLanes, Load(row + o + v * kLanes));
      }
    }
    to = args.packed + args.count * whole + i * rest;
    for (; o < args.channels; o += kLanes, to += kLanes) {
      Store(to, LoadLanes(row + o, FirstLanes(args.channels - o)));
    }
  }
}

// The sums of kTileImages images from `image` on, and of kVectors vectors of columns from `o` on.
template <int kVectors>
void MultiplyTile(const MultiplyRowsArgs& args, int64_t image, int64_t o) {
  float* const to = args.sums + image * args.sums_stride + o;
  Floats sums[kTileImages][kVectors];
  UNROLL for (int n = 0; n < kTileImages; ++n) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[n][v] = Load(to + n * args.sums_stride + v * kLanes);
    }
  }
  const float* x = args.x + image * args.x_stride;
  const float* row = args.packed + args.count * o;
  // The first two tiles of a piece fetch a half each of what PackRows reads next.
  constexpr int64_t kFetched = kVectors * kLanes / 2;
  const float* next = args.rows + args.count * (args.row_stride + o);
  if (image > 0) next += args.count * kFetched;
  const bool fetches = image <= kTileImages;
  for (int64_t i = 0; i < args.count; ++i, ++x, row += kVectors * kLanes, next += kFetched) {
    if (fetches) __builtin_prefetch(next, 0, 2);
    Floats w[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) w[v] = Load(row + v * kLanes);
    UNROLL for (int n = 0; n < kTileImages; ++n) {
      const Floats value = Splat(x[n * args.x_stride]);
      UNROLL for (int v = 0; v < kVectors; ++v) sums[n][v] = MultiplyAdd(value, w[v], sums[n][v]);
    }
  }
  UNROLL for (int n = 0; n < kTileImages; ++n) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      Store(to + n * args.sums_stride + v * kLanes, sums[n][v]);
    }
  }
}

// Images in the inner loop: the rows' piece stays in the first-level cache.
template <int kVectors>
void MultiplyColumns(const MultiplyRowsArgs& args, int64_t o) {
  for (int64_t image = 0; image < args.images; image += kTileImages) {
    MultiplyTile<kVectors>(args, image, o);
  }
}

void MultiplyRows(const MultiplyRowsArgs& args) {
  static_assert(kDirectVectors >= 2 && kDirectVectors <= 4, "the cases below");
  constexpr int64_t kColumns = kDirectVectors * kLanes;
  PackRows(args);
  int64_t o = 0;
  for (; o + kColumns <= args.channels; o += kColumns) MultiplyColumns<kDirectVectors>(args, o);
  switch ((args.channels - o + kLanes - 1) / kLanes) {
    case 0:
      break;
    case 1:
      MultiplyColumns<1>(args, o);
      break;
    case 2:
      MultiplyColumns<2>(args, o);
      break;
    case 3:
      MultiplyColumns < kDirectVectors<3 ? kDirectVectors : 3>(args, o);
      break;
    default:
      MultiplyColumns<kDirectVectors>(args, o);
  }
}

constexpr LinearKernels kLinear = {kTileImages, AddRows, MultiplyRows};
