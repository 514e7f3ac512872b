"""What a run leaves behind: its record, events, predictions and ranks; checkpoints; ablations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from harness import Files, Target, attempt
from mutations import damage_bytes, damage_folder, damage_json_file, damage_json_lines

_TEXTS: Final = (
    ("a1", "seven three nine one", "seven tree nine one one", "phone", "ana", "en"),
    ("a2", "turn the lights off", "turn lights off", "phone", "ben", "en"),
    ("a3", "stop", "", "studio", "cyd", "en"),
    ("a4", "שלוש ארבע חמש", "שלוש ארבה חמש שש", "studio", "dan", "he"),
    ("a5", "<script> & $x^2$", "<script> & x", "studio", "eve", "en"),
    ("a6", "nine nine", "nine", "phone", "fay", "en"),
)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


# --- runs ----------------------------------------------------------------------------------------


def _check_run(folder: Path) -> None:
    """As `report`, `compare`, `evaluate model=RUN` and the resumption of training read a run."""
    from sonotune.adapters.metadata import use_of
    from sonotune.cli.report import write_report
    from sonotune.config.load import load_run_config
    from sonotune.evaluation.compare import compare
    from sonotune.planning.cost import read_throughput
    from sonotune.runs import RunDirectory, read_events, read_record

    run = folder / "run-0123abcd"
    record = attempt(read_record, run)
    attempt(lambda: list(read_events(run / "events.jsonl")))
    attempt(write_report, run)
    attempt(use_of, str(run))
    attempt(compare, [folder / "other"], [run], resamples=50)
    attempt(read_throughput, str(run))
    attempt(load_run_config, [f"model.checkpoint={run}", "data.train=x.jsonl"])
    digest = record.config_digest if record is not None else "0" * 64
    opened = attempt(
        RunDirectory.create_or_open,
        run,
        config_digest=digest,
        settings={"training.seed": 0},
        allow_change=["data.train"],
    )
    if opened is not None:
        with opened:
            attempt(opened.truncate_events_after, 2)
            opened.event("fuzz", value=1)
            attempt(lambda: list(opened.events()))


def _score(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value / 2, "high": min(1.0, value * 2), "count": 4, "unit": "fraction", **more}


def _record(**changes: Any) -> dict[str, Any]:
    finding = {
        "check": "audio.truncated",
        "severity": "error",
        "message": "clip b7 is cut",
        "clip_ids": ["b7"],
        "path": "b7.wav",
        "measured": 1.1,
        "limit": 3.2,
        "unit": "s",
    }
    group = {"name": "adapters", "learning_rate": 1e-3, "decay": True, "parameters": 9, "tensors": ["m.fc1.lora_A"]}
    return {
        "schema": 1,
        "run_id": "20260114-3f9a1c",
        "status": "finished",
        "config": {
            "model": {"checkpoint": "assets:whisper-nano", "context": "auto", "language": None},
            "training": {"learning_rate": 1e-3, "max_epochs": 3, "seed": 0},
            "adapter": {"targets": ["q_proj", "v_proj"], "rank": 8},
            "data": {"min_duration_s": 0.5, "max_duration_s": None, "multi_label": False, "text_scoring": "basic"},
            "evaluation": {"duration_edges_s": [1.0, 5.0]},
        },
        "config_origin": {"training.learning_rate": "command line"},
        "config_digest": "ab" * 32,
        "data_digest": {"train": "cd" * 32, "eval": "ef" * 32},
        "code": {"version": "0.1.0", "commit": "1234567", "tree": "clean"},
        "environment": {"python": "3.11.9", "packages": {"torch": "2.13.0"}, "cores": 2, "world_size": 1},
        "model": {
            "family": "whisper",
            "checkpoint": "assets:whisper-nano",
            "revision": "0" * 16,
            "task": "transcribe",
            "context": "cut",
            "trained_contexts": ["cut"],
            "thinning": {"margin": 50, "spacing": 30},
            "language": "en",
            "components": {"stem": {"parameters": 120, "trainable": 60, "bytes": 240}},
        },
        "ranks": {"model.encoder.layers.0.self_attn.q_proj": 8, "model.encoder.layers.1.fc1": 4},
        "findings": [finding],
        "scores": {
            moment: {"wer": _score(rate, title="WER", better="lower", role="primary"), "cer": _score(rate / 2)}
            for moment, rate in (("before", 0.4), ("after", 0.3), ("test", 0.2))
        },
        "stages": [{"name": "train", "max_epochs": 5, "max_steps": None, "groups": [group]}],
        "choices": {"quantization.bits": "4 because the command line asked for it"},
        "peak_memory_bytes": 812_000_000,
        "seconds": 143.2,
        "energy_joules": 12.5,
        **changes,
    }


def _events() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {
            "kind": "step",
            "step": step,
            "loss": 3 * math.exp(-step),
            "learning_rates": {"adapter": 1e-3},
            "samples_per_s": 30.0,
            "audio_s": 8.0,
            "seconds": 0.5,
        }
        for step in range(1, 6)
    ]
    scored = {"kind": "evaluation", "step": 5, "scores": {"wer": _score(0.3), "cer": _score(0.1)}}
    entropy = {"kind": "adapter_entropy", "step": 5, "modules": {"model.encoder.layers.0.self_attn.q_proj": 0.5}}
    spent = {"kind": "spent", "seconds": {"decode": 6.2, "forward": 21.0}, "audio_s": 4.0}
    return [*steps, scored, entropy, spent]


def _plan() -> dict[str, Any]:
    names = ["model.encoder.layers.0.self_attn.q_proj", "model.encoder.layers.1.fc1", "model.decoder.layers.0.fc2"]
    return {
        "schema": 1,
        "allocator": "entropy",
        "parameters": 100,
        "budget": 120,
        "reference": 8,
        "pruned_to": None,
        "groups": {"encoder": 60, "decoder": 40},
        "costs": dict.fromkeys(names, 10),
        "ranks": dict.fromkeys(names, 4),
        "evidence": {name: 0.5 * index for index, name in enumerate(names)},
        "caps": dict.fromkeys(names, 16),
    }


def _predictions(*, classes: bool = False, shift: int = 0) -> list[dict[str, Any]]:
    if classes:
        label = ("flam", "drag")
        return [
            {
                "id": f"c{i}",
                "duration_s": 1.0 + i,
                "speaker": f"s{i}",
                "domain": "studio",
                "labels": [label[i % 2]],
                "decided": [label[(i + (i == shift)) % 2]],
                "scores": {"flam": 0.2 * i, "drag": 1 - 0.2 * i},
            }
            for i in range(6)
        ]
    return [
        {
            "id": name,
            "duration_s": 0.8 + index,
            "domain": domain,
            "speaker": speaker,
            "language": language,
            "reference": reference,
            "hypothesis": hypothesis,
            "scored_reference": reference,
            "scored_hypothesis": hypothesis if index != shift else reference,
        }
        for index, (name, reference, hypothesis, domain, speaker, language) in enumerate(_TEXTS)
    ]


def _run_seeds() -> list[Files]:
    found: list[Files] = []
    scores = {"after": {"accuracy": _score(0.5, better="higher", title="accuracy", role="primary")}}
    for classes, record in (
        (False, _record()),
        (True, _record(scores=scores, model={"family": "ast", "task": "classify"}, findings=[], ranks={})),
        (False, _record(status="running", energy_joules=None, scores={}, stages=[])),
    ):
        run = {
            "run.json": json.dumps(record, indent=1, ensure_ascii=False).encode(),
            "events.jsonl": _lines(_events()),
            "ranks.json": json.dumps(_plan()).encode(),
            "predictions/test.jsonl": _lines(_predictions(classes=classes)),
        }
        other = json.dumps(_record()).encode()
        beside = {
            "other/run.json": other,
            "other/predictions/test.jsonl": _lines(_predictions(classes=classes, shift=2)),
        }
        found.append({f"run-0123abcd/{name}": data for name, data in run.items()} | beside)
    return found


# --- checkpoints ---------------------------------------------------------------------------------


def _check_checkpoints(folder: Path) -> None:
    """As the resumption of training looks for one."""
    from sonotune.runs import digest_file
    from sonotune.training import checkpoint
    from sonotune.training.compatibility import MICRO_BATCHES, Fingerprint

    root = folder / "checkpoints"
    if (folder / "signed").is_file():  # so that what is damaged is read, and not only found to be damaged
        for path in root.glob("step-*"):
            _sign(path, digest_file)
    for path in checkpoint.published(root):
        checkpoint.damage(path)
        checkpoint.micro_batches(path)
        attempt(checkpoint.read, path)
    saved = attempt(checkpoint.newest, root, on_damage=lambda path, problem: None)
    if saved is not None:
        wanted = Fingerprint(values={"config": "c" * 64, "data": "d" * 64, MICRO_BATCHES: "1"}, may_differ=frozenset())
        attempt(checkpoint.check_fingerprint, saved, wanted, ["encoder.weight"])
        from sonotune.training.state import TrainingState

        attempt(lambda: TrainingState(**saved.state["position"]) if "position" in saved.state else None)


def _sign(path: Path, digest_file: Any) -> None:
    manifest = path / "MANIFEST.json"
    if not all(child.is_file() for child in path.iterdir()):
        return
    try:
        entries = json.loads(manifest.read_bytes())
        for name, entry in entries["files"].items():
            if not (path / name).is_file():  # a name may be that of an endless device
                return
            entry |= {"bytes": (path / name).stat().st_size, "sha256": digest_file(path / name)}
        manifest.write_text(json.dumps(entries), "utf-8")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # a case whose manifest is damaged too


def _checkpoint_seeds() -> list[Files]:
    import dataclasses
    import tempfile

    import torch

    from sonotune.training import checkpoint
    from sonotune.training.compatibility import MICRO_BATCHES
    from sonotune.training.state import TrainingState

    weights = {"encoder.weight": torch.arange(12.0).reshape(3, 4), "encoder.bias": torch.zeros(3)}
    moments = {f"{name}/exp_avg": tensor for name, tensor in weights.items()}
    state = {
        "identity": {"config": "c" * 64, "data": "d" * 64, MICRO_BATCHES: "1"},
        "position": dataclasses.asdict(TrainingState()),
        "optimizer": ["encoder.weight"],
        "scaler": None,
    }
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for step in (1, 2):
            checkpoint.save(root, step, weights=weights, optimizer=moments, state=state)
        files = {
            f"checkpoints/{path.relative_to(root)}": path.read_bytes()
            for path in sorted(root.rglob("*.*"))
            if path.is_file()
        }
    return [files, {**files, "signed": b""}]


# --- events and predictions by themselves --------------------------------------------------------


def _check_lines(folder: Path) -> None:
    """The readers of both kinds of lines."""
    from sonotune.evaluation.compare import compare
    from sonotune.runs import read_events, read_predictions

    attempt(lambda: list(read_events(folder / "events.jsonl")))
    attempt(read_predictions, folder / "predictions.jsonl")
    attempt(compare, [folder / "other.jsonl"], [folder / "predictions.jsonl"], resamples=50)


def _check_pictures(folder: Path) -> None:
    """As `allocate --plot` and the report draw a plan of ranks."""
    from sonotune.reports.rank_heatmap import read_plan, save_pictures

    if (plan := attempt(read_plan, folder / "ranks.json")) is not None:
        attempt(save_pictures, plan, folder / "pictures")


def _line_seeds() -> list[Files]:
    return [
        {
            "events.jsonl": _lines(_events()),
            "predictions.jsonl": _lines(_predictions(classes=classes)),
            "other.jsonl": _lines(_predictions(classes=classes, shift=1)),
        }
        for classes in (False, True)
    ]


def _check_choices(folder: Path) -> None:
    """As `listen`, `preference` and `data correct` read predictions, clips and choices."""
    from sonotune.listening.choices import last_corrections, read_choices
    from sonotune.listening.corrections import correct
    from sonotune.listening.page import comparison_page, served_sound
    from sonotune.listening.preference import count_votes
    from sonotune.listening.trials import make_trials
    from sonotune.listening.utterances import read_systems
    from sonotune.reports.browser import build_browser_html

    places = [folder / "predictions.jsonl", folder / "other.jsonl"]
    systems = attempt(read_systems, places, manifest=str(folder / "clips.jsonl"))
    found = attempt(read_choices, folder / "choices.jsonl")
    if systems is None or found is None:
        return
    session, entries = found
    if (trials := attempt(make_trials, systems.utterances, seed=session.seed, form=session.form)) is not None:
        build_browser_html(comparison_page(systems, trials, session, sound=served_sound))
        attempt(count_votes, trials, entries, where="choices.jsonl")
    attempt(correct, [one.clip for one in systems.utterances], last_corrections(entries))


def _choice_seeds() -> list[Files]:
    from sonotune.listening.choices import Session

    rows = _predictions()
    other = [{**row, "hypothesis": f"{row['hypothesis']} again"} for row in rows]
    ids = [row["id"] for row in rows]
    texts = {row["id"]: row.get("reference") for row in rows}
    clips = [
        {"id": name, "path": f"{name}.wav", "text": texts[name], "duration_s": row.get("duration_s") or 1.0}
        for name, row in zip(ids, rows, strict=True)
    ]
    session = Session(mode="blind", seed=0, form="written", clips=None, random=None, files=("0" * 64, "1" * 64))
    who = {"listener": "ana", "at": "2026-12-01T10:00:00+00:00"}
    entries: list[dict[str, Any]] = [{"kind": "choice", "clip": name, "choice": "left", **who} for name in ids]
    entries += [
        {"kind": "correction", "clip": ids[0], "text": "seven", "was": texts[ids[0]], **who},
        {"kind": "revealed", **who},
    ]
    return [
        {
            "predictions.jsonl": _lines(rows),
            "other.jsonl": _lines(other),
            "clips.jsonl": _lines(clips),
            "choices.jsonl": _lines([session.to_json(), *entries]),
        }
    ]


_HOW: Final = {
    "run-0123abcd/run.json": damage_json_file,
    ".jsonl": damage_json_lines,
    "ranks.json": damage_json_file,
}

TARGETS: Final = (
    Target(
        name="run",
        seeds=_run_seeds,
        mutate=lambda rng, files: damage_folder(rng, files, _HOW),
        check=_check_run,
        weight=60.0,
    ),
    Target(
        name="lines",
        seeds=_line_seeds,
        mutate=lambda rng, files: damage_folder(rng, files, _HOW),
        check=_check_lines,
        weight=20.0,
    ),
    Target(
        name="choices",
        seeds=_choice_seeds,
        mutate=lambda rng, files: damage_folder(rng, files, _HOW),
        check=_check_choices,
        weight=20.0,
    ),
    Target(
        name="pictures",
        seeds=lambda: [{"ranks.json": json.dumps(_plan()).encode()}],
        mutate=lambda rng, files: damage_folder(rng, files, _HOW),
        check=_check_pictures,
        weight=600.0,
    ),
    Target(
        name="checkpoint",
        seeds=_checkpoint_seeds,
        mutate=lambda rng, files: damage_folder(rng, files, {".json": damage_json_file, ".safetensors": damage_bytes}),
        check=_check_checkpoints,
        weight=5.0,
    ),
)
