"""The manifest: what goes in comes out, and every kind of bad line is named with its number."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sonotune.audio.io import measure
from sonotune.data.audio_checks import check_audio
from sonotune.data.manifest import digest, filter_clips, read_manifest, statistics, write_manifest
from sonotune.errors import ManifestError
from sonotune.types import Clip, Word

RATE_HZ = 8000


def tone(path: Path, seconds: float = 1.0, value: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time_S = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    soundfile.write(path, (value * np.sin(2 * np.pi * 220 * time_S)).astype(np.float32), RATE_HZ, subtype="FLOAT")
    return path


def lines(path: Path, *records: object) -> Path:
    written = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(written) + "\n", "utf-8")
    return path


def record(number: int, **more: object) -> dict[str, object]:
    return {"id": f"c{number}", "path": f"c{number}.wav", "duration_s": 1.0, **more}


# --- round trip ----------------------------------------------------------------------------------

ALPHABET = st.one_of(
    st.sampled_from(
        "אבגדהשת"
        + "ְִֵֶַָׁ"
        + "־׳״"
        + "مرحباًّ"
        + "नमस्ते"
        + "😀👨‍👩‍👧🇮🇱"
        + '\0\x1b\x85\u2028\ufeff\ufffd\u200f\u202e\u2066\t\r\n"\\ <&'
    ),
    st.characters(exclude_categories=("Cs",)),
)
TEXT = st.text(ALPHABET, max_size=30)
NAME = TEXT.filter(lambda text: text.strip() != "")
SECONDS = st.floats(min_value=0, max_value=1e6, allow_nan=False).map(abs)


def class_name(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip() or "x"


def words(pair: tuple[str, float, float]) -> Word:
    return Word(text=unicodedata.normalize("NFC", pair[0]), start_s=pair[1], end_s=pair[1] + pair[2], score=0.5)


CLIP = st.builds(
    Clip,
    id=NAME,
    path=st.just(Path("a b.wav")),
    duration_s=SECONDS.filter(bool),
    start_s=SECONDS,
    sample_rate_hz=st.none() | st.integers(1, 192_000),
    channel=st.none() | st.integers(0, 7),
    text=st.none() | TEXT.map(lambda text: unicodedata.normalize("NFC", text)),
    label=st.lists(NAME.map(class_name), max_size=2, unique=True).map(tuple),
    words=st.lists(st.tuples(TEXT, SECONDS, SECONDS).map(words), max_size=2).map(tuple),
    language=st.none() | NAME,
    domain=st.none() | NAME,
    speaker=st.none() | NAME,
    weight=st.floats(0, 1).map(abs),
    extra=st.dictionaries(NAME.map(lambda name: f"x{name}"), TEXT, max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clips=st.lists(CLIP, min_size=1, max_size=4, unique_by=lambda clip: clip.id))
def test_clips_come_back_as_written(tmp_path: Path, clips: list[Clip]) -> None:
    placed = [dataclasses.replace(clip, path=tmp_path / clip.path) for clip in clips]
    write_manifest(tmp_path / "m.jsonl", placed)
    assert read_manifest(tmp_path / "m.jsonl") == placed


def test_text_becomes_nfc(tmp_path: Path) -> None:
    manifest = lines(tmp_path / "m.jsonl", record(1, text="e\u0301"))
    assert read_manifest(manifest)[0].text == "\u00e9"


def test_one_class_is_one_class_however_it_is_typed(tmp_path: Path) -> None:
    manifest = lines(
        tmp_path / "m.jsonl",
        record(1, label=["cafe\u0301", " drum ", "caf\u00e9", "drum"]),
        record(2, label="\u00a0caf\u00e9\n"),
    )
    assert [clip.label for clip in read_manifest(manifest)] == [("caf\u00e9", "drum"), ("caf\u00e9",)]
    with pytest.raises(ManifestError, match="'label' has the wrong type"):
        read_manifest(lines(tmp_path / "empty.jsonl", record(1, label=["drum", " \u00a0"])))


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    text = "\r\n\r\n".join(json.dumps(record(number)) for number in (1, 2))
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n  \r\n")
    assert [clip.id for clip in read_manifest(tmp_path / "m.jsonl")] == ["c1", "c2"]


def test_paths_are_relative_to_the_manifest_so_the_folder_can_move(tmp_path: Path) -> None:
    here = tmp_path / "here"
    clip = Clip(id="a", path=tone(here / "wav" / "a.wav"), duration_s=1.0)
    write_manifest(here / "m.jsonl", [clip])
    assert json.loads((here / "m.jsonl").read_text())["path"] == "wav/a.wav"
    there = here.rename(tmp_path / "there")
    assert read_manifest(there / "m.jsonl")[0].path == there / "wav" / "a.wav"


def test_unknown_columns_are_kept_as_text_and_defaults_fill_in(tmp_path: Path) -> None:
    manifest = lines(tmp_path / "m.jsonl", record(1, snr=3.5, tags=["a"], gone=None), record(2, language="ar"))
    one, two = read_manifest(manifest, language="he", domain="phone")
    assert one.extra == {"snr": "3.5", "tags": '["a"]'}
    assert (one.language, two.language, one.domain) == ("he", "ar", "phone")


def test_missing_duration_is_read_from_the_header(tmp_path: Path) -> None:
    tone(tmp_path / "c1.wav", 2.0)
    manifest = lines(
        tmp_path / "m.jsonl",
        {"id": "whole", "path": "c1.wav"},
        {"id": "rest", "path": "c1.wav", "start_s": 0.5},
        {"id": "gone", "path": "gone.wav"},
    )
    whole, rest, gone = read_manifest(manifest)
    assert (whole.duration_s, whole.sample_rate_hz) == (2.0, RATE_HZ)
    assert rest.duration_s == 1.5
    assert gone.duration_s == 0


def test_writing_refuses_double_ids_bad_text_and_hidden_columns(tmp_path: Path) -> None:
    clip = Clip(id="a", path=tmp_path / "a.wav", duration_s=1.0)
    target = tmp_path / "m.jsonl"
    write_manifest(target, [clip])
    before = target.read_bytes()
    for bad in (
        [clip, clip],
        [dataclasses.replace(clip, text="\ud800")],
        [dataclasses.replace(clip, duration_s=float("nan"))],
        [dataclasses.replace(clip, weight=float("nan"))],
        [dataclasses.replace(clip, weight=1.5)],
        [dataclasses.replace(clip, extra={"path": "/etc/passwd"})],
    ):
        with pytest.raises(ManifestError, match="cannot be written"):
            write_manifest(target, bad)
    assert target.read_bytes() == before


def test_a_file_name_that_is_no_utf8_is_written_and_found_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.wav")
    (tmp_path / name).write_bytes(b"")
    clip = Clip(id=name, path=tmp_path / name, duration_s=1.0)
    target = tmp_path / "m.jsonl"
    write_manifest(target, [clip])
    assert target.read_bytes().decode("utf-8").count(r"bad\udcff.wav") == 2
    [again] = read_manifest(target)
    assert (again.id, again.path) == (clip.id, clip.path)
    with pytest.raises(ManifestError, match="half of a surrogate pair"):  # in a transcript it is no byte of a name
        write_manifest(target, [dataclasses.replace(clip, text=name)])


# --- bad lines -----------------------------------------------------------------------------------

BAD_LINES = {
    '{"id": "x", "path": ': "not JSON",
    "[1, 2]": "not an object",
    "null": "not an object",
    '{"id": "x", "path": "x.wav", "duration_s": NaN}': "NaN",
    '{"id": "x", "path": "x.wav", "duration_s": -Infinity}': "-Infinity",
    '{"id": "x", "path": "x.wav", "duration_s": 1e999}': "out of range",
    f'{{"id": "x", "path": "x.wav", "duration_s": 1{"0" * 400}}}': "out of range",
    f'{{"id": "x", "path": "x.wav", "channel": {"9" * 5000}}}': "not JSON",
    '{"id": "x", "path": "x.wav", "duration_s": 0}': "out of range",
    '{"id": "x", "path": "x.wav", "duration_s": "2.5"}': "text '2.5'",
    '{"id": "x", "path": "x.wav", "duration_s": true}': "true or false",
    '{"id": "x", "path": "x.wav", "start_s": -1}': "'start_s' is out of range",
    '{"id": "x", "path": "x.wav", "channel": 1.5}': "whole number",
    '{"id": "x", "path": "x.wav", "weight": -0.1}': "'weight' is out of range",
    '{"id": "x", "path": "x.wav", "weight": 70}': "0, which leaves the clip out of training, to 1",
    '{"id": "x", "path": "x.wav", "weight": "0.5"}': "'weight' has the wrong type",
    '{"id": "x", "path": "x.wav", "weight": true}': "a number from 0 to 1",
    '{"id": "x", "path": "x.wav", "weight": NaN}': "NaN",
    '{"id": "x", "path": "x.wav", "text": 5}': "'text' has the wrong type",
    '{"id": "x", "path": "x.wav", "label": [""]}': "'label' has the wrong type",
    '{"id": "x", "path": "x.wav", "words": [{"text": "a"}]}': "'words' has the wrong type",
    '{"id": "x", "path": "x.wav", "words": [{"text": "a", "start_s": 2, "end_s": 1}]}': "ends before it begins",
    '{"id": "x", "path": "x.wav", "text": "a", "text": "b"}': "'text'; allowed is each key once",
    '{"id": "x", "path": "x.wav", "text": "\\ud800"}': "surrogate",
    '{"id": 7, "path": "x.wav"}': "'id' has the wrong type",
    '{"id": " ", "path": "x.wav"}': "'id' is empty",
    '{"path": "x.wav"}': "'id' is missing",
    '{"id": "x"}': "'path' is missing",
    '{"id": "x", "audio_filepath": "x.wav"}': "NeMo",
    '{"id": "x", "path": ""}': "path is empty",
    '{"id": "x", "path": "a\\u0000.wav"}': "NUL",
    '{"id": "x", "path": "https://example.org/x.wav"}': "URL",
    '{"id": "x", "path": "../x.wav"}': "leaves the root",
    '{"id": "x", "path": "a/../../x.wav"}': "leaves the root",
    f'{{"id": "x", "path": "{"a" * 300}.wav"}}': "too long",
    f'{{"id": "x", "path": "{"b/" * 3000}.wav"}}': "too long",
    '{"id": "x", "path": "."}': "that of a folder",
    f'{{"id": "x", "path": "x.wav", "label": "{"a" * 1001}"}}': "of 1 to 1000 characters",
    '{"id": "x", "path": "/"}': "that of a folder",
    "[" * 100_000: "nested too deeply",
    f'{{"id": "x", "path": "x.wav", "text": "{"a" * 1_000_000}"}}': "line is too long",
}


@pytest.mark.parametrize(("line", "said"), BAD_LINES.items(), ids=[said[:30] for said in BAD_LINES.values()])
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    manifest = lines(tmp_path / "m.jsonl", record(1), line, record(2))
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    message = str(caught.value)
    assert message.startswith(f"{manifest}:2: ")
    assert said in message
    assert "found" in message
    assert "allowed" in message
    assert "\n" not in message
    assert len(message) < 1000


def test_all_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    manifest = lines(tmp_path / "m.jsonl", *[record(n) if n == 3 else f"bad {n}" for n in range(1, 31)])
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    message = str(caught.value)
    assert message.startswith("29 problems")
    assert message.count("is not JSON") == 20
    assert "and 9 more" in message
    assert f"{manifest}:3:" not in message
    assert f"{manifest}:21:" in message


def test_one_line_with_two_faults_shows_both(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="2 problems"):
        read_manifest(lines(tmp_path / "m.jsonl", record(1, duration_s="x", channel="y")))


def test_double_ids_name_both_lines(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"m\.jsonl:3: .*'c1' again, first on line 1"):
        read_manifest(lines(tmp_path / "m.jsonl", record(1), record(2), record(1)))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(json.dumps(record(1)).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: .*UTF-8.*0xff"):
        read_manifest(tmp_path / "m.jsonl")


def test_reading_goes_on_after_a_line_that_is_too_long(tmp_path: Path) -> None:
    manifest = lines(tmp_path / "m.jsonl", "x" * 3_000_000, record(1), "bad")
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    assert f"{manifest}:1: the line is too long" in str(caught.value)
    assert f"{manifest}:3: the line is not JSON" in str(caught.value)


def test_a_required_column(tmp_path: Path) -> None:
    manifest = lines(tmp_path / "m.jsonl", record(1, text="a"), record(2, txt="b"), record(3, text=None))
    with pytest.raises(ManifestError, match="2 problems") as caught:
        read_manifest(manifest, require=("text",))
    assert "did you mean 'txt'" in str(caught.value)
    assert len(read_manifest(manifest)) == 3


def test_what_is_no_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.jsonl").touch()
    for name, said in (
        ("pipe", "neither a file"),
        (".", "a folder"),
        ("gone", "nothing there"),
        ("empty.jsonl", "empty"),
    ):
        with pytest.raises(ManifestError, match=said):
            read_manifest(tmp_path / name)


# --- the root ------------------------------------------------------------------------------------


def test_links_may_not_lead_out_of_the_root_unless_allowed(tmp_path: Path) -> None:
    secret = tone(tmp_path / "outside" / "s.wav")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file.wav").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    (root / "loop.wav").symlink_to(root / "loop.wav")
    for path in ("file.wav", "folder/s.wav", "folder/gone.wav"):
        manifest = lines(root / "m.jsonl", {"id": "x", "path": path, "duration_s": 1})
        with pytest.raises(ManifestError, match="leaves the root"):
            read_manifest(manifest)
        assert read_manifest(manifest, allow_outside_root=True)[0].path.name in ("file.wav", "s.wav", "gone.wav")


def test_absolute_paths_are_read_as_they_are_through_links_too(tmp_path: Path) -> None:
    audio = tone(tmp_path / "audio" / "a.wav")
    (tmp_path / "link").symlink_to(audio.parent)
    (tmp_path / "lists").mkdir()
    tone(tmp_path / "lists" / "b.wav")
    paths = [str(audio), str(tmp_path / "link" / "a.wav"), "b.wav"]
    manifest = lines(tmp_path / "lists" / "m.jsonl", *({"id": path, "path": path} for path in paths))
    assert [str(clip.path) for clip in read_manifest(manifest)] == [*paths[:2], str(tmp_path / "lists" / "b.wav")]


def test_paths_that_leave_the_root_are_told_once_with_what_mends_them(tmp_path: Path) -> None:
    audio = [tone(tmp_path / "audio" / folder / f"{folder}.wav") for folder in ("a", "b", "c")]
    lists = tmp_path / "lists"
    lists.mkdir()
    manifest = lines(lists / "m.jsonl", *({"id": path.stem, "path": str(path)} for path in audio))
    with pytest.raises(ManifestError, match="3 paths leave the root") as caught:
        read_manifest(manifest, root=lists)
    assert "path leaves" not in str(caught.value)
    assert "Leave out data.root (in `sonotune data`: --root)" in str(caught.value)
    assert [f"m.jsonl:{number}: " in line for number, line in enumerate(caught.value.listing, 1)] == [True] * 3
    assert len(read_manifest(manifest, root=tmp_path / "audio")) == 3
    tone(lists / "d.wav")  # a path that is relative to the root needs it
    lines(manifest, *({"id": str(path), "path": str(path)} for path in [*audio, "d.wav"]))
    with pytest.raises(ManifestError, match="3 paths leave the root") as caught:
        read_manifest(manifest, root=lists)
    assert "data.root" not in str(caught.value)
    assert "data.allow_outside_root=true" in str(caught.value)


def test_paths_inside_the_root_are_taken(tmp_path: Path) -> None:
    target = tone(tmp_path / "wav" / "a.wav")
    (tmp_path / "link.wav").symlink_to(target)
    manifest = lines(
        tmp_path / "sub.jsonl",
        {"id": "absolute", "path": str(target)},
        {"id": "detour", "path": "wav/../wav/a.wav"},
        {"id": "link", "path": "link.wav"},
    )
    clips = read_manifest(manifest)
    assert [clip.path.resolve() for clip in clips] == [target.resolve()] * 3


def test_another_root(tmp_path: Path) -> None:
    tone(tmp_path / "audio" / "c1.wav")
    (tmp_path / "lists").mkdir()
    manifest = lines(tmp_path / "lists" / "m.jsonl", record(1))
    assert read_manifest(manifest, root=tmp_path / "audio")[0].path == tmp_path / "audio" / "c1.wav"


# --- filtering and checking ----------------------------------------------------------------------


def clip(name: str, seconds: float, text: str | None = "one", **more: object) -> Clip:
    return Clip(id=name, path=Path(f"/nowhere/{name}.wav"), duration_s=seconds, text=text, **more)  # type: ignore[arg-type]


def test_filter_counts_every_drop_once() -> None:
    clips = [
        clip("ok", 1.0),
        clip("at_min", 0.5),
        clip("at_max", 15.0),
        clip("short", 0.4),
        clip("shorter", 0.2, None),
        clip("long", 15.1),
        clip("mute", 1.0, None),
        clip("blank", 1.0, " \t"),
        clip("unknown", 0.0),
    ]
    kept, findings = filter_clips(clips, max_duration_s=15.0)
    assert [c.id for c in kept] == ["ok", "at_min", "at_max"]
    by_check = {finding.check: finding for finding in findings}
    assert {check: finding.clip_ids for check, finding in by_check.items()} == {
        "data.duration_unknown": ("unknown",),
        "data.too_short": ("short", "shorter"),
        "data.too_long": ("long",),
        "data.no_text": ("mute",),
        "data.empty_text": ("blank",),
    }
    assert sum(len(finding.clip_ids) for finding in findings) + len(kept) == len(clips)
    assert by_check["data.too_short"].measured == 0.2
    assert by_check["data.too_short"].message.startswith("2 of 9 clips")
    assert len(filter_clips(clips, max_duration_s=15.0, require=None)[0]) == 5
    assert len(filter_clips(clips, require=None)[0]) == 6


def test_check_audio_gives_one_finding_a_bad_clip_with_the_reason(tmp_path: Path) -> None:
    tone(tmp_path / "good.wav")
    tone(tmp_path / "nan.wav", value=float("nan"))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio at all" * 20)
    (tmp_path / "folder.wav").mkdir()
    tone(tmp_path / "cut.wav")
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    names = ("good", "missing", "nan", "empty", "text", "folder", "cut")
    clips = [Clip(id=name, path=tmp_path / f"{name}.wav", duration_s=1.0) for name in names]
    clips.append(Clip(id="beyond", path=tmp_path / "good.wav", start_s=0.5, duration_s=5.0))
    kept, findings = check_audio(clips, workers=3)
    assert [c.id for c in kept] == ["good"]
    reasons = {finding.clip_ids[0]: finding.check for finding in findings}
    assert len(findings) == 7
    assert reasons["missing"] == "audio.missing"
    assert reasons["nan"] == "audio.non_finite"
    assert reasons["empty"] == "audio.empty"
    assert reasons["text"] == "audio.not_audio"
    assert reasons["folder"] == "audio.not_regular"
    assert reasons["cut"] == "audio.truncated"
    assert reasons["beyond"] == "audio.span"
    assert all(finding.severity == "error" and finding.path and finding.message for finding in findings)


def test_header_mode_opens_but_does_not_decode(tmp_path: Path) -> None:
    tone(tmp_path / "good.wav")
    tone(tmp_path / "nan.wav", value=float("nan"))
    clips = [Clip(id=name, path=tmp_path / f"{name}.wav", duration_s=1.0) for name in ("good", "nan", "missing")]
    clips.append(dataclasses.replace(clips[0], id="beyond", duration_s=2.0))
    kept, findings = check_audio(clips, "header")
    assert [c.id for c in kept] == ["good", "nan"]
    assert [finding.check for finding in findings] == ["audio.missing", "audio.span"]
    with pytest.raises(ManifestError, match="'decode' and 'header'"):
        check_audio(clips, "quick")  # type: ignore[arg-type]


def cut(path: Path, seconds: float) -> Path:
    """Take samples from the end of a file and leave its header."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 4 * round(seconds * RATE_HZ)])
    return path


