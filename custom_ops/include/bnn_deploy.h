/* The C interface of libbnn_deploy_ops: the operators of converted models for ONNX Runtime, and
 * what they run on.
 *
 * A program that uses ONNX Runtime's C or C++ API either links to the library and calls
 * RegisterCustomOps, or hands the library's path to RegisterCustomOpsLibrary, once for each
 * OrtSessionOptions. Every function may be called from any thread.
 */
#ifndef BNN_DEPLOY_H_
#define BNN_DEPLOY_H_

#include <stdint.h>

#if !defined(_WIN32)
#define BNN_DEPLOY_API __attribute__((visibility("default")))
#elif defined(BNN_DEPLOY_BUILDS_LIBRARY)
#define BNN_DEPLOY_API __declspec(dllexport)
#else
#define BNN_DEPLOY_API __declspec(dllimport)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of ONNX Runtime, from onnxruntime_c_api.h. */
struct OrtApiBase;
struct OrtSessionOptions;
struct OrtStatus;

/* Makes the operators known to sessions with these options. base: what OrtGetApiBase() gives.
 * NULL is success; a status is the caller's, to be released with OrtApi's ReleaseStatus. */
BNN_DEPLOY_API struct OrtStatus* RegisterCustomOps(struct OrtSessionOptions* options,
                                                   const struct OrtApiBase* base);

/* The version of the library, such as "0.1.0". */
BNN_DEPLOY_API const char* bnn_deploy_version(void);

/* The name of an instruction set that has kernels and that this CPU can run, index 0 being the
 * best; NULL from the number of them on. */
BNN_DEPLOY_API const char* bnn_deploy_isa(uint32_t index);

/* The name of the one that a session made now takes: the best, or that of the environment variable
 * BNN_DEPLOY_ISA; NULL if this CPU cannot run that one, which makes every session fail. */
BNN_DEPLOY_API const char* bnn_deploy_selected_isa(void);

/* How many times kernels of an instruction set have been called in this process, by all sessions; 0
 * for a name that is not one of bnn_deploy_isa. It tells which kernels ran. */
BNN_DEPLOY_API uint64_t bnn_deploy_calls(const char* isa);

#ifdef __cplusplus
}
#endif

#endif /* BNN_DEPLOY_H_ */
