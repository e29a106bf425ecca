"""Models of CPUs: loops of built libraries, found in their machine code, in llvm-mca."""
