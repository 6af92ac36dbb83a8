"""Coverage-guided fuzzing of everything that reads files of strangers, by hand: it needs `atheris`.

    PYTHONPATH=. python tests/fuzz/fuzz_readers.py [options of libFuzzer, such as -max_total_time=600] [corpus folder]

Whatever the bytes: prompts, answers, pixels or a calibration, or one line; both ways of reading agree; no image outside
the folder is named; and nothing takes longer than libFuzzer's -timeout. A finding becomes an ordinary test.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris
from pycocotools import mask as coco_mask

INSTRUMENTED = [
    f"stable_sam.{name}" for name in ("calibration", "config_section", "data", "formats", "prompt_check", "errors")
]

with atheris.instrument_imports(include=INSTRUMENTED):
    from stable_sam.config import SourceConfig
    from stable_sam.config.calibration import Calibration
    from stable_sam.errors import StableSamError
    from stable_sam.formats import review_records
    from stable_sam.formats.export_records import SENT
    from stable_sam.formats.read import read_prompt_batches, read_prompts
    from stable_sam.formats.registry import REVIEW_READERS
    from stable_sam.formats.review_files import open_files
    from stable_sam.formats.review_records import collect
    from stable_sam.images.decode import decode_for_input
    from stable_sam.table.schema import prompt_from_row
    from tests.fuzz import seeds

ROOT = Path(tempfile.mkdtemp(prefix="stable-sam-fuzz-"))
IMAGES = ROOT / "images"
EXPORTS = ROOT / "exports"
SCORES = {"prompt_stability": 0.5, "predicted_iou": None}
NAMES = {b"c": "x", b"p": "x", b"t": "a.txt", b"o": "boxes.csv"}
"""What a file of annotations is called, by its kind."""


def fuzz(data: bytes) -> None:
    """The first byte says what the others are: see `seeds`."""
    kind, content = data[:1], data[1:]
    try:
        if kind == b"i":
            whole, reduced = (
                decode_for_input(content, name="x", max_pixels=1_000_000, side=side) for side in (None, 4)
            )
            assert (*whole.original_hw, 3) == whole.pixels.shape
            assert whole.original_hw == reduced.original_hw
        elif kind == b"k":
            assert 0 <= Calibration.from_json(content, "x").quality(SCORES) <= 1
        elif kind == b"r":
            _review(content[:1], content[1:2], content[2:])
        elif kind == b"n":
            _read({"a.txt": seeds.YOLO, "data.yaml": content}, "a.txt")
        else:
            name = NAMES.get(kind, "x")
            _read({name: content}, name, keypoints=kind == b"p")
    except StableSamError as error:
        if not str(error).isprintable() or len(str(error)) > 3000:
            raise AssertionError("a message that is not one line") from error


def _read(files: dict[str, bytes], name: str, **settings: Any) -> None:
    folder = ROOT / "annotations"
    for path in folder.iterdir():
        path.unlink()
    for each, content in files.items():
        (folder / each).write_bytes(content)
    where: dict[str, Any] = {"images_uri": str(IMAGES), "source": SourceConfig(**settings)}
    prompts = list(read_prompts(str(folder / name), **where))
    rows = [row for batch in read_prompt_batches(str(folder / name), **where) for row in batch.to_pylist()]
    assert [repr(prompt_from_row(row)) for row in rows] == [repr(prompt) for prompt in prompts]
    for prompt in prompts:
        assert prompt.image_uri in ("", f"{IMAGES}/a.jpg")
        assert prompt.image_uri or prompt.error
        assert (prompt.error or "").isprintable()


def _review(form: bytes, part: bytes, content: bytes) -> None:
    """What came back of an export, where the tool's file (`part` f) or the list of what was sent is another."""
    name = seeds.FORMS.get(form, "coco")
    folder, files = EXPORTS / name, dict(seeds.EXPORTED[name])
    files[next(path for path in files if path != SENT) if part == b"f" else SENT] = content
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    answers, _ = collect(REVIEW_READERS[name](open_files(str(folder))))
    for answer in answers:
        answer.prompt_id.encode()
        assert answer.revision is None or 0 <= answer.revision < 2**63
        if answer.mask is not None:
            mask = {"size": list(answer.mask.size_hw), "counts": answer.mask.counts}
            assert coco_mask.decode(mask).sum() == answer.mask.area > 0


def main() -> None:
    """Write the seeds and the words in them, and hand over to libFuzzer."""
    review_records.MAX_PIXELS = 10_000  # as large as may be is tested elsewhere
    for folder in (IMAGES, ROOT / "annotations", ROOT / "seeds"):
        folder.mkdir()
    (IMAGES / "a.jpg").write_bytes(seeds.picture("JPEG"))
    given = seeds.seeds()
    for name, data in given.items():
        (ROOT / "seeds" / name).write_bytes(data)
    words = {word for data in given.values() for word in re.findall(rb"[A-Za-z_]{3,20}", data)}
    (ROOT / "words").write_text("".join(f'"{word.decode()}"\n' for word in sorted(words)))
    atheris.Setup([sys.argv[0], f"-dict={ROOT / 'words'}", *sys.argv[1:], str(ROOT / "seeds")], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
