"""The command line: exit codes, one clear message for every bad input, one JSON object, and a help that is quick."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sonotune import cli, errors, quickstart, types
from sonotune.arguments import open_recognizer
from sonotune.cli.findings import clips_left_out, warning_lines, worth_telling
from sonotune.config.hints import OTHER_NAMES
from sonotune.config.load import describe_settings, load_run_config

ROOT = Path(__file__).resolve().parent.parent
RATE_HZ = 16_000
Answer = tuple[int, str, str]


def call(*words: str) -> Answer:
    """Run a command in this process; exit code, stdout and stderr. A bug of ours comes out as its exception."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def refused(answer: Answer, *said: str, code: int = 2) -> str:
    """Check that a command was refused as the design says, and give its message."""
    found, out, err = answer
    assert found == code, err
    assert err.startswith("sonotune: ")
    assert "Traceback" not in err
    assert out == ""
    for text in said:
        assert text in err
    return err


def only_json(out: str) -> dict[str, Any]:
    """The one JSON object that stdout holds."""
    assert out.endswith("\n")
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    assert isinstance(found, dict)
    return found


def tone(seconds: float = 0.6, *, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    wave_S = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)
    return wave_S if channels == 1 else np.tile(wave_S[:, None], (1, channels))


def corpus(folder: Path, name: str, count: int, *, first: int = 0, speaker: str = "s") -> Path:
    """Good clips and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(first, first + count):
        soundfile.write(folder / f"{index}.wav", tone(0.5 + 0.05 * (index % 5)), RATE_HZ)
        lines.append(
            {
                "id": f"c{index}",
                "path": f"{index}.wav",
                "text": "one two",
                "speaker": f"{speaker}{index % 3}",
                "language": "en",
            }
        )
    return manifest(folder / f"{name}.jsonl", lines)


def manifest(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    """A command sets up its process before anything is imported; here much has been, and goes on afterwards."""
    from accelerate.state import AcceleratorState
    from transformers.utils import logging

    before = dict(os.environ)
    AcceleratorState._reset_state(reset_partial_state=True)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    os.environ.clear()
    os.environ.update(before)


QUICK = (
    "model=whisper_nano",
    "data.loader_workers=0",
    "training.precision=fp32",
    "training.max_steps=2",
    "training.eval_steps=never",
    "training.batch_max_clips=4",
    "evaluation.bootstrap=100",
    "evaluation.max_new_tokens=3",
    "adapter.rank=2",
    "adapter.targets=q_v",
)


def train_words(folder: Path, *more: str) -> list[str]:
    """A run of two steps on `folder/train.jsonl`; later words win over the common ones."""
    words = {
        **dict(word.split("=", 1) for word in QUICK),
        "data.train": str(folder / "train.jsonl"),
        "data.eval": str(folder / "eval.jsonl"),
        "run.dir": str(folder / "run"),
    }
    flags = [word for word in more if word.startswith("--")]
    words |= dict(word.split("=", 1) for word in more if not word.startswith("--"))
    return ["train", *(f"{name}={value}" for name, value in words.items()), *flags]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with `train.jsonl` of 5 clips and `eval.jsonl` of 2 by another speaker."""
    corpus(tmp_path, "train", 5)
    corpus(tmp_path, "eval", 2, first=5, speaker="e")
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The folder of a finished run with its data, and what the command said."""
    folder = tmp_path_factory.mktemp("finished")
    corpus(folder, "train", 5)
    corpus(folder, "eval", 2, first=5, speaker="e")
    return folder, call(*train_words(folder, "--json"))


# --- help, version, words ------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "scipy", "matplotlib", "datasets")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data", "split", "--help"]])
def test_help_is_quick_and_never_imports_torch(words: list[str]):
    program = (
        "import sys\nfrom sonotune.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not loaded, loaded\n    assert end.code == 0, end.code\n"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False
        )
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    assert min(seconds) < 1.0


@pytest.mark.parametrize("words", [["train", "model=whisper_nano", "data.train=x.jsonl", "--dump-config"], ["train"]])
def test_settings_are_resolved_without_torch(words: list[str]):
    program = (
        "import sys\nfrom sonotune.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_told():
    code, out, _ = call("--version")
    assert code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", out)


def test_every_command_is_listed():
    _, out, _ = call("--help")
    for command in ("train", "evaluate", "transcribe", "export", "report", "quickstart", "data"):
        assert f"  {command} " in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--jsno"], "No such option"),
        (["export", "only-one"], "Missing argument"),
        (["data", "split", "x.jsonl", "out", "--seed", "many"], "'--seed'"),
    ],
)
def test_a_mistyped_command_line_is_refused_with_the_way_to_help(words: list[str], said: str):
    assert "--help" in refused(call(*words), said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.max_epoch=3", "training.max_epoch: no such setting; did you mean 'training.max_epochs'?"),
        ("adapter.rank=0", "adapter.rank: 0 is not allowed"),
        ("adapter.rank=eight", "adapter.rank: 'eight' is not allowed"),
        ("model=whisper_namo", "did you mean 'whisper_nano'?"),
        ("quantization.bits=5", "quantization.bits: 5 is not allowed"),
        ("training.learning_rate=nan", "training.learning_rate"),
        ("nonsense", "'nonsense' is not of the form setting=value"),
        ("data.train=s3://bucket/x", "not read over the network"),
        ("config=absent.yaml", "absent.yaml"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(word: str, said: str):
    name = word.partition("=")[0]
    words = [known for known in ("model=whisper_nano", "data.train=x.jsonl") if not known.startswith(f"{name}=")]
    refused(call("train", *words, word), said)


def test_all_wrong_settings_are_listed_at_once():
    message = refused(call("train", "model=whisper_nano", "adapter.rank=0", "training.max_epoch=3"))
    assert message.startswith("sonotune: 3 problems in")
    for name in ("adapter.rank", "training.max_epoch", "data.train"):
        assert name in message


def test_dumped_settings_give_the_same_settings(tmp_path: Path):
    words = [
        "model=whisper_nano",
        "data.train=a b.jsonl",
        "adapter.targets=[encoder, fc1]",
        "training.learning_rate=3e-4",
        "training.learning_rates={stem: 0.5}",
        "quantization.bits=4",
        "augmentation.speed_probability=0.5",
        "data.eval_speakers=no,on",
        "run.dir=" + str(tmp_path / "run"),
    ]
    code, first, _ = call("train", *words, "--dump-config")
    assert code == 0
    file = tmp_path / "run.yaml"
    file.write_text(first, "utf-8")
    code, second, err = call("train", f"config={file}", "--dump-config")
    assert code == 0, err
    assert second == first
    assert "learning_rate: 0.0003" in first
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_the_seed_form_of_the_command_line_works():
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            "model=whisper_nano",
            "data.train=x.jsonl",
            "training.max_epochs=10",
            "--dump-config",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "max_epochs: 10" in done.stdout


# --- exit codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.ManifestError("x"), 2),
        (errors.AudioError("empty", "x"), 2),
        (errors.TextError("x"), 2),
        (errors.ModelError("x"), 2),
        (errors.AdapterError("x"), 2),
        (errors.MissingExtraError("x"), 2),
        (errors.RunDirectoryError("x"), 2),
        (errors.GateError("x"), 3),
        (errors.NumericError("x"), 4),
        (errors.TrainingCheckError("x"), 4),
        (errors.ResourceError("x"), 5),
        (errors.CheckpointError("x"), 6),
        (errors.Interrupted("x"), 75),
        (MemoryError(), 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_has_its_exit_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("sonotune.config.load.load_run_config", fail)
    refused(call("train"), code=code)
    found, out, err = call("train", "--json")
    assert found == code
    assert only_json(out) == {"error": err.removeprefix("sonotune: ").strip(), "exit_code": code}


def test_an_interrupt_outside_training_ends_without_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sonotune.config.load.load_run_config", fail)
    code, out, err = call("train")
    assert (code, out, err) == (130, "", "sonotune: stopped.\n")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("sonotune.config.load.load_run_config", fail)
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.main(["train"])


# --- bad audio -----------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_audio(path: Path) -> None:
    path.write_text("<html><body>404</body></html>")


def truncated_wav(path: Path) -> None:
    soundfile.write(path, tone(), RATE_HZ)
    path.write_bytes(path.read_bytes()[:6000])


def truncated_mp3(path: Path) -> None:
    soundfile.write(path, tone(4.0), RATE_HZ, format="MP3")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0), RATE_HZ)


def not_numbers(path: Path) -> None:
    samples = tone()
    samples[100] = np.nan
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")


def three_hours(path: Path) -> None:
    """A sparse file: 86 MB of silence that take no room."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(b"\x80")
    frames = 3 * 3600 * 8000
    data = bytearray(path.read_bytes()[:44])
    data[4:8] = (36 + frames).to_bytes(4, "little")
    data[40:44] = frames.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    os.truncate(path, 44 + frames)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


