// A seeded part of the fuzzing, and that it finds what it looks for.

#include <random>

#include "check.h"
#include "fuzz_case.h"
#include "kernels/dispatch.h"

namespace bnn_deploy::tests {
namespace {

constexpr int kSeeds = 150;  // of each kind

std::string RunSeed(int seed, FuzzKind kind, const std::vector<const Isa*>& isas) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::vector<uint8_t> bytes(200);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  bytes[0] = static_cast<uint8_t>(kind);
  return RunFuzzCase(bytes.data(), bytes.size(), isas);
}

TEST(SeededCasesOfEachKind) {
  for (int kind = 0; kind < kFuzzKinds; ++kind) {
    for (int seed = 0; seed < kSeeds; ++seed) {
      const std::string found = RunSeed(seed, static_cast<FuzzKind>(kind), AvailableIsas());
      CHECK_IN(found.empty(), found + ", seed " + std::to_string(seed));
    }
  }
}

// A unit that skips one kernel is found by some of the first cases of the kinds that use it.
TEST(AKernelThatDoesNothingIsFound) {
  // A copy would not do: units are counted by their address.
  auto& wrong = const_cast<Isa&>(*AvailableIsas().front());
  const Isa before = wrong;
  const auto found = [&](FuzzKind kind, void (*spoil)(Isa*)) {
    spoil(&wrong);
    bool differs = false;
    for (int seed = 0; seed < 60 && !differs; ++seed) {
      differs = !RunSeed(seed, kind, AvailableIsas()).empty();
    }
    wrong = before;
    return differs;
  };
  CHECK(!found(FuzzKind::kConv, [](Isa*) {}));
  const auto no_sums = [](Isa* isa) {
    isa->accumulate = [](const AccumulateArgs& args) {
      for (int64_t i = 0; i < args.pixels * kTileChannels; ++i) args.sums[i] = 0;
    };
  };
  CHECK(found(FuzzKind::kConv, no_sums));
  CHECK(AvailableIsas().size() == 1 ||
        found(FuzzKind::kBases, no_sums));  // one unit is its own judge
  CHECK(found(FuzzKind::kMatMul, no_sums));
  CHECK(found(FuzzKind::kConv,
              [](Isa* isa) { isa->accumulate_bits = [](const AccumulateBitsArgs&) {}; }));
  CHECK(
      found(FuzzKind::kConv, [](Isa* isa) { isa->finish_float = [](const FinishFloatArgs&) {}; }));
  CHECK(
      found(FuzzKind::kMatMul, [](Isa* isa) { isa->finish_rows = [](const FinishRowsArgs&) {}; }));
  CHECK(found(FuzzKind::kBinarize, [](Isa* isa) { isa->binarize = [](const BinarizeArgs&) {}; }));
  CHECK(found(FuzzKind::kBinarize,
              [](Isa* isa) { isa->binarize_rows = [](const BinarizeRowsArgs&) {}; }));
  CHECK(found(FuzzKind::kBinarize,
              [](Isa* isa) { isa->binarize_bytes = [](const BinarizeBytesArgs&) {}; }));
  CHECK(found(FuzzKind::kBinarize,
              [](Isa* isa) { isa->binarize_abs_mean = [](const BinarizeAbsMeanArgs&) {}; }));
  CHECK(found(FuzzKind::kDirect, [](Isa* isa) {
    static DirectKernels direct;
    direct = *isa->direct;
    direct.convolve = [](const DirectConvArgs& args) {
      for (int64_t p = 0; p < args.pixels; ++p) {
        for (int64_t o = 0; o < args.channels; ++o) args.out[p * args.out_stride + o] = 0;
      }
    };
    isa->direct = &direct;
  }));
  CHECK(found(FuzzKind::kLinear, [](Isa* isa) {
    static LinearKernels linear;
    linear = *isa->linear;
    linear.add_rows = [](const AddRowsArgs&) {};
    linear.multiply_rows = [](const MultiplyRowsArgs&) {};
    isa->linear = &linear;
  }));
}

}  // namespace
}  // namespace bnn_deploy::tests
