"""Masks with known truth: weak prompts drawn from people's masks and refined. Of a table: `calibration.reviewed`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from stable_sam.calibration.features import LabelledMasks
from stable_sam.config import RefinerConfig
from stable_sam.config.calibration import BOX_SCORES, SCORES, scores_of
from stable_sam.errors import AnnotationError, ConfigError, one_line
from stable_sam.evaluation.neighbours import find_neighbours
from stable_sam.evaluation.prompts import PromptKind, fill_box, prompt_rng
from stable_sam.evaluation.sample import sample_objects
from stable_sam.evaluation.true_masks import TruthImage, TruthObject, read_truth
from stable_sam.identity import ModelIdentity, bundled_path
from stable_sam.records import BoxXYXY, Prompt, RefinedMask
from stable_sam.rle import rle, rle_iou
from stable_sam.runs.calibrated import BUNDLED
from stable_sam.scores import ScoreSource
from stable_sam.storage.files import read_bytes, write_bytes

if TYPE_CHECKING:
    from stable_sam.refining.refiner import Refiner

BUNDLED_RECORDS = "nano_calibration_masks.parquet"
_LATER = ("object_share", "box_iou", *BOX_SCORES)
"""Columns that files of 0.2.0 lack; their masks are null there, and no gain over the box is fitted to them."""
RECORDS_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("picture", pa.string()),
        ("prompt_id", pa.string()),
        ("kind", pa.string()),
        ("iou", pa.float64()),
        ("second_pass", pa.string()),
        *((name, pa.float64()) for name in SCORES),
        *((name, pa.float64()) for name in _LATER),
    ]
)
"""A labelled mask: where it comes from, what came of it, and its scores; null where there is none. `kind`: of the weak
prompt, or one of `fit.SAMPLE` and `fit.REVIEWED`. `object_share`: the true mask's part of its picture. `box_iou`: IoU
of the filled weak box with the true mask; null for points."""
_MADE_BY = b"stable_sam_model"
"""Key of the model in the file's metadata: scores of another one mean something else."""


def draw_labels(
    data_dirs: Sequence[Path],
    refiner: Refiner,
    kinds: Sequence[str],
    *,
    min_area_fraction: float,
    max_objects: int | None,
    seed: int,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> pa.Table:
    """One weak prompt of each kind for every object (all, or `max_objects` drawn at random), refined as a run does it.

    data_dirs: folders for `read_truth`. kinds: see `stable_sam.evaluation.prompts`. Returns RECORDS_SCHEMA, without
    masks that failed. Raises `ConfigError`, `AnnotationError` and `ImageError`.
    """
    parsed = [PromptKind.parse(kind) for kind in kinds]
    sets = [part for folder in data_dirs for part in read_truth(folder, min_area_fraction=min_area_fraction)]
    if max_objects is not None:
        sets = sample_objects(sets, max_objects, seed)
    total = sum(len(part.images) for part in sets)
    rows: list[dict[str, Any]] = []
    done = 0
    for part in sets:
        for image in part.images:
            rows += _label_image(refiner, part.name, image, parsed, seed)
            done += 1
            on_image(done, total)
    return pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA)


def write_records(records: pa.Table, uri: str, refiner: RefinerConfig, model: ModelIdentity) -> None:
    """Write labelled masks, which this model made, as Parquet. Raises `StorageError`."""
    sink = pa.BufferOutputStream()
    made_by = json.dumps(asdict(model.score_source(refiner))).encode()
    pq.write_table(records.replace_schema_metadata({_MADE_BY: made_by}), sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def read_records(uri: str, refiner: RefinerConfig, model: ModelIdentity) -> pa.Table:
    """Read what `write_records` wrote; `bundled` is the file behind the bundled calibration.

    Raises `AnnotationError` for another file, `ConfigError` when another model made the masks, `StorageError`.
    """
    table, made_by = _read(uri)
    if other := made_by.differs(model.score_source(refiner)):
        name, theirs, ours = other
        raise ConfigError(f"{uri}: masks made with {name} {theirs}, the configuration has {ours}")
    return table.replace_schema_metadata()


def without_tiles(uri: str, refiner: RefinerConfig) -> RefinerConfig:
    """`refiner` as it made the records that `read_records` reads at `uri`, where these are all of whole images.

    Raises as `read_records`.
    """
    _, made_by = _read(uri)
    return refiner if made_by.tiles else refiner.model_copy(update={"tiles": "off"})


def labelled(records: pa.Table) -> LabelledMasks:
    """Records of RECORDS_SCHEMA as arrays. Raises `AnnotationError` when there are none."""
    if records.num_rows == 0:
        raise AnnotationError("calibration: expected masks with known truth, got none")

    def column(name: str) -> Any:
        return records[name].to_numpy(zero_copy_only=False)

    sets = column("set").astype(np.str_)
    return LabelledMasks(
        scores={name: column(name).astype(np.float64) for name in (*SCORES, *BOX_SCORES)},
        iou=column("iou"),
        box_iou=column("box_iou").astype(np.float64),
        object_share=column("object_share").astype(np.float64),
        pictures=np.char.add(np.char.add(sets, "/"), column("picture").astype(np.str_)),
        sets=sets,
        kinds=column("kind").astype(np.str_),
    )


def _read(uri: str) -> tuple[pa.Table, ScoreSource]:
    """Records and what made them."""
    path = bundled_path(BUNDLED_RECORDS) if uri == BUNDLED else uri
    try:
        table = pq.read_table(pa.BufferReader(read_bytes(path)))
        made_by = ScoreSource(**json.loads((table.schema.metadata or {}).get(_MADE_BY, b"{}")))
    except (pa.ArrowInvalid, ValueError, TypeError) as error:
        raise AnnotationError(f"{path}: expected labelled masks as Parquet: {one_line(error)[:200]}") from None
    if not set(_LATER) & set(table.column_names):
        for name in _LATER:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.float64()))
    if table.schema != RECORDS_SCHEMA:
        raise AnnotationError(f"{path}: expected the columns {', '.join(RECORDS_SCHEMA.names)}")
    return table, made_by


