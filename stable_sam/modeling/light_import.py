"""An import that keeps `torch._dynamo`, which takes as long to import as torch, out of processes that do not compile.

segment_anything imports torchvision, whose `ops/roi_align.py` imports one function of `torch._dynamo.utils`, which it
calls only when a compiled RoI align runs.
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
    """Put a stand-in for `torch._dynamo.utils` into `sys.modules` while the block of this context manager runs.

    The stand-in's `is_compile_supported` imports the real module when it is called; any other name is fetched from the
    real module at once. The stand-in is removed at the end. It is not used when the real module was imported before.
    """
    import_module("torch")  # first, because a backend that torch loads may import the real module
    if _HEAVY in sys.modules:
        yield
        return
    stand_in = ModuleType(_HEAVY)

    def step_aside() -> None:
        if sys.modules.get(_HEAVY) is stand_in:
            del sys.modules[_HEAVY]

    def fetch(name: str) -> Any:
        # The import system looks for special names, and a module without them counts as a plain one.
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
    """Call torch's function of this name and return its result."""
    return import_module(_HEAVY).is_compile_supported(*arguments)
