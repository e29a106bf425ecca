// libFuzzer's entry, see BNN_DEPLOY_FUZZER in CMakeLists.txt.

#include <cstdio>
#include <cstdlib>

#include "fuzz_case.h"
#include "kernels/dispatch.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string found = bnn_deploy::tests::RunFuzzCase(data, size, bnn_deploy::AvailableIsas());
  if (!found.empty()) {
    std::fprintf(stderr, "%s\n", found.c_str());
    std::abort();
  }
  return 0;
}
