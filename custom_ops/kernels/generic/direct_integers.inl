// What the sums of a direct convolution of integers decide, and the floats that are summed where
// they do not. A unit includes this into its anonymous namespace, after convolve_tiles.inl, and
// must define
//
//     ReachedLanes(sums, least)  bit i = (sums[i] >= least[i]), of kLanes sums
//     ReachedWord(sums, least)   the same of 32

void Decide(const DecideArgs& args) {
  const int32_t* sums = args.sums;
  uint32_t* out = args.out;
  uint32_t* undecided = args.undecided;
  const int64_t whole = args.channels / 32 * 32;
  for (int64_t p = 0; p < args.pixels; ++p) {
    int64_t o = 0;
    for (; o < whole; o += 32, sums += 32) {
      const uint32_t reached = ReachedWord(sums, args.reaches + o);
      *out++ = reached;
      *undecided++ = ReachedWord(sums, args.may + o) & ~reached;
    }
    if (o == args.channels) continue;
    uint32_t reached = 0, may = 0;
    for (int64_t i = 0; o < args.channels; i += kLanes, o += kLanes, sums += kLanes) {
      reached |= ReachedLanes(sums, args.reaches + o) << i;
      may |= ReachedLanes(sums, args.may + o) << i;
    }
    *out++ = reached;
    *undecided++ = may & ~reached;
  }
}

// Several sums at once, since each waits for its last multiply-add.
void SumsAt(const SumsAtArgs& args) {
  constexpr int kTogether = 8;
  for (int64_t first = 0; first < args.count; first += kTogether) {
    SumAt points[kTogether];
    float sums[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      points[i] = args.points[first + i < args.count ? first + i : first];
      sums[i] = points[i].bias;
    }
    for (int64_t k = 0; k < args.taps; ++k) {
      UNROLL for (int i = 0; i < kTogether; ++i) {
        sums[i] = __builtin_fmaf(*points[i].weights, points[i].input[args.offsets[k]], sums[i]);
        points[i].weights += points[i].stride;
      }
    }
    for (int i = 0; i < kTogether && first + i < args.count; ++i) args.out[first + i] = sums[i];
  }
}

// Sums: what the sums of a tile are made of, see FloatSums, of numbers of `group` integers.
template <typename Sums>
constexpr IntegerKernels MakeIntegers(int64_t group) {
  return {group, Sums::kNumbers, Sums::kVectors * kLanes, DirectConvOf<Sums>, Decide, SumsAt};
}