def shortened(folder: Path) -> list[Clip]:
    """A whole clip, three that end a little early (by header, by manifest, both), and two that end far too early."""
    clips = [
        Clip(id="whole", path=tone(folder / "whole.wav", 2.0), duration_s=2.0),
        Clip(id="header", path=cut(tone(folder / "header.wav", 2.0), 0.021), duration_s=1.979),
        Clip(id="manifest", path=folder / "whole.wav", duration_s=2.021),
        Clip(id="both", path=folder / "header.wav", start_s=0.5, duration_s=1.5),
        Clip(id="inside", path=folder / "header.wav", duration_s=1.0),
        Clip(id="half", path=cut(tone(folder / "half.wav", 2.0), 1.0), duration_s=1.0),
        Clip(id="beyond", path=folder / "whole.wav", duration_s=2.5),
    ]
    assert {c.path for c in clips if not c.path.is_file()} == set()
    return clips


@pytest.mark.parametrize("mode", ["decode", "header"])
def test_clips_that_end_a_little_early_are_used_as_far_as_they_go(tmp_path: Path, mode: str) -> None:
    kept, findings = check_audio(shortened(tmp_path), mode)  # type: ignore[arg-type]
    assert {c.id: round(c.duration_s, 3) for c in kept} == {
        "whole": 2.0,
        "header": 1.979,
        "manifest": 2.0,
        "both": 1.479,
        "inside": 1.0,
    }
    assert [(finding.check, finding.severity, finding.clip_ids) for finding in findings] == [
        ("audio.truncated", "error", ("half",)),
        ("audio.span", "error", ("beyond",)),
        ("audio.shortened", "warning", ("header", "manifest", "both")),
    ]
    assert "0.021 s" in findings[-1].message
    for c in kept:  # none is refused when it is read
        measure(c.path, start_s=c.start_s, duration_s=c.duration_s)


