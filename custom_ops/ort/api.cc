#include "ort/api.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

#include "base/geometry.h"
#include "base/task_ranges.h"

namespace bnn_deploy {
namespace {

std::atomic<const OrtApi*> ort_api{nullptr};

struct ReleaseInfo {
  void operator()(OrtTensorTypeAndShapeInfo* info) const {
    Ort().ReleaseTensorTypeAndShapeInfo(info);
  }
};
using TypeAndShape = std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo>;

size_t Rank(const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  Check(Ort().GetDimensionsCount(info, &rank));
  return rank;
}

Shape ReadShape(const OrtTensorTypeAndShapeInfo* info) {
  Shape shape;
  shape.rank = Rank(info);
  if (shape.rank > Shape::kMaxRank) {
    Fail("a tensor has " + std::to_string(shape.rank) + " dimensions, at most " +
         std::to_string(Shape::kMaxRank) + " are supported");
  }
  Check(Ort().GetDimensions(info, shape.dims.data(), shape.rank));
  return shape;
}

Tensor ReadTensor(const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(Ort().GetTensorTypeAndShape(value, &raw));
  const TypeAndShape info(raw);
  void* data = nullptr;
  Check(Ort().GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return {data, ReadShape(info.get())};
}

// The context keeps the ownership of this info, unlike that of the other infos.
const OrtTensorTypeAndShapeInfo* InputInfo(const OrtShapeInferContext* context, size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(Ort().ShapeInferContext_GetInputTypeShape(context, index, &info));
  return info;
}

// The text that `read`(out, size) writes; the size counts the terminating zero.
template <typename Read>
std::string ReadText(const Read& read) {
  size_t size = 0;
  Check(read(nullptr, &size));
  std::string text(size, '\0');
  Check(read(text.data(), &size));
  text.resize(size > 0 ? size - 1 : 0);
  return text;
}

std::string ListToString(const int64_t* values, size_t count) {
  std::string text = "[";
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(values[i]);
  }
  return text + "]";
}

std::string RangeToString(int64_t min, int64_t max) {
  return std::to_string(min) + " to " + std::to_string(max);
}

}  // namespace

void SetOrtApi(const OrtApi* api) { ort_api = api; }

const OrtApi& Ort() { return *ort_api.load(std::memory_order_relaxed); }

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = Ort().GetErrorMessage(status);
  Ort().ReleaseStatus(status);
  throw std::runtime_error(message);
}

void Fail(const std::string& what) { throw std::invalid_argument(what); }

OrtStatus* StatusFromException(const OrtApi& api, const std::string& label) noexcept {
  const auto status = [&](OrtErrorCode code, const char* what) {
    const std::string text = label.empty() ? "bnn_deploy" : label;
    return api.CreateStatus(code, (text + ": " + what).c_str());
  };
  try {
    try {
      throw;
    } catch (const std::invalid_argument& error) {
      return status(kOrtInvalidArgument, error.what());
    } catch (const std::bad_alloc&) {
      return status(kOrtFail, "out of memory");
    } catch (const std::exception& error) {
      return status(kOrtFail, error.what());
    } catch (...) {
      return status(kOrtFail, "unknown error");
    }
  } catch (...) {  // no memory for the text
    return api.CreateStatus(kOrtFail, "bnn_deploy: out of memory");
  }
}

std::string NodeLabel(const OrtKernelInfo* info, const char* op_type) {
  const std::string name = ReadText(
      [&](char* out, size_t* size) { return Ort().KernelInfo_GetNodeName(info, out, size); });
  if (!name.empty()) return std::string(op_type) + " '" + name + "'";
  const std::string output = ReadText(
      [&](char* out, size_t* size) { return Ort().KernelInfo_GetOutputName(info, 0, out, size); });
  return std::string(op_type) + " of output '" + output + "'";
}

std::string Shape::ToString() const { return ListToString(dims.data(), rank); }

int64_t NodeInfo::Int(const char* name, int64_t min, int64_t max) const {
  int64_t value = 0;
  if (OrtStatus* status = Ort().KernelInfoGetAttribute_int64(info_, name, &value)) {
    Ort().ReleaseStatus(status);
    Fail(std::string("attribute ") + name + " is missing: it is a required int");
  }
  if (value < min || value > max) {
    Fail(std::string("attribute ") + name + " = " + std::to_string(value) + ": it must be in " +
         RangeToString(min, max));
  }
  return value;
}

size_t NodeInfo::IntsCount(const char* name) const {
  size_t count = 0;
  if (OrtStatus* status = Ort().KernelInfoGetAttributeArray_int64(info_, name, nullptr, &count)) {
    Ort().ReleaseStatus(status);
    Fail(std::string("attribute ") + name + " is missing: it is a required list of ints");
  }
  return count;
}

