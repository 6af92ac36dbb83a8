"""Create or update the automations of deployments/automations.yaml on a Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from stable_sam.errors import ConfigError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

NOTIFY = "$NOTIFY"
"""Placeholder in the file for the id of the notification block."""


def apply_automations(path: Path, notify: str | None) -> list[str]:
    """Create the automations of the file `path` on the configured Prefect server, or update those of the same names.

    notify: notification block of the server as `type/name`, such as `slack-webhook/oncall`; None leaves out the
    automations that notify. An automation that was paused stays paused. Returns the names of the automations.
    Raises `ConfigError` for a file that cannot be read and for an unknown notification block.
    """
    from prefect.client.orchestration import get_client

    raw = _read(path)
    with get_client(sync_client=True) as client:
        if notify is None:
            raw = [entry for entry in raw if NOTIFY not in str(entry)]
        else:
            raw = _replaced(raw, _block_id(client, notify))
        automations = [_validated(entry, path) for entry in raw]
        for automation in automations:
            _put(client, automation)
    return [automation.name for automation in automations]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read automations: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    entries = content.get("automations") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: expected a list of mappings under `automations`")
    return entries


def _validated(entry: dict[str, Any], path: Path) -> AutomationCore:
    from prefect.events.schemas.automations import AutomationCore

    try:
        return AutomationCore.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: automation {entry.get('name')!r}: {where}: {first['msg']}") from None


def _block_id(client: SyncPrefectClient, notify: str) -> str:
    from prefect.exceptions import ObjectNotFound

    kind, _, name = notify.partition("/")
    try:
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound:
        raise ConfigError(
            f"{notify}: expected the type and name of a notification block on the Prefect server, such as "
            "slack-webhook/oncall, found none; `prefect block ls` lists them"
        ) from None


def _replaced(value: Any, block_id: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(part, block_id) for key, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, block_id) for part in value]
    return block_id if value == NOTIFY else value


def _put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    existing = client.read_automations_by_name(automation.name)
    if not existing:
        client.create_automation(automation)
        return
    automation.enabled = existing[0].enabled
    client.update_automation(existing[0].id, automation)
