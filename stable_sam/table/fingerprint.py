"""Computes in SQL the fingerprint by which a prompt counts as changed.

A fingerprint has 32 hex digits. The first 16 are the hash of the prompt as read, the others are the hash of its image's
version, or zeros when the image cannot be looked up. So two fingerprints show whether the prompt or the image changed.
Each hash is the beginning of an MD5 sum, a number of 64 bits in DuckDB.

The hash of a prompt is that of all fields of SHARD_SCHEMA. Of a prompt that the reader refused, neither the URI of the
image nor the version of the image counts, and of the error only its cause, so that the same bytes at another place give
the same fingerprint.

Fingerprints are stored in the tables of users: computing them in another way would make every prompt a changed one.
"""

from __future__ import annotations

import pyarrow as pa

from stable_sam.table.schema import PROMPTS_SCHEMA

NO_VERSION = "0::UBIGINT"
"""SQL of the image's hash when the image cannot be looked up."""


def hash_of(text: str) -> str:
    """Return SQL for the first 64 bits of the MD5 sum of the SQL expression `text`, as UBIGINT."""
    return f"('0x' || left(md5({text}), 16))::UBIGINT"


def hash_with(**values: str) -> str:
    """Return SQL of the hash of all fields of a prompt but `cause`, with SQL expressions in place of named columns.

    Texts follow their length, so that different rows never concatenate to the same text.
    """
    parts = []
    for field in PROMPTS_SCHEMA:
        value = values.get(field.name, field.name)
        text = f"strlen({value}) || ':' || {value}" if field.type == pa.string() else f"{value}::VARCHAR"
        if field.name != "cause":
            parts.append(f"coalesce({text}, '-')")
    return hash_of(f"concat_ws('|', {', '.join(parts)})")


PROMPT_HASH = (
    f"CASE WHEN error IS NULL THEN {hash_with()} "
    f"ELSE {hash_with(image_uri='NULL::VARCHAR', error='coalesce(cause, error)')} END"
)
"""SQL of a prompt's hash, from the columns of PROMPTS_SCHEMA."""

FORMER_HASH = f"CASE WHEN error IS NOT NULL THEN {hash_with()} END"
"""SQL of the hash that versions before 0.3.0 gave a prompt that the reader refused; null for every other prompt."""

FINGERPRINT = "printf('%016x%016x', prompt_hash, image_hash)"
"""SQL of the column `fingerprint`, from the columns prompt_hash and image_hash."""

STORED_PROMPT_HASH = "try_cast('0x' || left(fingerprint, 16) AS UBIGINT)"
"""SQL of the prompt's hash in a stored fingerprint; null for a row without fingerprint."""

STORED_IMAGE_HASH = "try_cast('0x' || right(fingerprint, 16) AS UBIGINT)"
"""SQL of the image's hash in a stored fingerprint; null for a row without fingerprint."""

DIGEST = "coalesce(bit_xor(md5_number(prompt_hash || '-' || image_hash)), 0)::VARCHAR"
"""SQL of an aggregate: one number for a set of prompts, whatever their order."""
