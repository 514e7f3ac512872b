"""Commands that use and look into models: evaluate, transcribe, classify, inspect, export, compose."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.findings import warning_lines
from sonotune.cli.runs import write_card
from sonotune.cli.shared import Files, Json, Words, app, inspected, loops_note, percent, print_result, score_name

if TYPE_CHECKING:
    from sonotune.config.load import LoadedConfig

Predictions = Annotated[Path | None, typer.Option(help="Write every prediction to this JSONL file.")]
Target = Annotated[str, typer.Option(help="`dequantized` (the function that was trained) or `original`.")]


@app.command()
def evaluate(words: Words = None, as_json: Json = False, out: Predictions = None) -> None:
    """Score a model, adapter or run on a manifest, whole and by domain, duration, speaker and language.

    sonotune evaluate model=runs/x data.test=test.jsonl
    """
    from sonotune.data.corpus import CORPUS_SETTINGS, load_corpus
    from sonotune.errors import SonotuneError
    from sonotune.evaluation.evaluate import write_predictions
    from sonotune.features.workers import Crew

    settings = _settings_of_use(words or [], require=("data.test",))
    config = settings.config
    with Crew(config.data.loader_workers) as crew:
        recognizer = _recognizer(settings)
        corpus = load_corpus(
            {"test": str(config.data.test)},
            seed=config.training.seed,
            require=recognizer.task.truth,
            **config.data.model_dump(include=CORPUS_SETTINGS),
        )
        clips = corpus.splits["test"]
        result = recognizer.evaluate(clips, crew=crew, **_decoding(config))
    body = result.to_json() | {"left_out": [finding.message for finding in corpus.findings]}
    problem: SonotuneError | None = None
    if out is not None:
        try:
            write_predictions(out, recognizer.task, result.predictions, clips)
        except SonotuneError as error:  # the scores have cost more than the file
            problem, body = error, body | {"error": str(error), "exit_code": error.exit_code}
    lines = [
        f"{score_name(name):<5} {percent(score)}  on {score['count']} clips{loops_note(score)}"
        for name, score in body["scores"].items()
    ]
    if fallbacks := result.details.get("decoding", {}).get("fallbacks"):
        lines.append(f"{fallbacks} of {result.clips} clips were decoded again, because the first text looked wrong")
    lines += [
        f"  {row['by']}={row['value']}: {recognizer.task.primary.upper()} "
        f"{percent(row['scores'].get(recognizer.task.primary))} on {row['clips']} clips"
        for row in result.slices
    ]
    lines.append(f"{result.audio_seconds:.0f} s of audio in {result.seconds:.1f} s")
    lines += [f"left out: {finding.message}" for finding in corpus.findings]
    lines += warning_lines([finding for finding in result.findings if finding.severity != "note"], "--json")
    lines += [f"note: {finding.message}" for finding in result.findings if finding.check == "text.numbers"]
    print_result(body, as_json=as_json, lines=lines)
    if problem is not None:
        print(f"sonotune: {problem}", file=sys.stderr)
        raise typer.Exit(problem.exit_code)


def _settings_of_use(words: Sequence[str], *, require: Sequence[str]) -> LoadedConfig:
    """Settings for using a model: the language, normaliser and limits it was made with, where nothing says otherwise.

    They come from the run, adapter or export that is named.
    """
    from sonotune.adapters.metadata import USED, use_of
    from sonotune.config.load import load_run_config
    from sonotune.errors import ConfigError

    naming = [word for word in words if word.startswith(("model=", "model.checkpoint=", "config="))]
    try:
        found = use_of(load_run_config(naming).config.model.checkpoint) if naming else {}
    except ConfigError:
        found = {}  # told below, together with what is wrong in the other words
    inherited = {f"{section}.{name}": found[name] for section, name in USED if name in found}
    return load_run_config(words, require=require, inherited=inherited)


def _recognizer(settings: LoadedConfig) -> Any:
    from sonotune.serving.recognizer import Recognizer

    config = settings.config
    return Recognizer.open(
        config.model.checkpoint,
        task=config.model.task,
        language=config.model.language,
        multi_label=config.data.multi_label,
        text_scoring=config.data.text_scoring,
        verbalize_numbers=config.evaluation.verbalize_numbers,
        precision=config.training.precision,
        family=config.model.family,
        revision=config.model.revision,
        context=config.model.asked_context,
        bits=config.quantization.bits,
        double=config.quantization.double,
        skip=config.quantization.skip,
        random_weights=config.model.random_weights,
    )


def _decoding(config: Any) -> dict[str, Any]:
    decoding = config.evaluation
    return {
        "batch_seconds": decoding.batch_seconds,
        "max_clips": decoding.batch_max_clips,
        "decoding": decoding.decoding(),
        "bootstrap": decoding.bootstrap,
        "duration_edges_s": decoding.duration_edges_s,
    }


@app.command()
def transcribe(
    words: Files,
    as_json: Json = False,
) -> None:
    """Write what is said in audio files.

    sonotune transcribe model=runs/x recordings/ note.mp3
    """
    result, _ = _recognize(words, task="transcribe")
    texts = [{"path": prediction.clip_id, "text": prediction.text} for prediction in result.predictions]
    lines = [f"{item['path']}\t{item['text']}" for item in texts]
    print_result({"transcripts": texts, **_told(result)}, as_json=as_json, lines=lines)


@app.command()
def classify(
    words: Files,
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
    print_result({"predictions": labels, **_told(result)}, as_json=as_json, lines=lines)


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
def inspect(words: Words = None, as_json: Json = False) -> None:
    """Say what a model is made of, what would train and what it weighs; no weights are read.

    sonotune inspect model=whisper_large_v3 quantization.bits=4 adapter.rank=16
    """
    found = inspected(words or [])
    body = found.to_json()
    lines = [f"{found.checkpoint}: {found.family}, {found.total:,} parameters, {found.trainable:,} would train"]
    lines += [f"  {'':<11}{'parameters':>15}{'trainable':>13}{'MiB':>10}{'linears':>9}{'a unit of rank':>16}"]
    lines += [
        f"  {row['name']:<11}{row['parameters']:>15,}{row['trainable']:>13,}{row['bytes'] / 2**20:>10.1f}"
        f"{row['linears']:>9}{row['parameters_per_rank']:>16,}"
        for row in body["components"]
    ]
    if found.context:
        computed = ", ".join(
            f"{computed:.1f} s of a clip of {clip_s:g} s" for clip_s, computed in found.computed_s.items()
        )
        lines += [
            f"context  {found.context}, trained for {' and '.join(found.trained_contexts)}; of a window of "
            f"{found.window_s:g} s it computes {computed}"
        ]
    bits = body["bits_per_quantized_parameter"]
    held = f" at {bits:.6f} bits each" if bits else f" ({found.bits[1]})"
    compression = body["compression"]
    lines += [
        f"weights  {found.weight_bytes / 2**20:.1f} MiB; {found.quantized:,} quantised{held}",
        _size_beside_16_bits(compression["size"])
        + (f"; one of {compression['parameters']:.1f} parameters trains" if compression["parameters"] else ""),
    ]
    print_result(body, as_json=as_json, lines=lines)


def _size_beside_16_bits(size: float) -> str:
    """Smaller or larger, whichever it is."""
    word, times = ("smaller ", size) if size >= 1 else ("larger  ", 1 / size)
    return f"{word} {times:.2f} times than in 16 bits"


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run, an adapter or a model folder; or model=PLACE.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    target: Target = "dequantized",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter only, in PEFT format.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    parity: Annotated[
        str | None, typer.Option(help="Clips to compare with; default are the run's development clips.")
    ] = None,
    parity_clips: Annotated[int, typer.Option(min=1, help="How many of them, drawn by the run's seed.")] = 50,
    no_parity: Annotated[bool, typer.Option("--no-parity", help="Do not compare the export with the run.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 unless parity is shown.")] = False,
    push: Annotated[str | None, typer.Option(help="Upload it to this OWNER/NAME of the hub (private if new).")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Merge a trained adapter into plain weights that `transformers` loads, proving that the function is the same.

    Plain `transformers` then recognises development clips of the run from the export, and the difference from what the
    run is scored on is written to `parity.json`. More than one point of word error rate (or accuracy) is a warning,
    and with --strict exit code 4; so are clips that could not be compared.
    """
    from sonotune.cli.parity import parity_lines, parity_settings, record_parity
    from sonotune.errors import ConfigError, NumericError
    from sonotune.serving.export import export as write_export
    from sonotune.serving.hub import check_name
    from sonotune.serving.hub import push as push_folder

    for name, value, allowed in (
        ("--target", target, ("dequantized", "original")),
        ("--dtype", dtype, ("auto", "fp32", "bf16", "fp16")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is not known; take one of {', '.join(allowed)}.")
    if no_parity and (strict or parity is not None):
        raise ConfigError("--no-parity compares nothing, which leaves no meaning to --strict and --parity.")
    if push is not None:
        check_name(push)
    place = source.removeprefix("model=")
    compared = None if no_parity else parity_settings(place, manifest=parity, clips=parity_clips)
    result = write_export(
        place, folder, target=target, dtype=dtype, adapter_only=adapter, overwrite=overwrite,  # type: ignore[arg-type]
        parity=compared,
    )  # fmt: skip
    lines = [f"export   {result['export']} ({result['bytes'] / 1e6:.1f} MB, {result['kind']})"]
    if merge := result.get("merge"):
        lines.append(f"merge    largest logit difference {merge['largest']:.2g} of {merge['scale']:.3g}")
    elif result["kind"] == "model":
        lines.append("merge    there was no adapter to merge; the weights are the model's own")
    if rounding := result.get("rounding"):
        lines.append(
            f"{result['dtype']}     largest logit difference {rounding['largest']:.2g}, "
            f"best token the same at {100 * rounding['agreement']:.1f} % of positions"
        )
    if compared is not None:
        lines += parity_lines(result["parity"])
        record_parity(Path(place), result["parity"])
    if (Path(place) / "run.json").is_file():
        write_card(Path(place), Path(result["export"]), "adapter" if adapter else "model")
    if strict and not result["parity"]["passed"]:
        print_result(result, as_json=as_json, lines=lines)
        raise typer.Exit(NumericError.exit_code)
    if push is not None:
        result["pushed"] = push_folder(Path(result["export"]), push)
        lines.append(f"pushed   {result['pushed']}")
    print_result(result, as_json=as_json, lines=lines)


@app.command()
def compose(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    words: Annotated[
        list[str], typer.Argument(metavar="SETTING=VALUE...", help="Parts and how they are joined, or config=FILE.")
    ],
    as_json: Json = False,
) -> None:
    """Compose a speech model of an audio encoder, a projector and a language model; then train its new parts.

    sonotune compose FOLDER encoder=openai/whisper-small language_model=Qwen/Qwen2.5-0.5B projector.kind=perceiver

    Settings: encoder, encoder_revision, language_model, language_model_revision, projector.kind (linear, mlp,
    perceiver, conv), projector.downsample, projector.hidden_size, projector.latents, projector.depth,
    projector.heads, fusion (prompt, cross_attention), cross_attention.layers, cross_attention.heads, prompt, chat,
    random_weights, seed.
    """
    from sonotune.config.composition import load_composition
    from sonotune.models.composed.build import compose as compose_model

    asked = load_composition(words)
    module = compose_model(folder, **asked.arguments())
    rows = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    parameters = sum(parameter.numel() for parameter in module.parameters())
    new = "projector,decoder.cross_attention" if asked.fusion == "cross_attention" else "projector"
    lines = [
        f"{folder}: {parameters:,} parameters ({', '.join(f'{name} {size:,}' for name, size in rows.items())})",
        f"train    sonotune train model.checkpoint={folder} 'adapter.unfreeze=[{new}]' "
        "'adapter.targets=[encoder, decoder]' data.train=train.jsonl",
    ]
    body = {"model": str(folder), "parameters": parameters, "parts": rows, "settings": asked.arguments()}
    print_result(body, as_json=as_json, lines=lines)
