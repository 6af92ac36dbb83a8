"""The fault matrix: runs are broken in every way that is known, and every table must come out right.

    python -m tests.reliability [--seed N] [--cases driver,lost] [--stores local,emulator] [--scale X]
                                [--s3-endpoint URL] [--out FILE.json]

Prints its progress and a Markdown table. Exits with 1 when a row was lost, doubled or wrong, a reader saw part of a
version, or the sweeping of orphans took what lives or left one. Linux only; the full disk is a small file system in
memory, which root may mount. --s3-endpoint adds a real S3 store, with the credentials of the usual AWS variables.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from tests.reliability import stores
from tests.reliability.cases import UNDISTURBED, full_disk, kills, store_faults
from tests.reliability.matrix import Matrix, Result, Setting
from tests.reliability.prefect_server import prefect_server
from tests.reliability.stores import Store

ROOT = Path(__file__).parents[2]
HEADER = (
    "| fault | store | times injected | rows expected | rows found | duplicates "
    "| readers' violations | orphans swept | result |"
)
REFUSED = "refused"
"""Name of the case of a store without If-None-Match, which is no run that completes."""


def main() -> int:
    """Run what is asked for on each store; the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no server and no mount behind
    started = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - started:6.0f} s  {text}\n")
        sys.stdout.flush()

    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray listens on loopback only
    os.environ |= {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    folder = Path(tempfile.mkdtemp(prefix="stable-sam-reliability-"))
    say(f"seed {options.seed}; logs and local tables in {folder}")
    results: list[Result] = []
    try:
        with prefect_server(folder) if options.cases is None or "command" in options.cases else nullcontext():
            for place in _places(options, folder):
                with place as store, _ray(store) as (address, pid):
                    setting = Setting(
                        store=store,
                        folder=folder,
                        ray_address=address,
                        ray_pid=pid,
                        seed=options.seed,
                        time_limit_s=options.time_limit,
                        say=say,
                    )
                    for result in _run(setting, options):
                        results.append(result)
    finally:
        _report(results, options)  # of what was done, also when the next store does not start
    return int(any(result.problems for result in results))


def _run(setting: Setting, options: argparse.Namespace) -> Iterator[Result]:
    matrix = Matrix(setting)
    s3 = setting.store.proxy is not None
    cases = [UNDISTURBED, *kills(options.scale, s3=s3), *(store_faults() if s3 else full_disk())]
    for case in cases:
        if case is UNDISTURBED or options.cases is None or case.name in options.cases:
            setting.say(f"{setting.store.name}: {case.fault}")
            result = matrix.run(case)
            setting.say(f"{setting.store.name}: {case.fault}: {'; '.join(result.problems) or 'ok'}")
            yield result
    # Only the emulator takes a request that lost a signed header on its way.
    if setting.store.kind == "emulator" and (options.cases is None or REFUSED in options.cases):
        yield matrix.run_without_condition()


def _places(options: argparse.Namespace, folder: Path) -> Iterator[AbstractContextManager[Store]]:
    bucket = f"stable-sam-reliability-{uuid.uuid4().hex[:8]}"
    if "local" in options.stores:
        yield stores.local(folder / "local")
    if "emulator" in options.stores:
        yield stores.emulator(bucket)
    if options.s3_endpoint:
        yield stores.s3(options.s3_endpoint, bucket)


@contextmanager
def _ray(store: Store) -> Iterator[tuple[str, int]]:
    """Address and pid of a Ray whose actors reach the store as the drivers do: through the proxy."""
    command = [sys.executable, "-m", "tests.reliability.cluster"]
    for _attempt in range(3):  # Ray gives itself 30 s to start, which a busy machine may not manage
        with subprocess.Popen(
            command, env=os.environ | store.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as cluster:
            assert cluster.stdout is not None
            if address := cluster.stdout.readline().decode().strip():
                yield address, cluster.pid
                return
    raise SystemExit("Ray does not start on this machine")


def _report(results: Sequence[Result], options: argparse.Namespace) -> None:
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for r in results:
        counts = (r.injected, r.rows_expected, r.rows_found, r.duplicates, r.violations, r.swept)
        lines.append(f"| {r.fault} | {r.store} | {' | '.join(map(str, counts))} | {'; '.join(r.problems) or 'ok'} |")
    killed = sum(r.injected for r in results if "SIGKILL" in r.fault)
    outputs, polls = sum(r.outputs for r in results), sum(r.polls for r in results)
    lines += ["", f"Seed {options.seed}: {killed} kills; {outputs} tables, opened {polls} times by readers."]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"seed": options.seed, "scale": options.scale, "results": [asdict(r) for r in results]}
        options.out.write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _options() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of all moments and draws")
    parser.add_argument("--cases", type=names, help="only these, by their names in cases.py; all if not given")
    parser.add_argument("--stores", type=names, default=["local", "emulator"], help="local, emulator")
    parser.add_argument("--scale", type=float, default=1.0, help="kills, in proportion; 1 is more than 50")
    parser.add_argument("--s3-endpoint", help="a real S3 store, http://HOST:PORT; a new bucket is made there")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds that one start of a driver may take")
    parser.add_argument("--out", type=Path, help="JSON; the table goes beside it, as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
