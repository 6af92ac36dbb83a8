"""The instruments themselves: faults really happen, and what is wrong with a table is really noticed."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from stable_sam.config import RunConfig
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.runs.commits import write_part
from stable_sam.runs.manifest import read_shard
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from tests.reliability.checks import check_table, orphans, sweep
from tests.reliability.proxy import FaultyProxy, Rule
from tests.reliability.reader import Watch
from tests.reliability.workload import Night

LOST = (http.client.HTTPException, OSError)
BODY = b"0123456789" * 100


@pytest.fixture
def upstream() -> Iterator[tuple[FaultyProxy, list[tuple[str, bytes, str | None]]]]:
    """A proxy, and the requests (method, body, If-None-Match) that came through."""
    came: list[tuple[str, bytes, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                return
            came.append((self.command, body, self.headers.get("If-None-Match")))
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = FaultyProxy(("127.0.0.1", server.server_port))
    proxy.start()
    yield proxy, came
    server.shutdown()
    server.server_close()


def ask(proxy: FaultyProxy, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    try:
        connection.request(method, "/bucket/key", body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


Upstream = tuple[FaultyProxy, list[tuple[str, bytes, str | None]]]


def test_without_rules_everything_passes(upstream: Upstream) -> None:
    proxy, came = upstream
    assert ask(proxy, "PUT", b"data", If_None_Match="*") == (200, BODY)
    assert came == [("PUT", b"data", "*")]
    assert not proxy.injected


@pytest.mark.parametrize("fault", ["lost", "reset", "truncated", "cut"])
def test_a_broken_connection_reaches_the_store_or_does_not(upstream: Upstream, fault: str) -> None:
    proxy, came = upstream
    proxy.inject([Rule(fault)], seed=0)
    with pytest.raises(LOST):
        ask(proxy, "PUT", b"data")
    assert bool(came) == (fault in ("lost", "truncated"))
    assert proxy.injected == {fault: 1}


@pytest.mark.parametrize(("fault", "status"), [("503", 503), ("429", 429), ("expired", 403)])
def test_a_refusal_does_not_reach_the_store(upstream: Upstream, fault: str, status: int) -> None:
    proxy, came = upstream
    proxy.inject([Rule(fault)], seed=0)
    assert ask(proxy)[0] == status
    assert came == []


def test_the_condition_is_taken_away(upstream: Upstream) -> None:
    proxy, came = upstream
    proxy.inject([Rule("unconditional")], seed=0)
    ask(proxy, "PUT", b"data", If_None_Match="*")
    assert came == [("PUT", b"data", None)]


def test_a_rule_waits_and_ends(upstream: Upstream) -> None:
    proxy, _ = upstream
    proxy.inject([Rule("503", "^GET /bucket", skip=1, limit=1)], seed=0)
    assert [ask(proxy)[0] for _ in range(3)] == [200, 503, 200]


def test_a_trap_springs_before_or_after_the_store_has_it(upstream: Upstream) -> None:
    proxy, came = upstream
    seen: list[int] = []
    for when in ("before", "after"):
        proxy.inject([Rule(when, then=lambda: seen.append(len(came)))], seed=0)
        ask(proxy)
    assert seen == [0, 2]


def test_bursts_come_and_go() -> None:
    rule = Rule("503", bursts=True, spell=(float("inf"), True))
    assert rule.applies("GET /", random.Random(0))
    rule.spell = (float("inf"), False)
    assert not rule.applies("GET /", random.Random(0))


BOXES = {"a": [0.0, 0.0, 4.0, 4.0], "b": [1.0, 1.0, 5.0, 5.0]}


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A published table of one run with two prompts."""
    (tmp_path / "images").mkdir()
    prompts = [
        Prompt(prompt_id=name, image_id="x", image_uri="x.jpg", box_xyxy=(x0, y0, x1, y1))
        for name, (x0, y0, x1, y1) in BOXES.items()
    ]
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="weak.json",
            images_uri=str(tmp_path / "images"),
            output_uri=str(tmp_path / "table"),
            config=RunConfig(),
        ),
        ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32"),
    )
    assert manifest is not None
    for shard in manifest.shards:
        rows = [
            (prompt, RefinedMask(prompt_id=prompt.prompt_id, status="ok", route="accept"))
            for prompt in read_shard(shard.uri)
        ]
        write_part(manifest, shard, rows)
    publish(manifest)
    return manifest.output_uri


def test_a_right_table_passes(table: str) -> None:
    watch = Watch()
    watch.poll(table)
    assert (watch.polls, watch.violations) == (1, [])
    found = check_table(table, Night("", BOXES, 2, 1))
    assert (found.rows, found.duplicates, found.problems) == (2, 0, [])


def test_rows_that_appear_twice_are_noticed(table: str) -> None:
    (part,) = Path(table, "data").rglob("*.parquet")
    write_deltalake(table, pq.read_table(part), mode="append")
    watch = Watch()
    watch.poll(table)
    assert any("2 rows twice" in violation for violation in watch.violations)
    assert any(violation.startswith("views: ") for violation in watch.violations)
    assert check_table(table, Night("", BOXES, 2, 1)).duplicates == 2


def test_a_wrong_box_is_noticed(table: str) -> None:
    night = Night("", BOXES | {"b": [0.0, 0.0, 1.0, 1.0]}, 2, 1)
    assert check_table(table, night).problems == ["2 current rows are not the 2 prompts of the source"]


def test_a_table_that_cannot_be_read_is_noticed(table: str) -> None:
    (part,) = Path(table, "data").rglob("*.parquet")
    part.unlink()
    watch = Watch()
    watch.poll(table)
    assert watch.violations


def test_orphans_are_swept(table: str) -> None:
    (part,) = Path(table, "data").rglob("*.parquet")
    orphan = part.with_name("0123456789abcdef-0123456789abcdef0123456789abcdef.parquet")
    orphan.write_bytes(part.read_bytes())
    assert orphans(table) == {str(orphan.relative_to(table))}
    assert sweep(table) == []
    assert not orphan.exists()
    assert part.exists()
