"""Manifests and layouts of other tools, each as a small source made here; what is assumed and lost is said."""

from __future__ import annotations

import json
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sonotune.data import importers
from sonotune.data.corpus import load_corpus, read_source
from sonotune.data.import_checks import check_clips
from sonotune.data.importers import sniff
from sonotune.data.manifest import write_manifest
from sonotune.errors import ManifestError
from sonotune.types import Clip, Finding

RATE_HZ = 8000


def tone(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(round(seconds * RATE_HZ)) / 5), RATE_HZ, format=None)
    return path


def read(source: Path, **options: Any) -> tuple[list[Clip], dict[str, Finding]]:
    findings: list[Finding] = []
    clips = importers.load(source, findings=findings, **options)
    return clips, {finding.check: finding for finding in findings}


def texts(clips: list[Clip]) -> list[str | None]:
    return [clip.text for clip in clips]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        tone(tmp_path / f"{name}.wav", 2.0)
    return tmp_path


# --- tables: delimiter and encoding --------------------------------------------------------------


@pytest.mark.parametrize("mark", [";", "|", "\t", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_delimiter_and_marked_encodings_are_found_and_said(folder: Path, mark: str, encoding: str):
    table = folder / "t.csv"
    table.write_bytes(f"path{mark}text\r\na.wav{mark}one\r\nb.wav{mark}שתיים\r\n".encode(encoding))
    clips, said = read(table)
    assert texts(clips) == ["one", "שתיים"]
    assert ("import.delimiter" in said) == (mark != ",")
    assert ("import.encoding" in said) == (not encoding.startswith("utf-8"))
    given, said = read(table, delimiter=mark, encoding=encoding)
    assert given == clips
    assert not said


def test_an_encoding_of_one_byte_a_letter_is_named_not_guessed(folder: Path):
    table = folder / "t.csv"
    table.write_bytes("path;text\na.wav;שלום\n".encode("cp1255"))
    with pytest.raises(ManifestError, match=r"not UTF-8.*--encoding cp1252"):
        read(table)
    assert texts(read(table, encoding="cp1255")[0]) == ["שלום"]
    with pytest.raises(ManifestError, match="is not ascii"):
        read(table, encoding="ascii")
    for wrong in ("cp9999", "rot13", "hex"):
        with pytest.raises(ManifestError, match="no encoding is called"):
            read(table, encoding=wrong)


def test_a_file_of_another_encoding_is_one_message(folder: Path):
    table = folder / "t.csv"
    table.write_bytes(b"path,text\na.wav,one\n" + "a.wav,été\n".encode("cp1252") * 30)
    with pytest.raises(ManifestError) as caught:
        read(table)
    assert str(caught.value).count("\n") == 0
    assert "30 lines are not UTF-8: found byte 0xe9 at offset 6 of line 3 of t.csv first" in str(caught.value)
    table.write_bytes("path,größe\na.wav,1\n".encode("cp1252"))
    with pytest.raises(ManifestError, match=r"^\S+t\.csv:1: the line is not UTF-8"):
        read(table)
    for name in "ab":
        (folder / f"{name}.txt").write_bytes("日本".encode("shift_jis"))
    with pytest.raises(ManifestError, match=r"2 transcripts cannot be read; of the first, the transcript 'a\.txt'"):
        read(folder, format="folder")
    assert texts(read(folder, format="folder", encoding="shift_jis")[0]) == ["日本"] * 2


def test_delimiters_have_names_and_decimal_commas_are_numbers(folder: Path):
    table = folder / "t.csv"
    table.write_text("Datei;Wort;Duration;;\na.wav;eins;1,5;;\n")
    clips, _ = read(table, delimiter="semicolon", audio_column="Datei", text_column="Wort")
    assert (clips[0].text, clips[0].duration_s) == ("eins", 1.5)
    assert read(table, audio_column="Datei", text_column="Wort")[0] == clips
    for wrong in ("::", "", "x", '"'):
        with pytest.raises(ManifestError, match=r"delimiter .* cannot be used"):
            read(table, delimiter=wrong)
    with pytest.raises(ManifestError, match=r"no column with the audio's path.*'Datei', 'Wort'.*--delimiter"):
        read(table)
    with pytest.raises(ManifestError, match=r"no column 'Datej'.*did you mean 'Datei'"):
        read(table, audio_column="Datej")


def test_a_table_of_quotation_marks_under_an_unknown_header_takes_no_time(folder: Path):
    (folder / "t.csv").write_text("name1,5;b;c;" + '","' * 20_000 + '\na.wav;"one, ""two""";0,01;"0,04";ann\n')
    begun_s = time.monotonic()
    with pytest.raises(ManifestError):
        read(folder / "t.csv")
    assert time.monotonic() - begun_s < 2


def test_names_of_columns_count_without_case_spaces_and_hyphens(folder: Path):
    (folder / "t.csv").write_text("File Name,Speaker-ID,Sentence\na.wav,7,one\n")
    (clip,) = read(folder / "t.csv")[0]
    assert (clip.speaker, clip.text) == ("7", "one")


def test_speechbrain_table(folder: Path):
    table = folder / "train.csv"
    table.write_text("ID,duration,wav,spk_id,wrd\nu1,2.0,$data_root/a.wav,103,ONE\nu2,2.0,{data_root}/b.wav,104,TWO\n")
    clips, _ = read(table)
    assert [(clip.id, clip.text, clip.speaker, clip.path.name) for clip in clips] == [
        ("u1", "ONE", "103", "a.wav"),
        ("u2", "TWO", "104", "b.wav"),
    ]


@pytest.mark.parametrize("place", ["$data_folder", "$data_root", "{data_root}", "${DATA_DIR}", "{root}"])
def test_the_older_table_of_speechbrain_has_spaces_after_its_commas(folder: Path, place: str):
    table = folder / "train.csv"
    table.write_text(
        "ID, duration, wav, wav_format, wav_opts, spk_id, wrd\n"
        f'u1, 2.0, {place}/a.wav, wav, , 103, "ONE, TWO"\nu2, 2.0, {place}/b.wav, wav, , 104, THREE\n'
    )
    for options in ({}, {"format": "speechbrain"}):
        clips, _ = read(table, **options)
        assert [(clip.id, clip.text, clip.speaker, clip.path) for clip in clips] == [
            ("u1", "ONE, TWO", "103", folder / "a.wav"),
            ("u2", "THREE", "104", folder / "b.wav"),
        ]
        assert clips[0].extra == {"wav_format": "wav"}


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("options", [{}, {"format": "speechbrain"}, {"format": "json"}])
@pytest.mark.parametrize("text", ["words", "wrd"])
def test_json_of_speechbrain(folder: Path, indent: int | None, options: dict[str, str], text: str):
    source = folder / "train.json"
    entries = {
        f"u{number}": {"wav": f"{{data_root}}/{name}.wav", "spk_id": 10 + number, "length": 1.5, text: "ONE TWO"}
        for number, name in enumerate("ab" * 40)
    }
    source.write_text(json.dumps(entries, indent=indent))
    clips, said = read(source, **options)
    assert [(clip.id, clip.speaker) for clip in clips[:2]] == [("u0", "10"), ("u1", "11")]
    assert {(clip.text, clip.duration_s) for clip in clips} == {("ONE TWO", 1.5)}
    assert len(clips) == 80
    assert not said


def test_excel_names_the_delimiter_in_a_line_before_the_header(folder: Path):
    table = folder / "t.csv"
    for line in ("sep=;", '"sep=;"', "SEP=;"):
        table.write_text(f"{line}\npath;text\na.wav;one, two\nb.wav;x;y\n")
        with pytest.raises(ManifestError, match=r":4: the row does not fit the header: found 3 cells"):
            read(table)
        table.write_text(f"{line}\npath;text\na.wav;one, two\n")
        assert texts(read(table)[0]) == texts(read(table, delimiter=";")[0]) == ["one, two"]


def test_ljspeech(tmp_path: Path):
    tone(tmp_path / "wavs" / "LJ001-0001.wav")
    (tmp_path / "metadata.csv").write_text('LJ001-0001|He said "3|He said "three\n')
    assert sniff(tmp_path) == sniff(tmp_path / "metadata.csv") == "ljspeech"
    clips, said = read(tmp_path)
    assert (clips[0].id, clips[0].text) == ("LJ001-0001", 'He said "3')
    assert clips[0].extra == {"normalized_text": 'He said "three'}
    assert "no header" in said["import.columns"].message
    assert texts(read(tmp_path, text_column="normalized_text")[0]) == ['He said "three']
    (tmp_path / "metadata.csv").write_text('LJ001-0001|o""ne' + '","' * 20_000 + "\n")  # no row of any other table
    assert sniff(tmp_path) == "ljspeech"
    (tmp_path / "metadata.csv").write_text("gone|x|x\nLJ001-0001|a|b|c\n")
    with pytest.raises(ManifestError, match=r"not of LJSpeech: found 4 cells"):
        read(tmp_path, format="ljspeech")


@pytest.mark.parametrize(
    ("header", "text", "extra"),
    [
        ("id|text|normalized", "3", {"normalized": "three"}),
        ("file|raw|text", "three", {"raw": "3"}),
        ("name|a|b", "3", {"b": "three"}),
    ],
)
def test_ljspeech_with_a_header(tmp_path: Path, header: str, text: str, extra: dict[str, str]):
    for name in ("x1", "x2"):
        tone(tmp_path / "wavs" / f"{name}.wav")
    (tmp_path / "metadata.csv").write_text(f"{header}\nx1|3|three\nx2|4|four\n")
    assert sniff(tmp_path) == sniff(tmp_path / "metadata.csv") == "ljspeech"
    clips, said = read(tmp_path)
    assert [clip.id for clip in clips] == ["x1", "x2"]
    assert (clips[0].text, clips[0].extra) == (text, extra)
    assert "a header" in said["import.columns"].message
    (tmp_path / "metadata.csv").write_text(f"{header}\nx1|3|three\nx2|4\n")
    with pytest.raises(ManifestError, match=r":3: the row is not of LJSpeech: found 2 cells; allowed is 3"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"path;text\na.wav;o\x00ne\n", "NUL character"),
        (b"path,text\na.wav," + b"x" * 2_000_000 + b"\n", "too long"),
        (b'path,text\na.wav,"one\n' + b'"","' * 20_000, "does not fit|cannot be read"),
        (b"id,path,text\n1,a.wav,x\n1,b.wav,y\n", "id is not unique"),
        (b"\xff\xfepath,text\n", "is not utf-16|not UTF-16|no column"),
    ],
)
def test_hostile_tables_are_refused_in_plain_words(folder: Path, content: bytes, said: str):
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=said):
        read(folder / "t.csv")


