// FinishTile for units with at least as many registers as lanes, from finish.inl and
// Transpose(rows): a square of kLanes channels x kLanes pixels at a time.

// A square of up to kLanes channels x kLanes pixels; kWhole: the square is full. Sets the bits of
// the channels, from `bit` on, in the words of the pixels.
template <Epilogue kEpilogue, bool kWhole>
void FinishSquare(const FinishFloatArgs& args, int64_t channel, int64_t pixel, Words bit,
                  Words* words) {
  const int64_t pixels = args.pixels - pixel;
  const int64_t channels = args.channels - channel;
  Floats rows[kLanes];
  // Rows past the last pixel repeat the last pixel and are masked.
  for (int i = 0; i < kLanes; ++i) {
    rows[i] = ScaledSums(args, pixel + (kWhole || i < pixels ? i : pixels - 1), channel);
  }
  Transpose(rows);
  const int64_t offset = channel * args.channel_stride + pixel;
  const Lanes lanes = FirstLanes(pixels);
  const auto load = [lanes](const float* from) {
    return kWhole ? Load(from) : LoadLanes(from, lanes);
  };
  if (kEpilogue == Epilogue::kResidual) {
    const float* const residual = args.residual + offset;
    for (int i = 0; i < kLanes && (kWhole || i < channels); ++i) {
      rows[i] = Add(rows[i], load(residual + i * args.channel_stride));
    }
  } else if (kEpilogue == Epilogue::kFactor) {
    const Floats factor = load(args.factor + pixel);
    for (int i = 0; i < kLanes; ++i) rows[i] = Multiply(rows[i], factor);
  }
  if (kEpilogue != Epilogue::kResidual || args.out != nullptr) {
    float* const out = args.out + offset;
    for (int i = 0; i < kLanes && (kWhole || i < channels); ++i) {
      if (kWhole || pixels >= kLanes) {
        Store(out + i * args.channel_stride, rows[i]);
      } else {
        StoreLanes(out + i * args.channel_stride, rows[i], lanes);
      }
    }
  }
  if (kEpilogue == Epilogue::kResidual && args.bits != nullptr) {
    for (int i = 0; i < kLanes; ++i) {
      *words = OrWhereAtLeast(*words, rows[i], Splat(args.threshold[channel + i]), bit);
      bit = NextBit(bit);
    }
  }
}

template <Epilogue kEpilogue>
void FinishTile(const FinishFloatArgs& args) {
  const bool makes_bits = kEpilogue == Epilogue::kResidual && args.bits != nullptr;
  for (int64_t channel = 0; channel < args.channels; channel += 32) {
    const int64_t end = channel + 32 < args.channels ? channel + 32 : args.channels;
    for (int64_t pixel = 0; pixel < args.pixels; pixel += kLanes) {
      const int64_t pixels = args.pixels - pixel;
      Words words = SplatWord(0);
      for (int64_t c = channel; c < end; c += kLanes) {
        const Words bit = SplatWord(1u << (c - channel));
        if (pixels >= kLanes && end - c >= kLanes) {
          FinishSquare<kEpilogue, true>(args, c, pixel, bit, &words);
        } else {
          FinishSquare<kEpilogue, false>(args, c, pixel, bit, &words);
        }
      }
      if (makes_bits) {
        StoreColumn(words, pixels, args.bits + pixel * args.bits_stride + channel / 32,
                    args.bits_stride);
      }
    }
  }
}
