"""What is listened to: the clips of one or two systems, each with what was recognised and where its audio lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sonotune.data.audio_files import enumerate_names
from sonotune.data.corpus import read_source
from sonotune.data.manifest import fill_durations
from sonotune.errors import ConfigError, ManifestError, SonotuneError, TextError
from sonotune.evaluation.compare import same_clips
from sonotune.evaluation.prediction_rows import clip_of, hypothesis_of
from sonotune.paths import is_folder
from sonotune.reports.predictions import facts_of
from sonotune.runs import digest_file, read_record
from sonotune.types import Clip, Finding

Form = Literal["written", "scored"]
FORMS: Final[tuple[Form, ...]] = ("written", "scored")
"""Texts as the models wrote them, or as they were compared: often without punctuation and capitals."""

_SPLITS: Final = {"test": ("test",), "after": ("eval", "train"), "before": ("eval", "train")}
_SAME_LENGTH_S: Final = 0.2
_NAME_IT: Final = "Name the manifest that has them with --manifest."


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One clip and what each system recognised in it.

    Attributes:
        clip: With its audio and the transcript as the manifest has it.
        written: What each system wrote.
        scored: The same in the form that was compared.
        reference: The transcript in that form; None where there is none.
        facts: What is known of the clip, in words.
    """

    clip: Clip
    written: tuple[str, ...]
    scored: tuple[str, ...]
    reference: str | None
    facts: str

    def texts(self, form: Form) -> tuple[str, ...]:
        """What each system recognised, with single spaces between words."""
        return tuple(" ".join(text.split()) for text in (self.written if form == "written" else self.scored))


@dataclass(frozen=True, slots=True, kw_only=True)
class Systems:
    """One or two systems on the same clips.

    Attributes:
        names: As the user named them.
        files: Their files of predictions.
        digests: SHA-256 of each file.
        source: Where the clips were read.
        utterances: A clip each, in the order of the first file.
        findings: What the reader of the clips noted.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    digests: tuple[str, ...]
    source: str
    utterances: tuple[Utterance, ...]
    findings: tuple[Finding, ...]


def read_systems(
    places: Sequence[Path],
    *,
    manifest: str | None = None,
    moment: str | None = None,
    root: Path | None = None,
    allow_outside_root: bool = False,
    audio: bool = True,
) -> Systems:
    """Read predictions, and find the audio of their clips.

    Args:
        places: One or two run directories or files of predictions.
        manifest: Source of the clips; None takes what the record of a run names.
        moment: Predictions of a run to take (`test`, `after`, `before`).
        root: Folder that audio paths stay in; None takes that of the run, or of the manifest.
        allow_outside_root: Let paths leave it.
        audio: Whether the audio is looked for; without it clips are what the predictions say of them.

    Raises:
        RunDirectoryError: There are no predictions.
        ManifestError: The clips are not the same, or are not those of the manifest.
        ConfigError: Nothing says where the audio is.
        TextError: The predictions are classes.
    """
    files, rows = same_clips(places, moment=moment)
    if rows[0] and "labels" in rows[0][0]:
        raise TextError(f"{files[0]} has classes, and what is listened to are texts. Name runs of a recogniser.")
    findings: list[Finding] = []
    fence: dict[str, Any] = {"root": root, "allow_outside_root": allow_outside_root}
    if audio:
        sources = [(manifest, fence)] if manifest is not None else _recorded_sources(places, files, fence)
        by_id, source = _find_clips([str(row["id"]) for row in rows[0]], sources, files[0], findings)
        _refuse_other_lengths(rows[0], by_id, files[0], source)
    else:
        by_id, source = {str(row["id"]): clip_of(row) for row in rows[0]}, str(files[0])
    return Systems(
        names=tuple(map(str, places)),
        files=files,
        digests=tuple(digest_file(path) for path in files),
        source=source,
        utterances=tuple(_utterance(together, by_id) for together in zip(*rows, strict=True)),
        findings=tuple(findings),
    )


def _recorded_sources(
    places: Sequence[Path], files: Sequence[Path], fence: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Sources that the records of the runs name for these clips, each with the folder that its paths stay in."""
    found: list[tuple[str, dict[str, Any]]] = []
    for place, file in zip(places, files, strict=True):
        run = place if is_folder(place) else file.parent.parent
        if not (run / "run.json").is_file():
            continue
        data = read_record(run).config.get("data")
        data = data if isinstance(data, Mapping) else {}
        for split in _SPLITS.get(file.stem, ("test", "eval", "train")):
            if isinstance(source := data.get(split), str):
                root = fence["root"] or (Path(data["root"]) if isinstance(data.get("root"), str) else None)
                outside = fence["allow_outside_root"] or data.get("allow_outside_root") is True
                found.append((source, {"root": root, "allow_outside_root": outside}))
    if not found:
        raise ConfigError(
            f"nothing says where the audio of the clips of {files[0]} is: it is a file by itself, or its run names no "
            f"clips. {_NAME_IT}"
        )
    return found


def _find_clips(
    ids: Sequence[str], sources: Sequence[tuple[str, dict[str, Any]]], file: Path, findings: list[Finding]
) -> tuple[dict[str, Clip], str]:
    """The clips by their ids, from the first source that has all of them."""
    problem: SonotuneError | None = None
    for source, fence in dict.fromkeys((source, tuple(fence.items())) for source, fence in sources):
        noted: list[Finding] = []
        try:
            clips = read_source(source, **dict(fence), findings=noted)
        except SonotuneError as error:
            problem = ManifestError(f"the audio of the clips of {file} was not found: {error} {_NAME_IT}")
            continue
        by_id = {clip.id: clip for clip in clips}
        missing = [name for name in ids if name not in by_id]
        if not missing:
            findings += noted
            wanted = fill_durations([by_id[name] for name in ids])
            return {clip.id: clip for clip in wanted}, source
        problem = ManifestError(
            f"{len(missing)} of {len(ids)} clips of {file} are not in {source}: "
            f"{enumerate_names(missing, most=3)}. {_NAME_IT}"
        )
    assert problem is not None  # there is a source  # noqa: S101
    raise problem


def _refuse_other_lengths(
    rows: Sequence[Mapping[str, Any]], clips: Mapping[str, Clip], file: Path, source: str
) -> None:
    """Ids are often numbers, and those of another corpus would bring other audio."""
    unlike = [
        (row["id"], float(row["duration_s"]), clips[row["id"]].duration_s)
        for row in rows
        if row.get("duration_s")
        and clips[row["id"]].duration_s
        and abs(float(row["duration_s"]) - clips[row["id"]].duration_s) > _SAME_LENGTH_S
    ]
    if unlike:
        name, there, here = unlike[0]
        raise ManifestError(
            f"{len(unlike)} of {len(rows)} clips of {file} have another length in {source}: {name!r} has {there:.2f} s "
            f"and {here:.2f} s. They are other recordings. {_NAME_IT}"
        )


def _utterance(rows: Sequence[Mapping[str, Any]], clips: Mapping[str, Clip]) -> Utterance:
    first = rows[0]
    reference = first.get("scored_reference", first.get("reference"))
    return Utterance(
        clip=clips[first["id"]],
        written=tuple(str(row.get("hypothesis") or "") for row in rows),
        scored=tuple(hypothesis_of(row) for row in rows),
        reference=None if reference is None else str(reference),
        facts=" · ".join(facts_of(first)),
    )
