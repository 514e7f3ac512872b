"""Autoregressive decoding that does not run away: limits, loops, log-probabilities and temperature fallback.

Encoder-decoder speech models loop on noise and silence ("thank you thank you thank you ..."). A row that loops ends
early, a text that looks wrong is decoded again by sampling, and neither depends on the other clips of a batch.

Shape letters: B rows, R rows that are still computed, U tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sonotune.metrics.runaway import compression_ratio
from sonotune.runs.seeds import generator
from sonotune.types import DEFAULT_DECODING, NOT_FINITE, DecodingSettings, Hypothesis, RecognizedWord

CHARACTERS_PER_SECOND = 25.0
"""Fast English speech has about 20; syllabic scripts and those without vowels have fewer."""

TOKENS_PER_CHARACTER = 3.0
"""What is allowed at least: a letter may carry two marks, which a tokenizer of characters writes one by one.

A tokenizer that does not know a letter writes its UTF-8 bytes, three for Georgian, Ethiopic, Thai or Burmese. The
published multilingual Whisper needs 2.5 tokens for a Georgian or Amharic letter and 2.8 for a Burmese one. What a
tokenizer needs beyond three is asked of it; see `tokens_per_character`."""

_SCRIPTS = ("seven", "გადაწყვიტა", "የሠራተኞችን", "အစိုးရက", "മലയാളം", "བོད་ཡིག", "ខ្មែរ", "ᱥᱟᱱᱛᱟᱲᱤ", "𞤆𞤵𞤤𞤢𞤪")
"""Words of scripts that tokenizers know well or not at all; the last, Adlam (Fulani), has four bytes a letter."""

TOKENS_PER_SECOND = CHARACTERS_PER_SECOND * TOKENS_PER_CHARACTER

TOKENS_MARGIN = 16
"""Room for special tokens, and for words in very short clips."""

DENSE_SHARE = 0.99
"""Of the rates of training transcripts, the one that so many do not exceed bounds texts: of fewer than a hundred, the
highest. What is beyond is more often a transcript of other audio than speech."""

NO_SPEECH_PROBABILITY = 0.6
"""An improbable text of a clip that is more probably silent than this is no text."""
RANDOM_WORDS = 2.0
"""Times the threshold of the mean log-probability below which a text counts as random words."""

_MAX_PERIOD = 64
"""Tokens of the longest phrase that is looked for: twelve words have about forty in a script that is known well."""
_MIN_CYCLES, _MIN_LOOP_TOKENS = 10, 30
_LONG_LOOP_TOKENS, _LONG_CYCLES = 80, 6
"""From eight tokens on, a phrase need not come ten times, but fill so many tokens and come six times: more often than
`metrics.runaway` allows, so that a text that was ended as a loop is counted as one."""
_RECURRING = 20  # tokens that come again in every loop; fewer than any loop repeats


def token_limit(
    duration_s: float,
    *,
    tokens_per_second: float = TOKENS_PER_SECOND,
    margin: int = TOKENS_MARGIN,
) -> int:
    """Most tokens a text of this much audio may have.

    The bound is generous, so that no transcript is cut in any script: loops end by themselves (`loops_at_end`).

    Args:
        duration_s: Seconds of audio.
        tokens_per_second: Cap on the rate of speech, in tokens.
        margin: Tokens allowed on top.

    Raises:
        ValueError: A negative or non-finite duration.
    """
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise ValueError(f"duration_s must be a finite number of seconds of at least 0; found {duration_s}.")
    return math.ceil(duration_s * tokens_per_second) + margin


def text_rate(tokens: int, duration_s: float, *, margin: int = TOKENS_MARGIN) -> float:
    """Least rate, in tokens a second, at which a text is within its limit; 0 where the margin is room enough.

    Args:
        tokens: Of the text, the end token included.
        duration_s: Seconds of audio.
        margin: See `token_limit`.
    """
    return max(0, tokens - margin) / duration_s if duration_s > 0 else 0.0


def tokens_per_character(tokenizer: Any) -> float:
    """Most tokens that a tokenizer needs for a letter, over words of scripts that are written in one to four bytes."""
    return max(len(tokenizer(word, add_special_tokens=False).input_ids) / len(word) for word in _SCRIPTS)


def tokens_per_second(tokenizer: Any, trained: float = 0.0) -> float:
    """The rate that bounds a text: what fast speech needs in this tokenizer, and never less than was trained on.

    Args:
        tokenizer: Writes the texts.
        trained: Rate of the transcripts that the model was trained on (`LoadedModel.tokens_per_second`).
    """
    return max(TOKENS_PER_SECOND, CHARACTERS_PER_SECOND * tokens_per_character(tokenizer), trained)


def token_limits(
    settings: DecodingSettings,
    durations_s: Sequence[float],
    *,
    otherwise: int,
    tokens_per_second: float = TOKENS_PER_SECOND,
) -> list[int]:
    """Most tokens of each clip's text, by its own duration alone; `otherwise` is the model's own bound."""
    if settings.max_new_tokens == "auto":
        return [token_limit(duration_s, tokens_per_second=tokens_per_second) for duration_s in durations_s]
    return [settings.max_new_tokens or otherwise] * len(durations_s)


def is_cut(ids: Sequence[int], limit: int) -> bool:
    """Whether a text ends because it has as many tokens as it may have, and neither by its end token nor in a loop.

    Args:
        ids: Its tokens, without the end token, which the limit counts.
        limit: Most tokens, the end token included.
    """
    return len(ids) >= limit and not bool(loops_at_end(torch.tensor([list(ids)])))


def without_half_character(text: str, *, cut: bool) -> str:
    """A text that was cut, without the bytes at its end that begin a character."""
    return text.removesuffix("\ufffd") if cut else text


def loops_at_end(written_BU: Tensor) -> Tensor:
    """Whether each row (B,) ends in one to 64 tokens that come over and over.

    Up to eight tokens come ten times in a row and fill thirty tokens; longer phrases come six times and fill eighty.
    """
    looping_B = torch.zeros(len(written_BU), dtype=torch.bool, device=written_BU.device)
    for period in _recurrences(written_BU):
        span = _loop_tokens(period)
        if written_BU.shape[1] < span:
            break
        tail_BU = written_BU[:, -span:]
        looping_B |= (tail_BU[:, period:] == tail_BU[:, :-period]).all(dim=1)
    return looping_B


def _loop_tokens(period: int) -> int:
    """Tokens that a loop of this period fills at least; more for a longer period, so no multiple of one is a loop."""
    return max(_MIN_LOOP_TOKENS, min(_MIN_CYCLES * period, _LONG_LOOP_TOKENS), _LONG_CYCLES * period)


def _recurrences(written_BU: Tensor) -> list[int]:
    """How many tokens earlier the last twenty tokens of a row stand too: most often nowhere, and nothing is to do."""
    if written_BU.shape[1] < _MIN_LOOP_TOKENS:
        return []
    recent_BU = written_BU[:, -(_MAX_PERIOD + _RECURRING) :]
    windows_BPK = recent_BU.unfold(1, _RECURRING, 1)
    same_P = (windows_BPK[:, :-1] == windows_BPK[:, -1:]).all(dim=2).any(dim=0)
    return [period for period, same in enumerate(same_P.flip(0).tolist(), start=1) if same]


def finite_rows(logits_RV: Tensor) -> Tensor:
    """Whether each row (R,) has a most probable token: no NaN, no infinity above, and not every token at -inf."""
    finite_R: Tensor = logits_RV.logsumexp(dim=-1).isfinite()
    return finite_R


class FiniteClips:
    """A logits processor of `transformers` that changes nothing and notes the clips whose logits are not finite.

    Args:
        clips: How many; beam search has several rows for each.
        rated: Whether the log-probability of each token is kept, which greedy search alone has: one number a token,
            where `output_logits` of `generate` would keep a vocabulary of them.

    Attributes:
        finite_B: Whether all logits of each clip so far were finite (B,).
    """

    def __init__(self, clips: int, *, rated: bool = False) -> None:
        self.finite_B = torch.ones(clips, dtype=torch.bool)
        self._rated, self._scores_BV, self._logprobs = rated, torch.empty(0), list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        finite_BK = finite_rows(scores).view(len(self.finite_B), -1)
        self.finite_B = self.finite_B.to(scores.device) & finite_BK.all(dim=1)
        self._scores_BV = scores if self._rated else self._scores_BV
        return scores

    def chosen(self, tokens_B: Tensor) -> None:
        """Note which token was taken by the scores of the last call."""
        if self._rated:
            scores_BV = self._scores_BV.float()
            self._logprobs.append(scores_BV.gather(1, tokens_B[:, None])[:, 0] - scores_BV.logsumexp(dim=-1))

    @property
    def logprobs(self) -> list[list[float]]:
        """Log-probability of each token of each row, with what hinders repetition; empty where none were kept."""
        return torch.stack(self._logprobs, dim=1).tolist() if self._logprobs else [[] for _ in self.finite_B]


class EndOfRow:
    """A stopping criterion of `transformers`: a row ends at its own limit, when it loops, or where it has no numbers.

    Args:
        limits: Most new tokens of each clip; beam search has several rows for each.
        prompt: Tokens that every row begins with and that are not counted.
        watched: Knows the clips whose logits are not finite.
    """

    def __init__(self, limits: Sequence[int], *, prompt: int = 0, watched: FiniteClips | None = None) -> None:
        self._limits_B, self._prompt, self._watched = torch.tensor(limits), prompt, watched

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether each row is done (B,)."""
        written_BU = input_ids[:, self._prompt :]
        rows = len(written_BU) // len(self._limits_B)
        limits_B = self._limits_B.repeat_interleave(rows)
        done_B = (written_BU.shape[1] >= limits_B.to(written_BU.device)) | loops_at_end(written_BU)
        if self._watched is not None:
            self._watched.chosen(input_ids[:, -1])
            done_B |= ~self._watched.finite_B.to(done_B.device).repeat_interleave(rows)
        return done_B