# --- segments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end"),
    [
        *(("start", "end"), ("start_time", "end_time"), ("offset", "end"), ("begin", "stop"), ("onset", "offset")),
        ("from", "To"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_starts_and_ends_are_spans(folder: Path, start: str, end: str, ending: str):
    source = folder / f"t.{ending}"
    if ending == "csv":
        source.write_text(f"file,{start},{end},text\na.wav,0.5,1.25,one\n")
    else:
        source.write_text(json.dumps({"file": "a.wav", start: 0.5, end: 1.25, "text": "one"}))
    clips, said = read(source)
    assert (clips[0].start_s, clips[0].duration_s, clips[0].extra) == (0.5, 0.75, {})
    assert not said


def test_a_span_that_ends_before_it_begins_and_an_unknown_time_are_said(folder: Path):
    (folder / "t.csv").write_text("file,start,end\na.wav,1.5,0.5\n")
    with pytest.raises(ManifestError, match="not behind its start"):
        read(folder / "t.csv")
    (folder / "t.csv").write_text("file,start_ms,text,note_time\na.wav,500,one,late\n")
    _, said = read(folder / "t.csv")
    assert "'start_ms'" in said["import.unused_time"].message
    assert said["import.unused_time"].severity == "warning"


def test_from_and_to_are_a_span_only_together_and_with_numbers(folder: Path):
    (folder / "t.csv").write_text("file,from,to,text\na.wav,ann,ben,one\n")
    (clip,), said = read(folder / "t.csv")
    assert (clip.start_s, clip.extra, said) == (0.0, {"from": "ann", "to": "ben"}, {})
    (folder / "t.csv").write_text("file,from,text\na.wav,0.5,one\n")
    assert "'from'" in read(folder / "t.csv")[1]["import.unused_time"].message


@pytest.mark.parametrize(
    ("names", "scale", "meant"),
    [
        (("start", "end"), 1000, "milliseconds: divide them by 1000"),
        (("from", "to"), 1000, "milliseconds: divide them by 1000"),
        (("begin", "stop"), RATE_HZ, "samples: divide them by the sample rate"),
    ],
)
def test_times_that_are_no_seconds_are_refused_by_the_names_that_the_file_has(
    folder: Path, names: tuple[str, str], scale: int, meant: str
):
    source = folder / "t.csv"
    header = f"file,{names[0]},{names[1]},text\n"
    source.write_text(f"{header}a.wav,{scale // 2},{scale},one\nb.wav,{scale},{2 * scale},two\n")
    with pytest.raises(ManifestError, match=rf"columns '{names[0]}' and '{names[1]}' are not in seconds.*{meant}"):
        read(source)
    source.write_text(f"{header}a.wav,{scale // 2},{scale},one\nb.wav,0.5,1,two\n")
    clips, _ = read(source)
    (finding, *_) = check_clips(clips, source="t.csv", place=source)
    assert "Times are in seconds" in finding.message
    assert "start_s" not in finding.message


# --- JSON of other tools -------------------------------------------------------------------------

RECORDS: dict[str, dict[str, Any]] = {
    "audiofolder": {"file_name": "a.wav", "transcription": "one"},
    "whisper_finetune": {"audio": {"path": "a.wav"}, "sentence": "one", "duration": 1.5},
    "swift": {
        "messages": [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "one"}],
        "audios": ["a.wav"],
    },
    "swift_parts": {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "language English<asr_text>one"}]},
        ]
    },
    "swift_oldest": {"query": "<audio>a.wav</audio>What is said?", "response": "one"},
    "swift_tagged": {
        "messages": [
            {"role": "user", "content": "Audio 1:<audio>a.wav</audio>"},
            {"role": "assistant", "content": "one"},
        ]
    },
    "swift_conversations": {
        "conversations": [{"from": "user", "value": "<audio>a.wav</audio>"}, {"from": "assistant", "value": "one"}]
    },
    "swift_older": {"query": "<audio>", "response": "one", "audios": ["a.wav"]},
    "no_id": {"path": "a.wav", "text": "one"},
    "other_names": {"id": "x", "path": "a.wav", "sentence": "one"},
    "own integers": {"id": "x", "path": "a.wav", "text": "one", "speaker": 103},
    "integers": {"audio_filepath": "a.wav", "text": "one", "speaker": 103},
    "wenet": {"key": "u1", "wav": "a.wav", "txt": "one"},
    "first key is an object": {"meta": {"x": 1}, "path": "a.wav", "text": "one"},
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("form", ["lines", "list", "indented list", "one indented", "data", "indented data"])
def test_json_of_other_tools(folder: Path, name: str, form: str):
    source = folder / "m.json"
    record = RECORDS[name]
    whole = {"version": "1.0", "data": [record]} if form == "data" else {"data": [record]} if "data" in form else None
    value = whole or ([record] if "list" in form else record)
    source.write_text(json.dumps(value, indent=1 if "indented" in form else None))
    clips, _ = read(source)
    assert [(clip.text, clip.path) for clip in clips] == [("one", folder / "a.wav")]
    assert clips[0].speaker == ("103" if "integers" in name else None)
    assert clips[0].language == ("English" if name == "swift_parts" else None)
    assert clips[0].duration_s == (1.5 if name == "whisper_finetune" else 2.0)


