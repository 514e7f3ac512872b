"""Whisper as an aligner: one pass over a given transcript says how likely each token is and where it looks.

The decoder is given the whole transcript (teacher forcing). Its distributions are the evidence, and the
cross-attention of a few heads, which follows the speech, gives the times. The scores are conditional on the words
before: a word that is missing shows at the token behind the gap, and text that stops too early at the end token.

Shape letters: B clips, H heads, U tokens, P encoder positions, D width, V vocabulary, N rows of evidence.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonotune.alignment.attention import best_path, gains, hits, path_share
from sonotune.alignment.base import AlignerSettings, Alignment, DetectedLanguage, Evidence, Recording, recording, takes
from sonotune.alignment.clip_pools import in_order
from sonotune.alignment.placing import clip_finding, placed_words
from sonotune.alignment.whisper_tokens import begins_word, never_written, word_of_each_token
from sonotune.data.text import get, says_something
from sonotune.errors import ConfigError, ManifestError, ModelError, TextError
from sonotune.features.batching import Batch, ClipBatches
from sonotune.models.base import LoadedModel
from sonotune.models.encoder_rows import positions_of
from sonotune.models.families.whisper import WhisperFamily, text_tokens
from sonotune.models.families.whisper_checkpoint import is_english, is_multilingual, language_tokens
from sonotune.models.languages import named, nearest
from sonotune.models.modes import undisturbed
from sonotune.models.thinning import POSITIONS_PER_SECOND
from sonotune.types import Clip, DecodingSettings, Finding

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Head = tuple[int, int]
"""Layer and head of the decoder's cross-attention."""

WINDOW_TOKENS: Final = 5
"""Tokens of the local mean, two words or three: of 3 to 8, five told transcripts with a gap from right ones best. Given
the words behind a gap, the decoder takes it that they were meant, and only a few tokens are unlikely."""

HEADS: Final = 6
"""Heads that are chosen where a checkpoint names none; Whisper-base names 8."""

_TAIL_S: Final = 0.2
"""Longest time from where attention leaves a word to its end."""

