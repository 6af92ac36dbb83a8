"""Write the files of an evaluation: JSON, Markdown, two charts and the records, each to its own path or URI."""

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
from stable_sam.storage.files import write_bytes
from stable_sam.storage.uris import absolute_uri


class EvaluationOutputs(Section):
    """The URIs of the files to write; a file whose URI is None is not written."""

    json_uri: str
    markdown_uri: str | None = None
    chart_uri: str | None = None
    """PNG with the bars of mIoU for each kind of prompt."""
    alpha_plot_uri: str | None = None
    """PNG with alpha_1 against how good the prompts are."""
    records_uri: str | None = None
    """Parquet file with one row for each mask."""

    def check(self) -> None:
        """Raise `StorageError` for a local file that could not be written, before hours of work for it."""
        for uri in filter(None, self.model_dump().values()):
            file = Path(absolute_uri(uri))
            if "://" not in uri and (not os.access(file.parent, os.W_OK) or file.is_dir()):
                raise StorageError(f"{uri}: expected a file in a folder that exists and can be written")

    def write(self, evaluation: Evaluation, records: pa.Table) -> None:
        """Write the files whose URIs are given; raises `StorageError`."""
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
