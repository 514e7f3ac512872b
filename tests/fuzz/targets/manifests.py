"""Manifests and corpora of every format: JSON, tables, folders, Kaldi, hub data sets."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from harness import Files, Target, attempt
from mutations import Damage, damage_bytes, damage_folder, damage_json_file, damage_json_lines, damage_text

RATE_HZ: Final = 8_000
TEXTS: Final = ("one two", "שלוש ארבע", "e\u0301té 12:30", 'say "no"', "seven")


def _check(folder: Path) -> None:
    """As `data import`, `data stats`, `data split` and training read a source."""
    from sonotune.data import manifest, splits
    from sonotune.data.corpus import format_of, load_corpus, read_source
    from sonotune.data.import_checks import check_clips
    from sonotune.types import Finding

    source = str(next(iter(sorted(folder.glob("corpus*"))), folder / "corpus.jsonl"))
    attempt(format_of, source)
    findings: list[Finding] = []
    clips = attempt(read_source, source, allow_outside_root=True, findings=findings)
    if clips:
        attempt(check_clips, clips, source=source, place=Path(source))
        written = folder / "out.jsonl"
        attempt(manifest.write_manifest, written, clips)
        if written.is_file():
            back = attempt(manifest.read_manifest, written, allow_outside_root=True)
            assert back is not None, "a manifest that was written is refused"
            assert [clip.id for clip in back] == [clip.id for clip in clips]
            assert [clip.text for clip in back] == [clip.text for clip in clips]
            json.dumps(manifest.statistics(back), ensure_ascii=False, allow_nan=False).encode()
        attempt(splits.split_by_speaker, clips, fractions={"train": 0.5, "eval": 0.5}, seed=0)
    told = "text" if not clips or any(clip.text for clip in clips) else "label"
    attempt(load_corpus, {"train": source, "test": source}, seed=0, require=told, **_corpus_settings())


@functools.cache
def _corpus_settings() -> dict[str, Any]:
    """The settings of a run, some of them so that these small corpora get far."""
    from sonotune.config.load import load_run_config
    from sonotune.data.corpus import CORPUS_SETTINGS

    words = ("min_duration_s=0.01", "max_bad_fraction=0.5", "eval_fraction=0.4", "leaks=report", "limit=3")
    config = load_run_config(["model=whisper_nano", "data.train=x.jsonl", *(f"data.{word}" for word in words)]).config
    found: dict[str, Any] = config.data.model_dump(include=CORPUS_SETTINGS)
    return found


def wav(frames: int = 400) -> bytes:
    """A short ramp."""
    data = struct.pack(f"<{frames}h", *(index % 200 - 100 for index in range(frames)))
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(data),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        RATE_HZ,
        2 * RATE_HZ,
        2,
        16,
        b"data",
        len(data),
    )
    return head + data


def _audio(folder: str = "corpus") -> dict[str, bytes]:
    place = f"{folder}/" if folder else ""
    return {f"{place}a{index}.wav": wav(400 + 100 * index) for index in range(4)}


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _table(rows: Sequence[Sequence[str]], delimiter: str) -> bytes:
    return "".join(delimiter.join(row) + "\n" for row in rows).encode()


# --- JSON ----------------------------------------------------------------------------------------


def _ours() -> list[dict[str, Any]]:
    word = {"text": "one", "start_s": 0.0, "end_s": 0.02, "score": 0.5}
    return [
        {
            "id": "a0",
            "path": "a0.wav",
            "text": TEXTS[0],
            "speaker": "ann",
            "language": "en",
            "domain": "phone",
            "words": [word],
        },
        {
            "id": "a1",
            "path": "a1.wav",
            "text": TEXTS[1],
            "speaker": 7,
            "duration_s": 0.05,
            "sample_rate_hz": RATE_HZ,
            "label": "x",
        },
        {
            "id": "a2",
            "path": "a2.wav",
            "text": TEXTS[2],
            "start_s": 0.01,
            "channel": 0,
            "label": ["x", "y"],
            "more": {"a": [1]},
        },
    ]


def _json_seeds() -> list[Files]:
    nemo = [
        {"audio_filepath": f"a{i}.wav", "duration": 0.05, "text": TEXTS[i], "offset": 0.0, "speaker": f"s{i}"}
        for i in range(3)
    ]
    qwen = [{"audio": f"a{i}.wav", "text": f"language English<asr_text>{TEXTS[i]}"} for i in range(3)]
    swift = [
        {
            "messages": [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": TEXTS[i]}],
            "audios": [f"a{i}.wav"],
        }
        for i in range(2)
    ]
    chat = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "audio", "audio": f"a{i}.wav"}, {"type": "text", "text": "write"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": TEXTS[i]}]},
            ],
            "speaker": f"s{i}",
        }
        for i in range(2)
    ]
    hugging_face = [
        {"audio": {"path": f"a{i}.wav", "start": 0.0, "end": 0.04}, "sentence": TEXTS[i], "speaker_id": i}
        for i in range(2)
    ]
    older = [{"query": "<audio>", "response": TEXTS[i], "audios": [f"a{i}.wav"], "spk": f"s{i}"} for i in range(2)]
    spans = [
        {"path": f"a{i}.wav", "onset": 0.0, "offset": 0.03, "category": "dog", "speaker": f"s{i}"} for i in range(2)
    ]
    rows = [_ours(), nemo, qwen, swift, chat, hugging_face, older, spans]
    found: list[Files] = [{"corpus.jsonl": _lines(one), **_audio("")} for one in rows]
    for one in rows:
        found.append({"corpus.json": json.dumps(one, ensure_ascii=False).encode(), **_audio("")})
    keyed = {
        "a0": {"wav": "a0.wav", "wrd": TEXTS[0], "length": 0.05},
        "a1": {"wav": "{data_root}/a1.wav", "wrd": TEXTS[1]},
    }
    whole = [json.dumps(keyed, indent=1), json.dumps(keyed), json.dumps({"version": 1, "data": nemo})]
    return [*found, *({"corpus.json": text.encode(), **_audio("")} for text in whole)]


# --- tables --------------------------------------------------------------------------------------

_CELLS: Final = (
    *(
        ",",
        ";",
        "\t",
        "|",
        '"',
        '""',
        '","',
        "\n",
        "\r",
        "\n\n",
        "path",
        "audio",
        "file_name",
        "text",
        "sentence",
        "start",
    ),
    *(
        "end",
        "duration",
        "speaker",
        "id",
        "a0.wav",
        "1,5",
        "1.5",
        "nan",
        "inf",
        "-1",
        "1e400",
        "1e9",
        "0x10",
        "٣",
        "wavs/",
        "\0",
    ),
    *("sep=;\n", "#", "'", "\\", "\\N", "NULL", "x" * 140_000),
)


def _table_seeds() -> list[Files]:
    rows = [
        ["path", "text", "speaker", "duration"],
        *([f"a{i}.wav", TEXTS[i].replace('"', ""), f"s{i}", "0.05"] for i in range(4)),
    ]
    found: list[Files] = [
        {f"corpus{end}": _table(rows, mark), **_audio("")}
        for end, mark in ((".csv", ","), (".csv", ";"), (".tsv", "\t"), (".tsv", ","), (".csv", "|"))
    ]
    quoted = [
        ["file_name", "transcription", "start", "end", "speaker"],
        ["a0.wav", '"one, ""two"""', "0,01", '"0,04"', "ann"],
        ["a1.wav", '"1;2"', "0,01", "0,04", "bob"],
    ]
    spans = [
        ["Filename", "Begin Time", "End Time", "Sentence", "Speaker"],
        ["a0.wav", "0.0", "0.02", "x", "ann"],
        ["a0.wav", "0.02", "0.04", "y", "bob"],
    ]
    found += [{"corpus.csv": _table(quoted, ";"), **_audio("")}, {"corpus.csv": _table(spans, ","), **_audio("")}]
    found += [{"corpus.csv": b"a0|one|one\na1|two|two\n", "wavs/a0.wav": wav(), "wavs/a1.wav": wav()}]
    names = ["client_id", "path", "sentence", "up_votes", "locale"]
    voices = _table([names, ["c0", "a0.wav", TEXTS[0], "2", "en"], ["c1", "a1.wav", TEXTS[1], "2", "he"]], "\t")
    lengths = _table([["clip", "duration[ms]"], ["a0.wav", "50"], ["a1.wav", "62"]], "\t")
    clips = {f"corpus/clips/a{i}.wav": wav() for i in range(2)}
    found.append({"corpus/train.tsv": voices, "corpus/clip_durations.tsv": lengths, **clips})
    found.append({"corpus/metadata.csv": _table(rows, ","), **_audio()})
    return found


