"""Write the generated pages of `docs/reference`, or check that they are fresh.

    python docs/generate.py            write config.md and cli.md
    python docs/generate.py --check    change nothing; exit 1 where a page is stale

Both pages come from the code that acts: the schema of the settings and the command line itself. Neither needs torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import typer.main

from sonotune.cli import app
from sonotune.config.kinds import allowed
from sonotune.config.load import Setting, describe_settings, presets
from sonotune.config.schema import RunConfig
from sonotune.config.training import StageConfig

REFERENCE = Path(__file__).resolve().parent / "reference"
MADE_BY = "<!-- Made by `make docs` from the code. Do not edit: change the code and run it again. -->"
WIDTH = 100


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {"config.md": config_page(), "cli.md": cli_page()}


# --- settings ------------------------------------------------------------------------------------


def config_page() -> str:
    """Every setting by section, then every preset."""
    parts = [
        "# Settings",
        MADE_BY,
        "A command takes words: `group=preset` (`model=whisper_nano`), `section.setting=value` "
        "(`training.max_epochs=10`) and `config=FILE`, a YAML file of the same settings. Weakest first: the defaults "
        "below, a recipe, presets, the file, the words. `sonotune train WORDS --dump-config` prints what a line means. "
        "A file with that text, given as `config=FILE`, repeats the run.",
        "A wrong name, value or preset is an error with exit code 2. All of them are listed at once. A setting that "
        "cannot take effect under the others is an error too, where you set it yourself.",
        "The *config digest* covers the settings that can change the result. A run directory is resumed only by a line "
        "of the same digest, unless `run.allow_change` names every setting that differs.",
    ]
    rows: dict[str, list[Setting]] = {}
    for setting in describe_settings():
        rows.setdefault(setting.name.partition(".")[0], []).append(setting)
    for section, settings in rows.items():
        kind = RunConfig.model_fields[section].annotation
        parts += [f"## {section}", (getattr(kind, "__doc__", None) or "").strip(), _table(settings)]
        if section == "training":
            parts += ["### Settings of a stage", (StageConfig.__doc__ or "").strip(), _table(_stage_settings())]
    parts += [
        "## Presets",
        "A preset sets its own section; under `with` it may bring settings of other sections that suit it. A recipe "
        "may set any section.",
        _preset_table(),
    ]
    return "\n\n".join(parts) + "\n"


def _table(settings: Sequence[Setting]) -> str:
    lines = ["| setting | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for setting in settings:
        kind = "a list of [stages](#settings-of-a-stage)" if setting.name == "training.stages" else setting.type
        lines.append(f"| `{setting.name}` | {_cell(kind)} | `{setting.default}` | {_cell(setting.doc)} |")
    return "\n".join(lines)


def _stage_settings() -> list[Setting]:
    """Settings of one entry of `training.stages`."""
    return [
        Setting(
            name,
            allowed(field),
            "required" if field.is_required() else json.dumps(field.get_default()).strip('"'),
            field.description or "",
        )
        for name, field in StageConfig.model_fields.items()
    ]


def _preset_table() -> str:
    root = Path(str(resources.files("sonotune.config"))) / "presets"
    lines = ["| preset | what it is |", "| --- | --- |"]
    for group, names in presets().items():
        for name in names:
            lines.append(f"| `{group}={name}` | {_cell(_about(root / group / f'{name}.yaml'))} |")
    return "\n".join(lines)


def _about(path: Path) -> str:
    """The comment at the head of a preset, without its example."""
    words = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#   "):
            break
        words.append(line.removeprefix("#").strip())
    return " ".join(words)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- commands ------------------------------------------------------------------------------------


def cli_page() -> str:
    """The `--help` of every command."""
    parts = [
        "# Commands",
        MADE_BY,
        "`python -m sonotune` is `sonotune`, and `python train.py` is `sonotune train`. With `--json` a command prints "
        "one JSON object on stdout; everything else goes to stderr. Settings are described in "
        "[config.md](config.md), exit codes in the [README](../../README.md#exit-codes).",
    ]
    for path, text in help_texts():
        parts += [f"## {path}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def help_texts() -> Iterator[tuple[str, str]]:
    """Every command and group with its help, groups before their commands."""
    root: Any = typer.main.get_command(app)
    # The context's class comes from typer, which carries a click of its own.
    top = root.make_context("sonotune", ["--help"], resilient_parsing=True)
    yield from _helps(root, type(top), None, "sonotune")


def _helps(command: Any, context: Any, parent: Any, name: str) -> Iterator[tuple[str, str]]:
    here = context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    lines = command.get_help(here).splitlines()
    yield here.command_path, "\n".join(line.rstrip() for line in lines).strip("\n")
    for child, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, context, here, child)


# --- writing -------------------------------------------------------------------------------------


def stale(folder: Path = REFERENCE) -> list[str]:
    """Names of the pages in a folder that are missing or not what the code says."""
    return [
        name
        for name, text in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text("utf-8") != text
    ]


def main(arguments: Sequence[str] | None = None, folder: Path = REFERENCE) -> int:
    """Write or check the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page is stale")
    if parser.parse_args(arguments).check:
        old = stale(folder)
        if old:
            sys.stderr.write(f"{', '.join(old)} in {folder.name}/ no longer say what the code does. Run `make docs`.\n")
        return 1 if old else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")
        sys.stderr.write(f"wrote {folder.name}/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
