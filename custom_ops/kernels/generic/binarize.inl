// The binarize kernels, written over an instruction set's vector type. A unit includes this into
// its anonymous namespace, after
//
// * vectors/<isa>.inl, which defines
//     Floats, Words         kLanes floats or 32-bit words
//     Lanes, FirstLanes(n)  the first n lanes: none for n below 0, all for n above kLanes
//     Load, Store           at any address; LoadLanes and StoreLanes access only their lanes
//     kMasks                Lanes is a mask: it may be empty, and other lanes are loaded as 0
//     Splat, SplatWord      a value in all lanes
//     Add, Multiply, Divide, Absolute, Total (of all lanes)
//     OrWhereAtLeast(words, x, threshold, bit)  words, with bit where x >= threshold
//     NextBit(bit)          the next higher bit
//     StoreColumn(words, count, out, stride)    lane i to out[i * stride], for i < count
//     AtLeast32(x, threshold), AtLeastFirst(x, threshold, count)  bit i = (x[i] >= threshold[i]),
//                           for 32 floats and for 1 to 31
//     AtLeastBytes(x, level), AtLeastFirstBytes(x, level, count)  the same for kByteLanes (32 or
//                           64) bytes and for 1 to kByteLanes - 1; level is aligned and has
//                           kByteLanes readable bytes
//
// * the unit's loop parameters:
//     kBinarizeVectors, kAbsMeanVectors  vectors of pixels per iteration: longer pieces of a plane
//                           cause fewer cache conflicts between planes
//     kFewVectors           the same for the remaining pixels, before single vectors
//     kMeansRows            the mean of a fully connected layer is summed by vectors of channels

void BinarizeRows(const BinarizeRowsArgs& args) {
  const int64_t whole = args.channels / 32;
  const int64_t rest = args.channels % 32;
  const float* x = args.x;
  uint32_t* out = args.out;
  for (int64_t p = 0; p < args.pixels; ++p) {
    const float* threshold = args.threshold;
    for (int64_t word = 0; word < whole; ++word, x += 32, threshold += 32) {
      *out++ = AtLeast32(x, threshold);
    }
    if (rest > 0) *out++ = AtLeastFirst(x, threshold, rest);
    x += rest;
  }
}

void BinarizeBytes(const BinarizeBytesArgs& args) {
  constexpr int kWords = kByteLanes / 32;
  const int64_t rest = args.channels % kByteLanes;
  const uint8_t* x = args.x;
  const uint8_t* const end = x + args.pixels * args.channels;
  uint32_t* out = args.out;
  while (x < end) {
    const uint8_t* level = args.level;
    const uint32_t* reachable = args.reachable;
    for (const uint8_t* const whole = x + args.channels - rest; x < whole; x += kByteLanes) {
      const uint64_t reached = AtLeastBytes(x, level);
      UNROLL for (int w = 0; w < kWords; ++w) {
        *out++ = static_cast<uint32_t>(reached >> 32 * w) & *reachable++;
      }
      level += kByteLanes;
    }
    if (rest == 0) continue;
    // Bytes of the next pixels may be read instead of zeros: reachable has no bits for them.
    const uint64_t reached =
        end - x >= kByteLanes ? AtLeastBytes(x, level) : AtLeastFirstBytes(x, level, rest);
    *out++ = static_cast<uint32_t>(reached) & reachable[0];
    if (kWords > 1 && rest > 32) *out++ = static_cast<uint32_t>(reached >> 32) & reachable[1];
    x += rest;
  }
}

Floats AbsoluteTerms(Floats x, Floats scale, Floats shift) {
  return Absolute(Add(Multiply(x, scale), shift));
}

