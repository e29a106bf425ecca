#include "kernels/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace bnn_deploy {
namespace {

#if defined(__x86_64__)
struct CpuFeatures {
  bool avx2 = false;
  bool avx512 = false;  // F, BW, VL, DQ and VPOPCNTDQ
};

// A feature counts when the processor has it and the operating system saves its registers (XCR0).
CpuFeatures DetectCpuFeatures() {
  CpuFeatures features;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
  const bool osxsave = ecx & (1u << 27);
  if (!osxsave) return features;
  unsigned xcr0_low, xcr0_high;
  __asm__("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
  const bool saves_ymm = (xcr0_low & 0x06) == 0x06;
  const bool saves_zmm = (xcr0_low & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  constexpr unsigned kAvx2 = 1u << 5;
  constexpr unsigned kAvx512FDqBwVl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
  constexpr unsigned kVpopcntdq = 1u << 14;
  features.avx2 = saves_ymm && (ebx & kAvx2);
  features.avx512 =
      features.avx2 && saves_zmm && (ebx & kAvx512FDqBwVl) == kAvx512FDqBwVl && (ecx & kVpopcntdq);
  return features;
}
#endif

std::vector<const Isa*> DetectIsas() {
  std::vector<const Isa*> isas;
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx512) isas.push_back(&kIsaAvx512);
  if (features.avx2) isas.push_back(&kIsaAvx2);
#elif defined(__aarch64__)
  constexpr unsigned long kDotprod = 1ul << 20;  // HWCAP_ASIMDDP
  if (getauxval(AT_HWCAP) & kDotprod) isas.push_back(&kIsaNeonDotprod);
  isas.push_back(&kIsaNeon);
#endif
  isas.push_back(&kIsaScalar);
  return isas;
}

constexpr size_t kMaxIsas = 3;
std::atomic<uint64_t> calls_per_isa[kMaxIsas];

std::atomic<uint64_t>& Counter(const Isa& isa) {
  const auto& isas = AvailableIsas();
  size_t i = 0;
  while (isas[i] != &isa) ++i;
  return calls_per_isa[i];
}

}  // namespace

const std::vector<const Isa*>& AvailableIsas() {
  static const std::vector<const Isa*> isas = DetectIsas();
  return isas;
}

const Isa& SelectIsa() {
  const auto& isas = AvailableIsas();
  const char* name = std::getenv("BNN_DEPLOY_ISA");
  if (name == nullptr || *name == '\0') return *isas.front();
  std::string names;
  for (const Isa* isa : isas) {
    if (std::strcmp(isa->name, name) == 0) return *isa;
    names += std::string(names.empty() ? "" : ", ") + isa->name;
  }
  throw std::invalid_argument("BNN_DEPLOY_ISA = '" + std::string(name) +
                              "': this machine can run " + names +
                              "; unset the variable to use the first of them");
}

void CountCalls(const Isa& isa, uint64_t calls) {
  Counter(isa).fetch_add(calls, std::memory_order_relaxed);
}

uint64_t Calls(const Isa& isa) { return Counter(isa).load(std::memory_order_relaxed); }

}  // namespace bnn_deploy
