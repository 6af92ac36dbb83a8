"""Decide what the paper leaves open about the plugin: train every variant alike, evaluate it, and write one table.

    python benchmarks/ablations.py --data TRAIN --val VAL --out out/ablations --markdown out/ablations.md

Each variant changes one setting of the first variant, named "default". The result of every variant and seed is kept as
a JSON file in OUT, so that a stopped command continues, and several commands may work on different `--seeds` at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stable_sam.config import RefinerConfig
from stable_sam.evaluation.averages import WHOLE_SLICE
from stable_sam.evaluation.by_object import ALL_SETS
from stable_sam.evaluation.evaluate import evaluate
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.modeling.plugin import StableSamPlugin
from stable_sam.training.train_plugin import train_plugin
from stable_sam.training.training_config import PluginTraining

DEFAULT = "default"
METHODS = ("sam", "stable-sam")
KINDS = ("gt-box", "noisy-box", "1-point", "3-points")
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "attention only (paper)": {"plugin": {"calibrates": "attention"}},
    "attention only, no routing loss": {
        "plugin": {"calibrates": "attention", "regular_below": 0.0},
        "routing_steps": 0,
    },
    "alpha from t_o alone (paper)": {"plugin": {"routing_reads": "token"}},
    "DSP without DRP": {
        "plugin": {"routing": "none", "regular_below": 0.0, "estimates_quality": False},
        "routing_steps": 0,
    },
    "DRP without DSP (no offsets)": {"plugin": {"offsets": "none"}},
    "amplitude": {"plugin": {"amplitude": True}},
    "free offsets": {"plugin": {"offsets": "free"}},
    "t_o: IoU token": {"plugin": {"routing_token": 0}},
    "t_o: first multimask token": {"plugin": {"routing_token": 2}},
    "positional encoding moved": {"plugin": {"move_positions": True}},
    "sigmoid alpha": {"plugin": {"routing": "sigmoid"}},
    "both layers, no steps for quality alone": {"plugin": {"layers": "both", "regular_below": 0.0}},
    "no routing loss": {"plugin": {"regular_below": 0.0}, "routing_steps": 0},
    "no quality taught": {"plugin": {"estimates_quality": False}},
    "mixed for every prompt": {"plugin": {"regular_below": 0.0}},
    "five samples a cell": {"plugin": {"samples": 5}},
    "trained on accurate boxes and noise 0.4": {"noise_scales": (0.0, 0.4)},
    "trained on noise 0.4 only": {"noise_scales": (0.4,)},
    "trained on noise 0.2": {"noise_scales": (0.0, 0.2)},
    "trained on noise 0.8": {"noise_scales": (0.0, 0.8)},
    "trained on boxes and many points": {"point_counts": (5, 10)},
}
"""Name to what it changes in `PluginTraining`."""


def main() -> None:
    """Run what is missing, then write the table of all runs in OUT."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.variants or VARIANTS:
            file = options.out / f"{_slug(name)}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(_run(name, seed, options), indent=2) + "\n", encoding="utf-8")
                print(_line(name, [json.loads(file.read_text(encoding="utf-8"))]), flush=True)
    text = _table(options.out)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="training sets")
    parser.add_argument("--val", type=Path, required=True, help="sets to evaluate on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="all by default")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/train_plugin.yaml"), help="settings of the default"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-images", type=int, default=8)
    parser.add_argument("--objects", type=int, default=120, help="evaluated")
    parser.add_argument("--random-prompts", type=int, default=3)
    parser.add_argument("--size", type=int, default=192, help="side of nano's input, pixels")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    change = VARIANTS[name]
    default = PluginTraining.from_yaml(options.config).model_dump()
    settings = PluginTraining.from_dict(
        default
        | {"batch_images": options.batch_images, "seed": seed, "steps": options.steps}
        | {**change, "plugin": default["plugin"] | change.get("plugin", {})}
    )
    base = load_model(RefinerConfig(model="nano", plugin=False))
    base.sam.set_input_side(options.size)
    with tempfile.TemporaryDirectory() as folder:
        file = train_plugin(base, options.data, Path(folder), settings, cache_dir=options.out / "embeddings")
        found, _ = evaluate(
            [options.val],
            EvaluationConfig(
                refiner=RefinerConfig(model="nano", plugin_uri=str(file), tiles="off"), prompts=KINDS,
                size=options.size,
                methods=METHODS if name == DEFAULT else METHODS[1:], random_prompts=options.random_prompts,
                max_objects=options.objects, min_area_fraction=0.005, resamples=2,
            ),
        )  # fmt: skip
        ratio = _decoder_ratio(load_model(RefinerConfig(model="nano", plugin_uri=str(file))), options.size)
    total = next(name for name in (ALL_SETS, *found.sets) if any(score.set == name for score in found.scores))
    scores = {
        f"{score.method} {score.prompts}": {
            "miou": score.miou.value, "msf": None if score.msf is None else score.msf.value, "alpha": score.dsp_weight,
        }
        for score in found.scores if score.set == total and score.slice == WHOLE_SLICE
    }  # fmt: skip
    return {
        "name": name, "seed": seed, "scores": scores,
        "rho": {alpha.group: alpha.rho for alpha in found.alpha},
        "decoder_ratio": ratio,
        "parameters": sum(value.numel() for value in StableSamPlugin(256, settings.plugin).parameters()),
        "base_sha256": found.model.weights_sha256["base"],
    }  # fmt: skip


