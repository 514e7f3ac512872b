"""The command that says what it costs to recognise with a model: benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sonotune.cli.shared import Json, Words, app, print_result

AS_IS: Final = "as_is"
FORMS: Final[Mapping[str, str]] = {
    AS_IS: "what the settings name",
    "base": "the base model of an adapter in 16 bits, without it",
    "base_8bit": "the base model in 8 bits",
    "base_4bit": "the base model in 4 bits",
    "adapter": "the adapter over its base, as it was trained",
    "merged": "the exported model in 16 bits",
}
_OF_AN_ADAPTER: Final = ("base", "base_4bit", "adapter", "merged")
_OF_A_MODEL: Final = ("base", "base_8bit", "base_4bit")


@app.command()
def benchmark(
    words: Words = None,
    forms: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(FORMS)}; auto takes those that the model has.")
    ] = "auto",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Passes over all clips; the median counts.")] = 1,
    latency_clips: Annotated[int, typer.Option(min=1, max=10_000, help="Clips recognised one by one.")] = 20,
    watts: Annotated[
        float | None, typer.Option(min=0, help="Power to assume where no counter can be read: energy is estimated.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of an hour of this machine, in any currency.")] = None,
    as_json: Json = False,
) -> None:
    """Measure speed, latency, memory, size and energy of a model in several forms, with its score beside them.

    sonotune benchmark model=runs/x data.test=test.jsonl

    An adapter is measured as its base in 16 and 4 bits, as it was trained, and merged; each in a process of its own.
    Clips are decoded as `evaluate` decodes them. Nothing else should run on the machine.
    """
    from sonotune.arguments import settings_of_use

    loaded = settings_of_use(words or [], require=("data.test",))
    if forms == AS_IS:
        body = _measured(loaded.config, rounds, latency_clips, watts, price)
        print_result(body, as_json=as_json, lines=[*_table({AS_IS: body}), *_energy_note(body)])
        return
    checkpoint = loaded.config.model.checkpoint
    options = [f"--rounds={rounds}", f"--latency-clips={latency_clips}"]
    options += [] if watts is None else [f"--watts={watts}"]
    options += [] if price is None else [f"--price={price}"]
    chosen = _chosen(forms, checkpoint)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sonotune-benchmark-") as folder:
        for form in chosen:
            place = _place(form, checkpoint, Path(folder) / "merged")
            line = ["benchmark", *_words(form, place, words or [], loaded.config), *options]
            found[form] = json.loads(_run(line, doing=f"measuring {form}"))
    body = {"model": checkpoint, "forms": found, "training": _training(checkpoint)}
    lines = [*_table(found), *_energy_note(next(iter(found.values())))]
    print_result(body, as_json=as_json, lines=[*lines, *_training_lines(body["training"])])


def _chosen(forms: str, checkpoint: str) -> tuple[str, ...]:
    from sonotune.errors import ConfigError, suggest
    from sonotune.loading import find_adapter

    adapted = find_adapter(checkpoint) is not None
    if forms == "auto":
        return _OF_AN_ADAPTER if adapted else _OF_A_MODEL
    asked = tuple(dict.fromkeys(name.strip() for name in forms.split(",") if name.strip()))
    for name in asked:
        if name not in FORMS:
            raise ConfigError(f"--forms {name!r} is not known{suggest(name, FORMS)}; allowed are {', '.join(FORMS)}.")
        if name in ("adapter", "merged") and not adapted:
            raise ConfigError(
                f"--forms {name} needs an adapter, and {checkpoint} has none. Take {', '.join(_OF_A_MODEL)}."
            )
    if not asked:
        raise ConfigError(f"--forms is empty; allowed are auto or some of {', '.join(FORMS)}, with commas between.")
    return asked


def _place(form: str, checkpoint: str, merged: Path) -> str:
    """The checkpoint of a form; the merged model is exported for the time of the benchmark."""
    from sonotune.adapters.metadata import read_metadata
    from sonotune.loading import base_of, find_adapter, model_folder

    adapter = find_adapter(checkpoint)
    if form == "merged":
        _run(["export", checkpoint, str(merged), "--no-parity", "--json"], doing="exporting the merged model")
        return str(merged)
    if not form.startswith("base"):
        return checkpoint
    return model_folder(checkpoint) if adapter is None else base_of(adapter, read_metadata(adapter))


def _words(form: str, place: str, words: Sequence[str], config: Any) -> list[str]:
    """The settings of a form: those of the user, its own checkpoint and bits, and what the run says of its use."""
    bits = {"base": 16, "base_8bit": 8, "base_4bit": 4, "merged": 16}.get(form)
    kept = [word for word in words if not word.startswith(("model=", "model.checkpoint="))]
    own = [f"model.checkpoint={place}"]
    own += [] if bits is None else [f"quantization.bits={bits}"]
    if config.model.language is not None:
        own.append(f"model.language={config.model.language}")
    own.append(f"data.text_scoring={config.data.text_scoring}")
    return [*kept, *own, f"--forms={AS_IS}", "--json"]


def _run(words: Sequence[str], *, doing: str) -> str:
    """What a command of this program prints; its progress goes where ours goes."""
    from sonotune.cli.shared import tell

    tell(f"{doing} ({FORMS.get(doing.split()[-1], 'for the time of the benchmark')})")
    command = [sys.executable, "-m", "sonotune", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  (our own command)
    if done.returncode:
        raise typer.Exit(done.returncode)  # it has said why
    return done.stdout


def _measured(config: Any, rounds: int, latency_clips: int, watts: float | None, price: float | None) -> dict[str, Any]:
    from sonotune.arguments import corpus_to_score, open_recognizer
    from sonotune.serving.benchmark import BenchmarkSettings, Opened, benchmark

    def opened() -> Opened:
        model = open_recognizer(config)
        return Opened(model=model, clips=corpus_to_score(config, model).splits["test"])

    settings = BenchmarkSettings(
        rounds=rounds,
        latency_clips=latency_clips,
        watts=watts,
        hourly_price=price,
        decoding=config.evaluation.decoding(),
        batch_seconds=config.evaluation.batch_seconds,
        max_clips=config.evaluation.batch_max_clips,
    )
    return benchmark(opened, settings).to_json()


def _training(checkpoint: str) -> dict[str, Any] | None:
    """What a run says of its training; None of anything else."""
    from statistics import median

    from sonotune.runs import read_events, read_record

    run = Path(checkpoint)
    if not (run / "run.json").is_file():
        return None
    record = read_record(run)
    steps = [event for event in read_events(run / "events.jsonl") if event.get("kind") == "step"]
    rates = [event["samples_per_s"] for event in steps if event.get("samples_per_s")]
    joules = record.energy_joules
    return {
        "steps": len(steps),
        "clips_per_s": median(rates) if rates else None,
        "seconds": record.seconds,
        "peak_bytes": record.peak_memory_bytes,
        "joules": joules,
        "joules_per_step": joules / len(steps) if joules is not None and steps else None,
    }


# --- the table ---------------------------------------------------------------------------------------


def _table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One row for each form."""
    from sonotune.metrics.scores import primary_score, score_title, show_score

    first = next(iter(found.values()))
    decides = primary_score(first["scores"])
    head = f"{'form':<10}{'bits':>5}{'weights':>10}{'peak':>10}{'audio-s/s':>11}{'latency':>10}{'p90':>9}{'p99':>9}"
    head += f"{'1st token':>11}" if first["first_token"] else ""
    lines = [f"{head}   {score_title(decides) if decides else ''}".rstrip()]
    for form, row in found.items():
        latency, token = row["latency"], row["first_token"]
        line = f"{form:<10}{row['bits']:>5}{_size(row['weight_bytes']):>10}{_size(row['peak_bytes']):>10}"
        line += f"{row['audio_s_per_s']:>11.1f}" + "".join(
            f"{_time(latency[name]):>{width}}" for name, width in (("p50", 10), ("p90", 9), ("p99", 9))
        )
        line += f"{_time(token['p50']):>11}" if token else ""
        line += f"   {show_score(row['scores'][decides])}" if decides else ""
        lines.append(line)
    sizes = [row["adapter_parameters"] for row in found.values() if row["adapter_parameters"]]
    lines.append(
        f"{first['clips']} clips, {first['audio_s']:.0f} s; latency of {first['latency']['clips']} of them, one by one"
        + (f"; the adapter has {sizes[0]:,} of {first['parameters']:,} parameters" if sizes else "")
    )
    if first["cost_per_audio_hour"] is not None:
        costs = ", ".join(f"{form} {row['cost_per_audio_hour']:.4g}" for form, row in found.items())
        lines.append(f"cost of an hour of audio: {costs}")
    if first["power"]["joules_per_audio_hour"] is not None:
        used = ", ".join(f"{form} {row['power']['joules_per_audio_hour']:,.0f} J" for form, row in found.items())
        lines.append(f"energy of an hour of audio ({first['power']['label']}): {used}")
    return lines


def _energy_note(row: Mapping[str, Any]) -> list[str]:
    if row["power"]["label"] != "none":
        return []
    return [f"energy: not measured ({row['power']['reason']}); --watts says what to assume"]


def _training_lines(training: Mapping[str, Any] | None) -> list[str]:
    if training is None or training["clips_per_s"] is None:
        return []
    line = f"training: {training['clips_per_s']:.2f} clips a second, peak {_size(training['peak_bytes'])}"
    if training["joules_per_step"] is not None:
        line += f", {training['joules_per_step']:,.0f} J a step"
    return [line]


def _size(num_bytes: float) -> str:
    from sonotune.wording import memory_size

    return memory_size(num_bytes)


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
