// Average pooling to bits, written over an instruction set's vector type. A unit includes this into
// its anonymous namespace, after vectors/<isa>.inl, of which it takes Floats, kLanes, Lanes,
// FirstLanes, Splat, Load, LoadLanes, Store, StoreLanes, Add and Larger.

// The sums of the columns of a window's rows: out[x], x < width.
template <bool kRelu>
void SumRows(const float* row, int64_t row_step, int64_t count, int64_t width, float* out) {
  const auto positive = [](Floats x) { return kRelu ? Larger(Splat(0.0f), x) : x; };
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) {
    Floats sums = positive(Load(row + x));
    for (int64_t i = 1; i < count; ++i) sums = Add(sums, positive(Load(row + i * row_step + x)));
    Store(out + x, sums);
  }
  if (x == width) return;
  const Lanes lanes = FirstLanes(width - x);
  Floats sums = positive(LoadLanes(row + x, lanes));
  for (int64_t i = 1; i < count; ++i) {
    sums = Add(sums, positive(LoadLanes(row + i * row_step + x, lanes)));
  }
  StoreLanes(out + x, sums, lanes);
}

// reached[i] |= bit where the sum of window i reaches the threshold. kKernel and kStride: 0 for
// those of `args`. The windows between a row's last and the next row's first mean nothing, but let
// all rows be one loop, which the compiler vectorises.
template <int64_t kKernel, int64_t kStride>
void SumColumns(const AveragePoolArgs& args, float threshold, uint32_t bit, uint32_t* reached) {
  const int64_t kernel = kKernel > 0 ? kKernel : args.kernel;
  const int64_t stride = kStride > 0 ? kStride : args.stride;
  const int64_t dilation = args.dilation;
  const int64_t count = args.out_rows * args.span / stride;
  const float* const sums = args.sums;
  for (int64_t i = 0; i < count; ++i) {
    float sum = sums[i * stride];
    UNROLL for (int64_t j = 1; j < kernel; ++j) sum += sums[i * stride + j * dilation];
    reached[i] |= sum >= threshold ? bit : 0u;
  }
}

using SumColumnsFn = void (*)(const AveragePoolArgs&, float, uint32_t, uint32_t*);

SumColumnsFn SumColumnsFor(int64_t kernel, int64_t stride) {
  if (kernel == 2 && stride == 2) return SumColumns<2, 2>;
  if (kernel == 3 && stride == 2) return SumColumns<3, 2>;
  if (kernel == 3 && stride == 1) return SumColumns<3, 1>;
  return SumColumns<0, 0>;
}

void AveragePool(const AveragePoolArgs& args) {
  const SumColumnsFn sum_columns = SumColumnsFor(args.kernel, args.stride);
  const int64_t floats = args.out_rows * args.span + args.kernel * args.dilation;
  const int64_t pitch = args.span / args.stride;
  const int64_t words = (args.channels + 31) / 32;
  for (int64_t i = 0; i < floats; ++i) args.sums[i] = 0.0f;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    for (int64_t i = 0; i < args.out_rows * pitch; ++i) args.reached[i] = 0;
    for (int64_t c = begin; c < end; ++c) {
      const float* const plane = args.planes + c * args.channel_stride;
      for (int64_t r = 0; r < args.out_rows; ++r) {
        const PoolTaps taps = args.rows[r];
        if (taps.count == 0) continue;  // its zeros stay
        (args.relu ? SumRows<true> : SumRows<false>)(plane + taps.first, args.row_step, taps.count,
                                                     args.width,
                                                     args.sums + r * args.span + args.left);
      }
      sum_columns(args, args.threshold[c], 1u << (c - begin), args.reached);
    }
    for (int64_t r = 0; r < args.out_rows; ++r) {
      uint32_t* const out = args.out + r * args.out_width * words + word;
      for (int64_t x = 0; x < args.out_width; ++x) out[x * words] = args.reached[r * pitch + x];
    }
  }
}
