"""The operator as Triton kernels; `launch` holds what a caller uses."""
