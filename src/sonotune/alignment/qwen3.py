"""Qwen3's forced aligner: a language model that is given audio and words and names the time of each.

Behind every word stand two time tokens, for which a linear layer names the class of 80 ms in which the word begins and
ends. It names each by itself, so that times may be in the wrong order: how many are says how sure the model is, and
they are put right afterwards. It has no distribution over words, so that a wrong word shows in nothing but times that
make no sense: there is no evidence, and a CTC model judges a transcript better.

Source: Qwen team 2026, arXiv:2601.21337; `transformers` Qwen3ASRForTokenClassification.

Shape letters: B clips, P audio positions, L positions of a row, D width, U units (words, or characters of scripts
without spaces), C classes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonotune.alignment.base import AlignerSettings, Alignment, takes
from sonotune.alignment.clip_pools import in_order
from sonotune.alignment.placing import clip_finding, placed_words
from sonotune.data.text import get, says_something
from sonotune.errors import ConfigError, ModelError, first_line
from sonotune.features.batching import Batch, ClipBatches
from sonotune.features.frontend import from_feature_extractor
from sonotune.models.audio_lm import lay_out
from sonotune.models.base import LoadedModel
from sonotune.models.checkpoints import load_pretrained, read_config
from sonotune.models.families.qwen3_asr import Qwen3AsrFamily
from sonotune.models.families.qwen3_asr_old import is_old
from sonotune.models.families.qwen3_asr_text import language_name, token_ids
from sonotune.models.modes import undisturbed
from sonotune.models.outputs import refuse_new_outputs
from sonotune.types import Clip, Context, Finding

_CLASS: Final = "Qwen3ASRForTokenClassification"
_TIMES: Final = 2  # of each unit: where it begins and where it ends
_PACKAGES: Final = {"Japanese": "nagisa", "Korean": "soynlp"}


class Qwen3AlignerFamily(Qwen3AsrFamily):
    """The forced aligner as a model that can be opened; it transcribes nothing, so it is in no table of families."""

    name = "qwen3_forced_aligner"
    task = "align"

    def handles(self, config: Any) -> bool:
        """Whether a configuration is of a forced aligner in the form of `transformers`."""
        return config.model_type == "qwen3_asr" and _CLASS in (config.architectures or ())

    def load(
        self,
        checkpoint: str,
        *,
        revision: str | None = None,
        context: Context | None = None,
        random_weights: bool = False,
        dropout: float | None = None,
        outputs: Sequence[str] = (),
        renew_outputs: bool = False,
        tokenizer: str | None = None,
    ) -> LoadedModel:
        """See `ModelFamily.load`; there is neither window nor dropout that could be set."""
        refuse_new_outputs(self.name, renew_outputs=renew_outputs, tokenizer=tokenizer)
        if is_old(read_config(checkpoint, revision)):
            raise ModelError(
                f"{checkpoint} is a forced aligner in the form of the qwen-asr package; aligner=qwen3 reads that of "
                "transformers (its config.json names Qwen3ASRForTokenClassification). Take the `-hf` checkpoint."
            )
        module, processor, identity = load_pretrained(
            checkpoint,
            self,
            class_name=_CLASS,
            revision=revision,
            random_weights=random_weights,
            config_changes={},
        )
        return LoadedModel(
            module=module,
            frontend=from_feature_extractor(processor.feature_extractor),
            components=(),
            linears=(),
            family=self,
            checkpoint=checkpoint,
            revision=identity,
            processor=processor,
            context=context or "full",
        )

    def knows_language(self, loaded: LoadedModel, language: str) -> bool:
        """Whether it was trained to align the language."""
        return language_name(language) in aligned_languages()

    def encoded(self, loaded: LoadedModel, batch: Batch) -> tuple[Tensor, ...]:
        """Projected audio (P, D) of each clip."""
        return self._encode(loaded, batch)

    def audio_positions(self, loaded: LoadedModel, duration_s: float) -> int:
        """Positions of a clip of so many seconds."""
        return self._positions_of(loaded, duration_s)


def aligned_languages() -> frozenset[str]:
    """English names of the languages that the forced aligner knows."""
    from transformers.models.qwen3_asr.processing_qwen3_asr import FORCED_ALIGNER_LANGUAGES  # noqa: PLC0415

    return frozenset(FORCED_ALIGNER_LANGUAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """A clip's transcript as the model takes it.

    Attributes:
        clip: The clip.
        words: As the manifest writes them.
        units: What gets times.
        unit_words: Index of each unit's word (U,).
        before: Ids before the audio.
        after: Ids behind it.
        unknown_share: Share of characters that are in no unit.
    """

    clip: Clip
    words: tuple[str, ...]
    units: tuple[str, ...]
    unit_words: NDArray[np.int64]
    before: tuple[int, ...]
    after: tuple[int, ...]
    unknown_share: float


class Qwen3Aligner:
    """Times by classification.

    Args:
        loaded: From `Qwen3AlignerFamily().load`.
        settings: What a user decides; `transcribe` is of no effect, for the model writes nothing.

    Raises:
        ModelError: The model is no forced aligner, or its chat template has no times.
    """

    name = "qwen3"

    def __init__(self, loaded: LoadedModel, settings: AlignerSettings) -> None:
        if not isinstance(loaded.family, Qwen3AlignerFamily):
            raise ModelError(
                f"the aligner qwen3 takes Qwen3's forced aligner, and {loaded.checkpoint} is of the family "
                f"{loaded.family.name}. Take aligner=auto, or a checkpoint of {_CLASS}."
            )
        self.loaded, self._family, self.settings = loaded, loaded.family, settings
        self._normalise = get(settings.text).training
        self._time = int(loaded.module.config.timestamp_token_id)
        self._class_s = float(loaded.processor.timestamp_segment_time) / 1000.0
        named_s = int(loaded.module.num_labels) * self._class_s
        self.max_duration_s: float | None = min(named_s, loaded.frontend.max_duration_s or named_s)
        times = self._ids(("one", "two"))[1].count(self._time)
        if times != 2 * _TIMES:
            raise ModelError(
                f"the chat template of {loaded.checkpoint} puts {times} time tokens (id {self._time}) behind two "
                f"words, and the aligner needs {_TIMES} behind each. Copy chat_template.jinja and config.json from the "
                "published checkpoint."
            )

    def check_languages(self, languages: Sequence[str]) -> None:
        """See `Aligner.check_languages`."""
        asked = list(dict.fromkeys(languages))
        unknown = [one for one in asked if not self._family.knows_language(self.loaded, one)]
        if unknown:
            listed = ", ".join(f"{one!r} ({name})" if (name := language_name(one)) else repr(one) for one in unknown)
            raise ConfigError(
                f"{self.loaded.checkpoint} cannot align the language{'s' if len(unknown) > 1 else ''} {listed}; it "
                f"knows {', '.join(sorted(aligned_languages()))}. Take aligner=ctc with a model of the language."
            )
        for name in {language_name(one) for one in asked} & _PACKAGES.keys():
            if not _installed(package := _PACKAGES[str(name)]):
                raise ConfigError(
                    f"{self.loaded.checkpoint} splits {name} into words by the package {package}, which is not "
                    f"installed. Install it with `pip install {package}`."
                )

    def align(self, clips: Sequence[Clip]) -> Iterator[Alignment | Finding]:
        """See `Aligner.align`; without evidence and without transcript."""
        return in_order(
            (self._prepare(clip) for clip in clips),
            self._run,
            seconds=lambda one: self.loaded.computed_s(one.clip.duration_s),
            batch_seconds=self.settings.batch_seconds,
            batch_max_clips=self.settings.batch_max_clips,
        )

    def _prepare(self, clip: Clip) -> _Units | Finding:
        if not takes(self, clip):
            return clip_finding(
                clip,
                "align.too_long_audio",
                f"lasts {clip.duration_s:.2f} s, and {self.loaded.checkpoint} names times up to "
                f"{self.max_duration_s:g} s. Align it with a CTC model, or cut it with `start_s` and `duration_s`.",
                measured=clip.duration_s,
                limit=self.max_duration_s,
                unit="s",
            )
        if not says_something(clip.text or ""):
            return clip_finding(clip, "align.empty_text", "has no words in its transcript. Leave it out.")
        language = clip.language or self.settings.language
        if language is not None and not self._family.knows_language(self.loaded, language):
            return clip_finding(
                clip,
                "align.unknown_language",
                f"is in the language {language!r}; {self.loaded.checkpoint} knows "
                f"{', '.join(sorted(aligned_languages()))}. Align it with a CTC model of the language.",
            )
        words = tuple((clip.text or "").split())
        return self._units(clip, words, None if language is None else language_name(language))

    def _units(self, clip: Clip, words: tuple[str, ...], language: str | None) -> _Units | Finding:
        split = self.loaded.processor.split_words_for_alignment
        plain = [self._normalise(word) for word in words]
        try:
            units = [(index, unit) for index, word in enumerate(plain) for unit in split(word, language)]
        except ImportError as error:
            return clip_finding(clip, "align.unknown_language", f"cannot be split into words: {first_line(error)}")
        written = tuple(unit for _, unit in units)
        letters = sum(len(word) for word in plain)
        unknown_share = 1.0 - sum(len(unit) for unit in written) / max(letters, 1)
        if not units:
            return clip_finding(
                clip,
                "align.unknown_text",
                f"has a transcript without a letter that {self.loaded.checkpoint} aligns. Leave it out.",
                measured=unknown_share,
            )
        before, after = self._ids(written)
        audio = self._family.audio_positions(self.loaded, clip.duration_s)
        needed = len(before) + audio + len(after)
        limit = int(self.loaded.module.config.text_config.max_position_embeddings)
        if needed > limit:
            return clip_finding(
                clip,
                "align.too_long_text",
                f"needs {needed} positions for audio and transcript, and {self.loaded.checkpoint} has {limit}. Cut the "
                "clip, or align it with a CTC model.",
                measured=needed,
                limit=limit,
                unit="positions",
            )
        return _Units(
            clip=clip,
            words=words,
            units=written,
            unit_words=np.array([index for index, _ in units], dtype=np.int64),
            before=before,
            after=after,
            unknown_share=max(0.0, unknown_share),
        )

    def _ids(self, units: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the checkpoint's own template makes of audio and units: ids before the audio, and behind it.

        Raises:
            ModelError: The template cannot be rendered, or has no audio.
        """
        from jinja2 import TemplateError  # noqa: PLC0415  (where a template is rendered)

        processor = self.loaded.processor
        content = [{"type": "audio", "audio": "clip.wav"}, *({"type": "text", "text": unit} for unit in units)]
        try:
            text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except (ValueError, TypeError, TemplateError) as error:
            raise ModelError(
                f"the chat template of {self.loaded.checkpoint} cannot be rendered: {str(error)[:160]}. Copy "
                "chat_template.jinja from the published checkpoint."
            ) from error
        ids = token_ids(processor.tokenizer, text)
        if ids.count(processor.audio_token_id) != 1:
            raise ModelError(
                f"the chat template of {self.loaded.checkpoint} puts the audio into the prompt "
                f"{ids.count(processor.audio_token_id)} times, and it must stand there once. Copy chat_template.jinja "
                "from the published checkpoint."
            )
        place = ids.index(processor.audio_token_id)
        return tuple(ids[:place]), tuple(ids[place + 1 :])

    @torch.no_grad()
    def _run(self, texts: Sequence[_Units]) -> list[Alignment | Finding]:
        made = ClipBatches(
            [one.clip for one in texts],
            [np.zeros(0, dtype=np.int64)] * len(texts),
            self.loaded.frontend,
            batches=[tuple(range(len(texts)))],
            seed=0,
            epoch=0,
            context=self.loaded.context,
        )
        batch = made[0].to(self.loaded.device)
        unusable = {name: finding for finding in batch.findings for name in finding.clip_ids}
        usable = [one for one in texts if one.clip.id not in unusable]
        logits = iter(self._logits(usable, batch) if usable else [])
        return [unusable.get(one.clip.id) or self._alignment(one, next(logits)) for one in texts]

    def _logits(self, texts: Sequence[_Units], batch: Batch) -> list[Tensor]:
        """Logits of every class for each time token (2U, C) of each clip.

        The model is run on embeddings: the processor's features depend on the other clips of a batch, and those of the
        frontend do not. Rows are padded on the right, where causal attention does not look.
        """
        module = self.loaded.module
        with undisturbed(module):
            audio = self._family.encoded(self.loaded, batch)
            none = torch.zeros(0, dtype=torch.long)
            rows = lay_out(
                module.model.language_model.embed_tokens,
                before=[one.before for one in texts],
                audio=audio,
                after=[one.after for one in texts],
                targets=[none] * len(texts),
            )
            hidden_BLD = module.model.language_model(inputs_embeds=rows.embeds, use_cache=False).last_hidden_state
            found = []
            for one, heard_PD, hidden_LD in zip(texts, audio, hidden_BLD, strict=True):
                begin = len(one.before) + len(heard_PD)
                times = [begin + place for place, token in enumerate(one.after) if token == self._time]
                found.append(module.score(hidden_LD[times]).float().cpu())
        return found

    def _alignment(self, one: _Units, logits_NC: Tensor) -> Alignment | Finding:
        if not bool(torch.isfinite(logits_NC).all()):
            return clip_finding(
                one.clip, "align.not_finite", f"makes {self.loaded.checkpoint} compute NaN or infinity. Leave it out."
            )
        named = logits_NC.argmax(dim=-1).tolist()
        items = self.loaded.processor.decode_forced_alignment(
            logits_NC[None],
            torch.full((1, len(logits_NC)), self._time),
            [list(one.units)],
            self._time,
        )[0]
        times_s = np.array([[item["start_time"], item["end_time"]] for item in items], dtype=np.float64).reshape(-1)
        classes = np.rint(times_s / self._class_s).astype(np.int64).clip(0, logits_NC.shape[1] - 1)
        chances_N = logits_NC.softmax(dim=-1).numpy()[np.arange(len(classes)), classes]
        times_s = np.minimum(np.maximum.accumulate(times_s), one.clip.duration_s)
        starts_s, ends_s = times_s[::_TIMES], times_s[1::_TIMES]
        posteriors_U = chances_N.reshape(-1, _TIMES).mean(axis=1).astype(np.float32)
        return Alignment(
            clip_id=one.clip.id,
            words=placed_words(one.words, one.unit_words, starts_s, ends_s, posteriors_U),
            token_words=one.unit_words,
            token_starts_s=starts_s,
            token_ends_s=ends_s,
            token_posteriors=posteriors_U,
            evidence=None,
            unknown_share=one.unknown_share,
            disordered_share=1.0 - longest_rise(named) / len(named),
        )


def longest_rise(values: Sequence[int]) -> int:
    """Length of the longest subsequence that never falls."""
    tails: list[int] = []
    for value in values:
        place = bisect_right(tails, value)
        tails[place : place + 1] = [value]
    return len(tails)


def _installed(package: str) -> bool:
    from importlib.util import find_spec  # noqa: PLC0415

    return find_spec(package) is not None
