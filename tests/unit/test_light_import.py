"""What starts with the model: torch, and not its compiler."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import stable_sam.explain
import stable_sam.refiner
assert "segment_anything" in sys.modules
assert not {"torch._dynamo", "torch._dynamo.utils", "sympy"} & set(sys.modules)

from stable_sam.modeling.light_import import _Lazy
kept = sys.modules["torchvision.ops.roi_align"].is_compile_supported
sys.modules["torch._dynamo.utils"] = _Lazy("torch._dynamo.utils")
from torch._dynamo.utils import counters  # as another torchvision may
import torch._dynamo.utils
assert counters is torch._dynamo.utils.counters
assert kept("cpu") is torch._dynamo.utils.is_compile_supported("cpu")
"""


def test_the_compiler_is_imported_by_those_who_compile() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
