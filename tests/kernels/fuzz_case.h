// Fuzzing of the drivers and kernels: any bytes are a case.

#ifndef BNN_DEPLOY_TESTS_KERNELS_FUZZ_CASE_H_
#define BNN_DEPLOY_TESTS_KERNELS_FUZZ_CASE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/micro_kernel.h"

namespace bnn_deploy::tests {

// The kinds of cases; the first byte chooses one.
enum class FuzzKind { kGeometry, kConv, kBases, kMatMul, kBinarize, kPool, kDirect, kLinear };
constexpr int64_t kFuzzKinds = 8;

// Runs the case that the bytes say with each unit, and compares the results with those of plain
// loops, or of the last unit where that is said beside the comparison. Returns what differs; empty
// if nothing does.
std::string RunFuzzCase(const uint8_t* data, size_t size, const std::vector<const Isa*>& isas);

}  // namespace bnn_deploy::tests

#endif  // BNN_DEPLOY_TESTS_KERNELS_FUZZ_CASE_H_
