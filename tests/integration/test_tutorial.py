"""docs/tutorial.md does what it says: its commands are run as they stand there."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.tutorial import DOCUMENT, FOLDER, ROOT, blocks, run
from flows import cli
from stable_sam.data.query import query
