// Tests of the C++ code: TEST(Name) { CHECK(condition); } in a file x.cc belongs to the suite "x".

#ifndef BNN_DEPLOY_TESTS_KERNELS_CHECK_H_
#define BNN_DEPLOY_TESTS_KERNELS_CHECK_H_

#include <string>

namespace bnn_deploy::tests {

// Notes a failure and goes on with the test.
void Check(bool holds, const char* condition, const std::string& context, const char* file,
           int line);

struct Registration {
  Registration(const char* file, const char* name, void (*run)());
};

}  // namespace bnn_deploy::tests

#define TEST(name)                                                                                 \
  static void Test##name();                                                                        \
  static const ::bnn_deploy::tests::Registration registration_##name(__FILE__, #name, Test##name); \
  static void Test##name()

#define CHECK(condition) CHECK_IN(condition, std::string())
// `context`: which of many cases this is.
#define CHECK_IN(condition, context) \
  ::bnn_deploy::tests::Check((condition), #condition, (context), __FILE__, __LINE__)

#endif  // BNN_DEPLOY_TESTS_KERNELS_CHECK_H_