@pytest.mark.parametrize(
    ("start", "end"), [("start_time", "end_time"), ("start", "end"), ("begin", "stop"), ("offset", "duration")]
)
@pytest.mark.parametrize("key", ["audio", "wav", "audios"])
def test_an_audio_that_is_an_object_gives_the_file_and_the_span(folder: Path, start: str, end: str, key: str):
    source = folder / "m.jsonl"
    last = 0.25 if end == "duration" else 0.75
    audio = {"path": "a.wav", "sampling_rate": RATE_HZ, start: 0.5, end: last, "bytes": None}
    record = {"sentence": "one", **({} if end == "duration" else {"duration": 0.25})}
    if key == "audios":
        record |= {"messages": [{"role": "assistant", "content": "one"}], "audios": [audio]}
    else:
        record[key] = audio
    source.write_text(json.dumps(record))
    (clip,), said = read(source)
    assert (clip.start_s, clip.duration_s, clip.text, clip.path.name) == (0.5, 0.25, "one", "a.wav")
    assert clip.sample_rate_hz == RATE_HZ
    assert not [check for check in said if "time" in check]
    assert read(source, format="whisper_finetune")[0] == [clip]


def test_the_span_inside_an_audio_counts_more_than_one_beside_it_and_an_unknown_time_is_said(folder: Path):
    source = folder / "m.jsonl"
    source.write_text(json.dumps({"audio": {"path": "a.wav", "start": 0.5, "end": 0.75}, "start": 0.0, "text": "one"}))
    (clip,), said = read(source)
    assert (clip.start_s, clip.duration_s) == (0.5, 0.25)
    assert "'start'" in said["import.unused_time"].message
    source.write_text(json.dumps({"audio": {"path": "a.wav", "begin_ms": 500}, "text": "one"}))
    assert "'begin_ms'" in read(source)[1]["import.unused_time"].message