// Lane i of a vector collects the word of pixel i, one channel (bit) at a time. kMean: also sums
// the terms, and adds them to the partial sums of earlier words in `mean`. kWhole: there are kLanes
// * kVectors pixels.
template <int kVectors, bool kWhole, bool kMean>
void BinarizeVectors(const BinarizeAbsMeanArgs& args, int64_t pixel) {
  const int64_t pixels = kWhole ? kVectors * kLanes : args.pixels - pixel;
  const int64_t words = (args.channels + 31) / 32;
  const auto load = [=](const float* from, int v) {
    return kWhole ? Load(from + v * kLanes)
                  : LoadLanes(from + v * kLanes, FirstLanes(pixels - v * kLanes));
  };
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * 32;
    const int64_t end = begin + 32 < args.channels ? begin + 32 : args.channels;
    Words bits[kVectors];
    Floats sums[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) {
      bits[v] = SplatWord(0);
      if (kMean) sums[v] = Splat(0.0f);
    }
    Words bit = SplatWord(1);
    for (int64_t c = begin; c < end; ++c) {
      const float* const plane = args.planes + c * args.channel_stride + pixel;
      const Floats threshold = Splat(args.threshold[c]);
      const Floats scale = Splat(kMean ? args.scale[c] : 0.0f);
      const Floats shift = Splat(kMean ? args.shift[c] : 0.0f);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const Floats x = load(plane, v);
        bits[v] = OrWhereAtLeast(bits[v], x, threshold, bit);
        if (kMean) sums[v] = Add(sums[v], AbsoluteTerms(x, scale, shift));
      }
      bit = NextBit(bit);
    }
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const int64_t first = pixel + v * kLanes;
      StoreColumn(bits[v], pixels - v * kLanes, args.out + first * words + word, words);
      if (!kMean) continue;
      if (word > 0) sums[v] = Add(sums[v], load(args.mean + pixel, v));
      if (word + 1 == words) {
        sums[v] = Divide(sums[v], Splat(static_cast<float>(args.channels)));
      }
      if (kWhole) {
        Store(args.mean + first, sums[v]);
      } else {
        StoreLanes(args.mean + first, sums[v], FirstLanes(pixels - v * kLanes));
      }
    }
  }
}

template <int kManyVectors, bool kMean>
void BinarizePlanes(const BinarizeAbsMeanArgs& args) {
  constexpr int kMany = kManyVectors * kLanes, kFew = kFewVectors * kLanes;
  int64_t pixel = 0;
  for (; pixel + kMany <= args.pixels; pixel += kMany) {
    BinarizeVectors<kManyVectors, true, kMean>(args, pixel);
  }
  for (; pixel + kFew <= args.pixels; pixel += kFew) {
    BinarizeVectors<kFewVectors, true, kMean>(args, pixel);
  }
  if (args.pixels - pixel > kLanes) {
    BinarizeVectors<kFewVectors, false, kMean>(args, pixel);
  } else if (args.pixels > pixel) {
    BinarizeVectors<1, false, kMean>(args, pixel);
  }
}

void Binarize(const BinarizeArgs& args) {
  if (args.pixels == 1 && args.channel_stride == 1) {  // fully connected
    return BinarizeRows({args.planes, args.threshold, args.channels, 1, args.out});
  }
  BinarizePlanes<kBinarizeVectors, false>({args.planes, args.channel_stride, args.threshold,
                                           nullptr, nullptr, args.channels, args.pixels, args.out,
                                           nullptr});
}

// The mean of one pixel with contiguous channels.
float AbsMeanRow(const BinarizeAbsMeanArgs& args) {
  constexpr int kVectors = 32 / kLanes;
  Floats sums[kVectors];
  UNROLL for (int v = 0; v < kVectors; ++v) sums[v] = Splat(0.0f);
  int64_t c = 0;
  for (; c + 32 <= args.channels; c += 32) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const int64_t at = c + v * kLanes;
      const Floats terms =
          AbsoluteTerms(Load(args.planes + at), Load(args.scale + at), Load(args.shift + at));
      sums[v] = Add(sums[v], terms);
    }
  }
  if (kMasks && c < args.channels) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const int64_t at = c + v * kLanes;
      const Lanes lanes = FirstLanes(args.channels - at);
      const Floats terms =
          AbsoluteTerms(LoadLanes(args.planes + at, lanes), LoadLanes(args.scale + at, lanes),
                        LoadLanes(args.shift + at, lanes));
      sums[v] = Add(sums[v], terms);
    }
    c = args.channels;
  }
  UNROLL for (int n = kVectors / 2; n > 0; n /= 2) {
    UNROLL for (int v = 0; v < n; ++v) sums[v] = Add(sums[v], sums[v + n]);
  }
  float rest = 0;
  for (; c < args.channels; ++c) {
    rest += __builtin_fabsf(args.scale[c] * args.planes[c] + args.shift[c]);
  }
  return (Total(sums[0]) + rest) / static_cast<float>(args.channels);
}

void BinarizeAbsMean(const BinarizeAbsMeanArgs& args) {
  if (kMeansRows && args.pixels == 1 && args.channel_stride == 1) {  // fully connected
    BinarizeRows({args.planes, args.threshold, args.channels, 1, args.out});
    *args.mean = AbsMeanRow(args);
    return;
  }
  BinarizePlanes<kAbsMeanVectors, true>(args);
}
