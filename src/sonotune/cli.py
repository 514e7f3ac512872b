"""The command line. Rooms are imported inside commands, so `--help` costs nothing and knows no torch.

Results go to stdout (one JSON object with `--json`), everything else to stderr. Exit codes: 0 done, 1 a bug of ours, 2
the user's input, 3 a gate said STOP, 4 numeric failure, 5 out of memory or disk, 6 a checkpoint's integrity, 75
interrupted with the state saved.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sonotune.errors import SonotuneError

if TYPE_CHECKING:
    from sonotune.config.load import LoadedConfig
    from sonotune.types import Clip, RunRecord

app = typer.Typer(
    name="sonotune",
    help="Fine-tune pretrained audio models on modest hardware.",
    epilog="Settings are words: model=whisper_nano data.train=train.jsonl training.max_epochs=5. "
    "`sonotune train --help` lists what a run takes; docs/reference/config.md has every setting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Make, convert, describe and split corpora.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings, presets, config=FILE.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Predictions = Annotated[Path | None, typer.Option(help="Write every prediction to this JSONL file.")]
Target = Annotated[str, typer.Option(help="`dequantized` (the function that was trained) or `original`.")]
Speakers = Annotated[str, typer.Option(help="Comma-separated speakers of eval.jsonl, instead of a share.")]
Dump = Annotated[bool, typer.Option("--dump-config", help="Print the resolved settings as YAML and stop.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _set_up_logging()
    try:
        code = app(words, prog_name="sonotune", standalone_mode=False)
    except SonotuneError as error:
        _fail(error.exit_code, str(error), words)
    except (KeyboardInterrupt, typer.Abort):
        _fail(130, "stopped.", words)
    except MemoryError:
        _fail(5, "out of memory. Lower training.batch_seconds or evaluation.batch_seconds.", words)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if (usage := _usage_error(error)) is not None:
            _fail(2, usage, words)
        if type(error).__name__ == "OutOfMemoryError":
            _fail(5, f"out of device memory: {str(error).splitlines()[0]} Lower training.batch_seconds.", words)
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's allocator on a CPU
            _fail(5, "out of memory. Lower training.batch_seconds or evaluation.batch_seconds.", words)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _fail(code: int, message: str, words: Sequence[str]) -> NoReturn:
    print(f"sonotune: {message}", file=sys.stderr)
    if "--json" in words:
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    sys.exit(code)


def _usage_error(error: Exception) -> str | None:
    """The message of a mistake on the command line, which typer raises as errors of the click it carries."""
    usage_error = typer.BadParameter.__mro__[1]
    if not isinstance(error, usage_error.__mro__[1]):
        return None
    shown: Any = error
    message: str = shown.format_message()
    context = getattr(error, "ctx", None)
    return f"{message} See `{context.command_path} --help`." if context is not None else message


def _set_up_logging() -> None:
    level = os.environ.get("SONOTUNE_LOG", "WARNING").upper()
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "huggingface_hub", "transformers", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # Announcements of libraries about each other; ours go through the log.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _print(result: Mapping[str, Any], *, as_json: bool, lines: Sequence[str]) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(lines))


def _percent(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


@app.command()
def train(words: Words = None, as_json: Json = False, dump_config: Dump = False) -> None:
    """Fine-tune a model.

    sonotune train model=whisper_nano data.train=train.jsonl data.eval=dev.jsonl

    The same line again goes on where a stopped run left off. Ctrl-C stops after the step in hand with the state saved.
    """
    from sonotune.config.load import dump_yaml, load_run_config

    settings = load_run_config(words or [], require=("data.train",))
    if dump_config:
        print(dump_yaml(settings.config), end="")
        return
    record, folder = _run(settings, quiet=as_json)
    _print(_summary(record, folder), as_json=as_json, lines=_run_lines(record, folder))


def _run(settings: LoadedConfig, *, quiet: bool) -> tuple[RunRecord, Path]:
    """Train and write the report; returns the record and the run's directory."""
    from sonotune.training.progress import ProgressBar
    from sonotune.training.run import run

    with ProgressBar(enabled=settings.config.run.progress and not quiet and sys.stderr.isatty()) as progress:
        record, folder = run(settings, listeners=[progress])
    _write_report(folder)
    return record, folder


