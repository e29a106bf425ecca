// Vectors of NEON, 4 lanes, for generic/*.inl. A unit includes this into its anonymous namespace.

constexpr int kLanes = 4;
using Floats = float32x4_t;
using Words = uint32x4_t;
using Lanes = int64_t;  // the number of lanes, from the first on; NEON has no masks
constexpr bool kMasks = false;

Lanes FirstLanes(int64_t count) { return count; }

Floats Splat(float value) { return vdupq_n_f32(value); }
Floats Load(const float* values) { return vld1q_f32(values); }
Floats LoadLanes(const float* values, Lanes lanes) {
  if (lanes >= 4) return vld1q_f32(values);
  float32x4_t row = vld1q_dup_f32(values);
  if (lanes > 1) row = vld1q_lane_f32(values + 1, row, 1);
  if (lanes > 2) row = vld1q_lane_f32(values + 2, row, 2);
  return row;
}
Floats LoadInts(const int32_t* values) { return vcvtq_f32_s32(vld1q_s32(values)); }
void Store(float* out, Floats values) { vst1q_f32(out, values); }
void StoreLanes(float* out, Floats values, Lanes lanes) {
  if (lanes >= 4) return vst1q_f32(out, values);
  vst1q_lane_f32(out, values, 0);
  if (lanes > 1) vst1q_lane_f32(out + 1, values, 1);
  if (lanes > 2) vst1q_lane_f32(out + 2, values, 2);
}

Floats Add(Floats a, Floats b) { return vaddq_f32(a, b); }
Floats Multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
Floats MultiplyAdd(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
constexpr int kDirectSums = 16;
constexpr int kDirectVectors = 4;
// By element of a vector of pixels: a load to all lanes (ld1r) takes a second operation on
// Cortex-A72.
Floats AddProducts(Floats sums, Floats w, const float* x, int p) {
  const float32x4_t pixels = vld1q_f32(x + p / 4 * 4);
  switch (p % 4) {
    case 0:
      return vfmaq_laneq_f32(sums, w, pixels, 0);
    case 1:
      return vfmaq_laneq_f32(sums, w, pixels, 1);
    case 2:
      return vfmaq_laneq_f32(sums, w, pixels, 2);
    default:
      return vfmaq_laneq_f32(sums, w, pixels, 3);
  }
}

Floats Larger(Floats a, Floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
Floats Divide(Floats a, Floats b) { return vdivq_f32(a, b); }
Floats Absolute(Floats a) { return vabsq_f32(a); }
Floats SubtractTwice(Floats a, Floats b) { return vfmsq_f32(a, b, vdupq_n_f32(2.0f)); }
float Total(Floats a) { return vaddvq_f32(a); }

// rows[i][j] becomes rows[j][i].
void Transpose(Floats rows[kLanes]) {
  const float32x4_t even[2] = {vtrn1q_f32(rows[0], rows[1]), vtrn1q_f32(rows[2], rows[3])};
  const float32x4_t odd[2] = {vtrn2q_f32(rows[0], rows[1]), vtrn2q_f32(rows[2], rows[3])};
  rows[0] = vcombine_f32(vget_low_f32(even[0]), vget_low_f32(even[1]));
  rows[1] = vcombine_f32(vget_low_f32(odd[0]), vget_low_f32(odd[1]));
  rows[2] = vcombine_f32(vget_high_f32(even[0]), vget_high_f32(even[1]));
  rows[3] = vcombine_f32(vget_high_f32(odd[0]), vget_high_f32(odd[1]));
}

Words SplatWord(uint32_t word) { return vdupq_n_u32(word); }
Words NextBit(Words bit) { return vshlq_n_u32(bit, 1); }

Words OrWhereAtLeast(Words words, Floats x, Floats threshold, Words bit) {
  return vorrq_u32(words, vandq_u32(vcgeq_f32(x, threshold), bit));
}

void StoreColumn(Words words, int64_t count, uint32_t* out, int64_t stride) {
  if (stride == 1 && count >= kLanes) return vst1q_u32(out, words);
  uint32_t column[kLanes];
  vst1q_u32(column, words);
  for (int64_t i = 0; i < kLanes && i < count; ++i) out[i * stride] = column[i];
}

#include "kernels/vectors/neon_bits.inl"

// Byte i is 0xff where value i of 16 is at least its threshold, else 0.
uint8x16_t AtLeast16(const float* x, const float* threshold) {
  uint16x8_t halves[2];
  UNROLL for (int i = 0; i < 2; ++i, x += 8, threshold += 8) {
    const uint32x4_t low = vcgeq_f32(vld1q_f32(x), vld1q_f32(threshold));
    const uint32x4_t high = vcgeq_f32(vld1q_f32(x + 4), vld1q_f32(threshold + 4));
    halves[i] = vmovn_high_u32(vmovn_u32(low), high);
  }
  return vmovn_high_u16(vmovn_u16(halves[0]), halves[1]);
}

uint32_t AtLeast32(const float* x, const float* threshold) {
  return CollectBits(AtLeast16(x, threshold), AtLeast16(x + 16, threshold + 16));
}

uint32_t AtLeastFirst(const float* x, const float* threshold, int64_t count) {
  static const uint32_t kPlaces[4] = {1, 2, 4, 8};
  uint32_t bits = 0;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const uint32x4_t reached = vcgeq_f32(vld1q_f32(x + i), vld1q_f32(threshold + i));
    bits |= vaddvq_u32(vandq_u32(reached, vld1q_u32(kPlaces))) << i;
  }
  for (; i < count; ++i) bits |= static_cast<uint32_t>(x[i] >= threshold[i]) << i;
  return bits;
}

constexpr int kByteLanes = 32;

uint64_t AtLeastBytes(const uint8_t* x, const uint8_t* level) {
  return CollectBits(vcgeq_u8(vld1q_u8(x), vld1q_u8(level)),
                     vcgeq_u8(vld1q_u8(x + 16), vld1q_u8(level + 16)));
}

uint64_t AtLeastFirstBytes(const uint8_t* x, const uint8_t* level, int64_t count) {
  uint8_t copy[kByteLanes] = {};
  for (int64_t i = 0; i < count; ++i) copy[i] = x[i];
  return AtLeastBytes(copy, level);
}
