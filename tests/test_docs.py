"""The documentation can be followed: links lead somewhere, commands and options exist, examples are valid."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from ultra.cli import arguments
from ultra.cli.main import HELP, _verbs, run

ROOT = Path(__file__).parents[1]
RECORDS = ("docs/results", "docs/decisions")
"""Pages that say what was done at their time, with the options of that time."""
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PRESENT = [page for page in PAGES if not page.relative_to(ROOT).as_posix().startswith(RECORDS)]

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)", re.DOTALL)
_CODE = re.compile(r"^( {0,3})(```|~~~).*?^\1\2", re.DOTALL | re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_.-]*[a-z0-9]")
_COMMAND = re.compile(r"(?:^|`|\.venv/bin/| {4})ultra ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)", re.MULTILINE)
OTHERS = {
    *("--head", "--address"),  # ray
    *("--rounds", "--minutes", "--seeds", "--first-seed", "--workers", "--runs", "--models"),  # benchmarks
    *("--no-deps", "--strict", "--upgrade"),  # pip, mypy, make lock
    *("--config", "--traceback"),
}
"""Options of other programs, and those that `ultra` takes with every verb."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    return frozenset(slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE))


@cache
def options() -> frozenset[str]:
    """Every option of every verb, under all of its names."""
    import tyro

    found: set[str] = set()
    for kind in vars(arguments).values():
        if not isinstance(kind, type) or not kind.__name__.endswith("Arguments"):
            continue
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            tyro.cli(kind, args=["--help"])
        found |= set(_OPTION.findall(text.getvalue()))
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_commands_that_are_named_exist(page: Path) -> None:
    from ultra.cli.verbs import GROUPS

    unknown = []
    for words in _COMMAND.findall(page.read_text(encoding="utf-8")):
        verb, _, part = words.partition(" ")
        if verb not in _verbs() or (verb in GROUPS and part and part not in GROUPS[verb]):
            unknown.append(words)
    assert not unknown


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_options_that_are_named_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("names options that were removed")
    named = set(_OPTION.findall(page.read_text(encoding="utf-8")))
    groups = {option.partition(".")[0] for option in options() if "." in option}  # a page may name `--ppo.*`
    assert not named - options() - OTHERS - groups


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    listed = set(re.findall(r"^  ([a-z]+)", HELP, re.MULTILINE))
    assert listed == {verb for verb in _verbs() if not verb.startswith("-")} - {"help"}


def test_pages_that_messages_and_docstrings_name_exist() -> None:
    missing = {
        name
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8"))
        if not (ROOT / name).is_file()
    }
    assert not missing


def test_the_examples_of_programs_are_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "programs.md").read_text(encoding="utf-8")
    whole, controller = map(json.loads, re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    file = tmp_path / "mine.json"
    for value, task, count in ((whole, "hopper", 2), ({"programs": [controller]}, "Swimmer-v5", 1)):
        file.write_text(json.dumps(value))
        assert run(["programs", "check", str(file), "--task", task]) == 0
        assert capsys.readouterr().out.count(": ok") == count


def test_the_limits_that_are_named_hold() -> None:
    from ultra.programs import expression, records

    text = " ".join((ROOT / "docs" / "programs.md").read_text(encoding="utf-8").split())
    for limit in (
        f"{records.MAX_PARAMETERS} parameters, {records.MAX_RULES} rules, {records.MAX_LETS} lets, "
        f"{records.MAX_CLOCKS} clocks, {records.MAX_REGISTERS} registers",
        f"{expression.MAX_LENGTH} characters and {expression.MAX_DEPTH} levels",
        f"{records.MAX_INSTRUCTIONS:,} operations",
    ):
        assert limit in text
    for name in expression.RESERVED - {"if", "else"}:
        assert re.search(rf"\b{name}\b", text), name


def test_the_table_of_layers_is_the_one_that_lint_checks() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [name for name in layers if name != "__main__"]