def stopping(limits: Sequence[int], *, prompt: int = 0, watched: FiniteClips | None = None) -> Any:
    """The criteria of `generate` that end rows one by one; see `EndOfRow`."""
    from transformers import StoppingCriteriaList  # noqa: PLC0415  (slow import, decoding only)

    return StoppingCriteriaList([EndOfRow(limits, prompt=prompt, watched=watched)])


def watched_rows(limits: Sequence[int], *, prompt: int = 0, rated: bool = False) -> tuple[dict[str, Any], FiniteClips]:
    """Arguments of `generate` that end rows one by one, and what says afterwards which clips had finite logits."""
    from transformers import LogitsProcessorList  # noqa: PLC0415  (slow import, decoding only)

    watched = FiniteClips(len(limits), rated=rated)
    ends = stopping(limits, prompt=prompt, watched=watched)
    return {"logits_processor": LogitsProcessorList([watched]), "stopping_criteria": ends}, watched


def generation_settings(own: Any, limits: Sequence[int], decoding: DecodingSettings, **further: Any) -> Any:
    """A copy of a model's `GenerationConfig` for greedy or beam search; `own` stays as it is.

    Args:
        own: Settings that say what ends and pads a text.
        limits: Most tokens to write in each row.
        decoding: Beams and what hinders repetition.
        **further: Other settings of the copy.
    """
    settings = copy.deepcopy(own)
    settings.update(
        max_length=None,
        max_new_tokens=max(limits),
        num_beams=decoding.beam_size,
        do_sample=False,
        return_dict_in_generate=False,
        use_cache=True,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        repetition_penalty=decoding.repetition_penalty,
        remove_invalid_values=False,  # NaN is to be seen
        **({} if decoding.length_penalty is None else {"length_penalty": decoding.length_penalty}),
        **further,
    )
    return settings