BAD_AUDIO: dict[str, tuple[str, Callable[[Path], object], set[str]]] = {
    "missing": ("x.wav", lambda path: None, {"audio.missing"}),
    "empty": ("x.wav", empty, {"audio.empty"}),
    "not audio": ("x.flac", not_audio, {"audio.not_audio"}),
    "truncated wav": ("x.wav", truncated_wav, {"audio.truncated"}),
    "truncated mp3": ("x.mp3", truncated_mp3, {"audio.truncated"}),
    "no samples": ("x.wav", no_samples, {"audio.no_samples"}),
    "not numbers": ("x.wav", not_numbers, {"audio.non_finite"}),
    "fifo": ("x.wav", os.mkfifo, {"audio.not_regular"}),
    "directory": ("x.wav", Path.mkdir, {"audio.not_regular"}),
    "three hours": ("x.wav", three_hours, {"audio.too_long", "data.too_long"}),
}


@pytest.mark.parametrize("kind", [kind for kind in BAD_AUDIO if kind != "three hours"])
def test_a_bad_file_above_the_limit_is_refused_before_anything_is_trained(data: Path, kind: str):
    name, spoil, _ = BAD_AUDIO[kind]
    (data / "0.wav").unlink()
    spoil(data / name)
    lines = lines_of(data / "train.jsonl")
    manifest(data / "train.jsonl", [{**lines[0], "path": name}, *lines[1:]])
    refused(call(*train_words(data)), "1 of 5 clips of data.train cannot be used", name, "data.max_bad_fraction")
    assert not list((data / "run" / "checkpoints").iterdir())


def shorten(path: Path, seconds: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 2 * round(seconds * RATE_HZ)])


def test_files_that_lack_a_little_are_used_and_a_refusal_lists_every_clip(data: Path):
    """Twelve files of a corpus miss their last 21 ms, as a recorder left them; then far more."""
    corpus(data, "train", 12)
    for index in range(12):
        shorten(data / f"{index}.wav", 0.021)
    code, out, err = call(*train_words(data, "--json"))
    assert code == 0, err
    assert [w for w in only_json(out)["warnings"] if w.startswith("12 of 12 clips end") and "data.truncated=use" in w]
    shutil.rmtree(data / "run")
    text = refused(call(*train_words(data, "data.truncated=stop")), "12 of 12 clips", "data.truncated=stop")
    assert str(data / "run" / "refused.txt") in text
    for index in range(12):
        shorten(data / f"{index}.wav", 0.2)
    text = refused(call(*train_words(data)), "12 of 12 clips of data.train cannot be used", "data.truncated=leave_out")
    assert f"All 12 are listed in {data / 'run' / 'refused.txt'}" in text
    listed = (data / "run" / "refused.txt").read_text("utf-8").splitlines()
    assert [f"'c{index}'" in line for index, line in enumerate(listed)] == [True] * 12
    record = json.loads((data / "run" / "run.json").read_text("utf-8"))
    kept = [finding for finding in record["findings"] if finding["check"] == "audio.truncated"]
    assert [finding["clip_ids"] for finding in kept] == [[f"c{index}"] for index in range(12)]


def test_a_single_clip_that_is_refused_stands_in_the_file_of_refusals_too(data: Path):
    shorten(data / "0.wav", 0.02)
    text = refused(call(*train_words(data, "data.truncated=stop")), "1 of 5 clips of data.train", "data.truncated=stop")
    assert f"It is listed in {data / 'run' / 'refused.txt'}" in text
    assert "'c0'" in (data / "run" / "refused.txt").read_text("utf-8")


def test_files_that_lie_elsewhere_are_told_once_with_the_root_that_has_them(data: Path):
    (data / "lists").mkdir()
    (data / "train.jsonl").rename(data / "lists" / "train.jsonl")
    words = train_words(data, f"data.train={data / 'lists' / 'train.jsonl'}")
    text = refused(call(*words), "5 files do not exist", f"set data.root={data}.")
    assert text.count("exist") == 1
    code, _, err = call(*words, f"data.root={data}")
    assert code == 0, err


def test_a_refusal_without_a_run_lists_its_problems_in_a_file_that_it_names(data: Path):
    manifest(data / "bad.jsonl", [{"id": f"c{index}", "text": "one"} for index in range(30)])
    text = refused(call("data", "stats", str(data / "bad.jsonl")), "30 problems", "and 10 more", "All 30 are listed in")
    place = Path(text.split("All 30 are listed in ")[1].strip().removesuffix("."))
    assert len(place.read_text("utf-8").splitlines()) == 30
    place.unlink()


