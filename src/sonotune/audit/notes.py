"""What is odd about clips and decides nothing, and what a person should know of an audit beside its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from sonotune.alignment.base import DetectedLanguage, recording
from sonotune.audit.duplicates import duplicate_audio, duplicate_texts
from sonotune.audit.measure import Measured
from sonotune.audit.sources import Transcribed
from sonotune.audit.verdict import VERDICT_COLUMN
from sonotune.data.scripts import dominant_script
from sonotune.models.languages import find_code, language_name
from sonotune.types import Clip
from sonotune.wording import counted

MAX_CLIPPED: Final = 0.001
MIN_SIGNAL_TO_NOISE_DB: Final = 10.0
MAX_SILENT: Final = 0.7
"""Beyond these a clip is noted as clipped, noisy or mostly silent."""
MAX_CER: Final = 1.0
"""Above it, what the model writes has more errors than the transcript has characters: it has nothing in common with it.
That is noted, for a weak model writes so of right transcripts as well."""
MIN_LANGUAGE_PROBABILITY: Final = 0.9
"""From here on, a language that the model detects and the clip does not name is noted. Of Whisper-base, that is 0 of 80
English and Swahili clips, 2 of 80 Breton ones (a language that it hardly knows), and 26 of 40 English clips that are
named something else."""
MAX_MISHEARD: Final = 0.05
"""Of trusted clips. A model that takes more of them for another language cannot tell the languages of this corpus."""
MANY_IN_ANOTHER_LANGUAGE: Final = 0.25
"""Of the sample; then it is said of the corpus."""
FEW_SPEAKERS: Final = 5
"""Of trusted clips; with fewer, thresholds may be those of their voices."""
MIN_SCRIPTS: Final = 10
"""Transcripts of a language in the sample from which its usual script is known."""

Languages = tuple[str | None, DetectedLanguage | None]
"""The language that a clip names, and the one that the model detects."""


def notes_beside(clips: Sequence[Clip], measured: Sequence[Measured], normalizer: str) -> dict[str, list[str]]:
    """Codes of what is odd about a clip beside the others of the sample; none of them flags it."""
    notes: dict[str, list[str]] = {clip.id: [] for clip in clips}
    samples = {clip.id: row.samples for clip, row in zip(clips, measured, strict=True) if row.samples}
    texts = {clip.id: clip.text or "" for clip in clips}
    scripts = {clip.id: dominant_script(clip.text or "") for clip in clips}
    usual = _usual_scripts([(clip.language, scripts[clip.id]) for clip in clips])
    found = {
        "repeated_audio": [name for group in duplicate_audio(samples) for name in group],
        "repeated_text": [name for group in duplicate_texts(texts, normalizer=normalizer) for name in group],
        "other_script": [
            clip.id for clip in clips if clip.language in usual and scripts[clip.id] not in (None, usual[clip.language])
        ],
    }
    for code, names in found.items():
        for name in names:
            notes[name].append(code)
    return notes


def _usual_scripts(found: Sequence[tuple[str | None, str | None]]) -> dict[str | None, str]:
    """Language -> the script of more than half of its transcripts, where there are enough of them to tell."""
    counts: dict[str | None, Counter[str]] = {}
    for language, script in found:
        if script is not None:
            counts.setdefault(language, Counter())[script] += 1
    usual = {}
    for language, scripts in counts.items():
        [(script, count)] = scripts.most_common(1)
        if scripts.total() >= MIN_SCRIPTS and 2 * count > scripts.total():
            usual[language] = script
    return usual


def notes_on(measured: Measured, language: str | None = None) -> list[str]:
    """Codes of what is odd about a clip's audio; none of them flags it.

    Args:
        measured: The clip.
        language: That it says it is in.
    """
    nothing = measured.transcript is not None and not measured.transcript.strip()
    cer = None if measured.scores is None else measured.scores.cer
    odd = {
        "nothing_recognised": nothing,
        "recognised_otherwise": not nothing and cer is not None and cer > MAX_CER,
        "other_language": _in_another_language(measured.language, language),
    }
    quality = measured.quality
    if quality is None:
        return [code for code, holds in odd.items() if holds]
    odd |= {
        "clipped": quality.clipped_share > MAX_CLIPPED,
        "noisy": quality.signal_to_noise_db is not None and quality.signal_to_noise_db < MIN_SIGNAL_TO_NOISE_DB,
        "narrower_band": quality.recorded_rate_hz is not None,
        "mostly_silent": quality.silent_share > MAX_SILENT,
    }
    return [code for code, holds in odd.items() if holds]


def _in_another_language(detected: DetectedLanguage | None, language: str | None) -> bool:
    if detected is None or language is None or detected.probability < MIN_LANGUAGE_PROBABILITY:
        return False
    return find_code(language, {detected.code}) is None


def tells_languages(trusted: Sequence[Languages]) -> bool:
    """Whether a model detects trusted clips as the languages that they name."""
    detected = [_in_another_language(one, language) for language, one in trusted if language is not None]
    return sum(detected) <= MAX_MISHEARD * len(detected)


def remarks_on_languages(sample: Sequence[Languages], trusted: Sequence[Languages], *, known: bool = True) -> list[str]:
    """A sentence on each language that many clips do not seem to be in.

    Args:
        sample: Clips that are audited.
        trusted: Clips by which it is told whether the model can tell languages.
        known: Whether these are trusted clips, and not those of the corpus itself.
    """
    if tells_languages(trusted):
        return [f"{seems} Check their `language`." for seems in _seems(sample, MANY_IN_ANOTHER_LANGUAGE, "clip")]
    return [
        f"{seems} Either their `language` is wrong or the model cannot tell: no clip is noted for its language."
        for seems in _seems(trusted, MAX_MISHEARD, "trusted clip" if known else "clip")
    ]


def _seems(detected: Sequence[Languages], most: float, what: str) -> list[str]:
    named: dict[str, list[DetectedLanguage | None]] = {}
    for language, one in detected:
        if language is not None:
            named.setdefault(language, []).append(one)
    sentences = []
    for language, members in sorted(named.items()):
        others = Counter(one.code for one in members if one is not None and _in_another_language(one, language))
        if others.total() > most * len(members):
            [(code, _)] = others.most_common(1)
            sentences.append(
                f"The model detects another language than {language_name(language) or language} in {others.total()} of "
                f"{counted(len(members), what)} that name it, most often {language_name(code) or code}."
            )
    return sentences


def _remark_on_speakers(clips: Sequence[Clip], trusted: Sequence[Clip]) -> list[str]:
    """A sentence where few voices set the thresholds for others."""
    known = {clip.speaker for clip in trusted if clip.speaker}
    others = sum(clip.speaker not in known for clip in clips if clip.speaker)
    if not known or len(known) >= FEW_SPEAKERS or 2 * others <= len(clips):
        return []
    return [
        f"The trusted clips are of {counted(len(known), 'speaker')}, and {others} of {counted(len(clips), 'clip')} of "
        "the corpus are of others. Right clips of a voice that the model knows less are flagged more often than the "
        "thresholds say, and the rate is too high then. Name trusted clips of more speakers."
    ]


def remarks_on(
    corpus: Transcribed, trusted: Transcribed | None, *, calibrated: bool, false_positive_rate: float
) -> list[str]:
    """What a person should know of an audit beside its verdict, in sentences.

    Args:
        corpus: Is audited.
        trusted: Clips that the thresholds were calibrated on.
        calibrated: Whether they were, or are fixed.
        false_positive_rate: That they were calibrated at.
    """
    remarks = []
    if trusted is None and calibrated:
        remarks.append(
            "No clip is known to have a right transcript, so the thresholds were calibrated on the audited clips "
            f"themselves: up to {100 * false_positive_rate:g} % of these are flagged whatever they hold, and "
            "wrong transcripts among them hide others. Name clips with right transcripts by audit.trusted."
        )
    elif trusted is None:
        remarks.append(
            "No clip is known to have a right transcript, so nobody knows how often the fixed thresholds are wrong. "
            "Name clips with right transcripts by audit.trusted."
        )
    else:
        remarks += _remark_on_speakers(corpus.clips, trusted.clips)
        audited = {recording(clip): clip.text for clip in corpus.clips}
        shared = sum(audited.get(recording(clip)) == clip.text for clip in trusted.clips)
        if shared:
            remarks.append(
                f"{shared} of {counted(len(trusted.clips), 'trusted clip')} {'is' if shared == 1 else 'are'} audited "
                "as well. That does no harm where somebody has checked their transcripts."
            )
    judged = sum(VERDICT_COLUMN in clip.extra for clip in corpus.clips)
    if judged:
        remarks.append(
            f"{counted(judged, 'clip')} of the corpus {'was' if judged == 1 else 'were'} judged by a filter before. "
            "Where the same model aligned, its errors are the same now: what it missed then is not found, and the rate "
            "is too low. Audit with another model, or listen to a sample."
        )
    if corpus.too_long:
        remarks.append(
            f"{counted(corpus.too_long, 'clip')} of the corpus {'is' if corpus.too_long == 1 else 'are'} longer than "
            "the model aligns, and not in the audit. A CTC model aligns clips of any length."
        )
    if corpus.without:
        has = "has" if corpus.without == 1 else "have"
        remarks.append(
            f"{counted(corpus.without, 'clip')} of the corpus {has} no transcript with words, and no part in the audit."
        )
    return remarks
