"""The operator as CUDA C++ kernels launched through CuPy; `launch` holds what a caller uses."""