@contextmanager
def generating_with(module: Any, settings: Any) -> Iterator[None]:
    """Let a module generate by these settings alone: `generate` takes what they leave open from the module's own."""
    own = module.generation_config
    module.generation_config = settings
    try:
        yield
    finally:
        module.generation_config = own


class Decoder(Protocol):
    """An autoregressive decoder with a key-value cache over the rows of a batch."""

    def next(self, tokens_RU: Tensor) -> Tensor:
        """Logits (R, V) of the token after these, which follow those of earlier calls; None may follow -inf."""
        ...

    def keep(self, rows_R: Tensor) -> None:
        """Go on with these of the present rows."""
        ...


@dataclass(frozen=True, slots=True)
class Written:
    """What a decoder wrote in one row.

    Attributes:
        ids: The tokens, without the end token.
        mean_logprob: Mean log-probability of the tokens, the end token included, at temperature 0.
        finite: Whether all logits of the row were finite; the row ends at the first that are not.
        logprobs: Log-probability of each of `ids` at temperature 0, whatever hinders repetition.
    """

    ids: list[int]
    mean_logprob: float
    finite: bool = True
    logprobs: list[float] = field(default_factory=list)


@torch.no_grad()
def write(
    decoder: Decoder,
    prompt_BU: Tensor,
    *,
    end: int,
    limits: Sequence[int],
    settings: DecodingSettings = DEFAULT_DECODING,
    temperature: float = 0.0,
    draw_keys: Sequence[str] = (),
) -> list[Written]:
    """Write a text in each row: greedily, or by sampling at a temperature.

    Rows that are done are left out of the computation once half of them are. Nothing of size U x V is kept.

    Args:
        decoder: Gives logits.
        prompt_BU: Tokens that come first.
        end: Token that ends a text.
        limits: Most tokens of each row, the end token included.
        settings: What hinders repetition.
        temperature: 0 takes the most probable token. Above, each row draws from a generator of its own.
        draw_keys: Seeds the draws of each row (`Batch.draw_keys`).
    """
    penalties = _penalties(settings)
    device, rows, longest = prompt_BU.device, len(prompt_BU), max(limits)
    draws_BU = _draws(draw_keys, longest, temperature).to(device) if temperature > 0 else None
    limits_B = torch.tensor(limits, device=device)
    text_BU = prompt_BU.new_full((rows, longest), end)
    sums_B = torch.zeros(rows, device=device)
    logprobs_BU = torch.zeros(rows, longest, device=device)
    lengths_B = torch.zeros(rows, dtype=torch.long, device=device)
    present_R = torch.arange(rows, device=device)  # rows that are still computed
    open_R = torch.ones(rows, dtype=torch.bool, device=device)  # those of them that are not done
    finite_B = torch.ones(rows, dtype=torch.bool, device=device)
    tokens_RU = prompt_BU
    for place in range(longest):
        logits_RV = decoder.next(tokens_RU).float()
        scores_RV = logits_RV
        if penalties:
            # They write into what they are given, and the log-probability is that without them.
            before_RU = torch.cat([prompt_BU, text_BU[:, :place]], dim=1)[present_R]  # as `transformers` counts
            scores_RV = penalties(before_RU, logits_RV.clone())
        if draws_BU is None:
            chosen_R = scores_RV.argmax(dim=-1)
        else:
            chosen_R = _sample(scores_RV / temperature, draws_BU[present_R, place])
        totals_R = logits_RV.logsumexp(dim=-1)
        finite_R = totals_R.isfinite()
        logprobs_R = logits_RV.gather(1, chosen_R[:, None])[:, 0] - totals_R
        going_R = present_R[open_R]
        finite_B[going_R] = finite_R[open_R]
        text_BU[going_R, place] = chosen_R[open_R]
        sums_B[going_R] += logprobs_R[open_R]
        logprobs_BU[going_R, place] = logprobs_R[open_R]
        lengths_B[going_R] = place + 1
        open_R = open_R & finite_R & (chosen_R != end) & (place + 1 < limits_B[present_R])
        open_R &= ~loops_at_end(text_BU[present_R, : place + 1])
        left = int(open_R.sum())
        if left == 0:
            break
        tokens_RU = chosen_R[:, None]
        if left <= len(present_R) // 2:
            kept_R = open_R.nonzero()[:, 0]
            decoder.keep(kept_R)
            present_R, open_R, tokens_RU = present_R[kept_R], open_R[kept_R], tokens_RU[kept_R]
    means_B = (sums_B / lengths_B.clamp_min(1)).tolist()
    texts = [row[:length] for row, length in zip(text_BU.tolist(), lengths_B.tolist(), strict=True)]
    written = [[one for one in row if one != end] for row in texts]  # the end token is the last one or none
    return [
        Written(ids, mean, finite, logprobs[: len(ids)])
        for ids, mean, finite, logprobs in zip(written, means_B, finite_B.tolist(), logprobs_BU.tolist(), strict=True)
    ]


