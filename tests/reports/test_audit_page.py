"""The page of an audit: complete, escaped, self-contained, heard where there is audio, and small enough to send."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sonotune.audit.calibration import Calibration, Proportion
from sonotune.audit.record import CLIPS_FILE, AuditReport, ShareOfBad, StratumReport, write_report
from sonotune.audit.scores import CODES, STATISTICS
from sonotune.audit.verdict import VERDICT
from sonotune.errors import ManifestError
from sonotune.features.mel import slaney_filters
from sonotune.reports import audit as audit_module
from sonotune.reports import spectrogram
from sonotune.reports.audit import CODE_MEANINGS, MAX_PAGE_BYTES, PAGE_FILE, write_audit_page
from sonotune.reports.audit_clips import (
    MAX_CHARACTERS,
    MAX_SOUND_S,
    MAX_UNALIGNED,
    MAX_WORDS,
    STATISTIC_TITLES,
    heard_part,
)
from sonotune.reports.record import build_html
from sonotune.reports.verdict import audit_verdict
from sonotune.types import Finding

RATE_HZ = 16_000
HOSTILE = '<script>alert(1)</script> "&" </div></article>\u202e'
HEBREW = "שלוש ארבע חמש"


def wave(path: Path, seconds: float, *, noise: bool = False) -> Path:
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    samples = 0.3 * np.sin(2 * np.pi * 440 * times) * (times > seconds / 2)
    if noise:
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, times.size)
    soundfile.write(path, samples.astype(np.float32), RATE_HZ)
    return path


def line(file: Path, /, **changes: Any) -> dict[str, Any]:
    made = {
        "id": file.stem,
        "path": str(file),
        "start_s": 0.0,
        "duration_s": 2.0,
        "text": "one two three",
        "language": "en",
        "domain": "phone",
        "speaker": "ana",
        "stratum": "noisy",
        "low_quality": True,
        "reasons": [
            {
                "code": "local_mismatch",
                "statistic": "min_window_llr",
                "value": -3.25,
                "threshold": -1.5,
                "spans": [[0.5, 1.0]],
            }
        ],
        "notes": ["noisy"],
        "check": "",
        "problem": "",
        "scores": {"clip_id": file.stem, "duration_s": 2.0, "speech_s": 1.0},
        "words": [["one", 0.1, 0.4, 0.9], ["two", 0.5, 0.9, 0.1], ["three", 1.0, 1.6, None]],
        "transcript": "one too three four",
    }
    return made | changes


def unaligned(file: Path, /, **changes: Any) -> dict[str, Any]:
    reason = {"code": "unaligned", "statistic": "unaligned", "value": None, "threshold": None, "spans": []}
    made = line(file, reasons=[reason], check="alignment.no_text", problem="clip x: its transcript is empty.")
    for name in ("scores", "words", "transcript"):
        del made[name]
    return made | changes


def report(clips: int, **changes: Any) -> AuditReport:
    share = ShareOfBad(value=0.2, low=0.16, high=0.25, count=clips)
    strata = (
        StratumReport(
            name="noisy", population=900, sampled=clips, flagged=1, rate=share, decision="STOP", p_value=0.0123
        ),
    )
    values: dict[str, Any] = {
        "decision": "STOP",
        "reasons": ("20.0 % of bad clips (95.0 % interval 16.0 % to 25.0 %): the lower end is above 15 %",),
        "rate": share,
        "level": 0.95,
        "correction": "applied",
        "flagged_share": 0.19,
        "look": 2,
        "strata": strata,
        "domains": (StratumReport(name="<b>phone</b>", population=900, sampled=clips, flagged=1),),
        "coverage_percentiles": {"5": 0.41, "50": 0.97, "1": 0.3},
        "flags": {"local_mismatch": 7, "noisy": 3},
        "calibration": Calibration(
            method="trusted",
            thresholds={"min_window_llr": -1.5, "coverage": 0.83},
            false_positive_rate=0.05,
            specificity=Proportion(value=0.95, low=0.89, high=0.98, count=100),
            sensitivity=Proportion(value=0.9, low=0.83, high=0.94, count=100),
            corruptions={"deleted 20 %": Proportion(value=0.88, low=0.8, high=0.93, count=100)},
        ),
        "model": {"aligner": "ctc", "checkpoint": "assets:ctc-nano", "digest": "ab" * 32, "revision": None},
        "data_digest": "cd" * 32,
        "normalizer": {"name": "basic"},
        "versions": {"numpy": "2.0"},
        "settings": {"sampling": {"seed": 7}, "rule": "interval"},
        "seconds": 61.0,
        "started": "2026-01-14T09:30:00+00:00",
    }
    return AuditReport(**(values | changes))


def audited(folder: Path, lines: list[Mapping[str, Any]], **changes: Any) -> Path:
    write_report(report(len(lines), **changes), folder)
    (folder / CLIPS_FILE).write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
    return folder


@pytest.fixture
def shown(read_page):
    def show(folder: Path, **how: Any) -> tuple[str, Any]:
        html = write_audit_page(folder, **how).read_text("utf-8")
        page = read_page(html)
        assert page.open == []
        return html, page

    return show


def sounds(page: Any) -> list[str]:
    return [attributes["src"] or "" for tag, attributes in page.elements if tag == "audio"]


def test_the_first_screen_says_what_was_decided_and_why(tmp_path: Path, shown) -> None:
    path = wave(tmp_path / "a.wav", 2.0)
    _, page = shown(audited(tmp_path, [line(path), unaligned(path, id="e")]))
    verdict = page.flat("verdict")
    assert "STOP Too many transcripts" in verdict
    assert "20.0 % of the clips are bad, 95.0 % interval 16.0 % to 25.0 %" in verdict
    assert "the lower end is above 15 %." in verdict
    assert "Clips looked at2of 900, in 2 looks" in verdict
    assert "Bad clips that are found90.0 %83.0 % to 94.0 %" in verdict
    assert "Good clips that pass95.0 %" in verdict
    assert "assets:ctc-nano" in page.flat("")
    assert "found: deleted 20 %88.0 %80.0 % – 93.0 %" in page.flat("detector")
    assert "local_mismatch7At one place" in page.flat("reasons")
    coverage = page.flat("reasons")
    assert coverage.index("30.0 %") < coverage.index("41.0 %") < coverage.index("97.0 %")
    assert "noisy90021" in page.flat("groups")
    assert "0.012" in page.flat("groups")
    assert "<b>phone</b>" in page.flat("groups")
    settings = page.flat("settings")
    for text in ("ab" * 32, "cd" * 32, "sampling.seed7"):
        assert text in settings
    assert "revision" not in settings  # of a model without one
    assert "its transcript is empty" in page.flat("unaligned")
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert [attributes["href"] for tag, attributes in page.elements if tag == "a"] == [f"#{name}" for name in sections]


def test_the_bar_is_drawn_by_the_borders_that_were_set(tmp_path: Path, shown) -> None:
    path = wave(tmp_path / "a.wav", 2.0)
    settings = {"proceed_below": 0.2, "stop_above": 0.4}
    for nested in (settings, {"audit": settings}):
        html, page = shown(audited(tmp_path, [line(path)], settings=nested))
        # 80 % is twice the upper border; 16 % to 25 % of the clips are a fifth of the bar on.
        assert '<i class="pass" style="left: 0; width: 25.00%">' in html
        assert '<b style="left: 20.00%; width: 11.25%">' in html
        assert "below 20 % and fails with the whole interval above 40 %" in page.flat("verdict")
    _, page = shown(audited(tmp_path, [line(path)], settings={"proceed_below": "lots", "stop_above": None}))
    assert "the whole interval below 10 %" in page.flat("verdict")
    _, page = shown(audited(tmp_path, [line(path)], settings={"audit": {"rule": "point"}}))
    assert "passes with the share below 10 % and fails with the share above 15 %" in page.flat("verdict")


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path, shown) -> None:
    html, page = shown(audited(tmp_path, [line(wave(tmp_path / "a.wav", 2.0))]))
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            own = {("audio", "src"): "data:audio/", ("image", "href"): "data:image/png;"}.get((tag, name), "#")
            assert (attributes.get(name) or "#").startswith(own)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.findall(r"https?://", html)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:" in html


def test_a_clip_is_heard_seen_and_explained(tmp_path: Path, shown) -> None:
    html, page = shown(audited(tmp_path, [line(wave(tmp_path / "a.wav", 2.0))]))
    (source,) = sounds(page)
    kind, data = source.split(";base64,")
    assert kind == "data:audio/mpeg"
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert rate == RATE_HZ
    assert heard.size / rate == pytest.approx(2.0, abs=0.15)
    loud = np.abs(heard)
    assert (
        loud[: RATE_HZ * 3 // 4].max() < 0.05 < 0.2 < loud[RATE_HZ * 5 // 4 :].max()
    )  # the tone is in its second half

    clip = page.flat("clips")
    assert "worst window: −3.25 nats, at least −1.50 nats expected (0.5 s to 1.0 s)" in clip
    assert "Noted: noisy" in clip
    assert "2.0 s · noisy · en · phone · ana" in clip
    assert '<span class="s"><del>two</del><ins>too</ins></span>' in html
    assert "<ins>four</ins>" in html
    places = re.findall(r'<bdi(?: class="low")? style="left: ([\d.]+)%;[^>]*>(\w+)</bdi>', html)
    assert places == [("5.00", "one"), ("25.00", "two"), ("50.00", "three")]
    assert re.findall(r'class="low" style="left: 25.00%', html)
    assert '<rect class="bad" x="150.0" y="0" width="150.0"' in html  # a quarter of 2 s from a quarter on
    (path,) = re.findall(r'class="peaks" d="([^"]+)"', html)
    columns = [tuple(map(float, found)) for found in re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", path)]
    assert len(columns) == 600
    assert all(bottom - top < 2 for x, top, bottom in columns if x < 299)
    assert all(bottom - top > 60 for x, top, bottom in columns if x > 301)
    assert all(0 <= top <= bottom <= 80 for _, top, bottom in columns)


def test_texts_are_data(tmp_path: Path, shown) -> None:
    path = wave(tmp_path / "a.wav", 1.0)
    hostile = line(
        path,
        id=HOSTILE,
        text=HOSTILE,
        transcript=HOSTILE + " x",
        words=[[HOSTILE, 0.1, 0.4, 0.5]],
        domain=HOSTILE,
        speaker=HOSTILE,
        stratum=HOSTILE,
        notes=[HOSTILE],
        duration_s=1.0,
    )
    hostile["reasons"] = [hostile["reasons"][0] | {"code": HOSTILE, "statistic": HOSTILE}]
    lost = line(tmp_path / f"{'<img src=x onerror=alert(1)>'}.wav")
    failed = unaligned(path, id=HOSTILE, text=HOSTILE, check=HOSTILE, problem=HOSTILE)
    html, page = shown(
        audited(
            tmp_path,
            [hostile, lost, failed],
            reasons=(HOSTILE,),
            flags={HOSTILE: 1},
            model={"checkpoint": HOSTILE},
            settings={HOSTILE: HOSTILE},
            versions={HOSTILE: HOSTILE},
        )
    )
    assert "<script" not in html
    assert "<img" not in html
    assert "<script>alert(1)</script>" in page.flat("clips")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img"}


def test_text_from_right_to_left_is_isolated(tmp_path: Path, shown) -> None:
    words = [[word, 0.2 + 0.5 * place, 0.6 + 0.5 * place, 0.9] for place, word in enumerate(HEBREW.split())]
    html, _ = shown(
        audited(tmp_path, [line(wave(tmp_path / "a.wav", 2.0), text=HEBREW, transcript="שלוש ארבה", words=words)])
    )
    assert f'<div class="given" dir="auto">{HEBREW}</div>' in html
    compared = html.split('<div class="words" dir="auto">')[1].split("</div>")[0]
    assert "<del>ארבע</del><ins>ארבה</ins>" in compared
    for word in HEBREW.split():
        assert re.search(rf"<bdi style=[^>]*>{word}</bdi>", html)


@pytest.mark.parametrize("gone", ["missing.wav", "folder", "text.wav", "a\0b.wav", "\udcff.wav"])
def test_a_clip_without_audio_is_shown_without_sound_and_says_so(tmp_path: Path, shown, gone: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.wav").write_text("no audio", "utf-8")
    good = wave(tmp_path / "a.wav", 2.0)
    rows = [line(good, id="lost", path=f"{tmp_path}/{gone}"), line(good, id="heard")]
    html, page = shown(audited(tmp_path, rows))
    assert len(sounds(page)) == 1
    assert page.flat("clips").count("Without sound: ") == 1
    assert html.count('class="peaks"') == 1
    assert html.count('<rect class="bad"') == 2  # spans and words are drawn nevertheless


def test_a_span_beyond_its_file_is_no_sound(tmp_path: Path, shown) -> None:
    _, page = shown(audited(tmp_path, [line(wave(tmp_path / "a.wav", 2.0), start_s=5.0)]))
    assert sounds(page) == []
    assert "Without sound: " in page.flat("clips")


def test_a_long_clip_is_heard_around_its_worst_span(tmp_path: Path, shown) -> None:
    path = wave(tmp_path / "a.wav", 60.0)
    words = [[f"w{second}", second + 0.1, second + 0.6, 0.9] for second in range(60)]
    long = line(path, duration_s=60.0, words=words)
    long["reasons"] = [long["reasons"][0] | {"spans": [[44.0, 46.0]]}]
    html, page = shown(audited(tmp_path, [long]))
    data = sounds(page)[0].partition(",")[2]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert heard.size / rate == pytest.approx(MAX_SOUND_S, abs=0.15)
    assert "Heard and drawn are 35.0 s to 55.0 s of its 1.0 min, around what looks wrong." in page.flat("clips")
    drawn = re.findall(r"<bdi style=[^>]*>(w\d+)</bdi>", html)
    assert drawn == [f"w{second}" for second in range(35, 55)]
    assert '<rect class="bad" x="270.0" y="0" width="60.0"' in html


@pytest.mark.parametrize(
    ("duration_s", "spans", "expected"),
    [
        (20.0, [[3.0, 4.0]], (0.0, 20.0)),
        (90.0, [[0.0, 2.0]], (0.0, 20.0)),
        (90.0, [[88.0, 90.0]], (70.0, 90.0)),
        (90.0, [[500.0, 600.0]], (70.0, 90.0)),
        (90.0, [[-50.0, -40.0]], (0.0, 20.0)),
        (90.0, [], (0.0, 20.0)),
    ],
)
def test_the_heard_part_stays_inside_the_clip(
    duration_s: float, spans: list[Any], expected: tuple[float, float]
) -> None:
    made = line(Path("a.wav"), duration_s=duration_s)
    made["reasons"] = [made["reasons"][0] | {"spans": spans}]
    assert tuple(heard_part(made)) == expected  # type: ignore[arg-type]


def test_only_the_worst_clips_are_shown(tmp_path: Path, shown) -> None:
    path = wave(tmp_path / "a.wav", 1.0)
    rows = [line(path, id=f"clip-{place}", low_quality=place < 2, duration_s=1.0) for place in range(5)]
    rows[2:] = [row | {"reasons": []} for row in rows[2:]]
    _, page = shown(audited(tmp_path, [unaligned(path, id="x"), *rows]), clips=3)
    clips = page.flat("clips")
    assert "3 of 5 clips that were aligned" in clips
    assert "left out" not in clips
    assert re.findall(r"(not flagged|flagged)\s?clip-(\d)", clips) == [
        ("flagged", "0"),
        ("flagged", "1"),
        ("not flagged", "2"),
    ]
    _, page = shown(tmp_path, clips=0)
    assert "No clip is shown" in page.flat("clips")


def test_the_page_stays_within_its_size_and_says_what_was_left_out(
    tmp_path: Path, shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wave(tmp_path / "a.wav", 3.0, noise=True)
    rows = [line(path, id=f"clip-{place}", duration_s=3.0, text="& < " * 2_000) for place in range(12)]
    rows += [unaligned(path, id=f"u{place}", text="<" * 10_000, problem="<" * 50) for place in range(150)]
    monkeypatch.setattr(audit_module, "MAX_PAGE_BYTES", 2 * 2**20 + 2**18)
    html, page = shown(audited(tmp_path, rows))
    heard = len(sounds(page)) - 8  # those of clips that could not be aligned
    assert 1 <= heard < 12
    assert len(html.encode()) < 2 * 2**20 + 2**18
    assert f"{12 - heard} more were asked for and left out" in page.flat("clips")
    assert f"and {150 - MAX_UNALIGNED} more." in page.flat("unaligned")
    monkeypatch.undo()
    html, page = shown(tmp_path)
    assert len(sounds(page)) == 12 + 8
    assert len(html.encode()) < MAX_PAGE_BYTES


def test_very_long_texts_are_shortened(tmp_path: Path, shown) -> None:
    path = wave(tmp_path / "a.wav", 2.0)
    many = 3 * MAX_WORDS
    words = [["a" * 5_000, 0.1, 0.2, 0.9]] + [["b", 1.0, 1.1, 0.9]] * many
    _, page = shown(audited(tmp_path, [line(path, text="b " * many * 10, transcript="c " * many, words=words)]))
    clips = page.flat("clips")
    assert f"{many * 20 - MAX_CHARACTERS:,} more characters" in clips
    assert f"and {10 * many - MAX_WORDS:,} more words".replace(",", " ") in clips
    assert "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" not in clips


def test_a_clean_corpus_has_a_page(tmp_path: Path, shown) -> None:
    path = wave(tmp_path / "a.wav", 2.0)
    clean = line(path, low_quality=False, reasons=[], notes=[], transcript="One, two three!")
    fixed = Calibration(method="fixed", thresholds={"coverage": 0.6}, corruptions={})
    share = ShareOfBad(value=0.0, low=0.0, high=0.0, count=1)
    _, page = shown(
        audited(
            tmp_path,
            [clean],
            decision="PROCEED",
            rate=share,
            correction="none",
            flags={},
            calibration=fixed,
            coverage_percentiles={},
            domains=(),
            settings={},
            model={},
        )
    )
    assert "PROCEED The transcripts are good enough" in page.flat("verdict")
    assert "0.0 % of the clips are flagged" in page.flat("verdict")
    assert "unknownnot measured" in page.flat("verdict")
    assert "No clip was flagged and none has a note" in page.flat("reasons")
    assert "no trusted clips were given" in page.flat("detector")
    assert "The model wrote the same" in page.flat("clips")
    assert "unaligned" not in page.text


def test_a_corpus_of_which_nothing_could_be_aligned_has_a_page(tmp_path: Path, shown) -> None:
    _, page = shown(audited(tmp_path, [unaligned(tmp_path / "gone.wav", text=None)]))
    assert "No clip could be aligned" in page.flat("clips")
    assert "alignment.no_text" in page.flat("unaligned")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"duration_s": "long"}, "duration_s"),
        ({"duration_s": -1.0}, "duration_s"),
        ({"reasons": None}, "reasons"),
        ({"words": [["one", 0.1, 0.4]]}, "words.0"),
        ({"words": [[1, 0.1, 0.4, 0.2]]}, "words.0.0"),
        ({"path": 3}, "path"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = wave(tmp_path / "a.wav", 2.0)
    audited(tmp_path, [line(path), line(path, **change)])
    with pytest.raises(ManifestError, match=rf"{CLIPS_FILE}:2: .*{re.escape(problem)}") as error:
        write_audit_page(tmp_path)
    assert error.value.exit_code == 2
    assert not (tmp_path / PAGE_FILE).exists()


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = wave(tmp_path / "a.wav", 2.0)
    with pytest.raises(ManifestError, match=r"alignment_report\.json"):
        write_audit_page(tmp_path)
    audited(tmp_path, [line(path)])
    (tmp_path / CLIPS_FILE).unlink()
    with pytest.raises(ManifestError, match=CLIPS_FILE):
        write_audit_page(tmp_path)
    (tmp_path / CLIPS_FILE).write_text('{"id": ', "utf-8")
    with pytest.raises(ManifestError, match=f"{CLIPS_FILE}:1 is damaged"):
        write_audit_page(tmp_path)
    (tmp_path / CLIPS_FILE).write_text("".join(json.dumps(line(path)) + "\n" for _ in range(3)), "utf-8")
    with pytest.raises(ManifestError, match="has 3 clips, and the report beside it is about 1"):
        write_audit_page(tmp_path)


def test_the_same_audit_gives_the_same_bytes(tmp_path: Path) -> None:
    audited(tmp_path, [line(wave(tmp_path / "a.wav", 2.0))])
    assert write_audit_page(tmp_path).read_bytes() == write_audit_page(tmp_path).read_bytes()


def test_every_code_and_statistic_is_explained() -> None:
    from sonotune.audio.quality import SignalQuality
    from sonotune.audit.measure import Measured
    from sonotune.audit.notes import notes_on
    from sonotune.audit.run import CLIPS_FILE as WRITTEN

    assert WRITTEN == CLIPS_FILE
    odd = SignalQuality(
        level_db=-3.0,
        clipped_share=1.0,
        silent_share=1.0,
        signal_to_noise_db=0.0,
        bandwidth_hz=4_000.0,
        recorded_rate_hz=8_000,
    )
    notes = notes_on(Measured(key="k", scores=None, quality=odd))
    assert len(notes) >= 4
    assert {*CODES.values(), *notes} <= CODE_MEANINGS.keys()
    assert STATISTICS.keys() <= STATISTIC_TITLES.keys()


def test_the_page_needs_no_torch(tmp_path: Path) -> None:
    audited(tmp_path, [line(wave(tmp_path / "a.wav", 2.0))])
    program = (
        "import sys\nfrom pathlib import Path\nfrom sonotune.reports.audit import write_audit_page\n"
        "write_audit_page(Path(sys.argv[1]))\n"
        "found = {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def told(said: str, severity: Any) -> Finding:
    message = f"the audit of the training clips said {said}: 4.0% of <bad> clips."
    return Finding(check=VERDICT, severity=severity, message=message, path="a.audit/alignment_report.json")


@pytest.mark.parametrize(
    ("said", "severity", "outcome"),
    [
        ("PROCEED", "note", "better"),
        ("PROCEED", "warning", "none"),  # the clips have changed since
        ("CAUTION", "warning", "none"),
        ("STOP", "warning", "worse"),
    ],
)
def test_the_audit_of_the_training_clips_is_a_line(run_record, said: str, severity: Any, outcome: str) -> None:
    found = audit_verdict(replace(run_record, findings=(told(said, severity),)))
    assert found is not None
    assert found[:2] == (outcome, f"audit: {said}")
    assert found.sentence.startswith(f"The audit of the training clips said {said}: ")
    assert audit_verdict(run_record) is None


def test_the_report_of_a_run_says_first_what_the_audit_said(run_record, read_page) -> None:
    html = build_html(replace(run_record, scores={}, findings=(told("STOP", "warning"),)))
    first = read_page(html).flat("")
    assert "audit: STOP The audit of the training clips said STOP: 4.0% of <bad> clips." in first
    assert '<p class="card verdict worse"><span class="pill worse">audit: STOP</span>' in html


def test_a_spectrogram_shows_a_tone_where_it_is_and_when_it_sounds() -> None:
    times = np.arange(2 * RATE_HZ) / RATE_HZ
    tone = (0.3 * np.sin(2 * np.pi * 1000 * times) * (times > 1.0)).astype(np.float32)
    levels = spectrogram._levels(tone, RATE_HZ)
    assert levels.shape == (48, 200)
    assert levels[:, :95].max() == levels.min() == -60.0
    centres = slaney_filters(48, 512, RATE_HZ) @ np.fft.rfftfreq(512, 1 / RATE_HZ)
    heights = slaney_filters(48, 512, RATE_HZ).sum(axis=1)
    assert abs(centres[levels[:, 150].argmax()] / heights[levels[:, 150].argmax()] - 1000) < 60
    for samples in (1, 7, 160, 30 * RATE_HZ):
        assert spectrogram._levels(np.ones(samples, dtype=np.float32), RATE_HZ).shape[1] <= 500
        address = spectrogram.spectrogram_address(np.zeros(samples, dtype=np.float32), RATE_HZ)
        assert base64.b64decode(address.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
