"""Word and character error rates with their parts, counted by rapidfuzz, the engine of jiwer.

A rate is the sum of all errors over the sum of all reference units, never the mean of single rates, so a clip of one
word weighs one word. An empty reference says that nothing was said: it adds no unit, and every unit written on it is an
insertion. Where all references are empty there is no unit to divide by; the rate is then what was written on each clip
on average, 0 where nothing was, and its title says so.

Texts are scored as given: the caller normalises (`sonotune.data.text`, scoring form), so that NFC and NFD, case and
punctuation are decided in one place. Words are what stands between any Unicode white space; characters are code points,
single spaces between words included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from sonotune.errors import TextError
from sonotune.metrics.intervals import block_bootstrap_ratio, poisson, wilson
from sonotune.types import Score

Operation = Literal["equal", "substitute", "delete", "insert"]

_OPERATIONS: Final[dict[str, Operation]] = {
    "equal": "equal",
    "replace": "substitute",
    "delete": "delete",
    "insert": "insert",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EditCounts:
    """The edits that turn one reference into one hypothesis, in words or in characters.

    Attributes:
        substitutions: Reference units recognised as something else.
        deletions: Reference units that were not recognised.
        insertions: Recognised units that nobody said.
        hits: Reference units recognised as they are.
        reference: Length of the reference: substitutions + deletions + hits.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    hits: int = 0
    reference: int = 0

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    def to_json(self) -> dict[str, int]:
        """The form written beside every prediction."""
        return {
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "hits": self.hits,
            "reference": self.reference,
        }


class AlignedWord(NamedTuple):
    """One step of an alignment; the side that has no word is empty."""

    operation: Operation
    reference: str
    hypothesis: str


def word_edits(reference: str, hypothesis: str) -> EditCounts:
    """Edits in words. An empty reference makes every hypothesis word an insertion; two empty texts make none."""
    return edit_counts([reference], [hypothesis], unit="word")[0]


def char_edits(reference: str, hypothesis: str) -> EditCounts:
    """Edits in characters (code points), single spaces between words counted as characters."""
    return edit_counts([reference], [hypothesis], unit="character")[0]


def edit_counts(
    references: Sequence[str], hypotheses: Sequence[str], *, unit: Literal["word", "character"]
) -> list[EditCounts]:
    """Edits of each pair, in order.

    Raises:
        TextError: There are not as many hypotheses as references.
    """
    _check_lengths(references, hypotheses)
    counts: list[EditCounts] = []
    for pair in zip(references, hypotheses, strict=True):
        reference, hypothesis = (_units(text, unit) for text in pair)
        # Most pairs of a good model are equal, and the sides without a unit have no alignment.
        if reference == hypothesis:
            counts.append(EditCounts(hits=len(reference), reference=len(reference)))
            continue
        if not reference:
            counts.append(EditCounts(insertions=len(hypothesis)))
            continue
        if not hypothesis:
            counts.append(EditCounts(deletions=len(reference), reference=len(reference)))
            continue
        substitutions = deletions = insertions = 0
        for operation, _, _ in unit_edits(reference, hypothesis):
            if operation == "replace":
                substitutions += 1
            elif operation == "delete":
                deletions += 1
            else:
                insertions += 1
        counts.append(
            EditCounts(
                substitutions=substitutions,
                deletions=deletions,
                insertions=insertions,
                hits=len(reference) - substitutions - deletions,
                reference=len(reference),
            )
        )
    return counts


def sum_counts(counts: Iterable[EditCounts]) -> EditCounts:
    """All edits together; ten times as fast as `sum`."""
    kept = list(counts)
    return EditCounts(
        substitutions=sum(one.substitutions for one in kept),
        deletions=sum(one.deletions for one in kept),
        insertions=sum(one.insertions for one in kept),
        hits=sum(one.hits for one in kept),
        reference=sum(one.reference for one in kept),
    )


def align_words(reference: str, hypothesis: str) -> list[AlignedWord]:
    """The words of both texts side by side, in reading order, for showing where they differ."""
    ref_words, hyp_words = reference.split(), hypothesis.split()
    if not ref_words:
        return [AlignedWord("insert", "", word) for word in hyp_words]
    if not hyp_words:
        return [AlignedWord("delete", word, "") for word in ref_words]
    steps: list[AlignedWord] = []
    for operation, ref_start, ref_end, hyp_start, hyp_end in unit_runs(ref_words, hyp_words):
        pairs = zip_longest(ref_words[ref_start:ref_end], hyp_words[hyp_start:hyp_end], fillvalue="")
        steps += [AlignedWord(operation, ref, hyp) for ref, hyp in pairs]
    return steps