def _write_report(folder: Path) -> Path:
    from sonotune.reports.record import build_html, read_predictions
    from sonotune.runs import atomic_write_text, read_events, read_record

    record = read_record(folder / "run.json")
    predictions: list[dict[str, Any]] = []
    for moment in ("test", "after"):
        if (path := folder / "predictions" / f"{moment}.jsonl").is_file():
            predictions = read_predictions(path)
            break
    target = folder / "report.html"
    atomic_write_text(target, build_html(record, read_events(folder / "events.jsonl"), predictions))
    return target


def _summary(record: RunRecord, folder: Path) -> dict[str, Any]:
    """The keys `train --json` promises, and more beside them."""
    last = record.scores.get("test") or record.scores.get("after") or {}
    return {
        "run": str(folder),
        "status": record.status,
        "scores": last,
        "before": record.scores.get("before", {}),
        "after": record.scores.get("after", {}),
        "seconds": record.seconds,
        "peak_bytes": record.peak_memory_bytes,
        "findings": len(record.findings),
    }


_LEFT_OUT = ("audio.", "text.", "data.")  # checks whose findings removed clips


def _run_lines(record: RunRecord, folder: Path) -> list[str]:
    lines = [f"run      {folder}"]
    for moment, title in (("before", "before"), ("after", "after"), ("test", "test")):
        if scores := record.scores.get(moment):
            shown = "   ".join(f"{name.upper()} {_percent(score)}" for name, score in scores.items())
            lines.append(f"{title:<8} {shown}")
    trainable = sum(row["trainable"] for row in record.model.get("components", {}).values())
    total = sum(row["parameters"] for row in record.model.get("components", {}).values())
    if total:
        lines.append(f"trained  {trainable:,} parameters beside {total:,}")
    lines.append(f"took     {record.seconds:.0f} s, peak memory {record.peak_memory_bytes / 2**20:.0f} MiB")
    if left_out := [finding for finding in record.findings if finding.check.startswith(_LEFT_OUT)]:
        lines.append(f"left out {sum(len(f.clip_ids) or 1 for f in left_out)} clips; run.json says why")
    lines += [
        f"warning  {f.message}" for f in record.findings if f.check in ("leak.span", "leak.audio", "leak.speaker")
    ]
    lines.append(f"report   {folder / 'report.html'}")
    return lines


@app.command()
def evaluate(words: Words = None, as_json: Json = False, out: Predictions = None) -> None:
    """Score a model, adapter or run on a manifest, whole and by domain, duration, speaker and language.

    sonotune evaluate model=runs/x data.test=test.jsonl
    """
    from sonotune.evaluation.evaluate import write_predictions
    from sonotune.training.corpus import CORPUS_SETTINGS, load_corpus

    settings = _settings_of_use(words or [], require=("data.test",))
    config = settings.config
    corpus = load_corpus(
        {"test": str(config.data.test)}, seed=config.training.seed, **config.data.model_dump(include=CORPUS_SETTINGS)
    )
    recognizer = _recognizer(settings)
    clips = corpus.splits["test"]
    result = recognizer.evaluate(clips, workers=config.data.loader_workers, **_decoding(config))
    if out is not None:
        write_predictions(out, recognizer.task, result.predictions, clips)
    body = result.to_json() | {"left_out": [finding.message for finding in corpus.findings]}
    lines = [
        f"{name.upper():<5} {_percent(score)}  on {score['count']} clips" for name, score in body["scores"].items()
    ]
    lines += [
        f"  {row['by']}={row['value']}: {recognizer.task.primary.upper()} "
        f"{_percent(row['scores'].get(recognizer.task.primary))} on {row['clips']} clips"
        for row in result.slices
    ]
    lines.append(f"{result.audio_seconds:.0f} s of audio in {result.seconds:.1f} s")
    lines += [f"left out: {finding.message}" for finding in corpus.findings]
    _print(body, as_json=as_json, lines=lines)


def _settings_of_use(words: Sequence[str], *, require: Sequence[str]) -> LoadedConfig:
    """Settings for using a model: a run's own language, normaliser and limits stand where nothing says otherwise."""
    from sonotune.config.load import load_run_config
    from sonotune.runs import read_record

    place = next((word.partition("=")[2] for word in words if word.startswith("model=")), "")
    inherited: dict[str, Any] = {}
    if (Path(place) / "run.json").is_file():
        kept = read_record(Path(place)).config
        for section, setting in _INHERITED:
            if (value := kept.get(section, {}).get(setting)) is not None:
                inherited[f"{section}.{setting}"] = value
    return load_run_config(words, require=require, inherited=inherited)


