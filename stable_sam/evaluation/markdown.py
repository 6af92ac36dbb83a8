"""Write an evaluation as Markdown tables, for a page of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stable_sam.evaluation.averages import CELLS, PARTS, SHARES, WHOLE_SLICE, TableLine
from stable_sam.evaluation.bootstrap import Estimate
from stable_sam.evaluation.by_object import DIFFERENT
from stable_sam.evaluation.detections import MATCHED
from stable_sam.evaluation.evaluate import Evaluation
from stable_sam.evaluation.routing_bound import RoutingBound
from stable_sam.wording import counted

ABOUT_ROUTING = f"""\
Best of both: mIoU when the better of SAM's and the method's mask is taken for each prompt, chosen
with the true mask; no rule that chooses between the two can do better. Helps, hurts: shares of the prompts for which
the method's IoU is more than {DIFFERENT} above or below SAM's. Share of the bound: the method's gain over SAM, as a
part of the gain of the best of both; it is below 0 where the method loses. Gap closed: the method's gain over SAM, as a
part of what SAM loses against its own masks of the true boxes."""
ABOUT_DETECTIONS = f"""\
The prompts of `detector-boxes` are detections with an IoU of at least {MATCHED} with a true box. Each object has at
most one, matched in the order of the scores. Unmatched detections are not evaluated. The counts are those of all
objects, also where a sample of them is evaluated."""
NAMES = {"box": "box, filled", "sam": "SAM (the base)", "hq-sam": "HQ-SAM", "stable-sam": "Stable-SAM"}


def markdown(evaluation: Evaluation) -> str:
    """Return all tables of an evaluation and a line on the models."""
    settings = evaluation.settings
    sections = [
        f"{evaluation.model.model} at {evaluation.model.input_size} px; objects {settings.object_sizes}; "
        f"{counted(settings.random_prompts, 'prompt')} for each object and random kind; seed {settings.seed}; "
        f"tiles {settings.refiner.tiles}. "
        "Brackets: 95 % intervals of a bootstrap over objects, paired for differences."
    ]
    whole = [score for score in evaluation.scores if score.slice == WHOLE_SLICE]
    for name in dict.fromkeys(score.set for score in whole):
        lines = [score for score in whole if score.set == name]
        sections.append(f"## {name} ({counted(_objects(lines), 'object')})\n\n{_scores(lines)}")
    if evaluation.routing:
        sections.append(f"## What routing could reach\n\n{ABOUT_ROUTING}\n\n{_routing(evaluation.routing)}")
    for title, slices in (
        ("By the object's fraction of its image", SHARES),
        ("By the longer side of the object's box, in cells of the image embedding", CELLS),
    ):
        lines = [score for score in evaluation.scores if score.slice in slices]
        sections.append(f"## {title}\n\nThe figures are mIoU.\n\n{_sizes(lines, settings.methods)}")
    if parts := [score for score in evaluation.scores if score.slice == PARTS]:
        about = (
            "A part is an object of which 90 % lie in another object. Drift: share of the masks that are nearer "
            "(by IoU) to the whole than to the part."
        )
        sections.append(f"## Parts of wholes\n\n{about}\n\n{_parts(parts)}")
    if evaluation.alpha:
        about = (
            "rho: Spearman's correlation of alpha_1 with the IoU of weak and true box, or with the number of points."
        )
        rows = [
            (line.group, str(line.masks), f"{line.mean_alpha:.3f}", "" if line.rho is None else f"{line.rho:.2f}")
            for line in evaluation.alpha
        ]
        header = ("prompts", "masks", "mean alpha_1", "rho")
        sections.append(f"## alpha_1 and how good the prompts are\n\n{about}\n\n{_table(header, rows)}")
    if settings.detections_uri is not None:
        sections.append(f"## Detections\n\n{_detections(evaluation)}")
    if evaluation.skipped:
        skipped = ", ".join(f"{kind}: {count}" for kind, count in evaluation.skipped.items())
        sections.append(f"Number of objects that have no prompt of a kind: {skipped}.")
    models = [(NAMES[name], f"{count:,}") for name, count in evaluation.model.parameters.items()]
    hashes = "; ".join(f"{name} {digest[:16]}" for name, digest in evaluation.model.weights_sha256.items())
    sections.append(f"## Models\n\n{_table(('method', 'parameters'), models)}\n\nWeights (SHA-256): {hashes}.")
    return "\n\n".join(sections) + "\n"


def _scores(lines: Sequence[TableLine]) -> str:
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
            "" if line.predicted_iou is None else f"{line.predicted_iou:.3f}",
            f"{line.dsp_weight:.3f}" if line.method == "stable-sam" else "",
        )
        for line in lines
    )
    return _table(header, rows)


def _routing(lines: Sequence[RoutingBound]) -> str:
    header = ["set", "prompts", "method", "SAM", "method alone", "best of both", "best to SAM"]
    header += ["helps", "hurts", "share of the bound", "gap closed"]
    rows = (
        (
            line.set,
            line.prompts,
            NAMES[line.method],
            _interval(line.sam_miou),
            _interval(line.method_miou),
            _interval(line.best_miou),
            _interval(line.best_gain, signed=True),
            _interval(line.helps),
            _interval(line.hurts),
            _interval(line.share_of_bound),
            _interval(line.gap_closed),
        )
        for line in lines
    )
    return _table(header, rows)


def _sizes(lines: Sequence[TableLine], methods: Sequence[str]) -> str:
    """One row for each size and kind of prompt, with the methods side by side."""
    differing = [method for method in methods if any(line.to_sam for line in lines if line.method == method)]
    header = ["size", "objects", "prompts", *(NAMES[method] for method in methods)]
    header += [f"{NAMES[method]} to SAM" for method in differing]
    of: dict[tuple[str, str], dict[str, TableLine]] = {}
    for line in lines:
        of.setdefault((line.slice, line.prompts), {})[line.method] = line
    rows = []
    for (size, prompts), by_method in of.items():
        figures = [by_method[method].miou if method in by_method else None for method in methods]
        changes = [by_method[method].to_sam.get("miou") if method in by_method else None for method in differing]
        objects = str(_objects(list(by_method.values())))
        rows.append(
            [size, objects, prompts, *map(_interval, figures), *(_interval(one, signed=True) for one in changes)]
        )
    return _table(header, rows)


def _detections(evaluation: Evaluation) -> str:
    header = ("set", "matched", "unmatched", "on images not evaluated")
    rows = [
        (name, str(counts.matched), str(counts.unmatched), str(counts.other_pictures))
        for name, of in evaluation.sets.items()
        if (counts := of.detections) is not None
    ]
    return f"{ABOUT_DETECTIONS}\n\n{_table(header, rows)}"


def _parts(lines: Sequence[TableLine]) -> str:
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


def _objects(lines: Sequence[TableLine]) -> int:
    return max(line.objects for line in lines)


def _interval(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return ""
    form = "+.3f" if signed else ".3f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
