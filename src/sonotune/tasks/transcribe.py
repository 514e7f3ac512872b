"""Speech to text: the transcript is the target, an error rate of words or of characters chooses the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sonotune.data import numbers
from sonotune.data.scripts import deciding_rate
from sonotune.data.text import BASIC, profile_of, says_something
from sonotune.data.words import right_words
from sonotune.errors import ConfigError, MissingExtraError, TextError, TextTooLongError
from sonotune.features.batching import Batch
from sonotune.metrics.confidence import RatedWords, word_log_odds
from sonotune.metrics.error_rate import edit_counts, error_rate
from sonotune.metrics.runaway import cut_loops, decoding_health
from sonotune.metrics.scores import NUMBERS_VERBALIZED
from sonotune.metrics.text_pairs import KEPT_PAIRS, KEPT_TEXTS, compare_texts
from sonotune.metrics.text_scores import FurtherScores, ScoredText
from sonotune.models.base import LoadedModel, SpeechFamily
from sonotune.models.decoding import DENSE_SHARE, text_rate
from sonotune.models.label_limit import LabelLimit, TokensAround, transcripts_too_long
from sonotune.models.languages import find_code, misspelt
from sonotune.models.losses import LabelOutputs, Losses
from sonotune.progress import note
from sonotune.registry import SCORES
from sonotune.tasks.base import PreparedClips, TaskSettings
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Finding, LabelTokens, Prediction, Score

LOOPS_CUT = "wer_loops_cut"
"""Name of the word error rate of texts whose loops are cut."""
SPELLING_FOLDED = "wer_spelling_folded"
"""Name of the word error rate of texts in which spelling variants of a word are one (`Normalizer.folded`)."""
RATES = ("wer", "cer")
"""Scores that every evaluation gives."""
_BESIDE = {
    LOOPS_CUT: "WER with loops cut",
    NUMBERS_VERBALIZED: "WER with numbers as words",
    SPELLING_FOLDED: "WER with spellings folded",
}


class Transcribe:
    """Speech to text with any family that encodes text.

    Args:
        family: Encodes and decodes text, computes the loss.
        settings: Normalisers of texts, the language of clips that name none, and the longest target.
    """

    name = "transcribe"
    reference: Literal["text", "label"] | None = "text"

    def __init__(self, family: SpeechFamily, settings: TaskSettings) -> None:
        if settings.verbalize_numbers is True and not numbers.installed():
            raise MissingExtraError(
                "evaluation.verbalize_numbers=true needs the package num2words, which is not installed. "
                f"Install it with {numbers.INSTALL}, or leave the setting at auto."
            )
        asked = [name for name in (*settings.scores, settings.primary) if name not in (*RATES, "auto")]
        settings.check_primary(self.name, (*RATES, *SCORES, *settings.scores))
        self._further = FurtherScores(asked)
        self.rates_labels = bool(self._further.of_labels)
        self.family = family
        self._settings = settings
        self._scoring = scoring = lru_cache(maxsize=KEPT_TEXTS)(settings.scoring_text.scoring)
        self._right_words = lru_cache(maxsize=KEPT_PAIRS)(
            lambda hypothesis, reference, written: right_words(
                hypothesis, reference, lambda text: scoring(written(text))
            )
        )
        self._unknown: dict[str, str] = {}
        self._keeps_numbers = False
        self._written: Callable[[str], str] = str

    def outputs(self, clips: Sequence[Clip]) -> tuple[str, ...]:
        """Every character of the transcripts in training form, spaces left out."""
        texts = (self._settings.training_text.training(clip.text or "") for clip in clips)
        return tuple(sorted({character for text in texts for character in text if not character.isspace()}))

    def prepare(self, loaded: LoadedModel, clips: Sequence[Clip]) -> PreparedClips:
        """Encode every transcript; what the tokenizer cannot write, or the model cannot hold, becomes a finding.

        A transcript that the model has no room for is left out as a clip beyond its window is: counted, and not bad.
        """
        self._refuse_language(loaded)
        self._written = self.family.written_form(loaded)
        kept, targets, findings = [], [], []
        too_long: dict[str, str] = {}
        around = TokensAround(self.family, loaded)
        limit = LabelLimit(self._settings.max_label_tokens, around, aligned=self._settings.aligned)
        for clip in clips:
            text = self._settings.training_text.training(clip.text or "")
            language = clip.language or self._settings.language
            if (clip.text or "").strip() and not says_something(text):
                message = f"clip {clip.id!r}: its transcript has no letter, digit or symbol. The clip is left out."
                findings.append(Finding(check="text.empty", severity="error", message=message, clip_ids=(clip.id,)))
                continue
            try:
                ids = self.family.encode_text(loaded, text, language, duration_s=clip.duration_s)
            except TextTooLongError as error:
                too_long[clip.id] = str(error)
                continue
            except TextError as error:
                message = f"clip {clip.id!r}: {error} The clip is left out."
                findings.append(
                    Finding(check="text.not_encodable", severity="error", message=message, clip_ids=(clip.id,))
                )
                continue
            shortened = limit.apply(ids, clip.id, language)
            if shortened is not None:
                targets.append(shortened)
                kept.append(replace(clip, text=text, language=language))
        findings += self._notes(loaded, {clip.language for clip in kept if clip.language})
        findings += [*transcripts_too_long(too_long, len(clips)), *limit.findings(len(clips))]
        findings += self._note_on_case(loaded, kept)
        rates = [
            text_rate(len(ids) - around.tokens(clip.language) + 1, clip.duration_s)
            for ids, clip in zip(targets, kept, strict=True)
        ]
        return PreparedClips(
            clips=tuple(kept),
            targets=tuple(targets),
            findings=tuple(findings),
            tokens_per_second=float(np.quantile(rates, DENSE_SHARE, method="higher")) if rates else 0.0,
        )

    def _refuse_language(self, loaded: LoadedModel) -> None:
        """Say once that the language of the settings cannot be learned, not once for each clip.

        Raises:
            ConfigError: The model does not know it, in the family's own words; or a model that is told no language
                would not notice that its name is misspelt.
        """
        language = self._settings.language
        if language is None:
            return
        problem = self._problem_of_language(loaded, language)
        if problem is None and (meant := misspelt(language)):
            problem = f"no language has that code or name{meant}"
        if problem is not None:
            raise ConfigError(f"model.language={language}: {problem}")

    def _problem_of_language(self, loaded: LoadedModel, language: str) -> str | None:
        """What the family says of a language that the model is not told; None where it is."""
        if self.family.knows_language(loaded, language):
            return None
        try:
            self.family.encode_text(loaded, "", language)
        except TextError as error:
            return str(error)
        return None

    def _notes(self, loaded: LoadedModel, languages: Collection[str]) -> list[Finding]:
        """What the family has to say about a language it can write and was never trained on."""
        notes = [self.family.note_on_language(loaded, language) for language in sorted(languages)]
        return [Finding(check="model.language", severity="note", message=note) for note in notes if note]

    def _note_on_case(self, loaded: LoadedModel, clips: Sequence[Clip]) -> list[Finding]:
        """That the transcripts are written in another case than they have."""
        changed = tuple(clip.id for clip in clips if clip.text and self._written(clip.text) != clip.text)
        if not changed:
            return []
        message = (
            f"{len(changed)} of {len(clips)} transcripts are written in another case than they have, for training and "
            f"for scores: {loaded.checkpoint} has letters of one case only."
        )
        note(message)
        return [Finding(check="text.case", severity="note", message=message, clip_ids=changed)]

    def loss(self, loaded: LoadedModel, batch: Batch, *, label_smoothing: float = 0.0) -> Losses:
        """See `Task.loss`."""
        return self.family.forward(loaded, batch).losses(label_smoothing=label_smoothing)

    def predict(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Prediction]:
        """See `Task.predict`."""
        self._written = self.family.written_form(loaded)
        batch = replace(batch, clips=tuple(self._told(loaded, clip) for clip in batch.clips))
        made = self.family.transcribe(loaded, batch, settings)
        if settings.confidence and any(one.words is None and one.text for one in made):
            raise ConfigError(
                f"evaluation.confidence=true: the family {self.family.name} gives no probabilities of words. Leave it "
                "out, or return Hypothesis.words from its `transcribe`."
            )
        nothing = () if settings.confidence else None  # of a clip without a text
        return [
            Prediction(
                clip_id=clip.id,
                text=one.text,
                attempts=one.attempts,
                finite=one.finite,
                cut=one.cut,
                words=nothing if one.words is None else one.words,
            )
            for clip, one in zip(batch.clips, made, strict=True)
        ]

    def label_targets(self, loaded: LoadedModel, clips: Sequence[Clip]) -> Mapping[str, NDArray[np.int64]]:
        """See `LabelTask`: the transcripts in training form, none cut short."""
        whole = Transcribe(self.family, replace(self._settings, max_label_tokens=None))
        prepared = whole.prepare(loaded, [self._told(loaded, clip) for clip in clips])
        return {clip.id: ids for clip, ids in zip(prepared.clips, prepared.targets, strict=True)}

    def rate_labels(self, loaded: LoadedModel, batch: Batch) -> list[LabelTokens | None]:
        """See `LabelTask`.

        Raises:
            ConfigError: The model does not predict tokens one after the other.
        """
        outputs = self.family.forward(loaded, batch)
        if not isinstance(outputs, LabelOutputs):
            asked = " and ".join(self._further.of_labels)
            raise ConfigError(
                f"{asked} cannot be given: {loaded.checkpoint} is a CTC model, which has no probability of a token "
                "given those before it. Leave it out of evaluation.scores and evaluation.primary, or take a model with "
                "a decoder."
            )
        return outputs.label_tokens()

    def _told(self, loaded: LoadedModel, clip: Clip) -> Clip:
        """The clip with the language the model is told; one that it has no token for is left to detection."""
        if clip.language is None:
            return replace(clip, language=self._settings.language)
        if not self.family.knows_language(loaded, clip.language):
            return replace(clip, language=None)
        return clip

    def has_reference(self, clip: Clip) -> bool:
        """See `Task.has_reference`: a transcript, be it empty."""
        return clip.text is not None

    def check_references(self, loaded: LoadedModel, clips: Sequence[Clip]) -> None:
        """See `Task`: a character that the model cannot write is an error it makes; only the language is refused."""
        self._refuse_language(loaded)
        problems = {name: self._problem_of_language(loaded, name) for name in {clip.language for clip in clips} if name}
        self._unknown = {name: problem for name, problem in sorted(problems.items()) if problem}

    def primary_of(self, clips: Sequence[Clip]) -> tuple[str, str]:
        """The rate that is asked for, else that of characters where the references have no spaces between words."""
        if self._settings.primary != "auto":
            return self._settings.primary, "asked for (evaluation.primary)"
        return deciding_rate(self._settings.scoring_text.scoring(clip.text) for clip in clips if clip.text is not None)

    def score(
        self,
        predictions: Sequence[Prediction],
        clips: Sequence[Clip],
        *,
        primary: str | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Word and character error rate over the scoring form of both texts; empty hypotheses count as deletions.

        `wer` says how many texts loop (`detail.loops`), how many were cut at their limit of tokens (`detail.cut`), on
        how many clips nothing was said (`detail.silent_clips`) and how many words were written on those
        (`detail.silent_words`). Where texts loop, `wer_loops_cut` stands beside it: the rate if each of them had said
        its phrase once.

        Beside them stands a word error rate with numbers as words, where `TaskSettings.verbalize_numbers` asks for it,
        and one with spelling variants folded, where the scoring normaliser has such a form and clips are in its
        language. Each has the digest of its normaliser (`detail.normalizer`). Scores of `TaskSettings.scores` follow.
        """
        references, hypotheses = self._scored(predictions, clips)
        speakers = [clip.speaker for clip in clips]
        pairs = [compare_texts(*texts) for texts in zip(references, hypotheses, strict=True)]
        words = [pair.words for pair in pairs]
        counts = {"wer": words, "cer": [pair.characters for pair in pairs]}
        looping = [pair.loops for pair in pairs]
        if any(looping):
            cut = [cut_loops(text) if loop else text for text, loop in zip(hypotheses, looping, strict=True)]
            counts[LOOPS_CUT] = edit_counts(references, cut, unit="word")
        if self._shows_numbers(references, hypotheses, clips):
            counts[NUMBERS_VERBALIZED] = edit_counts(*self._verbalized(predictions, clips), unit="word")
        if any(folds := [self._folds(clip) for clip in clips]):
            sides = (self._folded(texts, folds) for texts in (references, hypotheses))
            counts[SPELLING_FOLDED] = edit_counts(*sides, unit="word")
        scores = {
            name: error_rate(
                name, edits, title=_BESIDE.get(name, ""), speakers=speakers, bootstrap=resamples, seed=seed
            )
            for name, edits in counts.items()
        }
        wer = scores["wer"]
        silent = [edit.insertions for edit in words if edit.reference == 0]
        counted = {
            "loops": sum(looping),
            "cut": sum(prediction.cut for prediction in predictions),
            "silent_clips": len(silent),
            "silent_words": sum(silent),
        }
        scores["wer"] = replace(wer, detail={**wer.detail, **counted})
        decides = primary or self.primary_of(clips)[0]
        texts = self._texts(predictions, clips)
        scores |= self._further.score(texts, speakers=speakers, resamples=resamples, seed=seed)
        normalizer = self._settings.scoring_text
        return {
            name: replace(
                one,
                role="primary" if name == decides else "beside" if name in _BESIDE else "plain",
                detail={
                    **one.detail,
                    "normalizer": normalizer.folded_digest if name == SPELLING_FOLDED else normalizer.digest,
                    **({"numbers": numbers.sources(self._codes(clips))} if name == NUMBERS_VERBALIZED else {}),
                },
            )
            for name, one in sorted(scores.items(), key=lambda named: named[0] != decides)
        }

    def details(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[dict[str, Any], list[Finding]]:
        """Loops, fallbacks, empty texts, invented words, and languages that the model does not know."""
        references, hypotheses = self._scored(predictions, clips)
        pairs = [compare_texts(*texts) for texts in zip(references, hypotheses, strict=True)]
        edits, looping = [pair.words for pair in pairs], [pair.loops for pair in pairs]
        again = sum(prediction.attempts > 1 for prediction in predictions)
        cut = sum(prediction.cut for prediction in predictions)
        ids = [clip.id for clip in clips]
        health = decoding_health(ids, references, hypotheses, edits, looping=looping, fallbacks=again, cut=cut)
        inserted = sum(edit.insertions for edit in edits)
        findings = [
            *self._notes_on_unknown(clips),
            *health.findings(),
            *self._notes_on_numbers(references, hypotheses, clips),
            *self._further.findings(self._texts(predictions, clips)),
        ]
        return {"insertions": inserted, "decoding": health.to_json()}, findings

    def row(self, prediction: Prediction, clip: Clip) -> Mapping[str, Any]:
        """The texts as they came, in the form that is compared, and the word errors between them.

        `cut` and `no_signal` (see `Prediction`) stand in the rows of which they are true, `attempts` where the
        first text failed a threshold, and `label_tokens` and `words` where they were measured.
        """
        hypothesis = prediction.text or ""
        row: dict[str, Any] = {
            "reference": clip.text,
            "hypothesis": hypothesis,
            "scored_reference": None,
            "scored_hypothesis": None,
            "edits": None,
        }
        if clip.text is not None:
            references, hypotheses = self._scored([prediction], [clip])
            edits = compare_texts(references[0], hypotheses[0]).words
            row |= {"scored_reference": references[0], "scored_hypothesis": hypotheses[0], "edits": edits.to_json()}
        if prediction.attempts > 1:
            row["attempts"] = prediction.attempts
        if prediction.label_tokens is not None:
            row["label_tokens"] = prediction.label_tokens.to_json()
        if prediction.words is not None:
            row["words"] = [
                word.to_json() | ({} if clip.text is None else {"right": right})
                for word, right in zip(prediction.words, self._outcomes(prediction, clip), strict=True)
            ]
        return row | {name: True for name in ("cut", "no_signal") if getattr(prediction, name)}

    def rated_words(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> RatedWords:
        """See `WordTask`; words of which scoring sees nothing have no part in it."""
        log_odds, right, owners = list[float](), list[bool](), list[int]()
        for number, (prediction, clip) in enumerate(zip(predictions, clips, strict=True)):
            if not prediction.words:
                continue
            for word, outcome in zip(prediction.words, self._outcomes(prediction, clip), strict=True):
                if outcome is not None:
                    log_odds.append(word_log_odds(word.logprobs))
                    right.append(outcome)
                    owners.append(number)
        return RatedWords(
            np.array(log_odds), np.array(right, dtype=np.bool_), np.array(owners, dtype=np.int64), len(clips)
        )

    def _outcomes(self, prediction: Prediction, clip: Clip) -> Sequence[bool | None]:
        """Whether each word of a text is right; all are wrong where there is none to write."""
        if not prediction.words:
            return ()
        outcomes: Sequence[bool | None] = self._right_words(prediction.text or "", clip.text or "", self._written)
        return outcomes

    def _scored(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[list[str], list[str]]:
        """References and hypotheses in scoring form, both in the letters that the model has."""
        scoring, written = self._scoring, self._written
        return (
            [scoring(written(clip.text or "")) for clip in clips],
            [scoring(written(prediction.text or "")) for prediction in predictions],
        )

    def _texts(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> list[ScoredText]:
        """What the further scores see."""
        if not self._further.scores:
            return []
        return [
            ScoredText(
                reference=BASIC.training(clip.text or ""),
                hypothesis=BASIC.training(prediction.text or ""),
                scored_reference=reference,
                scored_hypothesis=hypothesis,
                language=clip.language or self._settings.language,
                label_tokens=prediction.label_tokens,
            )
            for clip, prediction, reference, hypothesis in zip(
                clips, predictions, *self._scored(predictions, clips), strict=True
            )
        ]

    def _folds(self, clip: Clip) -> bool:
        """Whether spellings of a clip are folded: where it is in the language of the normaliser, or names none."""
        normalizer, language = self._settings.scoring_text, clip.language or self._settings.language
        return normalizer.folded is not None and (language is None or profile_of(language) == normalizer.name)

    def _folded(self, texts: Sequence[str], folds: Sequence[bool]) -> list[str]:
        """Texts in scoring form with spelling variants folded where that is asked."""
        fold = self._settings.scoring_text.folded or str
        return [fold(text) if wanted else text for text, wanted in zip(texts, folds, strict=True)]

    def _verbalized(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[list[str], list[str]]:
        """References and hypotheses in scoring form, with numbers as words where the language of the clip has them."""
        codes = [self._code(clip) for clip in clips]
        return self._scored(
            [
                replace(prediction, text=numbers.verbalize_numbers(prediction.text or "", code or ""))
                for prediction, code in zip(predictions, codes, strict=True)
            ],
            [
                replace(clip, text=numbers.verbalize_numbers(clip.text or "", code or ""))
                for clip, code in zip(clips, codes, strict=True)
            ],
        )

    def _codes(self, clips: Sequence[Clip]) -> frozenset[str]:
        """The languages in which numbers of clips are said."""
        return frozenset(code for clip in clips if (code := self._code(clip)))

    def _code(self, clip: Clip) -> str | None:
        """The language in which numbers of a clip are said; None where it is not known."""
        language = clip.language or self._settings.language
        return None if language is None else find_code(language, numbers.LANGUAGES)

    def _shows_numbers(self, references: Sequence[str], hypotheses: Sequence[str], clips: Sequence[Clip]) -> bool:
        """Whether the score with numbers as words is given."""
        if self._settings.verbalize_numbers is not True and not self._keeps_numbers:
            return bool(self._one_sided(references, hypotheses, clips)) and numbers.installed()
        return any(self._code(clip) for clip in clips)

    def keep_scores(self, names: Collection[str]) -> None:
        """Give the scores that stood beside in an earlier evaluation of the run in the next ones too.

        Args:
            names: Of the scores so far. The one with numbers as words is kept, though no clip may need it any more.
        """
        wanted = self._settings.verbalize_numbers is not False and NUMBERS_VERBALIZED in names
        self._keeps_numbers = wanted and numbers.installed()

    def _one_sided(
        self, references: Sequence[str], hypotheses: Sequence[str], clips: Sequence[Clip]
    ) -> tuple[str, ...]:
        """Clips with digits in one of the two texts only, of languages whose numbers can be said."""
        if self._settings.verbalize_numbers is False:
            return ()
        return tuple(
            clip.id
            for clip, reference, hypothesis in zip(clips, references, hypotheses, strict=True)
            if numbers.has_digits(reference) != numbers.has_digits(hypothesis) and self._code(clip) is not None
        )

    def _notes_on_unknown(self, clips: Sequence[Clip]) -> list[Finding]:
        """That clips name a language which the model cannot be told, one finding a language."""
        found = []
        for language, problem in self._unknown.items():
            ids = tuple(clip.id for clip in clips if clip.language == language)
            if ids:
                message = (
                    f"{len(ids)} of {len(clips)} clips are in {language!r}: {problem} The language is left to the "
                    f"model, which may take another one, and the scores under language={language} are of such texts."
                )
                found.append(
                    Finding(
                        check="text.language",
                        severity="warning",
                        message=message,
                        clip_ids=ids,
                        measured=float(len(ids)),
                        unit="clips",
                    )
                )
        return found

    def _notes_on_numbers(
        self, references: Sequence[str], hypotheses: Sequence[str], clips: Sequence[Clip]
    ) -> list[Finding]:
        """That the library is missing where it would be used, or does not know a language that was asked of it."""
        notes: dict[str, tuple[str, ...]] = {}
        if self._settings.verbalize_numbers is True:
            without = tuple(clip.id for clip in clips if self._code(clip) is None)
            known = {clip.language or self._settings.language or "no language given" for clip in clips}
            named = ", ".join(sorted(name for name in known if find_code(name, numbers.LANGUAGES) is None))
            notes[
                f"{len(without)} of {len(clips)} clips keep their digits in {NUMBERS_VERBALIZED}: numbers cannot be "
                f"written as words in their language ({named}). Set model.language where clips name none."
            ] = without
        elif not numbers.installed():
            ids = self._one_sided(references, hypotheses, clips)
            notes[
                f"{len(ids)} of {len(clips)} clips have digits in the reference or the hypothesis only, which count as "
                f"word errors. {numbers.INSTALL} adds a word error rate with numbers as words."
            ] = ids
        return [
            Finding(
                check="text.numbers",
                severity="note",
                message=message,
                clip_ids=ids,
                measured=float(len(ids)),
                unit="clips",
            )
            for message, ids in notes.items()
            if ids
        ]
