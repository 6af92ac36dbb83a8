"""Prefect's server: asked for before a flow starts, because a flow that meets none ends in pages of traceback."""

from __future__ import annotations

from stable_sam.errors import StableSamError, one_line


def check_prefect_api() -> None:
    """Raise `StableSamError` naming the URL when the configured server does not answer.

    Without a configured server a temporary one starts, which the flow then uses.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:  # a plain RuntimeError is what Prefect raises when its temporary server fails
        problem = error
    if problem is None:
        return
    if url is None:
        raise StableSamError(
            f"no temporary Prefect server starts on this machine (too busy?), and PREFECT_API_URL names no other: "
            f"{one_line(problem)[:300]}"
        )
    raise StableSamError(
        f"{url}: expected a Prefect server there (PREFECT_API_URL), got: {one_line(problem)[:300]}; "
        "start it, or unset PREFECT_API_URL to use a temporary one"
    )
