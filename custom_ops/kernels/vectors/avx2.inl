// Vectors of AVX2, 8 lanes, for generic/*.inl. A unit includes this into its anonymous namespace.

constexpr int kLanes = 8;
using Floats = __m256;
using Words = __m256i;
using Lanes = __m256i;  // all ones in the lanes to load or store
constexpr bool kMasks = true;

Lanes FirstLanes(int64_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
}

Floats Splat(float value) { return _mm256_set1_ps(value); }
Floats Load(const float* values) { return _mm256_loadu_ps(values); }
Floats LoadLanes(const float* values, Lanes lanes) { return _mm256_maskload_ps(values, lanes); }
Floats LoadInts(const int32_t* values) {
  return _mm256_cvtepi32_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(values)));
}
void Store(float* out, Floats values) { _mm256_storeu_ps(out, values); }
void StoreLanes(float* out, Floats values, Lanes lanes) { _mm256_maskstore_ps(out, lanes, values); }

Floats Add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
Floats Multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
Floats MultiplyAdd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
// 12 sums, three vectors of weights and a pixel take all registers.
constexpr int kDirectSums = 12;
constexpr int kDirectVectors = 3;
Floats AddProducts(Floats sums, Floats w, const float* x, int p) {
  return _mm256_fmadd_ps(w, Splat(x[p]), sums);
}

constexpr int kPairSums = 8;
constexpr int kPairVectors = 2;
Words LoadWords(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
void StoreWords(void* to, Words words) { _mm256_storeu_si256(static_cast<__m256i*>(to), words); }
uint32_t ReachedLanes(const int32_t* sums, const int32_t* least) {
  const __m256i below = _mm256_cmpgt_epi32(LoadWords(least), LoadWords(sums));
  return static_cast<uint8_t>(~_mm256_movemask_ps(_mm256_castsi256_ps(below)));
}
uint32_t ReachedWord(const int32_t* sums, const int32_t* least) {
  uint32_t reached = 0;
  UNROLL for (int i = 0; i < 32; i += kLanes) reached |= ReachedLanes(sums + i, least + i) << i;
  return reached;
}

Floats Larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
Floats Divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
Floats Absolute(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
Floats SubtractTwice(Floats a, Floats b) { return _mm256_sub_ps(a, _mm256_add_ps(b, b)); }
float Total(Floats a) {
  const __m128 halves = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
}

Words SplatWord(uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); }
Words NextBit(Words bit) { return _mm256_slli_epi32(bit, 1); }

Words OrWhereAtLeast(Words words, Floats x, Floats threshold, Words bit) {
  const __m256i reached = _mm256_castps_si256(_mm256_cmp_ps(x, threshold, _CMP_GE_OQ));
  return _mm256_or_si256(words, _mm256_and_si256(reached, bit));
}

void StoreColumn(Words words, int64_t count, uint32_t* out, int64_t stride) {
  if (stride == 1 && count >= kLanes) {
    return _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words);
  }
  alignas(32) uint32_t column[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(column), words);
  for (int64_t i = 0; i < kLanes && i < count; ++i) out[i * stride] = column[i];
}

uint32_t AtLeast32(const float* x, const float* threshold) {
  uint32_t bits = 0;
  UNROLL for (int i = 0; i < 32; i += kLanes) {
    const __m256 reached = _mm256_cmp_ps(Load(x + i), Load(threshold + i), _CMP_GE_OQ);
    bits |= static_cast<uint32_t>(_mm256_movemask_ps(reached)) << i;
  }
  return bits;
}

uint32_t AtLeastFirst(const float* x, const float* threshold, int64_t count) {
  uint32_t bits = 0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m256 reached = _mm256_cmp_ps(Load(x + i), Load(threshold + i), _CMP_GE_OQ);
    bits |= static_cast<uint32_t>(_mm256_movemask_ps(reached)) << i;
  }
  if (i == count) return bits;
  const Lanes lanes = FirstLanes(count - i);
  const __m256 reached =
      _mm256_cmp_ps(LoadLanes(x + i, lanes), LoadLanes(threshold + i, lanes), _CMP_GE_OQ);
  const __m256 used = _mm256_and_ps(reached, _mm256_castsi256_ps(lanes));
  return bits | static_cast<uint32_t>(_mm256_movemask_ps(used)) << i;
}

constexpr int kByteLanes = 32;

// There is no unsigned compare, but x >= level where max(x, level) = x.
uint64_t AtLeastBytes(const uint8_t* x, const uint8_t* level) {
  const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i least = _mm256_load_si256(reinterpret_cast<const __m256i*>(level));
  const __m256i reached = _mm256_cmpeq_epi8(_mm256_max_epu8(value, least), value);
  return static_cast<uint32_t>(_mm256_movemask_epi8(reached));
}

uint64_t AtLeastFirstBytes(const uint8_t* x, const uint8_t* level, int64_t count) {
  uint8_t copy[kByteLanes] = {};
  for (int64_t i = 0; i < count; ++i) copy[i] = x[i];
  return AtLeastBytes(copy, level);
}

// rows[i][j] becomes rows[j][i].
__attribute__((always_inline)) inline void Transpose(Floats rows[kLanes]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      rows[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2f128_ps(rows[j], rows[j + 4], 0x20);
    t[j + 4] = _mm256_permute2f128_ps(rows[j], rows[j + 4], 0x31);
  }
  for (int j = 0; j < 8; ++j) rows[j] = t[j];
}