# --- folders -------------------------------------------------------------------------------------

_WORDS: Final = (
    *(
        " ",
        "\t",
        "\n",
        "|",
        " |",
        "cat a0.wav |",
        "sox a0.wav -t wav - |",
        "flac -c -d -s a0.flac |",
        "sph2pipe -f wav -c 3 a0.wav |",
    ),
    *(
        "sph2pipe -c",
        "'",
        '"',
        "-1",
        "nan",
        "inf",
        "1e400",
        "a0",
        "a0 ",
        "a0 rec 0 1\n",
        "../a0.wav",
        "/dev/zero",
        "-",
        "#",
        "\0",
    ),
    *("ffmpeg -i a0.wav -f wav - |", "|||", "a0.wav", "~/a0.wav", "\u00a0", "\u2028"),
)


def _kaldi_seeds() -> list[Files]:
    scp = b"rec0 a0.wav\nrec1 cat a1.wav |\nrec2 sph2pipe -f wav -p -c 1 a2.wav |\n"
    text = "".join(f"utt{i} {TEXTS[i]}\n" for i in range(3)).encode()
    segments = b"utt0 rec0 0.0 0.04\nutt1 rec1 0.01 -1\nutt2 rec2 0 0.02\n"
    people = b"utt0 ann\nutt1 bob\nutt2 ann\n"
    whole = scp.replace(b"rec", b"utt")
    languages = b"utt0 en\nutt1 he\n"
    return [
        {f"corpus/{name}": data for name, data in files.items()} | _audio()
        for files in (
            {"wav.scp": scp, "text": text, "segments": segments, "utt2spk": people, "utt2lang": languages},
            {"wav.scp": scp, "text": text, "segments": segments, "reco2file_and_channel": b"rec0 a B\nrec1 a A\n"},
            {"wav.scp": whole, "text": text, "utt2spk": people},
        )
    ]


