"""A random sample of a table that stays the same: the prompts whose hash is small.

Who exports it, and who later asks whether it was reviewed, mean the same prompts without keeping a list of them.
"""

from __future__ import annotations

from stable_sam.errors import ConfigError


def in_sample(part: float) -> str:
    """SQL condition on `prompt_id` that is true of a `part` (0, 1] of all prompts; a larger part holds a smaller one.

    Raises `ConfigError` for another part.
    """
    if not 0 < part <= 1:
        raise ConfigError(f"sample: expected a part above 0 and up to 1, such as 0.05, got {part:g}")
    return "true" if part == 1 else f"substr(md5(prompt_id), 1, 8) < '{int(part * 2**32):08x}'"
