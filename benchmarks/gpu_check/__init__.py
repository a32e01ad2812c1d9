"""Proof and timing of the kernels on a GPU: `make gpu-check`; docs/gpu.md says what each part does.

Runs offline with the interpreter it is started with, and installs nothing.
"""
