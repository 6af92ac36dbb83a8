"""Where an evaluation goes: JSON, Markdown, the two pictures and the records, each a path or URI of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa

from stable_sam.config.section import Section
from stable_sam.errors import StorageError
from stable_sam.evaluation.evaluate import Evaluation
from stable_sam.evaluation.markdown import markdown
from stable_sam.evaluation.result_records import write_records
from stable_sam.storage.files import absolute_uri, write_bytes


class EvaluationOutputs(Section):
    """URIs of what is to be written; None: not written."""

    json_uri: str
    markdown_uri: str | None = None
    chart_uri: str | None = None
    """Bars of mIoU for each kind of prompt (PNG)."""
    alpha_plot_uri: str | None = None
    """alpha_1 against the prompt's quality (PNG)."""
    records_uri: str | None = None
    """One row for each mask (Parquet)."""

    def check(self) -> None:
        """Before work starts: raise `StorageError` for a local file that cannot be written."""
        for uri in filter(None, self.model_dump().values()):
            file = Path(absolute_uri(uri))
            if "://" not in uri and (not os.access(file.parent, os.W_OK) or file.is_dir()):
                raise StorageError(f"{uri}: expected a file in a folder that exists and can be written")

    def write(self, evaluation: Evaluation, records: pa.Table) -> None:
        """Write what was asked for. Raises `StorageError`."""
        write_bytes(self.json_uri, (json.dumps(evaluation.to_json(), indent=2) + "\n").encode())
        if self.markdown_uri is not None:
            write_bytes(self.markdown_uri, markdown(evaluation).encode())
        if self.records_uri is not None:
            write_records(records, self.records_uri)
        if self.chart_uri is not None or self.alpha_plot_uri is not None:
            from stable_sam.evaluation.chart import alpha_plot, bar_chart

            if self.chart_uri is not None:
                write_bytes(self.chart_uri, bar_chart(evaluation))
            if self.alpha_plot_uri is not None:
                write_bytes(self.alpha_plot_uri, alpha_plot(records, evaluation.settings.prompts))
