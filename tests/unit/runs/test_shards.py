"""Shards cost about the same, images stay whole, and the heaviest come first."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_sam.runs.shards import ORDINARY_PROMPTS, cut

PROMPT_COST = 2.7


def shards(prompts_of_images: list[int], shard_images: int) -> list[list[int]]:
    """Numbers of prompts of the images of each shard."""
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE planned(image_uri VARCHAR, image_id VARCHAR)")
        for image, prompts in enumerate(prompts_of_images):
            connection.execute("INSERT INTO planned SELECT $1, $1 FROM range($2)", [f"{image:06d}", prompts])
        images, count = cut(connection, shard_images, PROMPT_COST)
        found: list[list[int]] = [[] for _ in range(count)]
        for image, shard in connection.execute("SELECT image_id::INT, shard FROM cut ORDER BY place").fetchall():
            found[shard].append(prompts_of_images[image])
    assert images == len(prompts_of_images) == sum(map(len, found))
    assert all(found)
    return found


def cost(prompts: int) -> float:
    return max(1.0, (1 + PROMPT_COST * prompts) / (1 + PROMPT_COST * ORDINARY_PROMPTS))


def test_ordinary_images_fill_shards_by_their_number() -> None:
    assert [len(shard) for shard in shards([1, 8, 3, 5, 2, 7, 1], 3)] == [3, 3, 1]


def test_an_image_with_5000_boxes_is_alone_and_first() -> None:
    found = shards([4] * 50 + [5000] + [4] * 50, 10)
    assert found[0] == [5000]
    assert [len(shard) for shard in found[1:]] == [10] * 10


@pytest.mark.parametrize("shard_images", [1, 2])
def test_the_smallest_shards(shard_images: int) -> None:
    assert [len(shard) for shard in shards([1] * 4, shard_images)] == [shard_images] * (4 // shard_images)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 8))
def test_no_shard_of_several_images_costs_half_more_than_it_should(images: list[int], shard_images: int) -> None:
    found = shards(images, shard_images)
    assert sorted(prompts for shard in found for prompts in shard) == sorted(images)
    for shard in found:
        assert len(shard) <= shard_images
        assert len(shard) == 1 or sum(map(cost, shard)) <= 1.5 * shard_images + 0.01
