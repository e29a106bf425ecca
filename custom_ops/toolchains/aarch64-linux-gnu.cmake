# 64-bit ARM (Raspberry Pi 3, 4, 5) with the cross compiler of Debian and Ubuntu.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
find_program(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
if(NOT CMAKE_CXX_COMPILER)
  message(FATAL_ERROR
    "aarch64-linux-gnu-g++ is missing: sudo apt install g++-aarch64-linux-gnu; or set BNN_DEPLOY_TARGET=aarch64-zig, which needs no apt")
endif()