def test_truncated_clips_are_left_out_or_bad_where_the_settings_say_so(tmp_path: Path) -> None:
    clips = shortened(tmp_path)
    kept, findings = check_audio(clips, truncated="leave_out")
    assert [c.id for c in kept] == ["whole", "inside"]
    assert [(finding.check, finding.severity, finding.clip_ids) for finding in findings] == [
        ("audio.span", "error", ("beyond",)),
        ("data.truncated", "warning", ("header", "manifest", "both", "half")),
    ]
    kept, findings = check_audio(clips, truncated="stop")
    assert [c.id for c in kept] == ["whole", "inside"]
    assert {finding.clip_ids[0] for finding in findings if finding.check == "audio.truncated"} == {
        "header",
        "manifest",
        "both",
        "half",
    }
    assert {finding.severity for finding in findings} == {"error"}


# --- digest and statistics -----------------------------------------------------------------------


def test_digests_of_older_data_sets_are_what_they_were() -> None:
    clips = [
        Clip(
            id="a",
            path=Path("/nowhere/x/a.wav"),
            duration_s=1.5,
            text="one",
            speaker="s",
            label=("l",),
            words=(Word(text="one", start_s=0.0, end_s=1.0),),
            extra={"k": "v"},
        ),
        Clip(id="b", path=Path("/nowhere/y/b.wav"), duration_s=2.0),
    ]
    assert digest(clips) == "f2950cecc1b9ac048f2976ca699f776d04df1eb0422d1d309eb3985edcda553a"  # before weights


