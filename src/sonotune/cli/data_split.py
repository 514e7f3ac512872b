"""The command that divides a corpus: data split."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.data import Outside, Root, data_app, print_finding
from sonotune.cli.shared import Json, print_result, tell

if TYPE_CHECKING:
    from sonotune.data.split_corpus import Split
    from sonotune.types import Clip, Finding

Speakers = Annotated[str, typer.Option(help="Comma-separated speakers of eval.jsonl, instead of a share.")]
By = Annotated[str, typer.Option(help="What is in one split only: speaker, session, text, clip or column=NAME.")]
EvalSize = Annotated[str | None, typer.Option(help="Size of eval.jsonl: 0.1, 10%, 500clips, 90s, 30min or 2h.")]
TestSize = Annotated[str | None, typer.Option(help="Size of test.jsonl, likewise.")]

_SHARED = {
    "speakers": ("speaker",),
    "sessions": ("session",),
    "texts": ("text",),
    "near_copies": ("near copy", "near copies"),
}


@data_app.command("split")
def data_split(
    source: Annotated[str, typer.Argument(help="A manifest or FORMAT:SOURCE.")],
    folder: Annotated[Path, typer.Argument(help="Where train.jsonl, eval.jsonl and test.jsonl go.")],
    by: By = "speaker",
    eval_fraction: Annotated[float | None, typer.Option(help="Share of the speech in eval.jsonl; 0.1.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Share of the speech in test.jsonl; 0.1.")] = None,
    eval_size: EvalSize = None,
    test_size: TestSize = None,
    eval_speakers: Speakers = "",
    seed: Annotated[int, typer.Option(help="Decides which speakers, texts or clips go where.")] = 0,
    root: Root = None,
    allow_outside_root: Outside = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace manifests that no split wrote.")] = False,
    as_json: Json = False,
) -> None:
    """Split a corpus, and say what its parts share.

    No speaker is in two parts, which a corpus of one speaker cannot keep: --by text puts copies and near copies of a
    sentence into one part, --by session what was recorded together, --by clip nothing but the clip. --by column=NAME
    keeps the values of a column together; a column with train, dev, val, eval and test decides the split itself.
    Domains, durations and classes are spread evenly.
    """
    from sonotune.data.corpus import format_of, read_source
    from sonotune.data.import_checks import check_durations
    from sonotune.data.split_folder import write_split
    from sonotune.runs import to_plain

    read: list[Finding] = []
    clips = read_source(source, root=root, allow_outside_root=allow_outside_root, findings=read)
    for finding in [*read, *check_durations(clips)]:
        print_finding(finding)
    asked = {
        "eval_fraction": eval_fraction,
        "test_fraction": test_fraction,
        "eval_size": eval_size,
        "test_size": test_size,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    speakers = tuple(name for name in eval_speakers.split(",") if name)
    split = _divide(clips, by=by, given=given, speakers=speakers, seed=seed)
    about = {"source": source, "seed": seed, "eval_speakers": list(speakers), **given}
    place = Path(format_of(source)[1])
    written = write_split(folder, split, about=about, source=place if place.is_file() else None, overwrite=overwrite)
    body = {name: {"manifest": str(written[name]), **part} for name, part in to_plain(split.to_json()).items()}
    for note in split.notes:
        tell(f"sonotune: WARNING: {note}")
    for found in split.findings.values():
        for finding in found:
            print_finding(finding)
    one_speaker = len({clip.speaker for clip in clips}) == 1  # which is a finding, and no news of each part
    lines = [_line(name, part, leave_out={"speakers"} if one_speaker else set()) for name, part in body.items()]
    print_result(body, as_json=as_json, lines=lines)


def _divide(clips: list[Clip], *, by: str, given: Mapping[str, Any], speakers: tuple[str, ...], seed: int) -> Split:
    from sonotune.data.split_corpus import describe, split_by_column, split_clips
    from sonotune.data.split_folder import parse_sizes
    from sonotune.data.split_groups import compare_texts
    from sonotune.data.splits import split_by_speaker
    from sonotune.errors import ConfigError

    def option(name: str) -> str:
        return f"--{name.replace('_', '-')}"

    for part in ("eval", "test"):
        if {f"{part}_fraction", f"{part}_size"} <= given.keys():
            raise ConfigError(f"--{part}-fraction and --{part}-size both say how large {part}.jsonl is. Give one.")
    if speakers:
        if by != "speaker" or given:
            other = f"--by {by}" if by != "speaker" else option(next(iter(given)))
            raise ConfigError(f"--eval-speakers decides the split, and {other} would too. Leave one of them out.")
        parts = split_by_speaker(clips, eval_speakers=speakers)
        return describe(clips, parts, by="speaker", texts=compare_texts(clips))
    if by.startswith("column=") and (named := split_by_column(clips, by.removeprefix("column="))) is not None:
        if given:
            raise ConfigError(
                f"--by {by} names the splits, and {option(next(iter(given)))} has no meaning. Leave it out."
            )
        return named
    sizes = parse_sizes(
        clips,
        evaluation=given.get("eval_size", given.get("eval_fraction", 0.1)),
        test=given.get("test_size", given.get("test_fraction", 0.1)),
    )
    return split_clips(clips, by=by, sizes=sizes, seed=seed)


def _line(name: str, part: Mapping[str, Any], *, leave_out: Set[str]) -> str:
    from sonotune.wording import counted, long_time

    domains = ", ".join(f"{domain} {count}" for domain, count in part["domains"].items())
    speakers = counted(len(part["speakers"]), "speaker")
    said = f"{name}: {counted(part['clips'], 'clip')}, {long_time(part['seconds'])}, {speakers}"
    shared = [
        f"{counted(count, *_SHARED[what])} also in {other}"
        for other, counts in part["shared"].items()
        for what, count in counts.items()
        if count and what not in leave_out and not (what == "near_copies" and count == counts["texts"])
    ]
    return "; ".join([said, *([f"domains {domains}"] if domains else []), *shared])
