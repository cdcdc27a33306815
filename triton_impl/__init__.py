"""The operator as Triton kernels; `launch` holds what a caller uses."""

from runtime import plan
from triton_impl import constants
from triton_impl.tunable import TUNABLE

plan.apply("triton", constants, TUNABLE)