def _penalties(settings: DecodingSettings) -> Any:
    from transformers.generation import logits_process as made  # noqa: PLC0415  (slow import, decoding only)

    found = made.LogitsProcessorList()
    if settings.repetition_penalty != 1:
        found.append(made.RepetitionPenaltyLogitsProcessor(penalty=settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        found.append(made.NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    return found


def _draws(draw_keys: Sequence[str], count: int, temperature: float) -> Tensor:
    """Uniform draws (B, U) that each row has of what is heard in it, whatever else is in the batch."""
    rows = [generator(0, one, "decode", str(temperature)).random(count) for one in draw_keys]
    return torch.from_numpy(np.stack(rows))


def _sample(scores_RV: Tensor, draws_R: Tensor) -> Tensor:
    """The token (R,) at which the cumulated probability passes the draw."""
    cumulated_RV = scores_RV.double().softmax(dim=-1).cumsum(dim=-1)
    wanted_R1 = draws_R[:, None] * cumulated_RV[:, -1:]
    return torch.searchsorted(cumulated_RV, wanted_R1, right=True)[:, 0].clamp_max(scores_RV.shape[1] - 1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text and what the fallback judges it by.

    Attributes:
        text: Without special tokens.
        mean_logprob: See `Written`.
        finite: See `Written`.
        cut: See `is_cut`.
        words: See `Hypothesis`.
    """

    text: str
    mean_logprob: float
    finite: bool = True
    cut: bool = False
    words: tuple[RecognizedWord, ...] | None = None

    def at(self, temperature: float) -> Hypothesis:
        """What it is as the text of a clip."""
        return Hypothesis(text=self.text, temperature=temperature, cut=self.cut, words=self.words)

    def compresses(self, settings: DecodingSettings) -> bool:
        """Whether the text is as repetitive as a loop."""
        threshold = settings.compression_ratio_threshold
        return threshold is not None and compression_ratio(self.text) > threshold

    def is_improbable(self, settings: DecodingSettings) -> bool:
        """Whether the tokens of the text have a low mean log-probability."""
        return settings.logprob_threshold is not None and self.mean_logprob < settings.logprob_threshold

    def is_silence(self, settings: DecodingSettings, no_speech: float) -> bool:
        """Whether the clip likely has no speech, and the text is improbable."""
        return no_speech > NO_SPEECH_PROBABILITY and self.is_improbable(settings)

    def fails(self, settings: DecodingSettings, no_speech: float) -> bool:
        """Whether the text should be decoded again; not that of likely silence, which no draw makes better."""
        if self.is_silence(settings, no_speech):
            return False
        return not self.finite or self.is_improbable(settings) or self.compresses(settings)


def fall_back(
    first: Sequence[Candidate],
    no_speech: Sequence[float],
    settings: DecodingSettings,
    again: Callable[[Sequence[int], float], Sequence[Candidate]],
) -> list[Hypothesis]:
    """Decode the texts that fail at rising temperatures, each until it passes.

    Where none passes, the published recipe keeps the last text, which is the most random. Here it is the most probable
    of those that do not compress like a loop, unless that is far less probable than the threshold: random words in many
    scripts do not compress, and would hide a loop from whoever counts them. Then the first text stays, and is counted.
    A clip that is likely silent and whose text is improbable gets no text, as in the published recipe. One whose logits
    were not finite at first has none either: no draw makes numbers of them.

    Args:
        first: Texts of the first pass.
        no_speech: Probability that each clip has no speech.
        settings: Thresholds and temperatures.
        again: Decodes the rows of these indices at a temperature.

    Source: Radford et al. 2022, section 4.5.
    """
    tried = [[one] for one in first]
    chosen = [one.at(0.0) for one in first]
    failed = [row for row, one in enumerate(first) if one.finite and one.fails(settings, no_speech[row])]
    for temperature in settings.temperatures[1:]:
        if not failed:
            break
        still = []
        for row, one in zip(failed, again(failed, temperature), strict=True):
            tried[row].append(one)
            chosen[row] = one.at(temperature)
            if one.fails(settings, no_speech[row]):
                still.append(row)
        failed = still
    floor = RANDOM_WORDS * (settings.logprob_threshold or 0.0)
    for row in failed:
        usable = [
            place
            for place, one in enumerate(tried[row])
            if one.finite
            and not one.compresses(settings)
            and (settings.logprob_threshold is None or one.mean_logprob >= floor)
        ]
        best = max(usable, key=lambda place: tried[row][place].mean_logprob, default=0)
        chosen[row] = tried[row][best].at(settings.temperatures[best])
    for row, attempts in enumerate(tried):
        if attempts[-1].is_silence(settings, no_speech[row]):
            chosen[row] = Hypothesis(text="")
        if not attempts[0].finite:
            chosen[row] = NOT_FINITE
    return [replace(one, attempts=len(attempts)) for one, attempts in zip(chosen, tried, strict=True)]
