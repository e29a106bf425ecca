// The library's entry: hands the operators to onnxruntime.

#include <string>

#if defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__)
#include <dlfcn.h>
#endif

#include "include/bnn_deploy.h"
#include "ops/average_pool.h"
#include "ops/binarize.h"
#include "ops/binary_conv.h"
#include "ops/binary_conv_bases.h"
#include "ops/binary_linear.h"
#include "ops/binary_matmul.h"
#include "ops/binary_max_pool.h"
#include "ops/direct_conv.h"
#include "ops/library_info.h"
#include "ops/relu_linear.h"
#include "ort/api.h"

namespace bnn_deploy {
namespace {

constexpr const char* kDomain = "bnn_deploy";

// Keeps the library in the process when onnxruntime closes it with its last session, as the domain
// and the counters are in it. On Linux, the linker's flag nodelete does.
void StayLoaded() {
#if defined(_WIN32)
  HMODULE library;
  GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
                     reinterpret_cast<LPCWSTR>(&StayLoaded), &library);
#elif defined(__APPLE__)
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&StayLoaded), &info) != 0)
    dlopen(info.dli_fname, RTLD_LAZY | RTLD_NODELETE);
#endif
}

// onnxruntime keeps pointers to the domain and the operators, so they live as long as the process.
OrtCustomOpDomain* CreateDomain() {
  OrtCustomOpDomain* domain = nullptr;
  Check(Ort().CreateCustomOpDomain(kDomain, &domain));
  const OrtCustomOp* const ops[] = {
      DefineOp<Binarize>(),           DefineOp<BinarizeChannelsLast>(),
      DefineOp<BinarizeQuantized>(),  DefineOp<BinarizeAbsMean>(),
      DefineOp<QuantizeLevels>(),     DefineOp<BinaryConv>(),
      DefineOp<BinaryConvScaled>(),   DefineOp<BinaryConvLevels>(),
      DefineOp<BinaryConvBases>(),    DefineOp<BinaryConvThreshold>(),
      DefineOp<BinaryConvResidual>(), DefineOp<BinaryLinear>(),
      DefineOp<BinaryMatMul>(),       DefineOp<BinaryMaxPool>(),
      DefineOp<DirectConv>(),         DefineOp<DirectConvThreshold>(),
      DefineOp<ImageConv>(),          DefineOp<ImageConvThreshold>(),
      DefineOp<ReluLinear>(),         DefineOp<AveragePoolThreshold>(),
      DefineOp<LibraryInfo>(),
  };
  for (const OrtCustomOp* op : ops) Check(Ort().CustomOpDomain_Add(domain, op));
  return domain;
}

OrtStatus* RuntimeTooOld(const OrtApiBase& base) {
  // Any older function table works: CreateStatus has been its first slot since version 1.
  for (uint32_t version = kOrtApiVersion - 1; version > 0; --version) {
    const OrtApi* const api = base.GetApi(version);
    if (api == nullptr) continue;
    const std::string message = "bnn_deploy needs onnxruntime " + std::string(kOrtOldestRelease) +
                                " or later (C API version " + std::to_string(kOrtApiVersion) +
                                "), but this is onnxruntime " + base.GetVersionString();
    return api->CreateStatus(kOrtFail, message.c_str());
  }
  return nullptr;  // not a runtime at all: it offers no way to report an error
}

}  // namespace
}  // namespace bnn_deploy

OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace bnn_deploy;
  const OrtApi* const api = base->GetApi(kOrtApiVersion);
  if (api == nullptr) return RuntimeTooOld(*base);
  try {
    SetOrtApi(api);
    StayLoaded();
    static OrtCustomOpDomain* const domain = CreateDomain();
    return api->AddCustomOpDomain(options, domain);
  } catch (...) {
    return StatusFromException(*api, kDomain);
  }
}
