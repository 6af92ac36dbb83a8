"""Chunks of prompts, to be had as records or as a batch: of annotations read one by one, and of named sources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import pyarrow as pa

from stable_sam.formats.source_annotation import SourceAnnotation, checked_prompt
from stable_sam.records import Prompt
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table

SOURCE_ATTRIBUTE = "annotation_source"
"""The attribute that names a prompt's source when a run has several."""


class PromptChunk(Protocol):
    """Consecutive prompts of a source."""

    def prompts(self) -> list[Prompt]:
        """Return one prompt for each annotation."""

    def batch(self) -> pa.RecordBatch:
        """Return the prompts of `prompts` as a batch of PROMPTS_SCHEMA."""

    def where(self, row: int) -> str:
        """Return the file and the record of the prompt with this number, from 0, for messages."""


@dataclass(frozen=True, slots=True)
class RecordChunk:
    """A chunk of annotations that were read one by one."""

    annotations: list[SourceAnnotation]

    def prompts(self) -> list[Prompt]:
        """Return one prompt for each annotation."""
        return [checked_prompt(annotation) for annotation in self.annotations]

    def batch(self) -> pa.RecordBatch:
        """Return the prompts of `prompts` as a batch of PROMPTS_SCHEMA."""
        return rows_to_table(map(prompt_row, self.prompts()), PROMPTS_SCHEMA).combine_chunks().to_batches()[0]

    def where(self, row: int) -> str:
        """Return the file and the record of the prompt with this number."""
        return self.annotations[row].where


def record_chunks(annotations: Iterable[SourceAnnotation], rows: int) -> Iterator[RecordChunk]:
    """Yield chunks of at most `rows` annotations."""
    remaining = iter(annotations)
    while chunk := list(islice(remaining, rows)):
        yield RecordChunk(chunk)


@dataclass(frozen=True, slots=True)
class NamedChunk:
    """A chunk of one of several sources; the source's name is put before the prompts' ids and into their attributes."""

    chunk: PromptChunk
    source: str
    """Name of the source."""

    def prompts(self) -> list[Prompt]:
        """Return one prompt for each annotation."""
        return [
            replace(
                prompt,
                prompt_id=f"{self.source}/{prompt.prompt_id}",
                attributes=_with_source(prompt.attributes, self.source),
            )
            for prompt in self.chunk.prompts()
        ]

    def batch(self) -> pa.RecordBatch:
        """Return the prompts of `prompts` as a batch of PROMPTS_SCHEMA."""
        batch = self.chunk.batch()
        ids = [f"{self.source}/{prompt_id}" for prompt_id in batch["prompt_id"].to_pylist()]
        attributes = [_with_source(text, self.source) for text in batch["attributes"].to_pylist()]
        for name, values in (("prompt_id", ids), ("attributes", attributes)):
            index = batch.schema.get_field_index(name)
            batch = batch.set_column(index, batch.schema.field(index), pa.array(values, pa.string()))
        return batch

    def where(self, row: int) -> str:
        """Return the file and the record of the prompt with this number."""
        return self.chunk.where(row)


def _with_source(attributes: str | None, source: str) -> str:
    given = json.loads(attributes) if attributes else {}
    return json.dumps(given | {SOURCE_ATTRIBUTE: source}, sort_keys=True)
