"""The two sides of the comparison, and what both are given. `run.py` calls this once for each process.

    python sides.py NAME PRECISION FOLDER     # one of SIDES -> FOLDER/out.json

Linux only: peak memory is the kernel's own figure.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from sonotune.audio.io import read, write
from sonotune.data.chunking import SAMPLE_RATE_HZ, join
from sonotune.data.importers import DIGITS, load
from sonotune.data.manifest import write_manifest
from sonotune.data.text import get as get_normalizer
from sonotune.registry import resolve_asset
from sonotune.runs import generator
from sonotune.types import Clip

HERE: Final = Path(__file__).resolve().parent
SEED: Final = 0
BATCH: Final = 8
WARMUP_STEPS: Final = 2
RANK: Final = 8
LEARNING_RATE: Final = 1e-3
LANGUAGE: Final = "en"
WHISPER_TINY: Final = {
    "vocab_size": 51_865, "num_mel_bins": 80, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4,
    "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536,
    "max_source_positions": 1500, "max_target_positions": 448,
}  # fmt: skip


# What both sides are given


def side_prepare(work: Path, steps: str) -> dict[str, Any]:
    """Write the model folder and the clips; returns what the results file says of them."""
    write_model(work / "model")
    source, clips = write_clips(work, (WARMUP_STEPS + int(steps)) * BATCH)
    order = generator(SEED, "train_throughput", "order").permutation(len(clips))
    clips = [clips[index] for index in order]
    write_manifest(work / "warmup.jsonl", clips[: WARMUP_STEPS * BATCH])
    write_manifest(work / "measured.jsonl", clips[WARMUP_STEPS * BATCH :])
    seconds = [clip.duration_s for clip in clips[WARMUP_STEPS * BATCH :]]
    return {
        "source": source, "batch": BATCH, "warmup_steps": WARMUP_STEPS, "seed": SEED, "clips": len(seconds),
        "seconds": sum(seconds), "shortest_s": min(seconds), "median_s": statistics.median(seconds),
        "longest_s": max(seconds),
    }  # fmt: skip


def write_model(folder: Path) -> None:
    """Whisper-tiny with random weights, and the packaged processor with a 30 s window.

    The packaged tokenizer writes letter by letter, four times the tokens that Whisper's own needs for English. The
    digit words become one token each, as they are there, so that the decoder has neither more nor less to do.
    """
    import torch
    import transformers

    asset = resolve_asset("whisper-nano")
    tokenizer = transformers.WhisperTokenizer.from_pretrained(asset)
    tokenizer.add_tokens([spelled for word in DIGITS for spelled in (word, f" {word}")])
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=30)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    generation = transformers.GenerationConfig.from_pretrained(asset)
    generation.max_length = WHISPER_TINY["max_target_positions"]
    config = transformers.WhisperConfig(
        **WHISPER_TINY, apply_spec_augment=False, suppress_tokens=None, begin_suppress_tokens=None,
        pad_token_id=generation.pad_token_id, bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id, decoder_start_token_id=generation.decoder_start_token_id,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = generation
    model.save_pretrained(folder)


def write_clips(work: Path, number: int) -> tuple[str, list[Clip]]:
    """So many recordings of 1 to 10 s: spoken digits joined, or noise where the digits are not at hand."""
    root = HERE.parent.parent
    for candidate in (os.environ.get("SONOTUNE_FSDD"), root.parent / "shared" / "data" / "fsdd"):
        if candidate and Path(candidate).is_dir():
            clips = join(load(candidate, format="fsdd"), work / "clips", max_duration_s=10.0, limit=number, seed=SEED)
            if len(clips) < number:
                sys.exit(f"the spoken digits make {len(clips)} recordings; {number} are needed. Lower --steps.")
            return "fsdd", clips
    clips = []
    for index in range(number):
        rng = generator(SEED, "train_throughput", "noise", index)
        path, seconds = work / "clips" / f"noise-{index:04d}.wav", float(rng.uniform(1.0, 10.0))
        path.parent.mkdir(exist_ok=True)
        wave_S = (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.float32)
        write(path, wave_S, SAMPLE_RATE_HZ)
        words = [DIGITS[digit] for digit in rng.integers(0, 10, max(1, round(seconds / 0.6)))]
        clips.append(Clip(id=path.stem, path=path, duration_s=wave_S.size / SAMPLE_RATE_HZ,
                          sample_rate_hz=SAMPLE_RATE_HZ, text=" ".join(words)))  # fmt: skip
    return "noise", clips


# What is measured in each process


class Memory:
    """Peak resident memory of this process since it was made, and of its children's own pages beside it."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from here
        self.baseline = self._status("VmRSS")
        self._children, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, int]:
        """The figures in bytes. Pages that a forked child shares with this process count once."""
        self._done.set()
        self._thread.join()
        peak = self._status("VmHWM") + self._children
        return {"baseline": self.baseline, "peak": peak, "above": peak - self.baseline, "children": self._children}

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.5):
            try:
                total = sum(child.memory_full_info().uss for child in process.children(recursive=True))
            except psutil.Error:  # one ended between being listed and being read
                continue
            self._children = max(self._children, total)

    @staticmethod
    def _status(key: str) -> int:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


