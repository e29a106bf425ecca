// LibraryInfo(X int64 [1]) -> uint8 [n], a kernel without a function body that no converted model
// contains: UTF-8 JSON with the version, the instruction sets this machine can run (best first),
// the one a kernel created now would use, the number of micro-kernel calls of each in this process,
// and the bits of CountedIntegerBits. Programs and tests use it to prove which kernels ran.

#ifndef BNN_DEPLOY_OPS_LIBRARY_INFO_H_
#define BNN_DEPLOY_OPS_LIBRARY_INFO_H_

#include "ort/api.h"

namespace bnn_deploy {

class LibraryInfo {
 public:
  static const OpSchema kSchema;
  explicit LibraryInfo(const NodeInfo&) {}
  void Compute(const Context& context) const;
  static void InferShape(const ShapeContext&) {}  // the text's length is unknown until it runs
};

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_OPS_LIBRARY_INFO_H_
