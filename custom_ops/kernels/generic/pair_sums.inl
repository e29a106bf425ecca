// The sums of a direct convolution in pairs of 16-bit integers. A unit includes this into its
// anonymous namespace, after vectors/<isa>.inl, which must also define
//
//     LoadWords(from), StoreWords(to, words)  at any address
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
  static constexpr int kNumbers = 1;
  static constexpr int kSums = kPairSums;
  static constexpr int kVectors = kPairVectors;
  static Vector LoadSums(const int32_t* from) { return LoadWords(from); }
  static Vector LoadWeights(const uint32_t* from) { return LoadWords(from); }
  static void StoreSums(int32_t* to, Vector sums) { StoreWords(to, sums); }
  static Vector Add(Vector sums, Vector w, const uint32_t* x, int p) {
    return AddPairs(sums, w, x, p);
  }
};
