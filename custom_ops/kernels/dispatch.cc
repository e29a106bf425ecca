#include "kernels/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

// Keeps a line of isas.inc on its architecture and drops it on others.
#define BNN_DEPLOY_ON_any(...) __VA_ARGS__
#if defined(__x86_64__)
#define BNN_DEPLOY_ON_x86_64(...) __VA_ARGS__
#else
#define BNN_DEPLOY_ON_x86_64(...)
#endif
#if defined(__aarch64__)
#define BNN_DEPLOY_ON_aarch64(...) __VA_ARGS__
#else
#define BNN_DEPLOY_ON_aarch64(...)
#endif

namespace bnn_deploy {
namespace {

#if defined(__x86_64__)
// Not __builtin_cpu_supports: its table is in the compiler's runtime library, and zig's has none.
// The bits are those of Intel's manual, volume 2, CPUID.
struct CpuId {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;  // zeros for a leaf that the CPU lacks
  explicit CpuId(uint32_t leaf) { __get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx); }
};

bool AllSet(uint32_t word, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if ((word >> bit & 1) == 0) return false;
  }
  return true;
}

// Whether the operating system saves these parts of the registers (the bits of XCR0).
bool SystemSaves(std::initializer_list<int> parts) {
  if (!AllSet(CpuId(1).ecx, {27})) return false;  // XGETBV
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return AllSet(low, parts);
}

bool HasAvx2() {
  return SystemSaves({1, 2}) && AllSet(CpuId(1).ecx, {12, 28}) &&  // FMA, AVX
         AllSet(CpuId(7).ebx, {5});                                // AVX2
}

bool HasAvx512bw() {
  return HasAvx2() && SystemSaves({5, 6, 7}) &&
         AllSet(CpuId(7).ebx, {16, 17, 30, 31});  // F, DQ, BW, VL
}

bool HasPopulationCounts() { return AllSet(CpuId(7).ecx, {11, 14}); }  // VNNI, VPOPCNTDQ
#elif defined(__aarch64__)
bool HasDotProducts() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // every Mac with Apple silicon
#endif
}
#endif

struct Unit {
  Isa isa;
  bool runs_here;
  std::atomic<uint64_t> calls;
};

// The units of this architecture, made at the first call and never moved: the address of an Isa
// identifies it.
auto& Units() {
  static Unit units[] = {
#define BNN_DEPLOY_ISA(name, kernels, architecture, runs_here) \
  BNN_DEPLOY_ON_##architecture({{kernels, #name}, static_cast<bool>(runs_here), {}}, )
#include "kernels/isas.inc"
#undef BNN_DEPLOY_ISA
  };
  return units;
}

std::vector<const Isa*> DetectIsas() {
  std::vector<const Isa*> isas;
  for (const Unit& unit : Units()) {
    if (unit.runs_here) isas.push_back(&unit.isa);
  }
  return isas;
}

std::atomic<uint64_t>& Counter(const Isa& isa) {
  for (Unit& unit : Units()) {
    if (&unit.isa == &isa) return unit.calls;
  }
  throw std::logic_error("a copy of an Isa has no counter");
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