def test_words_with_times_stay_and_others_are_an_extra_column(folder: Path):
    timed = [{"text": "one", "start_s": 0.1, "end_s": 0.4}]
    source = folder / "m.jsonl"
    for words, kept in ((timed, 1), ("one", 0)):
        source.write_text(json.dumps({"id": "x", "path": "a.wav", "text": "1", "duration": 1.0, "words": words}))
        (clip,) = read(source)[0]
        assert len(clip.words) == kept
        assert ("source_words" in clip.extra) == (not kept)


def test_our_own_manifest_takes_the_options_of_json(folder: Path):
    source = folder / "m.jsonl"
    source.write_bytes(
        json.dumps({"id": "x", "path": "a.wav", "text": "1", "raw": "été"}, ensure_ascii=False).encode("cp1252")
    )
    (clip,) = read_source(str(source), options={"text_column": "raw", "encoding": "cp1252"})
    assert (clip.id, clip.text, clip.extra) == ("x", "été", {"source_text": "1"})


def test_numbers_are_names_and_texts_in_the_files_of_other_tools(folder: Path):
    source = folder / "m.jsonl"
    for record in ({"id": 5, "path": "a.wav", "text": 42, "label": 7}, {"id": 5, "wav": "a.wav", "sentence": 42}):
        source.write_text(json.dumps(record))
        (clip,) = read(source)[0]
        assert (clip.id, clip.text, clip.label) == ("5", "42", ("7",) if "label" in record else ())
    source.write_text(json.dumps({"id": "5", "wav": "a.wav", "text": True}))
    with pytest.raises(ManifestError, match="'text' has the wrong type"):
        read(source)


def test_an_object_of_objects_and_named_columns(folder: Path):
    source = folder / "m.json"
    source.write_text(json.dumps({"u1": {"where": "{data_root}/a.wav", "said": "one"}}, indent=1))
    clips, _ = read(source, audio_column="where", text_column="said")
    assert [(clip.id, clip.text) for clip in clips] == [("u1", "one")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "nested deeper"),
        ('[{"path": "a.wav", "x": ' + "[" * 70 + "]" * 70 + "}]", "nested"),
        ('{"path": "a.wav", "x": ' + "[" * 70 + "]" * 70 + "}", "nested too deeply"),
        ("[1, {}]", "entry 1: the entry is not an object"),
        ('[{"text": "x"}]', "'path' is missing"),
        ('{\n"clips": 3\n}', "no list of clips"),
        ('[{"path": "a.wav", "text": "\\ud800"}]', "surrogate"),
        ('{"audio": {"bytes": "x", "path": null}}', "audio names no file"),
        (
            '{"messages": [{"role": "user", "content": "hi"}], "audios": ["a.wav", "b.wav"]}',
            "found 2 audios and 0 answers",
        ),
        ('{"messages": [3, {"role": 4, "content": 5}], "audios": {}}', "found 0 audios"),
        ('[{"path": "a.wav"}', "damaged"),
    ],
)
def test_hostile_json_is_refused_in_plain_words(folder: Path, content: str, said: str):
    (folder / "m.json").write_text(content)
    with pytest.raises(ManifestError, match=said):
        read(folder / "m.json")


