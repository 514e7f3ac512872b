"""The command line. Packages are imported inside commands, so `--help` costs nothing and knows no torch.

Results go to stdout (one JSON object with `--json`), everything else to stderr. Exit codes: 0 done, 1 a bug of ours, 2
the user's input, 3 a gate said STOP, 4 numeric failure, 5 out of memory or disk, 6 a checkpoint's integrity, 75
interrupted with the state saved, 128 and its number for a signal that stopped another command.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from sonotune.cli import (  # the commands register themselves
    ablate,
    allocate,
    audit,
    average,
    benchmark,
    calibrate,
    combine,
    compare,
    compose,
    data,
    data_correct,
    data_repair,
    data_split,
    distill,
    evaluate,
    export,
    inspect,
    listen,
    plan,
    quickstart,
    recognize,
    report,
    settings,
    sweep,
    train,
)
from sonotune.cli.shared import BrokenPipe, app, discard_stdout, emit, json_text, reader_gone, tell
from sonotune.errors import SonotuneError, first_line, out_of_memory
from sonotune.progress import printable_name, shown
from sonotune.signals import Stopped, stopping_at_once

__all__ = [
    "ablate",
    "allocate",
    "app",
    "audit",
    "average",
    "benchmark",
    "calibrate",
    "combine",
    "compare",
    "compose",
    "data",
    "data_correct",
    "data_repair",
    "data_split",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "listen",
    "main",
    "plan",
    "quickstart",
    "recognize",
    "report",
    "settings",
    "sweep",
    "train",
]


_LONGEST_PATH = 200  # of a message
_BY_SIGNAL = 128  # to which a shell adds the number of the signal


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = words if words not in ([], ["data"]) else [*words, "--help"]
    _set_up_logging()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an old encoding holds no Hebrew; no encoding halves
    try:
        with stopping_at_once(), shown(enabled=_is_watched(words)):
            code = app(words, prog_name="sonotune", standalone_mode=False)
    except SonotuneError as error:
        _fail(error.exit_code, _told(error), words)
    except Stopped as stop:
        _fail(_BY_SIGNAL + stop.number, "stopped.", words)
    except typer.Abort:
        _fail(_BY_SIGNAL + signal.SIGINT, "stopped.", words)
    except BrokenPipe as broken:
        if not reader_gone():
            raise broken.__cause__ or broken from None  # another pipe than that of the output
        discard_stdout()
        code = 0  # as of `sonotune --help | head`: the reader has seen enough
    except OSError as error:
        from sonotune.runs.files import DISK_FULL

        if error.filename is None and error.errno in DISK_FULL:
            discard_stdout()
            _fail(5, f"{error.strerror}, on a disk or where the output goes. Free some space, and try again.", words)
        if error.filename is None:
            raise  # it names no file of the user's

        logging.getLogger(__name__).info("what the system refused", exc_info=True)
        _fail(5 if error.errno in DISK_FULL else 2, f"{_printable(error.filename)}: {error.strerror}.", words)
    except Exception as error:
        if (usage := _usage_error(error)) is not None:
            _fail(2, usage, words)
        if out_of_memory(error):
            logging.getLogger(__name__).info("where memory ran out", exc_info=True)
            place = "device memory" if type(error).__name__ == "OutOfMemoryError" else "memory"
            advice = "Lower training.batch_seconds or evaluation.batch_seconds."
            _fail(5, f"out of {place} ({first_line(error)}). {advice}", words)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _is_watched(words: Sequence[str]) -> bool:
    """Whether somebody reads along: not where a program asked for JSON, and of several processes in the first."""
    asked, rank = os.environ.get("SONOTUNE_PROGRESS"), os.environ.get("RANK", "0")
    return "--json" not in words and asked != "never" and rank == "0"


def _fail(code: int, message: str, words: Sequence[str]) -> NoReturn:
    tell(f"sonotune: {message}")
    if "--json" in words:
        with suppress(SonotuneError):  # the code says it
            emit(json_text({"error": message, "exit_code": code}))
    sys.exit(code)


def _told(error: SonotuneError) -> str:
    """The message, and where the problems are that it does not show."""
    if error.listing:
        from sonotune.runs.files import write_listing

        with suppress(SonotuneError, OSError):  # the message says enough where nothing can be written
            write_listing(error)
    return error.told()


def _printable(path: str | bytes | int) -> str:
    text = os.fsdecode(path) if isinstance(path, str | bytes) else f"file {path}"
    return text if len(text) <= _LONGEST_PATH else f"{text[:_LONGEST_PATH]}... ({len(text)} characters)"


def _usage_error(error: Exception) -> str | None:
    """The message of a mistake on the command line, which typer raises as errors of the click it carries."""
    usage_error = typer.BadParameter.__mro__[1]
    if not isinstance(error, usage_error.__mro__[1]):
        return None
    shown: Any = error
    message: str = shown.format_message()
    context = getattr(error, "ctx", None)
    return f"{message} See `{context.command_path} --help`." if context is not None else message


class _Printable(logging.Formatter):
    """Log lines without codes that a terminal would obey; ours look as other messages of the command do."""

    def format(self, record: logging.LogRecord) -> str:
        ours = record.levelno >= logging.WARNING and record.name.partition(".")[0] == "sonotune"
        return printable_name(_OURS.format(record) if ours else super().format(record))


_OURS = logging.Formatter("sonotune: %(levelname)s: %(message)s")


def _set_up_logging() -> None:
    level = os.environ.get("SONOTUNE_LOG", "WARNING").upper()
    logging.basicConfig(level=level, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
    for noisy in ("httpx", "urllib3", "huggingface_hub", "transformers", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # Announcements of libraries about each other; ours go through the log.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _print_version(asked: bool) -> None:
    if asked:
        from sonotune import __version__

        emit(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass
