"""Make the table of docs/querying.md (two detectors, two nights, a review, true masks) and answer its queries.

    python benchmarks/querying_example.py --data DIR/clothing_co_parsing --out out/querying --document docs/querying.md

The answers are written into the page, each after its `<!-- name -->`. The detectors are made of the true masks: `yolo`
finds all objects with a detector's error, `rcnn` two of three, with larger errors. It takes half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from flows.cli import app
from stable_sam.config import RunConfig
from stable_sam.evaluation.prompts import PromptKind, prompt_rng
from stable_sam.evaluation.true_masks import TruthImage, read_truth
from stable_sam.formats.review_records import Answer
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import refine_shard
from stable_sam.review.answers import import_answers
from stable_sam.rle import encode_mask
from stable_sam.runs.commits import write_tombstones
from stable_sam.runs.manifest import read_manifest
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.table.query import query
from tasks.plan import plan

QUESTIONS: list[tuple[str, str, str | None]] = [
    ("category", "SELECT category, prompts, accept, review, reject, median_quality, mean_true_iou "
     "FROM by_category LIMIT 5", None),
    ("source", "SELECT source, prompts, accept, review, reject, median_prompt_stability, median_box_agreement "
     "FROM by_source", None),
    ("route", "SELECT outcome, prompts, share, median_quality, mean_true_iou FROM by_route", None),
    ("reasons", "SELECT * FROM reasons LIMIT 3", None),
    ("night", "SELECT revision, logical_date, prompts, accept, review, reject, reviewed FROM by_night", None),
    ("worst", "SELECT prompt_id, category, outcome, reason, quality, true_iou FROM worst LIMIT 4", None),
    ("changes", "SELECT change, count(*) AS prompts, count(*) FILTER (prompt_changed) AS moved, min(mask_iou), "
     "median(mask_iou) FROM changes GROUP BY change ORDER BY change", "2"),
    ("moved", "SELECT prompt_id, change, route_before, route, mask_iou, area_before, area "
     "FROM changes WHERE mask_iou < 0.9 LIMIT 3", "2"),
    ("corrected", "SELECT prompt_id, change, route_before, route, mask_iou FROM changes", None),
    ("box", "SELECT prompt_id, category, outcome, box_agreement, mask_to_box_area FROM box_disagreement LIMIT 3",
     None),
    ("sources", "SELECT prompt_id, category, other_prompt_id, other_category, box_iou, mask_iou "
     "FROM source_disagreement WHERE source = 'rcnn' LIMIT 3", None),
    ("missed", "SELECT source, other_source, count(*) AS masks, count(*) FILTER (mask_iou < 0.5) AS disagree, "
     "median(mask_iou) FROM source_disagreement GROUP BY ALL ORDER BY source", None),
    ("drift", "SELECT revision, prompts, accept_share, review_share, reject_share, median_quality, mean_true_iou "
     "FROM drift", None),
    ("truth", "SELECT revision, truth_matched, truth_mean_iou, truth_share_75, truth_images, truth_ap, truth_ap50, "
     "truth_ap75 FROM runs WHERE truth_uri IS NOT NULL ORDER BY revision", None),
]  # fmt: skip


def main() -> None:
    """Make the table and write every question with its answer."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="Folder with instances.json and images/.")
    options.add_argument("--out", type=Path, required=True, help="Folder of the table.")
    options.add_argument("--images", type=int, default=8)
    options.add_argument("--document", type=Path, required=True, help="Markdown file with the places of the answers.")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    [images] = [known.images for known in read_truth(given.data, min_area_fraction=0.005, limit=given.images)]
    table = str(given.out / "table")
    names = sorted({item.category for image in images for item in image.objects})
    _night(given.data, given.out, images[:-1], names, "2026-11-21")
    _night(given.data, given.out, images, names, "2026-11-22", changes=True)
    _review(table, images)
    text = given.document.read_text()
    for name, sql, revision in QUESTIONS:
        place = re.compile(f"<!-- {name} -->\n```text\n.*?```", re.DOTALL)
        assert place.search(text), f"{given.document}: expected <!-- {name} --> before a block of text"
        answer = f"<!-- {name} -->\n```text\n{_answer(table, sql, revision)}```"
        text = place.sub(lambda _, answer=answer: answer, text)
    given.document.write_text(text)


def _answer(table: str, sql: str, revision: str | None) -> str:
    """The command and what it prints; `revision`: as of that run."""
    options: list[str] = []
    if revision is not None:
        runs = query(table, f"SELECT run_id FROM runs WHERE revision = {revision}").to_pylist()
        options = ["--as-of", runs[0]["run_id"]]
    shown = " ".join(["stable-sam query --table out/table", *options, f'"{sql}"'])
    command = "\n    ".join(textwrap.wrap(shown, 110, break_long_words=False))
    arguments = ["query", "--table", table, sql, *options]
    return f"$ {command}\n\n{CliRunner().invoke(app, arguments, catch_exceptions=False).stdout}"


def _night(
    data: Path, out: Path, images: tuple[TruthImage, ...], names: list[str], date: str, changes: bool = False
) -> None:
    """With `changes` every fifth box is drawn anew, and two objects are gone."""
    kinds = {"yolo": PromptKind.parse("detector-box"), "rcnn": PromptKind.parse("loose-box")}
    for source, kind in kinds.items():
        found: list[dict[str, Any]] = []
        for number, image in enumerate(images):
            for place, item in enumerate(image.objects):
                if (source == "rcnn" and place % 3 == 2) or (changes and number == 0 and place < 2):
                    continue
                seed = int(changes and (number + place) % 5 == 0)
                drawn = kind.draw(item.mask(), prompt_rng(seed, source, item.annotation_id), 1)
                assert drawn is not None
                x0, y0, x1, y1 = (round(float(value), 1) for value in drawn[0])
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": names.index(item.category)}
                found.append({"id": int(item.annotation_id), "image_id": number, **box})
        document = {
            "images": [
                {
                    "id": number,
                    "file_name": Path(image.name).name,
                    "height": image.size_hw[0],
                    "width": image.size_hw[1],
                }
                for number, image in enumerate(images)
            ],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
            "annotations": found,
        }
        (out / f"{source}.json").write_text(json.dumps(document))
    request = RunRequest.parse(
        annotations_uri=",".join(f"{source}={out / source}.json" for source in kinds),
        images_uri=str(data / "images"),
        output_uri=str(out / "table"),
        config=RunConfig(truth_uri=str(data / "instances.json")),
        logical_date=date,
    )
    planned = plan.fn(request)
    assert planned.manifest_uri is not None, "the table is there already: give another --out"
    manifest = read_manifest(planned.manifest_uri)
    refiner = Refiner(manifest.config.refiner, manifest.config.routing)
    for shard in manifest.tombstones:
        write_tombstones(manifest, shard)
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    publish(manifest)


def _review(table: str, images: tuple[TruthImage, ...]) -> None:
    """Somebody corrects the three worst masks."""
    true = {item.annotation_id: item for image in images for item in image.objects}
    worst = query(table, "SELECT prompt_id, annotation_id, revision FROM worst LIMIT 3").to_pylist()
    import_answers(
        table,
        [
            Answer(
                prompt_id=row["prompt_id"],
                mask=encode_mask(true[row["annotation_id"]].mask()),
                revision=row["revision"],
                checked=True,
                where="by hand",
            )
            for row in worst
        ],
        reviewer="ana",
    )


if __name__ == "__main__":
    main()