def test_bad_files_below_the_limit_are_findings_and_the_rest_is_trained(data: Path):
    """All kinds at once, beside files that are unusual and good: 96 kHz, 8 channels, 24 bits."""
    folders = []
    lines = lines_of(data / "train.jsonl")
    for number, (name, spoil, _) in enumerate(BAD_AUDIO.values()):
        folder = data / f"bad{number}"
        folder.mkdir()
        spoil(folder / name)
        folders.append(f"{folder.name}/{name}")
        lines.append({"id": f"bad{number}", "path": folders[-1], "text": "one", "speaker": "s0", "language": "en"})
    soundfile.write(data / "fast.wav", tone(rate_hz=96_000, channels=8), 96_000, subtype="PCM_24")
    lines.append({"id": "fast", "path": "fast.wav", "text": "one", "speaker": "s0", "language": "en"})
    lines.append({"id": "unwritable", "path": "1.wav", "text": "one <|endoftext|>", "speaker": "s1", "language": "en"})
    manifest(data / "train.jsonl", lines)
    code, out, err = call(*train_words(data, "data.max_bad_fraction=0.7", "--json"))
    assert code == 0, err
    assert only_json(out)["status"] == "finished"
    record = json.loads((data / "run" / "run.json").read_text("utf-8"))
    of_clips = [found for found in record["findings"] if not found["check"].startswith(("leak.", "decode."))]
    found = {clip: finding["check"] for finding in of_clips for clip in finding["clip_ids"]}
    for number, (kind, (_, _, checks)) in enumerate(BAD_AUDIO.items()):
        assert found.pop(f"bad{number}") in checks, kind
    assert found.pop("unwritable") == "text.not_encodable"
    assert not found
    assert record["stages"]


# --- bad manifests -------------------------------------------------------------------------------


def spoil_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text("utf-8").splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "x", "path": "0.wav", "text": "one"', ["train.jsonl:41"]),
        ('{"id": "x", "text": "one"}', ["train.jsonl:41", "'path'"]),
        ('{"id": "c3", "path": "0.wav", "text": "one"}', ["train.jsonl:41", "c3"]),
        ('{"id": "x", "path": "../outside.wav", "text": "one"}', ["train.jsonl:41", "../outside.wav"]),
        ('{"id": "x", "path": "0.wav", "text": "one", "duration_s": NaN}', ["train.jsonl:41"]),
    ],
    ids=["bad JSON", "missing column", "double id", "leaves its root", "NaN"],
)
def test_a_bad_line_of_a_manifest_is_named(data: Path, line: str, said: list[str]):
    lines = lines_of(data / "train.jsonl")
    manifest(data / "train.jsonl", [{**lines[0], "id": f"c{number}"} for number in range(50)])
    spoil_line(data / "train.jsonl", 41, line)
    (data.parent / "outside.wav").write_bytes((data / "0.wav").read_bytes())
    try:
        refused(call(*train_words(data)), *said)
    finally:
        (data.parent / "outside.wav").unlink()


def test_several_problems_of_a_manifest_are_listed_together(data: Path):
    spoil_line(data / "train.jsonl", 2, "{")
    spoil_line(data / "train.jsonl", 4, "[]")
    refused(call(*train_words(data)), "2 problems", "train.jsonl:2", "train.jsonl:4")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.train=absent.jsonl"], "absent.jsonl"),
        (["data.train=EMPTY"], "has no clips"),
        (["data.eval=EMPTY"], "has no clips"),
        (["data.min_duration_s=5"], "no clip of data.train is left"),
        (["data.eval=", "data.eval_speakers=nobody"], "'nobody'"),
        (["data.eval=", "data.eval_speakers=s0,s1,s2"], "nothing to train on"),
    ],
    ids=["absent", "empty", "empty eval", "filtered away", "unknown speaker", "all held out"],
)
def test_an_empty_split_is_refused(data: Path, words: list[str], said: str):
    (data / "empty.jsonl").write_text("")
    words = [word.replace("EMPTY", str(data / "empty.jsonl")) for word in words]
    refused(call(*train_words(data, *words)), said)


def test_a_part_is_held_out_when_no_evaluation_clips_are_named(data: Path):
    code, out, err = call(*train_words(data, "data.eval=", "data.eval_fraction=0.3", "--json"))
    assert code == 0, err
    assert 0 < only_json(out)["scores"]["wer"]["count"] < 5


def test_training_on_what_is_scored_is_said_beside_the_score_or_stops_the_run(data: Path):
    words = train_words(data, f"data.eval={data / 'train.jsonl'}")
    code, out, err = call(*words, "data.leaks=stop")
    assert code == 3, err
    assert "same file" in err
    assert "data.leaks=report" in err
    assert "Traceback" not in err
    code, out, err = call(*words)
    assert code == 0, err
    assert "warning  train and eval share seconds of the same file" in out


def test_inspect_tells_sizes_without_weights():
    code, out, err = call("inspect", "model=whisper_large_v3", "quantization.bits=4", "--json")
    assert code == 0, err
    body = only_json(out)
    assert body["parameters"]["total"] == 1_543_490_560
    assert set(body["parameters"]) == {"total", "trainable", "adapter", "quantized"}
    assert {"name", "parameters", "trainable", "bytes"} <= set(body["components"][0])
    assert body["bits_per_quantized_parameter"] == 4.126953125
    assert set(body["compression"]) == {"parameters", "size"}
    code, out, err = call("inspect", "model=whisper_nano")
    assert code == 0, err
    assert "encoder" in out


@pytest.mark.parametrize("bits", [4, 16])
def test_inspect_calls_nothing_smaller_that_is_larger_than_in_16_bits(bits: int):
    words = ("inspect", "model=whisper_nano", f"quantization.bits={bits}")
    size = only_json(call(*words, "--json")[1])["compression"]["size"]
    assert (size > 1) is (bits == 4)  # with its adapters in 32 bits, a model in 16 bits has grown
    code, out, err = call(*words)
    assert code == 0, err
    assert f"size     {100 / size:.0f} % of what it is with 16 bits a parameter; " in out


# --- bad models and runs -------------------------------------------------------------------------


