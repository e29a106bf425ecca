# 32-bit ARM with the cross compiler of Debian and Ubuntu. There are no onnxruntime wheels for it: this is for
# users who build onnxruntime themselves. The library has the scalar kernels only.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR armv7l)
find_program(CMAKE_CXX_COMPILER arm-linux-gnueabihf-g++)
if(NOT CMAKE_CXX_COMPILER)
  message(FATAL_ERROR "arm-linux-gnueabihf-g++ is missing: sudo apt install g++-arm-linux-gnueabihf")
endif()
# Silences GCC's notes about the change of parameter passing in GCC 7.
set(CMAKE_CXX_FLAGS_INIT -Wno-psabi)
