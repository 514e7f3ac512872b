"""Which setting is meant by a name that is none: other tools have names of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

OTHER_NAMES: Final = {
    "lr": "training.learning_rate",
    "epochs": "training.max_epochs",
    "num_train_epochs": "training.max_epochs",
    "num_epochs": "training.max_epochs",
    "steps": "training.max_steps",
    "train_steps": "training.max_steps",
    "batch_size": "training.batch_max_clips",
    "per_device_train_batch_size": "training.batch_max_clips",
    "gradient_accumulation_steps": "training.accumulation_steps",
    "grad_accum": "training.accumulation_steps",
    "max_grad_norm": "training.clip_norm",
    "lr_scheduler_type": "training.schedule",
    "scheduler": "training.schedule",
    "warmup": "training.warmup_steps",
    "eval_batch_size": "evaluation.batch_max_clips",
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "modules_to_save": "adapter.unfreeze",
    "load_in_4bit": "quantization.bits=4",
    "load_in_8bit": "quantization.bits=8",
    "fp16": "training.precision=fp16",
    "bf16": "training.precision=bf16",
    "num_beams": "evaluation.beam_size",
    "output_dir": "run.dir",
    "train_file": "data.train",
    "train_manifest": "data.train",
    "validation": "data.eval",
    "dev": "data.eval",
    "num_workers": "data.loader_workers",
    "lang": "model.language",
}
"""What other tools call a setting -> ours."""


def meant_by(name: str, known: Collection[str]) -> str | None:
    """The setting that another tool calls so, or the only one whose last part it is; None where nothing says.

    Args:
        name: As it was written, with or without a section.
        known: All settings.
    """
    section, _, _ = name.partition(".")
    place, _, last = name.rpartition(".")
    if place in known:  # a key of a setting that is a mapping, or so it was thought
        return None
    last = last.lower()
    if other := OTHER_NAMES.get(last):
        here = f"{section}.{other.partition('.')[2]}"  # evaluation.batch_size is no setting of training
        return here if here in known else other
    same = [setting for setting in known if setting.rpartition(".")[2] == last]
    return same[0] if len(same) == 1 else None
