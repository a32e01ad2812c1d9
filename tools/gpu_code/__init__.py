"""What the compiled GPU kernels use of the hardware, read from machine code without a GPU."""
