"""An emulated GPU for the tests: runs the unmodified CUDA kernels and launchers on the CPU."""
