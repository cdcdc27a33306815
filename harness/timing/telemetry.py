"""Clocks, temperature, power and reasons for throttling, read through NVML."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

# NVML's bit mask of "clocks event reasons" (nvml.h). Idle (0x1) and fixed application clocks (0x2, 0x100)
# are settings or rest, not a disturbance, so they are not listed.
THROTTLE_REASONS = {
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """State of the card at one moment."""

    sm_mhz: int
    memory_mhz: int
    temperature_c: int
    power_w: float
    throttle: list[str]


def decode_reasons(mask: int) -> list[str]:
    """Names of the throttling bits set in NVML's mask."""
    return [name for bit, name in THROTTLE_REASONS.items() if mask & bit]


class Telemetry:
    """NVML handle of one CUDA device. Without NVML, `reason` says why and readings are None."""

    def __init__(self, device: torch.device, nvml: Any = None) -> None:
        self.reason = ""
        try:
            self.nvml = nvml or importlib.import_module("pynvml")
            self.nvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
            self.handle = self.nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.read()
        except Exception as error:  # pynvml's error classes exist only once it is imported
            self.reason = f"{type(error).__name__}: {error}"

    def read(self) -> Reading | None:
        """State now, or None without NVML."""
        if self.reason:
            return None
        n, h = self.nvml, self.handle
        return Reading(
            sm_mhz=n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM),
            memory_mhz=n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM),
            temperature_c=n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
            power_w=n.nvmlDeviceGetPowerUsage(h) / 1000,
            throttle=self.throttle(),
        )

    def throttle(self) -> list[str]:
        """Reasons for throttling now; empty when there are none, and without NVML."""
        if self.reason:
            return []
        return decode_reasons(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle))

    def driver(self) -> str:
        """Driver version, or "unknown"."""
        return "unknown" if self.reason else self.nvml.nvmlSystemGetDriverVersion()

    def bandwidth(self) -> float | None:
        """Datasheet bandwidth in GB/s: twice the top memory clock (double data rate) times the bus width."""
        if self.reason:
            return None
        try:
            mhz = self.nvml.nvmlDeviceGetMaxClockInfo(self.handle, self.nvml.NVML_CLOCK_MEM)
            return 2 * mhz * 1e6 * self.nvml.nvmlDeviceGetMemoryBusWidth(self.handle) / 8 / 1e9
        except self.nvml.NVMLError:
            return None
