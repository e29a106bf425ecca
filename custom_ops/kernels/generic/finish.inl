// FinishFloat and FinishRows, written over an instruction set's vector type. A unit includes this
// into its anonymous namespace, after vectors/<isa>.inl (see binarize.inl), which must also define
//
//     LoadInts(values)      aligned integers, as floats
//     SubtractTwice(a, b)   a - 2 * b, of integers that are exact

template <Epilogue kEpilogue>
void FinishTile(const FinishFloatArgs& args);  // defined in finish_transposed.inl or in the unit

// The input values of the epilogue (scale * dot + bias), for kLanes channels of a pixel.
template <typename Args>
Floats ScaledSums(const Args& args, int64_t pixel, int64_t channel) {
  const Floats sums = LoadInts(args.sums + pixel * kTileChannels + channel);
  const Floats dot = SubtractTwice(Splat(args.products[pixel]), sums);
  return Add(Multiply(dot, Load(args.scale + channel)), Load(args.bias + channel));
}

void FinishFloat(const FinishFloatArgs& args) {
  if (args.residual != nullptr) return FinishTile<Epilogue::kResidual>(args);
  if (args.factor != nullptr) return FinishTile<Epilogue::kFactor>(args);
  FinishTile<Epilogue::kBias>(args);
}

void FinishRows(const FinishRowsArgs& shared_args) {
  const FinishRowsArgs args = shared_args;  // no store can change a local copy
  const int64_t whole = args.channels / kLanes * kLanes;
  const Lanes rest = FirstLanes(args.channels - whole);
  for (int64_t p = 0; p < args.pixels; ++p) {
    float* const out = args.out + p * args.row_stride;
    for (int64_t channel = 0; channel < whole; channel += kLanes) {
      Store(out + channel, ScaledSums(args, p, channel));
    }
    if (whole < args.channels) StoreLanes(out + whole, ScaledSums(args, p, whole), rest);
  }
}
