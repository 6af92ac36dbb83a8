"""Decides what `dtype: auto` means: bfloat16 where the machine has matrix units for it, float32 elsewhere.

A run is planned once and refined by many processes, so it is decided once, before the model's identity is computed.
Never imports torch.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from stable_sam.config import RefinerConfig, RunConfig

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAG = "amx_bf16"
"""Flag of a CPU with matrix units for bfloat16: Intel's AMX."""
FIRST_CAPABILITY = 8.0
"""Least compute capability of an NVIDIA GPU with matrix units for bfloat16: the Ampere generation of 2020."""


def fixed_dtype(config: RefinerConfig, *, on_gpus: bool = False) -> RefinerConfig:
    """Return `config` with `float32` or `bfloat16` in the place of `auto`.

    on_gpus: whether the model runs on GPUs of another machine, which count as having matrix units.
    """
    if config.dtype != "auto":
        return config
    if config.device == "cpu":
        units = cpu_has_units()
    else:
        capabilities = gpu_capabilities()
        asked = on_gpus or config.device != "auto"  # a GPU that is not here, or not NVIDIA's
        units = min(capabilities) >= FIRST_CAPABILITY if capabilities else asked or cpu_has_units()
    return config.model_copy(update={"dtype": "bfloat16" if units else "float32"})


def fixed_run_dtype(config: RunConfig) -> RunConfig:
    """Return the config of a run with its `dtype` as by `fixed_dtype`; a run on a cluster says by `ray.num_gpus` that
    its actors have GPUs."""
    return config.model_copy(update={"refiner": fixed_dtype(config.refiner, on_gpus=config.ray.num_gpus > 0)})


@cache
def cpu_has_units() -> bool:
    """Tell whether the CPU has matrix units for bfloat16; only Linux says so."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return False
    return any(line.startswith("flags") and CPU_FLAG in line.split() for line in text.splitlines())


@cache
def gpu_capabilities() -> tuple[float, ...]:
    """Return the compute capability of each NVIDIA GPU of this machine; there is none where the environment hides
    all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ()
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return tuple(float(line) for line in done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
