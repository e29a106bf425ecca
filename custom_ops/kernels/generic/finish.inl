// FinishFloat, written over an instruction set's vector type. A unit includes this into its
// anonymous namespace, after vectors/<isa>.inl (see binarize.inl), which must also define
//
//     LoadInts(values)      aligned integers, as floats
//     SubtractTwice(a, b)   a - 2 * b, of integers that are exact

template <Epilogue kEpilogue>
void FinishTile(const FinishFloatArgs& args);  // defined in finish_transposed.inl or in the unit

// The input values of the epilogue (scale * dot + bias), for kLanes channels of a pixel.
Floats ScaledSums(const FinishFloatArgs& args, int64_t pixel, int64_t channel) {
  const Floats sums = LoadInts(args.sums + pixel * kTileChannels + channel);
  const Floats dot = SubtractTwice(Splat(args.products[pixel]), sums);
  return Add(Multiply(dot, Load(args.scale + channel)), Load(args.bias + channel));
}

// One pixel with contiguous channels: a fully connected layer.
void FinishRow(const FinishFloatArgs& args) {
  int64_t channel = 0;
  for (; channel + kLanes <= args.channels; channel += kLanes) {
    Store(args.out + channel, ScaledSums(args, 0, channel));
  }
  if (channel < args.channels) {
    StoreLanes(args.out + channel, ScaledSums(args, 0, channel),
               FirstLanes(args.channels - channel));
  }
}

void FinishFloat(const FinishFloatArgs& args) {
  if (args.residual != nullptr) return FinishTile<Epilogue::kResidual>(args);
  if (args.factor != nullptr) return FinishTile<Epilogue::kFactor>(args);
  if (args.pixels > 1 || args.channel_stride > 1) return FinishTile<Epilogue::kBias>(args);
  FinishRow(args);
}
