"""What every row shares: its clips, both sides as the rows give them, and the check that they compute one loss.

Shape letters: S samples.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.train_throughput.measuring import Clock, Memory, report
from numpy.typing import NDArray

from sonotune.audio.io import read, write
from sonotune.data.importers import load
from sonotune.data.manifest import write_manifest
from sonotune.data.text import get as get_normalizer
from sonotune.features.batching import plan_batches
from sonotune.runs import generator, torch_seed
from sonotune.training.logging.run_log import EventLog
from sonotune.types import Clip, Context

ROOT: Final = Path(__file__).resolve().parents[3]
SAMPLE_RATE_HZ: Final = 16_000
SEED: Final = 0
RANK: Final = 8
LEARNING_RATE: Final = 1e-3
LANGUAGE: Final = "en"
PARTS: Final = ("warmup", "measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """sonotune's accelerator, model with its adapter, and task."""

    accelerator: Any
    loaded: Any
    task: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """What the usual way gives to its Trainer.

    Attributes:
        model: With its adapter.
        rows: Clips in order of training -> data set; what it computes at once is told apart as preparation.
        collate: Data collator; None for the Trainer's own.
        processing_class: As the guides give it.
        arguments: Training arguments beside those that all rows share.
        sequence: Whether the guides take `Seq2SeqTrainer`.
    """

    model: Any
    rows: Callable[[Sequence[Clip]], Any]
    collate: Callable[[list[Any]], Any] | None
    processing_class: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sequence: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison.

    Attributes:
        usual: Name of the other side.
        write: Work folder and number of clips -> what the clips are, and the clips; writes the model to `model`.
        open_ours: Work folder, precision, context -> sonotune's side.
        open_usual: Work folder, precision -> the other side.
        first_loss: Mean loss of a batch by sonotune as the other side counts it.
        contexts: Those that the first-step loss is told for; the first must agree with the other side.
        rate_targets: Wanted ratio of samples/s, by precision.
        memory_target: Wanted ratio of peak memory.
        batch: Clips of a step.
        steps: Measured, where the command line does not say.
        warmup_steps: Left out.
        precisions: Measured, where the machine has them.
    """

    usual: str
    write: Callable[[Path, int], tuple[str, list[Clip]]]
    open_ours: Callable[[Path, str, Context], Ours]
    open_usual: Callable[[Path, str], Usual]
    first_loss: Callable[[Ours, Any], float]
    contexts: tuple[Context, ...] = ("cut",)
    rate_targets: Mapping[str, float] = field(default_factory=dict)
    memory_target: float | None = None
    batch: int = 8
    steps: int = 6
    warmup_steps: int = 2
    precisions: tuple[str, ...] = ("fp32",)


# What both sides are given


def prepare(row: Row, work: Path, steps: str) -> dict[str, Any]:
    """Write the model folder and the clips; returns what the results file says of them."""
    source, clips = row.write(work, (row.warmup_steps + int(steps)) * row.batch)
    order = generator(SEED, "train_throughput", "order").permutation(len(clips))
    clips = [clips[index] for index in order]
    cut = row.warmup_steps * row.batch
    write_manifest(work / "warmup.jsonl", clips[:cut])
    write_manifest(work / "measured.jsonl", clips[cut:])
    seconds = [clip.duration_s for clip in clips[cut:]]
    return {
        "source": source,
        "batch": row.batch,
        "warmup_steps": row.warmup_steps,
        "seed": SEED,
        "clips": len(seconds),
        "seconds": sum(seconds),
        "shortest_s": min(seconds),
        "median_s": statistics.median(seconds),
        "longest_s": max(seconds),
    }


def write_sounds(work: Path, number: int, *, shortest_s: float, longest_s: float) -> list[Clip]:
    """So many harmonic sounds over noise, as loud and as uneven as speech, without transcripts or labels."""
    clips = []
    (work / "clips").mkdir(exist_ok=True)
    for index in range(number):
        rng = generator(SEED, "train_throughput", "sound", index)
        seconds = float(rng.uniform(shortest_s, longest_s))
        path = work / "clips" / f"sound-{index:04d}.wav"
        wave_S = _sound(rng, round(seconds * SAMPLE_RATE_HZ))
        write(path, wave_S, SAMPLE_RATE_HZ)
        clips.append(
            Clip(id=path.stem, path=path, duration_s=wave_S.size / SAMPLE_RATE_HZ, sample_rate_hz=SAMPLE_RATE_HZ)
        )
    return clips


def _sound(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    time_S = np.arange(size) / SAMPLE_RATE_HZ
    pitch_hz, rate_hz = rng.uniform(90.0, 240.0), rng.uniform(3.0, 6.0)
    phase_S = 2 * np.pi * pitch_hz * (time_S + 0.02 * np.sin(2 * np.pi * 0.7 * time_S))
    tones_S = sum(np.sin(harmonic * phase_S) / harmonic for harmonic in range(1, 9))
    loud_S = 0.55 + 0.45 * np.sin(2 * np.pi * rate_hz * time_S + rng.uniform(0.0, 6.0))
    wave_S: NDArray[np.float32] = (0.1 * loud_S * tones_S + 0.01 * rng.standard_normal(size)).astype(np.float32)
    return wave_S


def planned(row: Row, work: Path, part: str) -> list[Clip]:
    """The clips of a part as sonotune's first epoch takes them, so that both sides train the same batches."""
    clips = load(work / f"{part}.jsonl")
    lengths_s = [clip.duration_s for clip in clips]
    plan = plan_batches(lengths_s, max_seconds=1000.0, max_clips=row.batch, seed=SEED, epoch=0)
    return [clips[place] for places in plan for place in places]