class Clock:
    """Seconds from the beginning of training to its last step: of the wall, and of processors, the loader's too."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds = self.processor_s = 0.0
        self._started = self._used = 0.0

    def started(self, total_steps: int = 0, step: int = 0) -> None:
        self._used = processor_seconds()
        self._started = time.perf_counter()

    def stepped(self, values: Mapping[str, Any]) -> None:
        self.seconds = time.perf_counter() - self._started
        self.processor_s = processor_seconds() - self._used
        self.losses.append(float(values["loss"]) if values["loss"] is not None else math.nan)

    def evaluated(self, step: int, scores: Mapping[str, Any]) -> None:
        """Nothing is evaluated here."""


def processor_seconds() -> float:
    """What this process and its children, ended or running, have used."""
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(os.times()[:4]) + sum(times.user + times.system for times in running)


def report(clock: Clock, memory: Memory, *, clips: int, preparation_s: float) -> dict[str, Any]:
    """What a side tells."""
    return {
        "clips": clips, "seconds": clock.seconds, "preparation_s": preparation_s, "losses": clock.losses,
        "samples_per_s": clips / clock.seconds, "one_epoch_samples_per_s": clips / (clock.seconds + preparation_s),
        "memory": memory.stop(), "processor_s": clock.processor_s,
    }  # fmt: skip


# Side A: sonotune


def open_sonotune(work: Path, precision: Any, context: Any = "dynamic") -> tuple[Any, Any, Any, Any]:
    """Accelerator, model with its adapter, family and task, as `sonotune.training.run` puts them together."""
    import torch
    from accelerate import Accelerator

    from sonotune.adapters.saved import open_model
    from sonotune.tasks.transcribe import Transcribe
    from sonotune.training.adapt import adapt

    torch.manual_seed(SEED)  # of the adapter's random half
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=True)
    opened = open_model(str(work / "model"), context=context, bits=16, precision=precision)
    loaded, _ = adapt(
        opened.loaded, kind="lora", rank=RANK, alpha="auto", dropout=0.0, targets="q_v", stem="frozen", unfreeze=(),
        allocator="uniform", budget=None, rslora=False, precision=precision, gradient_checkpointing=False,
    )  # fmt: skip
    text = get_normalizer("basic")
    task = Transcribe(opened.family, training_text=text, scoring_text=text, language=LANGUAGE)
    return accelerator, loaded, opened.family, task


def sonotune_stage(loaded: Any) -> Any:
    from sonotune.training.stages import whole_run

    return whole_run(
        loaded, learning_rate=LEARNING_RATE, learning_rates={}, max_epochs=1, max_steps=None, patience=None
    )


def side_sonotune(work: Path, precision: str) -> dict[str, Any]:
    """One pass over the clips by `StageLoop`, at the clips' own length; decoding and features happen on the way."""
    from sonotune.training.loop import StageLoop
    from sonotune.training.loop_settings import LoopSettings, TrainingData
    from sonotune.training.signals import StopRequest

    accelerator, loaded, _, task = open_sonotune(work, precision)
    memory = Memory()
    settings = LoopSettings(
        seed=SEED, batch_seconds=1000.0, batch_max_clips=BATCH, accumulation_steps=1, schedule="linear", warmup_steps=0,
        learning_rate_floor=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_norm=1.0, label_smoothing=0.0,
        eval_steps="never", save_steps="epoch", keep_checkpoints=1, loader_workers=1, full_context_share=0.0,
    )  # fmt: skip
    clock, loop, preparation_s = Clock(), None, 0.0
    for part in ("warmup", "measured"):
        began = time.perf_counter()
        prepared = task.prepare(loaded, load(work / f"{part}.jsonl"))
        preparation_s = time.perf_counter() - began
        assert not prepared.findings, prepared.findings
        clock = Clock()
        loop = StageLoop(
            task=task, loaded=loaded, stage=sonotune_stage(loaded), settings=settings,
            data=TrainingData(clips=prepared.clips, targets=prepared.targets, augmenter=None, spec_augment=None),
            accelerator=accelerator, checkpoints=work / f"checkpoints-{part}-{os.getpid()}", event=_refuse_findings,
            evaluate=None, listeners=[clock], identity={}, stop=StopRequest(),
        )  # fmt: skip
        loop.run()
    assert loop is not None
    return report(clock, memory, clips=loop.position.clips, preparation_s=preparation_s) | {
        "waited_for_data_s": loop.position.spent["data"]
    }