void NodeInfo::Ints(const char* name, int64_t* out, size_t count, int64_t min, int64_t max) const {
  size_t size = IntsCount(name);
  if (size != count) {
    Fail(std::string("attribute ") + name + " has " + std::to_string(size) +
         " values, but kernel_shape asks for " + std::to_string(count));
  }
  Check(Ort().KernelInfoGetAttributeArray_int64(info_, name, out, &size));
  for (size_t i = 0; i < count; ++i) {
    if (out[i] < min || out[i] > max) {
      Fail(std::string("attribute ") + name + " = " + ListToString(out, count) +
           ": each must be in " + RangeToString(min, max));
    }
  }
}

Tensor NodeInfo::ConstantInput(size_t index, const char* name) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(Ort().KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (!is_constant || value == nullptr) {
    Fail(std::string("input ") + name +
         " is not a constant: make it an initializer that is not also a graph input");
  }
  return ReadTensor(value);
}

Tensor Context::Input(size_t index) const {
  const OrtValue* value = nullptr;
  Check(Ort().KernelContext_GetInput(context_, index, &value));
  if (value == nullptr) Fail("input " + std::to_string(index) + " is missing");
  return ReadTensor(value);
}

void* Context::Output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  Check(Ort().KernelContext_GetOutput(context_, index, shape.dims.data(), shape.rank, &value));
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  Check(Ort().GetTensorMutableData(value, &data));
  return data;
}

void Context::Run(int64_t count, void (*work)(void*, Tasks*), void* data) const {
  // onnxruntime does not tell the number of its threads, and deals tasks in another order each
  // time.
  static const auto threads = std::max<int64_t>(std::thread::hardware_concurrency(), 1);
  struct Job {
    void (*work)(void*, Tasks*);
    void* data;
    TaskRanges ranges;
    std::once_flag failed;
    std::exception_ptr error;
  } job{work, data, TaskRanges(count, threads), {}, {}};
  const auto run = [](void* user, size_t) {
    auto* const j = static_cast<Job*>(user);
    try {
      TaskRanges::Mine tasks(&j->ranges);
      j->work(j->data, &tasks);
    } catch (...) {
      std::call_once(j->failed, [j] { j->error = std::current_exception(); });
    }
  };
  const size_t calls = job.ranges.size();
  Check(Ort().KernelContext_ParallelFor(context_, run, calls, calls, &job));
  if (job.error) std::rethrow_exception(job.error);
}

std::optional<Shape> ShapeContext::InputShape(size_t index) const {
  const OrtTensorTypeAndShapeInfo* const info = InputInfo(context_, index);
  if (Rank(info) > Shape::kMaxRank) return std::nullopt;
  const Shape shape = ReadShape(info);
  // No computation with the extents that remain can overflow.
  for (const int64_t dim : shape.dims) {
    if (dim > kMaxExtent) return std::nullopt;
  }
  return shape;
}

std::optional<int64_t> ShapeContext::Int(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = 0;
  size_t size = 0;
  OrtStatus* status = Ort().ShapeInferContext_GetAttribute(context_, name, &attribute);
  if (status == nullptr) {
    status = Ort().ReadOpAttr(attribute, kOrtAttributeInt, &value, sizeof(value), &size);
  }
  if (status == nullptr) return value;
  Ort().ReleaseStatus(status);
  return std::nullopt;
}

bool ShapeContext::Ints(const char* name, int64_t* out, size_t count) const {
  const OrtOpAttr* attribute = nullptr;
  size_t size = 0;
  OrtStatus* status = Ort().ShapeInferContext_GetAttribute(context_, name, &attribute);
  if (status == nullptr) {
    status = Ort().ReadOpAttr(attribute, kOrtAttributeInts, out, count * sizeof(*out), &size);
  }
  if (status == nullptr) return size == count * sizeof(*out);
  Ort().ReleaseStatus(status);
  return false;
}

void ShapeContext::SetOutputShape(size_t index, const Shape& shape, OrtElementType type) const {
  std::array<const char*, Shape::kMaxRank> names;
  names.fill("");
  if (shape[0] < 0) {
    const OrtTensorTypeAndShapeInfo* const input = InputInfo(context_, 0);
    std::array<const char*, Shape::kMaxRank> input_names;
    Check(Ort().GetSymbolicDimensions(input, input_names.data(), Rank(input)));
    names[0] = input_names[0];
  }
  // onnxruntime would read an unknown dimension without a symbol as the number -1.
  for (size_t i = 0; i < shape.rank; ++i) {
    if (shape[i] < 0 && *names[i] == '\0') return;
  }
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(Ort().CreateTensorTypeAndShapeInfo(&raw));
  const TypeAndShape output(raw);
  Check(Ort().SetTensorElementType(output.get(), type));
  Check(Ort().SetDimensions(output.get(), shape.dims.data(), shape.rank));
  Check(Ort().SetSymbolicDimensions(output.get(), names.data(), shape.rank));
  Check(Ort().ShapeInferContext_SetOutputTypeShape(context_, index, output.get()));
}

}  // namespace bnn_deploy