def test_digest_follows_content_and_not_place(tmp_path: Path) -> None:
    here = tmp_path / "here"
    clips = [
        Clip(id=name, path=tone(here / folder / f"{name}.wav"), duration_s=1.0, text=name)
        for name, folder in (("a", "x"), ("b", "y"))
    ]
    before = digest(clips)
    there = shutil.copytree(here, tmp_path / "deep" / "there")
    moved = [dataclasses.replace(c, path=there / c.path.relative_to(here)) for c in clips]
    assert digest(moved) == before
    variants = [
        [clips[0], dataclasses.replace(clips[1], **change)]
        for change in (
            {"id": "z"},
            {"text": "z"},
            {"label": ("z",)},
            {"start_s": 0.1},
            {"duration_s": 0.9},
            {"speaker": "z"},
            {"weight": 0.5},
            {"weight": 0.0},
        )
    ]
    variants += [clips[:1], clips[::-1], [clips[0], dataclasses.replace(clips[1], path=tone(here / "y" / "c.wav"))]]
    digests = {digest(variant) for variant in variants}
    assert before not in digests
    assert len(digests) == len(variants)
    tone(clips[1].path, seconds=2.0)
    assert digest(clips) != before
    clips[1].path.unlink()
    assert digest(clips) not in {before, digest(moved)}


