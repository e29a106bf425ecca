// The operators' interface to ONNX Runtime: nodes, tensors, shapes and tasks, with errors as C++
// exceptions. `DefineOp` converts exceptions back to statuses.

#ifndef BNN_DEPLOY_ORT_API_H_
#define BNN_DEPLOY_ORT_API_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/tasks.h"
#include "ort/abi.h"

namespace bnn_deploy {

// The table of the runtime that registered this library.
void SetOrtApi(const OrtApi* api);
const OrtApi& Ort();

// Throws std::runtime_error with the status's message unless it is null, and releases it.
void Check(OrtStatus* status);

// Throws std::invalid_argument. `what` need not name the node: StatusFromException puts its label
// in front.
[[noreturn]] void Fail(const std::string& what);

// The status for the exception being handled (kOrtInvalidArgument for std::invalid_argument), with
// the message "`label`: message of the exception".
OrtStatus* StatusFromException(const OrtApi& api, const std::string& label) noexcept;

// "BinaryConv 'conv1'" for a node named conv1, "BinaryConv of output 'y'" for a node without a
// name.
std::string NodeLabel(const OrtKernelInfo* info, const char* op_type);

struct Shape {
  static constexpr size_t kMaxRank = 8;
  size_t rank = 0;
  std::array<int64_t, kMaxRank> dims{};  // 0 from `rank` on

  int64_t operator[](size_t i) const { return dims[i]; }
  int64_t back() const { return dims[rank - 1]; }
  void Append(int64_t dim) { dims[rank++] = dim; }
  bool operator==(const Shape& other) const { return rank == other.rank && dims == other.dims; }
  std::string ToString() const;  // "[1, 3, 224, 224]"
};

struct Tensor {
  const void* data;
  Shape shape;

  template <typename T>
  const T* As() const {
    return static_cast<const T*>(data);
  }
};

// A node during the creation of its kernel.
class NodeInfo {
 public:
  explicit NodeInfo(const OrtKernelInfo* info) : info_(info) {}

  int64_t Int(const char* name, int64_t min, int64_t max) const;
  // Exactly `count` values at `out`, each in [min, max].
  void Ints(const char* name, int64_t* out, size_t count, int64_t min, int64_t max) const;
  // The number of values of an integer list.
  size_t IntsCount(const char* name) const;
  // Valid as long as the session.
  Tensor ConstantInput(size_t index, const char* name) const;

 private:
  const OrtKernelInfo* info_;
};

// A node during a run.
class Context : public TaskRunner {
 public:
  explicit Context(OrtKernelContext* context) : context_(context) {}

  Tensor Input(size_t index) const;
  // Null for an optional output that is absent from the node.
  void* Output(size_t index, const Shape& shape) const;
  void Run(int64_t count, void (*work)(void*, Tasks*), void* data) const override;

 private:
  OrtKernelContext* context_;
};

// A node during shape inference. An unknown or malformed input or attribute is nullopt: shapes are
// then left open, and the kernel's constructor reports the error with the node's name.
class ShapeContext {
 public:
  explicit ShapeContext(OrtShapeInferContext* context) : context_(context) {}

  // -1 for a symbolic dimension.
  std::optional<Shape> InputShape(size_t index) const;
  std::optional<int64_t> Int(const char* name) const;
  // Copies the integers of `name` to `out` and returns true if there are exactly `count`.
  bool Ints(const char* name, int64_t* out, size_t count) const;
  // Sets the shape of output `index`. -1 is an unknown dimension: dimension 0 then takes the symbol
  // of input 0's dimension 0 ("N"), and any other unknown dimension leaves the shape open. Input 0
  // must have a rank that InputShape accepts.
  void SetOutputShape(size_t index, const Shape& shape, OrtElementType type) const;

 private:
  OrtShapeInferContext* context_;
};

// All inputs are required; if there are several outputs, each of them may be absent.
struct OpSchema {
  const char* name;
  std::vector<OrtElementType> inputs;
  std::vector<OrtElementType> outputs;
  // An input of the shape and type of output 0, whose memory output 0 may take; -1: none.
  int in_place = -1;
};

// The kernel object that onnxruntime holds for a node.
template <typename Op>
struct Kernel {
  std::string label;
  Op op;
};

// The OrtCustomOp of a class with `static const OpSchema kSchema`, a constructor from NodeInfo,
// `void Compute(const Context&) const` and `static void InferShape(const ShapeContext&)`.
template <typename Op>
const OrtCustomOp* DefineOp() {
  static const OrtCustomOp op = [] {
    OrtCustomOp d{};
    d.version = kOrtApiVersion;
    d.GetName = [](const OrtCustomOp*) { return Op::kSchema.name; };
    d.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    d.GetInputType = [](const OrtCustomOp*, size_t i) { return Op::kSchema.inputs[i]; };
    d.GetInputTypeCount = [](const OrtCustomOp*) { return Op::kSchema.inputs.size(); };
    d.GetOutputType = [](const OrtCustomOp*, size_t i) { return Op::kSchema.outputs[i]; };
    d.GetOutputTypeCount = [](const OrtCustomOp*) { return Op::kSchema.outputs.size(); };
    d.KernelDestroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
    d.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return kOrtRequired; };
    d.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) {
      return Op::kSchema.outputs.size() > 1 ? kOrtOptional : kOrtRequired;
    };
    d.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kOrtMemoryDefault; };
    d.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
    d.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    d.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    d.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    d.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                          void** kernel) -> OrtStatus* {
      std::string label;
      try {
        label = NodeLabel(info, Op::kSchema.name);
        *kernel = new Kernel<Op>{label, Op(NodeInfo(info))};
        return nullptr;
      } catch (...) {
        return StatusFromException(*api, label);
      }
    };
    d.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      const auto& node = *static_cast<const Kernel<Op>*>(kernel);
      try {
        node.op.Compute(Context(context));
        return nullptr;
      } catch (...) {
        return StatusFromException(Ort(), node.label);
      }
    };
    d.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatus* {
      try {
        Op::InferShape(ShapeContext(context));
        return nullptr;
      } catch (...) {
        return StatusFromException(Ort(), Op::kSchema.name);
      }
    };
    d.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    d.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    if (Op::kSchema.in_place >= 0) {
      d.GetMayInplace = [](int** inputs, int** outputs) -> size_t {
        static int input = Op::kSchema.in_place, output = 0;
        *inputs = &input;
        *outputs = &output;
        return 1;
      };
      d.ReleaseMayInplace = [](int*, int*) {};
    }
    return d;
  }();
  return &op;
}

}  // namespace bnn_deploy

#endif  // BNN_DEPLOY_ORT_API_H_
