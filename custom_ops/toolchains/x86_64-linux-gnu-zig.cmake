# 64-bit Linux on x86-64, older than the machine that builds.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
include(${CMAKE_CURRENT_LIST_DIR}/zig.cmake)
bnn_deploy_zig(x86_64-linux-gnu.2.28) # like onnxruntime's own wheels
