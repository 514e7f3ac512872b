"""The audit from the clips to the verdict, with an aligner that knows the truth, and once with a real one."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonotune.alignment.base import AlignerSettings, Alignment, DetectedLanguage, Evidence
from sonotune.audio.io import write
from sonotune.audit.calibration import calibrate
from sonotune.audit.gate import GateSettings
from sonotune.audit.measure import SCORES_FILE, Measured, Measurer
from sonotune.audit.record import CLIPS_FILE, REPORT_FILE, read_report
from sonotune.audit.repair import filter_clips
from sonotune.audit.run import Audited, AuditSettings, _worst_first, audit
from sonotune.audit.sampling import SamplingSettings
from sonotune.audit.scores import ClipScores
from sonotune.audit.sources import Transcribed, read_transcribed
from sonotune.audit.verdict import VERDICT, VERDICT_COLUMN, audit_folder, check_verdict
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.errors import GateError, ManifestError
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.runs import generator
from sonotune.types import Clip, Finding, Word

RATE_HZ = 16_000


class Oracle:
    """Finds a transcript likely as far as its words are those that are said."""

    name = "oracle"
    loaded = None
    settings = AlignerSettings()
    max_duration_s = None

    def __init__(self, said, heard=None):
        self.said, self.heard, self.aligned = said, heard or {}, 0

    def check_languages(self, languages):
        """It knows all."""

    def align(self, clips):
        for clip in clips:
            self.aligned += 1
            if clip.text == "unreadable":
                yield Finding(check="audio.not_audio", severity="error", message="no audio", clip_ids=(clip.id,))
                continue
            true, words = self.said[clip.path.name].split(), clip.text.split()
            right = np.array([place < len(true) and word == true[place] for place, word in enumerate(words)])
            rows = np.append(right, len(words) == len(true))  # the last says whether the text may end here
            noise = np.abs(generator(0, clip.path.name, clip.text).normal(size=len(rows)))
            given = np.where(rows, -0.1, -6.0).astype(np.float32) - 0.2 * noise.astype(np.float32)
            step = clip.duration_s / len(words)
            starts = np.arange(len(words)) * step
            yield Alignment(
                clip_id=clip.id,
                words=tuple(
                    Word(text=word, start_s=at, end_s=at + step) for word, at in zip(words, starts, strict=True)
                ),
                token_words=np.arange(len(words)),
                token_starts_s=starts,
                token_ends_s=starts + step,
                token_posteriors=np.exp(given[:-1]),
                evidence=Evidence(given=given, best=np.zeros_like(given), window=2),
                transcript=self.said[clip.path.name],
                language=self.heard.get(clip.id),
            )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """240 clips of ten words, of twelve speakers."""
    folder = tmp_path_factory.mktemp("audit")
    rng = generator(0, "audit corpus")
    letters = [f"w{number}" for number in range(60)]
    said, clips = {}, []
    for number in range(240):
        name = f"{number:03}.wav"
        write(folder / name, 0.1 * rng.standard_normal(RATE_HZ // 2).astype(np.float32), RATE_HZ)
        said[name] = " ".join(rng.choice(letters, 10))
        clips.append(
            Clip(
                id=name,
                path=folder / name,
                duration_s=0.5,
                text=said[name],
                language="en",
                speaker=f"s{number % 12}",
                domain="phone" if number % 3 else "studio",
            )
        )
    return said, clips


def spoiled(clips, share):
    """Transcripts of neighbours for so many of the clips."""
    count = round(share * len(clips))
    return [
        replace(clip, text=clips[(place + 1) % len(clips)].text) if place < count else clip
        for place, clip in enumerate(clips)
    ]


def run(clips, said, folder, *, trusted=None, aligner=None, processes=SINGLE_PROCESS, **changes):
    aligner = aligner or Oracle(said)
    settings = AuditSettings(
        sampling=SamplingSettings(min_clips=60, max_clips=240), gate=GateSettings(cluster_correlation=0.0)
    )
    found = audit(
        Transcribed(clips=tuple(clips), without=0, digest="d"),
        trusted=Transcribed(clips=tuple(trusted or clips), without=0, digest="t"),
        measurer=Measurer(aligner=aligner, identity="oracle", file=folder / SCORES_FILE, processes=processes),
        model={"aligner": "oracle"},
        settings=replace(settings, **changes),
        folder=folder,
        recorded={"rule": "interval"},
    )
    return found, aligner


def rows_of(folder):
    """What was measured, without what was written together."""
    return [json.loads(line) | {"left": 0} for line in (folder / SCORES_FILE).read_text("utf-8").splitlines()]


def test_a_good_corpus_proceeds_and_a_bad_one_stops(corpus, tmp_path):
    said, clips = corpus
    good, _ = run(clips[120:], said, tmp_path / "good", trusted=clips[:120])
    assert good.report.decision == "PROCEED"
    assert good.report.rate.high < 0.10
    bad, _ = run(spoiled(clips[120:], 0.4), said, tmp_path / "bad", trusted=clips[:120])
    assert bad.report.decision == "STOP"
    assert bad.report.rate.low > 0.15
    assert bad.report.rate.low <= 0.4 <= bad.report.rate.high
    assert bad.report.flags["local_mismatch"] > 0
    assert {stratum.name for stratum in bad.report.domains} == {"phone", "studio"}


def test_the_files_hold_what_was_found(corpus, tmp_path):
    said, clips = corpus
    mixed = spoiled(clips[120:], 0.3)
    found, _ = run(mixed, said, tmp_path, trusted=clips[:120])
    assert read_report(tmp_path / REPORT_FILE) == found.report
    rows = [json.loads(line) for line in (tmp_path / CLIPS_FILE).read_text("utf-8").splitlines()]
    assert len(rows) == len(found.clips) == found.report.rate.count
    flagged = [row["low_quality"] for row in rows]
    assert flagged == sorted(flagged, reverse=True), "the worst first"
    truth = {clip.id: clip.text == said[clip.path.name] for clip in mixed}
    assert all(not truth[row["id"]] for row in rows[:12])
    assert rows[0]["reasons"][0]["threshold"] is not None
    assert rows[0]["words"][0][0] == rows[0]["text"].split()[0]


def test_what_was_measured_is_not_measured_again(corpus, tmp_path):
    said, clips = corpus
    first, aligner = run(clips[:60], said, tmp_path)
    assert aligner.aligned > 60
    again, aligner = run(clips[:60], said, tmp_path)
    assert aligner.aligned == 0
    assert again.report == replace(first.report, seconds=again.report.seconds, started=again.report.started)
    mended = [replace(clips[0], text=clips[1].text), *clips[1:60]]
    _, aligner = run(mended, said, tmp_path, trusted=clips[:60])
    assert aligner.aligned == 1


def test_an_audit_that_was_killed_goes_on(corpus, tmp_path):
    said, clips = corpus
    whole, aligner = run(clips[:60], said, tmp_path / "whole")
    lines = (tmp_path / "whole" / SCORES_FILE).read_bytes().splitlines(keepends=True)
    left = [json.loads(line)["left"] for line in lines]
    written = left.index(0) + 1
    assert written < 140 < len(lines)
    (tmp_path / "cut").mkdir()
    for cut in (10, 140):  # in the middle of what was written at once
        (tmp_path / "cut" / SCORES_FILE).write_bytes(b"".join(lines[:cut]) + lines[cut][:25])
        went_on, more = run(clips[:60], said, tmp_path / "cut")
        assert more.aligned == aligner.aligned - (written if cut > written else 0)
        assert went_on.report.rate == whole.report.rate
        assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


def test_a_damaged_line_costs_its_clip_and_no_more(corpus, tmp_path):
    said, clips = corpus
    whole, _ = run(clips[:60], said, tmp_path)
    file = tmp_path / SCORES_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    spoiled = [b"{}\n", lines[1].replace(b'"coverage": ', b'"coverage": NaN, "x": '), b"\xff\xfe\n"]
    file.write_bytes(b"".join([*spoiled, *lines[3:]]))
    again, more = run(clips[:60], said, tmp_path)
    assert more.aligned == 3
    assert again.report.rate == whole.report.rate
    assert b"{}" not in file.read_bytes().splitlines()
    third, none = run(clips[:60], said, tmp_path)
    assert none.aligned == 0
    assert third.report.rate == whole.report.rate


def test_what_cannot_be_aligned_counts_as_bad(corpus, tmp_path):
    said, clips = corpus
    lost = [replace(clip, text="unreadable") if place < 60 else clip for place, clip in enumerate(clips[120:])]
    found, _ = run(lost, said, tmp_path, trusted=clips[:120])
    assert found.report.decision == "STOP"
    assert found.report.flags["unaligned"] >= 1
    rows = [json.loads(line) for line in (tmp_path / CLIPS_FILE).read_text("utf-8").splitlines()]
    assert rows[0]["check"] == "audio.not_audio"
    assert rows[0]["problem"] == "no audio"


def test_fixed_thresholds_tell_their_error_rates(corpus, tmp_path):
    said, clips = corpus
    found, _ = run(clips[:80], said, tmp_path, thresholds="seed")
    assert found.report.calibration.method == "fixed"
    assert set(found.report.calibration.thresholds) == {"coverage", "token_posterior"}
    assert found.report.calibration.sensitivity is not None


def test_too_few_trusted_clips_are_refused(corpus, tmp_path):
    said, clips = corpus
    with pytest.raises(ManifestError, match="at least 20 trusted clips"):
        run(clips, said, tmp_path, trusted=clips[:10])


def test_training_asks_for_the_verdict(corpus, tmp_path):
    said, clips = corpus
    folder = tmp_path / "train.jsonl.audit"
    assert check_verdict(folder, lambda: "d", require=True) == []
    run(clips[120:], said, folder, trusted=clips[:120])
    [found] = check_verdict(folder, lambda: "d", require=True)
    assert (found.check, found.severity) == (VERDICT, "note")
    with pytest.raises(GateError, match="have changed since their audit"):
        check_verdict(folder, lambda: "other", require=True)
    run(spoiled(clips[120:], 0.4), said, folder, trusted=clips[:120])
    with pytest.raises(GateError, match=r"says STOP.*audit\.require=false"):
        check_verdict(folder, lambda: "d", require=True)
    [found] = check_verdict(folder, lambda: "other", require=False)
    assert found.severity == "warning"
    assert "said STOP" in found.message
    assert "changed since" in found.message


def test_a_renamed_manifest_keeps_its_verdict(corpus, tmp_path):
    said, clips = corpus
    run(spoiled(clips[120:], 0.4), said, tmp_path / "old.jsonl.audit", trusted=clips[:120])
    with pytest.raises(GateError, match=r"old\.jsonl\.audit says STOP"):
        check_verdict(tmp_path / "new.jsonl.audit", lambda: "d", require=True)
    assert check_verdict(tmp_path / "new.jsonl.audit", lambda: "other", require=True) == []


def test_files_of_one_name_and_time_are_told_apart(corpus, tmp_path):
    _, clips = corpus
    both = []
    for name, clip in (("a", clips[0]), ("b", clips[1])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "001.wav").write_bytes(clip.path.read_bytes())
        os.utime(folder / "001.wav", (1_700_000_000, 1_700_000_000))
        both.append(replace(clip, id=name, path=folder / "001.wav", text="one two"))
    measurer = Measurer(aligner=Oracle({"001.wav": "one two"}), identity="oracle")
    one, other = measurer.measure(both, doing="aligning")
    assert one.samples != other.samples


def test_corrupted_forms_of_trusted_clips_are_mistaken_for_no_other_clip(corpus, tmp_path):
    said, clips = corpus
    plain, _ = run(clips[120:], said, tmp_path / "plain", trusted=clips[:60])
    hostile = [
        replace(one, id=f"{clips[place - 1].id} wrong" if place % 2 else one.id) for place, one in enumerate(clips[:60])
    ]
    found, _ = run(clips[120:], said, tmp_path / "hostile", trusted=hostile)
    assert found.report.calibration.detector.sensitivity > 0.9 * plain.report.calibration.detector.sensitivity


def test_few_trusted_voices_for_many_others_are_remarked(corpus, tmp_path):
    said, clips = corpus
    trusted = [one for one in clips if one.speaker in ("s0", "s1")]
    others = [one for one in clips if one.speaker not in ("s0", "s1")]
    found, _ = run(others, said, tmp_path, trusted=trusted)
    assert any("The trusted clips are of 2 speakers, and 200 of 200 clips" in one for one in found.report.remarks)
    same, _ = run(trusted[:20], said, tmp_path, trusted=trusted[20:])
    assert not any("speaker" in one for one in same.report.remarks)


def test_the_folder_of_an_audit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("", "utf-8")
    assert audit_folder("train.jsonl").name == "train.jsonl.audit"
    assert audit_folder("train.jsonl", tmp_path / "x") == tmp_path / "x"
    assert audit_folder("assets:quickstart/train.jsonl").parts[0] == "audits"


def test_clips_without_words_are_no_part_of_it(corpus, tmp_path):
    _, clips = corpus
    write_manifest(tmp_path / "m.jsonl", [clips[0], replace(clips[1], text=""), replace(clips[2], text=None)])
    options = {"allow_outside_root": True}
    found = read_transcribed(str(tmp_path / "m.jsonl"), **options)
    assert [clip.id for clip in found.clips] == [clips[0].id]
    assert found.without == 2
    assert len(read_manifest(tmp_path / "m.jsonl", **options)) == 3
    write_manifest(tmp_path / "n.jsonl", [replace(clips[1], text=" ")])
    with pytest.raises(ManifestError, match="no transcript with words"):
        read_transcribed(str(tmp_path / "n.jsonl"), **options)


class Shared(Processes):
    """One of several processes, which are threads here."""

    def __init__(self, rank, barrier, table):
        super().__init__(rank, barrier.parties)
        self._barrier, self._table = barrier, table

    def all_gather(self, value):
        self._table[self.rank] = value
        self._barrier.wait(timeout=60)
        values = [self._table[rank] for rank in range(self.world_size)]
        self._barrier.wait(timeout=60)
        return values


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_share_the_work_and_report_the_same(corpus, tmp_path, count):
    said, clips = corpus
    mixed = spoiled(clips[120:], 0.2)
    alone, aligner = run(mixed, said, tmp_path / "alone", trusted=clips[:120])
    barrier, table, folder = threading.Barrier(count), {}, tmp_path / "shared"

    def one(rank):
        processes = Shared(rank, barrier, table)
        return run(mixed, said, folder, trusted=clips[:120], processes=processes)

    with ThreadPoolExecutor(count) as pool:
        shared = list(pool.map(one, range(count)))
    for found, _ in shared:
        same = replace(found.report, seconds=alone.report.seconds, started=alone.report.started)
        assert same == alone.report
        assert found.clips == alone.clips
    work = [done.aligned for _, done in shared]
    assert sum(work) == aligner.aligned, "nothing is aligned by two"
    assert min(work) > 0
    assert (folder / CLIPS_FILE).read_bytes() == (tmp_path / "alone" / CLIPS_FILE).read_bytes()
    assert rows_of(folder) == rows_of(tmp_path / "alone")


def test_clips_are_noted_as_copies_and_as_of_another_script(corpus, tmp_path):
    said, clips = corpus
    long = "the same long sentence stands in the manifest here and over there as well"
    assert long not in said.values()
    chosen = list(clips[:40])
    chosen[0], chosen[1] = replace(chosen[0], text=long), replace(chosen[1], text=long.upper() + "!")
    chosen[2] = replace(chosen[2], text="это написано другими буквами")
    chosen[3] = replace(chosen[3], text="это написано другими буквами", language="ru")
    chosen[4], chosen[5] = replace(chosen[4], text="yes"), replace(chosen[5], text="yes")
    chosen.append(replace(clips[6], id="again"))
    found, _ = run(chosen, said, tmp_path, trusted=clips[120:])
    notes = {one.clip.id: set(one.notes) & {"repeated_text", "repeated_audio", "other_script"} for one in found.clips}
    told = {name: codes for name, codes in notes.items() if codes}
    assert told == {
        clips[0].id: {"repeated_text"},
        clips[1].id: {"repeated_text"},
        clips[2].id: {"other_script"},
        clips[6].id: {"repeated_audio"},
        "again": {"repeated_audio"},
    }
    assert found.report.flags["repeated_audio"] == 2
    unflagged = {one.clip.id for one in found.clips if not one.flags}
    assert {"again", clips[6].id} <= unflagged, "a note flags no clip"


def test_clips_in_another_language_are_noted_and_many_of_them_are_said(corpus, tmp_path):
    said, clips = corpus
    heard = {one.id: DetectedLanguage("en", 0.97) for one in clips[:4]}
    heard |= {clips[4].id: DetectedLanguage("en", 0.6), clips[5].id: DetectedLanguage("he", 0.99)}
    chosen = [replace(one, language="iw") for one in clips[:8]]
    found, _ = run(chosen, said, tmp_path, trusted=clips[120:], aligner=Oracle(said, heard))
    assert {one.clip.id for one in found.clips if "other_language" in one.notes} == {one.id for one in clips[:4]}
    [remark] = [one for one in found.report.remarks if "language" in one]
    assert remark == (
        "The model detects another language than Hebrew in 4 of 8 clips that name it, most often English. Check their "
        "`language`."
    )
    again, silent = run(chosen, said, tmp_path, trusted=clips[120:])
    assert silent.aligned == 0
    assert [one.notes for one in again.clips] == [one.notes for one in found.clips], "kept with the scores"


def test_a_model_that_mishears_trusted_clips_notes_no_language(corpus, tmp_path):
    said, clips = corpus
    heard = {one.id: DetectedLanguage("he", 0.97) for one in clips}
    found, _ = run(clips[:8], said, tmp_path, trusted=clips[120:], aligner=Oracle(said, heard))
    assert not any("other_language" in one.notes for one in found.clips)
    [remark] = [one for one in found.report.remarks if "language" in one]
    assert "than English in 120 of 120 trusted clips that name it, most often Hebrew." in remark


def test_clips_longer_than_the_aligner_takes_are_not_in_the_audit(corpus, tmp_path):
    said, clips = corpus
    aligner = Oracle(said)
    aligner.max_duration_s = 0.6
    long = [replace(one, id=f"long {one.id}", duration_s=40.0) for one in clips[:20]]
    found, _ = run([*clips[:40], *long], said, tmp_path, trusted=[*clips[120:], *long], aligner=aligner)
    assert {one.clip.id for one in found.clips} == {one.id for one in clips[:40]}
    assert sum(one.population for one in found.report.strata) == 40
    assert any(one.startswith("20 clips of the corpus are longer") for one in found.report.remarks)
    assert found.report.calibration.detector.specificity > 0.9, "long trusted clips are no false alarms"
    made = filter_clips(
        [*clips[:40], *long],
        mode="drop",
        measurer=Measurer(aligner=aligner, identity="oracle"),
        calibration=found.report.calibration,
    )
    assert made.judged == 40
    assert [one.id for one in made.clips if one.id.startswith("long")] == [one.id for one in long]
    assert not any(VERDICT_COLUMN in one.extra for one in made.clips if one.id.startswith("long"))
    assert [one.check for one in made.findings] == ["repair.too_long"]
    with pytest.raises(ManifestError, match=r"all 20 clips with transcripts are longer than 0\.6 s"):
        run(long, said, tmp_path / "long", trusted=clips[120:], aligner=aligner)


def test_a_corpus_that_a_filter_judged_is_audited_with_a_remark(corpus, tmp_path):
    said, clips = corpus
    chosen = [replace(one, extra={VERDICT_COLUMN: "good"}) for one in clips[:40]]
    found, _ = run(chosen, said, tmp_path, trusted=clips[120:])
    assert any("40 clips of the corpus were judged by a filter before" in one for one in found.report.remarks)


def test_without_trusted_clips_nothing_passes(corpus, tmp_path):
    said, clips = corpus
    settings = AuditSettings(sampling=SamplingSettings(min_clips=60, max_clips=240))
    measurer = Measurer(aligner=Oracle(said), identity="oracle", file=tmp_path / SCORES_FILE)

    def decide(members, **changes):
        return audit(
            Transcribed(clips=tuple(members), without=0, digest="d"),
            trusted=None,
            measurer=measurer,
            model={"aligner": "oracle"},
            settings=replace(settings, **changes),
            folder=tmp_path,
            recorded={},
        ).report

    for share in (0.0, 0.1, 0.25, 0.5):
        assert decide(spoiled(clips, share)).decision == "CAUTION", share
    lost = [replace(clip, text="unreadable") if place < 80 else clip for place, clip in enumerate(clips)]
    assert decide(lost).decision == "STOP", "what cannot be aligned is bad by any threshold"
    report = decide(spoiled(clips, 0.5), thresholds="seed")
    assert (report.correction, report.decision) == ("none", "STOP")
    assert "trusted" in report.remarks[0]


def test_the_worst_clips_are_those_of_the_smallest_p_values():
    def scored(name, window, mean):
        return ClipScores(clip_id=name, duration_s=1, speech_s=1, min_window_llr=window, mean_llr=mean)

    trusted = [scored(str(number), -2.0 - 0.01 * number, -0.3 - 0.001 * number) for number in range(100)]
    calibration = calibrate(trusted, {}, statistics=("min_window_llr", "mean_llr"))
    kinds = {
        "by the mean": (-2.5, -1.0),
        "by both": (-3.5, -1.0),
        "by neither": (-2.1, -0.31),
        "by the window": (-4.0, -0.35),
    }
    audited = [
        Audited(
            clip=Clip(id=name, path=Path("a.wav"), duration_s=1, text="a"),
            stratum="all",
            measured=Measured(key=name, scores=scores),
            scores=scores,
            flags=calibration.flags(scores),
            notes=(),
        )
        for name, scores in ((name, scored(name, *values)) for name, values in kinds.items())
    ]
    unaligned = replace(audited[0], clip=replace(audited[0].clip, id="not aligned"), scores=None, flags=("unaligned",))
    found = [one.clip.id for one in _worst_first([*audited, unaligned], calibration, trusted)]
    assert found[:2] == ["not aligned", "by both"]
    assert set(found[2:4]) == {"by the mean", "by the window"}
    assert found[4] == "by neither"