_INHERITED = (
    ("model", "language"), ("data", "text_scoring"), ("data", "min_duration_s"), ("data", "max_duration_s"),
    ("data", "multi_label"),
)  # fmt: skip


def _recognizer(settings: LoadedConfig) -> Any:
    from sonotune.serving.recognizer import Recognizer

    config = settings.config
    return Recognizer.open(
        config.model.checkpoint,
        task=config.model.task,
        language=config.model.language,
        multi_label=config.data.multi_label,
        text_scoring=config.data.text_scoring,
        precision=config.training.precision,
        family=config.model.family,
        revision=config.model.revision,
        context=config.model.context if "model.context" in settings.origin else None,
        bits=config.quantization.bits,
        random_weights=config.model.random_weights,
    )


def _decoding(config: Any) -> dict[str, Any]:
    decoding = config.evaluation
    return {
        "batch_seconds": decoding.batch_seconds,
        "max_clips": decoding.batch_max_clips,
        "beam_size": decoding.beam_size,
        "max_new_tokens": decoding.max_new_tokens,
        "bootstrap": decoding.bootstrap,
        "duration_edges_s": decoding.duration_edges_s,
    }


@app.command()
def inspect(words: Words = None, as_json: Json = False) -> None:
    """Say what a model is made of, what would train and what it weighs; no weights are read.

    sonotune inspect model=whisper_large_v3 quantization.bits=4 adapter.rank=16
    """
    from sonotune.config.load import load_run_config
    from sonotune.planning.inspection import inspect_model

    config = load_run_config(words or []).config
    found = inspect_model(
        config.model.checkpoint,
        family=config.model.family,
        task=config.model.task,
        num_labels=config.model.num_labels,
        revision=config.model.revision,
        bits=config.quantization.bits,
        double=config.quantization.double,
        skip=config.quantization.skip,
        adapter=config.adapter.model_dump() | {"precision": "fp32", "gradient_checkpointing": False},
    )
    body = found.to_json()
    lines = [f"{found.checkpoint}: {found.family}, {found.total:,} parameters, {found.trainable:,} would train"]
    lines += [f"  {'':<11}{'parameters':>15}{'trainable':>13}{'MiB':>10}{'linears':>9}{'a unit of rank':>16}"]
    lines += [
        f"  {row['name']:<11}{row['parameters']:>15,}{row['trainable']:>13,}{row['bytes'] / 2**20:>10.1f}"
        f"{row['linears']:>9}{row['parameters_per_rank']:>16,}"
        for row in body["components"]
    ]
    bits = body["bits_per_quantized_parameter"]
    held = f" at {bits:.6f} bits each" if bits else f" ({found.bits[1]})"
    compression = body["compression"]
    lines += [
        f"weights  {found.weight_bytes / 2**20:.1f} MiB; {found.quantized:,} quantised{held}",
        f"smaller  {compression['size']:.2f} times than in 16 bits"
        + (f"; one of {compression['parameters']:.1f} parameters trains" if compression["parameters"] else ""),
    ]
    _print(body, as_json=as_json, lines=lines)


@app.command()
def transcribe(
    words: Annotated[list[str], typer.Argument(metavar="[SETTING=VALUE]... FILE|FOLDER...", help="A model and audio.")],
    as_json: Json = False,
) -> None:
    """Write what is said in audio files.

    sonotune transcribe model=runs/x recordings/ note.mp3
    """
    result, _ = _recognize(words, task="transcribe")
    texts = [{"path": prediction.clip_id, "text": prediction.text} for prediction in result.predictions]
    lines = [f"{item['path']}\t{item['text']}" for item in texts]
    _print({"transcripts": texts, **_told(result)}, as_json=as_json, lines=lines)


@app.command()
def classify(
    words: Annotated[list[str], typer.Argument(metavar="[SETTING=VALUE]... FILE|FOLDER...", help="A model and audio.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print, best first.")] = 3,
    as_json: Json = False,
) -> None:
    """Say which classes audio files belong to.

    sonotune classify model=runs/x recordings/ hit.wav
    """
    result, task = _recognize(words, task="classify")
    labels = [
        {"path": prediction.clip_id, "labels": task.decide(prediction), "scores": dict(prediction.scores)}
        for prediction in result.predictions
    ]
    lines = []
    for item in labels:
        best = sorted(item["scores"].items(), key=lambda pair: -pair[1])[:top]
        shown = "  ".join(f"{label} {100 * score:.0f} %" for label, score in best)
        lines.append(f"{item['path']}\t{', '.join(item['labels']) or '-'}\t{shown}")
    _print({"predictions": labels, **_told(result)}, as_json=as_json, lines=lines)


