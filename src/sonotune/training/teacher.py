"""The model that another one learns from: opened, never trained, and refused where its logits mean something else.

Two models can be compared token by token where they read the same features, write with the same tokens and put the same
tokens around a text. Whether they do is asked before anything trains: a teacher of other tokens would not fail, it
would teach nonsense.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sonotune.data.manifest import TEACHER_COLUMN
from sonotune.errors import ConfigError, TextError
from sonotune.loading import choose_family, model_digest, open_model
from sonotune.models.base import LoadedModel, ModelFamily, SpeechFamily, count_parameters
from sonotune.models.precision import DTYPES, Precision
from sonotune.models.quantize import cast_frozen, held_bytes
from sonotune.models.thinning import made_for
from sonotune.types import Clip, Context, Finding

_LABELS: Final = "have it write texts with `sonotune data label`, which any model learns from"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A model that is learned from.

    Attributes:
        loaded: In evaluation mode, on its device; nothing of it trains.
        checkpoint: What the user named.
        digest: Of its weights and settings, with those of an adapter.
        bits: Of its linear weights, and why.
    """

    loaded: LoadedModel
    checkpoint: str
    digest: str
    bits: str

    @property
    def held_bytes(self) -> int:
        """Bytes of its weights as they are held."""
        return held_bytes(self.loaded)

    def to_json(self) -> dict[str, Any]:
        """What the record of a run says of it."""
        rows = count_parameters(self.loaded).values()
        return {
            "checkpoint": self.checkpoint,
            "digest": self.digest,
            "revision": self.loaded.revision,
            "parameters": sum(row["parameters"] for row in rows),
            "bits": self.bits.partition(":")[0],
            "bytes": self.held_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How a teacher is learned from.

    Attributes:
        teacher: The teacher.
        temperature: Divides the logits of both.
        loss_share: Share of the divergence in the loss of a transcript's tokens.
        on_policy_share: Share of the clips for which the student draws the text.
        seed: Of these draws, with the epoch and the clip.
    """

    teacher: Teacher
    temperature: float = 1.0
    loss_share: float = 0.8
    on_policy_share: float = 0.0
    seed: int = 0


def family_of_teacher(checkpoint: str) -> ModelFamily:
    """The family of a teacher, by its configuration alone.

    Raises:
        ConfigError: It classifies.
        ModelError: Nothing usable is there.
    """
    family = choose_family(checkpoint)
    if family.task != "transcribe":
        raise ConfigError(
            f"distillation.teacher={checkpoint} can {family.task} (family {family.name}), and a teacher of "
            "speech-to-text must transcribe. Name such a model."
        )
    return family


def open_teacher(
    checkpoint: str, *, bits: Literal["auto"] | int, precision: Precision, device: torch.device | str
) -> Teacher:
    """Open a model to learn from.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder, or run directory.
        bits: Of its linear weights.
        precision: Of the matrix products; frozen matrices are kept in it.
        device: Where to put it.

    Raises:
        ConfigError: It classifies.
        ModelError: Nothing usable is there.
    """
    opened = open_model(checkpoint, family=family_of_teacher(checkpoint), bits=bits, precision=precision, device=device)
    loaded = opened.loaded
    loaded.module.requires_grad_(False)
    loaded.module.eval()
    if precision != "fp32":
        cast_frozen(loaded, DTYPES[precision])
    return Teacher(
        loaded=loaded,
        checkpoint=checkpoint,
        digest=model_digest(checkpoint, loaded),
        bits=opened.choices["quantization.bits"],
    )


def check_teacher(
    teacher: Teacher,
    student: LoadedModel,
    clips: Sequence[Clip],
    targets: Sequence[NDArray[np.int64]],
    *,
    contexts: Collection[Context],
) -> None:
    """Refuse a teacher whose logits cannot be compared with the student's, or labels that another one wrote.

    Args:
        teacher: The teacher.
        student: The model that trains, as it was opened.
        clips: That it trains on.
        targets: Their token ids, by the student's family.
        contexts: Of the batches.

    Raises:
        ConfigError: Says what differs.
    """
    named, loaded = f"distillation.teacher={teacher.checkpoint}", teacher.loaded
    _check_family(named, loaded, student)
    _check_features(named, loaded, student)
    if loaded.trained_contexts and (foreign := sorted(set(contexts).difference(loaded.trained_contexts))):
        raise ConfigError(
            f"{named} was {made_for(loaded.trained_contexts)}, and batches of this run have the context {foreign[0]} "
            f"(model.context, model.full_context_share). Take model.context={loaded.trained_contexts[0]}, or {_LABELS}."
        )
    _check_targets(named, loaded, clips, targets)
    others = {clip.extra[TEACHER_COLUMN] for clip in clips if TEACHER_COLUMN in clip.extra} - {teacher.digest}
    if others:
        raise ConfigError(
            f"{named} has the digest {teacher.digest[:12]}, and data.train has texts of another teacher, "
            f"{min(others)[:12]} (`sonotune data label`). Name that one, or label the clips again."
        )


def _check_family(named: str, teacher: LoadedModel, student: LoadedModel) -> None:
    """One family, one tokenizer, one output layer."""
    if teacher.family.name != student.family.name:
        raise ConfigError(
            f"{named} is of the family {teacher.family.name}, and the model of {student.family.name}: their tokens do "
            f"not stand for each other. Take a teacher of the same family, or {_LABELS}."
        )
    room = [getattr(one.module.config, "max_target_positions", None) for one in (teacher, student)]
    if room[0] is not None and room[1] is not None and room[0] < room[1]:
        raise ConfigError(
            f"{named} writes {room[0]} tokens at most, and {student.checkpoint} {room[1]}: it could not rate all that "
            f"the model writes. Take another teacher, or {_LABELS}."
        )
    theirs, ours = (_tokens(one) for one in (teacher, student))
    outputs = [_outputs(one) for one in (teacher, student)]
    if theirs != ours or outputs[0] != outputs[1]:
        differing = sum(theirs.get(token) != place for token, place in ours.items())
        raise ConfigError(
            f"{named} has another tokenizer than {student.checkpoint}: {differing:,} of its {len(ours):,} tokens are "
            f"others there, and the output layers have {outputs[0]:,} and {outputs[1]:,} entries. Take a teacher with "
            f"the same one, or {_LABELS}."
        )


def _check_features(named: str, teacher: LoadedModel, student: LoadedModel) -> None:
    """One front end: both read the same batch."""
    theirs, ours = teacher.frontend.state(), student.frontend.state()
    differing = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if differing:
        told = ", ".join(f"{name} {theirs.get(name)} and not {ours.get(name)}" for name in differing)
        raise ConfigError(
            f"{named} reads other features than {student.checkpoint}: {told}. Both read the same batch: take a teacher "
            f"with the same features and sample rate, or {_LABELS}."
        )


def _check_targets(
    named: str, teacher: LoadedModel, clips: Sequence[Clip], targets: Sequence[NDArray[np.int64]]
) -> None:
    """The teacher knows the languages, and puts the same tokens around a text."""
    family = cast(SpeechFamily, teacher.family)
    for language, (clip, target) in {
        clip.language: (clip, target) for clip, target in zip(clips, targets, strict=True)
    }.items():
        if language is not None and not family.knows_language(teacher, language):
            raise ConfigError(
                f"{named} does not know the language {language!r}, which clips of data.train are in. Take a teacher "
                "that does, or leave these clips out."
            )
        try:
            theirs = family.encode_text(teacher, clip.text or "", language, duration_s=clip.duration_s)
        except TextError as error:
            raise ConfigError(f"{named} cannot write {clip.id}: {error}") from error
        shared = min(len(theirs), len(target))
        if not np.array_equal(theirs[: shared - 1], target[: shared - 1]):  # the last one may end a shortened text
            raise ConfigError(
                f"{named} writes the transcript of {clip.id} with other tokens than the model. Take a teacher that is "
                f"prompted alike, or {_LABELS}."
            )


def _tokens(loaded: LoadedModel) -> dict[str, int]:
    tokenizer = getattr(loaded.processor, "tokenizer", None)
    return {} if tokenizer is None else dict(tokenizer.get_vocab())


def _outputs(loaded: LoadedModel) -> int:
    """Entries of the output layer."""
    return int(loaded.module.get_output_embeddings().weight.shape[0])


def note_on_itself(teacher: Teacher, student: str) -> Finding | None:
    """A note where the teacher is the model itself, which teaches nothing until they differ.

    Args:
        teacher: The teacher.
        student: Digest of the model that trains (`model_digest`).
    """
    if teacher.digest != student:
        return None
    return Finding(
        check="distillation.itself",
        severity="note",
        message=f"distillation.teacher={teacher.checkpoint} is the model that trains, as it was: the divergence holds "
        "it to what it was, and does not make it better than that.",
    )
