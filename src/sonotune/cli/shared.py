"""What the commands share: the application, types of options, and how a result is printed."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from sonotune.errors import ConfigError, ResourceError, SonotuneError
from sonotune.progress import BIDI_CONTROLS, hide, printable, printable_name
from sonotune.signals import Stopped

ORDER = (
    *("quickstart", "data", "audit", "settings", "inspect", "plan", "train", "evaluate", "calibrate"),
    *("benchmark", "compare", "report", "listen", "preference", "export", "transcribe", "classify", "allocate"),
    *("average", "combine", "sweep", "ablate", "distill", "prune", "compose"),
)
"""Commands as they are met in the work."""
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class BrokenPipe(Exception):  # noqa: N818  (what it is caused by is the error)
    """A `BrokenPipeError` on its way past typer, which would end the program with 1 and no word."""


@contextmanager
def _past_typer() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise BrokenPipe from error
    except KeyboardInterrupt as error:  # for which typer ends the program without a word
        raise Stopped(signal.SIGINT) from error


class _Commands(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def make_context(self, *args: Any, **given: Any) -> Any:
        with _past_typer():  # help is printed here
            return super().make_context(*args, **given)

    def invoke(self, ctx: Any) -> Any:
        with _past_typer():
            return super().invoke(ctx)


app = typer.Typer(
    name="sonotune",
    cls=_Commands,
    context_settings=HELP_OPTIONS,
    help="Fine-tune pretrained audio models on modest hardware.",
    epilog="Settings are words: model=whisper_nano data.train=train.jsonl training.max_epochs=5. "
    "`sonotune settings` lists them, and `sonotune settings learning_rate` those about something.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings, presets, config=FILE.")
]
Files = Annotated[list[str], typer.Argument(metavar="[SETTING=VALUE]... FILE|FOLDER...", help="A model and audio.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def print_result(result: Mapping[str, Any], *, as_json: bool, lines: Sequence[str], transcripts: bool = False) -> None:
    """One JSON object, or the lines, on stdout; see `emit`.

    Args:
        result: The object.
        as_json: Whether it is printed.
        lines: What a person reads.
        transcripts: Whether the lines have transcripts, in which controls of direction are left as they are.
    """
    hide()
    text = "\n".join(lines)
    emit(json_text(result) if as_json else printable(text) if transcripts else printable_name(text))


def check_page(out: Path | None, *, instead: str) -> None:
    """Refuse a page that cannot be written there, before anything is computed.

    Args:
        out: Where it is to be written; None writes none.
        instead: File name to suggest in a folder.

    Raises:
        ConfigError: It is no page by its name, or `check_output` refuses it.
    """
    if out is not None and not out.is_dir() and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out} is no page by its name, and may be a file of yours. Name it such as {instead}.")
    check_output(out, instead=instead, is_ours=_is_page)


def check_output(out: Path | None, *, instead: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse a file that cannot be written there, or would replace another, before anything is computed.

    Args:
        out: Where it is to be written; None writes none.
        instead: File name to suggest in a folder.
        is_ours: Whether a file is an earlier one of the same kind, which may be replaced.

    Raises:
        ConfigError: It is a folder, lies in none or in one that cannot be written to, is a file of a run, or is there
            and of another kind.
    """
    if out is None:
        return
    if out.is_dir():
        raise ConfigError(f"{out} is a folder. Name the file to write, such as --out {out / instead}.")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{out} cannot be written: there is no folder {out.parent}. Make it, or name another.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{out} cannot be written: {folder} is not to be written to. Name another with --out.")
    if not out.is_file():
        return
    if any((one / "run.json").is_file() for one in (folder, folder.parent)):
        raise ConfigError(f"{out} is a file of a run, which would lose it. Name another with --out.")
    if out.stat().st_size and not is_ours(out):
        raise ConfigError(f"{out} is another kind of file, and would be lost. Move it, or name another with --out.")


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return b"sonotune</title>" in file.read(10_000)


def json_text(value: Any) -> str:
    """JSON in one line, with what is no text in UTF-8, or what a terminal would obey, as JSON escapes it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_NOT_IN_JSON = re.compile(f"[\x7f-\x9f\ud800-\udfff{BIDI_CONTROLS}]")


def emit(text: str, end: str = "\n") -> None:
    """Write a result to stdout, where alone results go. A reader that has seen enough, such as `head`, is no failure.

    Raises:
        ResourceError: The disk that stdout goes to is full.
        SonotuneError: It cannot be written for another reason.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        discard_stdout()
        raise unwritten(error) from error


def unwritten(error: OSError) -> SonotuneError:
    """What is said where stdout takes no result."""
    from sonotune.runs.files import DISK_FULL

    kind = ResourceError if error.errno in DISK_FULL else SonotuneError
    return kind(
        f"the result could not be written to standard output: {error.strerror}. Files that the command wrote are kept. "
        "Send the output to another place; a finished run is not trained again by the same line."
    )


def one_field(text: str | None) -> str:
    """A text as one field of a line with tabs between fields: line ends and tabs in it are escaped."""
    return str(text).replace("\n", "\\n").replace("\t", "\\t")


def tell(text: str, *, stdout: bool = False) -> None:
    """A line beside the result, on stderr unless it is asked for on stdout; what nobody can read is lost."""
    with suppress(OSError, ValueError):
        print(printable_name(text), file=sys.stdout if stdout else sys.stderr, flush=True)


def discard_stdout() -> None:
    """Let the interpreter's last flush succeed, which would fail once more."""
    with suppress(OSError, ValueError):  # ValueError: a stream of a test, which is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def reader_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in watched.poll(0))
    except (OSError, ValueError, AttributeError):
        return False
