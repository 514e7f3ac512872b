"""The pages say what is so: commands parse, links lead somewhere, names exist, generated pages are fresh."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

import sonotune
from sonotune.cli import app
from sonotune.cli.ensemble import named_members
from sonotune.config.load import load_run_config, presets
from sonotune.errors import ConfigError
from sonotune.registry import TABLES
from sonotune.sweeps.sweep_plan import plan_sweep

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
    ]
)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
USAGE_ERROR: Any = typer.BadParameter.__base__  # typer carries a click of its own
INLINE = re.compile(r"`([^`\n]+)`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


# --- commands ------------------------------------------------------------------------------------


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of `bash` blocks, continuations joined, and code in the text that is a command."""
    text = page.read_text("utf-8")
    for language, block in FENCE.findall(text):
        if language == "bash":
            yield from block.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(FENCE.sub("", text))


def words_of(line: str) -> list[str]:
    """The words after `sonotune` (or `python train.py`, which is `sonotune train`); empty for another line."""
    if not re.match(r"\s*(\w+=\S+ )*(sonotune|python train\.py)\s+\S", line):
        return []
    words = shlex.split(line, comments=True)
    while "=" in words[0]:
        words.pop(0)
    for mark in (">", "|"):
        words = words[: words.index(mark)] if mark in words else words
    return words[1:] if words[0] == "sonotune" else ["train", *words[2:]]


def all_commands() -> list[tuple[str, str]]:
    """Page and line of every command of ours, once each."""
    lines = {(name_of(page), line) for page in PAGES for line in shell_lines(page)}
    return sorted({(page, shlex.join(words)) for page, line in lines if (words := words_of(line))})