def draw_adapters(module: Any) -> None:
    """The random half of every adapter as a function of its name, so that both sides begin at the same place."""
    import torch

    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            bare = name.removeprefix("base_model.model.")
            drawn = torch.Generator().manual_seed(torch_seed(SEED, "lora_A", bare))
            torch.nn.init.kaiming_uniform_(parameter.data, a=math.sqrt(5), generator=drawn)


# Side A: sonotune


def open_ours(
    work: Path, precision: Any, context: Any, *, targets: str = "all_linear", unfreeze: Sequence[str] = ()
) -> Ours:
    """As `sonotune.training.run` puts them together, with LoRA and a frozen stem."""
    from accelerate import Accelerator

    from sonotune.adapters.kinds.base import AdapterSettings
    from sonotune.adapters.kinds.lora import LORA
    from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
    from sonotune.adapters.trainable import adapt
    from sonotune.loading import open_model
    from sonotune.registry import resolve
    from sonotune.tasks.base import TaskSettings

    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=True)
    opened = open_model(str(work / "model"), context=context, bits=16, precision=precision)
    plan = plan_ranks(opened.loaded, RankSettings(rank=RANK, targets=targets, unfreeze=unfreeze))
    beside = AdapterSettings(rank=RANK, stem="frozen", unfreeze=unfreeze)
    loaded = adapt(opened.loaded, LORA, plan, beside, precision=precision)
    draw_adapters(loaded.adapter)
    text = get_normalizer("basic")
    settings = TaskSettings(training_text=text, scoring_text=text, language=LANGUAGE)
    family = opened.loaded.family
    return Ours(
        accelerator=accelerator,
        loaded=loaded,
        task=resolve("tasks", family.task)(family, settings),
    )


def stage_of(loaded: Any) -> Any:
    from sonotune.stages import whole_run

    return whole_run(
        loaded,
        learning_rate=LEARNING_RATE,
        learning_rates={},
        max_epochs=1,
        max_steps=None,
        patience=None,
        warmup_steps=0,
    )


def side_sonotune(row: Row, work: Path, precision: str) -> dict[str, Any]:
    """One pass over the clips by `StageLoop`, at the clips' own length; decoding and features happen on the way."""
    from sonotune.features.workers import Crew
    from sonotune.training.runtime import keep_freed_memory

    keep_freed_memory()
    with Crew(1) as crew:  # before the model is loaded; both as in `sonotune.training.run`
        return _train_by_loop(row, work, precision, crew)


