"""The operator as CUDA C++ kernels launched through CuPy; `launch` holds what a caller uses."""

from cupy_impl import constants
from cupy_impl.tunable import TUNABLE
from runtime import plan

plan.apply("cupy", constants, TUNABLE)