def _refuse_findings(kind: str, **fields: Any) -> None:
    assert kind not in {"finding", "bad_step"}, fields


# Side B: transformers and PEFT, as the guides of Hugging Face use them


def open_trainer(work: Path) -> tuple[Any, Any]:
    import peft
    import torch
    import transformers

    torch.manual_seed(SEED)
    processor = transformers.WhisperProcessor.from_pretrained(work / "model")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(work / "model")
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, bias="none"
    )
    return peft.get_peft_model(model, config), processor


def hugging_face_rows(work: Path, part: str, processor: Any) -> Any:
    """Every clip padded to 30 s and turned into features, once, by `datasets.map`; stored as numpy arrays.

    The guides leave the stored rows in their default form, nested Python lists; arrays are what is faster to read.
    """
    import datasets

    rows = [{"path": str(clip.path), "text": clip.text} for clip in load(work / f"{part}.jsonl")]
    tokenizer = processor.tokenizer
    prompt = ["<|startoftranscript|>", f"<|{LANGUAGE}|>", "<|transcribe|>", "<|notimestamps|>"]
    prompt_ids = tokenizer.convert_tokens_to_ids(prompt)

    def featurise(row: dict[str, Any]) -> dict[str, Any]:
        wave_S = read(Path(row["path"]), sample_rate_hz=SAMPLE_RATE_HZ)
        features = processor.feature_extractor(wave_S, sampling_rate=SAMPLE_RATE_HZ).input_features[0]
        ids = tokenizer(row["text"], add_special_tokens=False).input_ids
        return {"input_features": features, "labels": [*prompt_ids, *ids, tokenizer.eos_token_id]}

    table = datasets.Dataset.from_list(rows)
    return table.map(featurise, remove_columns=table.column_names).with_format("numpy")


def collate(processor: Any, start_token: int, rows: list[dict[str, Any]]) -> Any:
    """DataCollatorSpeechSeq2SeqWithPadding of the guides."""
    batch = processor.feature_extractor.pad(
        [{"input_features": row["input_features"]} for row in rows], return_tensors="pt"
    )
    padded = processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
    if (labels[:, 0] == start_token).all():
        labels = labels[:, 1:]
    batch["labels"] = labels
    return batch


def train_by_trainer(work: Path, model: Any, processor: Any, rows: Any, *, steps: int, precision: str) -> Clock:
    import transformers

    clock = Clock()

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.started()

    class Trainer(transformers.Seq2SeqTrainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **named: Any) -> Any:
            self.last_loss = super().training_step(*args, **named)
            return self.last_loss

    class Count(Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.stepped({"loss": trainer.last_loss})

    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(work / "trainer"), per_device_train_batch_size=BATCH, gradient_accumulation_steps=1,
        learning_rate=LEARNING_RATE, max_steps=steps, bf16=precision == "bf16", use_cpu=True, save_strategy="no",
        eval_strategy="no", report_to="none", remove_unused_columns=False, label_names=["labels"], disable_tqdm=True,
        logging_steps=10_000, dataloader_pin_memory=False, seed=SEED,
    )  # fmt: skip
    start = model.config.decoder_start_token_id
    trainer = Trainer(
        args=arguments, model=model, train_dataset=rows, callbacks=[Count()],
        data_collator=functools.partial(collate, processor, start), processing_class=processor.feature_extractor,
    )  # fmt: skip
    trainer.train()
    return clock