def _train_by_loop(row: Row, work: Path, precision: str, crew: Any) -> dict[str, Any]:
    from sonotune.processes import SINGLE_PROCESS
    from sonotune.training.compatibility import CheckpointPlace, Fingerprint
    from sonotune.training.loop import StageLoop
    from sonotune.training.objectives.base import ObjectiveSettings
    from sonotune.training.objectives.task import TaskObjective
    from sonotune.training.runtime import ComputeSetup
    from sonotune.training.state import LoopSettings, TrainingData

    ours = row.open_ours(work, precision, "cut")
    memory = Memory()
    settings = LoopSettings(
        seed=SEED,
        batch_seconds=1000.0,
        batch_max_clips=row.batch,
        accumulation_steps=1,
        schedule="linear",
        learning_rate_floor=0.0,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        clip_norm=1.0,
        eval_steps="never",
        save_steps="epoch",
        keep_checkpoints=1,
        full_context_share=0.0,
    )
    clock, loop, preparation_s = Clock(), None, 0.0
    for part in PARTS:
        began = time.perf_counter()
        prepared = ours.task.prepare(ours.loaded, load(work / f"{part}.jsonl"))
        preparation_s = time.perf_counter() - began
        assert not prepared.findings, prepared.findings
        clock = Clock()
        loop = StageLoop(
            TaskObjective(ours.task, ObjectiveSettings()),
            ours.loaded,
            [stage_of(ours.loaded)],
            settings=settings,
            data=TrainingData(
                clips=prepared.clips, targets=prepared.targets, augmenter=None, spec_augment=None, crew=crew
            ),
            compute=ComputeSetup(
                accelerator=ours.accelerator, processes=SINGLE_PROCESS, precision="fp32", why="of the comparison"
            ),
            checkpoints=CheckpointPlace(
                folder=work / f"checkpoints-{part}-{os.getpid()}",
                fingerprint=Fingerprint(values={}, may_differ=frozenset()),
            ),
            log=_RefuseFindings([clock]),
        )
        loop.run()
    assert loop is not None
    return report(clock, memory, clips=loop.state.clips, preparation_s=preparation_s) | {
        "waited_for_data_s": loop.state.spent["data"]
    }


class _RefuseFindings(EventLog):
    def event(self, kind: str, **fields: Any) -> None:
        assert kind not in {"finding", "bad_step"}, fields


# Side B: transformers and PEFT, as the guides of Hugging Face use them


def wrap_usual(model: Any, **config: Any) -> Any:
    """The model under PEFT's LoRA."""
    import peft

    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, bias="none", **config)
    )
    draw_adapters(wrapped)
    return wrapped


def side_usual(row: Row, work: Path, precision: str) -> dict[str, Any]:
    """One pass over the same clips; features that are made beforehand are timed apart."""
    usual = row.open_usual(work, precision)
    memory = Memory()
    clock, preparation_s, rows = Clock(), 0.0, []
    for part in PARTS:
        began = time.perf_counter()
        rows = usual.rows(planned(row, work, part))
        preparation_s = time.perf_counter() - began
        clock = train_by_trainer(row, work, usual, rows, precision=precision)
    return report(clock, memory, clips=len(rows), preparation_s=preparation_s)


