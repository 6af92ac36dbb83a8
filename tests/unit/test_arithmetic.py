"""`dtype: auto`: bfloat16 where the machine has matrix units for it, decided once for a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam import arithmetic
from stable_sam.arithmetic import fixed_dtype, fixed_run_dtype
from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.identity import model_identity


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes a machine: the flags of its CPU, and what its nvidia-smi prints, None for no such program."""

    def make(flags: str, gpus: str | None) -> None:
        cpu_info = tmp_path / "cpuinfo"
        cpu_info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} avx2\n")
        folder = tmp_path / "bin"
        folder.mkdir()
        if gpus is not None:
            program = folder / "nvidia-smi"
            program.write_text(f"#!/bin/sh\nprintf '{gpus}'\n")
            program.chmod(0o755)
        monkeypatch.setattr(arithmetic, "CPU_INFO", cpu_info)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        arithmetic.cpu_has_units.cache_clear()
        arithmetic.gpu_capabilities.cache_clear()

    yield make
    arithmetic.cpu_has_units.cache_clear()
    arithmetic.gpu_capabilities.cache_clear()


@pytest.mark.parametrize(
    ("flags", "gpus", "device", "expected"),
    [
        ("sse2", None, "auto", "float32"),
        ("amx_bf16", None, "auto", "bfloat16"),
        ("amx_bf16_x", None, "cpu", "float32"),
        ("sse2", "9.0\\n", "auto", "bfloat16"),
        ("sse2", "9.0\\n", "cpu", "float32"),
        ("sse2", "8.0\\n7.5\\n", "auto", "float32"),  # an actor may get the older of the two
        ("amx_bf16", "7.5\\n", "cuda", "float32"),
        ("sse2", None, "cuda:1", "bfloat16"),
        ("sse2", "no devices", "auto", "float32"),
    ],
)
def test_auto_takes_bfloat16_where_the_machine_has_units_for_it(machine, flags, gpus, device, expected) -> None:
    machine(flags, gpus)
    assert fixed_dtype(RefinerConfig(dtype="auto", device=device)).dtype == expected


@pytest.mark.parametrize("visible", ["", "-1"])
def test_gpus_that_the_environment_hides_do_not_count(machine, monkeypatch, visible) -> None:
    machine("sse2", "9.0\\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert fixed_dtype(RefinerConfig(dtype="auto")).dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_that_is_named_is_taken_on_every_machine(machine, dtype) -> None:
    machine("amx_bf16", "9.0")
    assert fixed_dtype(RefinerConfig(dtype=dtype)).dtype == dtype


def test_a_run_whose_actors_ask_for_gpus_takes_bfloat16_on_a_driver_without_one(machine) -> None:
    machine("sse2", None)
    raw = {"refiner": {"dtype": "auto"}, "ray": {"num_gpus": 1}}
    assert fixed_run_dtype(RunConfig.from_dict(raw)).refiner.dtype == "bfloat16"


def test_the_identity_names_the_arithmetic_and_not_the_wish(machine) -> None:
    machine("amx_bf16", None)
    assert model_identity(RefinerConfig(model="tiny", dtype="auto")).dtype == "bfloat16"