def test_statistics() -> None:
    found = statistics(
        [
            clip("a", 1.0, "aab", speaker="s1", language="en", domain="phone"),
            clip("b", 3.0, "a c", speaker="s1"),
            clip("c", 5.0, None, label=("x", "y")),
        ]
    )
    assert json.loads(json.dumps(found)) == found
    assert found["clips"] == 3
    assert found["hours"] == pytest.approx(9 / 3600)
    assert (found["duration_s"]["min"], found["duration_s"]["p50"], found["duration_s"]["max"]) == (1.0, 3.0, 5.0)
    assert found["speakers"] == {"s1": 2}
    assert found["labels"] == {"x": 1, "y": 1}
    assert found["alphabet"] == {"a": 3, " ": 1, "b": 1, "c": 1}
    assert (found["words"], found["characters"], found["without_text"]) == (3, 6, 1)
    assert statistics([])["duration_s"] == {}


@pytest.mark.parametrize("mode", ["decode", "header"])
def test_a_channel_that_the_file_lacks_is_found_before_training(tmp_path: Path, mode: str) -> None:
    tone(tmp_path / "mono.wav")
    clips = [
        Clip(id=str(channel), path=tmp_path / "mono.wav", duration_s=1.0, channel=channel) for channel in (None, 0, 1)
    ]
    kept, findings = check_audio(clips, mode)  # type: ignore[arg-type]
    assert [clip.id for clip in kept] == ["None", "0"]
    assert [(finding.check, finding.clip_ids) for finding in findings] == [("audio.channels", ("1",))]


