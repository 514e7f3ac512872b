"""Commands on corpora: import, stats, synth, tokenizer; `split` is in `data_split`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.shared import HELP_OPTIONS, Json, app, print_result, tell

if TYPE_CHECKING:
    from sonotune.types import Finding

data_app = typer.Typer(
    help="Make, convert, describe and split corpora.", context_settings=HELP_OPTIONS, rich_markup_mode=None
)
app.add_typer(data_app, name="data")

Root = Annotated[Path | None, typer.Option(help="Folder that paths are relative to and stay in; that of the source.")]
Outside = Annotated[bool, typer.Option("--allow-outside-root", help="Let relative paths lead out of that folder.")]


@data_app.command("import")
def data_import(
    source: Annotated[
        str,
        typer.Argument(help="FORMAT:SOURCE, or a path whose format the files prove: folder, table, JSON, data set."),
    ],
    manifest: Annotated[Path, typer.Argument(help="Manifest to write (JSONL).")],
    language: Annotated[str | None, typer.Option(help="Language of clips that name none, such as he.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set, an audiofolder or Common Voice.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set, such as a language.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or tag of a hub data set.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read a hub data set row by row.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of a data set to read at most.")] = None,
    audio_column: Annotated[str | None, typer.Option(help="Column of the audio, where its name says nothing.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the transcript.")] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Of a table: a character, or comma, semicolon, tab, pipe. Found by its header.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files, such as cp1252; UTF-8 or by their mark.")] = None,
    root: Root = None,
    allow_outside_root: Outside = False,
    contents: Annotated[
        str | None, typer.Option(help="Of a folder: transcripts (.txt beside the audio) or classes (its folders).")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Of a folder: `folder` takes its folders as speakers.")] = None,
    as_json: Json = False,
) -> None:
    """Convert a corpus to a manifest, and say what was assumed and what is missing."""
    from dataclasses import replace

    from sonotune.data.corpus import format_of, read_source
    from sonotune.data.import_checks import check_clips
    from sonotune.data.manifest import statistics, write_manifest
    from sonotune.errors import ManifestError
    from sonotune.wording import counted, long_time

    asked = {
        "root": root,
        "delimiter": delimiter,
        "encoding": encoding,
        "contents": contents,
        "speaker": speaker,
        "split": split,
        "config": config,
        "revision": revision,
        "streaming": streaming or None,
        "limit": limit,
        "audio_column": audio_column,
        "text_column": text_column,
    }
    options = {name: value for name, value in asked.items() if value is not None}
    format_name, place = format_of(source, options)
    if manifest.exists() and Path(place).exists() and manifest.samefile(place):
        raise ManifestError(f"{manifest} is what is imported, and would be lost. Give the manifest another name.")
    findings: list[Finding] = []
    clips = read_source(
        f"{format_name}:{place}", allow_outside_root=allow_outside_root, options=options, findings=findings
    )
    clips = [replace(clip, language=clip.language or language) for clip in clips]
    for finding in findings:
        print_finding(finding)
    checked = check_clips(clips, source=source, place=Path(place))
    for finding in checked:
        print_finding(finding)
    write_manifest(manifest, clips)
    body = {
        "manifest": str(manifest),
        "format": format_name,
        "findings": [
            {"check": one.check, "severity": one.severity, "message": one.message} for one in [*findings, *checked]
        ],
        **statistics(clips),
    }
    held = [
        counted(body["clips"], "clip"),
        long_time(body["hours"] * 3600),
        counted(body["clips"] - body["without_text"], "text"),
        counted(len(body["labels"]), "class", "classes"),
        counted(len(body["speakers"]), "speaker"),
    ]
    lines = [f"{manifest}: {', '.join(held)}; read as {format_name}"]
    print_result(body, as_json=as_json, lines=lines)


def print_finding(finding: Finding) -> None:
    """Say a finding on stderr."""
    marks = {"note": "", "warning": "WARNING: ", "error": "WARNING: "}
    tell(f"sonotune: {marks[finding.severity]}{finding.message}")


@data_app.command("stats")
def data_stats(
    source: Annotated[str, typer.Argument(help="A manifest or FORMAT:SOURCE.")],
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Describe a corpus."""
    from sonotune.data.corpus import read_source
    from sonotune.data.import_checks import check_durations
    from sonotune.data.manifest import statistics

    findings: list[Finding] = []
    clips = read_source(source, root=root, allow_outside_root=allow_outside_root, findings=findings)
    for finding in [*findings, *check_durations(clips)]:
        print_finding(finding)
    body = statistics(clips)
    print_result(body, as_json=as_json, lines=[f"{name:<22} {_plain(value)}" for name, value in body.items()])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@data_app.command("tokenizer")
