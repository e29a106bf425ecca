// From bytes to bits, for both NEON units. A unit includes this into its anonymous namespace.

// One bit for each of 32 bytes that are 0x00 or 0xff: byte i of a group of eight keeps bit i, and
// three pairwise additions collect the groups.
uint32_t CollectBits(uint8x16_t low, uint8x16_t high) {
  static const uint8_t kPlaces[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t places = vld1q_u8(kPlaces);
  uint8x16_t sums = vpaddq_u8(vandq_u8(low, places), vandq_u8(high, places));
  sums = vpaddq_u8(sums, sums);
  sums = vpaddq_u8(sums, sums);
  return vgetq_lane_u32(vreinterpretq_u32_u8(sums), 0);
}
