"""Commands of distillation: distill, prune, data label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonotune.cli.data import Outside, Root, data_app
from sonotune.cli.data_repair import Language, Out, Source, tell_findings
from sonotune.cli.shared import Json, Words, app, emit, print_result
from sonotune.cli.train import Dump, run_summary
from sonotune.progress import phase
from sonotune.wording import counted, long_time


@app.command()
def distill(words: Words = None, as_json: Json = False, dump_config: Dump = False) -> None:
    """Train a model to do what a larger one does.

    sonotune distill teacher=openai/whisper-small model.checkpoint=student data.train=train.jsonl data.eval=dev.jsonl

    It is `sonotune train` with training.objective=distill, where no objective is named, and with teacher=PLACE for
    distillation.teacher=PLACE, where PLACE may be the name of a model preset too.
    """
    from sonotune.config.load import dump_yaml, load_run_config

    settings = load_run_config(_as_training(words or []), require=("data.train", "distillation.teacher"))
    if dump_config:
        emit(dump_yaml(settings.config), end="")
        return
    run_summary(settings, as_json=as_json)


def _as_training(words: list[str]) -> list[str]:
    """The words of `sonotune train` that say the same."""
    from sonotune.config.load import checkpoint_of_preset

    made = []
    for word in words:
        name, equals, value = word.partition("=")
        if name == "teacher" and equals:
            made.append(f"distillation.teacher={checkpoint_of_preset(value)}")
        else:
            made.append(word)
    named = any(word.startswith("training.objective=") for word in words)
    return made if named else [*made, "training.objective=distill"]


@app.command()
def prune(
    source: Annotated[str, typer.Argument(help="A Whisper: packaged, of the hub, a folder or a run.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    decoder_layers: Annotated[int | None, typer.Option(help="Layers that stay in the decoder; else all.")] = None,
    encoder_layers: Annotated[int | None, typer.Option(help="Layers that stay in the encoder; else all.")] = None,
    as_json: Json = False,
) -> None:
    """Write a Whisper with fewer layers, evenly spaced: a student that begins where its teacher is.

    sonotune prune openai/whisper-small student --decoder-layers 2

    It needs training before it is of use: see `sonotune distill`. Plain transformers loads it.
    """
    with phase("starting"):
        from sonotune.serving.layer_pruning import prune_layers

    made = prune_layers(
        source.removeprefix("model="), folder, encoder_layers=encoder_layers, decoder_layers=decoder_layers
    )
    before, after = made.parameters
    kept = ", ".join(f"{part} layers {' '.join(map(str, numbers))}" for part, numbers in made.layers.items())
    lines = [f"{folder}: {after:,} parameters of {before:,}; {kept}"]
    if made.heads_cleared:
        lines.append("heads    alignment_heads are cleared: those of the source give no times here")
    lines.append(f"train    sonotune distill teacher={source} model.checkpoint={folder} data.train=train.jsonl")
    print_result(made.to_json(), as_json=as_json, lines=lines)


@data_app.command("label")
def data_label(
    source: Source,
    out: Out,
    model: Annotated[str, typer.Option(help="Model that writes: what model.checkpoint may be.")],
    language: Language = None,
    beam_size: Annotated[int, typer.Option(min=1, max=100, help="Beams; 1 is greedy.")] = 1,
    bits: Annotated[str, typer.Option(help="Of the model's linear weights: auto, 4, 8 or 16.")] = "auto",
    batch_seconds: Annotated[float, typer.Option(min=1, help="Padded seconds of audio in one batch.")] = 240.0,
    min_logprob: Annotated[
        float | None, typer.Option(help="Texts with a lower mean log-probability are left out.")
    ] = -1.0,
    max_compression: Annotated[
        float | None, typer.Option(help="Texts that compress better than this, or loop, are left out.")
    ] = 2.4,
    max_characters_per_second: Annotated[
        float | None, typer.Option(help="Texts with more letters a second of speech are left out.")
    ] = 25.0,
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Let a model write the text of every clip, with or without a transcript: labels that any model learns from.

    sonotune data label clips.jsonl labelled.jsonl --model openai/whisper-small --language sw

    What was written is kept beside OUT (`OUT.labels.jsonl`): a run that was stopped goes on there, and other limits
    cost nothing. Clips whose text is left out are written to OUT's name with .dropped.jsonl, with the reasons: empty,
    no_speech, improbable, repetitive, too_fast, cut, unreadable, not_finite. A transcript of the source stays as
    `given_text`, and every clip names the model by its digest (`label_teacher`).
    """
    from sonotune.errors import ConfigError

    if bits not in ("auto", "4", "8", "16"):
        raise ConfigError(f"--bits {bits} is not known; take one of auto, 4, 8, 16.")
    with phase("starting"):
        from sonotune.serving.pseudo_labels import LabelLimits, label_manifest
    from sonotune.audit.repair_manifest import RepairRequest

    made = label_manifest(
        RepairRequest.of(source, out, model=model, language=language, root=root, allow_outside_root=allow_outside_root),
        LabelLimits(
            min_logprob=min_logprob,
            max_compression=max_compression,
            max_characters_per_second=max_characters_per_second,
        ),
        beam_size=beam_size,
        bits="auto" if bits == "auto" else int(bits),
        batch_seconds=batch_seconds,
    )
    tell_findings(made.findings)
    body = made.body
    hours, writer = long_time(3600 * body["hours"]), body["teacher"]["checkpoint"]
    lines = [f"{out}: {counted(body['clips'], 'clip')}, {hours}, by {writer}"]
    if body["dropped"]:
        reasons = ", ".join(f"{why} {count}" for why, count in body["reasons"].items())
        lines.append(f"{body['dropped_manifest']}: {counted(body['dropped'], 'clip')} left out ({reasons})")
    print_result(made.to_json(), as_json=as_json, lines=lines)
