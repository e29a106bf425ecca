#include "ops/binary_conv_bases.h"

#include <string>
#include <vector>

#include "kernels/dispatch.h"

namespace bnn_deploy {
namespace {

const float* ReadScale(const NodeInfo& node, const ConvSpec& spec) {
  const Tensor scale = node.ConstantInput(2, "scale");
  Shape expected;
  for (const int64_t extent : {spec.planes + 1, spec.bases + 1, spec.out_channels}) {
    expected.Append(extent);
  }
  if (!(scale.shape == expected)) {
    Fail("input scale has shape " + scale.shape.ToString() +
         ", but it must be [planes + 1, bases + 1, output channels] = " + expected.ToString());
  }
  return scale.As<float>();
}

// [taps][bases][words] of each output channel -> [bases][taps][words], as the driver reads it.
std::vector<uint32_t> BasesFirst(const ConvSpec& spec, const uint32_t* weights) {
  const int64_t taps = spec.taps();
  const int64_t words = WordsForBits(spec.channels / spec.group);
  std::vector<uint32_t> result;
  result.reserve(static_cast<size_t>(spec.out_channels * spec.bases * taps * words));
  for (int64_t o = 0; o < spec.out_channels; ++o) {
    for (int64_t base = 0; base < spec.bases; ++base) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const uint32_t* const from = weights + ((o * taps + tap) * spec.bases + base) * words;
        result.insert(result.end(), from, from + words);
      }
    }
  }
  return result;
}

}  // namespace

const OpSchema BinaryConvBases::kSchema = {
    "BinaryConvBases", {kOrtUint32, kOrtUint32, kOrtFloat, kOrtFloat}, {kOrtFloat}};

BinaryConvBases::BinaryConvBases(const NodeInfo& node)
    : BinaryConvBases(node, ConvNode(node, ConvNode::Planes::kSigns)) {}

BinaryConvBases::BinaryConvBases(const NodeInfo& node, const ConvNode& conv)
    : BinaryConv(conv, BasesFirst(conv.spec(), conv.weights()).data(),
                 BasesConstants{ReadScale(node, conv.spec()),
                                conv.PerOutput(node, 3, "bias").As<float>()}) {}

}  // namespace bnn_deploy
