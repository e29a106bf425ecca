# 64-bit ARM (Raspberry Pi 3, 4, 5) with clang and the C++ library of PyPI's package ziglang, for machines without apt.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
find_program(BNN_DEPLOY_ZIG python-zig)
if(NOT BNN_DEPLOY_ZIG)
  message(FATAL_ERROR "python-zig is missing: pip install ziglang")
endif()
set(CMAKE_CXX_COMPILER ${BNN_DEPLOY_ZIG} c++)
# Links against glibc 2.28, like onnxruntime's own wheels.
# Given so, CMake's check of which compiler this is does not link.
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu.2.28)
# The symbols of the C++ library are 4 MB, and the machine's own `strip` knows no ARM.
set(CMAKE_STRIP "")
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
# CMake's other checks with the same: else zig compiles its C++ library, for minutes, once more for them.
set(CMAKE_EXE_LINKER_FLAGS_INIT -s)
