"""Loads and stores of a kernel's buffers, read off PTX."""

from __future__ import annotations

from harness.machine.compilers import Binary
from harness.machine.ptx import buffer_accesses

PTX = """
.func (.param .b32 func_retval0) add_taps(.param .b64 add_taps_param_0, .param .b64 add_taps_param_1)
{
    ld.param.u64 %rd1, [add_taps_param_1];
    .loc 1 9 1
    ld.f32 %f1, [%rd1];
    ret;
}
.visible .entry kernel(.param .u64 kernel_param_0, .param .u64 kernel_param_1)
{
    ld.param.u64 %rd2, [kernel_param_0];
    ld.param.u64 %rd1, [kernel_param_1];
    add.s64 %rd3, %rd1, 16;
    .loc 1 20 1
    ld.global.f32 %f1, [%rd2];
    .loc 1 21 1
    st.global.f32 [%rd3], %f1;
    ret;
}
"""


def test_a_function_that_a_kernel_calls_is_no_part_of_it() -> None:
    found = buffer_accesses(Binary(b"", PTX, {0: "x", 1: "out"}, 0, 128))
    assert (found["x"].loads, found["x"].stores) == ({"1:20"}, set())
    assert (found["out"].loads, found["out"].stores) == (set(), {"1:21"})
