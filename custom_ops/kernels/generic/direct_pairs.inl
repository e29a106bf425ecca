// The direct convolution in pairs of 16-bit integers, and what its sums decide. A unit includes
// this into its anonymous namespace, after direct_conv.inl and vectors/<isa>.inl, which must also
// define
//
//     LoadWords(from), StoreWords(to, words)  at any address
//     ReachedLanes(sums, least)  bit i = (sums[i] >= least[i]), of int32 lanes
//     kPairSums, kPairVectors  see kDirectSums; kPairSums is at most kDirectSums
//
// and the unit itself
//
//     AddPairs(sums, w, x, p)  sums + the products of the pairs of w, one of each channel, with
//     x[p]

struct PairSums {
  using Vector = Words;
  using Number = uint32_t;
  using Sum = int32_t;
  static constexpr int kSums = kPairSums;
  static constexpr int kVectors = kPairVectors;
  static Vector LoadSums(const int32_t* from) { return LoadWords(from); }
  static Vector LoadWeights(const uint32_t* from) { return LoadWords(from); }
  static void StoreSums(int32_t* to, Vector sums) { StoreWords(to, sums); }
  static Vector Add(Vector sums, Vector w, const uint32_t* x, int p) {
    return AddPairs(sums, w, x, p);
  }
};
static_assert(kPairSums <= kDirectSums, "the slack of DirectKernels");

void Decide(const DecideArgs& args) {
  const int32_t* sums = args.sums;
  uint32_t* out = args.out;
  uint32_t* undecided = args.undecided;
  const int64_t whole = args.channels / 32 * 32;
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t word = 0; word < args.channels; word += 32) {
      uint32_t reached = 0, may = 0;
      const auto decide = [&](int64_t i) {
        const Words lanes = LoadWords(sums + i);
        reached |= ReachedLanes(lanes, LoadWords(args.reaches + word + i)) << i;
        may |= ReachedLanes(lanes, LoadWords(args.may + word + i)) << i;
      };
      if (word < whole) {
        UNROLL for (int64_t i = 0; i < 32; i += kLanes) decide(i);
        sums += 32;
      } else {
        for (int64_t i = 0; i < args.channels - whole; i += kLanes) decide(i);
        sums += args.channels - whole;
      }
      *out++ = reached;
      *undecided++ = may & ~reached;
    }
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

constexpr PairKernels kPairs = {kPairVectors * kLanes, DirectConvOf<PairSums>, Decide, SumsAt};
