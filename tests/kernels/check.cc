// cpp_tests SUITE: runs the tests of a suite; exit status 1 when one fails, 2 when there is none.

#include "check.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace bnn_deploy::tests {
namespace {

struct Test {
  std::string suite;
  const char* name;
  void (*run)();
};

std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

int failures = 0;
constexpr int kMostPrinted = 20;

}  // namespace

Registration::Registration(const char* file, const char* name, void (*run)()) {
  const char* const slash = std::strrchr(file, '/');
  const std::string base = slash == nullptr ? file : slash + 1;
  Tests().push_back({base.substr(0, base.find('.')), name, run});
}

void Check(bool holds, const char* condition, const std::string& context, const char* file,
           int line) {
  if (holds || ++failures > kMostPrinted) return;
  std::printf("%s:%d: not true: %s%s%s\n", file, line, condition, context.empty() ? "" : ", in ",
              context.c_str());
}

}  // namespace bnn_deploy::tests

int main(int argc, char** argv) {
  using namespace bnn_deploy::tests;
  int ran = 0;
  for (const Test& test : Tests()) {
    if (argc != 2 || test.suite != argv[1]) continue;
    ++ran;
    const int before = failures;
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failures;
      std::printf("%s: %s\n", test.name, error.what());
    }
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.name);
  }
  std::printf("%d tests, %d failures\n", ran, failures);
  if (ran == 0) return 2;
  return failures == 0 ? 0 : 1;
}