def test_audiofolder(tmp_path: Path):
    for part in ("train", "test"):
        tone(tmp_path / part / "a.wav")
        (tmp_path / part / "metadata.csv").write_text(f"file_name,transcription\na.wav,{part}\n")
    tone(tmp_path / "train" / "unnamed.wav")
    (tmp_path / "train" / "memo.m4a").touch()
    assert sniff(tmp_path) == sniff(tmp_path / "train") == "audiofolder"
    clips, said = read(tmp_path)
    assert [(clip.id, clip.text) for clip in clips] == [("a", "test"), ("train/a", "train")]
    assert "unnamed.wav" in said["import.unnamed"].message
    assert "memo.m4a" in said["audio.unreadable_kind"].message
    assert texts(read(tmp_path, split="train")[0]) == ["train"]
    with pytest.raises(ManifestError, match="has no table of its audio"):
        read(tmp_path, format="audiofolder", split="dev")


def test_metadata_that_names_no_audio_leaves_a_folder_what_it_is(tmp_path: Path):
    tone(tmp_path / "one" / "a.wav")
    for name, content in (("metadata.csv", "author;year\nann;1999\n"), ("metadata.json", '{"author": "ann"}')):
        (tmp_path / name).write_text(content)
        assert sniff(tmp_path) == "folder"
        (tmp_path / name).unlink()


# --- folders -------------------------------------------------------------------------------------


def test_names_like_fsdd_with_transcripts_are_read_as_transcripts(tmp_path: Path):
    for name in ("0_ann_1", "1_ann_2"):
        tone(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").write_text("open the door")
    clips, said = read(tmp_path)
    assert texts(clips) == ["open the door"] * 2
    assert clips[0].language is None
    assert not said
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert "fsdd:" in read(tmp_path)[1]["import.fsdd"].message


def test_few_texts_do_not_drop_the_classes(tmp_path: Path):
    for name in ("one/a", "one/b", "two/c"):
        tone(tmp_path / f"{name}.wav")
    (tmp_path / "one" / "a.txt").write_text("a note")
    clips, said = read(tmp_path)
    assert [clip.label for clip in clips] == [("one",), ("one",), ("two",)]
    assert "1 of 3 audio files" in said["import.texts_unread"].message
    (tmp_path / "one" / "b.txt").write_text("another")
    clips, said = read(tmp_path)
    assert texts(clips) == ["a note", "another", None]
    assert "two/c.wav" in said["import.texts_missing"].message
    clips, said = read(tmp_path, contents="classes")
    assert {clip.label for clip in clips} == {("one",), ("two",)}
    with pytest.raises(ManifestError, match="contents"):
        read(tmp_path, contents="both")


def test_folders_of_splits_and_of_audio_are_no_classes(tmp_path: Path):
    for name in ("train/a/h", "train/b/h", "test/a/h"):
        tone(tmp_path / "one" / f"{name}.wav")
    clips, _ = read(tmp_path / "one")
    assert [(clip.label, clip.extra["split"]) for clip in clips] == [
        (("a",), "test"),
        (("a",), "train"),
        (("b",), "train"),
    ]
    assert read(tmp_path / "one", contents="classes")[0] == clips
    assert [clip.speaker for clip in read(tmp_path / "one", speaker="folder")[0]] == ["a", "a", "b"]
    for name in ("train/h", "Test/h"):
        tone(tmp_path / "two" / f"{name}.wav")
    clips, said = read(tmp_path / "two")
    assert [(clip.label, clip.extra) for clip in clips] == [((), {"split": "Test"}), ((), {"split": "train"})]
    assert "--contents classes" in said["import.no_class"].message
    clips, _ = read(tmp_path / "two", contents="classes")
    assert [clip.label for clip in clips] == [("Test",), ("train",)]
    for name in ("a/h", "b/h", "data/h"):
        tone(tmp_path / "three" / f"{name}.wav")
    clips, said = read(tmp_path / "three")
    assert [clip.label for clip in clips] == [("a",), ("b",), ()]
    assert "the folders data of" in said["import.no_class"].message


def test_one_folder_is_a_class_only_where_the_user_says_so(tmp_path: Path):
    for name in ("bark/1", "bark/2"):
        tone(tmp_path / f"{name}.wav")
    clips, said = read(tmp_path)
    assert [clip.label for clip in clips] == [(), ()]
    assert (said["import.no_class"].severity, "bark" in said["import.no_class"].message) == ("warning", True)
    assert [clip.label for clip in read(tmp_path, contents="classes")[0]] == [("bark",), ("bark",)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta/all.csv", "name,fold\na-1.wav,1\nb-1.wav,2\n"),
        ("said.txt", "a-1 one two\nb-1 three\n"),
        ("said.json", '{"a-1": "one"}'),
        ("texts/a-1.txt", "one"),
    ],
)
def test_a_file_of_text_that_names_the_audio_is_named_and_no_classes_are_made(tmp_path: Path, name: str, content: str):
    for clip in ("a/a-1", "b/b-1"):
        tone(tmp_path / f"{clip}.wav")
    (tmp_path / "README.txt").write_text("Recordings of a and b.\nMade by ann.\n")
    os.mkfifo(tmp_path / "pipe.csv")
    clips, said = read(tmp_path)
    assert [clip.label for clip in clips] == [("a",), ("b",)]
    assert "README.txt" in said["import.unread"].message
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    clips, said = read(tmp_path)
    assert [clip.label for clip in clips] == [(), ()]
    assert (said["import.texts_unread"].severity, name in said["import.texts_unread"].message) == ("warning", True)
    assert [clip.label for clip in read(tmp_path, contents="classes")[0]] == [("a",), ("b",)]


