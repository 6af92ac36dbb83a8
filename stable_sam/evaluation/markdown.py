"""An evaluation as Markdown tables, for a results page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stable_sam.evaluation.bootstrap import Estimate
from stable_sam.evaluation.run import Evaluation
from stable_sam.evaluation.summary import PARTS, SIZES, WHOLE_SLICE, Score

NAMES = {"sam": "SAM (the base)", "hq-sam": "HQ-SAM", "stable-sam": "Stable-SAM"}


def markdown(evaluation: Evaluation) -> str:
    """All tables: each set, all objects, the sizes, parts of wholes, alpha_1 and the models."""
    settings = evaluation.settings
    sections = [
        f"{evaluation.model.model} at {evaluation.model.input_size} px; objects of at least "
        f"{settings.min_area_fraction:.2%} of their picture; {settings.random_prompts} prompts for each object and "
        f"random kind; seed {settings.seed}. Brackets: 95 % intervals, bootstrap over objects, paired for differences."
    ]
    whole = [score for score in evaluation.scores if score.slice == WHOLE_SLICE]
    for name in dict.fromkeys(score.set for score in whole):
        lines = [score for score in whole if score.set == name]
        sections.append(f"## {name} ({_objects(lines)} objects)\n\n{_scores(lines)}")
    for size, (low, high) in SIZES.items():
        lines = [score for score in evaluation.scores if score.slice == size]
        if lines:
            title = f"{size.capitalize()}, {low:.0%} to {high:.0%} of the picture ({_objects(lines)} objects)"
            sections.append(f"## {title}\n\n{_scores(lines)}")
    if parts := [score for score in evaluation.scores if score.slice == PARTS]:
        about = "Objects of which 90 % lie in another one. Drift: masks nearer (by IoU) to the whole than to the part."
        sections.append(f"## Parts of wholes\n\n{about}\n\n{_parts(parts)}")
    if evaluation.alpha:
        about = "Spearman's rho with the IoU of the weak box with the true one, or with the number of points."
        rows = [
            (line.group, str(line.masks), f"{line.mean_alpha:.3f}", "" if line.rho is None else f"{line.rho:.2f}")
            for line in evaluation.alpha
        ]
        header = ("prompts", "masks", "mean alpha_1", "rho")
        sections.append(f"## alpha_1 and the prompt's quality\n\n{about}\n\n{_table(header, rows)}")
    if evaluation.skipped:
        skipped = ", ".join(f"{kind}: {count}" for kind, count in evaluation.skipped.items())
        sections.append(f"Objects without another one in their picture, not asked for by: {skipped}.")
    models = [(NAMES[name], f"{count:,}") for name, count in evaluation.model.parameters.items()]
    hashes = "; ".join(f"{name} {digest[:16]}" for name, digest in evaluation.model.weights_sha256.items())
    sections.append(f"## Models\n\n{_table(('method', 'parameters'), models)}\n\nWeights (SHA-256): {hashes}.")
    return "\n\n".join(sections) + "\n"


def _scores(lines: Sequence[Score]) -> str:
    header = ("prompts", "method", "mIoU", "mBIoU", "mSF", "mIoU to SAM", "mSF to SAM", "own IoU", "alpha_1")
    rows = (
        (
            line.prompts,
            NAMES[line.method],
            _interval(line.miou),
            _interval(line.mbiou),
            _interval(line.msf),
            _interval(line.to_sam.get("miou"), signed=True),
            _interval(line.to_sam.get("msf"), signed=True),
            f"{line.predicted_iou:.3f}",
            f"{line.dsp_weight:.3f}" if line.method == "stable-sam" else "",
        )
        for line in lines
    )
    return _table(header, rows)


def _parts(lines: Sequence[Score]) -> str:
    header = ("set", "objects", "prompts", "method", "mIoU", "drift", "drift to SAM")
    rows = (
        (
            line.set,
            str(line.objects),
            line.prompts,
            NAMES[line.method],
            _interval(line.miou),
            _interval(line.drift),
            _interval(line.to_sam.get("drift"), signed=True),
        )
        for line in lines
    )
    return _table(header, rows)


def _objects(lines: Sequence[Score]) -> int:
    return max(line.objects for line in lines)


def _interval(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return ""
    form = "+.3f" if signed else ".3f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