def side_trainer(work: Path, precision: str) -> dict[str, Any]:
    """One pass over the same clips; the features are made beforehand and their time is told apart."""
    model, processor = open_trainer(work)
    memory = Memory()
    clock, preparation_s, rows = Clock(), 0.0, []
    for part in ("warmup", "measured"):
        began = time.perf_counter()
        rows = hugging_face_rows(work, part, processor)
        preparation_s = time.perf_counter() - began
        clock = train_by_trainer(work, model, processor, rows, steps=len(rows) // BATCH, precision=precision)
    return report(clock, memory, clips=len(rows), preparation_s=preparation_s)


# Is it the same computation, and where does the time go?


def side_check(work: Path, precision: str) -> dict[str, Any]:
    """First-step loss of the Trainer against sonotune's, at the whole window, on the same eight clips."""
    import torch
    import torch.nn.functional as F

    from sonotune.features.batching import ClipBatches

    model, processor = open_trainer(work)
    rows = hugging_face_rows(work, "warmup", processor).select(range(BATCH))
    theirs = train_by_trainer(work, model, processor, rows, steps=1, precision=precision).losses[0]
    _, loaded, family, task = open_sonotune(work, precision, context="full")
    prepared = task.prepare(loaded, load(work / "warmup.jsonl")[:BATCH])
    found: dict[str, Any] = {"trainer": theirs}
    for context, share in (("full", 1.0), ("dynamic", 0.0)):
        batch = ClipBatches(
            prepared.clips, prepared.targets, loaded.frontend, batches=[tuple(range(BATCH))], seed=SEED, epoch=0,
            full_context_share=share,
        )[0]  # fmt: skip
        labels = batch.targets[:, 1:]
        with torch.no_grad():
            # The Trainer's loss counts the prompt's tokens; sonotune's own does not, so every position is asked for.
            logits = family.logits(loaded, batch)
            found[context] = float(F.cross_entropy(logits, labels[labels >= 0]))
    found["difference"] = abs(found["full"] - theirs)
    return found


def side_breakdown(work: Path, precision: str) -> dict[str, Any]:
    """Milliseconds a step of each part of sonotune's step, one after another in one process."""
    import torch

    from sonotune.features.batching import Batch, pad_targets, plan_batches
    from sonotune.training.optimizer import build_optimizer
    from sonotune.training.stages import parameters_by_name

    accelerator, loaded, _, task = open_sonotune(work, precision)
    stage = sonotune_stage(loaded)
    optimizer = build_optimizer(loaded.module, stage, weight_decay=0.0, betas=(0.9, 0.999))
    trainable = list(parameters_by_name(loaded.module, stage.trainable).values())
    spent: dict[str, float] = {}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        spent[what] = spent.get(what, 0.0) + time.perf_counter() - began

    loaded.module.train()
    threads, steps = torch.get_num_threads(), 0
    for part in ("warmup", "measured"):
        prepared = task.prepare(loaded, load(work / f"{part}.jsonl"))
        lengths_s = [clip.duration_s for clip in prepared.clips]
        plan = plan_batches(lengths_s, max_seconds=1000.0, max_clips=BATCH, seed=SEED, epoch=0)
        spent.clear()
        steps = len(plan)
        for places in plan:
            torch.set_num_threads(1)  # as in a loader's worker
            with timed("decode"):
                waves = [read(prepared.clips[place].path, sample_rate_hz=SAMPLE_RATE_HZ) for place in places]
            with timed("features"):
                inputs, lengths = loaded.frontend(waves)
            torch.set_num_threads(threads)
            targets, target_lengths = pad_targets([prepared.targets[place] for place in places])
            batch = Batch(inputs=inputs, input_lengths=lengths, targets=targets, target_lengths=target_lengths,
                          clips=tuple(prepared.clips[place] for place in places))  # fmt: skip
            with timed("forward"), accelerator.autocast():
                losses = task.loss(loaded, batch)
                loss = losses.total / losses.count
            with timed("backward"):
                loss.backward()
            with timed("optimiser"):
                torch.nn.utils.clip_grad_norm_(trainable, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return {"milliseconds": {what: 1000 * seconds / steps for what, seconds in spent.items()}}


SIDES: Final = {
    "prepare": side_prepare, "sonotune": side_sonotune, "trainer": side_trainer, "check": side_check,
    "breakdown": side_breakdown,
}  # fmt: skip

if __name__ == "__main__":
    name, given, folder = sys.argv[1:]
    (Path(folder) / "out.json").write_text(json.dumps(SIDES[name](Path(folder), given)))
