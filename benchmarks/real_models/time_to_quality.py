"""Seconds until a given WER, against `Seq2SeqTrainer` with PEFT as the Hugging Face guide fine-tunes Whisper.

    python benchmarks/real_models/time_to_quality.py real-data/fsdd --model ../shared/data/whisper_base --epochs 2

Both sides start from the same weights, see the same clips, make steps of as many clips, and train the same LoRA (q and
v, rank 8) in the same precision; the usual side pads every clip to 30 s, ours thins the window. At several steps of
each side what trains is copied, and the clock stands still. In the end every copy is scored on the development clips
by plain `transformers`: 30 s windows, its own greedy `generate`, nothing of sonotune. What counts is when each side
first is as good as the usual one is in the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
RANK: Final = 8
EARLY_STEPS: Final = (4, 8, 12, 16)
"""Further points of the curve, for pretrained weights learn fast."""
MOST_TOKENS: Final = 200


def main() -> None:
    """Train both sides, score their copies, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="Folder with train.jsonl and dev.jsonl.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--language", default="en")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--clips", type=int, default=8, help="Clips in a step.")
    parser.add_argument("--parts", type=int, default=1, help="Parts that each step is computed in.")
    parser.add_argument("--parts-usual", type=int, help="Parts of the usual side's steps, where they are others.")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rate-usual", type=float, default=1e-3, help="1e-3 is the PEFT guide's.")
    parser.add_argument("--copies", type=int, default=6, help="Points on each curve.")
    parser.add_argument("--context", default="thinned")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--train-limit", type=int, default=None, help="Training clips.")
    parser.add_argument("--limit", type=int, default=None, help="Development clips.")
    parser.add_argument("--side", choices=["ours", "usual"], help="For the processes that this one starts.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side:
        result = (ours if options.side == "ours" else usual)(options)
        options.out.write_text(json.dumps(result), "utf-8")
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("usual", "ours"):
            out = Path(folder) / f"{side}.json"
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side, "--out", str(out)], check=True)
            results[side] = json.loads(out.read_text("utf-8"))
            print(side, json.dumps(results[side]), flush=True)
    goal = results["usual"]["curve"][-1]["wer"]
    reached = {
        side: next((point["seconds"] for point in result["curve"] if point["wer"] <= goal), None)
        for side, result in results.items()
    }
    summary = {
        "goal_wer": goal,
        "usual_seconds": reached["usual"],
        "ours_seconds": reached["ours"],
        "times_faster": reached["ours"] and reached["usual"] / reached["ours"],
        "memory": results["ours"]["peak_bytes"] / results["usual"]["peak_bytes"],
        "samples_per_second": results["ours"]["samples_per_second"] / results["usual"]["samples_per_second"],
    }
    print(json.dumps(summary, indent=1))
    if options.out:
        from benchmarks.real_models.run import commit, machine

        body = {
            "options": {k: Path(str(v)).name for k, v in vars(options).items()},
            "commit": commit(),
            "machine": machine(),
            **summary,
            **results,
        }
        options.out.write_text(json.dumps(body, indent=1) + "\n", "utf-8")


def rows_of(options: argparse.Namespace, split: str) -> list[dict[str, Any]]:
    """Lines of a manifest, with absolute paths, those within 30 s."""
    path = options.corpus / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    kept = [row | {"path": str(path.parent / row["path"])} for row in rows if row["duration_s"] <= 29.9]
    return kept[: options.limit if split == "dev" else options.train_limit]


def simple(text: str) -> str:
    """The training and scoring form of both sides."""
    from sonotune.data.text import get

    return get("basic").training(text)


class Peak:
    """The largest resident memory of this process, looked at every 50 ms."""

    def __init__(self) -> None:
        self.most, self._stop = 0, threading.Event()

    def __enter__(self) -> Peak:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.05):
            self.most = max(self.most, process.memory_info().rss)