def _folder_seeds() -> list[Files]:
    one, two = TEXTS[0].encode(), TEXTS[1].encode()
    beside = {"corpus/x/a0.wav": wav(), "corpus/x/a0.txt": one, "corpus/y/a1.wav": wav(), "corpus/y/a1.txt": two}
    classes = {f"corpus/{name}/{i}.wav": wav() for name in ("dog", "cat") for i in range(2)}
    libri = {}
    for speaker in ("84", "85"):
        chapter = f"corpus/{speaker}/121/{speaker}-121"
        libri |= {f"{chapter}-0000.wav": wav(), f"{chapter}.trans.txt": f"{speaker}-121-0000 ONE TWO\n".encode()}
    speech = {
        "corpus/metadata.csv": b"a0|one, two|one, two\na1|two|two\n",
        "corpus/wavs/a0.wav": wav(),
        "corpus/wavs/a1.wav": wav(),
    }
    lines = {
        "corpus/metadata.jsonl": _lines([{"file_name": f"a{i}.wav", "text": TEXTS[i]} for i in range(3)]),
        **_audio(),
    }
    mls = {"corpus/train/transcripts.txt": b"7_9_1\tone\n8_9_1\ttwo\n"}
    mls |= {f"corpus/train/audio/{i}/9/{i}_9_1.wav": wav() for i in (7, 8)}
    headed = {**speech, "corpus/metadata.csv": b"id|text|normalized\na0|one|one\na1|two|two\n"}
    return [beside, classes, libri, speech, lines, mls, headed]


# --- data sets -----------------------------------------------------------------------------------


def _hub_seeds() -> list[Files]:
    """A table of a data set, and one that was saved with `save_to_disk`."""
    import tempfile

    import datasets

    rows = {
        "audio": [{"bytes": wav(), "path": "a0.wav"}, {"bytes": wav(500), "path": "a1.wav"}],
        "text": list(TEXTS[:2]),
        "speaker_id": [1, 2],
    }
    table, found = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False)), []
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    found.append({"corpus.parquet": buffer.getvalue()})
    found.append({"corpus/data/train-00000-of-00001.parquet": buffer.getvalue(), "corpus/x.parquet": buffer.getvalue()})
    with tempfile.TemporaryDirectory() as place:
        table.save_to_disk(place)
        found.append({f"corpus/{path.name}": path.read_bytes() for path in sorted(Path(place).iterdir())})
    return found


def _check_hub(folder: Path) -> None:
    """The same, with all caches in the case's own folder."""
    import datasets

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    _check(folder)


def _target(
    name: str,
    seeds: Callable[[], list[Files]],
    how: Mapping[str, Damage],
    *,
    check: Callable[[Path], None] = _check,
    weight: float = 6.0,
) -> Target:
    def mutate(rng: random.Random, files: Files) -> Files:
        return damage_folder(rng, files, how)

    return Target(name=name, seeds=seeds, mutate=mutate, check=check, weight=weight)


def _cells(rng: random.Random, data: bytes) -> bytes:
    return damage_text(rng, data, _CELLS)


def _kaldi_words(rng: random.Random, data: bytes) -> bytes:
    return damage_text(rng, data, _WORDS)


TARGETS: Final = (
    _target("json", _json_seeds, {".jsonl": damage_json_lines, ".json": damage_json_file}),
    _target("tables", _table_seeds, {".csv": _cells, ".tsv": _cells}),
    _target(
        "kaldi",
        _kaldi_seeds,
        {
            "wav.scp": _kaldi_words,
            "segments": _kaldi_words,
            "text": _kaldi_words,
            "utt2spk": _kaldi_words,
            "utt2lang": _kaldi_words,
            "reco2file_and_channel": _kaldi_words,
        },
    ),
    _target(
        "folders", _folder_seeds, {".txt": _cells, ".csv": _cells, ".jsonl": damage_json_lines, ".wav": damage_bytes}
    ),
    _target(
        "hub",
        _hub_seeds,
        {".parquet": damage_bytes, ".json": damage_json_file, ".arrow": damage_bytes},
        check=_check_hub,
        weight=60.0,
    ),
)
