# 64-bit ARM (Raspberry Pi 3, 4, 5).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
include(${CMAKE_CURRENT_LIST_DIR}/zig.cmake)
bnn_deploy_zig(aarch64-linux-gnu.2.28) # like onnxruntime's own wheels
