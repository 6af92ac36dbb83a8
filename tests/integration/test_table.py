"""From prompts to a queried table, on a local disk and on S3: plan, shards, commit records, publishing, SQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from deltalake import DeltaTable

from stable_sam.errors import ConservationError, InputError, NotFoundError, StorageError
from stable_sam.records import Prompt
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs import publish as table_module
from stable_sam.runs.commits import committed
from stable_sam.runs.publish import PublishReport, publish
from stable_sam.storage.files import delta_options, list_files, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table import log as runs_module
from stable_sam.table.log import newest_run
from tests.integration.masks_dataset import ConstantRefiner, Dataset


def at_once(count: int, work: Callable[[], object]) -> list[object]:
    """What `count` threads returned or raised."""
    start, results = threading.Barrier(count), []

    def run() -> None:
        start.wait()
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_prompt_is_one_row_and_the_same_input_again_is_no_run(dataset: Dataset) -> None:
    manifest = dataset.refined()
    assert newest_run(dataset.output) is None
    with pytest.raises(NotFoundError, match="expected a masks table"):
        dataset.ask("SELECT 1")
    report = publish(manifest)
    assert report == PublishReport(version=0, rows=12, failed=0, routes={"accept": 12}, already_published=False)
    rows = dataset.ask("SELECT prompt_id, mask_size, revision, image_uri FROM masks ORDER BY prompt_id")
    assert [row["prompt_id"] for row in rows] == [f"p{k:02}" for k in range(12)]
    assert rows[0] == {
        "prompt_id": "p00", "mask_size": [5, 6], "revision": 1, "image_uri": join(dataset.root, "images/0.png")
    }  # fmt: skip
    assert dataset.plan() is None
    # A changed picture is new content, though the annotations are the same.
    write_bytes(join(dataset.root, "images/0.png"), b"not an image")
    assert dataset.planned().revision == 2


def test_publishing_again_changes_nothing(dataset: Dataset) -> None:
    manifest = dataset.refined()
    first, second = publish(manifest), publish(manifest)
    assert second == replace(first, already_published=True)
    assert dataset.ask("SELECT count(*) AS n FROM history") == [{"n": 12}]


def test_resume_does_only_what_is_missing(dataset: Dataset) -> None:
    manifest, refiner = dataset.planned(), ConstantRefiner()
    assert not refine_shard(refiner, manifest, manifest.shards[1]).reused
    assert list(committed(manifest)) == [manifest.shards[1].shard_id]
    resumed = dataset.planned()
    assert resumed == manifest
    reports = [refine_shard(refiner, resumed, shard) for shard in resumed.shards]
    assert [report.reused for report in reports] == [False, True, False]
    assert [report.rows for report in reports] == [4, 4, 4]
    assert refiner.images == 6
    assert publish(resumed).rows == 12


def test_two_drivers_publish_once(dataset: Dataset) -> None:
    manifest = dataset.refined()
    for revision in (1, 2):
        reports = at_once(4, lambda manifest=manifest: publish(manifest))
        assert [type(report) for report in reports] == [PublishReport] * 4, reports
        assert sorted(report.already_published for report in reports) == [False, True, True, True]
        assert dataset.ask("SELECT count(*) AS n FROM history") == [{"n": 12 * revision}]
        manifest = dataset.refined([replace(prompt, box_xyxy=(revision, 1, 4, 3)) for prompt in dataset.prompts()])


def test_planning_and_refining_by_two_drivers_gives_each_row_once(dataset: Dataset) -> None:
    results = at_once(3, dataset.refined)
    assert all(result == results[0] for result in results), results
    manifest = dataset.refined()
    assert publish(manifest).rows == 12
    assert dataset.ask("SELECT count(*) AS n, count(DISTINCT prompt_id) AS ids FROM history") == [{"n": 12, "ids": 12}]


def test_a_missing_shard_or_part_is_not_published(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = dataset.planned()
    refine_shard(ConstantRefiner(), manifest, manifest.shards[0])
    with pytest.raises(ConservationError, match=r"expected commit records of 3 planned shards, got 1"):
        publish(manifest)
    dataset.refined()
    short = replace(manifest, shards=(replace(manifest.shards[0], prompts=5), *manifest.shards[1:]))
    with pytest.raises(ConservationError, match="expected 5 rows, got 4"):
        publish(short)
    with pytest.raises(ConservationError, match="expected 13 rows, got 12"):
        publish(replace(manifest, prompts=13))
    with monkeypatch.context() as patched:
        patched.setattr(table_module, "list_files", lambda uri: list_files(uri)[1:])
        with pytest.raises(ConservationError, match="expected the committed part, found none"):
            publish(manifest)
    assert newest_run(dataset.output) is None


def test_masks_are_the_newest_revision_and_history_is_all(dataset: Dataset) -> None:
    publish(dataset.refined())
    moved = [replace(prompt, box_xyxy=(1, 1, 3, 3)) for prompt in dataset.prompts(4)]
    second = dataset.refined([*moved, *dataset.prompts()[4:]])
    assert (second.revision, second.prompts, second.images) == (2, 4, 4)
    assert publish(second).version == 1
    assert dataset.ask("SELECT revision, count(*) AS n FROM masks GROUP BY revision ORDER BY revision") == [
        {"revision": 1, "n": 8},
        {"revision": 2, "n": 4},
    ]
    assert dataset.ask("SELECT count(*) AS n FROM masks WHERE box_xyxy[1] = 1") == [{"n": 4}]
    # A filter on the old rows must not bring them back.
    assert dataset.ask("SELECT prompt_id FROM masks WHERE revision = 1 AND prompt_id < 'p05'") == [{"prompt_id": "p04"}]
    assert dataset.ask("SELECT count(*) AS n FROM history") == [{"n": 16}]
    runs = dataset.ask('SELECT revision, run_id, version, "rows", failed, accept, review FROM runs ORDER BY revision')
    assert runs[1] == {
        "revision": 2, "run_id": second.run_id, "version": 1, "rows": 4, "failed": 0, "accept": 4, "review": 0
    }  # fmt: skip


def test_publishing_a_run_that_others_followed_finds_it(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset.refined()
    publish(first)
    publish(dataset.refined(dataset.prompts(14)))
    monkeypatch.setattr(runs_module, "_RECENT", 1)
    assert publish(first) == PublishReport(version=0, rows=12, failed=0, routes={"accept": 12}, already_published=True)


def test_a_run_whose_parent_is_no_longer_the_newest_is_refused(dataset: Dataset) -> None:
    first, second = dataset.refined(), dataset.refined(dataset.prompts(4))
    assert first.revision == second.revision == 1
    publish(second)
    with pytest.raises(StorageError, match="another run was published meanwhile; start this one again"):
        publish(first)


def test_every_filter_finds_its_rows_also_after_compaction(dataset: Dataset) -> None:
    publish(dataset.refined())
    moved = [replace(prompt, box_xyxy=(1, 1, 3, 3)) for prompt in dataset.prompts(7)]
    bad = Prompt(prompt_id="bad", image_id="x", image_uri="", error="none")
    publish(dataset.refined([*moved, *dataset.prompts()[7:], bad]))
    for _ in range(2):
        assert dataset.ask("SELECT count(*) AS n FROM history WHERE prompt_id = 'p03'") == [{"n": 2}]
        # A column that is null in all rows, and one that is null in some.
        assert dataset.ask("SELECT count(*) AS n FROM history WHERE score IS NULL") == [{"n": 20}]
        assert dataset.ask("SELECT prompt_id FROM masks WHERE error IS NOT NULL") == [{"prompt_id": "bad"}]
        assert dataset.ask("SELECT count(*) AS n FROM masks WHERE area IS NULL OR area >= 1") == [{"n": 13}]
        table = DeltaTable(dataset.output, storage_options=delta_options(dataset.output))
        table.optimize.compact()
    assert len(DeltaTable(dataset.output, storage_options=delta_options(dataset.output)).file_uris()) == 1
    newest = newest_run(dataset.output)
    assert newest is not None
    assert newest.revision == 2


def test_wrong_sql_is_one_line(dataset: Dataset) -> None:
    publish(dataset.refined())
    for sql, message in (
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM masks", 'Referenced column "nope" not found'),
        ("SELECT * FROM manifest", "Table with name manifest does not exist"),
        ("", "expected a query"),
    ):
        with pytest.raises(InputError, match=f"^SQL: .*{message}") as caught:
            dataset.ask(sql)
        assert "\n" not in str(caught.value)


def test_a_table_that_lost_a_file_says_so(dataset: Dataset) -> None:
    manifest = dataset.refined()
    publish(manifest)
    record = committed(manifest)[manifest.shards[0].shard_id]
    write_bytes(join(dataset.output, record.part), b"no Parquet")
    with pytest.raises(StorageError, match="cannot read the table") as caught:
        dataset.ask("SELECT * FROM masks")
    assert "\n" not in str(caught.value)


def test_a_foreign_table_is_refused_before_work(dataset: Dataset) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    write_deltalake(dataset.output, pa.table({"x": [1]}), storage_options=delta_options(dataset.output))
    with pytest.raises(StorageError, match="expected a table that stable-sam made, got one without its columns"):
        dataset.plan()
