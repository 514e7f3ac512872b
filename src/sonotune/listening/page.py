"""The pages on which people listen: a blind comparison of two systems, and the errors of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from sonotune.listening.choices import Session
from sonotune.listening.trials import Trial
from sonotune.listening.utterances import Systems, Utterance
from sonotune.metrics.error_rate import word_edits
from sonotune.progress import phase
from sonotune.reports.browser import MAX_UTTERANCES, Browser, View, errors_note, errors_view
from sonotune.reports.edits import difference_tokens, direction
from sonotune.reports.sound import data_address, encode_sound, read_span
from sonotune.types import Clip

MAX_EMBEDDED: Final = 200
"""Clips whose sound stands in a page that is a file."""
MAX_SOUND_S: Final = 60.0
"""Of a longer clip its beginning is embedded; a server plays all of it."""

Sound = Callable[[int, Clip], tuple[str, str]]
"""Number of an utterance and its clip -> the address of its sound, and what is to be said of it."""


def served_sound(number: int, clip: Clip) -> tuple[str, str]:
    """A sound that a server reads when it is asked for."""
    return f"audio/{number}", ""


def embedded_sound(number: int, clip: Clip) -> tuple[str, str]:
    """A sound that stands in the page, of the first `MAX_EMBEDDED` utterances."""
    if number >= MAX_EMBEDDED:
        return "", f"only the first {MAX_EMBEDDED} clips are embedded; --serve plays all."
    found, problem = clip_sound(clip, most_s=MAX_SOUND_S)
    if found is None:
        return "", problem
    cut = f"The first {MAX_SOUND_S:.0f} s of {clip.duration_s:.0f} s." if clip.duration_s > MAX_SOUND_S else ""
    return data_address(found), cut


def clip_sound(clip: Clip, *, most_s: float | None = None) -> tuple[bytes | None, str]:
    """The sound of a clip as a file that a browser plays; None, and why, where there is none."""
    duration_s = clip.duration_s or None
    if most_s is not None:
        duration_s = min(duration_s or most_s, most_s)
    waveform_S, problem = read_span(clip.path, start_s=clip.start_s, duration_s=duration_s, channel=clip.channel)
    return (None, problem) if waveform_S is None else (encode_sound(waveform_S), "")


def comparison_page(
    systems: Systems, trials: Sequence[Trial], session: Session, *, sound: Sound, **how: Any
) -> Browser:
    """A blind comparison.

    Args:
        systems: Both.
        trials: What is asked.
        session: What the file of choices begins with.
        sound: Where the sound of an utterance is.
        **how: `served` and `entries` of the page.
    """
    differ = sum(trial.part == "random" for trial in trials)
    return Browser(
        title="Which text is better?",
        note=f"{len(trials):,} clips on which two systems differ, {differ:,} of them drawn at random. Which system "
        "stands on which side is drawn for each clip.",
        mode="blind",
        views=_with_sound([_question(trial, session) for trial in trials], [one.utterance for one in trials], sound),
        session=session.to_json(),
        names={"names": list(systems.names), "swapped": [int(trial.swapped) for trial in trials]},
        **how,
    )


def _question(trial: Trial, session: Session) -> View:
    first, second = trial.utterance.texts(session.form)
    left, right = (second, first) if trial.swapped else (first, second)
    return View(
        id=trial.utterance.clip.id,
        facts=trial.utterance.facts,
        texts=difference_tokens(left, right),
        right_to_left=direction(left, right) == "rtl",
        transcript=trial.utterance.clip.text,
        part=trial.part,
    )


def errors_page(
    systems: Systems, session: Session, *, sound: Sound, most: int | None = MAX_UTTERANCES, **how: Any
) -> Browser:
    """The errors of one system, the utterances with the most first; those without a transcript are last.

    Args:
        systems: One.
        session: What the file of corrections begins with.
        sound: Where the sound of an utterance is.
        most: Utterances in the page; None takes all.
        **how: `served` and `entries` of the page.
    """
    ordered = worst_utterances(systems.utterances)
    shown = ordered[:most]
    views = [_errors(one) for one in shown]
    return Browser(
        title=f"Errors of {systems.names[0]}",
        note=errors_note(
            [_errors(one) for one in ordered] if len(ordered) > len(shown) else views, most or len(ordered)
        ),
        mode="errors",
        views=_with_sound(views, shown, sound),
        session=session.to_json(),
        **how,
    )


def worst_utterances(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Those with the most wrong words first."""

    def errors(one: Utterance) -> int:
        return -1 if one.reference is None else word_edits(one.reference, one.scored[0]).errors

    return sorted(utterances, key=lambda one: -errors(one))


def _errors(one: Utterance) -> View:
    row = {
        "id": one.clip.id,
        "duration_s": one.clip.duration_s,
        "scored_reference": one.reference,
        "scored_hypothesis": one.scored[0],
        **{name: getattr(one.clip, name) for name in ("domain", "speaker", "language")},
    }
    found = errors_view(row, transcript=one.clip.text)
    if found is not None:
        return found
    text = one.texts("written")[0]
    return View(
        id=one.clip.id,
        facts=" · ".join(["no transcript", one.facts]),
        texts=[list(text.split())],
        right_to_left=direction(text) == "rtl",
    )


def _with_sound(views: Sequence[View], utterances: Sequence[Utterance], sound: Sound) -> list[View]:
    made = []
    with phase("reading audio", len(views), "clips") as advance:
        for number, (view, one) in enumerate(zip(views, utterances, strict=True)):
            address, silence = sound(number, one.clip)
            made.append(replace(view, sound=address, silence=silence))
            advance(number + 1)
    return made