def _recognize(words: Sequence[str], *, task: str) -> tuple[Any, Any]:
    """Predictions of the files among the words, by the model that the others name; and the task that made them."""
    from sonotune.errors import ManifestError

    files = [Path(word) for word in words if "=" not in word or Path(word).exists()]
    others = [word for word in words if Path(word) not in files]
    settings = _settings_of_use([*others, f"model.task={task}"], require=())
    if missing := [path for path in files if not path.exists()]:
        raise ManifestError(f"{missing[0]} does not exist.")
    recognizer = _recognizer(settings)
    result = recognizer.recognize(files, **_decoding(settings.config))
    for finding in result.findings:
        if finding.severity == "error":
            print(f"sonotune: {finding.message}", file=sys.stderr)
    return result, recognizer.task


def _told(result: Any) -> dict[str, Any]:
    """What `transcribe --json` and `classify --json` say beside the predictions."""
    return {
        "seconds": result.seconds,
        "audio_seconds": result.audio_seconds,
        "left_out": [finding.message for finding in result.findings if finding.severity == "error"],
    }


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run, an adapter folder or a model folder.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    target: Target = "dequantized",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter only, in PEFT format.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Merge a trained adapter into plain weights that `transformers` loads, proving that the function is the same."""
    from sonotune.errors import ConfigError
    from sonotune.serving.export import export as write_export

    for name, value, allowed in (
        ("--target", target, ("dequantized", "original")),
        ("--dtype", dtype, ("auto", "fp32", "bf16", "fp16")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is not known; take one of {', '.join(allowed)}.")
    result = write_export(
        source, folder, target=target, dtype=dtype, adapter_only=adapter, overwrite=overwrite  # type: ignore[arg-type]
    )  # fmt: skip
    lines = [f"export   {result['export']} ({result['bytes'] / 1e6:.1f} MB, {result['kind']})"]
    if merge := result.get("merge"):
        lines.append(f"merge    largest logit difference {merge['largest']:.2g} of {merge['scale']:.3g}")
    if rounding := result.get("rounding"):
        lines.append(
            f"{result['dtype']}     largest logit difference {rounding['largest']:.2g}, "
            f"best token the same at {100 * rounding['agreement']:.1f} % of positions"
        )
    _print(result, as_json=as_json, lines=lines)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")], as_json: Json = False) -> None:
    """(Re)build the HTML report of a run."""
    from sonotune.errors import RunDirectoryError

    if not (run / "run.json").is_file():
        raise RunDirectoryError(f"{run} is not a run directory: run.json is missing.")
    target = _write_report(run)
    _print({"report": str(target)}, as_json=as_json, lines=[str(target)])


@app.command()
def quickstart(
    folder: Annotated[Path | None, typer.Option("--dir", help="Run directory; default runs/quickstart-<time>.")] = None,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on packaged data, offline: check, QLoRA-train whisper-nano, score, report, export."""
    from sonotune.quickstart import quickstart as run_quickstart

    result, lines = run_quickstart(folder, run=lambda settings: _run(settings, quiet=as_json))
    _print(result, as_json=as_json, lines=lines)