def _decoder_ratio(model: LoadedModel, size: int, prompts: int = 8, rounds: int = 15) -> float:
    """Time of the decoder with the plugin to that without, median of rounds in which both take their turn."""
    model.sam.set_input_side(size)
    cells = size // 16
    features = ImageFeatures(torch.randn(1, 256, cells, cells, generator=torch.Generator().manual_seed(0)))
    boxes = torch.tensor([[0.2, 0.2, 0.7, 0.8]]).expand(prompts, -1) * size
    ratios = []
    for _ in range(rounds):
        seconds = []
        for enabled in (False, True):
            assert model.host is not None
            model.host.enabled = enabled
            started = time.perf_counter()
            with torch.inference_mode():
                decode_prompts(model.sam, features, boxes=boxes)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def _table(folder: Path) -> str:
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        runs.setdefault(run["name"], []).append(run)
    lines = [
        "| variant | seeds | gt box | noisy box | mSF | 1 point | 3 points | rho(alpha_1, box IoU) | parameters | "
        "decoder time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    if DEFAULT in runs:
        scores = runs[DEFAULT][0]["scores"]
        sam = [f"{scores[f'sam {kind}']['miou']:.3f}" for kind in KINDS]
        sam.insert(2, f"{scores['sam noisy-box']['msf']:.3f}")
        lines.append(f"| SAM | | {' | '.join(sam)} | | 0 | 1.00 |")
    return "\n".join([*lines, *(_line(name, runs[name]) for name in VARIANTS if name in runs)]) + "\n"


def _line(name: str, runs: list[dict[str, Any]]) -> str:
    cells = [_spread([run["scores"][f"stable-sam {kind}"]["miou"] for run in runs]) for kind in KINDS]
    cells.insert(2, _spread([run["scores"]["stable-sam noisy-box"]["msf"] for run in runs]))
    rhos = [run["rho"]["boxes"] for run in runs if run["rho"]["boxes"] is not None]
    cells.append(_spread(rhos) if rhos else "")
    ratio = statistics.median(run["decoder_ratio"] for run in runs)
    return f"| {name} | {len(runs)} | {' | '.join(cells)} | {runs[0]['parameters']:,} | {ratio:.2f} |"


def _spread(values: list[float]) -> str:
    """Mean, and half the range of several seeds."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


if __name__ == "__main__":
    main()