COMMANDS = all_commands()


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words left for it."""
    command = typer.main.get_command(app)
    rest = list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


def make_what_is_named(words: list[str]) -> None:
    """Make the run directories and settings files that a line takes as given."""
    for word in words:
        key, _, value = word.partition("=")
        for place in value.strip("[]").split(","):
            if key == "model" and place not in presets()["model"] and "/" in place:
                Path(place).mkdir(parents=True, exist_ok=True)
        if key == "config":
            done = CliRunner().invoke(app, ["train", "model=whisper_nano", "data=fsdd", "--dump-config"])
            Path(value).write_text(done.output, "utf-8")


def test_there_are_commands_in_the_pages():
    """Guards the patterns above: were they to match nothing, every test below would pass."""
    found = {words.split()[0] for _, words in COMMANDS}
    assert found >= {"train", "evaluate", "transcribe", "export", "report", "data"}
    assert ("README.md", "train model=whisper_nano data=fsdd training.max_epochs=10") in COMMANDS


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_in_the_pages_is_understood(page: str, line: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    command, rest = command_of(words)
    if not rest or rest == ["--help"]:  # only named
        assert command is not typer.main.get_command(app), f"{page}: there is no command {words[0]}"
        return
    assert not hasattr(command, "commands"), f"{page}: there is no command {line!r}"
    make_what_is_named(rest)
    if "WORDS" in rest:
        rest = ["model=whisper_nano", "data=fsdd"]
    if words[0] == "train":
        done = CliRunner().invoke(app, ["train", *(word for word in rest if word != "--dump-config"), "--dump-config"])
        assert done.exit_code == 0, f"{page}: {done.exception}"
        return
    if words[0] == "sweep":
        done = CliRunner().invoke(app, ["sweep", *rest, "--dry-run"])
        assert done.exit_code == 0, f"{page}: {done.exception}"
        return
    command.make_context(words[0], list(rest))  # raises for an unknown option or a missing argument
    if words[0] in {"evaluate", "transcribe"}:
        require = ("data.test",) if words[0] == "evaluate" else ()
        settings = [word for word in rest if "=" in word]
        if named_members(settings, require=require) is None:
            load_run_config(settings, require=require)


@pytest.mark.parametrize(
    "line",
    [
        "train model=whisper_nano data=fsdd training.max_epoch=1",
        "train model=whisper_nona data=fsdd",
        "export a b --nope",
        "data split",
        "evaluate model=whisper_nano",
        "forecast",
    ],
)
def test_a_line_that_is_wrong_would_be_seen(line: str, tmp_path: Path, monkeypatch):
    with pytest.raises((AssertionError, ConfigError, USAGE_ERROR)):
        test_every_command_in_the_pages_is_understood("here", line + " --json", tmp_path, monkeypatch)


def settings_in_prose() -> list[tuple[str, str]]:
    """Every `section.setting=value` in the pages, alone or several in one piece of code."""
    pattern = re.compile(r"^[a-z]+\.[a-z_]+=\S+$")
    return sorted(
        {
            (name_of(page), word)
            for page in PAGES
            for code in INLINE.findall(prose(page))
            for word in code.split()
            if pattern.match(word) and not words_of(code) and word != "section.setting=value"
        }
    )


@pytest.mark.parametrize(("page", "word"), settings_in_prose())
def test_every_setting_in_the_pages_exists_and_takes_that_value(page: str, word: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"model": "model=whisper_nano", "data.train": "data.train=x.jsonl"}
    if word.startswith("model.checkpoint="):
        words.pop("model")
    words.pop(word.partition("=")[0], None)
    if page == "docs/how-to/sweep-settings.md":
        if word == "sweep.method=optuna":
            pytest.importorskip("optuna")
        plan_sweep([*words.values(), "data.eval=y.jsonl", "training.schedule=linear,cosine", word])
        return
    load_run_config([*words.values(), word])


def test_every_preset_in_the_pages_exists():
    groups = presets()
    named = [
        (name_of(page), group, preset)
        for page in PAGES
        for group, preset in re.findall(
            rf"(?<![\w.])({'|'.join(groups)})=([a-z]\w*)(?![\w/:.])", page.read_text("utf-8")
        )
    ]
    assert len(named) > 10
    assert [row for row in named if row[2] not in groups[row[1]]] == []


def test_every_make_target_in_the_pages_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {target for page in PAGES for line in shell_lines(page) for target in re.findall(r"^make ([a-z-]+)", line)}
    assert named >= {"quickstart", "test"}
    assert named <= targets


def test_the_readme_begins_with_the_two_commands_and_ci_runs_nothing_else():
    first = next(
        block for language, block in FENCE.findall((ROOT / "README.md").read_text("utf-8")) if language == "bash"
    )
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make quickstart", "make test"]
    assert re.findall(r"^make \w+", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE) == ["make test"]


# --- links and names -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that headings of a page give."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    broken = []
    for link in links:
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_of_the_docs_is_reached_from_the_index():
    reached, todo = set(), [ROOT / "docs" / "index.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)[^)]*\)", prose(page))
        todo += [
            target for link in links if "://" not in link and (target := (page.parent / link).resolve()) not in reached
        ]
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} <= reached


@functools.cache
def defined(module: Path) -> dict[str, ast.AST]:
    """Names that a module defines, with the members of its classes as `Class.member`."""
    found: dict[str, ast.AST] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[prefix + node.name] = node
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        found[prefix + target.id] = node

    add(ast.parse(module.read_text("utf-8")).body, "")
    return found


def exists(dotted: str) -> bool:
    """Whether `sonotune.a.b.C.d` names a module or something one defines."""
    parts = dotted.split(".")
    place = ROOT / "src"
    for index, part in enumerate(parts):
        place /= part
        module = place.with_suffix(".py")
        if module.is_file():
            rest = ".".join(parts[index + 1 :])
            return not rest or rest in defined(module)
        if not place.is_dir():
            return False
    return True


def test_every_name_of_the_code_in_the_pages_exists():
    named = {
        (name_of(page), dotted)
        for page in PAGES
        for code in INLINE.findall(prose(page))
        for dotted in re.findall(r"^sonotune(?:\.\w+)+", code)
    }
    assert len(named) > 40
    kinds = {*(f"sonotune.{kind}" for kind in TABLES), *(f"sonotune.{name}" for name in sonotune.__all__)}
    named = {row for row in named if row[1] not in kinds and row[1] != "sonotune.json"}
    assert sorted(row for row in named if not exists(row[1])) == []
    assert not exists("sonotune.audio.io.nothing")


def test_every_file_of_the_project_in_the_pages_exists():
    named = {
        (name_of(page), code)
        for page in PAGES
        for code in INLINE.findall(prose(page))
        if re.fullmatch(r"(src|tests|docs|recipes)/[\w./-]+", code) and "NAME" not in code and "PRESET" not in code
    }
    assert len(named) > 10
    assert sorted(row for row in named if not (ROOT / row[1]).exists()) == []


def test_every_fault_has_a_test_that_exists_or_says_that_there_is_nothing_to_break():
    rows = re.findall(
        r"^\| (\d+) \|(.*)\|([^|]*)\|$", (ROOT / "docs/reference/faults.md").read_text("utf-8"), re.MULTILINE
    )
    assert [int(number) for number, _, _ in rows] == list(range(1, 51))
    lost = []
    for number, said, cell in rows:
        tests = INLINE.findall(cell)
        assert tests or re.search(r"there is no|no command", said), f"row {number} has no test"
        for test in tests:
            file, _, name = test.partition("::")
            path = ROOT / "tests" / file
            if not (path.is_file() and re.search(rf"^def {name}\(", path.read_text("utf-8"), re.MULTILINE)):
                lost.append((number, test))
    assert lost == []


def test_no_page_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.~/])/(?:home|root|work|tmp|mnt|Users|opt|srv|data|content)/", re.IGNORECASE)
    assert place.search("see /home/x")
    found = [(name_of(page), match[0]) for page in PAGES for match in place.finditer(page.read_text("utf-8"))]
    assert found == []


def test_nothing_is_left_to_fill_in():
    left = [(name_of(page), text) for page in PAGES for text in re.findall(r"<<FILL:[^>]*>>", page.read_text("utf-8"))]
    assert left == []


# --- generated pages -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sonotune_docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_fresh(generate: ModuleType):
    assert generate.stale() == [], "run `make docs`"


def test_the_check_sees_a_stale_and_a_missing_page(generate: ModuleType, tmp_path: Path, capsys):
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    page = tmp_path / "config.md"
    page.write_text(page.read_text("utf-8").replace("`training.seed`", "`training.sead`"), "utf-8")
    (tmp_path / "cli.md").unlink()
    before = page.read_text("utf-8")
    assert generate.main(["--check"], tmp_path) == 1
    assert "cli.md" in (said := capsys.readouterr().err)
    assert "config.md" in said
    assert page.read_text("utf-8") == before


def test_the_reference_has_every_setting_preset_and_command(generate: ModuleType):
    text = generate.config_page()
    assert all(f"`{setting.name}`" in text for setting in generate.describe_settings())
    assert all(f"`{group}={name}`" in text for group, names in presets().items() for name in names)
    assert {path for path, _ in generate.help_texts()} >= {"sonotune", "sonotune train", "sonotune data synth"}


def test_the_pages_do_not_depend_on_the_width_of_the_terminal(generate: ModuleType, monkeypatch):
    before = generate.pages()
    monkeypatch.setenv("COLUMNS", "47")
    assert generate.pages() == before
