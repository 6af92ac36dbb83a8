"""`torch._dynamo`, whose import takes as long as that of torch itself, stays out of processes that do not compile.

segment_anything imports torchvision, and its `ops/roi_align.py` asks `torch._dynamo.utils` for one function, which it
calls when a compiled RoI align runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_HEAVY = "torch._dynamo.utils"


@contextmanager
def without_compiler() -> Iterator[None]:
    """What is imported within finds a module in the place of `torch._dynamo.utils` that fetches what it is asked for.

    Of `is_compile_supported` it gives a function that fetches the real one when it is called. At the end the module is
    taken away again. Nothing is replaced where somebody has imported the real one before.
    """
    import_module("torch")  # which may bring a backend that compiles
    if _HEAVY in sys.modules:
        yield
        return
    stand_in = ModuleType(_HEAVY)

    def step_aside() -> None:
        if sys.modules.get(_HEAVY) is stand_in:
            del sys.modules[_HEAVY]

    def fetch(name: str) -> Any:
        # The import system looks for these, and takes what is not there for a plain module.
        if name.startswith("__"):
            raise AttributeError(name)
        step_aside()
        return getattr(import_module(_HEAVY), name)

    stand_in.__dict__.update(is_compile_supported=is_compile_supported, __getattr__=fetch)
    sys.modules[_HEAVY] = stand_in
    try:
        yield
    finally:
        step_aside()


def is_compile_supported(*arguments: Any) -> Any:
    """The answer of torch's function of this name."""
    return import_module(_HEAVY).is_compile_supported(*arguments)
