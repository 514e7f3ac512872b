"""Each importer on a small source of its kind, as it is found in the wild, and on broken ones."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune.data.importers import DIGITS, load, sniff
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.errors import ConfigError, ManifestError, MissingExtraError

RATE_HZ = 8000


def tone(path: Path, seconds: float = 1.0, frequency_hz: float = 220.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time_S = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * frequency_hz * time_S), RATE_HZ)
    return path


def jsonl(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


# --- JSON Lines ----------------------------------------------------------------------------------


def test_own_manifest(tmp_path: Path) -> None:
    manifest = jsonl(tmp_path / "m.jsonl", {"id": "a", "path": "a.wav", "duration_s": 1, "text": "one"})
    assert sniff(manifest) == "jsonl"
    assert load(manifest) == read_manifest(manifest)


def test_nemo(tmp_path: Path) -> None:
    tone(tmp_path / "wav" / "a.wav", 3.0)
    manifest = jsonl(
        tmp_path / "train.json",
        {"audio_filepath": "wav/a.wav", "duration": 1.5, "text": "one", "offset": 0.5, "lang": "en", "speaker": "s"},
        {"audio_filepath": str(tmp_path / "wav/a.wav"), "text": "two", "offset": 2.0, "pnc": "no"},
        {"audio_filepath": "wav/a.wav", "duration": 3.0, "text": "three"},
        {"audio_filepath": "wav/a.wav", "duration": 3.0, "text": "three again"},
    )
    assert sniff(manifest) == "nemo"
    clips = load(manifest)
    assert [clip.id for clip in clips] == ["wav/a@0.500", "wav/a@2.000", "wav/a", "wav/a-2"]
    assert [(clip.start_s, clip.duration_s) for clip in clips] == [(0.5, 1.5), (2.0, 1.0), (0.0, 3.0), (0.0, 3.0)]
    assert (clips[0].text, clips[0].language, clips[0].speaker) == ("one", "en", "s")
    assert clips[1].extra == {"pnc": "no"}
    write_manifest(tmp_path / "own.jsonl", clips)
    assert load(tmp_path / "own.jsonl") == clips


def test_relative_paths_of_nemo_stay_in_its_folder_and_absolute_ones_are_read(tmp_path: Path) -> None:
    outside = tone(tmp_path / "outside.wav")
    (tmp_path / "in").mkdir()
    manifest = jsonl(
        tmp_path / "in" / "m.json", {"audio_filepath": "../outside.wav", "text": "x"}, {"audio_filepath": 5}
    )
    with pytest.raises(ManifestError, match="2 problems") as caught:
        load(manifest)
    assert f"{manifest}:1: the path leaves the root" in str(caught.value)
    jsonl(manifest, {"audio_filepath": "../outside.wav", "text": "x"})
    assert load(manifest, allow_outside_root=True)[0].path == outside
    jsonl(manifest, {"audio_filepath": str(outside), "text": "x"})
    assert [(clip.id, clip.path) for clip in load(manifest)] == [("outside", outside)]
    with pytest.raises(ManifestError, match="leaves the root"):
        load(manifest, root=tmp_path / "in")


def test_a_kaldi_folder_that_the_user_names_has_absolute_paths(tmp_path: Path) -> None:
    audio = tone(tmp_path / "audio" / "a.wav")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wav.scp").write_text(f"a {audio}\n", "utf-8")
    assert [clip.path for clip in load(tmp_path / "data")] == [audio]


def test_qwen(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    manifest = jsonl(
        tmp_path / "q.jsonl",
        {"audio": "a.wav", "text": "language Hebrew<asr_text>שלום <asr_text> עולם"},
        {"audio": "a.wav", "text": "language None<asr_text>"},
        {"audio": "a.wav", "text": "language is a word"},
    )
    assert sniff(manifest) == "qwen"
    clips = load(manifest)
    assert [(clip.language, clip.text) for clip in clips] == [
        ("Hebrew", "שלום <asr_text> עולם"),
        (None, ""),
        (None, "language is a word"),
    ]


# --- tables --------------------------------------------------------------------------------------


def test_csv_with_synonyms_quotes_and_byte_order_mark(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 2.0)
    table = tmp_path / "t.csv"
    table.write_bytes(
        b"\xef\xbb\xbf"
        + b'Audio,Transcription,speaker_id,Lang,duration,note\r\na.wav,"one, ""two""\nthree",ann,he,1.25,hi\r\n'
        b"a.wav,four,,,,\r\n"
    )
    assert sniff(table) == "csv"
    one, two = load(table)
    assert one.text == 'one, "two"\nthree'
    assert (one.speaker, one.language, one.duration_s, one.extra) == ("ann", "he", 1.25, {"note": "hi"})
    assert (two.id, two.speaker, two.duration_s) == ("a-2", None, 2.0)


def test_csv_problems_come_together(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,text,duration\na.wav,one,long\na.wav,two\n../passwd,three,1\na.wav,x,nan\n")
    with pytest.raises(ManifestError, match="4 problems") as caught:
        load(table)
    for said in (
        ":2: the column 'duration_s' is not a number",
        ":3: the row does not fit",
        ":4: the path leaves",
        ":5: ",
    ):
        assert f"{table}{said}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,text\nx,y\n", "no column with the audio's path"),
        ("path,text,text\nx,y,z\n", "stands twice"),
        ("", "has no clips"),
        ("path,text\n", "has no clips"),
        ("path\n" + "x" * 200_000 + "\n", "cannot be read"),
    ],
)
def test_csv_that_is_no_table_of_audio(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ManifestError, match=said):
        load(tmp_path / "t.csv")


def common_voice(tmp_path: Path) -> Path:
    folder = tmp_path / "cv" / "en"
    for name in ("a", "b"):
        tone(folder / "clips" / f"{name}.wav", 2.0)
    (folder / "train.tsv").write_text(
        "client_id\tpath\tsentence\tup_votes\tlocale\ns1\ta.wav\tHe said \"go\t2\ten\ns2\tb.wav\tit's fine\t0\ten\n",
        "utf-8",
    )
    (folder / "test.tsv").write_text("client_id\tpath\tsentence\ns3\tb.wav\tbye\n", "utf-8")
    (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\na.wav\t1999\n", "utf-8")
    return folder


def test_common_voice(tmp_path: Path) -> None:
    folder = common_voice(tmp_path)
    assert sniff(folder) == sniff(folder / "train.tsv") == "common_voice"
    one, two = load(folder)
    # A bare quotation mark must not swallow the lines after it.
    assert (one.text, one.speaker, one.language, one.extra) == ('He said "go', "s1", "en", {"up_votes": "2"})
    assert (one.duration_s, two.duration_s) == (1.999, 2.0)
    assert one.path == folder / "clips" / "a.wav"
    assert load(folder / "train.tsv") == [one, two]
    assert [clip.speaker for clip in load(folder, split="test")] == ["s3"]
    with pytest.raises(ManifestError, match=r"no table 'dev': found clip_durations, test, train"):
        load(folder, split="dev")


# --- folders -------------------------------------------------------------------------------------


def test_folder_with_transcripts(tmp_path: Path) -> None:
    tone(tmp_path / "s1" / "a.wav")
    tone(tmp_path / "s1" / "b.flac")
    tone(tmp_path / "s2" / "deep" / "a.wav")
    tone(tmp_path / "s2" / "._a.wav")
    (tmp_path / "s1" / "a.txt").write_bytes(b"\xef\xbb\xbf" + "שלום\n".encode())
    (tmp_path / "s2" / "deep" / "a.txt").write_text("two\nlines\n")
    (tmp_path / "readme.md").touch()
    assert sniff(tmp_path) == "folder"
    clips = load(tmp_path, language="he", speaker="folder")
    assert [(clip.id, clip.text, clip.speaker) for clip in clips] == [
        ("s1/a", "שלום", "s1"),
        ("s1/b", None, "s1"),
        ("s2/deep/a", "two\nlines", "s2"),
    ]
    assert all(clip.language == "he" and not clip.label for clip in clips)


def test_folder_of_classes(tmp_path: Path) -> None:
    for name in ("flam/1.wav", "flam/take 2/1.wav", "roll/1.wav"):
        tone(tmp_path / name)
    clips = load(tmp_path)
    assert [(clip.id, clip.label, clip.text) for clip in clips] == [
        ("flam/1", ("flam",), None),
        ("flam/take 2/1", ("flam",), None),
        ("roll/1", ("roll",), None),
    ]


def test_two_files_that_differ_by_their_ending_have_two_ids(tmp_path: Path) -> None:
    tone(tmp_path / "x" / "a.flac")
    tone(tmp_path / "x" / "a.wav")
    assert [clip.id for clip in load(tmp_path)] == ["x/a", "x/a-2"]


def test_folder_refuses_links_out_bad_text_and_no_audio(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ManifestError, match="found no audio"):
        load(root)
    (root / "link.wav").symlink_to(tone(tmp_path / "out.wav"))
    tone(root / "b.wav")
    (root / "b.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(ManifestError, match="2 problems") as caught:
        load(root)
    assert "leaves the root" in str(caught.value)
    assert "'b.txt' cannot be read" in str(caught.value)


def test_fsdd_layout(tmp_path: Path) -> None:
    for name in ("0_ann_0", "7_ann_1", "7_bob_0"):
        tone(tmp_path / "recordings" / f"{name}.wav")
    assert sniff(tmp_path) == "folder"  # names prove nothing
    clips = load(tmp_path, format="fsdd")
    assert [(clip.id, clip.text, clip.speaker) for clip in clips] == [
        ("0_ann_0", "zero", "ann"),
        ("7_ann_1", "seven", "ann"),
        ("7_bob_0", "seven", "bob"),
    ]
    assert [clip.id for clip in load(tmp_path, format="fsdd", speakers=["bob"])] == ["7_bob_0"]
    with pytest.raises(ManifestError, match=r"no speaker eve; .* ann, bob"):
        load(tmp_path, format="fsdd", speakers=["eve"])
    with pytest.raises(ManifestError, match="no file of that form"):
        load(tmp_path.parent / "nowhere", format="fsdd")


@pytest.mark.realdata
def test_fsdd_itself(fsdd: Path) -> None:
    clips = load(fsdd, format="fsdd")
    assert len(clips) == 2000
    assert {clip.text for clip in clips} == set(DIGITS)
    speakers = {clip.speaker for clip in clips}
    assert len(speakers) == 4
    assert all(0.1 < clip.duration_s < 3 and clip.sample_rate_hz == 8000 for clip in clips)


# --- datasets ------------------------------------------------------------------------------------


@pytest.fixture
def hub_rows(tmp_path: Path) -> dict[str, list[object]]:
    pytest.importorskip("datasets")
    contents = [tone(tmp_path / "src" / f"{i}.wav", 1.0 + i, 200.0 + i).read_bytes() for i in range(3)]
    return {
        "audio": [{"bytes": content, "path": f"../../{i}.wav"} for i, content in enumerate(contents)],
        "sentence": ["one", "שתיים", "three"],
        "client_id": ["a", "b", "b"],
        "gender": ["f", "m", "m"],
    }


def audio_dataset(rows: dict[str, list[object]]):
    datasets = importlib.import_module("datasets")
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))


@pytest.mark.parametrize("kind", ["disk", "parquet", "streaming", "splits"])
def test_local_datasets(tmp_path: Path, hub_rows, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = importlib.import_module("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    data = audio_dataset(hub_rows)
    source = tmp_path / "data"
    options: dict[str, object] = {}
    if kind == "disk":
        data.save_to_disk(source)
    elif kind == "splits":
        datasets.DatasetDict({"dev": data}).save_to_disk(source)
        options = {"split": "dev"}
        with pytest.raises(ManifestError, match=r"no split 'train': found dev"):
            load(source, cache_dir=tmp_path / "cache")
    else:
        source.mkdir()
        data.to_parquet(source / "train-00000.parquet")
        options = {"streaming": kind == "streaming"}
    assert sniff(source) == "hub"
    clips = load(source, cache_dir=tmp_path / "cache", limit=2, **options)
    assert [(clip.text, clip.speaker, clip.duration_s) for clip in clips] == [("one", "a", 1.0), ("שתיים", "b", 2.0)]
    assert clips[0].extra == {"gender": "f"}
    assert all(clip.path.is_relative_to(tmp_path / "cache") for clip in clips)
    assert clips[1].path.read_bytes() == hub_rows["audio"][1]["bytes"]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.wav")}
    assert len(written) == 2
    assert load(source, cache_dir=tmp_path / "cache", limit=2, **options) == clips
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.wav")} == written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b'{"_data_files": ["x"]}'),
        ("dataset_info.json", b'{"features": {"a": "b"}}'),
        ("state.json", b"[]"),
    ],
)
def test_a_damaged_data_set_is_an_error_of_the_source(tmp_path: Path, hub_rows, name: str, content: bytes) -> None:
    audio_dataset(hub_rows).save_to_disk(tmp_path / "data")
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be loaded"):
        load(tmp_path / "data", cache_dir=tmp_path / "cache")


def test_a_pipe_in_a_data_set_is_refused_and_not_waited_for(tmp_path: Path, hub_rows) -> None:
    audio_dataset(hub_rows).save_to_disk(tmp_path / "data")
    [path] = (tmp_path / "data").glob("*.arrow")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ManifestError, match="neither a file nor a folder"):
        load(tmp_path / "data", cache_dir=tmp_path / "cache")


def test_offsets_beyond_the_data_are_an_error_and_not_a_crash(tmp_path: Path, hub_rows) -> None:
    audio_dataset(hub_rows).save_to_disk(tmp_path / "data")
    [path] = (tmp_path / "data").glob("*.arrow")
    texts = importlib.import_module("datasets").load_from_disk(str(tmp_path / "data"))["sentence"]
    ends = np.cumsum([0, *(len(text.encode()) for text in texts)]).astype(np.int32)
    content = path.read_bytes()
    assert ends.tobytes() in content
    path.write_bytes(content.replace(ends.tobytes(), np.append(ends[:-1], 2**31 - 1).astype(np.int32).tobytes()))
    with pytest.raises(ManifestError, match="cannot be loaded"):
        load(tmp_path / "data", cache_dir=tmp_path / "cache")


def test_a_damaged_parquet_file_is_an_error_of_the_source(
    tmp_path: Path, hub_rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("datasets").config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    path = tmp_path / "a.parquet"
    audio_dataset(hub_rows).to_parquet(path)
    content = path.read_bytes()
    for streaming in (False, True):
        path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
        with pytest.raises(ManifestError, match="cannot be loaded"):
            load(path, cache_dir=tmp_path / "cache", streaming=streaming)


@pytest.mark.parametrize("form", ["struct", "text"])
def test_rows_of_a_data_set_may_not_name_files_elsewhere(tmp_path: Path, hub_rows, form: str) -> None:
    datasets = importlib.import_module("datasets")
    outside = tmp_path / "src" / "0.wav"
    hub_rows["audio"] = [{"bytes": None, "path": str(outside)} if form == "struct" else str(outside)] * 3
    # Not typed as audio, so that `save_to_disk` leaves the path and does not embed the file.
    datasets.Dataset.from_dict(hub_rows).save_to_disk(tmp_path / "data")
    with pytest.raises(ManifestError, match=r"3 paths leave the root .* data\.allow_outside_root=true") as caught:
        load(tmp_path / "data", cache_dir=tmp_path / "cache")
    assert "data.root" not in str(caught.value)  # a data set of the hub has no other
    assert len(caught.value.listing) == 3
    clips = load(tmp_path / "data", cache_dir=tmp_path / "cache", allow_outside_root=True)
    assert [clip.path for clip in clips] == [outside] * 3


def test_rows_without_audio(tmp_path: Path, hub_rows) -> None:
    hub_rows["audio"][1] = {"bytes": b"", "path": None}
    importlib.import_module("datasets").Dataset.from_dict(hub_rows).save_to_disk(tmp_path / "data")
    with pytest.raises(ManifestError, match="the row has no audio"):
        load(tmp_path / "data", cache_dir=tmp_path / "cache")


def test_columns_can_be_named_and_are_checked(tmp_path: Path, hub_rows) -> None:
    audio_dataset(hub_rows).save_to_disk(tmp_path / "data")
    clips = load(tmp_path / "data", cache_dir=tmp_path / "cache", text_column="gender")
    assert [clip.text for clip in clips] == ["f", "m", "m"]
    with pytest.raises(ManifestError, match="no column 'words'"):
        load(tmp_path / "data", cache_dir=tmp_path / "cache", text_column="words")


def test_hub_without_network_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\n(Name or service not known)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert sniff("nobody/nothing") == "hub"
    with pytest.raises(ManifestError, match=r"'nobody/nothing' cannot be loaded.*without network") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_hub_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sonotune\[hub\]'"):
        load("owner/name", format="hub")


# --- load ----------------------------------------------------------------------------------------


def test_what_cannot_be_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").touch()
    for source, said in (
        (tmp_path / "gone.jsonl", "nothing there"),
        (tmp_path / "a.xyz", "'.xyz'"),
        ("a b", "nothing"),
    ):
        with pytest.raises(ManifestError, match=said):
            load(source)
    with pytest.raises(ConfigError, match="did you mean 'nemo'"):
        load(tmp_path / "a.xyz", format="nemoo")


def test_an_option_the_importer_lacks(tmp_path: Path) -> None:
    manifest = jsonl(tmp_path / "m.jsonl", {"id": "a", "path": "a.wav", "duration_s": 1})
    with pytest.raises(ManifestError, match="'splitt'"):
        load(manifest, splitt="x")