def test_recordings_that_cannot_be_read_are_named(tmp_path: Path):
    tone(tmp_path / "a.wav")
    for name in ("memo.m4a", "web.WEBM"):
        (tmp_path / name).touch()
    (tmp_path / ".hidden.m4a").touch()
    message = read(tmp_path)[1]["audio.unreadable_kind"].message
    assert "2 recordings are left out" in message
    assert "memo.m4a, web.WEBM" in message
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ManifestError, match=r"no audio that can be read, and 2 recordings.*memo"):
        read(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_found_however_their_accents_are_written(tmp_path: Path, form: Any):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name = f"{unicodedata.normalize(form, 'dossier é')}/{unicodedata.normalize(other, 'ñandú')}"
    tone(tmp_path / f"{name}.wav")
    written = unicodedata.normalize(other, name)
    (tmp_path / "t.csv").write_text(f"path,text\n{written}.wav,one\n", "utf-8")
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "1", "path": f"{written}.wav".replace("/", "\\"), "text": "x"}))
    for source in ("t.csv", "m.jsonl"):
        (clip,) = read(tmp_path / source)[0]
        assert clip.path == tmp_path / f"{name}.wav"
        assert clip.duration_s == 1.0
    (tmp_path / f"{written}.txt").parent.mkdir(exist_ok=True)
    (tmp_path / name).with_name(unicodedata.normalize(form, "ñandú") + ".txt").write_text("said")
    assert texts(read(tmp_path, format="folder")[0]) == ["said"]


def test_backslashes_are_found_and_do_not_leave_the_folder(tmp_path: Path):
    tone(tmp_path / "in" / "wav" / "a.wav")
    tone(tmp_path / "out.wav")
    table = tmp_path / "in" / "t.csv"
    table.write_text("path\nwav\\a.wav\n")
    assert read(table)[0][0].path == tmp_path / "in" / "wav" / "a.wav"
    table.write_text("path\n..\\out.wav\n")
    with pytest.raises(ManifestError, match="leaves the root"):
        read(table)


# --- Kaldi and LibriSpeech -----------------------------------------------------------------------


@pytest.fixture
def kaldi(tmp_path: Path) -> Callable[..., Path]:
    def make(**files: str) -> Path:
        folder = tmp_path / "recipe" / "data" / "train"
        folder.mkdir(parents=True, exist_ok=True)
        tone(tmp_path / "recipe" / "audio" / "r1.wav", 3.0)
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_text(content, "utf-8")
        return folder

    return make


def test_kaldi_with_segments(kaldi: Callable[..., Path]):
    folder = kaldi(
        wav_scp="r1 flac -c -d -s audio/r1.wav |\n",
        segments="u1 r1 0.5 1.5\nu2 r1 1.5 -1\n",
        text="u1 one two\nu2\nu9 lost\n",
        utt2spk="u1 ann\nu2 ben\n",
    )
    assert sniff(folder) == "kaldi"
    clips, said = read(folder, language="en")
    assert [(clip.id, clip.text, clip.speaker, clip.start_s, clip.duration_s) for clip in clips] == [
        ("u1", "one two", "ann", 0.5, 1.0),
        ("u2", "", "ben", 1.5, 1.5),
    ]
    assert {clip.language for clip in clips} == {"en"}
    assert "u9" in said["import.unmatched"].message
    assert "not run" in said["import.commands"].message
    assert "recipe" in said["import.root"].message


