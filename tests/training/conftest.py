"""A model small enough to train in milliseconds, clips to train it on, and a loop without a run around it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sonotune.adapters.kinds.base import AdapterSettings, kind_named
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.schedule.callback import AdapterCallback
from sonotune.adapters.trainable import adapt
from sonotune.config.load import LoadedConfig, load_run_config
from sonotune.data.manifest import read_manifest
from sonotune.features.batching import Batch, ClipBatches
from sonotune.features.workers import Crew
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel, ModelFamily
from sonotune.processes import SINGLE_PROCESS
from sonotune.registry import resolve_asset
from sonotune.stages import Stage, parameters_by_name, whole_run
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.compatibility import CheckpointPlace, Fingerprint
from sonotune.training.logging.run_log import EventLog
from sonotune.training.loop import StageLoop
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.task import TaskObjective
from sonotune.training.oom import MemoryGuard
from sonotune.training.runtime import ComputeSetup, StopRequest
from sonotune.training.state import LoopSettings, TrainingData
from sonotune.training.step import Gradients, MeanLoss
from sonotune.types import Score

RATE_HZ = 16_000
TEXTS = ("one", "two", "three seven", "nine", "six")
AUGMENTED = (
    "augmentation.speed_probability=0.5",
    "augmentation.gain_probability=0.5",
    "augmentation.noise_probability=0.5",
    "augmentation.pad_probability=0.5",
    "augmentation.frequency_masks=1",
    "augmentation.time_masks=1",
    "augmentation.time_warp_frames=5",
    "adapter.dropout=0.1",
    "model.dropout=0.1",
)


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate remembers the precision of the first run of a process; tests use several."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper of 78 000 random parameters with the packaged processor."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    source = resolve_asset("assets:whisper-nano")
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = WhisperConfig.from_pretrained(source)
    changes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": 750,
        "dropout": 0.1,
        "init_std": 0.1,
    }
    config.update(changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    for file in source.iterdir():  # the tokenizer, and the decoding settings, which know the languages
        if file.suffix == ".json" and file.name != "config.json":
            shutil.copy(file, folder)
    return folder


def write_clips(folder: Path, name: str, count: int, *, first: int = 0, speaker: str = "s") -> Path:
    """Tones in noise of 0.5 to 0.95 s, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(first, first + count):
        rng = np.random.default_rng(index)
        time_S = np.arange(round(RATE_HZ * (0.5 + 0.05 * (index % 10)))) / RATE_HZ
        tone_S = 0.3 * np.sin(2 * np.pi * (200 + 150 * (index % 5)) * time_S)
        soundfile.write(folder / f"{index}.wav", tone_S + 0.02 * rng.standard_normal(time_S.size), RATE_HZ)
        lines.append(
            {
                "id": f"c{index}",
                "path": f"{index}.wav",
                "text": TEXTS[index % 5],
                "speaker": f"{speaker}{index % 3}",
                "language": "en",
            }
        )
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return manifest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl` of 20 clips and `eval.jsonl` of 4 by other speakers."""
    folder = tmp_path_factory.mktemp("corpus")
    write_clips(folder, "train", 20)
    write_clips(folder, "eval", 4, first=20, speaker="e")
    return folder


@pytest.fixture
def clips() -> Callable[..., Path]:
    """Writes clips and their manifest: folder, name, how many."""
    return write_clips


@pytest.fixture
def settings(tiny_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., LoadedConfig]:
    """Words -> configuration of a short run in `tmp_path / "run"`, 5 steps an epoch, 10 in all."""

    def build(*words: str, folder: Path | None = None, augmented: bool = False) -> LoadedConfig:
        common = {
            "model": str(tiny_model),
            "data.train": str(corpus / "train.jsonl"),
            "data.eval": str(corpus / "eval.jsonl"),
            "run.dir": str(folder or tmp_path / "run"),
            "run.progress": "false",
            "data.loader_workers": "0",
            "training.precision": "fp32",
            "training.batch_max_clips": "4",
            "training.max_epochs": "2",
            "evaluation.bootstrap": "100",
            "evaluation.max_new_tokens": "4",
            "training.threads": "1",
        }
        given = dict(word.split("=", 1) for word in (*(AUGMENTED if augmented else ()), *words))
        if "training.stages" in given:
            del common["training.max_epochs"]
        return load_run_config([f"{name}={value}" for name, value in {**common, **given}.items()])

    return build


class ListLog(EventLog):
    """Keeps events in a list."""

    def __init__(self, events: list[dict[str, Any]], listeners: Sequence[AfterSteps] = ()) -> None:
        super().__init__(listeners)
        self._events = events

    def event(self, kind: str, **fields: Any) -> None:
        self._events.append({"kind": kind, **fields})


class AfterSteps:
    """A listener that calls functions with the number of each step that was made."""

    def __init__(self) -> None:
        self.calls: list[Callable[[int], None]] = []

    def started(self, total_steps: int, step: int) -> None:
        pass

    def stepped(self, values: Mapping[str, Any]) -> None:
        for call in self.calls:
            call(values["step"])

    def evaluated(self, step: int, scores: Mapping[str, Score]) -> None:
        pass


class OnGradients(AdapterCallback):
    """Calls functions with the number of steps made, when the gradients of the next one are ready."""

    def __init__(self) -> None:
        self.calls: list[Callable[[int], None]] = []

    def on_gradients(self, step: int, total_steps: int) -> None:
        for call in self.calls:
            call(step)


@dataclass(kw_only=True)
class Bench:
    """A stage loop and everything it was given, so that a test can look at all of it."""

    loop: StageLoop
    loaded: LoadedModel
    family: ModelFamily
    stage: Stage
    stages: Sequence[Stage]
    settings: LoopSettings
    accumulator: Gradients
    task: Transcribe
    folder: Path
    stop: StopRequest
    after_steps: AfterSteps
    on_gradients: OnGradients
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in self.events if event["kind"] == kind]

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of everything that trains."""
        parameters = dict(self.loaded.module.named_parameters())
        return {name: parameters[name].detach().clone() for name in sorted(self.stage.trainable)}

    def gradients(self) -> dict[str, torch.Tensor]:
        """Copies of all gradients by parameter name."""
        found = {name: value.grad for name, value in self.loaded.module.named_parameters()}
        return {name: value.clone() for name, value in found.items() if value is not None}

    def batch(self, *indices: int) -> Batch:
        """Some training clips as one batch."""
        data = self.loop.loader.data
        return ClipBatches(
            data.clips, data.targets, self.loaded.frontend, batches=[indices], seed=0, epoch=0, context="cut"
        )[0]

    def accumulate(self, *batches: Batch) -> MeanLoss:
        """Leave the gradient of a step of these micro-batches in the parameters."""
        return self.accumulator.accumulate(
            dict(enumerate(batches)),
            parameters_by_name(self.loaded.module, self.loop.schedule.stage.trainable),
            step=self.loop.state.step,
            clips=sum(len(batch.clips) for batch in batches),
            domains=False,
        )


@pytest.fixture
def bench(tiny_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., Bench]:
    """Builds a loop; keywords override `LoopSettings`, adapter settings, the stage or digests of the fingerprint."""

    def build(
        *,
        folder: Path | None = None,
        scores: Sequence[float | tuple[float, ...]] | None = None,
        primary: str = "wer",
        max_epochs: int = 2,
        max_steps: int | None = None,
        patience: int | None = None,
        learning_rate: float = 1e-2,
        learning_rates: dict[str, float] | None = None,
        kind: str = "lora",
        stem: str = "train",
        dropout: float | None = 0.0,
        accelerator: Any = None,
        manifest: Path | None = None,
        crew: Crew | None = None,
        warmup_steps: int = 0,
        label_smoothing: float = 0.0,
        stages: Callable[[LoadedModel], Sequence[Stage]] | None = None,
        unfreeze: Sequence[str] = (),
        identity: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Bench:
        place = folder or tmp_path / "checkpoints"
        torch.manual_seed(0)
        opened = open_model(str(tiny_model), dropout=dropout)
        plan = plan_ranks(opened.loaded, RankSettings(rank=4, unfreeze=unfreeze)) if kind == "lora" else None
        settings = AdapterSettings(rank=4, stem=stem, unfreeze=unfreeze)  # type: ignore[arg-type]
        loaded = adapt(opened.loaded, kind_named(kind), plan, settings)
        task = Transcribe(opened.loaded.family, TaskSettings())
        prepared = task.prepare(loaded, read_manifest(manifest or corpus / "train.jsonl"))
        stage = whole_run(
            loaded,
            learning_rate=learning_rate,
            learning_rates=learning_rates or {},
            max_epochs=max_epochs,
            max_steps=max_steps,
            patience=patience,
            warmup_steps=warmup_steps,
        )
        given = tuple(stages(loaded)) if stages is not None else (stage,)
        values: dict[str, Any] = {
            "seed": 0,
            "batch_seconds": 60.0,
            "batch_max_clips": 4,
            "accumulation_steps": 1,
            "schedule": "constant",
            "learning_rate_floor": 0.1,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
            "clip_norm": 1e6,
            "eval_steps": "epoch",
            "save_steps": "epoch",
            "keep_checkpoints": 2,
            "full_context_share": 0.0,
        }
        events: list[dict[str, Any]] = []
        stop = StopRequest()
        queue = list(scores or [])

        def evaluate() -> dict[str, Score]:
            value = queue.pop(0)
            values = value if isinstance(value, tuple) else (value,)  # of words, and of characters where given
            return {
                name: Score(
                    name=name,
                    value=one,
                    low=one,
                    high=one,
                    count=1,
                    role="primary" if name == primary else "plain",
                )
                for name, one in zip(("wer", "cer"), values, strict=False)
            }

        digests = {"settings": "s" * 64, "training data": "d" * 64, "base model": loaded.revision, **(identity or {})}
        fingerprint = Fingerprint(values=digests, may_differ=frozenset())
        compute = ComputeSetup(
            accelerator=accelerator or Accelerator(cpu=True), processes=SINGLE_PROCESS, precision="fp32", why=""
        )
        after_steps, on_gradients = AfterSteps(), OnGradients()
        log = ListLog(events, [after_steps])
        objective = TaskObjective(task, ObjectiveSettings(label_smoothing=label_smoothing))
        loop_settings = LoopSettings(**{**values, **changes})
        loop = StageLoop(
            objective,
            loaded,
            given,
            settings=loop_settings,
            data=TrainingData(
                clips=prepared.clips, targets=prepared.targets, augmenter=None, spec_augment=None, crew=crew
            ),
            compute=compute,
            checkpoints=CheckpointPlace(folder=place, fingerprint=fingerprint),
            log=log,
            callbacks=[on_gradients],
            evaluate=evaluate if scores is not None else None,
            stop=stop,
        )
        guard = MemoryGuard(loaded, loop.state, limit_bytes=loop_settings.memory_limit_bytes, log=log)
        return Bench(
            loop=loop,
            loaded=loaded,
            family=opened.loaded.family,
            stage=stage,
            stages=given,
            settings=loop_settings,
            accumulator=Gradients(objective, loaded, seed=loop_settings.seed, compute=compute, guard=guard, log=log),
            task=task,
            folder=place,
            stop=stop,
            after_steps=after_steps,
            on_gradients=on_gradients,
            events=events,
        )

    return build
