# Cross builds with clang and the C++ library of PyPI's package ziglang, for machines without another cross compiler.
# Included by the toolchains of its targets, which set CMAKE_SYSTEM_NAME and CMAKE_SYSTEM_PROCESSOR.
#
#   bnn_deploy_zig(TARGET)   compile for a target as zig names it
function(bnn_deploy_zig target)
  find_program(BNN_DEPLOY_ZIG python-zig)
  if(NOT BNN_DEPLOY_ZIG)
    message(FATAL_ERROR "python-zig is missing: pip install ziglang")
  endif()
  set(CMAKE_CXX_COMPILER ${BNN_DEPLOY_ZIG} c++ PARENT_SCOPE)
  # Given so, CMake's check of which compiler this is does not link.
  set(CMAKE_CXX_COMPILER_TARGET ${target} PARENT_SCOPE)
  # The symbols of the C++ library are 4 MB, and the machine's own `strip` knows no other systems or CPUs.
  set(CMAKE_STRIP "" PARENT_SCOPE)
  set(CMAKE_SHARED_LINKER_FLAGS_INIT -s PARENT_SCOPE)
  # CMake's other checks with the same: else zig compiles its C++ library, for minutes, once more for them.
  set(CMAKE_EXE_LINKER_FLAGS_INIT -s PARENT_SCOPE)
endfunction()
