"""A Whisper with fewer layers, as a folder of its own: the student of a distillation that begins where its teacher is.

The layers that stay are evenly spaced, the first and the last among them. Everything else is the source's: embeddings,
norms, tokens, features, decoding settings, and the contexts that its weights were trained for. What is left writes
poorly until it is trained: each layer expects what the one before it made.

Source: Shleifer and Rush 2020, "Pre-trained Summarization Distillation"; Gandhi et al. 2023 (distil-whisper).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from torch import nn

from sonotune.adapters.kinds.none import NONE
from sonotune.adapters.metadata import USED
from sonotune.errors import ConfigError, ModelError, RunDirectoryError
from sonotune.loading import choose_family, open_model
from sonotune.models.base import LoadedModel
from sonotune.models.beside import save_processor
from sonotune.models.checkpoints import as_os_error
from sonotune.runs import write_error
from sonotune.runs.folders import replacing

FAMILY: Final = "whisper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was written.

    Attributes:
        folder: A model folder that plain `transformers` loads.
        layers: Part -> numbers, from 0, of the source's layers that stayed.
        parameters: Of the source, and of what was written.
        heads_cleared: Whether the source named heads that give times, which are not those of fewer layers.
    """

    folder: Path
    layers: dict[str, list[int]]
    parameters: tuple[int, int]
    heads_cleared: bool

    def to_json(self) -> dict[str, Any]:
        """As `--json` has it."""
        before, after = self.parameters
        return {
            "model": str(self.folder),
            "layers": self.layers,
            "parameters": {"source": before, "model": after},
            "alignment_heads_cleared": self.heads_cleared,
        }


def kept_layers(layers: int, keep: int) -> list[int]:
    """Numbers of evenly spaced layers, the first and the last among them; of a single one, the last.

    Args:
        layers: How many there are.
        keep: How many stay, from 1 to `layers`.
    """
    return [layers - 1] if keep == 1 else [round(one) for one in np.linspace(0, layers - 1, keep).tolist()]


def prune_layers(
    checkpoint: str, folder: Path, *, encoder_layers: int | None = None, decoder_layers: int | None = None
) -> Pruned:
    """Write a Whisper with fewer layers.

    Args:
        checkpoint: Packaged, hub or local model, or a run of full fine-tuning.
        folder: Where to write; it must not exist.
        encoder_layers: How many stay; None keeps all.
        decoder_layers: How many stay; None keeps all.

    Raises:
        ConfigError: Nothing is to go, or there are not so many layers.
        ModelError: The model is no Whisper, carries an adapter, or merges positions within the layers.
        RunDirectoryError: The folder exists, or cannot be written.
        ResourceError: The disk is full; nothing half written is left.
    """
    if folder.exists():
        raise RunDirectoryError(f"{folder} exists already. Give another folder.")
    family = choose_family(checkpoint)
    if family.name != FAMILY:
        raise ModelError(
            f"{checkpoint} is of the family {family.name}, and layers are taken out of a Whisper only. Take a smaller "
            "checkpoint of its family as the student."
        )
    opened = open_model(checkpoint, family=family, bits=16)
    loaded = opened.loaded
    if loaded.adapter is not None:
        raise ModelError(f"{checkpoint} carries an adapter. Merge it with `sonotune export {checkpoint} FOLDER` first.")
    before = _size(loaded)
    layers = {
        "encoder": _kept(loaded, "encoder", encoder_layers),
        "decoder": _kept(loaded, "decoder", decoder_layers),
    }
    config = loaded.module.config
    if layers == {"encoder": list(range(config.encoder_layers)), "decoder": list(range(config.decoder_layers))}:
        raise ConfigError(
            f"nothing is to go: {checkpoint} has {config.encoder_layers} layers in its encoder and "
            f"{config.decoder_layers} in its decoder. Say how many stay with --encoder-layers or --decoder-layers."
        )
    if loaded.merging.ratio and len(layers["encoder"]) != config.encoder_layers:
        raise ModelError(
            f"{checkpoint} was trained to merge positions after certain layers of its encoder "
            f"(frame_merging.ratio={loaded.merging.ratio:g}), which would be others. Keep all of them."
        )
    heads_cleared = _take_out(loaded, layers)
    used = {name: opened.settings[name] for _, name in USED if name in opened.settings}
    extra = {**used, "pruned_from": {"revision": loaded.revision, "layers": layers}}
    try:
        with replacing(folder) as draft:
            NONE.save(loaded, draft, extra=extra)
            save_processor(loaded.processor, draft)
    except (OSError, SafetensorError) as error:
        raise write_error(as_os_error(error), folder, 4 * _size(loaded), choose="another FOLDER") from error
    return Pruned(folder=folder, layers=layers, parameters=(before, _size(loaded)), heads_cleared=heads_cleared)


def _kept(loaded: LoadedModel, part: str, keep: int | None) -> list[int]:
    there = len(loaded.component(part).layers)
    if keep is None:
        return list(range(there))
    if not 1 <= keep <= there:
        raise ConfigError(
            f"--{part}-layers is {keep}, and {loaded.checkpoint} has {there} layers in its {part}. Take 1 to {there}."
        )
    return kept_layers(there, keep)


def _take_out(loaded: LoadedModel, layers: dict[str, list[int]]) -> bool:
    """Leave the layers in place, and settings that fit them; whether heads that give times were named."""
    module, config = loaded.module, loaded.module.config
    for part, kept in layers.items():
        stack = getattr(module.model, part)
        stack.layers = nn.ModuleList([stack.layers[index] for index in kept])
        setattr(config, f"{part}_layers", len(kept))
    config.num_hidden_layers = config.encoder_layers
    settings = module.generation_config
    named = bool(getattr(settings, "alignment_heads", None))
    if named:
        settings.alignment_heads = None
    return named


def _size(loaded: LoadedModel) -> int:
    return sum(parameter.numel() for parameter in loaded.module.parameters())
