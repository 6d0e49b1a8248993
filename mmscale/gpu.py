"""Kinds of GPU, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mmscale.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """What planning needs to know of a device."""

    name: str
    memory: float  # bytes
    bf16: float  # FLOP/s of dense bf16 products with fp32 accumulation
    memory_rate: float  # bytes/s of its own memory
    link: float  # bytes/s, one way, to the GPUs of its machine
    # bytes/s, one way, to those of other machines: its share of the machine's network
    network: float
    # Has products of 8-bit floats: compute capability 8.9, Ada and Hopper, and later.
    float8: bool = True


# NVIDIA's data sheets: A100 (2020), H100 (2022), H200 (2023), HGX B200 (2024), Ada Lovelace white
# paper (2022); the memory of H100 and H200 as their drivers report it (81,559 and 143,771 MiB).
# NVLink stands there as the sum of both ways. The networks are what such machines usually have: 8
# times 200 or 400 Gbit/s, and 100 Gbit/s for a workstation of eight RTX 4090.
GPUS = {
    gpu.name: gpu
    for gpu in (
        GpuSpec(
            name="a100-40gb",
            memory=40e9,
            bf16=312e12,
            memory_rate=1.555e12,
            link=300e9,
            network=25e9,
            float8=False,
        ),
        GpuSpec(
            name="a100-80gb",
            memory=80e9,
            bf16=312e12,
            memory_rate=2.039e12,
            link=300e9,
            network=25e9,
            float8=False,
        ),
        GpuSpec(
            name="h100-80gb",
            memory=85.5e9,
            bf16=989e12,
            memory_rate=3.35e12,
            link=450e9,
            network=50e9,
        ),
        GpuSpec(
            name="h200-141gb",
            memory=150.7e9,
            bf16=989e12,
            memory_rate=4.8e12,
            link=450e9,
            network=50e9,
        ),
        GpuSpec(
            name="b200-180gb",
            memory=180e9,
            bf16=2250e12,
            memory_rate=7.7e12,
            link=900e9,
            network=50e9,
        ),
        GpuSpec(
            name="rtx4090-24gb",
            memory=24e9,
            bf16=165e12,
            memory_rate=1.008e12,
            link=25e9,
            network=1.5e9,
        ),
    )
}
_SHORT = {name.partition("-")[0]: name for name in GPUS}  # of two kinds of a name, the larger
_UNITS = {"memory": 1e9, "bf16": 1e12, "memory_rate": 1e12, "link": 1e9, "network": 1e9}


# What the driver calls them. An H100 of another form (PCIe, NVL) is another chip, and its rate is
# not here.
_DRIVER_NAMES = {
    "A100-SXM4-40GB": "a100-40gb",
    "A100-SXM4-80GB": "a100-80gb",
    "H100 80GB HBM3": "h100-80gb",
    "H200": "h200-141gb",
    "B200": "b200-180gb",
    "RTX 4090": "rtx4090-24gb",
}


def known_gpu(driver_name: str) -> GpuSpec | None:
    """The kind of a device by what the driver calls it, such as ``NVIDIA H100 80GB HBM3``; None:
    not known.
    """
    for part, kind in _DRIVER_NAMES.items():
        if driver_name.endswith(part):
            return GPUS[kind]
    return None


def gpu_family(driver_name: str) -> GpuSpec | None:
    """The first kind of a device's family: network, and link but for PCIe cards, are those of all
    its forms.
    """
    words = driver_name.upper().replace("-", " ").split()
    for kind in GPUS.values():
        family = kind.name.partition("-")[0].upper().removeprefix("RTX")
        if family in words or f"RTX{family}" in words:
            return kind
    return None


def find_gpu(text: str) -> GpuSpec:
    """A known kind, such as ``h100``, or one's own: ``h100,memory=94,network=100`` or all of the
    values.

    Units: memory GB, bf16 TFLOP/s, memory_rate TB/s, link and network GB/s. Raises `UserError`.
    """
    name, *changes = text.lower().split(",")
    known = GPUS.get(_SHORT.get(name, name))
    values: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        try:
            values[key] = float(value) * _UNITS[key]
        except (KeyError, ValueError):
            raise UserError(
                f"--gpu {text}: {change} is not one of {', '.join(f'{key}=N' for key in _UNITS)}"
            ) from None
        if not values[key] > 0:
            raise UserError(f"--gpu {text}: {key} is above 0")
    if known is None and set(values) != set(_UNITS):
        raise UserError(
            f"--gpu {text}: unknown kind; use {', '.join(GPUS)}, or describe your own: "
            f"name,{','.join(f'{key}=N' for key in _UNITS)}"
        )
    base = known or GpuSpec(name=name, memory=1.0, bf16=1.0, memory_rate=1.0, link=1.0, network=1.0)
    return replace(base, **values)
