"""Seeds, digests, atomic writes and the run directory."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from sonotune import runs
from sonotune.errors import ResourceError, RunDirectoryError
from sonotune.runs import RunDirectory
from sonotune.types import Finding, RunRecord

DIGEST = "d" * 64


def open_run(path: Path, **changes) -> RunDirectory:
    return RunDirectory.create_or_open(path, **{"config_digest": DIGEST, **changes})


def make_record(**changes) -> RunRecord:
    values = {
        "schema": 1,
        "run_id": "r",
        "status": "running",
        "config": {"training": {"seed": 0}},
        "config_origin": {},
        "config_digest": DIGEST,
        "data_digest": {},
        "code": {},
        "environment": {},
        "model": {},
        "ranks": {"a.b": 4},
        "findings": (Finding(check="audio.truncated", severity="error", message="שלום", clip_ids=("c1", "c2")),),
        "scores": {"after": {"wer": {"value": 0.1, "low": 0.05, "high": 0.2, "count": 3}}},
        "stages": ({"name": "all"},),
        "choices": {},
        "peak_memory_bytes": 1,
        "seconds": 2.5,
    }
    return RunRecord(**{**values, **changes})


# --- seeds and digests ---


def test_generator_is_a_function_of_its_keys_alone():
    first = runs.generator(3, 1, "clip-7", "noise").random(4)
    runs.generator(3, 1, "clip-7", "speed").random(100)
    np.testing.assert_array_equal(first, runs.generator(3, 1, "clip-7", "noise").random(4))


@pytest.mark.parametrize(
    "other", [(4, 1, "a", "noise"), (3, 2, "a", "noise"), (3, 1, "b", "noise"), (3, 1, "a", "gain")]
)
def test_every_key_changes_the_draws(other):
    assert not np.array_equal(runs.generator(3, 1, "a", "noise").random(4), runs.generator(*other).random(4))


def test_key_boundaries_matter():
    assert runs.torch_seed(0, "ab", "c") != runs.torch_seed(0, "a", "bc")


def test_generator_values_never_change():
    # A change here breaks resuming every run that was ever interrupted.
    assert runs.generator(0, 1, "a", "noise").random(2).tolist() == [0.6631396502077511, 0.4086877432658125]
    assert runs.torch_seed(0, "x") == 2521716577954912382


def test_torch_seed_has_63_bits():
    seeds = [runs.torch_seed(0, key) for key in range(200)]
    assert len(set(seeds)) == 200
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


def test_digests(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert runs.digest_bytes(b"abc") == runs.digest_file(tmp_path / "f") == known
    assert runs.digest_json({"b": 1, "a": (2,)}) == runs.digest_json({"a": [2], "b": 1})
    assert runs.digest_json({"a": 1}) != runs.digest_json({"a": 1.5})


# --- writing ---


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm here")  # noqa: S108
def test_a_file_in_shared_memory_is_a_file_and_no_device():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        path = Path(place) / "f"
        runs.atomic_write_text(path, "a long text")
        before = path.stat().st_ino
        runs.atomic_write_text(path, "short")
        assert path.read_text() == "short"
        assert path.stat().st_ino != before  # replaced, not written over


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_that_leads_to_a_file_is_written_to(tmp_path, name):
    program = f"from pathlib import Path; from sonotune import runs; runs.atomic_write_text(Path({name!r}), 'x')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "x"


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "file.json"
    runs.atomic_write_json(path, {"a": Path("x"), "b": float("nan"), "c": np.float32(0.5), "d": (1, 2)})
    runs.atomic_write_json(path, {"word": "שלום"})
    assert json.loads(path.read_text("utf-8")) == {"word": "שלום"}
    assert [child.name for child in path.parent.iterdir()] == ["file.json"]


def test_numbers_json_lacks_stay_visible(tmp_path):
    runs.atomic_write_json(tmp_path / "f", [float("nan"), float("-inf")])
    assert json.loads((tmp_path / "f").read_text()) == ["nan", "-inf"]


def test_a_file_name_that_is_not_utf8_can_be_recorded(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    runs.atomic_write_json(tmp_path / "f", {"path": name})
    assert json.loads((tmp_path / "f").read_text("utf-8"))["path"] == name


def test_bytes_are_on_disk_before_the_rename_and_the_rename_before_it_returns(tmp_path, monkeypatch):
    real_sync, real_replace, calls = os.fsync, Path.replace, []

    def sync(descriptor):
        calls.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve() else "file")
        real_sync(descriptor)

    def replace(path, target):
        calls.append("rename")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    runs.atomic_write_text(tmp_path / "f", "x")
    assert calls == ["file", "rename", "folder"]


def disk_full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_full_disk_keeps_the_old_file_and_names_path_and_bytes(tmp_path, monkeypatch, call):
    path = tmp_path / "file.txt"
    runs.atomic_write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, disk_full)
        with pytest.raises(ResourceError, match=r"file\.txt needs 11 bytes") as caught:
            runs.atomic_write_text(path, "new content")
    assert caught.value.exit_code == 5
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["file.txt"]


def test_unwritable_place_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"run\.dir=PATH") as caught:
        runs.atomic_write_text(tmp_path / "file" / "child", "x")
    assert caught.value.exit_code == 2


def test_short_writes_are_finished(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    runs.atomic_write_bytes(tmp_path / "f", b"0123456789")
    assert (tmp_path / "f").read_bytes() == b"0123456789"


# --- secrets ---


def test_secrets_reach_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-one-93")
    monkeypatch.setenv("SERVICE_PASSWORD", "canary-two-93")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "whisper-nano")
    hub = "hf_" + "Ab1" * 10
    text = f"401 for https://user:canary3@host/x with canary-one-93, canary-two-93 and {hub}; model whisper-nano"
    with open_run(tmp_path / "run") as run:
        run.event("failed", message=text, nested={"list": [text]})
        run.write_record(make_record(choices={"x": text}, environment=runs.environment()))
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    for canary in (b"canary", hub.encode()):
        assert canary not in written
    assert b"whisper-nano" in written


def test_a_secret_that_looks_like_a_name_does_not_break_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("ODD_KEY", "config_digest")
    with open_run(tmp_path) as run:
        run.write_record(make_record())
        assert run.read_record().config_digest == DIGEST


# --- the directory ---


def test_layout_and_lock(tmp_path):
    with open_run(tmp_path / "a" / "run") as run:
        assert not run.resumed
        assert run.checkpoints_dir.is_dir()
        assert run.predictions_dir.is_dir()
        assert (run.path / "run.lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()}"):
            open_run(run.path)
    open_run(run.path).close()


HOLDER = """
    import sys, time
    from pathlib import Path
    from sonotune.runs import RunDirectory
    run = RunDirectory.create_or_open(Path(sys.argv[1]), config_digest="d" * 64)
    {then}
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path, then: str = "") -> subprocess.Popen[str]:
    code = textwrap.dedent(HOLDER).format(then=then)
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_process_is_refused_and_a_killed_one_lets_go(tmp_path):
    holder = start_holder(tmp_path / "run")
    try:
        with pytest.raises(RunDirectoryError, match=f"process {holder.pid}"):
            open_run(tmp_path / "run")
    finally:
        holder.kill()
        holder.communicate()
    with open_run(tmp_path / "run") as run:
        assert (run.path / "run.lock").read_text() == f"{os.getpid()}\n"


