"""What a launch hands to the CUDA driver, read back as the driver reads it. Needs no GPU: the driver is a stand-in."""

from __future__ import annotations

import ctypes
from struct import pack, unpack
from threading import Barrier, Thread
from typing import Any

import pytest
import torch

from runtime import private
from runtime.slots import Slots

pytest.importorskip("triton", reason="Triton is not installed")

from reference.problem import Tail
from triton_impl import driver, launch
from triton_impl.prepare import prepare_multiply_gap

CONTEXT, KERNEL, STREAM = 11, 22, 33


class Driver:
    """As much of libcuda as driver.py asks for. A thread has no context until it is given one."""

    def __init__(self) -> None:
        self.launched: list[tuple[list[int], list[bytes]]] = []
        self.bound: list[int] = []
        self.asked_for_shared: list[int] = []
        self.status = 0
        self.parameters = 0

    def cuDeviceGet(self, to: Any, device: int) -> int:
        to._obj.value = device
        return 0

    def cuDevicePrimaryCtxRetain(self, to: Any, device: Any) -> int:
        to._obj.value = CONTEXT + device.value
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.bound.append(context.value)
        return 0

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        return 0 if image == b"cubin" else 209

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        function._obj.value = KERNEL
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        self.asked_for_shared.append(value)
        return 0

    def cuGetErrorName(self, status: int, to: Any) -> int:
        to._obj.value = b"CUDA_ERROR"
        return 0

    def cuGetErrorString(self, status: int, to: Any) -> int:
        to._obj.value = f"number {status}".encode()
        return 0

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        if not self.bound:
            return driver.INVALID_CONTEXT
        x, y, *numbers, stream, parameters, extra = rest
        assert extra is None
        slots = [ctypes.string_at(parameters[i], 8) for i in range(self.parameters)]
        self.launched.append(([function.value, x, y, *(n.value for n in numbers), stream.value], slots))
        return self.status


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(driver, "_driver", lambda: found)
    return found


def kernel(shared: int = 0) -> driver.Kernel:
    return driver.Kernel(3, b"cubin", "name", 64, shared)


def test_slots_hold_every_argument_in_order() -> None:
    slots = Slots(lambda addresses: addresses)
    tensors = torch.zeros(3), torch.zeros(5)
    for numbers in ((0.5, 2**40, 7), (-1.5, -3, 0)):
        addresses = slots.fill((*tensors, *numbers))
        found = b"".join(ctypes.string_at(address, 8) for address in addresses)
        assert unpack("qqdqq", found) == (*(t.data_ptr() for t in tensors), *numbers)
    # An int is read from the lower half of its slot.
    assert unpack("i", ctypes.string_at(addresses[3], 4)) == (-3,)


def test_every_thread_has_slots_of_its_own() -> None:
    slots, barrier, found = Slots(lambda addresses: addresses), Barrier(4), {}

    def work(number: int) -> None:
        (address,) = slots.fill((number,))
        barrier.wait()
        found[number] = unpack("q", ctypes.string_at(address, 8))[0]

    threads = [Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {n: n for n in range(4)}


def test_the_driver_gets_what_was_fixed_and_what_was_given(fake: Driver) -> None:
    fake.parameters = 3
    values = (ctypes.c_int64 * 2)(17, -4)
    addresses = [ctypes.addressof(values), ctypes.addressof(values) + 8]
    kernel()((7, 5), STREAM, driver.parameters(addresses))
    # One null pointer more than the kernel's own parameters: for scratch memory that there is none of.
    assert fake.launched == [([KERNEL, 7, 5, 1, 64, 1, 1, 0, STREAM], [pack("q", v) for v in (17, -4, 0)])]
    assert fake.asked_for_shared == []


def test_much_shared_memory_is_asked_for(fake: Driver) -> None:
    kernel(driver.FREE_SHARED_BYTES + 1)
    assert fake.asked_for_shared == [driver.FREE_SHARED_BYTES + 1]


def test_a_fresh_thread_gets_the_context(fake: Driver) -> None:
    made = kernel()
    fake.bound.clear()
    made((7, 5), STREAM, driver.parameters([]))
    assert fake.bound == [CONTEXT + 3]
    assert len(fake.launched) == 1


def test_errors_are_in_the_drivers_words(fake: Driver) -> None:
    with pytest.raises(RuntimeError, match="CUDA driver: CUDA_ERROR number 209"):
        driver.Kernel(0, b"other", "name", 32, 0)
    made = kernel()
    fake.status = 700
    with pytest.raises(RuntimeError, match="CUDA driver: CUDA_ERROR number 700"):
        made((7, 5), STREAM, driver.parameters([]))


def test_a_launch_hands_over_what_the_kernel_takes(fake: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is compiled in: the kernel has as many parameters as its specialisation has types."""
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(private, "current_device", lambda: 3)
    monkeypatch.setattr(launch, "_compiled", lambda special, device: kernel())
    prepared: Any = prepare_multiply_gap(Tail(2, 3, 64, 64), (12288, 4096, 64, 1), torch.float32, 0, False).launch
    y, out = torch.zeros(1), torch.zeros(1)
    arguments = (y, out, out, out, out, 0, 0, 0.25)
    assert len(arguments) + len(prepared.sizes) == len(prepared.kind.types)
    fresh = launch.Launch(prepared.kind, prepared.grid, prepared.sizes)
    fake.parameters = len(prepared.kind.types)
    fresh(torch.device("cuda", 3), STREAM, *arguments)
    ((_, slots),) = fake.launched
    want = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in (*arguments, *prepared.sizes)]
    assert slots == [pack("d" if isinstance(v, float) else "q", v) for v in want]


def test_cupy_gets_the_same_slots() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from cupy_impl.launch import _parameters

    assert [p.ptr for p in _parameters([8, 16])] == [8, 16]
