"""A training run laid out without weights: the model on the meta device as a run would hold it, and batches of shapes.

Whatever decides memory is made by the functions that make a run: quantisation keeps the same modules, PEFT attaches the
same adapters, frozen matrices have the same type. Only the numbers in them are missing.

Shape letters: B clips, T frames, F feature bins, U target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.base import AdapterSettings, carries_one, kind_named
from sonotune.adapters.metadata import use_of
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.adapters.trainable import adapt_uncalibrated
from sonotune.errors import AdapterError, ModelError
from sonotune.features.batching import Batch
from sonotune.loading import choose_family, find_adapter, kept_unquantized, model_folder, storage, with_contexts
from sonotune.models.base import LoadedModel, Stream
from sonotune.models.checkpoints import load_processor, locate
from sonotune.models.frame_merging.prepare import keep_key_noise, key_weights, with_merging
from sonotune.models.frame_merging.settings import FrameMerging
from sonotune.models.precision import DTYPES, Precision
from sonotune.models.quantize import bitsandbytes, packed_bytes
from sonotune.optimizers import OptimizerKind
from sonotune.planning.teacher import teacher_memory
from sonotune.registry import resolve
from sonotune.stages import Stage, StageSettings, all_stages, build_stages, whole_run
from sonotune.tasks.base import Task, TaskSettings
from sonotune.types import Clip, Context

BLOCK, SCALES_PER_BLOCK = 64, 256  # of bitsandbytes: weights that share a scale, scales that share one
PROMPT_TOKENS = (9, 6)
"""Tokens before and after the audio in Qwen3-ASR's chat template, counted with the published tokenizer."""
_AUDIO_TOKEN = 1
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """The settings of a run that decide how much memory a step takes; see `adapters.trainable.adapt`."""

    checkpoint: str
    family: str = "auto"
    revision: str | None = None
    task: str = "auto"
    num_labels: int | None = None
    multi_label: bool = False
    context: Context | None = None
    merging: FrameMerging | None = None
    bits: Literal["auto"] | int = "auto"
    double: bool = True
    skip: Sequence[str] = ()
    kind: str = "lora"
    ranks: RankSettings = field(default_factory=RankSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    label_smoothing: float = 0.0
    stages: Sequence[StageSettings] = ()
    optimizer: OptimizerKind = "adamw"
    teacher: str | None = None
    teacher_bits: Literal["auto"] | int = "auto"
    shards: int = 1
    """Processes that hold a part each of the layers' weights, one of which is planned for."""

    @property
    def full(self) -> bool:
        """Whether every weight trains."""
        return self.kind == "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model on the meta device, adapted, and what it learns.

    Attributes:
        loaded: The model; parameters and buffers have shapes and types, and no storage.
        task: What it learns.
        settings: What it was laid out by.
        device: `cpu` or `cuda`.
        bits: Of the frozen linears, and why.
        loading_bytes: The model as it is opened, and one linear before it is quantised; tied weights count once.
        stages: Of the run, in order.
        held: Names of the parameters that have moments: what trains now or has trained in an earlier stage.
        teacher_bytes: Weights of the model that is learned from; 0 without one.
    """

    loaded: LoadedModel
    task: Task
    settings: TrainingSettings
    device: str
    bits: tuple[int, str]
    loading_bytes: int
    stages: tuple[Stage, ...]
    held: frozenset[str]
    teacher_bytes: int = 0

    def enter(self, index: int) -> Layout:
        """Mark what trains in a stage, in place; the layout of that stage."""
        trains = self.stages[index].trainable
        for name, parameter in self.loaded.module.named_parameters():
            parameter.requires_grad_(name in trains)
        return replace(self, held=all_stages(*self.stages[: index + 1]))

    @property
    def sharded(self) -> dict[str, list[str]]:
        """Layer -> names of its parameters that are in parts; empty where none are."""
        if self.settings.shards == 1:
            return {}
        whole = frozenset() if self.settings.full else all_stages(*self.stages)
        prefixes = [prefix for component in self.loaded.components for prefix in component.layers]
        parameters = self.loaded.module.named_parameters()
        plain = self.loaded.names.unwrapped
        bare = {name: plain(name) for name, value in parameters if value.ndim > 1 and name not in whole}
        return {prefix: [name for name in bare if bare[name].startswith(prefix + ".")] for prefix in prefixes}

    @property
    def compute(self) -> torch.dtype:
        """Type of the matrix products."""
        return DTYPES[self.settings.precision]

    def streams(self, batch: Batch) -> tuple[Stream, ...]:
        """What the rows are that each linear computes on."""
        return self.loaded.family.streams(self.loaded, batch)

    def batch(self, clips: int, clip_s: float, label_tokens: int) -> Batch:
        """A batch of clips of one length; `inputs` is on the meta device, all else is real.

        Args:
            clips: B.
            clip_s: Seconds of each.
            label_tokens: Tokens of each transcript, those that the architecture puts around it not counted.

        Raises:
            ModelError: The clip is longer than the model's window.
        """
        window_s = self.loaded.frontend.max_duration_s
        if window_s is not None and clip_s > window_s:
            raise ModelError(
                f"clips of {clip_s:g} s are longer than the window of {self.loaded.checkpoint}, {window_s:g} s. Plan "
                "for shorter ones with --clip-seconds, or lower data.max_duration_s."
            )
        return silent_batch(self.loaded, clips, clip_s, label_tokens)


def silent_batch(loaded: LoadedModel, clips: int, clip_s: float, label_tokens: int) -> Batch:
    """What `Layout.batch` gives, for any model."""
    silence = np.zeros(max(1, round(clip_s * loaded.frontend.sample_rate_hz)), dtype=np.float32)
    one_1TF, length_1 = loaded.frontend([silence], full_context=loaded.context == "full")
    targets_BU = _targets(loaded, clips, label_tokens)
    return Batch(
        inputs=torch.empty(clips, *one_1TF.shape[1:], device="meta"),
        input_lengths=length_1.repeat(clips),
        targets=targets_BU,
        target_lengths=torch.full((clips,), targets_BU.shape[1]),
        clips=tuple(Clip(id=str(index), path=Path(str(index)), duration_s=clip_s) for index in range(clips)),
        context=loaded.context,
        frames_per_second=loaded.frontend.frames_per_second,
    )


def _targets(loaded: LoadedModel, clips: int, label_tokens: int) -> Tensor:
    """Ids (B, U), no two neighbours the same, for CTC needs a blank between those."""
    if loaded.family.task != "transcribe":
        return torch.zeros(clips, 1, dtype=torch.int64)
    return (torch.arange(loaded.family.label_overhead + label_tokens) % 2 + 3).repeat(clips, 1)


def lay_out(settings: TrainingSettings, *, device: str = "cpu") -> Layout:
    """Build the model without weights and mark what would train.

    Args:
        settings: Of the run.
        device: Where it would run, which `bits=auto` depends on.

    Raises:
        ModelError: The configuration cannot be read, or a selector matches nothing.
        AdapterError: Targets or ranks are wrong, or the model carries an adapter.
    """
    checkpoint, full = settings.checkpoint, settings.full
    if find_adapter(checkpoint):
        raise AdapterError(carries_one("a plan is of training that starts from plain weights"))
    family = choose_family(checkpoint, revision=settings.revision, family=settings.family, task=settings.task)
    base = model_folder(checkpoint)
    loaded = family.outline(base, revision=settings.revision, outputs=settings.num_labels)
    loaded = with_contexts(loaded, use_of(checkpoint), asked=settings.context)
    loaded = with_merging(loaded, use_of(checkpoint), asked=settings.merging)
    loaded = loaded.with_(processor=outline_processor(base, loaded.family.name))
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    stored = storage(
        None,
        bits=16 if full else settings.bits,
        double=settings.double,
        skip=[*settings.skip, *([] if full else settings.ranks.unfreeze)],
        parameters=total,
        device=device,
    )
    loading = _FP32_BYTES * total
    keys = key_weights(loaded)
    with torch.device("meta"):
        if stored.bits != 16:
            largest = max(loaded.module.get_submodule(name).weight.numel() for name in loaded.linears)
            loaded = _quantized(loaded, stored, DTYPES[settings.precision])
            if device != "cpu":  # on a CPU all of it is there before any is quantised
                linears = [loaded.module.get_submodule(name) for name in loaded.quantized]
                sizes = [(linear.out_features, linear.in_features) for linear in linears]
                loading = sum(packed_bytes(*size, bits=stored.bits, double=stored.double) for size in sizes)
                loading += sum(value.nbytes for value in loaded.module.parameters() if value.is_floating_point())
                loading += _FP32_BYTES * largest
        keep_key_noise(loaded, keys)
        loaded = adapt_uncalibrated(
            loaded,
            kind_named(settings.kind),
            settings.ranks,
            settings.adapter,
            precision=settings.precision,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
    task: Task = resolve("tasks", family.task)(family, TaskSettings(multi_label=settings.multi_label))
    stages = _stages(loaded, settings)
    teacher_bytes = 0
    if settings.teacher is not None:
        teacher = teacher_memory(
            settings.teacher, bits=settings.teacher_bits, precision=settings.precision, device=device
        )
        teacher_bytes = teacher.held_bytes
        loading += teacher.loading_bytes
    layout = Layout(
        loaded=loaded,
        task=task,
        settings=settings,
        device=device,
        loading_bytes=loading,
        bits=(stored.bits, "all weights train" if full else stored.reason),
        stages=stages,
        held=frozenset(),
        teacher_bytes=teacher_bytes,
    )
    return layout.enter(0)


def _stages(loaded: LoadedModel, settings: TrainingSettings) -> tuple[Stage, ...]:
    """What trains when; how fast makes no difference to memory."""
    if settings.stages:
        return build_stages(loaded, settings.stages, learning_rate=1.0, learning_rates={})
    return (whole_run(loaded, learning_rate=1.0, learning_rates={}, max_epochs=1, max_steps=None, patience=None),)


def _quantized(loaded: LoadedModel, stored: Any, compute: torch.dtype) -> LoadedModel:
    """Put the modules of `models.quantize.quantize` in, with storage of the same size and no codes in it."""
    kept = kept_unquantized(loaded, stored.skip)
    names = []
    for name in loaded.linears:
        linear = loaded.module.get_submodule(name)
        if name not in kept and isinstance(linear, nn.Linear):
            parent, _, child = name.rpartition(".")
            build = _linear_4bit if stored.bits == 4 else _linear_8bit
            setattr(loaded.module.get_submodule(parent), child, build(linear, stored.double, compute))
            names.append(name)
    setattr(loaded.module, "is_loaded_in_4bit" if stored.bits == 4 else "is_loaded_in_8bit", True)
    return loaded.with_(quantized=dict.fromkeys(names, stored.bits))


def _linear_4bit(linear: nn.Linear, double: bool, compute: torch.dtype) -> nn.Module:
    """A `Linear4bit` whose weight is a plain parameter of packed codes that carries the state of a quantised one."""
    bnb = bitsandbytes()
    rows, columns = linear.out_features, linear.in_features
    module = bnb.nn.Linear4bit(
        columns,
        rows,
        bias=linear.bias is not None,
        compute_dtype=compute,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    codes = rows * columns // 2
    weight = nn.Parameter(torch.empty(codes, 1, dtype=torch.uint8), requires_grad=False)
    blocks = -(-rows * columns // BLOCK)
    state: dict[str, Any] = {
        "absmax": torch.empty(blocks, dtype=torch.float32),
        "shape": torch.Size((rows, columns)),
        "code": torch.empty(16),
        "blocksize": BLOCK,
        "quant_type": "nf4",
        "dtype": linear.weight.dtype,
    }
    if double:
        state["absmax"] = torch.empty(blocks, dtype=torch.uint8)
        state["offset"] = torch.empty(())
        state["state2"] = bnb.functional.QuantState(
            absmax=torch.empty(-(-blocks // SCALES_PER_BLOCK)),
            code=torch.empty(256),
            blocksize=SCALES_PER_BLOCK,
            dtype=torch.float32,
        )
    marks = {"quant_state": bnb.functional.QuantState(**state), "quant_type": "nf4", "compress_statistics": double}
    for name, value in (marks | {"bnb_quantized": True}).items():
        setattr(weight, name, value)
    return _finish(module, weight, linear, compute)


def _linear_8bit(linear: nn.Linear, double: bool, compute: torch.dtype) -> nn.Module:
    """A `Linear8bitLt` with codes and scales of the right size."""
    bnb = bitsandbytes()
    rows, columns = linear.out_features, linear.in_features
    module = bnb.nn.Linear8bitLt(
        columns, rows, bias=linear.bias is not None, has_fp16_weights=False, threshold=0.0, device="meta"
    )
    weight = nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)
    scale = torch.empty(rows)
    for name, value in {"CB": None, "SCB": scale, "has_fp16_weights": False}.items():
        setattr(weight, name, value)
    module.state.CB, module.state.SCB = weight.data, scale
    return _finish(module, weight, linear, compute)


def _finish(module: Any, weight: nn.Parameter, linear: nn.Linear, compute: torch.dtype) -> nn.Module:
    module.weight = weight
    if linear.bias is not None:
        module.bias = nn.Parameter(torch.empty(linear.out_features, dtype=compute), requires_grad=False)
    module.support_avx512bf16_for_cpu = False
    module.train(linear.training)
    return module  # type: ignore[no-any-return]


def outline_processor(base: str, family: str) -> Any:
    """The one in the folder of a model, whose prompt is what it is; else one that knows how long the published is."""
    if family == "speech_llm":
        return SimpleNamespace(tokenizer=load_processor(base, class_name="AutoTokenizer", revision=None))
    source = locate(base)
    if family == "qwen3_asr" and isinstance(source, Path) and (source / "tokenizer.json").is_file():
        return load_processor(base, class_name="AutoProcessor", revision=None)
    before, after = PROMPT_TOKENS
    return _Processor(tokenizer=_Tokenizer([0] * before + [_AUDIO_TOKEN] + [0] * after))


class _Tokenizer:
    """Gives every text the same tokens."""

    eos_token_id = 0
    chat_template = None

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self._ids)


@dataclass(eq=False)
class _Processor:
    """What `prompt_of` asks of a processor."""

    tokenizer: _Tokenizer
    audio_token_id: int = _AUDIO_TOKEN
    audio_token: str = "<|audio_pad|>"  # noqa: S105  (a token of text)

    def apply_chat_template(self, turns: Sequence[Any], **_: Any) -> str:
        """The text is the tokenizer's affair."""
        return self.audio_token