def test_a_hub_name_without_network_names_what_works_without(data: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(
        call(*train_words(data, "model=whisper_small", "model.language=en")),
        "'openai/whisper-small'",
        "Without network",
        "model=whisper_nano",
    )


def test_a_hub_name_without_network_ends_at_once_in_a_new_process(data: Path):
    done = subprocess.run(
        [sys.executable, "-m", "sonotune", *train_words(data, "model=whisper_small")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    refused((done.returncode, done.stdout, done.stderr), "whisper-small", "model=whisper_nano")


def test_a_folder_that_is_no_model_is_refused(data: Path):
    (data / "model").mkdir()
    refused(call(*train_words(data, f"model={data / 'model'}")), "config.json")


def test_a_run_directory_that_holds_something_else_is_left_alone(data: Path):
    (data / "run").mkdir()
    (data / "run" / "thesis.tex").write_text("years of work")
    refused(call(*train_words(data)), "thesis.tex")
    assert [path.name for path in (data / "run").iterdir() if path.name != "run.lock"] == ["thesis.tex"]


def test_a_run_of_another_configuration_is_refused_with_what_differs(finished: tuple[Path, Answer]):
    folder, _ = finished
    refused(call(*train_words(folder, "training.learning_rate=5e-4")), "training.learning_rate: was 0.002, now 0.0005")
    refused(call(*train_words(folder)), "finished")
    refused(call(*train_words(folder, "run.resume=never")), "run.resume is never")


def test_a_damaged_checkpoint_with_no_other_ends_with_exit_6(finished: tuple[Path, Answer], tmp_path: Path):
    folder, _ = finished
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    record = json.loads((copy / "run.json").read_text("utf-8"))
    (copy / "run.json").write_text(json.dumps({**record, "status": "interrupted"}), "utf-8")
    [weights] = copy.glob("checkpoints/*/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(call(*train_words(folder, f"run.dir={copy}")), "weights.safetensors", code=6)


# --- what commands answer ------------------------------------------------------------------------


def score_of(value: Any) -> None:
    assert {"value", "low", "high", "count", "unit"} <= value.keys()


def test_train_answers_with_one_json_object(finished: tuple[Path, Answer]):
    folder, (code, out, err) = finished
    assert code == 0, err
    body = only_json(out)
    assert body["run"] == str(folder / "run")
    assert body["status"] == "finished"
    assert body["seconds"] > 0
    assert body["peak_bytes"] > 0
    for moment in (body["scores"], body["before"], body["after"]):
        assert {"wer", "cer"} <= moment.keys()
        for score in moment.values():
            score_of(score)
    assert {"run.json", "events.jsonl", "adapter", "checkpoints", "predictions", "report.html"} <= {
        path.name for path in (folder / "run").iterdir()
    }


def test_train_answers_a_person_in_lines(data: Path):
    code, out, err = call(*train_words(data))
    assert code == 0, err
    assert "before   WER" in out
    assert "after    WER" in out
    assert str(data / "run" / "report.html") in out
    assert "{" not in out


def test_only_clips_that_were_left_out_are_said_to_be(data: Path):
    corpus(data, "eval", 2, first=5, speaker="s")  # speakers of the training clips
    code, out, _ = call(*train_words(data))
    assert code == 0
    assert "left out" not in out


def test_clips_left_out_are_counted_and_warnings_told():
    def finding(check: str, severity: types.Severity, *clip_ids: str) -> types.Finding:
        return types.Finding(check=check, severity=severity, message=f"about {check}", clip_ids=clip_ids)

    found = [
        finding("data.too_short", "warning", "a", "b"),  # settings ask for it
        finding("text.not_encodable", "error", "c"),
        finding("label.count", "error", "d"),
        finding("text.truncated", "warning", "e", "f"),  # trained all the same
        finding("model.new_outputs", "warning"),
        finding("leak.speaker", "error", "g"),
        finding("evaluation.too_long", "error", "h"),  # scored as unheard
        finding("evaluation.too_long", "error", "h"),  # before and after
        finding("leak.sentence", "note", "i"),
    ]
    assert clips_left_out(found) == 4
    told = worth_telling(found)
    assert [item.check for item in told] == [
        "text.truncated",
        "model.new_outputs",
        "leak.speaker",
        "evaluation.too_long",
    ]
    assert warning_lines(told, "run.json")[1] == "warning  about model.new_outputs"
    many = warning_lines([finding("evaluation.too_long", "error", f"{number}") for number in range(400)], "run.json")
    assert len(many) == 11
    assert many[-1] == "warning  and 390 more; run.json has all of them"


def test_train_says_why_a_transcript_that_is_too_long_is_left_out(data: Path):
    lines = lines_of(data / "train.jsonl")
    lines[0]["text"] = "one two " * 400
    manifest(data / "train.jsonl", lines)
    code, out, err = call(*train_words(data))
    assert code == 0, err
    assert "left out 1 clip;" in out
    assert f"warning  1 of {len(lines)} training transcripts are longer than the model can write" in out


def test_train_tells_of_transcripts_that_it_cut_short_and_does_not_call_them_left_out(data: Path):
    lines = lines_of(data / "train.jsonl")
    soundfile.write(data / "short.wav", tone(0.1), RATE_HZ)
    manifest(data / "train.jsonl", [*lines, {**lines[0], "id": "short", "path": "short.wav"}])
    limits = ("data.max_label_tokens=1", "data.min_duration_s=0.3")
    code, out, err = call(*train_words(data, *limits))
    assert code == 0, err
    assert "left out 1 clip;" in out
    assert "warning  5 of 5 transcripts have more than data.max_label_tokens=1" in out
    code, out, _ = call(*train_words(data, *limits, f"run.dir={data / 'again'}", "--json"))
    assert code == 0
    body = only_json(out)
    assert body["left_out"] == 1
    assert any("data.max_label_tokens=1" in message for message in body["warnings"])


def test_a_limit_that_leaves_ctc_no_clip_is_refused(data: Path):
    words = train_words(data, "model=ctc_nano", "data.max_label_tokens=1", "adapter.targets=[encoder]")
    refused(call(*words), "no clip of data.train is left", "5 of 5 transcripts", "data.max_label_tokens=1")


def test_evaluate_scores_clips_of_every_length_whatever_the_limits_of_training(
    finished: tuple[Path, Answer], tmp_path: Path
):
    folder, _ = finished
    soundfile.write(tmp_path / "long.wav", tone(45), RATE_HZ)
    soundfile.write(tmp_path / "short.wav", tone(0.3), RATE_HZ)
    lines = [{"id": name, "path": f"{name}.wav", "text": "one", "language": "en"} for name in ("long", "short")]
    words = ["evaluate", f"model={folder / 'run'}", f"data.test={manifest(tmp_path / 'test.jsonl', lines)}"]
    code, out, err = call(
        *words, "data.max_duration_s=10", "data.min_duration_s=1", "evaluation.bootstrap=100", "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["scores"]["wer"]["count"] == told["clips"] == 2
    assert told["left_out"] == []
    [note] = [finding for finding in told["findings"] if finding["check"] == "evaluation.windows"]
    assert note["severity"] == "note"
    assert "1 of 2 clips" in note["message"]
    code, out, err = call(*words, "data.min_duration_s=0.1", "evaluation.bootstrap=100")
    assert code == 0, err
    assert f"note: {note['message']}" in out
    code, out, err = call("transcribe", f"model={folder / 'run'}", str(tmp_path / "long.wav"))
    assert code == 0, err
    assert "sonotune: 1 of 1 clips are longer than the 15 s that the model reads at a time" in err
    assert len(out.splitlines()) == 1


def test_clips_too_long_to_train_on_are_counted_and_are_not_bad(data: Path):
    """They are more than data.max_bad_fraction allows of bad clips; the run goes on without them, and scores them."""
    for name, count, first in (("train", 3, 0), ("eval", 2, 5)):
        lines = [json.loads(line) for line in corpus(data, name, count, first=first).read_text("utf-8").splitlines()]
        soundfile.write(data / f"long-{name}.wav", tone(45), RATE_HZ)
        lines.append({"id": f"long-{name}", "path": f"long-{name}.wav", "text": "one", "language": "en"})
        manifest(data / f"{name}.jsonl", lines)
    code, out, err = call(*train_words(data), "--json")
    assert code == 0, err
    told = json.loads(out)
    record = json.loads((data / "run" / "run.json").read_text("utf-8"))
    found = {finding["check"]: finding for finding in record["findings"]}
    assert found["data.too_long"]["clip_ids"] == ["long-train"]
    assert found["evaluation.windows"]["clip_ids"] == ["long-eval"]
    assert record["scores"]["after"]["wer"]["count"] == 3
    assert told["left_out"] == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "model.language=hebrw",
            "model.language=hebrw: assets:whisper-nano does not know the language 'hebrw'; did you mean",
        ),
        ("adapter.targets=[qproj]", "did you mean"),
        ("data.train=nowhere.jsonl", "nowhere.jsonl"),
        ("training.accumulation_steps=1", None),
    ],
)
def test_a_line_that_the_settings_refuse_leaves_no_run_directory(data: Path, word: str, said: str | None):
    answer = call(*train_words(data, word))
    if said is None:  # a line that is not refused does
        assert answer[0] == 0, answer[2]
    else:
        refused(answer, said)
    assert (data / "run").exists() is (said is None)


def test_a_directory_that_was_there_stays(data: Path):
    (data / "run").mkdir()
    refused(call(*train_words(data, "adapter.targets=[qproj]")), "did you mean")
    assert json.loads((data / "run" / "run.json").read_text("utf-8"))["status"] == "failed"


def test_a_language_that_the_model_lacks_stops_training_and_is_detected_where_it_is_scored(
    finished: tuple[Path, Answer], data: Path
):
    code, _, err = call(*train_words(data, "model.language=xx"))
    assert code == 2
    assert "does not know the language 'xx'; it knows en, he" in err
    lines = [line | {"language": "xx"} for line in lines_of(data / "eval.jsonl")]
    manifest(data / "foreign.jsonl", lines)
    folder, _ = finished
    code, out, err = call("evaluate", f"model={folder / 'run'}", f"data.test={data / 'foreign.jsonl'}", "--json")
    assert code == 0, err
    assert json.loads(out)["scores"]["wer"]["count"] == 2
    assert "does not know" not in err  # it is a finding, and not a line of the log
    told = json.loads(out)
    [found] = [finding for finding in told["findings"] if finding["check"] == "text.language"]
    assert found["severity"] == "warning"
    assert found["message"].startswith("2 of 2 clips are in 'xx': ")
    assert found["message"] in told["warnings"]


def test_scores_are_told_though_the_predictions_cannot_be_written(
    finished: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder, _ = finished
    words = ["evaluate", f"model={folder / 'run'}", f"data.test={folder / 'eval.jsonl'}", "evaluation.max_new_tokens=3"]
    words += ["evaluation.bootstrap=100", "--out", str(tmp_path / "said.jsonl")]
    monkeypatch.setattr("sonotune.runs.files.write_all", full)
    code, out, err = call(*words)
    assert code == 5
    assert out.startswith("WER")
    assert "sonotune: " in err
    assert "said.jsonl" in err
    code, out, _ = call(*words, "--json")
    assert code == 5
    body = only_json(out)
    score_of(body["scores"]["wer"])
    assert body["exit_code"] == 5
    assert "said.jsonl" in body["error"]


def test_evaluate_answers_with_scores_and_slices(finished: tuple[Path, Answer], tmp_path: Path):
    folder, _ = finished
    words = ["evaluate", f"model={folder / 'run'}", f"data.test={folder / 'eval.jsonl'}", "evaluation.max_new_tokens=3"]
    code, out, err = call(*words, "evaluation.bootstrap=100", "--json", "--out", str(tmp_path / "said.jsonl"))
    assert code == 0, err
    body = only_json(out)
    for score in body["scores"].values():
        score_of(score)
    assert body["clips"] == 2
    assert body["seconds"] > 0
    assert body["audio_seconds"] > 0
    assert {row["by"] for row in body["slices"]} >= {"duration", "speaker"}
    assert all({"by", "value", "scores"} <= row.keys() for row in body["slices"])
    said = lines_of(tmp_path / "said.jsonl")
    kept = lines_of(folder / "run" / "predictions" / "after.jsonl")
    assert [line["hypothesis"] for line in said] == [line["hypothesis"] for line in kept]
    code, out, err = call(*words)
    assert code == 0, err
    assert out.startswith("WER")


def test_silence_is_named_and_words_on_it_are_counted(finished: tuple[Path, Answer], tmp_path: Path):
    folder, _ = finished
    model = f"model={folder / 'run'}"
    soundfile.write(tmp_path / "nothing.wav", np.zeros(8000), 16000)
    code, out, err = call("transcribe", model, str(tmp_path / "nothing.wav"), str(folder / "1.wav"), "--json")
    assert code == 0, err
    body = only_json(out)
    assert [item["no_signal"] for item in body["transcripts"]] == [True, False]
    assert body["transcripts"][0]["text"] == ""
    assert [("nothing.wav: no signal" in warning) for warning in body["warnings"] if "signal" in warning] == [True]
    code, out, err = call("transcribe", model, str(tmp_path / "nothing.wav"))
    assert out == f"{tmp_path / 'nothing.wav'}\t\n"
    assert "nothing.wav: no signal" in err
    manifest = tmp_path / "silence.jsonl"
    manifest.write_text(json.dumps({"id": "n", "path": "nothing.wav", "text": "", "language": "en"}) + "\n")
    words = ["evaluate", model, f"data.test={manifest}", "evaluation.bootstrap=100"]
    code, out, err = call(*words)
    assert code == 0, err
    assert "WER per silent clip" in out
    assert "1 clips without words, " in out
    assert "left out" not in out
    assert "note: 1 of 1 clips of data.test have no signal" in out
    code, out, err = call(*words, "evaluation.primary=cer", "evaluation.max_new_tokens=1", "--json")
    scores = only_json(out)["scores"]
    assert next(iter(scores)) == "cer"
    assert scores["cer"]["role"] == "primary"
    code, _, err = call(*words, "evaluation.primary=map")
    assert code == 2
    assert "evaluation.primary=map is no score that can decide for the task transcribe" in err


def test_evaluate_says_that_clips_were_trained_on(finished: tuple[Path, Answer]):
    folder, _ = finished
    words = [
        "evaluate",
        f"model={folder / 'run' / 'adapter'}",
        "evaluation.max_new_tokens=3",
        "evaluation.bootstrap=100",
    ]
    code, out, err = call(*words, f"data.test={folder / 'train.jsonl'}")
    assert code == 0, err
    (warned,) = [line for line in out.splitlines() if "5 of 5 clips that are scored" in line]
    assert warned.startswith("warning")
    assert "left out" not in out


def test_transcribe_answers_in_the_order_of_the_files_and_names_what_is_left_out(
    finished: tuple[Path, Answer], tmp_path: Path
):
    folder, _ = finished
    (tmp_path / "broken.wav").write_bytes(b"")
    files = [str(folder / "6.wav"), str(tmp_path / "broken.wav"), str(folder / "1.wav")]
    words = ["transcribe", f"model={folder / 'run'}", "model.language=en", "evaluation.max_new_tokens=3", *files]
    code, out, err = call(*words, "--json")
    assert code == 2, err
    body = only_json(out)
    assert [item["path"] for item in body["transcripts"]] == [files[0], files[2]]
    assert len(body["left_out"]) == 1
    assert "broken.wav" in body["left_out"][0]
    assert "broken.wav" in err
    code, out, _ = call(*words)
    assert code == 2
    assert [line.split("\t")[0] for line in out.splitlines()] == [files[0], files[2]]
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "broken.wav", tmp_path / "folder" / "broken.wav")
    (tmp_path / "folder" / "memo.m4a").write_bytes(b"of a kind that cannot be read")
    code, _, err = call(*words[:-3], files[0], str(tmp_path / "folder"))
    assert code == 0, err  # a folder may hold anything
    assert "broken.wav" in err


@pytest.mark.parametrize("name", ["absent.wav", "nothing"])
def test_transcribe_refuses_what_is_not_there(finished: tuple[Path, Answer], tmp_path: Path, name: str):
    folder, _ = finished
    (tmp_path / "nothing").mkdir()
    refused(call("transcribe", f"model={folder / 'run'}", str(tmp_path / name)), name if "." in name else "nothing to")


def test_export_answers_with_its_folder_and_proofs(finished: tuple[Path, Answer], tmp_path: Path):
    folder, _ = finished
    code, out, err = call("export", "model=" + str(folder / "run"), str(tmp_path / "export"), "--json")
    assert code == 0, err
    body = only_json(out)
    assert body["export"] == str(tmp_path / "export")
    assert body["merge"]["largest"] < 1e-3 * max(1.0, body["merge"]["scale"])
    assert (tmp_path / "export" / "model.safetensors").is_file()
    refused(call("export", str(folder / "run"), str(tmp_path / "export")), "--overwrite")
    code, out, _ = call("export", str(folder / "run"), str(tmp_path / "adapter"), "--adapter")
    assert code == 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--target", "nf4"], "dequantized, original"), (["--dtype", "int4"], "auto, fp32, bf16, fp16")],
)
def test_export_refuses_unknown_choices(finished: tuple[Path, Answer], tmp_path: Path, words: list[str], said: str):
    refused(call("export", str(finished[0] / "run"), str(tmp_path / "export"), *words), said)
    assert not (tmp_path / "export").exists()


def test_export_of_nothing_is_refused(tmp_path: Path):
    refused(call("export", str(tmp_path / "absent"), str(tmp_path / "export")), "absent")


def test_a_report_is_rebuilt(finished: tuple[Path, Answer], tmp_path: Path):
    folder, _ = finished
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    (copy / "report.html").unlink()
    code, out, err = call("report", str(copy), "--json")
    assert code == 0, err
    assert only_json(out) == {"report": str(copy / "report.html")}
    assert "<html" in (copy / "report.html").read_text("utf-8")
    refused(call("report", str(tmp_path)), "run.json is missing")


def test_the_report_that_a_killed_run_did_not_get_to_is_made_by_the_same_line(
    finished: tuple[Path, Answer], tmp_path: Path
):
    folder, (code, _, err) = finished
    assert code == 0, err
    shutil.copytree(folder, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    words = train_words(folder, f"run.dir={run}", "--json")
    refused_as_finished = call(*words)
    assert refused_as_finished[0] == 2
    for name in ("report.html", "adapter/README.md"):
        (run / name).unlink()
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    code, out, err = call(*words)
    assert code == 0, err
    assert (only_json(out)["status"], only_json(out)["run"]) == ("finished", str(run))
    assert "<html" in (run / "report.html").read_text("utf-8")
    assert (run / "adapter" / "README.md").is_file()
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    (run / "adapter" / "README.md").unlink()
    assert call("report", str(run))[0] == 0
    assert (run / "adapter" / "README.md").is_file()
    (run / "report.html").unlink()  # other settings are not taken for it
    assert call(*words, "training.seed=7")[0] == 2
    assert not (run / "report.html").exists()


def test_corpora_are_imported_described_and_split(data: Path):
    folder = data / "words"
    for word in ("one", "two", "six"):
        (folder / word).mkdir(parents=True)
        for index in range(2):
            soundfile.write(folder / word / f"{index}.wav", tone(), RATE_HZ)
    code, out, err = call("data", "import", f"folder:{folder}", str(data / "words.jsonl"), "--json")
    assert code == 0, err
    assert only_json(out)["clips"] == 6
    code, out, err = call("data", "stats", str(data / "train.jsonl"), "--json")
    assert code == 0, err
    assert only_json(out)["speakers"] == {"s0": 2, "s1": 2, "s2": 1}
    code, out, err = call(
        "data",
        "split",
        str(data / "train.jsonl"),
        str(data / "parts"),
        "--eval-fraction",
        "0.3",
        "--test-fraction",
        "0.3",
        "--json",
    )
    assert code == 0, err
    parts = only_json(out)
    assert set(parts) == {"train", "eval", "test"}
    assert sorted(name for part in parts.values() for name in part["speakers"]) == ["s0", "s1", "s2"]
    assert sum(part["clips"] for part in parts.values()) == 5
    code, out, err = call(
        "data", "split", str(data / "train.jsonl"), str(data / "held"), "--eval-speakers", "s0,s2", "--json"
    )
    assert code == 0, err
    assert only_json(out)["eval"]["speakers"] == ["s0", "s2"]


def test_commands_on_corpora_follow_no_path_out_of_the_root(data: Path):
    """As training does: a manifest of a stranger must not make them open what it names elsewhere."""
    soundfile.write(data / "outside.wav", tone(), RATE_HZ)
    (data / "in").mkdir()
    (data / "in" / "link.wav").symlink_to(data / "outside.wav")
    out = str(data / "out")
    for path in ("../outside.wav", "../../../../etc/passwd", "link.wav"):
        manifest = data / "in" / "m.jsonl"
        manifest.write_text(json.dumps({"id": "a", "path": path, "text": "one two three", "duration_s": 1.0}) + "\n")
        for words in (["stats"], ["split", out], ["tokenizer", out], ["import", f"{out}.jsonl"]):
            command = ["data", words[0], str(manifest), *words[1:]]
            refused(call(*command), "the path leaves the root of the manifest", "--root ")
        assert not Path(out).exists()
    absolute = str(data / "outside.wav")
    for path, more in (
        ("../outside.wav", ["--allow-outside-root"]),
        ("outside.wav", ["--root", str(data)]),
        (absolute, []),
    ):
        manifest.write_text(json.dumps({"id": "a", "path": path, "text": "one"}) + "\n")
        code, _, err = call("data", "stats", str(manifest), *more)
        assert code == 0, err


def test_what_is_imported_and_split_into_another_folder_trains_and_is_scored_without_a_root(data: Path):
    lists = data.parent / "lists"
    theirs = [{**line, "audio_filepath": str(data / line.pop("path"))} for line in lines_of(data / "train.jsonl")]
    manifest(data / "nemo.json", theirs)
    for words in (
        ["data", "import", str(data / "nemo.json"), str(lists / "all.jsonl")],
        ["data", "split", str(lists / "all.jsonl"), str(lists / "parts"), "--by", "clip", "--eval-fraction", "0.4"],
        ["data", "stats", str(lists / "parts" / "train.jsonl")],
        train_words(data, *(f"data.{name}={lists / 'parts' / name}.jsonl" for name in ("train", "eval"))),
        ["evaluate", f"model={data / 'run'}", f"data.test={lists / 'all.jsonl'}"],
    ):
        code, out, err = call(*words)
        assert code == 0, err
        assert "data.root" not in out + err


def test_statistics_count_no_audio_that_does_not_open_as_silence(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE_HZ)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    manifest = tmp_path / "all.jsonl"
    manifest.write_text("".join(json.dumps({"path": f"{name}.wav", "text": "x"}) + "\n" for name in "abc"), "utf-8")
    code, out, err = call("data", "stats", str(manifest), "--json")
    assert code == 0, err
    body = only_json(out)
    assert (body["clips"], body["without_duration"]) == (3, 2)
    assert body["duration_s"]["min"] == body["duration_s"]["max"] > 0
    assert "the audio of 2 of 3 clips does not exist or does not open" in err


def test_an_import_says_that_another_column_could_be_the_transcript(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE_HZ)
    table = tmp_path / "t.csv"
    for sentence, said in (("Two.", True), ("one", False)):
        table.write_text(f"path,text,sentence\na.wav,one,{sentence}\n")
        code, _, err = call("data", "import", str(table), str(tmp_path / "all.jsonl"))
        assert code == 0, err
        assert ("'sentence' holds another transcript for 1 clip" in err) is said
    code, _, err = call("data", "import", str(table), str(tmp_path / "all.jsonl"), "--text-column", "sentence")
    assert code == 0, err
    assert "another transcript" not in err


def test_an_import_says_what_it_assumed_and_what_is_missing(tmp_path: Path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", tone(), RATE_HZ)
    table = tmp_path / "t.csv"
    table.write_text("path;text\na.wav;one\ngone.wav;two\n")
    manifest = tmp_path / "all.jsonl"
    code, out, err = call("data", "import", str(table), str(manifest), "--json")
    assert code == 0, err
    body = only_json(out)
    assert (body["format"], body["clips"]) == ("csv", 2)
    assert [finding["check"] for finding in body["findings"]] == [
        "import.delimiter",
        "audio.missing",
        "import.no_speakers",
    ]
    assert "WARNING: the audio files of 1 of 2 clips do not exist" in err
    code, out, _ = call(
        "data", "import", f"csv:{table}", str(manifest), "--delimiter", "semicolon", "--text-column", "text"
    )
    assert code == 0
    assert "2 clips" in out
    assert "1 texts" not in out
    manifest.unlink()
    table.write_text("path;text\ngone.wav;two\n")
    refused(call("data", "import", str(table), str(manifest)), "no clip of")
    assert not manifest.exists()
    refused(call("data", "import", str(table), str(manifest), "--contents", "classes"), "contents")
    refused(call("data", "import", str(table), str(manifest), "--encoding", "klingon"), "no encoding")


# --- the whole pipeline --------------------------------------------------------------------------


def test_the_quickstart_leaves_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With few steps; how well it learns is for `make quickstart` to show."""
    honest = quickstart.load_run_config
    few = ["training.max_steps=3", "data.limit=20", "evaluation.bootstrap=100", "data.loader_workers=0"]
    monkeypatch.setattr(quickstart, "load_run_config", lambda words, **named: honest([*words, *few], **named))
    place = tmp_path / "run"
    code, out, err = call("quickstart", "--dir", str(place), "--json")
    assert code == 0, err
    body = only_json(out)
    assert {"run", "before", "after", "seconds", "export"} <= set(body)
    assert body["before"]["wer"]["value"] > 0.2
    assert {"value", "low", "high", "count", "unit"} <= set(body["after"]["wer"])
    for name in ("run.json", "events.jsonl", "report.html", "adapter/adapter_model.safetensors"):
        assert (place / name).is_file()
    assert {path.name for path in (place / "predictions").iterdir()} == {"before.jsonl", "after.jsonl"}
    assert (Path(body["export"]) / "model.safetensors").is_file()
    record = json.loads((place / "run.json").read_text("utf-8"))
    assert record["config"]["quantization"]["bits"] == 4
    assert record["model"]["quantized_linears"] > 0


# --- tokenizers, composed models, classes --------------------------------------------------------


def test_a_tokenizer_is_trained_on_the_transcripts(tmp_path: Path):
    source = corpus(tmp_path / "clips", "all", 6)
    code, out, err = call(
        "data",
        "tokenizer",
        str(source),
        str(tmp_path / "words"),
        "--kind",
        "characters",
        "--held-out",
        str(source),
        "--json",
    )
    assert code == 0, err
    found = only_json(out)
    assert found["kind"] == "characters"
    assert found["unknown_characters"] == {}
    assert (tmp_path / "words" / "tokenizer.json").is_file()
    refused(call("data", "tokenizer", str(source), str(tmp_path / "words")), "not empty")
    refused(call("data", "tokenizer", str(source), str(tmp_path / "new"), "--vocab-size", "5"), "vocabulary")
    refused(call("data", "tokenizer", str(source), str(tmp_path / "new"), "--kind", "syllables"), "syllables")


def test_a_model_is_composed_of_parts_that_fit(tmp_path: Path):
    nano = "assets:whisper-nano"
    refused(call("compose", str(tmp_path / "m"), f"encoder={nano}", f"language_model={nano}"), "causal")
    refused(call("compose", str(tmp_path / "m"), f"encoder={nano}", "projector.latent=4"), "projector.latents")
    assert not (tmp_path / "m").exists()
    words = (f"encoder={nano}", "language_model=assets:qwen3-asr-nano", "projector.kind=perceiver")
    code, out, err = call("compose", str(tmp_path / "m"), *words, "projector.latents=16", "--json")
    assert code == 0, err
    found = only_json(out)
    assert found["parts"]["projector"] < found["parts"]["language_model"]
    assert found["settings"]["perceiver_latents"] == 16
    kept = (tmp_path / "m" / "config.json").read_text("utf-8")
    assert json.loads(kept)["perceiver_latents"] == 16
    assert str(ROOT) not in kept  # no place of the machine that made it


def test_classes_of_files_by_the_packaged_model(tmp_path: Path):
    from sonotune.data.rudiments import plan_rudiments, render

    planned = plan_rudiments(40, 7)[0]
    file = tmp_path / "hit.wav"
    soundfile.write(file, render(planned, seed=7), RATE_HZ)
    code, out, err = call("classify", "model=ast_nano", str(file), "--json")
    assert code == 0, err
    (found,) = only_json(out)["predictions"]
    assert found["path"] == str(file)
    assert len(found["scores"]) == 40
    assert sum(found["scores"].values()) == pytest.approx(1.0, abs=1e-3)
    assert found["labels"] == [max(found["scores"], key=found["scores"].get)]
    refused(call("transcribe", "model=ast_nano", str(file)), "classify")
    refused(call("classify", "model=ast_nano", str(tmp_path / "none.wav")), "does not exist")


@pytest.mark.parametrize("model", ["whisper_nano", "ctc_nano", "qwen3_asr_nano"])
def test_every_packaged_speech_model_hears_a_packaged_clip(model: str):
    from sonotune.data.importers import load

    clip = load("assets:quickstart/test.jsonl")[0]
    code, out, err = call("transcribe", f"model={model}", str(clip.path), "--json")
    assert code == 0, err
    (found,) = only_json(out)["transcripts"]
    assert found["text"]


def test_a_reader_that_closes_early_is_no_failure():
    """`sonotune inspect ... | head -0`, whose pipe is closed before anything is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "sonotune", "inspect", "model=whisper_nano"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_setting_of_the_frozen_weights_holds_for_scoring():
    words = ["model=whisper_nano", "quantization.bits=4", "quantization.double=false", "quantization.skip=[decoder]"]
    loaded = open_recognizer(load_run_config(words).config).opened.loaded
    assert loaded.quantized
    assert not [name for name in loaded.quantized if ".decoder." in name]
    assert not any(loaded.module.get_submodule(name).weight.compress_statistics for name in loaded.quantized)


@pytest.mark.parametrize(
    "words",
    [
        ["data", "stats", "LONG"],
        ["transcribe", "model=whisper_nano", "LONG"],
        ["inspect", "model=LONG"],
        ["report", "LONG"],
        ["compare", "LONG", "LONG"],
        ["export", "LONG", "out"],
        ["data", "import", "LONG", "out.jsonl"],
        ["train", "config=LONG"],
        ["inspect", "model.checkpoint=~nobody-here/x"],
    ],
)
def test_names_that_no_file_system_takes_are_the_users_to_mend(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*(word.replace("LONG", "a" * 300) for word in words))
    assert code == 2
    assert err.strip().splitlines()[0].startswith("sonotune: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("training.lr=1e-3", "training.learning_rate"),
        ("lr=1e-3", "training.learning_rate"),
        ("adapter.r=8", "adapter.rank"),
        ("batch_size=4", "training.batch_max_clips"),
        ("epochs=3", "training.max_epochs"),
        ("evaluation.batch_size=4", "evaluation.batch_max_clips"),
        ("rank=8", "adapter.rank"),
        ("load_in_4bit=true", "quantization.bits=4"),
        ("training.warmup_step=3", "training.warmup_steps"),
    ],
)
def test_what_other_tools_call_a_setting_is_understood_as_a_hint(word: str, meant: str):
    refused(call("train", "model=whisper_nano", "data.train=x.jsonl", word), f"did you mean {meant!r}?")


def test_every_hint_names_a_setting():
    known = {setting.name for setting in describe_settings()}
    assert {meant.partition("=")[0] for meant in OTHER_NAMES.values()} <= known


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["data"], ["train", "-h"], ["data", "split", "-h"]])
def test_help_is_no_mistake(words: list[str]):
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: sonotune")


def test_commands_stand_in_the_order_of_work():
    told = call("--help")[1].partition("Commands:")[2]
    places = [told.index(f"\n  {name}") for name in ("data", "plan", "train", "evaluate", "export", "transcribe")]
    assert places == sorted(places)


def test_settings_are_listed_by_group_and_found_by_a_word():
    everything = call("settings")[1]
    assert all(f"  {setting.name}=" in everything for setting in describe_settings())
    found = call("settings", "lr")[1]
    assert "training.learning_rate=auto" in found
    assert "repetition_penalty" not in found  # "already" has the letters
    assert "training.learning_rates=" in call("settings", "learning", "rate")[1]
    assert "quantization.bits=" in call("settings", "quant")[1]
    listed = json.loads(call("settings", "adapter.rank", "--json")[1])["settings"]
    assert [one["name"] for one in listed] == ["adapter.rank"]
    refused(call("settings", "zebra"), "no setting is about 'zebra'")
    refused(call("settings", "gpu"), "no setting is about 'gpu', but `sonotune plan --gpu` is")