def train_by_trainer(row: Row, work: Path, usual: Usual, rows: Any, *, precision: str) -> Clock:
    """One pass over the rows in their order."""
    import torch
    import transformers

    clock = Clock()

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.started()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.stepped({"loss": trainer.last_loss})

    kind = transformers.Seq2SeqTrainer if usual.sequence else transformers.Trainer

    class Trainer(kind):  # type: ignore[misc, valid-type]
        def training_step(self, *args: Any, **named: Any) -> Any:
            self.last_loss = super().training_step(*args, **named)
            return self.last_loss

        def _get_train_sampler(self, *args: Any, **named: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    settings = transformers.Seq2SeqTrainingArguments if usual.sequence else transformers.TrainingArguments
    shared = {
        "output_dir": str(work / "trainer"),
        "per_device_train_batch_size": row.batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": LEARNING_RATE,
        "max_steps": len(rows) // row.batch,
        "bf16": precision == "bf16",
        "use_cpu": True,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": True,
        "logging_steps": 10_000,
        "dataloader_pin_memory": False,
        "seed": SEED,
    }
    trainer = Trainer(
        args=settings(**(shared | dict(usual.arguments))),
        model=usual.model,
        train_dataset=rows,
        callbacks=[Watch()],
        data_collator=usual.collate,
        processing_class=usual.processing_class,
    )
    trainer.train()
    return clock


# Is it the same computation, and where does the time go?


def side_check(row: Row, work: Path, precision: str) -> dict[str, Any]:
    """First-step loss of the Trainer against sonotune's on the same clips, in every context of the row."""
    import torch

    from sonotune.features.batching import ClipBatches

    first = planned(row, work, "warmup")[: row.batch]
    usual = row.open_usual(work, precision)
    began = time.perf_counter()
    rows = usual.rows(first)
    examples = [rows[index] for index in range(len(rows))]
    if usual.collate is not None:
        usual.collate(examples)
    found: dict[str, Any] = {
        "trainer_data_ms": 1000 * (time.perf_counter() - began),
        "trainer": train_by_trainer(row, work, usual, rows, precision=precision).losses[0],
        "trainable": {"trainer": _trainable(usual.model)},
    }
    for context in row.contexts:
        ours = row.open_ours(work, precision, context)
        prepared = ours.task.prepare(ours.loaded, first)
        assert not prepared.findings, prepared.findings
        batch = ClipBatches(
            prepared.clips,
            prepared.targets,
            ours.loaded.frontend,
            batches=[tuple(range(row.batch))],
            seed=SEED,
            epoch=0,
            context=context,
        )[0]
        with torch.no_grad(), ours.accelerator.autocast():
            found[context] = row.first_loss(ours, batch)
        found["trainable"]["sonotune"] = _trainable(ours.loaded.module)
    assert found["trainable"]["sonotune"] == found["trainable"]["trainer"], found["trainable"]
    difference = abs(found[row.contexts[0]] - found["trainer"])
    return found | {"difference": difference, "relative": difference / abs(found["trainer"])}


def _trainable(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def mean_loss(ours: Ours, batch: Any) -> float:
    """What sonotune's own step minimises: the sum over the clips by the number of labels."""
    losses = ours.task.loss(ours.loaded, batch, label_smoothing=0.0)
    return float(losses.total / losses.count)


def side_breakdown(row: Row, work: Path, precision: str) -> dict[str, Any]:
    """Milliseconds a step of each part of sonotune's step, one after another in one process."""
    import torch

    from sonotune.features.batching import Batch, pad_targets
    from sonotune.stages import parameters_by_name
    from sonotune.training.optimizer import build_optimizer

    ours = row.open_ours(work, precision, "cut")
    stage, module = stage_of(ours.loaded), ours.loaded.module
    optimizer = build_optimizer(module, [stage], weight_decay=0.0, betas=(0.9, 0.999))
    trainable = list(parameters_by_name(module, stage.trainable).values())
    spent: dict[str, float] = {}
    timed = functools.partial(_timed, spent)
    module.train()
    threads, steps = torch.get_num_threads(), 0
    for part in PARTS:
        prepared = ours.task.prepare(ours.loaded, planned(row, work, part))
        spent.clear()
        steps = len(prepared.clips) // row.batch
        for step in range(steps):
            places = slice(step * row.batch, (step + 1) * row.batch)
            clips = prepared.clips[places]
            torch.set_num_threads(1)  # as in a loader's worker
            with timed("decode"):
                waves = [read(clip.path, sample_rate_hz=SAMPLE_RATE_HZ) for clip in clips]
            with timed("features"):
                inputs, lengths = ours.loaded.frontend(waves)
            torch.set_num_threads(threads)
            targets, target_lengths = pad_targets(prepared.targets[places])
            batch = Batch(
                inputs=inputs,
                input_lengths=lengths,
                targets=targets,
                target_lengths=target_lengths,
                clips=clips,
                context=ours.loaded.context,
            )
            with timed("forward"), ours.accelerator.autocast():
                losses = ours.task.loss(ours.loaded, batch, label_smoothing=0.0)
                loss = losses.total / losses.count
            with timed("backward"):
                loss.backward()
            with timed("optimiser"):
                torch.nn.utils.clip_grad_norm_(trainable, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return {"milliseconds": {what: 1000 * seconds / steps for what, seconds in spent.items()}}


@contextmanager
def _timed(spent: dict[str, float], what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[what] = spent.get(what, 0.0) + time.perf_counter() - began