def test_a_run_whose_process_is_gone_shows_as_interrupted(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.write_record(make_record())
        assert runs.read_record(run.path).status == "running"
    assert runs.read_record(tmp_path / "run").status == "interrupted"
    with open_run(tmp_path / "run") as run:  # which goes on with it
        assert run.resumed
    holder = start_holder(tmp_path / "run")
    try:
        assert runs.read_record(tmp_path / "run" / "run.json").status == "running"
    finally:
        holder.kill()
        holder.communicate()
    assert runs.read_record(tmp_path / "run").status == "interrupted"
    (tmp_path / "run" / "run.lock").unlink()
    assert runs.read_record(tmp_path / "run").status == "interrupted"


def open_when_free(path, *, wait_s=10.0):
    """On a busy machine the worker may not yet have had the processor to let the lock go."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return open_run(path)
        except RunDirectoryError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_forked_worker_that_outlives_a_killed_run_does_not_keep_the_lock(tmp_path):
    then = """
import os
child = os.fork()
if child == 0:
    time.sleep(60)
Path(sys.argv[1], "events.jsonl").write_text(str(child))
"""
    holder = start_holder(tmp_path / "run", then=then)
    worker = int((tmp_path / "run" / "events.jsonl").read_text())
    try:
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # still there
        (tmp_path / "run" / "events.jsonl").unlink()
        open_when_free(tmp_path / "run").close()
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.communicate()


def test_resume_of_the_same_configuration(tmp_path):
    with open_run(tmp_path) as run:
        run.write_record(make_record(status="interrupted"))
        run.event("step", step=1)
    with open_run(tmp_path, resume="must") as run:
        assert run.resumed
        assert [event["kind"] for event in run.events()] == ["step"]


def test_a_directory_that_died_before_its_first_record_is_started_afresh(tmp_path):
    with open_run(tmp_path) as run:
        run.event("begin")
    (tmp_path / ".run.json.17.tmp").write_text("{")
    with open_run(tmp_path) as run:
        assert not run.resumed


def test_a_run_that_failed_with_nothing_to_show_gives_its_place_to_the_mended_one(tmp_path):
    def failed() -> None:
        with open_run(tmp_path) as run:
            run.event("failed")
            run.write_record(make_record(status="failed", scores={}))

    failed()
    with open_run(tmp_path, config_digest="e" * 64) as run:
        assert not run.resumed
        assert list(run.events()) == []
        assert not run.record_path.exists()
    failed()
    with pytest.raises(RunDirectoryError, match="another configuration"):
        open_run(tmp_path, config_digest="e" * 64, resume="must")
    (tmp_path / "checkpoints" / "step-000001").mkdir()
    with pytest.raises(RunDirectoryError, match="another configuration"):
        open_run(tmp_path, config_digest="e" * 64)
    assert (tmp_path / "run.json").exists()


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    with open_run(tmp_path) as run:
        run.write_record(make_record(config={"training": {"seed": 0, "max_epochs": 3}}))
    with pytest.raises(RunDirectoryError, match=r"training\.seed: was 0, now 1") as caught:
        open_run(tmp_path, config_digest="e" * 64, settings={"training.seed": 1, "training.max_epochs": 3})
    assert "max_epochs" not in str(caught.value)


def test_a_refused_directory_is_not_left_locked(tmp_path):
    with open_run(tmp_path) as run:
        run.write_record(make_record())
    with pytest.raises(RunDirectoryError):
        open_run(tmp_path, config_digest="e" * 64)
    open_run(tmp_path).close()


@pytest.mark.parametrize("resume", ["auto", "never", "must"])
def test_a_finished_run_is_never_overwritten(tmp_path, resume):
    with open_run(tmp_path) as run:
        run.write_record(make_record(status="finished"))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="finished"):
        open_run(tmp_path, resume=resume)
    assert (tmp_path / "run.json").read_bytes() == before


def test_never_and_must(tmp_path):
    with pytest.raises(RunDirectoryError, match="no run to resume"):
        open_run(tmp_path / "new", resume="must")
    with open_run(tmp_path / "old") as run:
        run.write_record(make_record())
    with pytest.raises(RunDirectoryError, match=r"run\.resume is never"):
        open_run(tmp_path / "old", resume="never")


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunDirectoryError, match=r"thesis\.tex"):
        open_run(tmp_path)


def test_checkpoints_without_a_record_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "step-000010").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match=r"no run\.json"):
        open_run(tmp_path)


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        open_run(tmp_path / "run")


def test_full_disk_when_the_directory_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", disk_full)
    with pytest.raises(ResourceError, match=r"run\.lock"):
        open_run(tmp_path / "run")


# --- events ---


def test_events_append_and_read_back(tmp_path):
    with open_run(tmp_path) as run:
        run.event("step", step=1, loss=float("nan"), clips=("a", "b"), kinds={"word": "שלום"})
        run.event("choice", path=Path("x"), kind2=np.int64(3))
        first, second = run.events()
    assert first["loss"] == "nan"
    assert first["clips"] == ["a", "b"]
    assert first["kinds"] == {"word": "שלום"}
    assert second == {"time": second["time"], "kind": "choice", "path": "x", "kind2": 3}
    assert abs(second["time"] - first["time"]) < 5


def test_a_torn_last_line_is_left_out_and_cut_off_at_the_next_opening(tmp_path):
    with open_run(tmp_path) as run:
        run.event("a")
        with run.events_path.open("ab") as log:
            log.write(b'{"time": 1, "ki')
        assert [event["kind"] for event in run.events()] == ["a"]
    with open_run(tmp_path) as run:
        run.event("b")
        assert [event["kind"] for event in run.events()] == ["a", "b"]


def test_damage_in_the_middle_of_the_log_is_an_error_with_its_line(tmp_path):
    with open_run(tmp_path) as run:
        run.event("a")
        run.events_path.write_bytes(b"garbage\n" + run.events_path.read_bytes())
        with pytest.raises(RunDirectoryError, match=r"events\.jsonl:1"):
            list(run.events())


def test_full_disk_leaves_whole_lines_only(tmp_path, monkeypatch):
    with open_run(tmp_path) as run:
        run.event("a")
        real, calls = os.write, []

        def half(descriptor, data):
            calls.append(data)
            return real(descriptor, bytes(data)[:5]) if len(calls) == 1 else disk_full()

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(ResourceError, match=r"events\.jsonl needs \d+ bytes"):
                run.event("b", text="x" * 100)
        assert len(calls) == 2
        run.event("c")
        assert [event["kind"] for event in run.events()] == ["a", "c"]


def test_truncation_drops_later_steps_only(tmp_path):
    with open_run(tmp_path) as run:
        for step in (1, 2, 3, 4):
            run.event("step", step=step)
        run.event("choice", setting="x")
        run.truncate_events_after(2)
        run.event("step", step=3)
        assert [event.get("step") for event in run.events()] == [1, 2, None, 3]


def test_a_closed_directory_is_not_written(tmp_path):
    run = open_run(tmp_path)
    run.close()
    run.close()
    with pytest.raises(RunDirectoryError, match="closed"):
        run.event("late")
    with pytest.raises(RunDirectoryError, match="closed"):
        run.write_record(make_record())


# --- the record ---


def test_record_round_trip(tmp_path):
    with open_run(tmp_path) as run:
        run.write_record(make_record())
        assert run.read_record() == make_record()
    assert runs.read_record(tmp_path) == runs.read_record(tmp_path / "run.json")


def test_full_disk_keeps_the_earlier_record(tmp_path, monkeypatch):
    with open_run(tmp_path) as run:
        run.write_record(make_record(seconds=1.0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", disk_full)
            with pytest.raises(ResourceError, match=r"run\.json"):
                run.write_record(make_record(seconds=2.0))
        assert run.read_record().seconds == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "it is a list, and it must be an object"),
        ('{"schema": 99}', "schema 99; this version reads 1"),
        ('{"schema": "1"}', "schema '1'"),
        ('{"schema": 1}', "run_id is missing; status is missing; config is missing; and 13 more"),
    ],
)
def test_records_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=message):
        runs.read_record(tmp_path)


def test_no_record_at_all(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"holds run\.json"):
        runs.read_record(tmp_path / "nowhere")


def test_what_a_newer_version_adds_is_passed_over():
    value = {**runs.record_to_json(make_record()), "surprise": 1}
    assert runs.record_from_json(value) == make_record()


def test_every_schema_that_was_ever_written_can_be_read():
    value = runs.record_to_json(make_record())
    assert value["schema"] == runs.RECORD_SCHEMA
    assert runs.record_from_json(value) == make_record()
    assert {field.name for field in dataclasses.fields(RunRecord)} == value.keys()


# --- what ran ---


def test_environment_has_what_a_reader_needs_and_no_variables(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("SOME_VARIABLE", "some-value-93")
    found = runs.environment()
    assert found["world_size"] == 4
    assert found["packages"]["numpy"] == np.__version__
    assert found["memory_bytes"] > 2**20
    assert "some-value-93" not in json.dumps(found)


def test_code_version():
    found = runs.code_version()
    assert set(found) == {"version", "commit", "tree"}
    assert all(isinstance(value, str) and value for value in found.values())


def test_importing_runs_is_free_of_torch():
    code = "import sonotune.runs, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- drafts of killed processes -------------------------------------------------------------------


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_drafts_of_processes_that_are_gone_are_removed_and_nothing_else(tmp_path: Path):
    left = [f".run.json.{gone()}.tmp", f".after.jsonl.{gone()}.tmp"]
    kept = [f".run.json.{os.getpid()}.tmp", ".notes.tmp", "run.json.1.tmp", f".run.json.{gone()}.txt", ".hidden"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / f".corpus.{gone()}.tmp").mkdir()
    runs.clear_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    os.utime(tmp_path / kept[0], (0, 0))  # a day and more: the number is another process's by now
    runs.clear_drafts(tmp_path)
    assert not (tmp_path / kept[0]).exists()
    runs.clear_drafts(tmp_path / "absent")


def test_a_file_that_is_written_again_loses_its_own_drafts_alone(tmp_path: Path):
    own, other = tmp_path / f".m.jsonl.{gone()}.tmp", tmp_path / f".theirs.{gone()}.tmp"
    for path in (own, other):
        path.write_text("x")
    runs.atomic_write_text(tmp_path / "m.jsonl", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, "m.jsonl"])


def test_a_run_that_starts_again_clears_what_a_kill_left(tmp_path: Path):
    with open_run(tmp_path / "run") as run:
        run.write_record(make_record(status="interrupted"))
    process = gone()
    names = (f".events.jsonl.{process}.tmp", f"predictions/.after.jsonl.{process}.tmp", f".run.json.{process}.tmp")
    drafts = [tmp_path / "run" / name for name in names]
    for path in drafts:
        path.write_text("x")
    open_run(tmp_path / "run").close()
    assert not any(path.exists() for path in drafts)


def test_a_pipe_in_the_place_of_the_log_is_refused_and_not_waited_for(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.events_path.unlink(missing_ok=True)
        os.mkfifo(run.events_path)
        with pytest.raises(RunDirectoryError, match=r"events\.jsonl"):
            run.event("step", step=1)