@data_app.command("import")
def data_import(
    source: Annotated[
        str, typer.Argument(help="FORMAT:SOURCE or a path: folder, CSV/TSV, NeMo or Qwen JSONL, data set.")
    ],
    manifest: Annotated[Path, typer.Argument(help="Manifest to write (JSONL).")],
    language: Annotated[str | None, typer.Option(help="Language of clips that name none, such as he.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set or of Common Voice.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set, such as a language.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or tag of a hub data set.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read a hub data set row by row.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of a data set to read at most.")] = None,
    audio_column: Annotated[str | None, typer.Option(help="Column of the audio, where its name says nothing.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the transcript.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Convert a corpus to a manifest."""
    from dataclasses import replace

    from sonotune.data.manifest import statistics, write_manifest
    from sonotune.training.corpus import read_source

    asked = {
        "split": split, "config": config, "revision": revision, "streaming": streaming or None, "limit": limit,
        "audio_column": audio_column, "text_column": text_column,
    }  # fmt: skip
    options = {name: value for name, value in asked.items() if value is not None}
    clips = read_source(source, allow_outside_root=True, options=options)
    clips = [replace(clip, language=clip.language or language) for clip in clips]
    write_manifest(manifest, clips)
    root = _root_needed(manifest.parent, clips)
    body = {"manifest": str(manifest), "root": root, **statistics(clips)}
    lines = [f"{manifest}: {body['clips']} clips, {body['hours']:.2f} h"]
    _print(body, as_json=as_json, lines=[*lines, *_root_hint(root)])


def _root_needed(folder: Path, clips: Sequence[Clip]) -> str | None:
    """The folder that `data.root` must name, where the audio lies outside the manifest's own."""
    inside = folder.resolve()
    if all(clip.path.is_relative_to(inside) for clip in clips):
        return None
    return os.path.commonpath([str(clip.path.parent) for clip in clips])


def _root_hint(root: str | None) -> list[str]:
    return [] if root is None else [f"the audio lies outside the manifest's folder: use it with data.root={root}"]


@data_app.command("stats")
def data_stats(
    source: Annotated[str, typer.Argument(help="A manifest or FORMAT:SOURCE.")], as_json: Json = False
) -> None:
    """Describe a corpus."""
    from sonotune.data.manifest import statistics
    from sonotune.training.corpus import read_source

    body = statistics(read_source(source, allow_outside_root=True))
    _print(body, as_json=as_json, lines=[f"{name:<22} {_plain(value)}" for name, value in body.items()])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@data_app.command("split")
def data_split(
    source: Annotated[str, typer.Argument(help="A manifest or FORMAT:SOURCE.")],
    folder: Annotated[Path, typer.Argument(help="Where train.jsonl, eval.jsonl and test.jsonl go.")],
    eval_fraction: Annotated[float, typer.Option(help="Share of the speech in eval.jsonl.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Share of the speech in test.jsonl.")] = 0.1,
    eval_speakers: Speakers = "",
    seed: Annotated[int, typer.Option(help="Decides which speakers go where.")] = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Split a corpus so that no speaker is in two parts."""
    from sonotune.data import splits
    from sonotune.data.manifest import write_manifest
    from sonotune.training.corpus import read_source

    clips = read_source(source, allow_outside_root=True)
    speakers = tuple(name for name in eval_speakers.split(",") if name)
    shares = {"train": 1 - eval_fraction - test_fraction, "eval": eval_fraction, "test": test_fraction}
    parts = splits.split_by_speaker(
        clips,
        fractions=None if speakers else {name: share for name, share in shares.items() if share > 0},
        eval_speakers=speakers,
        seed=seed,
    )
    body: dict[str, Any] = {}
    for name, members in parts.items():
        write_manifest(folder / f"{name}.jsonl", members)
        body[name] = {
            "manifest": str(folder / f"{name}.jsonl"), "clips": len(members),
            "seconds": sum(clip.duration_s for clip in members),
            "speakers": sorted({clip.speaker for clip in members if clip.speaker}),
        }  # fmt: skip
    lines = [f"{name}: {part['clips']} clips, {len(part['speakers'])} speakers" for name, part in body.items()]
    root = _root_needed(folder, clips)
    _print(body | {"root": root}, as_json=as_json, lines=[*lines, *_root_hint(root)])


@data_app.command("synth")
def data_synth(
    corpus: Annotated[str, typer.Argument(help="corpus=NAME or NAME.")],
    folder: Annotated[Path, typer.Argument(help="Where the audio and the manifests go.")],
    clips: Annotated[int | None, typer.Option(help="How many clips; default is the corpus's own size.")] = None,
    seed: Annotated[int, typer.Option(help="Of voices, texts and channels.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    as_json: Json = False,
) -> None:
    """Synthesise a corpus with espeak-ng (extra `synth`): voices, texts, channels, word times."""
    from sonotune.data.synth import synthesize_named

    body = synthesize_named(corpus.removeprefix("corpus="), folder, clips=clips, seed=seed, workers=workers)
    lines = [f"{name}: {part['clips']} clips, {part['hours']:.2f} h" for name, part in body["manifests"].items()]
    _print(body, as_json=as_json, lines=lines)


def _print_version(asked: bool) -> None:
    if asked:
        from sonotune import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
