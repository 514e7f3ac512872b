"""An audit, from the clips of a corpus to the verdict on it; read downward."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sonotune.audit.calibration import DEFAULT_STATISTICS, Calibration, oriented, p_values
from sonotune.audit.gate import GateSettings, StratumCount, Verdict, judge, mean_cluster_size
from sonotune.audit.measure import Measured, Measurer
from sonotune.audit.notes import notes_beside, notes_on, remarks_on, remarks_on_languages, tells_languages
from sonotune.audit.record import (
    CLIPS_FILE,
    AuditReport,
    StratumReport,
    percentiles,
    rate_of,
    stratum_reports,
    write_report,
)
from sonotune.audit.reference import Reference, rated, refer
from sonotune.audit.sampling import Sample, SamplingSettings, draw
from sonotune.audit.scores import ClipScores, reasons
from sonotune.audit.sources import Transcribed
from sonotune.data.text import get as get_normalizer
from sonotune.runs import atomic_write_text, make_folder, to_plain
from sonotune.runs.machine import environment
from sonotune.types import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """What a user decides.

    Attributes:
        sampling: How many clips are looked at, of what strata.
        gate: When the corpus passes.
        thresholds: `calibrated` on trusted clips, or the `seed`'s fixed ones.
        false_positive_rate: Part of good clips that calibrated thresholds flag.
        trusted_clips: Trusted clips at most.
        seed: Of the choice of trusted clips and of the corruptions.
    """

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    thresholds: Literal["calibrated", "seed"] = "calibrated"
    false_positive_rate: float = 0.05
    trusted_clips: int = 200
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A clip that was looked at.

    Attributes:
        clip: The clip.
        stratum: It was drawn from.
        measured: What the aligner and the signal say.
        scores: With the speaking rate held against others; None where the clip could not be aligned.
        flags: Statistics by which it is flagged; empty of a good clip.
        notes: Codes of what is odd about its audio or text and decides nothing.
    """

    clip: Clip
    stratum: str
    measured: Measured
    scores: ClipScores | None
    flags: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """A line of `clips.jsonl`, the worst clips being first there."""
        clip = self.clip
        named = {name: getattr(clip, name) for name in ("language", "domain", "speaker") if getattr(clip, name)}
        return {
            "id": clip.id,
            "path": str(clip.path),
            "start_s": clip.start_s,
            "duration_s": clip.duration_s,
            "text": clip.text,
            **named,
            **({} if clip.channel is None else {"channel": clip.channel}),
            "stratum": self.stratum,
            "low_quality": bool(self.flags),
            "reasons": [reason.to_json() for reason in reasons(self.scores, self.flags, thresholds)],
            "notes": list(self.notes),
            **{name: value for name, value in self.measured.to_json().items() if name != "key"},
            **({} if self.scores is None else {"scores": self.scores.to_json()}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an audit found: the report as it was written, and every clip that was looked at."""

    report: AuditReport
    clips: tuple[Audited, ...] = field(repr=False)


def audit(
    corpus: Transcribed,
    *,
    trusted: Transcribed | None,
    measurer: Measurer,
    model: Mapping[str, str | None],
    settings: AuditSettings,
    folder: Path,
    recorded: Mapping[str, Any],
) -> Audit:
    """Sample a corpus, align the sample, and decide; more is sampled while that can decide.

    Args:
        corpus: Its clips with transcripts.
        trusted: Clips with right transcripts, by which thresholds are calibrated. None where none are known: then
            they are calibrated on the corpus itself, of which they flag a part whatever it holds, so that it never
            passes; fixed thresholds are taken without error rates.
        measurer: With the aligner.
        model: What aligns, for the report.
        settings: What a user decides.
        folder: Where `alignment_report.json`, `clips.jsonl` and the scores go.
        recorded: The settings as the user wrote them, for the report.

    Raises:
        ManifestError: There are no clips, or too few trusted ones.
        RunDirectoryError: The folder cannot be written.
    """
    started, begun = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    if measurer.processes.main:
        make_folder(folder, choose="audit.dir=PATH")
    if trusted is not None and trusted.digest == corpus.digest:
        trusted = None
    corpus = corpus.within(measurer.aligner)
    reference = refer(
        (corpus if trusted is None else trusted).clips,
        measurer,
        known=trusted is not None,
        thresholds=settings.thresholds,
        false_positive_rate=settings.false_positive_rate,
        most=settings.trusted_clips,
        seed=settings.seed,
    )
    calibration = reference.calibration
    look = 0
    while True:
        look += 1
        sample = draw(corpus.clips, settings.sampling, look=look)
        audited = _audited(sample, measurer, reference)
        counts = _counts(sample, audited)
        verdict = judge(counts, calibration.detector, settings.gate, look=look, exhausted=sample.exhausted)
        if verdict.decision != "SAMPLE_MORE":
            break
    if trusted is None:
        verdict = _without_proof(verdict)
    report = _report(verdict, counts, audited, calibration, corpus)
    report = replace(
        report,
        remarks=(
            *remarks_on(
                corpus,
                trusted,
                calibrated=settings.thresholds == "calibrated",
                false_positive_rate=settings.false_positive_rate,
            ),
            *remarks_on_languages(
                [(measurer.language_of(one.clip), one.measured.language) for one in audited],
                reference.languages,
                known=trusted is not None,
            ),
        ),
        model=dict(model),
        normalizer={"name": measurer.normalizer, "digest": get_normalizer(measurer.normalizer).digest},
        versions={name: str(version) for name, version in environment().get("packages", {}).items()},
        settings=dict(recorded),
        seconds=time.monotonic() - started,
        started=begun,
    )
    if measurer.processes.main:
        rows = (one.to_json(calibration.thresholds) for one in _worst_first(audited, calibration, reference.right))
        atomic_write_text(folder / CLIPS_FILE, "".join(f"{_json(row)}\n" for row in rows))
        write_report(report, folder)
    return Audit(report=report, clips=tuple(audited))


def _without_proof(verdict: Verdict) -> Verdict:
    """A verdict by thresholds that were calibrated on the clips themselves, where nothing passes."""
    if verdict.decision == "PROCEED":
        why = "without trusted clips an audit says CAUTION at best. Name clips with right transcripts by audit.trusted"
        verdict = replace(verdict, decision="CAUTION", reasons=(*verdict.reasons, why))
    strata = (replace(one, decision="CAUTION") if one.decision == "PROCEED" else one for one in verdict.strata)
    return replace(verdict, strata=tuple(strata))


def _audited(sample: Sample, measurer: Measurer, reference: Reference) -> list[Audited]:
    """Every clip of the sample, stratum by stratum."""
    clips = sample.clips
    measured = measurer.measure(
        clips, doing="aligning the sample" if sample.look == 1 else "aligning the enlarged sample"
    )
    scores = rated([row.scores for row in measured], reference.rates)
    strata = [stratum.name for stratum in sample.strata for _ in stratum.clips]
    tells = tells_languages(reference.languages)
    notes = notes_beside(clips, measured, measurer.normalizer)
    return [
        Audited(
            clip=clip,
            stratum=stratum,
            measured=row,
            scores=found,
            flags=reference.calibration.flags(found),
            notes=(*notes_on(row, measurer.language_of(clip) if tells else None), *notes[clip.id]),
        )
        for clip, stratum, row, found in zip(clips, strata, measured, scores, strict=True)
    ]


def _counts(sample: Sample, audited: Sequence[Audited]) -> list[StratumCount]:
    """What the gate judges."""
    counts = []
    for stratum in sample.strata:
        members = [one for one in audited if one.stratum == stratum.name]
        counts.append(
            StratumCount(
                name=stratum.name,
                population=stratum.population,
                sampled=len(members),
                flagged=sum(bool(one.flags) for one in members),
                cluster_size=mean_cluster_size([one.clip.speaker for one in members]),
            )
        )
    return counts


def _report(
    verdict: Verdict,
    counts: Sequence[StratumCount],
    audited: Sequence[Audited],
    calibration: Calibration,
    corpus: Transcribed,
) -> AuditReport:
    decision = "CAUTION" if verdict.decision == "SAMPLE_MORE" else verdict.decision
    population = Counter(clip.domain or "" for clip in corpus.clips)
    domains = []
    for name in sorted({one.clip.domain or "" for one in audited}):
        members = [one for one in audited if (one.clip.domain or "") == name]
        flagged = sum(bool(one.flags) for one in members)
        domains.append(
            StratumReport(name=name or "none", population=population[name], sampled=len(members), flagged=flagged)
        )
    codes = Counter(
        code for one in audited for code in {*(reason.code for reason in reasons(one.scores, one.flags)), *one.notes}
    )
    return AuditReport(
        decision=decision,
        reasons=verdict.reasons,
        rate=rate_of(verdict.share),
        level=verdict.share.level,
        correction=verdict.share.correction,
        flagged_share=verdict.share.flagged,
        look=verdict.look,
        strata=stratum_reports(verdict, counts),
        domains=tuple(domains),
        coverage_percentiles=percentiles([one.scores.coverage for one in audited if one.scores is not None]),
        flags=dict(codes.most_common()),
        calibration=calibration,
        model={},
        data_digest=corpus.digest,
        audio_digest=corpus.audio_digest,
    )


def _worst_first(
    audited: Sequence[Audited], calibration: Calibration, trusted: Sequence[ClipScores | None]
) -> list[Audited]:
    """Flagged clips first; then by the smallest p value of a clip among the trusted ones, then by both ratios together.

    Values of different statistics do not compare, p values do: by the worst window alone, clips that another statistic
    marks stand behind good ones (benchmarks/audit). The second key is Fisher's: most of the clips of a large corpus
    that are bad lie below all trusted ones in some statistic.
    """
    scores = [one.scores for one in audited]

    def p_values_of(names: Sequence[str]) -> NDArray[np.float64]:
        return np.stack([p_values(trusted, scores, name) for name in names], axis=1)

    keys = [
        np.array([not one.flags for one in audited]),
        p_values_of([*calibration.thresholds] or DEFAULT_STATISTICS).min(axis=1),
        np.log(p_values_of(("min_window_llr", "mean_llr"))).sum(axis=1),
        oriented(scores, "min_window_llr"),
    ]
    return [audited[place] for place in np.lexsort(keys[::-1])]


def _json(row: Mapping[str, Any]) -> str:
    return json.dumps(to_plain(row), ensure_ascii=False, allow_nan=False)
