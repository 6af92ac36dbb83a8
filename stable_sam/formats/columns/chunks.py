"""Chunks of prompts, as records or as a batch: of single annotations, or of another chunk under a source's name."""

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
"""Of several sources in one table: the attribute that says which one a prompt is of."""


class PromptChunk(Protocol):
    """Some prompts that follow each other in their source."""

    def prompts(self) -> list[Prompt]:
        """One prompt for each annotation."""

    def batch(self) -> pa.RecordBatch:
        """The same prompts as a batch of PROMPTS_SCHEMA."""


@dataclass(frozen=True, slots=True)
class RecordChunk:
    """Annotations that were read one by one."""

    annotations: list[SourceAnnotation]

    def prompts(self) -> list[Prompt]:
        """One prompt for each annotation."""
        return [checked_prompt(annotation) for annotation in self.annotations]

    def batch(self) -> pa.RecordBatch:
        """The same prompts as a batch of PROMPTS_SCHEMA."""
        return rows_to_table(map(prompt_row, self.prompts()), PROMPTS_SCHEMA).combine_chunks().to_batches()[0]


def record_chunks(annotations: Iterable[SourceAnnotation], rows: int) -> Iterator[RecordChunk]:
    """Chunks of at most `rows` annotations."""
    remaining = iter(annotations)
    while chunk := list(islice(remaining, rows)):
        yield RecordChunk(chunk)


@dataclass(frozen=True, slots=True)
class NamedChunk:
    """Prompts of one source of several: its name stands before their ids and in their attributes."""

    chunk: PromptChunk
    source: str

    def prompts(self) -> list[Prompt]:
        """One prompt for each annotation."""
        return [
            replace(
                prompt,
                prompt_id=f"{self.source}/{prompt.prompt_id}",
                attributes=_with_source(prompt.attributes, self.source),
            )
            for prompt in self.chunk.prompts()
        ]

    def batch(self) -> pa.RecordBatch:
        """The same prompts as a batch of PROMPTS_SCHEMA."""
        batch = self.chunk.batch()
        ids = [f"{self.source}/{prompt_id}" for prompt_id in batch["prompt_id"].to_pylist()]
        attributes = [_with_source(text, self.source) for text in batch["attributes"].to_pylist()]
        for name, values in (("prompt_id", ids), ("attributes", attributes)):
            index = batch.schema.get_field_index(name)
            batch = batch.set_column(index, batch.schema.field(index), pa.array(values, pa.string()))
        return batch


def _with_source(attributes: str | None, source: str) -> str:
    given = json.loads(attributes) if attributes else {}
    return json.dumps(given | {SOURCE_ATTRIBUTE: source}, sort_keys=True)