def wer(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    speakers: Sequence[str | None] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Score:
    """Word error rate over all clips.

    Args:
        references: What was said, one per clip. They may be empty (silence, noise): words recognised there are
            insertions.
        hypotheses: What was recognised; empty counts every reference word as deleted.
        speakers: Speaker of each clip. See `error_rate` for what is resampled.
        bootstrap: Number of resamples for the interval.
        seed: Seed of the resampling.

    Raises:
        TextError: Lengths differ, or there are no clips.
    """
    counts = edit_counts(references, hypotheses, unit="word")
    return error_rate("wer", counts, speakers=speakers, bootstrap=bootstrap, seed=seed)


def cer(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    speakers: Sequence[str | None] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Score:
    """Character error rate over all clips; arguments and errors as in `wer`."""
    counts = edit_counts(references, hypotheses, unit="character")
    return error_rate("cer", counts, speakers=speakers, bootstrap=bootstrap, seed=seed)


def error_rate(
    name: str,
    counts: Sequence[EditCounts],
    *,
    title: str = "",
    speakers: Sequence[str | None] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Score:
    """The rate of counted edits, with a 95 % interval.

    `detail["resampled"]` says how the interval was made. `speaker`: whole speakers were resampled, which needs a
    speaker on every clip and at least `intervals.MIN_BLOCKS` of them. `clip`: single clips were, and where clips of
    one speaker resemble each other the interval is narrower than the truth; with two to four speakers nothing
    better can be said from the data. `word`: the resamples had no spread (one clip, or all clips equally right or
    wrong), so the interval is Wilson's over reference words taken as independent, or that of a Poisson rate where
    insertions bring the rate above one.

    Without any reference unit the rate is that of insertions to clips, and `detail["per"]` is `clip`.

    Args:
        name: Name of the score.
        title: What people call it; empty takes the name in capitals.
        counts: Edits of each clip.
        speakers: Speaker of each clip, or None.
        bootstrap: Number of resamples; 0 asks for the interval over words.
        seed: Seed of the resampling.

    Raises:
        TextError: There are no clips.
    """
    if not counts:
        raise TextError(f"{name} needs at least one clip with a transcript; found none. Check the evaluation manifest.")
    if speakers is not None and len(speakers) != len(counts):
        raise TextError(f"{name}: {len(speakers)} speakers were given for {len(counts)} clips; one per clip is needed.")
    total = sum_counts(counts)
    title, silent = title or name.upper(), total.reference == 0
    units_N = np.array([1 if silent else count.reference for count in counts], dtype=np.float64)
    value = total.errors / float(units_N.sum())
    known = {speaker for speaker in speakers or () if speaker is not None}
    low, high, resampled = _interval(counts, units_N, speakers, bootstrap=bootstrap, seed=seed)
    return Score(
        name=name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        count=len(counts),
        unit="fraction",
        better="lower",
        title=f"{title} per silent clip" if silent else title,
        detail={
            **total.to_json(),
            "resampled": resampled,
            "speakers": len(known),
            **({"per": "clip"} if silent else {}),
        },
    )


def _interval(
    counts: Sequence[EditCounts],
    units_N: NDArray[np.float64],
    speakers: Sequence[str | None] | None,
    *,
    bootstrap: int,
    seed: int,
) -> tuple[float, float, Literal["speaker", "clip", "word"]]:
    errors_N = np.array([count.errors for count in counts], dtype=np.float64)
    if bootstrap > 0:
        found = block_bootstrap_ratio(errors_N, units_N, speakers, resamples=bootstrap, seed=seed)
        if found.high > found.low:
            return found.low, found.high, "speaker" if found.resampled == "block" else "clip"
    errors, units = float(errors_N.sum()), float(units_N.sum())
    low, high = wilson(errors, units) if errors <= units else poisson(errors, units)
    return low, high, "word"


def _check_lengths(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TextError("references and hypotheses must be lists of texts, one per clip; found a single text.")
    if len(references) != len(hypotheses):
        raise TextError(
            f"{len(hypotheses)} hypotheses were given for {len(references)} references; one per clip is needed, "
            "with an empty text where nothing was recognised."
        )


def _units(text: str, unit: Literal["word", "character"]) -> list[str] | str:
    words = text.split()
    return words if unit == "word" else " ".join(words)


def unit_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[str, int, int]]:
    """The fewest edits between two lists of units, or of characters where both are texts.

    Returns:
        `replace`, `delete` or `insert`, place in the reference and in the hypothesis. What is inserted stands before
        the unit of the reference at that place.
    """
    # The engine of jiwer, whose own call takes ten times as long for one pair; tests compare the two.
    from rapidfuzz.distance import Levenshtein  # noqa: PLC0415  (40 ms that `sonotune --help` need not pay)

    return cast("list[tuple[str, int, int]]", Levenshtein.editops(reference, hypothesis).as_list())


def unit_runs(reference: list[str], hypothesis: list[str]) -> list[tuple[Operation, int, int, int, int]]:
    """The alignment of two lists of units with the fewest edits.

    Returns:
        Runs of one operation: (operation, reference start and end, hypothesis start and end).
    """
    from rapidfuzz.distance import Levenshtein  # noqa: PLC0415  (as above)

    return [
        (_OPERATIONS[step.tag], step.src_start, step.src_end, step.dest_start, step.dest_end)
        for step in Levenshtein.opcodes(reference, hypothesis)
    ]
