"""A sweep from line to record, with trials that are made up: order, resuming, several workers, failures, the best."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sonotune.errors import ConfigError, Interrupted, MissingExtraError, NumericError, ResourceError, RunDirectoryError
from sonotune.sweeps.claims import open_claims
from sonotune.sweeps.optuna_study import load_optuna
from sonotune.sweeps.sweep import Worker, exit_code
from sonotune.sweeps.sweep_plan import plan_sweep
from sonotune.sweeps.sweep_record import read_sweep
from sonotune.training.runtime import stop_on_signals

Work = Callable[..., dict[str, Any]]
RANKS = "adapter.rank=2,4,8,16"


def by_rank(config: Any) -> float:
    """Rank 8 is the best."""
    return 0.2 + abs(config.adapter.rank - 8) / 100


def values(body: dict[str, Any]) -> list[str]:
    return [row["values"]["adapter.rank"] for row in body["configurations"]]


def test_a_grid_runs_ranks_and_writes(work: Work, trials, tmp_path: Path):
    runs = trials(error_rate=by_rank)
    body = work(runs, RANKS)
    assert len(runs.calls) == len(set(runs.calls)) == 4
    assert body["status"] == "finished"
    assert values(body) == ["8", "4", "2", "16"]
    assert [row["rank"] for row in body["configurations"]] == [1, 2, 3, 4]
    assert body["winner"]["values"] == {"adapter.rank": "8"}
    assert body["winner"]["test"] is None
    assert (body["score"], body["title"], body["better"]) == ("wer", "WER", "lower")
    assert exit_code(body) == 0
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8")) == body
    assert (tmp_path / "sweep" / "report.html").is_file()
    for row in body["trials"]:
        assert row["line"].startswith("sonotune train model=whisper_nano ")
        assert row["status"] == "finished"
        assert (tmp_path / "sweep" / row["run"] / "run.json").is_file()
    second = body["configurations"][1]
    assert second["difference"]["value"] == pytest.approx(0.04)
    assert second["difference"]["low"] <= 0.04 <= second["difference"]["high"]
    assert body["configurations"][0]["difference"] is None


def test_a_score_of_which_more_is_better_is_turned_round(work: Work, trials, monkeypatch):
    made = trials(error_rate=by_rank)

    def run(words: Sequence[str], **options: Any) -> None:
        made(words, **options)
        path = Path(next(word for word in words if word.startswith("run.dir=")).partition("=")[2]) / "run.json"
        record = json.loads(path.read_text("utf-8"))
        record["scores"]["after"]["wer"]["better"] = "higher"
        path.write_text(json.dumps(record))

    assert values(work(run, RANKS)) == ["16", "2", "4", "8"]


def test_another_score_may_choose(work: Work, trials):
    assert work(trials(error_rate=by_rank), RANKS, "sweep.primary=cer")["score"] == "cer"


def test_a_score_that_runs_do_not_have_fails_every_trial(work: Work, trials):
    body = work(trials(), RANKS, "sweep.primary=map")
    assert {row["status"] for row in body["trials"]} == {"failed"}
    assert "no score map of data.eval; it has wer, cer" in body["trials"][0]["error"]
    assert body["winner"] is None
    assert exit_code(body) == 2


def test_the_same_line_runs_nothing_again(work: Work, trials):
    first = work(trials(error_rate=by_rank), RANKS)
    again = trials()
    second = work(again, RANKS)
    assert again.calls == []
    assert second["configurations"] == first["configurations"]


def test_more_values_join_what_is_done(work: Work, trials):
    work(trials(error_rate=by_rank), "adapter.rank=2,4")
    more = trials(error_rate=by_rank)
    body = work(more, RANKS)
    assert len(more.calls) == 2
    assert values(body)[0] == "8"


def test_another_line_in_the_same_directory_is_refused(work: Work, trials):
    work(trials(), RANKS)
    for words in ([RANKS, "training.max_steps=9"], [RANKS, "training.schedule=linear,cosine"]):
        with pytest.raises(RunDirectoryError, match=r"holds another sweep: .*adapter\.rank=2,4,8,16"):
            work(trials(), *words)


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_stop_inside_a_trial_goes_on_with_it(work: Work, trials, stop_at: int, tmp_path: Path):
    killed = trials(error_rate=by_rank, stop_at=stop_at)
    with pytest.raises(Interrupted):
        work(killed, RANKS)
    assert read_sweep(tmp_path / "sweep")["status"] == "unfinished"
    rest = trials(error_rate=by_rank)
    body = work(rest, RANKS)
    assert body["status"] == "finished"
    assert rest.calls[0] == killed.calls[-1]
    assert sorted(killed.calls[:-1] + rest.calls) == sorted(row["name"] for row in body["trials"])


def test_a_signal_between_two_trials_stops_the_worker(work: Work, trials):
    made = trials()

    def run(words: Sequence[str], **options: Any) -> None:
        made(words, **options)
        with stop_on_signals():  # as a run has it
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM between two trials"):
        work(run, RANKS)
    assert len(made.calls) == 1


def test_what_a_kill_left_between_run_and_record_is_found(work: Work, trials, tmp_path: Path):
    work(trials(error_rate=by_rank), RANKS)
    shutil.rmtree(tmp_path / "sweep" / "state")
    (tmp_path / "sweep" / "sweep.json").unlink()
    again = trials()
    assert values(work(again, RANKS))[0] == "8"
    assert again.calls == []


def test_a_failed_trial_is_kept_and_the_rest_goes_on(work: Work, trials):
    def fails(config: Any) -> Exception | None:
        return NumericError("the loss is NaN") if config.adapter.rank == 8 else None

    body = work(trials(error_rate=by_rank, fail=fails), RANKS)
    assert body["status"] == "finished"
    assert values(body) == ["4", "2", "16"]
    [failed] = [row for row in body["trials"] if row["status"] == "failed"]
    assert (failed["exit_code"], failed["error"]) == (4, "the loss is NaN")
    assert any("failed: the loss is NaN" in note for note in body["notes"])
    assert exit_code(body) == 0
    again = trials()
    work(again, RANKS)
    assert again.calls == []  # the same line would only diverge again


def test_a_trial_without_memory_is_tried_again_by_the_next_session_once(work: Work, trials):
    def fails(config: Any) -> Exception | None:
        return ResourceError("out of memory") if config.adapter.rank == 8 else None

    first = trials(error_rate=by_rank, fail=fails)
    work(first, RANKS)
    second = trials(error_rate=by_rank, fail=fails)
    work(second, RANKS)
    assert len(second.calls) == 1
    assert values(work(trials(error_rate=by_rank), RANKS))[0] == "8"


def test_a_bug_in_every_trial_ends_with_one(work: Work, trials):
    body = work(trials(fail=lambda config: ZeroDivisionError("division by zero")), "adapter.rank=2,4")
    assert exit_code(body) == 1
    assert any("2 trials failed alike" in note for note in body["notes"])


@pytest.mark.parametrize(
    ("keep", "checkpoints", "adapters"), [("weights", set(), {"2", "4", "8", "16"}), ("best", set(), {"8"})]
)
def test_what_nobody_asked_for_is_removed(work: Work, trials, tmp_path: Path, keep, checkpoints, adapters):
    body = work(trials(error_rate=by_rank), RANKS, f"sweep.keep={keep}")

    def having(kind: str) -> set[str]:
        return {
            row["values"]["adapter.rank"] for row in body["trials"] if (tmp_path / "sweep" / row["run"] / kind).is_dir()
        }

    assert having("checkpoints") == checkpoints
    assert having("adapter") == adapters
    assert having("predictions") == {"2", "4", "8", "16"}


def test_all_may_be_kept(work: Work, trials, tmp_path: Path):
    body = work(trials(), "adapter.rank=2,4", "sweep.keep=all")
    assert all((tmp_path / "sweep" / row["run"] / "checkpoints" / "step-000001").is_dir() for row in body["trials"])


def test_seeds_are_averaged_and_the_luckiest_does_not_win(work: Work, trials):
    def rate(config: Any) -> float:
        lucky = config.adapter.rank == 2 and config.training.seed == 1
        return 0.1 if lucky else by_rank(config) + 0.1 * (config.adapter.rank == 2)

    runs = trials(error_rate=rate)
    body = work(runs, "adapter.rank=2,8", "training.seed=0,1,2")
    assert len(runs.calls) == 6
    assert values(body) == ["8", "2"]
    best, other = body["configurations"]
    assert best["value"] == pytest.approx(0.2)
    assert (best["sd"], best["seeds"], len(best["trials"])) == (0.0, [0, 1, 2], 3)
    assert other["sd"] > 0.1
    assert len(body["winner"]["lines"]) == 3


def test_a_configuration_that_lacks_a_seed_is_not_ranked(work: Work, trials):
    def fails(config: Any) -> Exception | None:
        return NumericError("NaN") if config.adapter.rank == 8 and config.training.seed == 1 else None

    body = work(trials(error_rate=by_rank, fail=fails), "adapter.rank=2,8", "training.seed=0,1")
    assert [(row["values"]["adapter.rank"], row["rank"]) for row in body["configurations"]] == [("2", 1), ("8", None)]


def test_scores_on_other_clips_are_not_compared(work: Work, trials):
    work(trials(error_rate=by_rank), "adapter.rank=2,4")
    body = work(trials(error_rate=by_rank, data="f" * 64), RANKS)
    assert values(body) == ["4", "2"]
    assert sum("other clips of data.eval" in note for note in body["notes"]) == 2


def test_a_best_value_at_the_end_is_told(work: Work, trials):
    body = work(trials(error_rate=lambda config: 1 / config.adapter.rank), RANKS)
    assert "The best adapter.rank, 16, is at the upper end of its values: widen them." in body["notes"]


def test_a_best_value_in_the_middle_is_not(work: Work, trials):
    assert not any("end of its values" in note for note in work(trials(error_rate=by_rank), RANKS)["notes"])


def test_the_front_is_of_score_and_cost(work: Work, trials):
    costs = {2: (100, 10.0, 2**20), 4: (200, 40.0, 2**20), 8: (400, 20.0, 2**21), 16: (800, 5.0, 2**22)}
    body = work(trials(error_rate=by_rank, costs=lambda config: costs[config.adapter.rank]), RANKS)
    front = {row["values"]["adapter.rank"]: set(row["pareto"]) for row in body["configurations"]}
    assert front == {
        "8": {"parameters", "peak_bytes", "seconds"},
        "4": {"parameters", "peak_bytes"},
        "2": {"parameters", "seconds"},
        "16": {"seconds"},
    }


def test_of_equal_scores_the_smaller_wins(work: Work, trials):
    body = work(trials(costs=lambda config: (config.adapter.rank, 60.0, 2**30)), "adapter.rank=8,2,4")
    assert values(body) == ["2", "4", "8"]


def test_each_trial_has_a_line_before_it_and_one_after(work: Work, trials):
    told: list[str] = []
    work(trials(error_rate=by_rank), "adapter.rank=2,8", told=told.append)
    assert told[0].startswith("trial 1 of 2, ")
    assert told[0].endswith("adapter.rank=2")
    assert told[1].startswith("  sonotune train ")
    assert "WER 26.0 % [22.0, 31.0] on data.eval (60 s; 1 trial to go, about 1.0 min)" in told[2]


# --- several workers ---------------------------------------------------------------------------------


def _worker(line: list[str], runs: Any, queue: Any) -> None:
    queue.put((Worker(plan=plan_sweep(line), run=runs).go()["status"], runs.calls))


@pytest.mark.parametrize("method", ["grid", "optuna"])
def test_workers_on_one_file_system_run_no_trial_twice(line: list[str], trials, tmp_path: Path, method: str):
    axes = [RANKS, "training.learning_rate=1e-4,1e-3", "sweep.method=grid"]
    if method == "optuna":
        pytest.importorskip("optuna")
        axes = [RANKS, "training.learning_rate=1e-4:1e-2:log", "sweep.method=optuna", "sweep.trials=8"]
    processes = multiprocessing.get_context("fork")
    queue = processes.Queue()
    made = [
        processes.Process(target=_worker, args=([*line, *axes], trials(error_rate=by_rank, wait_s=0.2), queue))
        for _ in range(3)
    ]
    for process in made:
        process.start()
    found = [queue.get(timeout=120) for _ in made]
    for process in made:
        process.join(timeout=60)
        assert process.exitcode == 0
    calls = [name for _, names in found for name in names]
    assert len(calls) == len(set(calls)) == 8
    assert sum(bool(names) for _, names in found) >= 2
    assert [status for status, _ in found].count("finished") >= 1
    body = read_sweep(tmp_path / "sweep")
    assert body["status"] == "finished"
    assert {row["name"] for row in body["trials"]} == set(calls)


def test_the_trial_of_a_killed_worker_is_free_and_that_of_a_living_one_is_not(work: Work, trials, tmp_path: Path):
    names = sorted(row["name"] for row in work(trials(), RANKS)["trials"])
    shutil.rmtree(tmp_path / "sweep")
    claims = open_claims(tmp_path / "sweep")
    held = names[0]
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(claims.folder / "state" / f"{held}.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        first = trials()
        body = work(first, RANKS)
        assert held not in first.calls
        assert len(first.calls) == 3
        assert body["status"] == "unfinished"
        assert exit_code(body) == 0
        holder.kill()
    second = trials()
    assert work(second, RANKS)["status"] == "finished"
    assert second.calls == [held]


def test_a_run_that_outlives_its_worker_is_not_run_beside_itself(work: Work, trials, tmp_path: Path):
    body = work(trials(), "adapter.rank=2,4")
    name = body["trials"][0]["name"]
    place = tmp_path / "sweep" / "trials" / name
    (tmp_path / "sweep" / "state" / f"{name}.json").unlink()
    (place / "run.json").unlink()
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(place / "run.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        runs = trials()
        assert work(runs, "adapter.rank=2,4")["status"] == "unfinished"
        assert runs.calls == []
        orphan.kill()
    work(runs, "adapter.rank=2,4")
    assert runs.calls == [name]


# --- Optuna ------------------------------------------------------------------------------------------

STUDY = ("adapter.rank=2:32", "training.learning_rate=1e-5:1e-1:log", "sweep.method=optuna")


def test_optuna_goes_on_after_a_kill_and_finds_the_better_part(work: Work, trials, tmp_path: Path):
    pytest.importorskip("optuna")

    def rate(config: Any) -> float:
        return 0.1 + abs(config.adapter.rank - 8) / 100

    killed = trials(error_rate=rate, stop_at=4)
    with pytest.raises(Interrupted):
        work(killed, *STUDY, "sweep.trials=16")
    rest = trials(error_rate=rate)
    body = work(rest, *STUDY, "sweep.trials=16")
    assert rest.calls[0] == killed.calls[3]
    assert len({*killed.calls, *rest.calls}) == 16
    assert {row["status"] for row in body["trials"]} == {"finished"}
    ranks = [int(row["values"]["adapter.rank"]) for row in body["trials"]]
    first, last = (sum(abs(rank - 8) for rank in part) for part in (ranks[:6], ranks[10:]))
    assert last < first
    more = trials(error_rate=rate)
    assert len(work(more, *STUDY, "sweep.trials=18")["trials"]) == 18
    assert len(more.calls) == 2


def test_optuna_draws_the_same_for_the_same_seed(line: list[str], trials, monkeypatch, tmp_path: Path):
    pytest.importorskip("optuna")
    monkeypatch.setattr("sonotune.reports.sweep.build_sweep_html", lambda body: body["name"])
    words = [word for word in line if not word.startswith("sweep.dir")]
    calls = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        runs = trials(error_rate=by_rank)
        plan = plan_sweep([*words, *STUDY, "sweep.trials=4", f"sweep.seed={seed}", f"sweep.dir={tmp_path / place}"])
        Worker(plan=plan, run=runs).go()
        calls.append(runs.calls)
    assert calls[0] == calls[1] != calls[2]


def test_optuna_prunes_what_is_behind(work: Work, trials, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr("sonotune.sweeps.sweep._LOOK_EVERY_S", 0.0)
    rate = iter([0.2, 0.21, 0.2, 0.22, 0.2, 0.19, 0.9, 0.9, 0.2, 0.9])
    body = work(trials(error_rate=lambda config: next(rate), steps=3), *STUDY, "sweep.trials=10")
    pruned = [row for row in body["trials"] if row["status"] == "pruned"]
    assert 2 <= len(pruned) <= 4
    assert all(row["score"] is None and row["reported"] for row in pruned)
    assert any("stopped early" in note for note in body["notes"])
    again = trials()
    work(again, *STUDY, "sweep.trials=10")
    assert again.calls == []


def test_optuna_with_a_used_up_space_ends(work: Work, trials):
    pytest.importorskip("optuna")
    body = work(trials(error_rate=by_rank), "adapter.rank=2,8", "sweep.method=optuna", "sweep.trials=6")
    assert len(body["trials"]) == 2
    assert body["status"] == "finished"
    assert "4 trials not made: draws brought nothing new any more." in body["notes"]


def test_optuna_refuses_to_look_for_a_lucky_seed(line: list[str]):
    pytest.importorskip("optuna")
    with pytest.raises(ConfigError, match="luckiest seed"):
        plan_sweep([*line, *STUDY, "training.seed=0,1"])


def test_without_optuna_the_error_names_what_installs_it(line: list[str], monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sonotune\[sweep\]', or take sweep\.method=random"):
        plan_sweep([*line, *STUDY])
    with pytest.raises(MissingExtraError):
        load_optuna()
    assert len(plan_sweep([*line, *STUDY[:2], "sweep.trials=3"]).listed) == 3
