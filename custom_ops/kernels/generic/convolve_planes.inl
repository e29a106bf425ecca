// Chooses the epilogue of a convolution that takes pixels as lanes, and stores its bits. A unit
// includes this into its anonymous namespace, after its vectors, and defines
//
//     ConvolveEpilogue<kEpilogue>(args, words)  ConvolvePlanesFn, where words holds the bits of 32
//                           channels per pixel, [kTileChannels / 32][kTilePixels], which begin as 0

template <Epilogue kEpilogue>
void ConvolveEpilogue(const ConvolvePlanesArgs& args, uint32_t* words);

void ConvolvePlanes(const ConvolvePlanesArgs& args) {
  const FinishFloatArgs& finish = args.finish;
  if (finish.residual == nullptr && finish.factor == nullptr) {
    return ConvolveEpilogue<Epilogue::kBias>(args, nullptr);
  }
  if (finish.residual == nullptr) return ConvolveEpilogue<Epilogue::kFactor>(args, nullptr);
  alignas(64) uint32_t words[kTileChannels / 32 * kTilePixels] = {};
  ConvolveEpilogue<Epilogue::kResidual>(args, words);
  if (finish.bits == nullptr) return;
  for (int64_t word = 0; word * 32 < finish.channels; ++word) {
    for (int64_t p = 0; p < finish.pixels; p += kLanes) {
      StoreColumn(LoadWords(words + word * kTilePixels + p), finish.pixels - p,
                  finish.bits + p * finish.bits_stride + word, finish.bits_stride);
    }
  }
}
