"""Text leaves whole: whatever the names and texts hold, whoever reads, and however full the disk is."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune import cli
from sonotune.cli import _Printable
from sonotune.cli.shared import json_text, one_field, print_result, tell
from sonotune.data.manifest import write_manifest
from sonotune.errors import ResourceError
from sonotune.progress import note, printable, printable_name, shown
from sonotune.registry import resolve_asset
from sonotune.runs.files import atomic_write_bytes, atomic_write_text
from sonotune.types import Clip

FULL = Path("/dev/full")
CLEAR = "\x1b[2Jevil\x9b31m\r"  # what clears a screen, colours it, and writes over a line
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sonotune", *words]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, check=False, timeout=300, **options)  # type: ignore[call-overload,no-any-return]


def call(*words: str) -> tuple[int, str, str]:
    """Run a command in this process; exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def test_what_a_terminal_would_obey_is_escaped_and_text_is_left_alone():
    assert printable(CLEAR) == r"\x1b[2Jevil\x9b31m\x0d"
    assert printable("bad\udcff.wav") == r"bad\udcff.wav"
    for text in ("שלום עולם\n\tא\u0301", "中文 🎵", "\u200f-\u200f"):
        assert printable(text) == text
    assert one_field("a\tb\nc") == r"a\tb\nc"


BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


def test_controls_of_direction_are_escaped_in_names_and_left_in_transcripts(capsys: pytest.CaptureFixture[str]):
    assert printable_name("safe\u202egpj.wav") == r"safe\u202egpj.wav"
    assert not set(BIDI) & set(printable_name(BIDI))
    assert printable(BIDI) == BIDI
    assert json.loads(json_text({"text": BIDI})) == {"text": BIDI}
    assert not set(BIDI) & set(json_text({"text": BIDI}))
    tell(f"WARNING: {BIDI}")
    print_result({}, as_json=False, lines=[BIDI])
    with shown():
        note(BIDI)
    shown_of_names = capsys.readouterr()
    assert not set(BIDI) & set(shown_of_names.out + shown_of_names.err)
    print_result({}, as_json=False, lines=[BIDI], transcripts=True)
    assert capsys.readouterr().out == f"{BIDI}\n"


def test_json_is_valid_in_utf8_whatever_is_in_it():
    value = {"a\udcff": ["\x9b\x7f\x1b", "שלום"]}
    text = json_text(value)
    assert json.loads(text.encode("utf-8")) == value
    assert "\x9b" not in text
    assert "שלום" in text