def _label_image(
    refiner: Refiner, set_name: str, image: TruthImage, kinds: Sequence[PromptKind], seed: int
) -> Iterable[dict[str, Any]]:
    asked = list(asked_prompts(set_name, image, kinds, seed))
    if not asked:
        return
    try:
        data = image.path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{image.path}: cannot read: {error.strerror}") from None
    masks = refiner.refine_file(data, [prompt for _, _, prompt in asked], name=str(image.path))
    for (item, kind, prompt), mask in zip(asked, masks, strict=True):
        if mask.status == "ok":
            yield {
                "set": set_name,
                "picture": image.name,
                "prompt_id": prompt.prompt_id,
                "kind": kind.name,
                "iou": truth_iou(mask, item),
                "second_pass": mask.second_pass,
                **scores_of(prompt, mask),
                **box_labels(prompt.box_xyxy, item.rle),
            }


def asked_prompts(
    set_name: str, image: TruthImage, kinds: Sequence[PromptKind], seed: int
) -> Iterator[tuple[TruthObject, PromptKind, Prompt]]:
    """A prompt of each kind for each object of a picture that is asked for; they depend on the seed and the names."""
    for item, near in zip(image.objects, find_neighbours(image.objects), strict=True):
        if image.is_asked(item):
            nearest = None if near.nearest is None else image.objects[near.nearest].box_xyxy()
            for kind in kinds:
                for prompt in _draw(set_name, image, item, kind, seed, nearest):
                    yield item, kind, prompt


def truth_iou(mask: RefinedMask, item: TruthObject) -> float:
    """IoU of a mask that was made with the object that it was asked for."""
    assert mask.mask_size is not None
    assert mask.mask_counts is not None
    return rle_iou(rle(mask.mask_size, mask.mask_counts), item.rle)


def box_labels(box_xyxy: BoxXYXY | None, truth: dict[str, Any]) -> dict[str, float | None]:
    """`object_share` and `box_iou` of RECORDS_SCHEMA, from the weak box and the true mask, a COCO compressed RLE."""
    height, width = truth["size"]
    share = float(coco_mask.area(truth)) / (height * width)
    if box_xyxy is None:
        return {"object_share": share, "box_iou": None}
    filled = coco_mask.encode(np.asfortranarray(fill_box(np.array(box_xyxy), (height, width)).view(np.uint8)))
    return {"object_share": share, "box_iou": rle_iou(filled, truth)}


def _draw(
    set_name: str, image: TruthImage, item: TruthObject, kind: PromptKind, seed: int, nearest_xyxy: Any
) -> list[Prompt]:
    drawn = kind.draw(item.mask(), prompt_rng(seed, set_name, item.annotation_id, kind.name), 1, nearest_xyxy)
    if drawn is None:
        return []
    name = f"{set_name}/{item.annotation_id}/{kind.name}"
    where = Prompt(prompt_id=name, image_id=image.name, image_uri=str(image.path))
    if kind.points:
        points = tuple((float(x), float(y)) for x, y in drawn[0])
        return [replace(where, points_xy=points, point_labels=(1,) * kind.points)]
    x0, y0, x1, y1 = map(float, drawn[0])
    return [replace(where, box_xyxy=(x0, y0, x1, y1))]
