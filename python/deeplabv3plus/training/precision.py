"""Choice of device and of the type that convolutions compute in."""

from __future__ import annotations

import contextlib

import torch


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `"auto"` is a GPU if PyTorch has one, else the CPU.

    Raises:
        ValueError: not a device, or one this machine or this PyTorch lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise ValueError(
            f"device: {name} asked for, but PyTorch sees {torch.cuda.device_count()} GPUs"
        )
    return device


def use_bfloat16(mode: str, device: torch.device) -> bool:
    """Return whether to use bfloat16: as told, or for `"auto"` where the hardware has it."""
    if mode != "auto":
        return mode == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bfloat16()


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager:
    """Return a context in which convolutions run in bfloat16, if `enabled`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
