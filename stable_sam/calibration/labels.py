"""Make labelled masks: draw weak prompts from true masks, refine them, and compare them with the true masks.

Labelled masks of a reviewed table come from `calibration.reviewed`.
"""

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
from stable_sam.config.calibration import BOX_INPUTS, INPUTS, scores_of
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
_LATER = ("object_share", "box_iou", *BOX_INPUTS)
"""Columns that files of version 0.2.0 lack. They are null in such files, and no gain over the box is fitted to them."""
RECORDS_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("picture", pa.string()),
        ("prompt_id", pa.string()),
        ("kind", pa.string()),
        ("iou", pa.float64()),
        ("second_pass", pa.string()),
        *((name, pa.float64()) for name in INPUTS),
        *((name, pa.float64()) for name in _LATER),
    ]
)
"""Columns of labelled masks: set, image file and prompt, IoU with the true mask, and scores, which may be null.

`kind` is the kind of the weak prompt, or `fit.SAMPLE` or `fit.REVIEWED`. `object_share` is the fraction of the image
that the true mask covers. `box_iou` is the IoU of the filled weak box with the true mask, and null for points.
"""
_MADE_BY = b"stable_sam_model"
"""Key in the file's metadata of the model that made the masks, because scores of another model mean something else."""


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
    """Draw one weak prompt of each kind for every object, refine it as in a run, and label the mask.

    data_dirs: folders for `read_truth`. kinds: see `stable_sam.evaluation.prompts`. max_objects: number of objects
    drawn at random; None takes all. on_image: called after each image with the number of images done and of all images.
    Returns rows of RECORDS_SCHEMA without masks that failed. Raises `ConfigError`, `AnnotationError` and `ImageError`.
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
    """Write labelled masks that `model` made as a Parquet file; raises `StorageError`."""
    sink = pa.BufferOutputStream()
    made_by = json.dumps(asdict(model.score_source(refiner))).encode()
    pq.write_table(records.replace_schema_metadata({_MADE_BY: made_by}), sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def read_records(uri: str, refiner: RefinerConfig, model: ModelIdentity) -> pa.Table:
    """Read labelled masks that `write_records` wrote, or those of the bundled calibration for the uri `bundled`.

    Raises `AnnotationError` for another kind of file, `ConfigError` when another model made the masks, and
    `StorageError`.
    """
    table, made_by = _read(uri)
    if other := made_by.differs(model.score_source(refiner)):
        name, theirs, ours = other
        raise ConfigError(
            f"{uri}: expected masks made with {name} {ours}, as the config says, got masks made with {name} {theirs}"
        )
    return table.replace_schema_metadata()


def without_tiles(uri: str, refiner: RefinerConfig) -> RefinerConfig:
    """Return `refiner`, with tiles off where the labelled masks at `uri` were all made in whole images.

    Raises what `read_records` raises.
    """
    _, made_by = _read(uri)
    return refiner if made_by.tiles else refiner.model_copy(update={"tiles": "off"})


def labelled(records: pa.Table) -> LabelledMasks:
    """Turn rows of RECORDS_SCHEMA into arrays; raises `AnnotationError` when there are none."""
    if records.num_rows == 0:
        raise AnnotationError("calibration: expected masks with a known true mask, got none")

    def column(name: str) -> Any:
        return records[name].to_numpy(zero_copy_only=False)

    sets = column("set").astype(np.str_)
    return LabelledMasks(
        scores={name: column(name).astype(np.float64) for name in (*INPUTS, *BOX_INPUTS)},
        iou=column("iou"),
        box_iou=column("box_iou").astype(np.float64),
        object_share=column("object_share").astype(np.float64),
        images=np.char.add(np.char.add(sets, "/"), column("picture").astype(np.str_)),
        sets=sets,
        kinds=column("kind").astype(np.str_),
    )


def _read(uri: str) -> tuple[pa.Table, ScoreSource]:
    """Rows of RECORDS_SCHEMA, and the model that made them."""
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
    """Yield a prompt of each kind for each object of an image that is to be evaluated.

    The prompts depend only on the seed and on the names of the set, the object and the kind.
    """
    for item, near in zip(image.objects, find_neighbours(image.objects), strict=True):
        if image.is_asked(item):
            nearest = None if near.nearest is None else image.objects[near.nearest].box_xyxy()
            for kind in kinds:
                for prompt in _draw(set_name, image, item, kind, seed, nearest):
                    yield item, kind, prompt


def truth_iou(mask: RefinedMask, item: TruthObject) -> float:
    """Return the IoU of a refined mask with the true mask of its object."""
    assert mask.mask_size is not None
    assert mask.mask_counts is not None
    return rle_iou(rle(mask.mask_size, mask.mask_counts), item.rle)


def box_labels(box_xyxy: BoxXYXY | None, truth: dict[str, Any]) -> dict[str, float | None]:
    """Return `object_share` and `box_iou` of RECORDS_SCHEMA.

    box_xyxy: the weak box. truth: the true mask as COCO compressed RLE.
    """
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
