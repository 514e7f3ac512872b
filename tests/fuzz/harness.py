"""What a case of the fuzzer is, and how one is run: files in a folder, a reader of the tool, and three limits.

A case is a function of (target, seed, index) alone. It is written into an empty folder and read as a command would read
it. Allowed ends are a result or an error of the tool (`SonotuneError`); any other exception, more than `MAX_SECONDS` or
more than `MAX_BYTES` of memory is a fault.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from sonotune.errors import SonotuneError

MAX_SECONDS: Final = 10.0
"""Of the processor; see `worker.WAITING`."""
MAX_BYTES: Final = 2**30
"""Of the whole process at its largest, libraries included."""
MAX_MESSAGE: Final = 20_000
"""Characters of an error message: twenty problems, each cut to what a person can read."""


class Odd(Enum):
    """What stands in place of a file."""

    FOLDER = "folder"
    PIPE = "pipe"
    LOOP = "loop"
    """A link to itself."""
    DANGLING = "dangling"


Files = Mapping[str, "bytes | Odd"]
"""Relative path -> content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of file and what reads it.

    Attributes:
        name: On the command line.
        seeds: Makes valid cases; called once a process.
        mutate: Damages one of them, by the generator alone.
        check: Reads the folder of a case; raises what the tool raises.
        weight: Milliseconds that a case takes about; shares out a budget of time.
    """

    name: str
    seeds: Callable[[], Sequence[Files]]
    mutate: Callable[[random.Random, Files], Files]
    check: Callable[[Path], None]
    weight: float = 1.0


class BadMessageError(AssertionError):
    """An error of the tool whose message cannot be shown."""


@functools.cache
def seeds_of(target: Target) -> tuple[Files, ...]:
    """The valid cases of a target."""
    return tuple(target.seeds())


def build(target: Target, seed: int, index: int) -> Files:
    """The case with a number. The first ones are the valid seeds themselves."""
    seeds = seeds_of(target)
    if index < len(seeds):
        return seeds[index]
    rng = random.Random(f"{target.name}/{seed}/{index}")
    return target.mutate(rng, rng.choice(seeds))


def write(files: Files, folder: Path) -> None:
    """Put a case into an empty folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case Odd.FOLDER:
                path.mkdir()
            case Odd.PIPE:
                os.mkfifo(path)
            case Odd.LOOP:
                path.symlink_to(path)
            case Odd.DANGLING:
                path.symlink_to(path.with_name("nothing-here"))
            case bytes():
                path.write_bytes(content)


@contextmanager
def case_folder(files: Files) -> Iterator[Path]:
    """The working directory, which holds a case, and is gone afterwards."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  (no disk is to be worn or waited for)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory, ignore_cleanup_errors=True) as place:
        folder, before = Path(place).resolve(), Path.cwd()
        write(files, folder)
        os.chdir(folder)  # a case may name its own files
        try:
            yield folder
        finally:
            os.chdir(before)


refused: Counter[str] = Counter()
"""Errors of the tool in this process, by class: a target all of whose cases are refused would find little."""


def attempt(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call what a command calls; None where the tool refuses, with a message that can be shown.

    Raises:
        BadMessageError: The message is empty or endless.
    """
    try:
        return call(*args, **options)
    except SonotuneError as error:
        refused[type(error).__name__] += 1
        message = str(error)
        if not message.strip():
            raise BadMessageError("the message is empty") from error
        if len(message) > MAX_MESSAGE:
            raise BadMessageError(f"the message has {len(message)} characters: {message[:200]!r}...") from error
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What went wrong in a case.

    Attributes:
        kind: `exception`, `hang`, `memory` or `crash`.
        signature: The same for faults with the same cause, as far as can be told.
        text: For a person: a traceback, or what was measured.
    """

    kind: str
    signature: str
    text: str


def run_case(target: Target, files: Files) -> Fault | None:
    """Read a case; what it raises that is none of the tool's errors is a fault."""
    with case_folder(files) as folder:
        try:
            attempt(target.check, folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is what is looked for)
            lines = traceback.format_exc(limit=-25).replace(str(folder), "FOLDER").splitlines()
            text = "".join(f"{line[:400]}\n" for line in lines)
            return Fault(kind="exception", signature=_signature(error), text=text)
    return None


def _signature(error: BaseException) -> str:
    """Its class and the last line of the tool's own code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "sonotune" in Path(frame.filename).parts] or frames
    last = own[-1] if own else None
    place = f"{Path(last.filename).name}:{last.lineno} {last.name}" if last else "?"
    return f"{type(error).__name__} at {place}"


def peak_bytes() -> int:
    """The largest resident size of this process so far.

    Of the process itself: `getrusage` also counts the one that started it.
    """
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def save(out: Path, target: str, seed: int, index: int, fault: Fault, files: Files) -> Path:
    """Keep a failing case so that it can be run again."""
    folder = out / f"{target}-{seed}-{index}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    write(files, folder / "files")
    facts = {"target": target, "seed": seed, "index": index, "kind": fault.kind, "signature": fault.signature}
    (folder / "case.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    (folder / "fault.txt").write_text(fault.text, "utf-8", "backslashreplace")
    return folder


def load(folder: Path) -> tuple[str, Files]:
    """The target and the files of a case that was kept."""
    facts = json.loads((folder / "case.json").read_text("utf-8"))
    return facts["target"], dict(_read(folder / "files"))


def _read(root: Path) -> Iterator[tuple[str, bytes | Odd]]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            yield name, Odd.LOOP if path.readlink().name == path.name else Odd.DANGLING
        elif path.is_fifo():
            yield name, Odd.PIPE
        elif path.is_file():
            yield name, path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            yield name, Odd.FOLDER


def end_of(code: int) -> str:
    """How a process ended, in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