def test_a_folder_named_from_the_working_directory_can_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_manifest(Path("here/m.jsonl"), [Clip(id="a", path=Path("here/audio/a.wav"), duration_s=1.0, text="one")])
    assert json.loads(Path("here/m.jsonl").read_text("utf-8"))["path"] == "audio/a.wav"


def test_a_line_that_could_not_be_read_back_is_not_written(tmp_path):
    clip = Clip(id="a", path=tmp_path / "a.wav", start_s=0.0, duration_s=1.0, text="x" * 1_000_000)
    with pytest.raises(ManifestError, match=r"clip 'a' cannot be written.*a line of 1,000,0\d\d bytes"):
        write_manifest(tmp_path / "m.jsonl", [clip])
    assert not (tmp_path / "m.jsonl").exists()
    fitting = dataclasses.replace(clip, text="x" * 999_900)
    write_manifest(tmp_path / "m.jsonl", [fitting])
    assert read_manifest(tmp_path / "m.jsonl")[0].text == fitting.text


def test_a_clip_whose_audio_is_the_folder_of_the_manifest_is_not_written(tmp_path):
    for path in (tmp_path, Path("/")):
        with pytest.raises(ManifestError, match=r"cannot be written.*in place of its audio"):
            write_manifest(tmp_path / "m.jsonl", [Clip(id="a", path=path, duration_s=1.0)])