_REMEMBERED: Final = 10_000  # recordings whose text is remembered
_SECONDS: Final = 1.0 / POSITIONS_PER_SECOND
_GREEDY: Final = DecodingSettings(temperatures=(0.0,), compression_ratio_threshold=None, logprob_threshold=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """A clip's transcript in tokens.

    Attributes:
        clip: With the language that the model is told.
        words: As the manifest writes them.
        targets: Prompt, text and end as ids (U,).
        prompt: Length of the prompt.
        token_words: Index into `words` of each text token; -1 for one that is nothing but space.
        unknown_share: Share of characters that the tokenizer cannot write.
    """

    clip: Clip
    words: tuple[str, ...]
    targets: NDArray[np.int64]
    prompt: int
    token_words: NDArray[np.int64]
    unknown_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What the decoder computed of a clip.

    Attributes:
        text: The clip.
        hidden: States that make the logits of text and end (N, D).
        language: The state that makes the logits of the language (D,), that of the start token.
        queries: Layer -> states of every token that its cross-attention took (U, D).
        encoded: Encoder states of the clip itself (P, D).
    """

    text: _Text
    hidden: Tensor
    language: Tensor
    queries: dict[int, Tensor]
    encoded: Tensor


class WhisperAligner:
    """Teacher forcing and cross-attention.

    Args:
        loaded: A Whisper.
        settings: What a user decides.
        heads: Layer and head of the cross-attention that gives the times; None takes `alignment_heads` of the
            checkpoint's generation settings, or for each clip those whose attention follows a rising line best.

    Raises:
        ModelError: The model is no Whisper, merges positions, or has no such heads.
    """

    name = "whisper"

    def __init__(self, loaded: LoadedModel, settings: AlignerSettings, *, heads: Sequence[Head] | None = None) -> None:
        if not isinstance(loaded.family, WhisperFamily):
            raise ModelError(
                f"the aligner whisper takes a Whisper model, and {loaded.checkpoint} is of the family "
                f"{loaded.family.name}. Take aligner=auto, or another model."
            )
        if loaded.merging.ratio:
            raise ModelError(
                f"{loaded.checkpoint} merges positions of its encoder (frame_merging.ratio={loaded.merging.ratio:g}), "
                "and where its attention looks is no time any more. Align with a CTC model, whose frames keep their "
                "times, or with the Whisper that it was tuned from."
            )
        self.loaded, self._family, self.settings = loaded, loaded.family, settings
        self.max_duration_s: float | None = loaded.frontend.max_duration_s
        config = loaded.module.config
        given = getattr(loaded.module.generation_config, "alignment_heads", None) if heads is None else heads
        self.heads: tuple[Head, ...] | None = tuple((layer, head) for layer, head in given) if given else None
        """What gives the times; None where each clip's own are chosen."""
        known = (config.decoder_layers, config.decoder_attention_heads)
        for layer, head in self.heads or ():
            if not (0 <= layer < known[0] and 0 <= head < known[1]):
                raise ModelError(
                    f"{loaded.checkpoint} has no cross-attention head {head} in layer {layer}: it has {known[0]} "
                    f"layers of {known[1]} heads. Select heads again, or mend alignment_heads in "
                    "generation_config.json."
                )
        self._normalise = get(settings.text).training
        self._writable: dict[str, bool] = {}
        self._written: dict[tuple[Recording, str | None], str | None] = {}
        self._closed = never_written(loaded)
        self._languages = self._family.languages(loaded)

    def check_languages(self, languages: Sequence[str]) -> None:
        """See `Aligner.check_languages`."""
        unknown = [one for one in dict.fromkeys(languages) if not self._family.knows_language(self.loaded, one)]
        if not unknown:
            return
        multilingual = is_multilingual(self.loaded)
        known = sorted(language_tokens(self.loaded)) if multilingual else ["en"]
        names = named(known)
        meant = nearest(unknown[0], names) if len(unknown) == 1 else ""
        raise ConfigError(
            f"{self.loaded.checkpoint} does not know {_listed(unknown)}{meant or ';'} it knows {', '.join(known)}. "
            "Align these clips with a CTC model of the language, or give them the code of a related one."
        )

    def align(self, clips: Sequence[Clip]) -> Iterator[Alignment | Finding]:
        """See `Aligner.align`."""
        layers = sorted({layer for layer, _ in self.heads}) if self.heads else self._later_layers()

        def run(texts: Sequence[_Text]) -> list[Alignment | Finding]:
            batch = self._batch(texts)
            written = self._transcripts(batch) if self.settings.transcribe else {}
            passes = self._passes(texts, batch, layers)
            return [one if isinstance(one, Finding) else self._alignment(one, written) for one in passes]

        return self._in_order(clips, run)

    def attention(self, clips: Sequence[Clip], layers: Sequence[int]) -> Iterator[Attention | Finding]:
        """Where every head of some layers looks when it writes each token of a clip; a finding where it cannot."""

        def run(texts: Sequence[_Text]) -> list[Attention | Finding]:
            return [
                one if isinstance(one, Finding) else self._attention(one)
                for one in self._passes(texts, self._batch(texts), layers)
            ]

        return self._in_order(clips, run)

    def _in_order(
        self, clips: Sequence[Clip], run: Callable[[Sequence[_Text]], Sequence[Result | Finding]]
    ) -> Iterator[Result | Finding]:
        return in_order(
            (self._prepare(clip) for clip in clips),
            run,
            seconds=lambda one: self.loaded.computed_s(one.clip.duration_s),
            batch_seconds=self.settings.batch_seconds,
            batch_max_clips=self.settings.batch_max_clips,
        )

    def _later_layers(self) -> list[int]:
        """Where heads are looked for: the later half, as `transformers` and the authors have it."""
        layers = int(self.loaded.module.config.decoder_layers)
        return list(range(layers // 2, layers))

    def _prepare(self, clip: Clip) -> _Text | Finding:
        """A clip's transcript in tokens, or why there is none."""
        if not takes(self, clip):
            return clip_finding(
                clip,
                "align.too_long_audio",
                f"lasts {clip.duration_s:.2f} s, and {self.loaded.checkpoint} reads {self.max_duration_s:g} s at a "
                "time. Align it with a CTC model, or cut it with `start_s` and `duration_s`.",
                measured=clip.duration_s,
                limit=self.max_duration_s,
                unit="s",
            )
        words = tuple((clip.text or "").split())
        if not says_something(clip.text or ""):
            return clip_finding(clip, "align.empty_text", "has no words in its transcript. Leave it out.")
        language = clip.language or self.settings.language
        if language is None and not is_multilingual(self.loaded) and is_english(self.loaded):
            language = "en"
        known, lost, letters = [], 0, 0
        for word in words:
            plain = self._normalise(word)
            kept = "".join(letter for letter in plain if self._can_write(letter))
            known.append(kept)
            letters, lost = letters + len(plain), lost + len(plain) - len(kept)
        try:
            return self._encoded(clip, words, known, language, lost / max(letters, 1))
        except TextError as error:
            return clip_finding(clip, "align.unwritable_text", f"cannot be aligned: {error}")

    def _encoded(
        self, clip: Clip, words: tuple[str, ...], known: Sequence[str], language: str | None, unknown_share: float
    ) -> _Text | Finding:
        """Tokens of what can be written of the words, each with its word."""
        tokenizer = self.loaded.processor.tokenizer
        written = [(index, word) for index, words in enumerate(known) for word in words.split()]
        text = " ".join(word for _, word in written)
        if not says_something(text):
            return clip_finding(
                clip,
                "align.unknown_text",
                f"has a transcript of which the tokenizer of {self.loaded.checkpoint} can write no letter. Take a "
                "model of its script.",
                measured=unknown_share,
            )
        prompt = self._family.prompt_tokens(self.loaded, language)
        ids = text_tokens(tokenizer, text)
        limit = self.loaded.module.config.max_target_positions
        if (needed := len(prompt) + len(ids) + 1) > limit:
            return clip_finding(
                clip,
                "align.too_long_text",
                f"has a transcript of {needed} tokens, and {self.loaded.checkpoint} can write {limit}. Cut the clip, "
                "or align it with a CTC model.",
                measured=needed,
                limit=limit,
                unit="tokens",
            )
        return _Text(
            clip=replace(clip, language=language),
            words=words,
            targets=self._family.encode_text(self.loaded, text, language),
            prompt=len(prompt),
            token_words=word_of_each_token(tokenizer, text, ids, [index for index, _ in written]),
            unknown_share=unknown_share,
        )

    def _can_write(self, letter: str) -> bool:
        if letter not in self._writable:
            tokenizer = self.loaded.processor.tokenizer
            ids = tokenizer(letter, add_special_tokens=False).input_ids
            back = tokenizer.decode(ids, skip_special_tokens=True)
            self._writable[letter] = back.strip() == letter.strip()
        return self._writable[letter]

    def _batch(self, texts: Sequence[_Text]) -> Batch:
        made = ClipBatches(
            [one.clip for one in texts],
            [one.targets for one in texts],
            self.loaded.frontend,
            batches=[tuple(range(len(texts)))],
            seed=0,
            epoch=0,
            context=self.loaded.context,
        )
        return made[0].to(self.loaded.device)

    @torch.no_grad()
    def _transcripts(self, batch: Batch) -> dict[str, str | None]:
        """What the model writes by itself, greedily: no fallback and no thresholds, so that every clip has a text.

        A recording is decoded once, however many transcripts are aligned with it.
        """
        places = [(recording(clip), clip.language) for clip in batch.clips]
        new = {place: row for row, place in enumerate(places) if place not in self._written}
        if new:
            with undisturbed(self.loaded.module):
                found = self._family.transcribe(self.loaded, batch.rows(list(new.values())), _GREEDY)
            if len(self._written) > _REMEMBERED:
                self._written.clear()
            self._written |= {place: one.text if one.finite else None for place, one in zip(new, found, strict=True)}
        return {clip.id: self._written[place] for clip, place in zip(batch.clips, places, strict=True)}

    @torch.no_grad()
    def _passes(self, texts: Sequence[_Text], batch: Batch, layers: Sequence[int]) -> Iterator[_Pass | Finding]:
        """One teacher-forced pass over a batch; then clip by clip, in the order of `texts`."""
        unusable = {name: finding for finding in batch.findings for name in finding.clip_ids}
        if not batch.clips:
            yield from (unusable[text.clip.id] for text in texts)
            return
        with undisturbed(self.loaded.module), cross_attention_inputs(self.loaded, layers) as taken:
            places = [recording(clip) for clip in batch.clips]
            hidden_BUD = self._family.decoder_states(self.loaded, batch, [places.index(place) for place in places])
        positions = positions_of(self.loaded.module.config, batch.input_lengths).tolist()
        rows = iter(range(len(batch.clips)))
        for text in texts:
            if text.clip.id in unusable:
                yield unusable[text.clip.id]
                continue
            row, given = next(rows), len(text.targets) - 1
            yield _Pass(
                text=text,
                hidden=hidden_BUD[row, text.prompt - 1 : given],
                language=hidden_BUD[row, 0],
                queries={layer: queries_BUD[row, :given] for layer, (queries_BUD, _) in taken.items()},
                encoded=next(iter(taken.values()))[1][row, : positions[row]],
            )

    @torch.no_grad()
    def _alignment(self, one: _Pass, written: Mapping[str, str | None]) -> Alignment | Finding:
        text = one.text
        given_N, best_N = self._likelihoods(one)
        if not (np.isfinite(given_N).all() and np.isfinite(best_N).all()):
            return clip_finding(
                text.clip, "align.not_finite", f"makes {self.loaded.checkpoint} compute NaN or infinity. Leave it out."
            )
        starts_s, ends_s = self._times(one)
        # The end stands in a window of its own: among likely tokens, a text that stops too early would not be seen.
        rows = [*range(len(given_N)), *[-1] * (WINDOW_TOKENS - 1)]
        spoken_U = text.token_words >= 0
        posteriors_U = np.exp(given_N[:-1])[spoken_U]
        token_words, starts_s, ends_s = text.token_words[spoken_U], starts_s[spoken_U], ends_s[spoken_U]
        return Alignment(
            clip_id=text.clip.id,
            words=placed_words(text.words, token_words, starts_s, ends_s, posteriors_U),
            token_words=token_words,
            token_starts_s=starts_s,
            token_ends_s=ends_s,
            token_posteriors=posteriors_U,
            evidence=Evidence(given=given_N[rows], best=best_N[rows], window=WINDOW_TOKENS),
            transcript=written.get(text.clip.id),
            unknown_share=text.unknown_share,
            language=self._detected_language(one),
        )

    def _detected_language(self, one: _Pass) -> DetectedLanguage | None:
        """The pass says it as well: what follows the start token is the language, whichever is written there."""
        if not self._languages:
            return None
        probabilities = self._family.language_logits(self.loaded, one.language).float().softmax(dim=-1)
        best = int(probabilities.argmax())
        return DetectedLanguage(code=self._languages[best], probability=float(probabilities[best]))

    def _likelihoods(self, one: _Pass) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log-probability of each text token and of the end, and of the best token there (N,).

        The distribution is that of decoding, which writes no time stamps, no prompt tokens and nothing that the
        checkpoint suppresses: probability on these says nothing about the words. What the transcript itself has stays
        in: a person may write a bracket that the model is kept from writing.
        """
        targets_N = torch.from_numpy(one.text.targets[one.text.prompt :]).to(one.hidden.device)
        logits_NV = self.loaded.module.proj_out(one.hidden).float()
        given_N1 = logits_NV.gather(1, targets_N[:, None])
        logits_NV[:, self._closed.always] = -torch.inf
        logits_NV[:1, self._closed.at_first] = -torch.inf
        logits_NV.scatter_(1, targets_N[:, None], given_N1)
        total_N = logits_NV.logsumexp(dim=-1)
        given_N, best_N = given_N1[:, 0] - total_N, logits_NV.amax(dim=-1) - total_N
        return given_N.cpu().numpy(), best_N.cpu().numpy()

    def _times(self, one: _Pass) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """When each text token begins and ends (U,), in seconds.

        A token ends where the next of its word begins. Attention leaves a word before it ends, so that a word ends
        half-way to the next, and not long after attention left it. A token of space belongs to the word behind it.
        """
        weights_HUP = self._chosen_weights(one)
        begins = begins_word(one.text.token_words)
        path = best_path(gains(weights_HUP), begins)
        positions = weights_HUP.shape[-1]
        following = np.append(path.starts[1:], positions).astype(np.float64)
        half_way = np.minimum((path.ends + following) / 2, path.ends + _TAIL_S / _SECONDS)
        ends = np.where(np.append(begins[1:], True), np.minimum(half_way, following), following)
        # A word begins with the space before it, where that is a token.
        starts = path.starts.astype(np.float64)
        spaces = np.flatnonzero(one.text.token_words[:-1] < 0)
        starts[spaces + 1] = starts[spaces]
        duration_s = one.text.clip.duration_s
        return np.minimum(starts * _SECONDS, duration_s), np.minimum(ends * _SECONDS, duration_s)

    def _chosen_weights(self, one: _Pass) -> NDArray[np.float32]:
        """Attention of the heads that give the times (H, U, P), a row for each text token."""
        text_rows = slice(one.text.prompt - 1, -1)
        if self.heads is not None:
            layers = {layer: self._weights(one, layer) for layer in sorted({layer for layer, _ in self.heads})}
            return np.stack([layers[layer][head, text_rows] for layer, head in self.heads])
        begins = begins_word(one.text.token_words)
        scored: list[tuple[float, NDArray[np.float32]]] = []
        for layer in one.queries:
            for weights_UP in self._weights(one, layer)[:, text_rows]:
                scored.append((path_share(weights_UP, best_path(gains(weights_UP[None]), begins)), weights_UP))
            scored = sorted(scored, key=lambda pair: -pair[0])[:HEADS]
        return np.stack([weights_UP for _, weights_UP in scored])

    def _weights(self, one: _Pass, layer: int) -> NDArray[np.float32]:
        """Attention of every head of a layer (H, U, P), each token's over the clip's own positions alone.

        The fused kernels that models run on give no weights, so they are computed here from the layer's inputs.
        """
        attention = self.loaded.module.model.decoder.layers[layer].encoder_attn
        split = (-1, attention.num_heads, attention.head_dim)
        queries_UHD = (attention.q_proj(one.queries[layer]) * attention.scaling).view(split)
        keys_PHD = attention.k_proj(one.encoded).view(split)
        weights_HUP = torch.einsum("uhd,phd->hup", queries_UHD, keys_PHD).float().softmax(dim=-1)
        found: NDArray[np.float32] = weights_HUP.cpu().numpy()
        return found

    @torch.no_grad()
    def _attention(self, one: _Pass) -> Attention:
        spoken_U = one.text.token_words >= 0
        place = slice(one.text.prompt - 1, -1)
        return Attention(
            clip=one.text.clip,
            token_words=one.text.token_words[spoken_U],
            weights={layer: self._weights(one, layer)[:, place][:, spoken_U] for layer in one.queries},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Where heads look at when they write a transcript.

    Attributes:
        clip: The clip.
        token_words: Index of each token's word in the transcript (U,).
        weights: Layer -> probabilities (H, U, P) over the clip's own positions.
    """

    clip: Clip
    token_words: NDArray[np.int64]
    weights: Mapping[int, NDArray[np.float32]]


def select_heads(aligner: WhisperAligner, clips: Sequence[Clip], *, count: int = HEADS) -> tuple[Head, ...]:
    """The cross-attention heads that look at a word when they write it, by reference times.

    Tuning moves what heads do, and a checkpoint's `alignment_heads` are those of the model it was tuned from. A head's
    score is the share of tokens for which the peak of its attention lies between the start and the end of the token's
    word; equal scores are ordered by the share of attention that lies there. For use, give the result to
    `WhisperAligner(..., heads=...)`, or put it into `module.generation_config.alignment_heads`.

    Args:
        aligner: Of the model.
        clips: With `words` for every word of their transcripts: from a manifest, or from a CTC aligner's `Alignment`.
            Clips without are passed over.
        count: Heads at most.

    Returns:
        Layer and head, the best first.

    Raises:
        ManifestError: No clip has usable times.
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}.")
    timed = [clip for clip in clips if clip.words and len(clip.words) == len((clip.text or "").split())]
    found: dict[Head, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
    tokens = 0
    layers = range(aligner.loaded.module.config.decoder_layers)
    for one in aligner.attention(timed, layers):
        if isinstance(one, Finding):
            continue
        spans_s = [(one.clip.words[word].start_s, one.clip.words[word].end_s) for word in one.token_words]
        tokens += len(spans_s)
        for layer, weights_HUP in one.weights.items():
            for head, weights_UP in enumerate(weights_HUP):
                found[layer, head] += hits(weights_UP, spans_s, _SECONDS)
    if not tokens:
        raise ManifestError(
            f"heads cannot be selected: of {len(clips)} clips, none that can be aligned has `words` with times for "
            "every word of its transcript. Align them with a CTC model first."
        )
    ordered = sorted(found, key=lambda head: tuple(-found[head]))
    logger.info(
        "selected %d of %d heads by %d tokens of %d clips: %s",
        min(count, len(ordered)),
        len(ordered),
        tokens,
        len(timed),
        ", ".join(f"{layer}.{head} ({found[layer, head][0] / tokens:.0%})" for layer, head in ordered[:count]),
    )
    return tuple(ordered[:count])


@contextmanager
def cross_attention_inputs(loaded: LoadedModel, layers: Sequence[int]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """What the cross-attention of some layers takes in the passes inside: layer -> states (B, U, D) and (B, P, D)."""
    taken: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int) -> Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> None:
            taken[layer] = (inputs[0], named_inputs["key_value_states"])

        return hook

    decoder = loaded.module.model.decoder
    hooks = [
        decoder.layers[layer].encoder_attn.register_forward_pre_hook(keep(layer), with_kwargs=True) for layer in layers
    ]
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def _listed(languages: Sequence[str]) -> str:
    return f"the language{'s' if len(languages) > 1 else ''} {', '.join(map(repr, languages))}"
