"""What the pages name exists: links and their headings, files, commands and their options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from flows.cli import app

ROOT = Path(__file__).parents[2]
FOLDERS = "benchmarks", "configs", "deployments", "docs", "flows", "stable_sam", "tasks", "tests"
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("stable_sam/**/*.md")]
)
FILES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
OTHER_PEOPLES_FILES = {"ops/roi_align.py"}  # torchvision's
COMMANDS = typer.main.get_command(app)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@every_page
def test_every_relative_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s#]*)#?([^)\s]*)\)", page.read_text())

    assert [f"{path}#{heading}" for path, heading in links if not _is_there(page, path, heading)] == []


@every_page
def test_every_file_that_is_named_is_in_the_repository(page: Path) -> None:
    pattern = r"(?<![\w./*>-])(?:[\w-]+/)*\w+\.py\b|\b(?:configs|deployments)/[\w/-]+\.\w+"
    named = set(re.findall(pattern, page.read_text())) - OTHER_PEOPLES_FILES

    assert [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in FILES)] == []


@every_page
def test_every_command_has_the_options_that_are_given_to_it(page: Path) -> None:
    unknown = [
        f"{words}: {option}"
        for words, options, known in [*_commands(page), *_benchmarks(page)]
        for option in options
        if option not in known
    ]

    assert unknown == []


@every_page
def test_every_target_of_make_exists(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert set(re.findall(r"(?:^    |`|&& )make ([a-z][\w-]*)", page.read_text(), re.MULTILINE)) - set(targets) == set()


def test_the_examples_of_style_are_code_of_this_repository() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    code = {
        _unindented(path.read_text())
        for folder in ("flows", "stable_sam", "tasks")
        for path in (ROOT / folder).rglob("*.py")
    }

    assert [example for example in examples if not any(_unindented(example) in text for text in code)] == []


def _unindented(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines()) + "\n"


def _is_there(page: Path, path: str, heading: str) -> bool:
    target = page.parent / path if path else page
    if not target.exists() or not heading:
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
    return heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _commands(page: Path) -> Iterator[tuple[str, list[str], set[str]]]:
    """For every call of `stable-sam` in a page: its words, its options, and those that the command has."""
    for call in re.findall(r"(?:^ *|`|\$ |/bin/)stable-sam ([a-z][^`#\n]*)", _text(page), re.MULTILINE):
        command, words = COMMANDS, call.split()
        while command is not None and hasattr(command, "commands") and words:
            command = command.commands.get(words.pop(0))
        parameters = [] if command is None else command.params
        known = {"--help", *(name for one in parameters for name in (*one.opts, *one.secondary_opts))}
        yield call, ["no such command"] if command is None else _options(words), known


def _benchmarks(page: Path) -> Iterator[tuple[str, list[str], set[str]]]:
    for module, rest in re.findall(r"\bpython (?:-m )?(benchmarks[./]\w+)(?:\.py)?([^`#\n]*)", _text(page)):
        sources = [ROOT / f"{module.replace('.', '/')}.py", ROOT / "benchmarks/timing.py"]
        known = {name for source in sources for name in re.findall(r'"(--[a-z0-9-]+)"', source.read_text())}
        yield module, _options(rest.split()), known


def _options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


def _text(page: Path) -> str:
    """A page whose commands stand on one line each."""
    return re.sub(r"\\\n\s*", " ", page.read_text())
