// Runs a model in onnxruntime's own DLL with the operators' DLL:
//
//   session ONNXRUNTIME OPERATORS MODEL INPUT OUTPUT ISA...
//
// INPUT and OUTPUT are files of float32, the model's input x [1, 1, 28, 28] and what y must be, bit
// by bit, on each instruction set; make_case.py writes them. Exit status 1 when one differs.

#include <windows.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort/abi.h"

namespace {

struct OrtEnv;
struct OrtSession;
struct OrtMemoryInfo;

const OrtApi* api;

// A function of onnxruntime's table that the library does not use, by its number in it.
template <typename... Arguments>
void Call(size_t slot, Arguments... arguments) {
  using Function = OrtStatus* (*)(Arguments...);
  const auto function = reinterpret_cast<Function>(reinterpret_cast<void* const*>(api)[slot]);
  OrtStatus* const status = function(arguments...);
  if (status != nullptr) throw std::runtime_error(api->GetErrorMessage(status));
}
constexpr size_t kCreateEnv = 3, kCreateSessionFromArray = 8, kRun = 9, kCreateSessionOptions = 10;
constexpr size_t kRegisterCustomOpsLibrary = 29, kCreateTensorWithData = 49;
constexpr size_t kCreateCpuMemoryInfo = 69, kReleaseSession = 95;

std::string Read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The bytes of y [1, 500, 1, 1] for the bytes of x.
std::string Run(const std::string& model, std::string x, const char* operators, const char* isa) {
  _putenv_s("BNN_DEPLOY_ISA", isa);
  static OrtEnv* env = nullptr;
  if (env == nullptr) Call(kCreateEnv, 3 /* errors alone */, "session", &env);
  OrtSessionOptions* options;
  Call(kCreateSessionOptions, &options);
  void* library;
  Call(kRegisterCustomOpsLibrary, options, operators, &library);
  OrtSession* session;
  Call(kCreateSessionFromArray, static_cast<const OrtEnv*>(env),
       static_cast<const void*>(model.data()), model.size(),
       static_cast<const OrtSessionOptions*>(options), &session);
  OrtMemoryInfo* memory;
  Call(kCreateCpuMemoryInfo, 1 /* arena */, 0 /* default */, &memory);
  const int64_t dims[] = {1, 1, 28, 28};
  OrtValue* input;
  Call(kCreateTensorWithData, static_cast<const OrtMemoryInfo*>(memory),
       static_cast<void*>(x.data()), x.size(), static_cast<const int64_t*>(dims), size_t{4},
       kOrtFloat, &input);
  const char* const inputs[] = {"x"};
  const char* const outputs[] = {"y"};
  const OrtValue* const values[] = {input};
  OrtValue* output = nullptr;
  Call(kRun, session, static_cast<const void*>(nullptr), static_cast<const char* const*>(inputs),
       static_cast<const OrtValue* const*>(values), size_t{1},
       static_cast<const char* const*>(outputs), size_t{1}, &output);
  void* data;
  if (OrtStatus* const status = api->GetTensorMutableData(output, &data))
    throw std::runtime_error(api->GetErrorMessage(status));
  const std::string y(static_cast<const char*>(data), 500 * sizeof(float));
  // The library stays: it says so to Windows when it is registered.
  reinterpret_cast<void (*)(OrtSession*)>(reinterpret_cast<void* const*>(api)[kReleaseSession])(
      session);
  return y;
}

int Main(char** arguments, char** end) {
  const HMODULE runtime = LoadLibraryA(arguments[1]);
  if (runtime == nullptr)
    throw std::runtime_error(std::string(arguments[1]) + ": Windows error " +
                             std::to_string(GetLastError()));
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(
      reinterpret_cast<void*>(GetProcAddress(runtime, "OrtGetApiBase")))();
  api = base->GetApi(kOrtApiVersion);
  std::printf("onnxruntime %s\n", base->GetVersionString());
  const std::string model = Read(arguments[3]), x = Read(arguments[4]), y = Read(arguments[5]);
  std::string other = x;
  for (char& byte : other) byte ^= '\x80';  // signs, too
  int failures = 0;
  for (char** isa = arguments + 6; isa < end; ++isa) {
    const bool same = Run(model, x, arguments[2], *isa) == y;
    const bool shows = Run(model, other, arguments[2], *isa) != y;
    std::printf("%s %s\n", same && shows ? "ok    " : "FAILED", *isa);
    failures += !(same && shows);
  }
  // An exception of the library's becomes an error of onnxruntime's.
  std::string message;
  try {
    Run(model, x, arguments[2], "none");
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  const bool refused = message.find("BNN_DEPLOY_ISA = 'none'") != std::string::npos;
  std::printf("%s an instruction set that is none\n", refused ? "ok    " : "FAILED");
  return failures == 0 && refused ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 7) return 2;
  try {
    return Main(arguments, arguments + count);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
