"""What starts with the model: torch, and not its compiler."""

from __future__ import annotations

import subprocess
import sys

MODEL = """
import sys
import stable_sam.explain.explanation
import stable_sam.refining.refiner
assert "segment_anything" in sys.modules
assert not {"torch._dynamo", "torch._dynamo.utils", "sympy"} & set(sys.modules), "nothing is left in its place"

kept = sys.modules["torchvision.ops.roi_align"].is_compile_supported
import torch._dynamo.utils
assert kept("cpu") is torch._dynamo.utils.is_compile_supported("cpu")
"""
OTHER_NAMES = """
import sys
from stable_sam.modeling.light_import import without_compiler
with without_compiler():
    from torch._dynamo.utils import counters  # as another torchvision may
    import torch._dynamo.utils
    assert counters is torch._dynamo.utils.counters
real = sys.modules["torch._dynamo.utils"]
with without_compiler():
    assert sys.modules["torch._dynamo.utils"] is real
assert sys.modules["torch._dynamo.utils"] is real
"""


def test_the_compiler_is_imported_by_those_who_compile() -> None:
    subprocess.run([sys.executable, "-c", MODEL], check=True)


def test_the_real_module_comes_for_every_other_name_and_stays() -> None:
    subprocess.run([sys.executable, "-c", OTHER_NAMES], check=True)