def test_kaldi_channels_of_recordings(kaldi: Callable[..., Path]):
    folder = kaldi(
        wav_scp="r-A stereo.wav\nr-B stereo.wav\nm-B mono.wav\nc-A sph2pipe -f wav -p -c 2 stereo.wav |\n",
        segments="u1 r-A 0 0.5\nu2 r-B 0 0.5\nu3 m-B 0 0.5\nu4 c-A 0 0.5\n",
    )
    (folder / "reco2file_and_channel").write_text("r-A r A\nr-B r B\nm-B m B\nc-A r A\n")
    tone(folder / "mono.wav")
    soundfile.write(folder / "stereo.wav", np.full((RATE_HZ, 2), 0.1), RATE_HZ)
    clips, said = read(folder)
    assert [(clip.id, clip.channel) for clip in clips] == [("u1", 0), ("u2", 1), ("u3", None), ("u4", 1)]
    assert "m-B" in said["import.channels"].message
    (folder / "reco2file_and_channel").write_text("r-A r left\n")
    with pytest.raises(ManifestError, match="the channel cannot be used"):
        read(folder)


def test_kaldi_runs_no_command_and_reads_no_file_of_one_that_does_more_than_decode(kaldi: Callable[..., Path]):
    folder = kaldi(wav_scp="r1 sph2pipe -f wav -p -c 2 audio/r1.wav |\n", text="r1 one\n")
    assert read(folder)[0][0].channel == 1
    for command in (
        "rm -rf x.wav |",
        "sox audio/r1.wav -t wav - speed 1.1 |",
        "ffmpeg -i audio/r1.wav -ss 3 - |",
        "'|",
    ):
        folder = kaldi(wav_scp=f"r1 {command}\n", text="r1 one\n")
        with pytest.raises(ManifestError, match="is a command, which is not run"):
            read(folder)
    folder = kaldi(wav_scp="r1 audio/r1.wav\nr1 audio/r1.wav\n", segments="u1 r1 2 1\nu2 r2 0 1\n")
    with pytest.raises(ManifestError, match="3 problems"):
        read(folder)
    with pytest.raises(ManifestError, match=r"no wav\.scp"):
        read(folder.parent, format="kaldi")


@pytest.mark.parametrize("below", ["", "103", "103/1240"])
def test_librispeech(tmp_path: Path, below: str):
    chapter = tmp_path / "103" / "1240"
    tone(chapter / "103-1240-0000.flac")
    tone(chapter / "103-1240-0002.flac")
    (chapter / "103-1240.trans.txt").write_text("103-1240-0000 CHAPTER ONE\n103-1240-0001 LOST\n")
    assert sniff(tmp_path / below) == "librispeech"
    findings: list[Finding] = []
    (clip,) = importers.load(tmp_path / below, findings=findings)
    assert (clip.id, clip.text, clip.speaker) == ("103-1240-0000", "CHAPTER ONE", "103")
    assert ["103-1240-0002" in findings[0].message, "103-1240-0001" in findings[1].message] == [True, True]
    with pytest.raises(ManifestError, match="cannot be read as librispeech"):
        importers.load(tmp_path / "nothing", format="librispeech")


@pytest.mark.parametrize("below", ["", "train"])
def test_mls(tmp_path: Path, below: str):
    for split in ("train", "dev"):
        for number in range(2):
            tone(tmp_path / split / "audio" / "12" / "34" / f"12_34_{split}{number}.flac")
        (tmp_path / split / "transcripts.txt").write_text(f"12_34_{split}0\tein wort\n12_34_lost\tweg\n")
    assert sniff(tmp_path / below) == "mls"
    findings: list[Finding] = []
    clips = importers.load(tmp_path / below, findings=findings, language="de")
    last = clips[-1]
    assert len(clips) == (1 if below else 2)
    assert (last.id, last.text, last.speaker, last.language) == ("12_34_train0", "ein wort", "12", "de")
    assert last.extra == ({} if below else {"split": "train"})
    assert ["12_34_train1" in findings[0].message, "12_34_lost" in findings[1].message] == [True, True]
    if not below:
        assert [clip.id for clip in importers.load(tmp_path, split="dev")] == ["12_34_dev0"]
    with pytest.raises(ManifestError, match="cannot be read as mls"):
        importers.load(tmp_path / "nothing", format="mls")


def test_a_named_format_counts_before_what_the_files_prove(kaldi: Callable[..., Path], tmp_path: Path):
    folder = kaldi(wav_scp="r1 ../../audio/r1.wav\n", text="r1 one\n")
    tone(folder / "x.wav")
    assert [clip.id for clip in read(folder, format="folder")[0]] == ["x"]


# --- what an import says at its end --------------------------------------------------------------


def test_missing_and_broken_audio_is_counted(tmp_path: Path):
    tone(tmp_path / "wav" / "a.wav")
    tone(tmp_path / "audio" / "b.wav")
    (tmp_path / "wav" / "c.wav").write_text("no audio")
    table = tmp_path / "wav" / "t.csv"
    table.write_text("path,text,duration\na.wav,one,0.5\nb.wav,two,1\nc.wav,three,1\na.wav,four,9\n")
    clips, _ = read(table)
    said = {finding.check: finding.message for finding in check_clips(clips, source="t.csv", place=table)}
    assert "1 of 4 clips do not exist" in said["audio.missing"]
    assert "stay in the manifest" in said["audio.missing"]
    assert f"--root {tmp_path / 'audio'}" in said["audio.missing"]
    assert "audio.not_audio" in said
    assert "shorter than the span" in said["audio.span"]
    assert "0 speakers" in said["import.no_speakers"]
    assert "import.no_texts" not in said
    table.write_text("path\nb.wav\n")
    with pytest.raises(ManifestError, match=r"no clip of t\.csv can be used"):
        check_clips(read(table)[0], source="t.csv", place=table)
    table.write_text("path\na.wav\n")
    lacking = {finding.check: finding for finding in check_clips(read(table)[0], source="t.csv", place=table)}
    assert lacking["import.no_texts"].severity == "warning"


