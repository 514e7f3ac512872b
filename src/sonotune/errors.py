"""The exception tree. Every error a user can cause carries its exit code and prints without a traceback.

    SonotuneError                exit 2   the user's input; base of all below
    ├── ConfigError                       a setting, preset or command-line word
    ├── ManifestError                     a manifest line, a split, a data set
    ├── AudioError                        one audio file; carries a stable `reason`
    ├── TextError                         a transcript or a normaliser
    ├── ModelError                        a checkpoint, a component selector, quantisation
    ├── AdapterError                      targets, ranks, merging
    ├── MissingExtraError                 an optional package that is not installed
    ├── HubError                          the hub could not be reached; what was to be sent is kept
    ├── RunDirectoryError                 an existing, locked or unwritable run directory
    ├── GateError                exit 3   the audit or a leak check said STOP
    ├── NumericError             exit 4   NaN or infinity that did not go away
    ├── TrainingCheckError       exit 4   something that should have trained did not, or the reverse
    ├── ResourceError            exit 5   out of memory or disk
    ├── CheckpointError          exit 6   a checkpoint's integrity
    └── Interrupted              exit 75  stopped by a signal with the state saved

Messages have four parts: what is wrong with which thing, what was found, what is allowed, what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Self

_MAX_LISTED = 20
_MAX_CHARACTERS = 900


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The known name that was probably meant, as the end of a message: `; did you mean 'x'?`; else `otherwise`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else otherwise


def shortened(problem: str) -> str:
    """A problem without its middle where nobody would read all of it."""
    half = _MAX_CHARACTERS // 2
    return problem if len(problem) <= _MAX_CHARACTERS else f"{problem[:half]} [...] {problem[-half:]}"


def problem_list(heading: str, problems: Sequence[str]) -> str:
    """A message of several problems: the first 20 of them, each shortened."""
    more = [f"  ... and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
    return "\n".join([heading, *(f"  - {shortened(one)}" for one in problems[:_MAX_LISTED]), *more])


def first_line(error: Exception) -> str:
    """The first line of a message, 200 characters at most; the name of the error where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class SonotuneError(Exception):
    """Base of every error that is the user's to mend.

    Attributes:
        listing: Every problem, a line each, where the message shows the first ones only. Who reports the error writes
            them to a file and adds a note that names it.
    """

    exit_code = 2
    listing: Sequence[str] = ()

    def listed(self, problems: Sequence[str]) -> Self:
        """This error, with all its problems."""
        self.listing = problems
        return self

    def kept_in(self, place: str) -> None:
        """Note that the problems stand in a file."""
        many = len(self.listing) > 1
        self.add_note(f"{f'All {len(self.listing)} are' if many else 'It is'} listed in {place}.")
        self.listing = ()

    def told(self) -> str:
        """The message and its notes."""
        return "\n".join([str(self), *getattr(self, "__notes__", ())])


class ConfigError(SonotuneError):
    """One or more settings are wrong; the message lists all of them."""


class ManifestError(SonotuneError):
    """A manifest, an importer's source or a split cannot be used."""


class AudioError(SonotuneError):
    """One audio file cannot be used.

    Args:
        reason: Stable, machine-readable: `missing`, `empty`, `not_regular`, `not_audio`, `truncated`, `no_samples`,
            `non_finite`, `amplitude`, `sample_rate`, `channels`, `too_long`, `span`, `unreadable`.
        message: The sentence for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        """Keep both arguments when the error crosses a worker process."""
        return type(self), (self.reason, str(self))


class TextError(SonotuneError):
    """A transcript or a text normaliser cannot be used."""


class TextTooLongError(TextError):
    """A transcript can be written and is longer than the model has room for."""


class ModelError(SonotuneError):
    """A checkpoint, a component selector or a quantisation request cannot be used."""


class AdapterError(SonotuneError):
    """Adapter targets, ranks or a merge are wrong."""


class MissingExtraError(SonotuneError):
    """An optional package is needed; the message has the command that installs it."""


class HubError(SonotuneError):
    """The hub could not be reached or refused; what was to be sent is kept."""


class RunDirectoryError(SonotuneError):
    """A run directory exists, is locked by another process or cannot be written."""


class GateError(SonotuneError):
    """The data audit or a leak check said STOP."""

    exit_code = 3


class NumericError(SonotuneError):
    """NaN or infinity in the loss or the gradients did not go away."""

    exit_code = 4


class TrainingCheckError(NumericError):
    """What should have trained did not move, or what is frozen did."""


class ResourceError(SonotuneError):
    """Memory or disk ran out."""

    exit_code = 5


class ProcessError(ResourceError):
    """Another of the processes that train together is gone."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a card or beside the processor; torch need not be loaded."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, of a card
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None)
    )


_NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory"  # torch's allocator on a CPU
    "|std::bad_alloc"
    "|could not create a (primitive|memory)(?! descriptor)"  # oneDNN; of a descriptor, it is the shape that it lacks
    "|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA out of memory"
)


class CheckpointError(SonotuneError):
    """A checkpoint is damaged, incomplete or of another configuration."""

    exit_code = 6


class Interrupted(SonotuneError):  # noqa: N818  (a state, not a fault)
    """A signal stopped the run after its state was saved."""

    exit_code = 75
