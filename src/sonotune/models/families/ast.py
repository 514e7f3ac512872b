"""Audio classifiers: the audio spectrogram transformer (AST), and any other of `AutoModelForAudioClassification`.

AST has a table of learnt positions for about ten seconds, which its pretraining always filled: with `context="full"`,
the default, the computation is that of `transformers`. With `context="cut"` a clip is computed at its own length: the
table is cut in time and attention to the padding of the batch is masked, which only weights that were trained so bear.
A Whisper encoder with a classification head has Whisper's contexts (`models.thinning`). The map of every classifier is
found by its structure; other architectures are given clips of one length at a time, so that a clip's output never
depends on its neighbours.

Shape letters: B clips, T frames or samples, F mel bins, C classes, D width, P patches in time, Q patches in frequency.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonotune.errors import ConfigError, ModelError
from sonotune.features.batching import Batch
from sonotune.features.frame_properties import WHOLE_CLIP
from sonotune.features.frontend import FilterBank, Frontend, RawWaveform, from_feature_extractor
from sonotune.features.normalization import valid_frames
from sonotune.models.audio_positions import AudioPositions, PositionedModules, announce, in_encoder
from sonotune.models.base import AUDIO, LoadedModel, Stream
from sonotune.models.checkpoints import (
    check_family,
    is_classifier,
    load_pretrained,
    outline_pretrained,
    read_config,
    reinitialise,
)
from sonotune.models.encoder_rows import position_streams, positions_of, row_kinds, streams_of
from sonotune.models.frame_merging.settings import NO_AUDIO_TOKENS, MergePart
from sonotune.models.norms import fix_batch_norms
from sonotune.models.outputs import refuse_new_outputs
from sonotune.models.speech_encoders import contexts_of, encode, frontend_of
from sonotune.models.structure import find_structure
from sonotune.types import Context

logger = logging.getLogger(__name__)

_AST: Final = "audio-spectrogram-transformer"
_HEAD: Final = r"(^|\.)(classifier|projector|score|head|layer_weights)(\.|$)"
_WINDOWED: Final = (_AST, "whisper")
_FRAMED: Final = (
    "data2vec-audio",
    "hubert",
    "sew",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
)
_UNUSED: Final = ("masked_spec_embed",)  # masks of pretraining


class AstFamily:
    """Audio classification."""

    name = "ast"
    task = "classify"
    packaged = "ast_nano"
    published_names = r"(^|[/-])ast([/-]|$)|audio-spectrogram"
    label_overhead = 0

    def handles(self, config: Any) -> bool:
        """See `ModelFamily.handles`; a pretrained encoder that has a classifier in `transformers` counts."""
        return _class_name(config) is not None

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
        """See `ModelFamily.load`; the checkpoint's classes are kept where all of `outputs` are among them."""
        refuse_new_outputs(self.name, renew_outputs=False, tokenizer=tokenizer)
        config = read_config(checkpoint, revision, published=False)
        check_family(checkpoint, config, self)
        own = _own_labels(config)
        renew = bool(outputs) and (renew_outputs or not set(outputs) <= set(own))
        labels = tuple(outputs) if renew else own
        if not labels:
            raise ModelError(
                f"{checkpoint} has no classes of its own, and there are no clips to take them from. "
                "Give data.train, or a model that was trained to classify."
            )
        module, extractor, identity = load_pretrained(
            checkpoint,
            self,
            class_name=_class_name(config) or "",
            revision=revision,
            random_weights=random_weights,
            processor_class="AutoFeatureExtractor",
            new_parameters=_HEAD if renew else None,
            config_changes=_settings(dropout) | (_sizes(labels) if renew else {}),
        )
        loaded = self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            processor=extractor,
            **_contexts_of(module.config, context),
            frontend=from_feature_extractor(extractor),
            labels=labels,
            new_outputs=labels if renew else (),
        )
        if renew:  # also where an old layer of the same size could be loaded: its classes are others
            output = [name for name in loaded.linears if loaded.owner(name) == "head"][-1]
            reinitialise(module, [name for name, _ in module.named_parameters() if name.startswith(output + ".")])
        return loaded

    def outline(self, checkpoint: str, *, revision: str | None = None, outputs: int | None = None) -> LoadedModel:
        """See `ModelFamily.outline`."""
        config = read_config(checkpoint, revision)
        own = _own_labels(config)
        labels = tuple(f"class {index}" for index in range(outputs)) if outputs else own
        labels = labels or tuple(config.id2label.values())
        module, identity = outline_pretrained(
            checkpoint,
            self,
            class_name=_class_name(config) or "",
            revision=revision,
            config_changes=_settings(None) | (_sizes(labels) if outputs else {}),
        )
        return self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            processor=None,
            frontend=_usual_frontend(config),
            labels=labels,
            new_outputs=() if labels == own else labels,
            **_contexts_of(config, None),
        )

    def _mapped(self, module: Any, **given: Any) -> LoadedModel:
        fix_batch_norms(module)
        found = find_structure(module, num_labels=module.config.num_labels)
        return LoadedModel(
            module=module,
            components=found.components,
            linears=found.linears,
            family=self,
            constant=frozenset(name for name, _ in module.named_parameters() if name.endswith(_UNUSED)),
            **given,
        )

    def logits(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Logits (B, C), one row a clip."""
        module = loaded.module
        if module.config.model_type == _AST and batch.context != "full":
            return self._own_length(loaded, batch)
        if module.config.model_type == "whisper" and (batch.context != "full" or loaded.merging.ratio):
            return _of_whisper(loaded, batch)
        if module.config.model_type in _WINDOWED:
            _announce_window(module, batch)
            return _whole(module, batch.inputs)
        sizes = batch.input_lengths.tolist()
        logits_BC = torch.zeros(len(sizes), module.config.num_labels, device=batch.inputs.device)
        for size in sorted(set(sizes)):
            rows = torch.tensor([row for row, own in enumerate(sizes) if own == size], device=batch.inputs.device)
            logits_BC = logits_BC.index_copy(0, rows, _whole(module, batch.inputs[rows, :size]).to(logits_BC.dtype))
        return logits_BC

    def merging_refusals(self, loaded: LoadedModel) -> Mapping[MergePart, str]:
        """See `ModelFamily.merging_refusals`: of classifiers, Whisper's encoder alone is computed layer by layer here.

        In AST, patches next to each other in time do not stand next to each other, and its class tokens are merged
        with nothing; that takes other pairs, which are not built.
        """
        config = loaded.module.config
        if config.model_type == "whisper" and not getattr(config, "use_weighted_layer_sum", False):
            return {"audio": NO_AUDIO_TOKENS}
        reason = (
            "patches of AST lie in time and frequency, and merging knows neighbours in time alone"
            if config.model_type == _AST
            else f"a {config.model_type!r} classifier is computed as a whole by `transformers`"
        )
        return {"audio": NO_AUDIO_TOKENS, "encoder": reason}

    def merge_layers(self, loaded: LoadedModel) -> Sequence[nn.Module]:
        """See `ModelFamily.merge_layers`."""
        layers: Sequence[nn.Module] = () if "encoder" in self.merging_refusals(loaded) else loaded.module.encoder.layers
        return layers

    def streams(self, loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
        """See `ModelFamily.streams`; class tokens count as audio.

        Where clips of one length are computed together (`logits`), the rows of a batch come in the order of lengths.

        Raises:
            ModelError: What the linears of this architecture take is not known.
        """
        config = loaded.module.config
        if config.model_type == _AST:
            kinds_BN, head = _patch_kinds(config, batch), r"^classifier\."
            return (_pooled(head, batch), Stream(modules="", kinds=kinds_BN))
        if config.model_type == "whisper":
            heard = streams_of(
                loaded.module.encoder,
                "encoder",
                batch.inputs,
                batch.input_lengths,
                context=batch.context,
                thinning=loaded.thinning,
                merging=loaded.merging,
            )
            return (_pooled(r"^classifier$", batch), *heard, Stream(modules="", kinds=heard[-1].kinds))
        if config.model_type not in _FRAMED:
            raise ModelError(
                f"which rows the linears of a {config.model_type!r} classifier take is known for "
                f"{', '.join((*_WINDOWED, *_FRAMED))}. Take adapter.allocator=uniform, which needs no calibration."
            )
        frames_B = self._frames(loaded, batch.input_lengths)
        heard_BP = row_kinds(frames_B, int(frames_B.max()))
        layers_BP = heard_BP
        if config.model_type == "sew":  # its layers see the mean of so many frames, and all frames come out again
            squeezed_B = frames_B // config.squeeze_factor
            layers_BP = row_kinds(squeezed_B, int(squeezed_B.max()))
        prefix = re.escape(str(loaded.module.base_model_prefix))
        sizes = torch.tensor(sorted(set(batch.input_lengths.tolist())))
        return (
            _pooled(r"^classifier$", batch),
            Stream(modules=r"^projector$", kinds=heard_BP),
            # One table of distances for all clips of one length.
            *position_streams(config, prefix, layers_BP, tables=self._frames(loaded, sizes)),
            Stream(modules=rf"^{prefix}\.", kinds=layers_BP),
        )

    def positioned_modules(self, loaded: LoadedModel) -> PositionedModules:
        """See `PositionedFamily`.

        Raises:
            ModelError: Clips of one length are computed together, so that a batch has several sets of positions.
        """
        module, kind = loaded.module, loaded.module.config.model_type
        if kind == _AST:
            return in_encoder(loaded, module.audio_spectrogram_transformer)
        if kind == "whisper":
            return in_encoder(loaded, module.encoder)
        raise ModelError(
            f"a {kind!r} classifier computes the clips of each length by themselves, several times a batch, so that "
            "its rows have no one place in the audio. Take adapter.kind=lora."
        )

    def _frames(self, loaded: LoadedModel, lengths_B: Tensor) -> Tensor:
        """Encoder frames (B,) of so many samples."""
        frames_B: Tensor = loaded.module._get_feat_extract_output_lengths(lengths_B)
        return frames_B

    def _own_length(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """AST over the frames a batch has (B, C); patches that begin after a clip's end are masked."""
        module, config = loaded.module, loaded.module.config
        body = module.audio_spectrogram_transformer
        silence = getattr(loaded.frontend, "silence", 0.0)
        tokens_BND, valid_BN = _tokens(body.embeddings, config, batch, silence=silence)
        mask = None if bool(valid_BN.all()) else valid_BN[:, None, None, :]
        announce(body, lambda: _patch_positions(config, batch, int(_patches(config, batch)[0].max())))
        for layer in body.layers:
            tokens_BND = layer(tokens_BND, mask)
        tokens_BND = body.layernorm(tokens_BND)
        logits_BC: Tensor = module.classifier((tokens_BND[:, 0] + tokens_BND[:, 1]) / 2)
        return logits_BC


def _pooled(modules: str, batch: Batch) -> Stream:
    """One row a clip."""
    return Stream(modules=modules, kinds=torch.full((len(batch.clips), 1), AUDIO, dtype=torch.int8))


def _patch_kinds(config: Any, batch: Batch) -> Tensor:
    """Kinds of class tokens and patches (B, 2 + Q P), as `_tokens` and `transformers` lay them out."""
    patches_B, whole = _patches(config, batch)
    longest = whole if batch.context == "full" else int(patches_B.max())
    return F.pad(row_kinds(patches_B, longest).repeat(1, _bands(config)), (2, 0), value=AUDIO)


def _patch_positions(config: Any, batch: Batch, longest: int) -> AudioPositions:
    """Two class tokens, which stand for the clip, and `longest` patches in time of each band of frequencies."""
    bands = _bands(config)
    times_P = config.time_stride * torch.arange(longest)
    starts_N = torch.cat([torch.full((2,), WHOLE_CLIP), times_P.repeat(bands)])
    return AudioPositions(
        inputs=batch.inputs,
        lengths=batch.input_lengths,
        starts=starts_N,
        width=config.patch_size,
        own=_patches(config, batch)[0],
        bands=bands,
    )


def _announce_window(module: Any, batch: Batch) -> None:
    """Positions of a whole window, which `transformers` computes."""
    config = module.config
    if config.model_type == _AST:
        body = module.audio_spectrogram_transformer
        announce(body, lambda: _patch_positions(config, batch, _patches(config, batch)[1]))
        return
    announce(
        module.encoder,
        lambda: AudioPositions(
            inputs=batch.inputs,
            lengths=batch.input_lengths,
            starts=2 * torch.arange((batch.inputs.shape[1] + 1) // 2) - 1,
            width=3,
            own=positions_of(config, batch.input_lengths),
        ),
    )


def _bands(config: Any) -> int:
    """Patches in frequency."""
    return int((config.num_mel_bins - config.patch_size) // config.frequency_stride + 1)


def _patches(config: Any, batch: Batch) -> tuple[Tensor, int]:
    """Patches in time that begin within each clip (B,), and those of the whole window."""
    step = config.time_stride
    whole = (config.max_length - config.patch_size) // step + 1
    return torch.div(batch.input_lengths + step - 1, step, rounding_mode="floor").clamp(1, whole), whole


def _tokens(embeddings: Any, config: Any, batch: Batch, *, silence: float) -> tuple[Tensor, Tensor]:
    """Embedded class tokens and patches, frequency by frequency (B, 2 + Q P, D), and which are valid."""
    step, size = config.time_stride, config.patch_size
    patches_B, whole = _patches(config, batch)
    longest = int(patches_B.max())
    frames = (longest - 1) * step + size
    inputs_BTF = batch.inputs[:, :frames]
    if inputs_BTF.shape[1] < frames:
        inputs_BTF = F.pad(inputs_BTF, (0, 0, 0, frames - inputs_BTF.shape[1]), value=silence)
    patches_BND = embeddings.patch_embeddings(inputs_BTF)
    bands = patches_BND.shape[1] // longest
    table_QPD = embeddings.position_embeddings[0, 2:].view(bands, whole, -1)[:, :longest]
    places_1ND = torch.cat([embeddings.position_embeddings[:, :2], table_QPD.flatten(0, 1).unsqueeze(0)], dim=1)
    clips = len(patches_BND)
    heads = [token.expand(clips, -1, -1) for token in (embeddings.cls_token, embeddings.distillation_token)]
    tokens_BND = embeddings.dropout(torch.cat([*heads, patches_BND], dim=1) + places_1ND)
    valid_BP = valid_frames(patches_B, longest)
    valid_BN = F.pad(valid_BP.repeat(1, bands), (2, 0), value=True)
    return tokens_BND, valid_BN


def _of_whisper(loaded: LoadedModel, batch: Batch) -> Tensor:
    """Logits (B, C) of a Whisper encoder: the mean over positions counts each for as many as it stands for."""
    module = loaded.module
    encoded = encode(
        module.encoder,
        batch.inputs,
        batch.input_lengths,
        context=batch.context,
        thinning=loaded.thinning,
        merging=loaded.merging,
    )
    projected_BPD = module.projector(encoded.states)
    if encoded.log_weights is None:
        pooled_BD = projected_BPD.mean(dim=1)
    else:
        shares_BP = encoded.log_weights.float().softmax(dim=1).to(projected_BPD.dtype)
        pooled_BD = torch.einsum("bp,bpd->bd", shares_BP, projected_BPD)
    logits_BC: Tensor = module.classifier(pooled_BD)
    return logits_BC


def _contexts_of(config: Any, context: Context | None) -> dict[str, Any]:
    """Fields of a `LoadedModel`, for pretrained weights.

    Raises:
        ConfigError: The architecture has no such context.
    """
    if config.model_type == "whisper" and not getattr(config, "use_weighted_layer_sum", False):
        return contexts_of(config, context)
    if context == "thinned" or (context == "cut" and config.model_type == "whisper"):
        raise ConfigError(
            f"model.context={context} is not known for a {config.model_type!r} classifier"
            + (" with a weighted sum of layers" if config.model_type == "whisper" else "")
            + f". Take model.context=full{' or cut' if config.model_type == _AST else ''}."
        )
    windowed = config.model_type in _WINDOWED
    return {"context": context or "full", "trained_contexts": ("full",) if windowed else ()}


def _whole(module: Any, inputs_BTF: Tensor) -> Tensor:
    """Logits (B, C) of clips that fill their rows."""
    name = str(module.main_input_name)
    if inputs_BTF.shape[2] == 1:  # samples
        inputs = inputs_BTF.squeeze(-1)
    else:
        inputs = inputs_BTF.transpose(1, 2) if module.config.model_type == "whisper" else inputs_BTF
    logits_BC: Tensor = module(**{name: inputs}).logits
    return logits_BC


def _class_name(config: Any) -> str | None:
    """The class in `transformers`, or None where there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES  # noqa: PLC0415

    name: str | None = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    return name


def _own_labels(config: Any) -> tuple[str, ...]:
    """The checkpoint's classes by index; none where it has no head, or names that stand for nothing."""
    named = [str(config.id2label[index]) for index in sorted(config.id2label)]
    nameless = named == [f"LABEL_{index}" for index in range(len(named))]
    return tuple(named) if is_classifier(config) and not nameless else ()


def _settings(dropout: float | None) -> dict[str, Any]:
    """What is changed in a checkpoint's configuration: no random layers, no masks from a global random state."""
    return {
        "apply_spec_augment": False,
        "layerdrop": 0.0,
        "encoder_layerdrop": 0.0,
        "hidden_dropout_prob": dropout,
        "hidden_dropout": dropout,
        "dropout": dropout,
    }


def _sizes(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _usual_frontend(config: Any) -> Frontend:
    """The frontend that an architecture usually has, where no feature extractor can be asked."""
    if config.model_type == _AST:
        return FilterBank(config.num_mel_bins, max_frames=config.max_length)
    return frontend_of(config) if config.model_type == "whisper" else RawWaveform()
