// The units that this machine can run, the choice of one, and the number of calls of each.

#ifndef BNN_DEPLOY_KERNELS_DISPATCH_H_
#define BNN_DEPLOY_KERNELS_DISPATCH_H_

#include <cstdint>
#include <vector>

#include "kernels/micro_kernel.h"

namespace bnn_deploy {

// Best first; the scalar unit is always the last.
const std::vector<const Isa*>& AvailableIsas();

// The unit that BNN_DEPLOY_ISA names, or the best one when it is unset or empty. A name that this
// machine cannot run is an error, never a fallback.
const Isa& SelectIsa();

// Process-wide number of micro-kernel calls (accumulate and binarize).
void CountCalls(const Isa& isa, uint64_t calls);
uint64_t Calls(const Isa& isa);

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_KERNELS_DISPATCH_H_
