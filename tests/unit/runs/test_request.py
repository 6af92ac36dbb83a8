"""What a user asks of a run, parsed once where it comes in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import ConfigError
from stable_sam.runs.compare import REFRESH
from stable_sam.runs.request import RunRequest

URIS = {"annotations_uri": "s3://lake/weak.json", "images_uri": "s3://lake/images", "output_uri": "s3://lake/masks"}
LATE = datetime(2025, 11, 23, 23, 30, tzinfo=UTC)


def parse(**given: Any) -> RunRequest:
    return RunRequest.parse(**URIS | given)


def test_local_paths_are_absolute_and_uris_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = RunRequest.parse(
        annotations_uri="mine=a.json,s3://lake/b.json",
        images_uri="images",
        output_uri="table",
        image_index_uri="index.json",
    )
    assert request.annotations_uri == f"mine={tmp_path}/a.json,s3://lake/b.json"
    assert request.images_uri == f"{tmp_path}/images"
    assert request.output_uri == f"{tmp_path}/table"
    assert request.image_index_uri == f"{tmp_path}/index.json"
    assert parse().output_uri == "s3://lake/masks"


def test_a_configuration_is_a_mapping_a_file_or_one_that_was_read(tmp_path: Path) -> None:
    config = RunConfig(refiner=RefinerConfig(model="tiny"))
    file = tmp_path / "run.yaml"
    file.write_text("refiner: {model: tiny}\n")
    for given_config in (config, {"refiner": {"model": "tiny"}}, str(file)):
        assert parse(config=given_config).config == config
    assert parse().config == parse(config={}).config == RunConfig()


@pytest.mark.parametrize(
    "refresh", ["failed,model", ["failed", "model"], [" failed , model"], ["model", "failed,failed"]]
)
def test_reasons_to_refresh_are_a_list_or_text_with_commas(refresh: str | list[str]) -> None:
    assert parse(refresh=refresh).refresh == {"failed", "model"}


def test_no_reasons_to_refresh_are_none() -> None:
    assert parse(refresh=None).refresh == parse(refresh="").refresh == frozenset()


@pytest.mark.parametrize(
    ("given_wrong", "message"),
    [
        ({"refresh": "failed,weights"}, "^refresh: expected failed, model, all, got 'weights'$"),
        ({"since": "yesterday"}, "^since: expected YYYY-MM-DD or YYYY-MM-DDTHH:MM, got 'yesterday'$"),
        ({"logical_date": "tonight"}, "^logical date: expected YYYY-MM-DD, got 'tonight'$"),
        ({"timezone": "Mars/Olympus"}, "^timezone: expected an IANA name such as Europe/Berlin, got 'Mars/Olympus'$"),
        ({"config": {"models": "tiny"}}, "^config: models: unknown key, got 'tiny'$"),
        ({"config": "gone.yaml"}, "^gone.yaml: cannot read the config: No such file or directory$"),
    ],
)
def test_what_cannot_be_meant_is_one_line(given_wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**given_wrong)


def test_a_scheduled_run_stands_for_its_day_unless_another_is_given() -> None:
    assert parse(scheduled=LATE).logical_date == "2025-11-23"
    assert parse(scheduled=LATE, timezone="Europe/Berlin").logical_date == "2025-11-24"
    assert parse(scheduled=LATE, logical_date="2025-01-02").logical_date == "2025-01-02"
    assert parse().logical_date is None


@given(
    refresh=st.lists(st.sampled_from(REFRESH)),
    since=st.none() | st.datetimes(timezones=st.timezones()),
    logical_date=st.none() | st.dates(),
    config=st.sampled_from([RunConfig(), RunConfig(refiner=RefinerConfig(model="tiny"), shard_images=3)]),
    image_index_uri=st.none() | st.just("s3://lake/index.json"),
)
def test_the_flow_reads_the_request_that_the_command_has(
    refresh: list[str], since: datetime | None, logical_date: Any, config: RunConfig, image_index_uri: str | None
) -> None:
    request = parse(
        refresh=refresh,
        since=None if since is None else since.isoformat(timespec="seconds"),
        logical_date=None if logical_date is None else logical_date.isoformat(),
        config=config,
        image_index_uri=image_index_uri,
    )
    assert RunRequest.parse(**request.parameters()) == request


def test_the_flow_has_a_parameter_for_every_part_of_a_request() -> None:
    from flows.refine import refine_dataset

    assert parse().parameters().keys() <= refine_dataset.parameters.properties.keys()
