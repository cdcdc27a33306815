"""Published figures, rates, and the kernels behind the measured ceilings."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.machine.compiled import read
from harness.machine.compilers import compile_cuda_source
from harness.timing import ceilings_cuda, floors
from harness.timing.floors import RTX_4090, Ceiling, Ceilings, card
from harness.timing.telemetry import Telemetry, decode_reasons

try:
    from harness.timing import ceilings_triton
except ImportError:
    ceilings_triton = None


def test_target_card() -> None:
    # 512 MiB at 1008 GB/s.
    assert RTX_4090.floor_us(1 << 29) == pytest.approx(532.6, abs=0.05)


def test_the_table_knows_the_4090_and_nvml_the_others() -> None:
    properties = SimpleNamespace(name=RTX_4090.name, L2_cache_size=1, multi_processor_count=1)
    assert card(properties, 1.0) is RTX_4090
    other = card(SimpleNamespace(name="X", L2_cache_size=60 << 20, multi_processor_count=132), 4917.0)
    assert (other.bandwidth, other.l2_bytes, other.sms) == (4917.0, 60 << 20, 132)
    assert card(SimpleNamespace(name="X", L2_cache_size=1, multi_processor_count=1), None).floor_us(100) is None


def test_a_copy_moves_its_bytes_twice() -> None:
    assert Ceiling("read", 10**9, 1000.0, "", "cold").gb_per_s == pytest.approx(1000.0)
    assert Ceiling("copy", 10**9, 1000.0, "", "cold").gb_per_s == pytest.approx(2000.0)


class Broken:
    """A kernel set whose compiler dies at the first kernel."""

    def __getattr__(self, name: str):
        raise RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize(
    "planted, left",
    [
        ({"harness.timing.ceilings_triton": None}, ["CUDA"]),
        ({"harness.timing.ceilings_triton": Broken()}, ["CUDA"]),
        ({"harness.timing.ceilings_cuda": Broken()}, ["Triton"]),
        ({"harness.timing.ceilings_triton": Broken(), "harness.timing.ceilings_cuda": None}, []),
    ],
)
def test_floors_by_whichever_kernel_set_works(
    planted: dict[str, object], left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine without a C compiler is the one that the CUDA kernels are for."""
    if usable().keys() != {"Triton", "CUDA"}:
        pytest.skip("one of the two sets cannot run here anyway")
    for name, module in planted.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(floors, "capture", lambda call: (call, call()))
    monkeypatch.setattr(floors, "stopwatch", lambda launch, prepare: lambda: float(bool(launch() is not None)))
    found = Ceilings(DEVICE, {"cold": lambda: None})
    assert list(found.sets) == left and found.reasons.keys() == {"Triton", "CUDA"} - set(left)
    assert all("C compiler" in why or "Error" in why for why in found.reasons.values())
    floor = found._get("read", 1 << 16, "cold")
    assert (floor is None) == (not left)
    assert floor is None or floor.how.split()[0] in left
    assert (found.read_us(1 << 16, "cold") is None) == (not left)


def usable() -> dict[str, object]:
    return Ceilings(DEVICE, {"cold": lambda: None}).sets


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("numel", [4, 4096, 70_004])  # below one block, whole blocks, a ragged end
@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("name", ["Triton", "CUDA"])
def test_ceiling_kernels_touch_every_element(name: str, index: int, numel: int) -> None:
    kernels = usable().get(name)
    if kernels is None:
        pytest.skip(f"the ceilings of {name} do not run here: {Ceilings(DEVICE, {}).reasons[name]}")
    module = ceilings_cuda if name == "CUDA" else ceilings_triton
    assert module is not None and len(module.CONFIGS) == 6
    config: Any = module.CONFIGS[index]
    source = torch.arange(numel, dtype=torch.float32, device=DEVICE) % 7
    # Sums of small whole numbers are exact in float32.
    assert module.read(source, config).sum().item() == source.sum().item()
    target = torch.full_like(source, torch.nan)
    assert torch.equal(module.copy(source, target, config), source)
    assert torch.equal(module.write(target, 1.5, config), torch.full_like(source, 1.5))


def test_the_cuda_ceilings_load_and_store_16_bytes_at_a_time() -> None:
    pytest.importorskip("triton", reason="nvdisasm comes with Triton")
    pytest.importorskip("cupy", reason="the CUDA kernels are compiled by CuPy's NVRTC")
    config = ceilings_cuda.CONFIGS[0]
    source = f"#define THREADS {config.threads}\n#define UNROLL {config.unroll}\n{ceilings_cuda.SOURCE}"
    facts = read(compile_cuda_source(source, "read_all", ("--std=c++17",), config.threads, 89), "", "", "", 1)
    # All kernels of the source are in one file; a block's sum is a single number.
    assert set(facts.loads) == {"128"} and set(facts.stores) == {"128", "32"} and not facts.spills


@pytest.mark.skipif(DEVICE.type == "cpu", reason="measures on a GPU, and there is none")
def test_measured_ceilings_are_plausible() -> None:
    found = Ceilings(DEVICE, {"cold": lambda: None})
    kinds = {c.kind: c for c in found.large()}
    assert set(kinds) == {"read", "write", "copy", "empty"}
    # No card moves 20 TB/s to or from memory, and none that Triton supports less than 50 GB/s.
    assert all(50 < kinds[kind].gb_per_s < 20_000 for kind in ("read", "write", "copy"))
    assert 0.5 < kinds["empty"].us < 50
    small, large = found.read_us(1 << 20, "cold"), found.read_us(1 << 28, "cold")
    assert small is not None and large is not None and small < large


def test_throttle_bits() -> None:
    assert decode_reasons(0x1 | 0x2) == []  # idle, fixed clocks: not throttled
    assert decode_reasons(0x4 | 0x40) == ["power cap", "hardware thermal slowdown"]


class FakeNvml:
    """The handful of NVML calls that the lab makes."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def nvmlInit(self) -> None: ...

    def __getattr__(self, name: str):
        answers = {
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetTemperature": 45,
            "nvmlDeviceGetPowerUsage": 310_500,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlDeviceGetMaxClockInfo": 3201,
            "nvmlDeviceGetMemoryBusWidth": 6144,
        }
        return lambda *_: answers[name]


def test_telemetry_reads_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0-1"))
    found = Telemetry(torch.device("cuda"), FakeNvml())
    reading = found.read()
    assert found.reason == "" and reading is not None
    assert (reading.sm_mhz, reading.temperature_c, reading.power_w) == (1980, 45, 310.5)
    assert reading.throttle == ["power cap"] and found.driver() == "580.1"
    # 2 transfers a clock * 3201 MHz * 6144 bits / 8
    assert found.bandwidth() == pytest.approx(4916.7, abs=0.1)


def test_without_nvml_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    found = Telemetry(torch.device("cuda"), FakeNvml())
    assert found.reason == "RuntimeError: no driver"
    assert found.read() is None and found.throttle() == [] and found.bandwidth() is None