def test_what_a_reader_says_is_a_finding_of_the_run(tmp_path: Path):
    for name in ("a", "b"):
        tone(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").write_text("one")
    (tmp_path / "memo.m4a").touch()
    corpus = load_corpus(
        {"eval": f"folder:{tmp_path}"},
        root=None,
        allow_outside_root=False,
        min_duration_s=0.0,
        max_duration_s=None,
        check="header",
        max_bad_fraction=0.0,
        truncated="use",
        eval_speakers=(),
        eval_fraction=0.1,
        leaks="report",
        limit=None,
        seed=0,
    )
    assert len(corpus.splits["eval"]) == 2
    assert "audio.unreadable_kind" in {finding.check for finding in corpus.findings}


def test_right_to_left_text_comes_back_as_it_was(folder: Path):
    spoken = "\u202bשלום, עולם\u202c 123"
    (folder / "t.csv").write_text(f'path;text\na.wav;"{spoken}"\n', "utf-8")
    clips, _ = read(folder / "t.csv")
    write_manifest(folder / "own.jsonl", clips)
    assert texts(read(folder / "own.jsonl")[0]) == [spoken]


def test_a_quote_that_nothing_closes_takes_no_row_with_it(tmp_path: Path):
    table = tmp_path / "u.csv"
    table.write_text('path,text\na.wav,"hello, ""x""\nb.wav,two\n', "utf-8")
    with pytest.raises(ManifestError, match="the row cannot be read"):
        read_source(f"csv:{table}")


def test_whole_numbers_may_be_written_as_pandas_does(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"")
    table = tmp_path / "t.csv"
    table.write_text("path,text,sample_rate,channel\na.wav,one,16000.0,0.0\n", "utf-8")
    [clip] = read_source(f"csv:{table}")
    assert (clip.sample_rate_hz, clip.channel) == (16_000, 0)


@pytest.mark.parametrize("path", [".", "/", "./"])
def test_a_folder_in_place_of_audio_is_refused(tmp_path, path):
    (tmp_path / "m.json").write_text(json.dumps([{"audio": path, "text": "one"}]), "utf-8")
    for allow in (False, True):
        with pytest.raises(ManifestError, match="the path is that of a folder"):
            importers.load(tmp_path / "m.json", format="json", allow_outside_root=allow)


def test_a_path_of_many_thousand_parts_is_refused_at_once(tmp_path):
    (tmp_path / "m.csv").write_text("path,text\na.wav,one\n" + "\\N" * 30_000 + ",two\n", "utf-8")
    began = time.monotonic()
    with pytest.raises(ManifestError, match="the path is too long"):
        importers.load(tmp_path / "m.csv", format="csv")
    assert time.monotonic() - began < 2  # looking for each part took minutes


def test_an_entry_of_thousands_of_columns_has_a_message_that_can_be_read(tmp_path):
    entry = {f"k{number}": number for number in range(5000)}
    (tmp_path / "m.json").write_text(json.dumps([entry]), "utf-8")
    with pytest.raises(ManifestError, match=r"the column 'path' is missing.* \[\.\.\.\] .*'k4999'") as caught:
        importers.load(tmp_path / "m.json", format="json")
    assert len(str(caught.value)) < 1500


def test_clips_of_one_file_are_numbered_in_one_pass(tmp_path):
    """Looking for the next free number from the first would take an hour here."""
    (tmp_path / "a.wav").write_bytes(b"")
    rows = "".join(
        json.dumps({"audio": "a.wav", "text": str(number), "duration": 1.0}) + "\n" for number in range(20_000)
    )
    named = json.dumps({"audio": "a.wav", "id": "a-3", "text": "x", "duration": 1.0}) + "\n"
    (tmp_path / "m.jsonl").write_text(named + rows, "utf-8")
    clips = importers.load(tmp_path / "m.jsonl", format="qwen")
    assert [clip.id for clip in clips[:4]] == ["a-3", "a", "a-2", "a-4"]
    assert len({clip.id for clip in clips}) == 20_001


def test_a_header_of_thousands_of_columns_is_checked_in_one_pass(tmp_path):
    names = [f"c{number}" for number in range(50_000)]
    (tmp_path / "m.csv").write_text(",".join(["path", *names, "c7"]) + "\n", "utf-8")
    began = time.monotonic()
    with pytest.raises(ManifestError, match=r"a column stands twice: found \['c7'\]"):
        importers.load(tmp_path / "m.csv", format="csv")
    assert time.monotonic() - began < 5  # counting each name took minutes
