"""Write what `gpu.py` has measured so far as JSON and Markdown."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from typing import Any

import torch

SAME_WORK = ("model", "megapixels", "prompts", "K")
ANCHORS = (
    "Published for comparison, encoder and one prompt an image: segment-anything-fast on an A100, 92 images/s (ViT-B) "
    "and 25 (ViT-H)."
)


class Report:
    """What is known so far, in files from the first row on."""

    def __init__(self, options: argparse.Namespace, first: str) -> None:
        """first: the step that the others are compared with."""
        self.options = options
        self.first = first
        self.lock = threading.RLock()
        cuda = options.device.startswith("cuda")
        self.content: dict[str, Any] = {
            "device": torch.cuda.get_device_name(options.device) if cuda else "cpu",
            "torch": torch.__version__,
            "cores": options.cores,
            "images_at_once": options.at_once,
            "gpu_busy": "share of the time between a pass's first and last kernel, gaps inside a pass included "
            "(CUDA events)" if cuda else "share of the time inside passes",
            "anchors": ANCHORS,
            "rows": [],
            "attention": [],
            "decoding": [],
            "left_out": [],
        }  # fmt: skip

    def add(self, kind: str, *entries: Any) -> None:
        """Keep and write."""
        with self.lock:
            self._add(kind, *entries)

    def _add(self, kind: str, *entries: Any) -> None:
        self.content[kind].extend(entries)
        for entry in entries:
            print(f"{kind}: {entry}", file=sys.stderr, flush=True)
        for path, text in (
            (self.options.out, json.dumps(self.content, indent=2)),
            (self.options.markdown, self.text()),
        ):
            if path is not None:
                partly = path.with_name(path.name + ".part")
                partly.write_text(text + "\n", encoding="utf-8")
                partly.replace(path)

    def text(self) -> str:
        """Markdown."""
        content = self.content
        lines = [
            f"{content['device']}, torch {content['torch']}, {content['cores']} cores, {content['images_at_once']} "
            f"images at once. GPU busy: {content['gpu_busy']}.",
        ]
        for title, kind in (("", "rows"), ("Attention of a global layer", "attention"), ("JPEG", "decoding")):
            if content[kind]:
                names = list(content[kind][0])
                lines += [
                    "",
                    f"{title}:" if title else "",
                    "",
                    "| " + " | ".join(names) + " |",
                    "| --- " * len(names) + "|",
                ]
                lines += ["| " + " | ".join(_cell(entry[name]) for name in names) + " |" for entry in content[kind]]
        lines += ["", ANCHORS] + [f"Left out: {reason}" for reason in content["left_out"]]
        return "\n".join(lines)

    def compare(self) -> None:
        """Each row with segment_anything's of the same work."""
        rows = self.content["rows"]
        for row in rows:
            same = [other for other in rows if all(other[key] == row[key] for key in SAME_WORK)]
            if same[0]["step"] == self.first:
                row["against the first"] = row["images/s"] / same[0]["images/s"]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
