// What the units of AVX-512 that take pixels as lanes share: rows of words are split, and sums
// become rows of the output planes. A unit includes this into its anonymous namespace, after
// avx512.inl.

static_assert(kMaxPatterns == 16, "the lanes of a permutation");

constexpr int64_t kMostPlaneWords = 128;  // for longer windows pixels as lanes do not pay

constexpr __mmask16 kAllLanes = 0xffff;

// from[i * step] for i < 16, from `step` vectors. kStep: the step, or 0 for any up to 16.
template <int kStep>
__m512i LoadStrided(const uint32_t* from, int64_t any_step) {
  const int step = kStep > 0 ? kStep : static_cast<int>(any_step);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(step));
  const __m512i vectors = _mm512_srli_epi32(index, 4);  // a permutation takes the index modulo 16
  __m512i words = _mm512_permutexvar_epi32(index, _mm512_loadu_si512(from));
  UNROLL for (int v = 1; v < step; ++v) {
    const __mmask16 mask = _mm512_cmpeq_epi32_mask(vectors, _mm512_set1_epi32(v));
    const __m512i vector = _mm512_loadu_si512(from + v * 16);
    words = _mm512_mask_permutexvar_epi32(words, mask, index, vector);
  }
  return words;
}

// Calls store(plane, first, words) with the words of up to 16 pixels, from `first` on, of each word
// and column of the kernel.
template <typename Store>
void SplitWords(const SplitRowArgs& args, const Store& store) {
  const int64_t step = args.stride * args.words;
  static_assert(kRowSlack >= 16 * 16, "what the vectors of the largest step read");
  for (int64_t plane = 0; plane < args.words * args.kernel; ++plane) {
    const uint32_t* const row =
        args.row + plane % args.kernel * args.dilation * args.words + plane / args.kernel;
    const auto split = [&](const auto& load) {
      for (int64_t i = 0; i < args.out_width; i += 16) store(plane, i, load(row + i * step, i));
    };
    if (step == 1) {
      split([](const uint32_t* from, int64_t) { return LoadStrided<1>(from, 1); });
    } else if (step == 2) {
      split([](const uint32_t* from, int64_t) { return LoadStrided<2>(from, 2); });
    } else if (step == 4) {
      split([](const uint32_t* from, int64_t) { return LoadStrided<4>(from, 4); });
    } else if (step <= 16) {
      split([step](const uint32_t* from, int64_t) { return LoadStrided<0>(from, step); });
    } else {
      split([&](const uint32_t* from, int64_t first) {
        alignas(64) uint32_t words[16] = {};
        for (int64_t i = 0; i < 16 && first + i < args.out_width; ++i) words[i] = from[i * step];
        return _mm512_load_si512(words);
      });
    }
  }
}

__m512i LoadPatterns(const ConvolvePlanesArgs& args, int64_t pixel) {
  return _mm512_cvtepu8_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(args.patterns + pixel)));
}

// The outputs of 16 pixels of a channel, of which those of `mask` exist.
template <Epilogue kEpilogue>
__attribute__((always_inline)) inline void FinishPixels(const FinishFloatArgs& finish,
                                                        int64_t channel, int64_t pixel,
                                                        __mmask16 mask, __m512i mismatches,
                                                        __m512 constant, uint32_t* words) {
  const int64_t at = channel * finish.channel_stride + pixel;
  const __m512 dot =  // exact
      _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), _mm512_cvtepi32_ps(mismatches), constant);
  const __m512 scaled = _mm512_mul_ps(dot, _mm512_set1_ps(finish.scale[channel]));
  __m512 value = _mm512_add_ps(scaled, _mm512_set1_ps(finish.bias[channel]));
  if (kEpilogue == Epilogue::kResidual) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, finish.residual + at));
  } else if (kEpilogue == Epilogue::kFactor) {
    value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, finish.factor + pixel));
  }
  if (kEpilogue != Epilogue::kResidual || finish.out != nullptr) {
    _mm512_mask_storeu_ps(finish.out + at, mask, value);
  }
  if (kEpilogue == Epilogue::kResidual && finish.bits != nullptr) {
    const __m512 threshold = _mm512_set1_ps(finish.threshold[channel]);
    const __mmask16 above = _mm512_cmp_ps_mask(value, threshold, _CMP_GE_OQ);
    uint32_t* const word = words + channel / 32 * kTilePixels + pixel;
    const __m512i bits = _mm512_load_si512(word);
    const __m512i bit = _mm512_set1_epi32(static_cast<int>(1u << (channel % 32)));
    _mm512_store_si512(word, _mm512_mask_or_epi32(bits, above, bits, bit));
  }
}