def steps_to_copy(steps: int, copies: int) -> list[int]:
    """Steps at which the curve has points, the last one among them."""
    return sorted({max(1, round(steps * (index + 1) / copies)) for index in range(copies)} | set(EARLY_STEPS))


def trained_parts(module: Any) -> dict[str, Any]:
    """Copies of the parameters that train."""
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Train with sonotune's own loop; returns the curve."""
    from sonotune.config.load import load_run_config
    from sonotune.training.loop import StageLoop
    from sonotune.training.run import run
    from sonotune.training.scoring import Scoring

    rows = rows_of(options, "train")
    per_epoch = -(-len(rows) // options.clips)
    at = steps_to_copy(per_epoch * options.epochs, options.copies)
    copies: list[tuple[int, float, dict[str, Any]]] = []
    seen: dict[str, Any] = {"paused": 0.0}

    class Copies:
        """Copies what trains, and leaves the copying out of the time."""

        def started(self, *_: Any) -> None:
            seen["start"] = time.perf_counter()

        def stepped(self, *_: Any) -> None:
            began = time.perf_counter()
            seen["steps"] = seen.get("steps", 0) + 1
            if seen["steps"] in at:
                copies.append((seen["steps"], began - seen["start"] - seen["paused"], trained_parts(seen["module"])))
            seen["paused"] += time.perf_counter() - began

        def evaluated(self, *_: Any) -> None:
            """Nothing is scored while it trains."""

    train = StageLoop.run

    def timed(loop: Any) -> Any:
        seen["module"] = loop._loaded.module
        return train(loop)

    StageLoop.run = timed  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder, Peak() as peak:
        train_manifest = Path(folder) / "train.jsonl"
        train_manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        words = [
            f"model.checkpoint={options.model}",
            f"model.context={options.context}",
            f"model.language={options.language}",
            f"data.train={train_manifest}",
            f"data.eval={options.corpus / 'dev.jsonl'}",
            "data.allow_outside_root=true",
            f"data.root={options.corpus}",
            "data.max_duration_s=29.9",
            "data.max_bad_fraction=1",
            "evaluation.zero_shot=false",
            "training.eval_steps=never",
            f"training.max_epochs={options.epochs}",
            f"training.batch_max_clips={options.clips // options.parts}",
            f"training.accumulation_steps={options.parts}",
            "training.batch_seconds=10000",
            f"training.learning_rate={options.rate}",
            "adapter.targets=q_v",
            f"adapter.rank={RANK}",
            "adapter.stem=frozen",
            "quantization.bits=16",
            f"training.precision={options.precision}",
            f"run.dir={folder}/run",
        ]
        settings = load_run_config(words)
        Scoring.score = lambda *_, **__: None  # type: ignore[method-assign]  # scoring is plain transformers' here
        run(settings, listeners=[Copies()])
        most = peak.most
    module = seen["module"]
    curve = score(module, copies, options)
    seconds = copies[-1][1]
    return {"curve": curve, "peak_bytes": most, "samples_per_second": len(rows) * options.epochs / seconds}


def usual(options: argparse.Namespace) -> dict[str, Any]:
    """The guide's data set, collator and `Seq2SeqTrainer`, with PEFT as its own guide wraps Whisper."""
    import torch
    import transformers
    from benchmarks.train_throughput.rows.whisper import collate
    from peft import LoraConfig, get_peft_model

    from sonotune.audio.io import read

    transformers.set_seed(0)
    processor = transformers.WhisperProcessor.from_pretrained(
        options.model, language=options.language, task="transcribe"
    )
    tokenizer, extractor = processor.tokenizer, processor.feature_extractor
    rows = rows_of(options, "train")
    prompt = ["<|startoftranscript|>", f"<|{options.language}|>", "<|transcribe|>", "<|notimestamps|>"]
    ids = tokenizer.convert_tokens_to_ids(prompt)

    class Clips(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.rows = [
                {
                    "input_features": extractor(
                        read(Path(row["path"]), sample_rate_hz=16_000), sampling_rate=16_000
                    ).input_features[0],
                    "labels": [
                        *ids,
                        *tokenizer(simple(row["text"]), add_special_tokens=False).input_ids,
                        tokenizer.eos_token_id,
                    ],
                }
                for row in rows
            ]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return self.rows[index]

    with Peak() as peak:
        model = transformers.WhisperForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
        start = model.config.decoder_start_token_id
        wrapped = get_peft_model(
            model,
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, bias="none"),
        )
        began = time.perf_counter()
        clips = Clips()
        preparation = time.perf_counter() - began
        steps = -(-len(rows) // options.clips) * options.epochs
        parts = options.parts_usual or options.parts
        at = steps_to_copy(steps, options.copies)
        copies: list[tuple[int, float, dict[str, Any]]] = []
        seen = {"paused": 0.0, "start": 0.0}

        class Copy(transformers.TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                seen["start"] = time.perf_counter()

            def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
                now = time.perf_counter()
                if state.global_step in at:
                    copies.append((state.global_step, now - seen["start"] - seen["paused"], trained_parts(wrapped)))
                seen["paused"] += time.perf_counter() - now

        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Seq2SeqTrainer(
                model=wrapped,
                args=transformers.Seq2SeqTrainingArguments(
                    folder,
                    per_device_train_batch_size=options.clips // parts,
                    gradient_accumulation_steps=parts,
                    num_train_epochs=options.epochs,
                    learning_rate=options.rate_usual,
                    warmup_steps=max(1, steps // 20),
                    save_strategy="no",
                    report_to=[],
                    remove_unused_columns=False,
                    label_names=["labels"],
                    use_cpu=True,
                    bf16=options.precision == "bf16",
                    disable_tqdm=True,
                    logging_strategy="no",
                    dataloader_num_workers=1,
                ),
                train_dataset=clips,
                data_collator=lambda batch: collate(processor, start, batch),
                processing_class=extractor,
                callbacks=[Copy()],
            )
            trainer.train()
        most = peak.most
    seconds = copies[-1][1]
    curve = score(wrapped.base_model.model, copies, options, owner=wrapped)
    return {
        "curve": curve,
        "peak_bytes": most,
        "samples_per_second": len(rows) * options.epochs / seconds,
        "preparation_s": preparation,
    }


def score(
    module: Any, copies: Sequence[tuple[int, float, dict[str, Any]]], options: argparse.Namespace, *, owner: Any = None
) -> list[dict[str, Any]]:
    """WER of each copy on the development clips, by plain `generate` over 30 s windows, greedy."""
    import jiwer
    import torch
    import transformers

    from sonotune.audio.io import read
    from sonotune.data.text import get

    processor = transformers.WhisperProcessor.from_pretrained(options.model)
    rows = rows_of(options, "dev")
    features = [
        processor.feature_extractor(
            read(Path(row["path"]), sample_rate_hz=16_000), sampling_rate=16_000, return_tensors="pt"
        ).input_features
        for row in rows
    ]
    form = get("basic").scoring
    module.eval().float()  # both sides are scored in fp32
    if hasattr(module.model.decoder, "cross_mask"):
        module.model.decoder.cross_mask = None
    curve = []
    named = dict((owner or module).named_parameters())
    for step, seconds, parts in copies:
        with torch.no_grad():
            for name, value in parts.items():
                named[name].copy_(value)
            texts: list[str] = []
            for start in range(0, len(rows), 20):
                out = transformers.WhisperForConditionalGeneration.generate(
                    module,
                    torch.cat(features[start : start + 20]),
                    language=options.language,
                    task="transcribe",
                    max_new_tokens=MOST_TOKENS,
                    do_sample=False,
                )
                texts += processor.batch_decode(out, skip_special_tokens=True)
        wer = jiwer.wer([form(row["text"]) for row in rows], [form(text) or "-" for text in texts])
        curve.append({"step": step, "seconds": seconds, "wer": wer})
        print(json.dumps(curve[-1]), file=sys.stderr, flush=True)
    return curve


if __name__ == "__main__":
    main()
