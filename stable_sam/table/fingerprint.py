"""What "changed" means: a fingerprint of each prompt, computed in SQL.

32 hex digits: 16 of the prompt as read (all fields of PROMPTS_SCHEMA), then 16 of its image's version (zeros when the
image cannot be looked up), so that two fingerprints tell which of the two is another. Each is the beginning of an MD5
sum, a number of 64 bits inside DuckDB. They are stored in the tables of users: another way to write them makes every
prompt of every table a changed one.
"""

from __future__ import annotations

import pyarrow as pa

from stable_sam.table.schema import PROMPTS_SCHEMA

NO_VERSION = "0::UBIGINT"
"""SQL: the image half of a prompt whose image cannot be looked up."""


def _text(field: pa.Field) -> str:
    """SQL: a value as text; texts go behind their length, so that no two rows run together to the same whole."""
    if field.type == pa.string():
        return f"coalesce(strlen({field.name}) || ':' || {field.name}, '-')"
    return f"coalesce({field.name}::VARCHAR, '-')"


def hash_of(text: str) -> str:
    """SQL: the first 64 bits of the MD5 sum of a text, as UBIGINT."""
    return f"('0x' || left(md5({text}), 16))::UBIGINT"


PROMPT_HASH = hash_of(f"concat_ws('|', {', '.join(_text(field) for field in PROMPTS_SCHEMA)})")
"""SQL: the prompt half, of the columns of PROMPTS_SCHEMA."""

FINGERPRINT = "printf('%016x%016x', prompt_hash, image_hash)"
"""SQL: the column `fingerprint`, of its two halves."""

STORED_PROMPT_HASH = "try_cast('0x' || left(fingerprint, 16) AS UBIGINT)"
"""SQL: the prompt half of a stored fingerprint, null where there is none."""

STORED_IMAGE_HASH = "try_cast('0x' || right(fingerprint, 16) AS UBIGINT)"
"""SQL: the image half of a stored fingerprint, null where there is none."""

DIGEST = "coalesce(bit_xor(md5_number(prompt_hash || '-' || image_hash)), 0)::VARCHAR"
"""SQL, aggregate: one number for a set of prompts in any order."""
