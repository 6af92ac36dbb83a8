"""Measure milliseconds of encoder and decoder of SAM, HQ-SAM and Stable-SAM on one base.

    python benchmarks/latency.py --model nano --out latency.json --markdown latency.md

Weights are random: time does not depend on their values, so no checkpoint is needed. The methods take turns within
every round, in an order that changes from round to round, so that other work on the machine slows all of them equally;
a method's ratio to SAM is the median of the rounds' ratios. The command measures the CPU, and the GPU where there is
one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stable_sam.bases import BASES
from stable_sam.evaluation.evaluation_config import BASELINE, METHODS
from stable_sam.evaluation.methods import count_method, select_method
from stable_sam.identity import ModelIdentity
from stable_sam.modeling.bases import build_base
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.hq import attach_hq, build_hq, encode_with_early
from stable_sam.modeling.load import LoadedModel
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin

WARM_UP = 3
"""Rounds not counted: the first passes choose algorithms and fill caches."""


def main() -> None:
    """Measure, print a table and write JSON and Markdown."""
    options = _options()
    torch.set_num_threads(options.threads)
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    if options.device is not None:
        devices = [torch.device(options.device)]
    results = [_measure(_model(options, device), options) for device in devices]
    text = "\n\n".join(_markdown(result) for result in results) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(BASES), default="nano")
    parser.add_argument("--size", type=int, help="side of nano's input")
    parser.add_argument("--prompts", type=int, default=8, help="boxes in one decoder pass")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", help="one device instead of the CPU and the GPU")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def _model(options: argparse.Namespace, device: torch.device) -> LoadedModel:
    torch.manual_seed(0)
    sam = build_base(options.model)
    if options.size is not None:
        sam.set_input_side(options.size)
    host = attach_plugin(sam, StableSamPlugin(sam.prompt_encoder.embed_dim))
    hq = attach_hq(sam, build_hq(sam))
    sam.requires_grad_(False).eval().to(device)
    identity = ModelIdentity(model_id=options.model, weights_sha256="", dtype="float32")
    return LoadedModel(base=BASES[options.model], sam=sam, host=host, hq=hq, identity=identity, device=device)


@torch.inference_mode()
def _measure(model: LoadedModel, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every round, by what was measured and method."""
    side = model.sam.input_side
    image = torch.randn(1, 3, side, side, device=model.device)
    features = encode_with_early(model.sam, image)
    corners = torch.rand(options.prompts, 2, 2, device=model.device).sort(dim=1).values * (side - 2)
    boxes = (corners + torch.tensor([[0.0], [2.0]], device=model.device)).flatten(1)

    def encode(method: str) -> Callable[[], object]:
        if method == "hq-sam":
            return lambda: encode_with_early(model.sam, image)
        return lambda: model.sam.fast_features(image)

    def decode(method: str, count: int) -> Callable[[], object]:
        own = features if method == "hq-sam" else replace(features, early=None)
        return lambda: decode_prompts(model.sam, own, boxes=boxes[:count])

    parts: dict[str, dict[str, Callable[[], object]]] = {"encoder": {method: encode(method) for method in METHODS}}
    for count in sorted({1, options.prompts}):
        name = f"decoder, {count} {'prompt' if count == 1 else 'prompts'}"
        parts[name] = {method: decode(method, count) for method in METHODS}
    times = {name: {method: [] for method in METHODS} for name in parts}
    for number in range(WARM_UP + options.rounds):
        order = np.roll(METHODS, number).tolist()
        for name, calls in parts.items():
            for method in order:
                select_method(model, method)
                elapsed = _milliseconds(calls[method], model.device)
                if number >= WARM_UP:
                    times[name][method].append(elapsed)
    return {
        "model": options.model,
        "input_size": side,
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "parameters": {method: count_method(model, method) for method in METHODS},
        "milliseconds": {name: {m: _spread(of[m]) for m in METHODS} for name, of in times.items()},
        "ratio_to_sam": {
            name: {m: _spread(np.divide(of[m], of[BASELINE])) for m in METHODS} for name, of in times.items()
        },
    }


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def _spread(values: Any) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "quarter": low, "three_quarters": high}


def _markdown(result: dict[str, Any]) -> str:
    threads = f", {result['threads']} threads" if result["device"] == "cpu" else ""
    lines = [
        f"{result['model']} at {result['input_size']} px on {result['device']}{threads}: medians of {result['rounds']} "
        "rounds, in brackets the middle half of them; the ratio is to SAM in the same round.",
        "",
        "| part | method | parameters | ms | ratio to SAM |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part, of_methods in result["milliseconds"].items():
        for method, ms in of_methods.items():
            ratio = result["ratio_to_sam"][part][method]
            lines.append(
                f"| {part} | {method} | {result['parameters'][method]:,} | {_cell(ms, 1)} | {_cell(ratio, 3)} |"
            )
    return "\n".join(lines)


def _cell(spread: dict[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} [{spread['quarter']:.{digits}f}, {spread['three_quarters']:.{digits}f}]"


if __name__ == "__main__":
    main()