def data_tokenizer(
    source: Annotated[str, typer.Argument(help="A manifest or FORMAT:SOURCE with transcripts.")],
    folder: Annotated[Path, typer.Argument(help="Where the tokenizer goes; new or empty.")],
    kind: Annotated[str, typer.Option(help="unigram, bpe or characters.")] = "unigram",
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens at most, with the special ones.")] = 1000,
    normalizer: Annotated[str, typer.Option(help="Its training form is applied to each transcript.")] = "basic",
    held_out: Annotated[str | None, typer.Option(help="Transcripts to look for unknown characters in.")] = None,
    special: Annotated[bool, typer.Option(help="Put <s> and </s> around a text; not for CTC.")] = False,
    byte_fallback: Annotated[bool, typer.Option("--byte-fallback", help="bpe: unknown characters as bytes.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier one.")] = False,
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Train a subword tokenizer on the transcripts of a corpus; loads in `transformers.AutoTokenizer`."""
    from sonotune.data import text
    from sonotune.data.corpus import read_source
    from sonotune.data.tokenizer import train_tokenizer
    from sonotune.runs.files import to_plain

    prepare = text.get(normalizer).training

    def transcripts(place: str) -> list[str]:
        clips = read_source(place, root=root, allow_outside_root=allow_outside_root)
        return [prepare(clip.text) for clip in clips if clip.text]

    report = train_tokenizer(
        transcripts(source),
        kind=kind,
        vocab_size=vocab_size,
        folder=folder,
        bos=special,
        eos=special,
        byte_fallback=byte_fallback,
        overwrite=overwrite,
        held_out=None if held_out is None else transcripts(held_out),
    )
    lines = [
        f"{folder}: {report.kind}, {report.vocab_size} of {report.vocab_size_asked} tokens, "
        f"{report.characters} characters",
        f"{report.tokens_per_word:.2f} tokens a word, {report.whole_words:.0%} of the words whole",
    ]
    if report.held_out_characters is not None:
        shown = " ".join(ascii(character) for character in list(report.unknown_characters)[:10])
        unknown = sum(report.unknown_characters.values())
        lines.append(f"held out: {unknown} of {report.held_out_characters} characters unknown {shown}")
    print_result(to_plain(report), as_json=as_json, lines=lines)


@data_app.command("synth")
def data_synth(
    corpus: Annotated[str, typer.Argument(help="corpus=NAME or NAME.")],
    folder: Annotated[Path, typer.Argument(help="Where the audio and the manifests go.")],
    clips: Annotated[int | None, typer.Option(help="How many clips; default is the corpus's own size.")] = None,
    seed: Annotated[int, typer.Option(help="Of voices, texts and channels.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    as_json: Json = False,
) -> None:
    """Synthesise a corpus: speech by espeak-ng (extra `synth`) with word times, or drum rudiments."""
    from sonotune.data.synth import synthesize_named
    from sonotune.wording import counted, long_time

    body = synthesize_named(corpus.removeprefix("corpus="), folder, clips=clips, seed=seed, workers=workers)
    lines = [
        f"{name}: {counted(part['clips'], 'clip')}, {long_time(part['hours'] * 3600)}"
        for name, part in body["manifests"].items()
    ]
    print_result(body, as_json=as_json, lines=lines)
