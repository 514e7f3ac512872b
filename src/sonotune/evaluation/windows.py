"""Clips longer than a model's window: decoded in windows, and put together to one prediction each.

Windows are cut in pauses, where no word is. Where nobody pauses, two windows overlap, and both have the words of the
overlap; the longest sequence of words that both wrote is where one text goes over into the other.

Source: the merge by common sequences is that of the speech pipeline of `transformers`, for words instead of tokens.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sonotune.data.chunking import cut_at_pauses
from sonotune.data.scripts import UNSPACED
from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.data.words import PARTS, word_spans
from sonotune.errors import AudioError
from sonotune.types import Clip, Finding, Prediction, RecognizedWord
from sonotune.wording import counted

MAX_OVERLAP_S: Final = 4.0
OVERLAP_SHARE: Final = 0.2
"""Overlap of two windows that no pause separates: this share of the window, at most so many seconds."""
_MIN_COMMON_WORDS: Final = 2  # one word may be common by chance, unless it stands at the very border of both texts
_RATE_MARGIN: Final = 2.0  # speech in the overlap may be so many times as fast as in its whole window
_BOTH_UNSPACED: Final = re.compile(rf"[{UNSPACED}]{{2}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """What is decoded for some clips.

    Attributes:
        pieces: Clips to decode, each within the window, in the order of the clips.
        parts: Clip id -> number of its pieces; 0 for a clip whose audio could not be read.
        findings: The clips that could not be read, and a note on those decoded in windows.
    """

    pieces: list[Clip]
    parts: dict[str, int]
    findings: list[Finding]

    def merge(
        self, clips: Sequence[Clip], predictions: Sequence[Prediction], findings: Sequence[Finding]
    ) -> tuple[list[Prediction], list[Finding]]:
        """One prediction per clip of those of its pieces; findings name clips, not pieces."""
        owners = self.owners()
        made = iter(zip(self.pieces, predictions, strict=True))
        merged, unmatched = [], 0
        for clip in clips:
            whole, doubtful = merge_predictions(clip.id, [next(made) for _ in range(self.parts[clip.id])])
            merged.append(whole)
            unmatched += doubtful
        named = [
            replace(finding, clip_ids=tuple(dict.fromkeys(owners.get(name, name) for name in finding.clip_ids)))
            for finding in findings
        ]
        return merged, [*self.findings, *named, *([_unmatched(unmatched)] if unmatched else [])]

    def owners(self) -> dict[str, str]:
        """Id of each piece -> id of the clip that it is of."""
        repeated = itertools.chain.from_iterable(itertools.repeat(name, count) for name, count in self.parts.items())
        return dict(zip((piece.id for piece in self.pieces), repeated, strict=True))


def cut_into_windows(clips: Sequence[Clip], window_s: float | None) -> Windows:
    """Cut clips that are longer than the window; all others are their only piece.

    Args:
        clips: The clips, whose ids differ.
        window_s: What the model reads at a time, in seconds; None for a model without limit.
    """
    pieces: list[Clip] = []
    parts: dict[str, int] = {}
    findings: list[Finding] = []
    taken = {clip.id for clip in clips}
    long: list[str] = []
    overlapping = 0
    for clip in clips:
        cut = [clip]
        if window_s is not None and clip.duration_s > window_s + WINDOW_SLACK_S:
            try:
                overlap_s = min(MAX_OVERLAP_S, OVERLAP_SHARE * window_s)
                cut = _named_apart(cut_at_pauses(clip, window_s, overlap_s=overlap_s), clip.id, taken)
                long.append(clip.id)
                overlapping += sum(_overlap_s(*pair) > 0 for pair in itertools.pairwise(cut))
            except AudioError as error:
                cut = []
                findings.append(
                    Finding(
                        check=f"audio.{error.reason}",
                        severity="error",
                        message=str(error),
                        clip_ids=(clip.id,),
                        path=str(clip.path),
                    )
                )
        pieces += cut
        parts[clip.id] = len(cut)
    if long:
        windows = sum(parts[name] for name in long)
        overlaps = f" ({overlapping} where there is none, with an overlap)" if overlapping else ""
        findings.append(
            Finding(
                check="evaluation.windows",
                severity="note",
                message=f"{len(long)} of {len(clips)} clips are longer than the {window_s:.4g} s that the model reads "
                f"at a time: they were decoded in {windows} windows, cut at pauses{overlaps}, and the results of each "
                "clip merged.",
                clip_ids=tuple(long),
                measured=float(len(long)),
                limit=float(len(clips)),
                unit="clips",
            )
        )
    return Windows(pieces=pieces, parts=parts, findings=findings)


def _named_apart(pieces: Sequence[Clip], clip_id: str, taken: set[str]) -> list[Clip]:
    """The pieces under ids that no clip has."""
    mark = "#"
    while any(f"{clip_id}{mark}{number}" in taken for number in range(len(pieces))):
        mark += "#"
    return [replace(piece, id=f"{clip_id}{mark}{number}") for number, piece in enumerate(pieces)]


def _overlap_s(before: Clip, after: Clip) -> float:
    overlap_s = before.start_s + before.duration_s - after.start_s
    return overlap_s if overlap_s > WINDOW_SLACK_S else 0.0


def _unmatched(count: int) -> Finding:
    return Finding(
        check="evaluation.windows_joined",
        severity="note",
        message=f"at {counted(count, 'cut')} where windows overlap their texts have no word in common, and both stand "
        "whole: what is said there may be written twice.",
        measured=float(count),
        unit="cuts",
    )


def merge_predictions(clip_id: str, pieces: Sequence[tuple[Clip, Prediction]]) -> tuple[Prediction, int]:
    """One prediction of those of a clip's pieces, in their order.

    Texts are joined; class probabilities are the mean over the pieces, weighted by their length. A piece for which the
    model gave no numbers adds nothing, and the whole says so.

    Returns:
        The prediction, and at how many overlaps the texts on both sides, neither of them empty, had no word in common.
    """
    if len(pieces) == 1:
        return replace(pieces[0][1], clip_id=clip_id), 0
    weighed: dict[str, float] = defaultdict(float)
    finite = all(prediction.finite for _, prediction in pieces)
    total_s = math.fsum(piece.duration_s for piece, prediction in pieces if prediction.scores)
    for piece, prediction in pieces:
        for label, score in prediction.scores.items():
            weighed[label] += score * piece.duration_s / total_s
    if weighed:
        return Prediction(clip_id=clip_id, scores=dict(weighed), finite=finite), 0
    text, unmatched = "", 0
    rated = any(prediction.words is not None for _, prediction in pieces)
    words: tuple[RecognizedWord, ...] | None = () if rated else None
    for number, (piece, prediction) in enumerate(pieces):
        said = (prediction.text or "").strip()
        previous = pieces[number - 1][0] if number else piece
        overlap_s = _overlap_s(previous, piece) if number else 0.0
        most = 0
        if overlap_s:
            count = max(len(PARTS.findall(pieces[number - 1][1].text or "")), len(PARTS.findall(said)))
            most = math.ceil(_RATE_MARGIN * count * overlap_s / min(previous.duration_s, piece.duration_s)) + 1
        joint = find_joint(text, said, max_words=most)
        if words is not None:
            words = joint.words(text, words, said, prediction.words or ())
        text, length = joint.text(text, said), joint.common
        unmatched += bool(overlap_s and said and (pieces[number - 1][1].text or "").strip() and not length)
    attempts = max((prediction.attempts for _, prediction in pieces), default=1)
    cut = any(prediction.cut for _, prediction in pieces)
    return Prediction(clip_id=clip_id, text=text, attempts=attempts, finite=finite, cut=cut, words=words), unmatched


class Joint(NamedTuple):
    """Where two texts are put together.

    Attributes:
        end: Characters of the left one that are kept.
        begin: First character of the right one that is kept.
        between: What stands between them.
        common: Words that both had in common.
    """

    end: int
    begin: int
    between: str
    common: int

    def text(self, left: str, right: str) -> str:
        """Both together."""
        return left[: self.end] + self.between + right[self.begin :]

    def words(
        self, left: str, lefts: Sequence[RecognizedWord], right: str, rights: Sequence[RecognizedWord]
    ) -> tuple[RecognizedWord, ...]:
        """The words of both together, each with the tokens of what it is made of: a joint may lie within a word.

        Args:
            left: The left text.
            lefts: Its words.
            right: The right text.
            rights: Its words.
        """
        moved = self.end + len(self.between) - self.begin
        known = [
            (begin, min(end, self.end), word) for (begin, end), word in zip(word_spans(left), lefts, strict=True)
        ] + [
            (max(begin, self.begin) + moved, end + moved, word)
            for (begin, end), word in zip(word_spans(right), rights, strict=True)
        ]
        text, made = self.text(left, right), []
        for begin, end in word_spans(text):
            parts = [word.logprobs for low, high, word in known if low < high and low < end and high > begin]
            made.append(RecognizedWord(text=text[begin:end], logprobs=tuple(itertools.chain(*parts))))
        return tuple(made)


def merge_texts(left: str, right: str, *, max_words: int) -> tuple[str, int]:
    """Put the texts of two neighbouring windows together; see `find_joint`.

    Returns:
        The text, and how many words both had in common.
    """
    joint = find_joint(left, right, max_words=max_words)
    return joint.text(left, right), joint.common


def find_joint(left: str, right: str, *, max_words: int) -> Joint:
    """Where the text of one window goes over into that of the next.

    The longest sequence of words common to the end of `left` and the beginning of `right` is kept once; the words after
    it in `left` and before it in `right` lie at the cut and are half heard. Case and punctuation are not compared.
    Without a common sequence nothing can be told to be doubled, and both texts stay whole.

    Args:
        left: The text so far.
        right: The text of the next window.
        max_words: Most words that can be of the overlap; 0 where the windows do not overlap.
    """
    lefts, rights = list(PARTS.finditer(left)), list(PARTS.finditer(right))
    first = max(0, len(lefts) - max_words)
    tail, head = [_bare(word[0]) for word in lefts[first:]], [_bare(word[0]) for word in rights[:max_words]]
    end, begin, length = _common(tail, head)
    if length:
        return Joint(lefts[first + end - 1].end(), rights[begin - 1].end(), "", length)
    apart = left and right and not _BOTH_UNSPACED.fullmatch(left[-1] + right[0])
    return Joint(len(left), 0, " " if apart else "", 0)


def _bare(word: str) -> str:
    """A word as it is compared."""
    return "".join(sign for sign in word.casefold() if not unicodedata.category(sign).startswith("P")) or word


def _common(tail: Sequence[str], head: Sequence[str]) -> tuple[int, int, int]:
    """Ends of the longest common sequence in both, and its length; of equal ones, the one that leaves out least."""
    best, key = (0, 0, 0), (0, 0)
    lengths = [0] * (len(head) + 1)
    for end, left in enumerate(tail, 1):
        above = lengths
        lengths = [0] * (len(head) + 1)
        for begin, right in enumerate(head, 1):
            length = lengths[begin] = above[begin - 1] + 1 if left == right else 0
            left_out = len(tail) - end + begin - length
            if (length >= _MIN_COMMON_WORDS or (length and not left_out)) and (length, -left_out) > key:
                best, key = (end, begin, length), (length, -left_out)
    return best
