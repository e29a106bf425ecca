// The slice of ONNX Runtime's C ABI that this library calls, declared by hand so that the build
// needs no download: the onnxruntime wheel ships no headers. The table of functions is append-only,
// a slot never moves once released, and every slot below exists since API version 17. What
// is asked for is 18, whose runtimes call GetMayInplace.

#ifndef BNN_DEPLOY_ORT_ABI_H_
#define BNN_DEPLOY_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

extern "C" {

constexpr uint32_t kOrtApiVersion = 18;
constexpr const char* kOrtOldestRelease = "1.18";

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtCustomOp;

enum OrtErrorCode : int { kOrtFail = 1, kOrtInvalidArgument = 2 };
enum OrtElementType : int {
  kOrtFloat = 1,
  kOrtUint8 = 2,
  kOrtInt32 = 6,
  kOrtInt64 = 7,
  kOrtUint32 = 12,
};
enum OrtAttributeType : int { kOrtAttributeInt = 1, kOrtAttributeInts = 2 };
enum OrtCharacteristic : int { kOrtRequired = 0, kOrtOptional = 1 };
enum OrtMemoryType : int { kOrtMemoryDefault = 0 };

// Each function returns null on success unless its return type says otherwise. A status that we
// receive and do not return must be released.
struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);
  void* slots_1[1];
  const char* (*GetErrorMessage)(const OrtStatus* status);
  void* slots_3[23];
  OrtStatus* (*CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  void* slots_29[22];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);
  void* slots_52[5];
  OrtStatus* (*CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo** out);
  OrtStatus* (*SetTensorElementType)(OrtTensorTypeAndShapeInfo* info, OrtElementType type);
  OrtStatus* (*SetDimensions)(OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t count);
  void* slots_60[1];
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count);
  OrtStatus* (*GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info, const char** out,
                                      size_t count);
  void* slots_64[1];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  void* slots_66[20];
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name,
                                             int64_t* out);
  void* slots_87[3];
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index,
                                       const OrtValue** out);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index,
                                        const int64_t* dims, size_t count, OrtValue** out);
  void* slots_92[1];
  void (*ReleaseStatus)(OrtStatus* status);
  void* slots_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  void* slots_100[63];
  OrtStatus* (*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo* info, const char* name,
                                                  int64_t* out, size_t* size);
  void* slots_164[69];
  OrtStatus* (*KernelInfo_GetOutputName)(const OrtKernelInfo* info, size_t index, char* out,
                                         size_t* size);
  void* slots_234[10];
  OrtStatus* (*KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);
  void* slots_245[4];
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index,
                                                  int* is_constant, const OrtValue** out);
  void* slots_250[18];
  OrtStatus* (*ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context,
                                                    size_t index, OrtTensorTypeAndShapeInfo** out);
  OrtStatus* (*ShapeInferContext_GetAttribute)(const OrtShapeInferContext* context,
                                               const char* name, const OrtOpAttr** out);
  OrtStatus* (*ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext* context,
                                                     size_t index,
                                                     const OrtTensorTypeAndShapeInfo* info);
  OrtStatus* (*SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, const char** names,
                                      size_t count);
  OrtStatus* (*ReadOpAttr)(const OrtOpAttr* attribute, OrtAttributeType type, void* data,
                           size_t bytes, size_t* out);
  void* slots_273[1];
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context,
                                          void (*fn)(void*, size_t), size_t total, size_t batches,
                                          void* user);
};

#define BNN_DEPLOY_CHECK_SLOT(function, slot) \
  static_assert(offsetof(OrtApi, function) == (slot) * sizeof(void*), #function " has moved")
BNN_DEPLOY_CHECK_SLOT(GetErrorMessage, 2);
BNN_DEPLOY_CHECK_SLOT(CreateCustomOpDomain, 26);
BNN_DEPLOY_CHECK_SLOT(GetTensorMutableData, 51);
BNN_DEPLOY_CHECK_SLOT(CreateTensorTypeAndShapeInfo, 57);
BNN_DEPLOY_CHECK_SLOT(GetSymbolicDimensions, 63);
BNN_DEPLOY_CHECK_SLOT(GetTensorTypeAndShape, 65);
BNN_DEPLOY_CHECK_SLOT(KernelInfoGetAttribute_int64, 86);
BNN_DEPLOY_CHECK_SLOT(KernelContext_GetInput, 90);
BNN_DEPLOY_CHECK_SLOT(ReleaseStatus, 93);
BNN_DEPLOY_CHECK_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
BNN_DEPLOY_CHECK_SLOT(KernelInfoGetAttributeArray_int64, 163);
BNN_DEPLOY_CHECK_SLOT(KernelInfo_GetOutputName, 233);
BNN_DEPLOY_CHECK_SLOT(KernelInfo_GetNodeName, 244);
BNN_DEPLOY_CHECK_SLOT(KernelInfoGetConstantInput_tensor, 249);
BNN_DEPLOY_CHECK_SLOT(ShapeInferContext_GetInputTypeShape, 268);
BNN_DEPLOY_CHECK_SLOT(ReadOpAttr, 272);
BNN_DEPLOY_CHECK_SLOT(KernelContext_ParallelFor, 274);
#undef BNN_DEPLOY_CHECK_SLOT

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null: the runtime is older than `version`
  const char* (*GetVersionString)();
};

// The runtime uses the V2 functions, which return a status, wherever they are set.
struct OrtCustomOp {
  uint32_t version;
  void* CreateKernel;
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);
  OrtElementType (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  OrtElementType (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void* KernelCompute;
  void (*KernelDestroy)(void* kernel);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemoryType (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp* op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp* op);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp* op, OrtShapeInferContext* context);
  int (*GetStartVersion)(const OrtCustomOp* op);
  int (*GetEndVersion)(const OrtCustomOp* op);
  // The number of pairs (*inputs)[i], (*outputs)[i]: output (*outputs)[i] may take the memory of
  // input (*inputs)[i], which the runtime allows where nothing reads that input later.
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  void* GetAliasMap;
  void* ReleaseAliasMap;
};
static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "OrtCustomOp has 26 slots");

}  // extern "C"

#endif  // BNN_DEPLOY_ORT_ABI_H_
