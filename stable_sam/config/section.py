"""The base class of every config that a YAML file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stable_sam.errors import ConfigError, one_line


class Section(BaseModel):
    """Base of all config classes: frozen, and a `ConfigError` for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file; raises a `ConfigError` that names the file, the key, what was expected and what came."""
        try:
            raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid YAML: {one_line(error)}") from None
        if raw is not None and not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(raw).__name__}")
        return cls.from_dict(raw or {}, source=str(path))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, source: str = "config") -> Self:
        """Validate a plain dict; raises a `ConfigError` that names all problems in one line."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in e['loc']) or 'top level'}: "
                f"{'unknown key' if e['type'] == 'extra_forbidden' else e['msg']}, got {e['input']!r:.60}"
                for e in error.errors()
            )
            raise ConfigError(f"{source}: {problems}") from None
