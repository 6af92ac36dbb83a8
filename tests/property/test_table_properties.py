"""Whatever the prompts are: rows keep their values, and shards neither lose nor double a prompt."""

from __future__ import annotations

import io
import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_sam.config import RunConfig
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, Provenance, RefinedMask
from stable_sam.runs.commits import PARQUET_OPTIONS
from stable_sam.runs.manifest import read_shard
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from stable_sam.table.schema import MASKS_SCHEMA, PROMPTS_SCHEMA, mask_table, prompt_from_row, prompt_row, rows_to_table

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(width=64, allow_nan=False)


@st.composite
def prompts(draw: st.DrawFn, prompt_id: str) -> Prompt:
    points = draw(st.lists(st.tuples(numbers, numbers), max_size=3))
    return Prompt(
        prompt_id=prompt_id,
        image_id=draw(st.sampled_from(["1", "2", "10", "é"])),
        image_uri=draw(st.sampled_from(["", "a b/1.jpg", "s3://bucket/ü.png"])),
        box_xyxy=draw(st.none() | st.tuples(numbers, numbers, numbers, numbers)),
        points_xy=tuple(points),
        point_labels=tuple(draw(st.lists(st.integers(-5, 5), max_size=3))),
        annotation_id=draw(st.none() | texts),
        category_id=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        iscrowd=draw(st.booleans()),
        score=draw(st.none() | numbers),
        attributes=draw(st.none() | texts),
        error=draw(st.none() | texts),
    )


@st.composite
def prompt_lists(draw: st.DrawFn) -> list[Prompt]:
    ids = draw(st.lists(texts, min_size=1, max_size=12, unique=True))
    return [draw(prompts(prompt_id)) for prompt_id in ids]


@given(prompts("x"))
def test_a_prompt_survives_its_row(prompt: Prompt) -> None:
    table = rows_to_table([prompt_row(prompt)], PROMPTS_SCHEMA)
    assert prompt_from_row(table.to_pylist()[0]) == prompt


scores = st.none() | st.floats()
sizes = st.integers(0, 2**31 - 1)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Prompt, RefinedMask]:
    prompt = draw(prompts(draw(texts)))
    if draw(st.booleans()):
        return prompt, RefinedMask(prompt_id=prompt.prompt_id, status="failed", error=draw(texts), route="reject")
    return prompt, RefinedMask(
        prompt_id=prompt.prompt_id,
        status="ok",
        mask_size=draw(st.tuples(sizes, sizes)),
        mask_counts=draw(texts),
        bbox_xywh=draw(st.tuples(numbers, numbers, numbers, numbers)),
        area=draw(st.integers(0, 2**63 - 1)),
        predicted_iou=draw(scores),
        prompt_stability=draw(scores),
        second_pass=draw(st.sampled_from([None, "mirror"])),
        view=draw(st.sampled_from([None, "tile", "wider"])),
        tile_xywh=draw(st.none() | st.tuples(sizes, sizes, sizes, sizes)),
        route=draw(st.sampled_from(["accept", "review", "reject"])),
        route_reason=draw(texts),
        true_iou=draw(scores),
    )


provenances = st.builds(
    Provenance,
    **dict.fromkeys(["run_id", "shard_id", "model_id", "weights_sha256", "config_hash", "code_version"], texts),
    revision=st.integers(1, 2**63 - 1),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    logical_date=st.sampled_from([None, "2025-11-23"]),
)


@settings(deadline=None)
@given(st.lists(rows(), max_size=6), provenances)
def test_a_table_made_by_column_is_the_one_made_by_row(
    given_rows: list[tuple[Prompt, RefinedMask]], made_by: Provenance
) -> None:
    """Up to the last byte of its file."""
    by_row = pa.Table.from_pylist(
        [asdict(prompt) | asdict(made_by) | asdict(mask) for prompt, mask in given_rows], schema=MASKS_SCHEMA
    )
    by_column = mask_table(given_rows, made_by)
    assert by_column.schema == by_row.schema
    assert parquet(by_column) == parquet(by_row)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **PARQUET_OPTIONS)
    return buffer.getvalue()


@settings(max_examples=12, deadline=None)
@given(prompt_lists(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_shards_are_a_partition_and_ids_ignore_order(source: list[Prompt], shard_images: int, random: object) -> None:
    shuffled = list(source)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis names no type for its Random
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            plan_run(
                given_prompts,
                RunRequest(
                    annotations_uri="weak.json",
                    images_uri=str(Path(folder, "images")),
                    output_uri=str(Path(folder, name)),
                    config=RunConfig(shard_images=shard_images),
                ),
                ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32"),
            )
            for name, given_prompts in (("a", source), ("b", shuffled))
        )
        assert first is not None
        assert second is not None
        stored = [read_shard(shard.uri) for shard in first.shards]
    assert first.run_id == second.run_id
    assert [shard.shard_id for shard in first.shards] == [shard.shard_id for shard in second.shards]
    assert sorted((p for shard in stored for p in shard), key=lambda p: p.prompt_id) == sorted(
        source, key=lambda p: p.prompt_id
    )
    images = [{(p.image_uri, p.image_id) for p in shard} for shard in stored]
    assert all(len(one) <= shard_images for one in images)
    assert sum(map(len, images)) == len(set().union(*images)) == first.images