def test_lines_of_progress_and_of_the_log_are_escaped(capsys: pytest.CaptureFixture[str]):
    with shown():
        note(f"loading {CLEAR}")
    assert capsys.readouterr().err == "loading \\x1b[2Jevil\\x9b31m\\x0d\n"
    script = "import logging; from sonotune.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    script += f"logging.getLogger('x').warning({CLEAR!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "WARNING x: \\x1b[2Jevil\\x9b31m\\x0d\n"


def test_warnings_of_ours_look_as_other_messages_do():
    def told(level: int, name: str) -> str:
        return _Printable("%(levelname)s %(name)s: %(message)s").format(
            logging.makeLogRecord(
                {"levelno": level, "levelname": logging.getLevelName(level), "name": name, "msg": CLEAR}
            )
        )

    assert told(logging.WARNING, "sonotune.models.base") == "sonotune: WARNING: \\x1b[2Jevil\\x9b31m\\x0d"
    assert told(logging.INFO, "sonotune.models.base").startswith("INFO sonotune.models.base: ")
    assert told(logging.WARNING, "sonotunes.x").startswith("WARNING sonotunes.x: ")


def test_ids_of_strangers_do_not_reach_the_terminal(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    clip = Clip(
        id=CLEAR, path=tmp_path / "a.wav", duration_s=1.0, text=CLEAR, speaker=CLEAR, domain=CLEAR, label=(CLEAR,)
    )
    write_manifest(tmp_path / "m.jsonl", [clip])
    for words in (["stats", str(tmp_path / "m.jsonl")], ["split", str(tmp_path / "m.jsonl"), str(tmp_path / "s")]):
        for more in ([], ["--json"]):
            _, out, err = call("data", *words, *more)
            assert not {"\x1b", "\x9b", "\r"} & set(out + err)
    code, _, err = call("data", "stats", f"{CLEAR}.jsonl")
    assert code == 2
    assert r"\x1b[2Jevil" in err


def test_a_folder_with_a_name_that_is_no_utf8_is_imported(tmp_path: Path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in (b"bad\xff.wav", b"good.wav"):
        soundfile.write(folder / "x.wav", 0.1 * np.ones(8000), 8000)
        (folder / "x.wav").rename(folder / os.fsdecode(name))
    code, out, err = call("data", "import", f"folder:{folder}", str(folder / "all.jsonl"), "--json")
    assert code == 0, err
    assert json.loads(out)["clips"] == 2
    code, out, err = call("data", "stats", str(folder / "all.jsonl"), "--json")
    assert json.loads(out)["hours"] == pytest.approx(2 / 3600)


# --- full disks, and readers who have left --------------------------------------------------------


@needs_full
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["settings"], ["settings", "--json"]])
def test_a_full_disk_behind_stdout_is_a_message_and_exit_code_5(words: list[str]):
    with FULL.open("w") as full:
        done = run(*words, stdout=full)
    assert done.returncode == 5
    assert done.stderr.startswith("sonotune: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@needs_full
def test_a_full_disk_behind_stderr_leaves_the_exit_code():
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-m", "sonotune", "nothing"], stderr=full, check=False, timeout=60)
    assert done.returncode == 2


@needs_full
@pytest.mark.slow
def test_a_run_that_is_finished_keeps_its_files_when_nothing_can_be_printed(tmp_path: Path):
    corpus = resolve_asset("assets:quickstart")
    words = [
        *("train", "model=whisper_nano", f"data.train={corpus / 'train.jsonl'}", f"data.eval={corpus / 'eval.jsonl'}"),
        *("data.limit=8", "training.max_steps=1", "evaluation.zero_shot=false", "evaluation.bootstrap=100"),
        *("data.loader_workers=0", f"run.dir={tmp_path / 'run'}"),
    ]
    with FULL.open("w") as full:
        done = run(*words, stdout=full)
    assert done.returncode == 5
    assert "Files that the command wrote are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["status"] == "finished"
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "adapter" / "README.md").is_file()


@pytest.mark.parametrize("words", [["--help"], ["settings"], ["settings", "--json"]])
def test_a_reader_who_has_seen_enough_is_no_failure(words: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = run(*words, stdout=pipe)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_pipe_that_breaks_is_not_taken_for_the_output():
    script = (
        "import sonotune.cli as cli\n"
        "@cli.app.command()\ndef breaks(): raise BrokenPipeError(32, 'Broken pipe')\n"
        "cli.main(['breaks'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


@pytest.mark.parametrize("words", ["could not create a primitive", "std::bad_alloc"])
def test_memory_that_ran_out_below_torch_is_exit_code_5_with_advice(words: str):
    script = (
        "import sonotune.cli as cli\n"
        f"@cli.app.command()\ndef breaks(): raise RuntimeError({words!r})\n"
        "cli.main(['breaks'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 5
    assert done.stderr.startswith(f"sonotune: out of memory ({words}). Lower training.batch_seconds")


@needs_full
def test_a_device_is_written_to_and_never_replaced():
    with pytest.raises(ResourceError, match="the disk is full: /dev/full"):
        atomic_write_bytes(FULL, b"x")
    assert stat.S_ISCHR(FULL.stat().st_mode)


def test_a_pipe_is_written_to_and_never_replaced(tmp_path: Path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text("utf-8")))
    reader.start()
    atomic_write_text(pipe, "שלום \udcff")
    reader.join(timeout=10)
    assert read == ["שלום \\udcff"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
