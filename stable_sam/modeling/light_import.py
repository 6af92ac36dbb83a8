"""`segment_anything` without `torch._dynamo`, whose import takes as long as that of torch itself.

segment_anything imports torchvision, and its `ops/roi_align.py` asks `torch._dynamo.utils` for one function, which it
calls when a compiled RoI align runs. A module that fetches what it is asked for stands in its place meanwhile.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HEAVY = "torch._dynamo.utils"


def import_segment_anything() -> None:
    """Import `segment_anything`; `torch._dynamo` comes with it only where somebody has imported it before."""
    import_module("torch")  # which may bring a backend that compiles
    if _HEAVY in sys.modules:
        import_module("segment_anything")
        return
    lazy = _Lazy(_HEAVY)
    sys.modules[_HEAVY] = lazy
    try:
        import_module("segment_anything")
    finally:
        _step_aside(lazy)


class _Lazy(ModuleType):
    def is_compile_supported(self, *arguments: Any) -> Any:
        """The real one's answer."""
        return self.__getattr__("is_compile_supported")(*arguments)

    def __getattr__(self, name: str) -> Any:
        # The import system looks for these, and takes what is not there for a plain module.
        if name.startswith("__"):
            raise AttributeError(name)
        _step_aside(self)
        return getattr(import_module(_HEAVY), name)


def _step_aside(lazy: _Lazy) -> None:
    if sys.modules.get(_HEAVY) is lazy:
        del sys.modules[_HEAVY]
