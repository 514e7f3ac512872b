"""The commands that repair a corpus: data realign, data filter, data resegment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.data import Outside, Root, data_app, print_finding
from sonotune.cli.shared import Json, print_result, tell
from sonotune.wording import counted, long_time

if TYPE_CHECKING:
    from sonotune.types import Finding

Source = Annotated[str, typer.Argument(metavar="MANIFEST", help="A manifest or FORMAT:SOURCE.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Manifest to write (JSONL); never the one that is read.")]
Language = Annotated[str | None, typer.Option(help="Language of clips that name none, such as he.")]
AlignerName = Annotated[str, typer.Option("--aligner", help="ctc, whisper or qwen3; found by the model.")]
_MODEL = "Model that aligns: a CTC model, a Whisper, or Qwen3's forced aligner, such as assets:ctc-nano."
_SHOWN = 10


@data_app.command("realign")
def data_realign(
    source: Source,
    out: Out,
    model: Annotated[str, typer.Option(help=_MODEL)],
    language: Language = None,
    aligner: AlignerName = "auto",
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Place the words of every transcript in time, and write them to the manifest as `words`.

    A clip that cannot be aligned keeps what it has, and is named with the reason. What was aligned is kept beside OUT
    (`OUT.scores.jsonl`): a run that was stopped goes on there.
    """
    from sonotune.audit.repair_manifest import RepairRequest, realign_manifest

    made = realign_manifest(
        RepairRequest.of(
            source,
            out,
            model=model,
            aligner=aligner,
            language=language,
            root=root,
            allow_outside_root=allow_outside_root,
        )
    )
    tell_findings(made.findings)
    body = made.to_json()
    line = f"{out}: {body['aligned']} of {counted(body['clips'], 'clip')} aligned, {counted(body['words'], 'word')}"
    print_result(body, as_json=as_json, lines=[line])


@data_app.command("filter")
def data_filter(
    source: Source,
    out: Out,
    mode: Annotated[str, typer.Option(help="drop, flag, weight or star.")],
    audit: Annotated[
        Path | None, typer.Option(help="Folder of an audit, whose model and thresholds are taken; that of MANIFEST.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=_MODEL)] = None,
    trusted: Annotated[
        str | None, typer.Option(help="Clips with right transcripts, of the same kind; those of the audit.")
    ] = None,
    false_positive_rate: Annotated[
        float, typer.Option(help="Share of right clips that is flagged, where no audit says.")
    ] = 0.05,
    trusted_clips: Annotated[int, typer.Option(min=20, help="Trusted clips at most, where no audit says.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the corruptions, where no audit says.")] = 0,
    language: Language = None,
    aligner: AlignerName = "auto",
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Judge every transcript by an aligner, and leave out, mark or weigh down the bad ones.

    An audit looks at a sample; a filter measures every clip that the audit did not look at. Thresholds are those of the
    audit, or calibrated on --trusted clips with --model.

    --mode drop leaves bad clips out, and writes them to OUT's name with .dropped.jsonl, with the reasons.

    --mode flag keeps all, with `audit` (good, bad) and `audit_reasons`.

    --mode weight keeps all, and gives each the probability that it is good as its `weight`, which training reads. It is
    learned from trusted clips, right and corrupted, at the share of bad clips of this manifest, and rises with the
    score.

    --mode star keeps all, flagged as with `flag`, to be trained on with training.objective=star, which lets a wrong or
    missing word of any clip pass: CTC models only, and ones that know most words already.
    """
    from sonotune.audit.repair_manifest import FilterSettings, RepairRequest, filter_manifest

    made = filter_manifest(
        RepairRequest.of(
            source,
            out,
            model=model,
            aligner=aligner,
            language=language,
            root=root,
            allow_outside_root=allow_outside_root,
        ),
        FilterSettings(
            mode=mode,
            audit=audit,
            trusted=trusted,
            false_positive_rate=false_positive_rate,
            trusted_clips=trusted_clips,
            seed=seed,
        ),
    )
    tell_findings(made.findings)
    if mode == "star":
        tell("sonotune: train with training.objective=star and a CTC model.")
    print_result(made.to_json(), as_json=as_json, lines=_filter_lines(made.body))


def _filter_lines(body: Mapping[str, Any]) -> list[str]:
    judged, flagged = body["judged"], body["flagged"]
    lines = [f"{body['manifest']}: {counted(body['clips'], 'clip')}; {flagged} of {judged} that were judged are bad"]
    if body["bad_share"] is not None:
        lines.append(f"estimated share of bad clips, the errors of the thresholds taken out: {body['bad_share']:.1%}")
    if body["reasons"]:
        lines.append("reasons  " + ", ".join(f"{code} {count}" for code, count in body["reasons"].items()))
    if body["mode"] == "drop":
        lines.append(f"{body['dropped_manifest']}: {counted(body['dropped'], 'clip')} left out")
    if body["mode"] == "weight":
        lines.append(f"weights add up to {body['weight']:.1f} of {counted(body['clips'], 'clip')}")
    return lines


@data_app.command("resegment")
def data_resegment(
    source: Source,
    out: Out,
    max_duration: Annotated[float, typer.Option(help="Longest clip, in seconds.")] = 15.0,
    overlap: Annotated[
        float, typer.Option(help="Pause around its words that a clip has at most, on either side, in seconds.")
    ] = 1.0,
    untranscribed: Annotated[
        float, typer.Option(help="Speech without text that is cut out where it is so long, in seconds.")
    ] = 1.0,
    keep_untranscribed: Annotated[
        bool, typer.Option("--keep-untranscribed", help="Keep pieces of speech without text, as clips without text.")
    ] = False,
    model: Annotated[str | None, typer.Option(help=f"Aligns long recordings without `words` first. {_MODEL}")] = None,
    language: Language = None,
    aligner: AlignerName = "auto",
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Cut long recordings between their words into clips, each with the text of exactly what is said in it.

    Words must be placed in time (`words`), or --model places them. Each second of a recording belongs to one clip
    (`source_start_s`, `source_end_s` of `source_id`), and so does each word. The audio of a clip holds its words and up
    to --overlap of the pauses around them; it may overlap that of its neighbour, but only in silence, so no text is
    said twice. Speech that the transcript passes over is left out. No audio is written.
    """
    from sonotune.audit.repair_manifest import RepairRequest, resegment_manifest
    from sonotune.data.resegment import Cutting

    made = resegment_manifest(
        RepairRequest.of(
            source,
            out,
            model=model,
            aligner=aligner,
            language=language,
            root=root,
            allow_outside_root=allow_outside_root,
        ),
        Cutting(max_duration_s=max_duration, context_s=overlap, untranscribed_s=untranscribed),
        keep_untranscribed=keep_untranscribed,
    )
    tell_findings(made.findings)
    body = made.to_json()
    line = (
        f"{out}: {counted(body['clips'], 'clip')}, {long_time(3600 * body['hours'])}; "
        f"{body['cut']} of {counted(body['recordings'], 'recording')} cut"
    )
    print_result(body, as_json=as_json, lines=[line])


def tell_findings(findings: Sequence[Finding]) -> None:
    """The first findings of each check on stderr, and how many more there are."""
    told: dict[str, int] = {}
    for finding in findings:
        told[finding.check] = told.get(finding.check, 0) + 1
        if told[finding.check] <= _SHOWN:
            print_finding(finding)
    for check, count in told.items():
        if count > _SHOWN:
            tell(f"sonotune: WARNING: {count - _SHOWN} more findings of {check}; --json has all of them.")
