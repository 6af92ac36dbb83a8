"""The paper's tables: SAM and Stable-SAM on one frozen base, the same pictures and the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stable_sam.config import RefinerConfig
from stable_sam.data.images import decode_image
from stable_sam.errors import ConfigError, ImageError
from stable_sam.evaluation.metrics import Mask, ReferenceMask
from stable_sam.evaluation.prompts import PromptKind, prompt_rng
from stable_sam.evaluation.truth import TruthImage, TruthSet, read_truth
from stable_sam.modeling.build import set_input_size
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.predict import ImageView, PromptArrays, embed_image, predict
from stable_sam.stability import prompt_stability

Method = Literal["sam", "stable-sam"]
METHODS: tuple[Method, ...] = ("sam", "stable-sam")
ALL_OBJECTS = "all objects"
"""Name of the rows that average over the objects of all sets."""
DECODER_CHUNK = 8
"""Prompts that pass the decoder together; on a CPU a quarter faster than 32, because they stay in its caches."""

SMALLEST_SIZE, SIZE_STEP = 64, 32
"""Sides of nano's input, in pixels, that its layers can halve often enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One line of the table: means over the objects of a set, each object being the mean over its prompts."""

    set: str
    method: Method
    prompts: str
    objects: int
    masks: int
    miou: float
    mbiou: float
    msf: float | None
    """None where an object has one prompt: mSF compares the masks of several."""
    predicted_iou: float
    """Mean of the IoU head's own estimate: near miou when the head is honest."""
    dsp_weight: float
    """Mean alpha_1; 0 for SAM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The scores and all that is needed to compute them again."""

    model_id: str
    weights_sha256: str
    config: dict[str, Any]
    input_size: int
    """Side of the model's square input in pixels."""
    seed: int
    random_prompts: int
    """Prompts drawn for each object and random kind; mSF falls as it grows, so compare only equal numbers."""
    min_area_fraction: float
    limit: int | None
    sets: dict[str, dict[str, int]]
    """What was counted: images and objects of each set, and how many annotations were left out as crowd or small."""
    scores: tuple[Score, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dump."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a prompt gave; the mask (H, W) has the size of the picture."""

    mask: Mask
    predicted_iou: float
    dsp_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObjectScore:
    iou: float
    boundary_iou: float
    stability: float | None
    predicted_iou: float
    dsp_weight: float
    masks: int


_Scores = dict[tuple[str, Method, str], list[_ObjectScore]]


def evaluate(
    data_dirs: Sequence[Path],
    config: RefinerConfig,
    methods: Sequence[str],
    prompts: Sequence[str],
    *,
    random_prompts: int = 4,
    min_area_fraction: float = 0.005,
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Compare `methods` (sam, stable-sam) on prompts of the kinds `prompts` (see `PromptKind`) drawn
    from people's masks.

    random_prompts: B prompts for each object and random kind. min_area_fraction: smaller objects, as a part of their
    picture, do not count. limit: pictures of each set. size: side of the model's input in the place of the
    one that the weights of nano name. on_image: called with pictures done and in all.
    Raises `ConfigError`, `AnnotationError`, `ImageError` or `WeightsError` with one line.
    """
    chosen = _methods(methods)
    kinds = [PromptKind.parse(name) for name in dict.fromkeys(prompts)]
    if not kinds:
        raise ConfigError("prompts: expected at least one kind, got none")
    sets = [
        part for folder in data_dirs for part in read_truth(folder, min_area_fraction=min_area_fraction, limit=limit)
    ]
    _check_sets(sets)
    if size is not None:
        _check_size(size, config)
    loaded = load_model(config if "stable-sam" in chosen else config.model_copy(update={"plugin": False}))
    if "stable-sam" in chosen and loaded.host is None:
        raise ConfigError(f"methods: stable-sam needs a plugin, and model {config.model!r} was loaded without one")
    if size is not None:
        set_input_size(loaded.sam, size)
    scores: _Scores = {(part.name, m, k.name): [] for part in sets for k in kinds for m in chosen}
    total, done = sum(len(part.images) for part in sets), 0
    for part in sets:
        for image in part.images:
            _evaluate_image(
                loaded, part.name, image, chosen, kinds, random_prompts, seed, config.max_image_pixels, scores
            )
            done += 1
            on_image(done, total)
    return Evaluation(
        model_id=loaded.identity.model_id,
        weights_sha256=loaded.identity.weights_sha256,
        config=config.model_dump(mode="json"),
        input_size=loaded.sam.image_encoder.img_size,
        seed=seed,
        random_prompts=random_prompts,
        min_area_fraction=min_area_fraction,
        limit=limit,
        sets={
            s.name: {
                "images": len(s.images),
                "objects": s.objects,
                "left_out_crowd": s.crowd,
                "left_out_small": s.small,
            }
            for s in sets
        },
        scores=tuple(_summarise(scores, [part.name for part in sets], chosen, kinds)),
    )


def _methods(names: Sequence[str]) -> list[Method]:
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ConfigError(f"methods: expected some of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
    return [method for method in METHODS if method in names]


def _check_size(size: int, config: RefinerConfig) -> None:
    if config.model != "nano":
        raise ConfigError(f"size: only nano takes pictures of other sizes, got model {config.model!r}")
    if size < SMALLEST_SIZE or size % SIZE_STEP:
        raise ConfigError(f"size: expected a multiple of {SIZE_STEP} of at least {SMALLEST_SIZE} pixels, got {size}")


def _check_sets(sets: Sequence[TruthSet]) -> None:
    names = [part.name for part in sets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"data: expected sets of different names, got {', '.join(repeated)} more than once")
    if not any(part.images for part in sets):
        raise ConfigError(f"data: no object left to evaluate in {', '.join(names) or 'nothing'}")


def _evaluate_image(
    model: LoadedModel,
    set_name: str,
    image: TruthImage,
    methods: Sequence[Method],
    kinds: Sequence[PromptKind],
    random_prompts: int,
    seed: int,
    max_pixels: int,
    scores: _Scores,
) -> None:
    masks = [item.mask() for item in image.objects]
    references = [ReferenceMask(mask) for mask in masks]
    view = embed_image(model, _read_pixels(image, max_pixels))
    for kind in kinds:
        count = random_prompts if kind.is_random else 1
        drawn = [
            kind.draw(mask, prompt_rng(seed, set_name, item.annotation_id, kind.name), count)
            for mask, item in zip(masks, image.objects, strict=True)
        ]
        for method in methods:
            if model.host is not None:
                model.host.enabled = method == "stable-sam"
            for reference, prompts in zip(references, drawn, strict=True):
                answers = _answer(model, view, _arrays(kind, prompts))
                scores[set_name, method, kind.name].append(_score_object(reference, answers))


def _read_pixels(image: TruthImage, max_pixels: int) -> NDArray[np.uint8]:
    try:
        data = image.path.read_bytes()
    except OSError as error:
        raise ImageError(f"{image.path}: cannot read: {error.strerror}") from None
    pixels = decode_image(data, name=str(image.path), max_pixels=max_pixels)
    if pixels.shape[:2] != image.size_hw:
        raise ImageError(f"{image.path}: expected height and width {image.size_hw}, got {pixels.shape[:2]}")
    return pixels


def _arrays(kind: PromptKind, drawn: NDArray[np.float64]) -> PromptArrays:
    if kind.box_noise is not None:
        return PromptArrays(boxes_xyxy=drawn)
    return PromptArrays(points_xy=drawn, point_labels=np.ones(drawn.shape[:2], dtype=np.int64))


def _answer(model: LoadedModel, view: ImageView, prompts: PromptArrays) -> list[_Answer]:
    prediction = predict(model, view, prompts, DECODER_CHUNK)
    return [
        _Answer(mask=np.ascontiguousarray(view.frame.to_original(logits) > 0), predicted_iou=iou, dsp_weight=weight)
        for logits, iou, weight in zip(prediction.logits, prediction.iou, prediction.dsp_weight, strict=True)
    ]


def _score_object(reference: ReferenceMask, answers: Sequence[_Answer]) -> _ObjectScore:
    compared = np.array([reference.compare(answer.mask) for answer in answers])
    several = len(answers) > 1
    return _ObjectScore(
        iou=float(compared[:, 0].mean()),
        boundary_iou=float(compared[:, 1].mean()),
        stability=prompt_stability(answer.mask for answer in answers) if several else None,
        predicted_iou=_mean([answer.predicted_iou for answer in answers]),
        dsp_weight=_mean([answer.dsp_weight for answer in answers]),
        masks=len(answers),
    )


def _summarise(
    scores: _Scores, sets: Sequence[str], methods: Sequence[Method], kinds: Sequence[PromptKind]
) -> list[Score]:
    lines: list[Score] = []
    for name in [*sets, ALL_OBJECTS] if len(sets) > 1 else sets:
        for kind in kinds:
            for method in methods:
                of_sets = sets if name == ALL_OBJECTS else [name]
                objects = [score for part in of_sets for score in scores[part, method, kind.name]]
                if objects:
                    lines.append(_line(name, method, kind.name, objects))
    return lines


def _line(set_name: str, method: Method, kind: str, objects: Sequence[_ObjectScore]) -> Score:
    stability = [score.stability for score in objects if score.stability is not None]
    return Score(
        set=set_name,
        method=method,
        prompts=kind,
        objects=len(objects),
        masks=sum(score.masks for score in objects),
        miou=_mean([score.iou for score in objects]),
        mbiou=_mean([score.boundary_iou for score in objects]),
        msf=_mean(stability) if stability else None,
        predicted_iou=_mean([score.predicted_iou for score in objects]),
        dsp_weight=_mean([score.dsp_weight for score in objects]),
    )


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.mean(values))
