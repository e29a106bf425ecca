// Vectors of AVX-512 (F, BW, DQ), 16 lanes, for generic/*.inl. A unit includes this into its
// anonymous namespace.

constexpr int kLanes = 16;
using Floats = __m512;
using Words = __m512i;
using Lanes = __mmask16;
constexpr bool kMasks = true;

Lanes FirstLanes(int64_t count) {
  return static_cast<__mmask16>(count < 0 ? 0 : count < 16 ? (1u << count) - 1 : 0xffffu);
}

Floats Splat(float value) { return _mm512_set1_ps(value); }
Floats Load(const float* values) { return _mm512_loadu_ps(values); }
Floats LoadLanes(const float* values, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, values); }
Floats LoadInts(const int32_t* values) { return _mm512_cvtepi32_ps(_mm512_load_si512(values)); }
void Store(float* out, Floats values) { _mm512_storeu_ps(out, values); }
void StoreLanes(float* out, Floats values, Lanes lanes) {
  _mm512_mask_storeu_ps(out, lanes, values);
}

Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
Floats Multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
Floats MultiplyAdd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
constexpr int kDirectSums = 24;
constexpr int kDirectVectors = 3;
Floats AddProducts(Floats sums, Floats w, const float* x, int p) {
  return _mm512_fmadd_ps(w, Splat(x[p]), sums);
}

Floats Larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
Floats Divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
Floats Absolute(Floats a) { return _mm512_abs_ps(a); }
Floats SubtractTwice(Floats a, Floats b) { return _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), b, a); }
float Total(Floats a) { return _mm512_reduce_add_ps(a); }

Words LoadWords(const void* from) { return _mm512_loadu_si512(from); }
Words SplatWord(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
Words NextBit(Words bit) { return _mm512_slli_epi32(bit, 1); }

Words OrWhereAtLeast(Words words, Floats x, Floats threshold, Words bit) {
  return _mm512_mask_or_epi32(words, _mm512_cmp_ps_mask(x, threshold, _CMP_GE_OQ), words, bit);
}

void StoreColumn(Words words, int64_t count, uint32_t* out, int64_t stride) {
  const __m512i offsets =
      _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int>(stride)),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  _mm512_mask_i32scatter_epi32(out, FirstLanes(count), offsets, words, 4);
}

uint32_t AtLeast32(const float* x, const float* threshold) {
  const __mmask16 low = _mm512_cmp_ps_mask(Load(x), Load(threshold), _CMP_GE_OQ);
  const __mmask16 high = _mm512_cmp_ps_mask(Load(x + 16), Load(threshold + 16), _CMP_GE_OQ);
  return _mm512_kunpackw(high, low);
}

uint32_t AtLeastFirst(const float* x, const float* threshold, int64_t count) {
  const Lanes low = FirstLanes(count);
  const Lanes high = FirstLanes(count - 16);
  const __mmask16 first =
      _mm512_mask_cmp_ps_mask(low, LoadLanes(x, low), LoadLanes(threshold, low), _CMP_GE_OQ);
  const __mmask16 second = _mm512_mask_cmp_ps_mask(high, LoadLanes(x + 16, high),
                                                   LoadLanes(threshold + 16, high), _CMP_GE_OQ);
  return _mm512_kunpackw(second, first);
}

constexpr int kByteLanes = 64;

uint64_t AtLeastBytes(const uint8_t* x, const uint8_t* level) {
  return _mm512_cmpge_epu8_mask(_mm512_loadu_si512(x), _mm512_load_si512(level));
}

uint64_t AtLeastFirstBytes(const uint8_t* x, const uint8_t* level, int64_t count) {
  const __mmask64 lanes = (__mmask64{1} << count) - 1;
  return _mm512_mask_cmpge_epu8_mask(lanes, _mm512_maskz_loadu_epi8(lanes, x),
                                     _mm512_load_si512(level));
}

// rows[i][j] becomes rows[j][i]: 32-bit pairs, then 64-bit pairs, then 128-bit lanes, twice.
__attribute__((always_inline)) inline void Transpose(Floats rows[kLanes]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(t[i + j]);
      const __m512d high = _mm512_castps_pd(t[i + j + 2]);
      rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_f32x4(rows[i + j], rows[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_f32x4(rows[i + j], rows[i + j + 4], 0xdd);
    }
  }
  for (int j = 0; j < 8; ++j) {
    rows[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    rows[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
  }
}
