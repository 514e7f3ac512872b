"""An ablation from line to report, with runs that are made up: order, resuming, failures, limits, what is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sonotune.errors import (
    AdapterError,
    ConfigError,
    Interrupted,
    ModelError,
    NumericError,
    ResourceError,
    RunDirectoryError,
)
from sonotune.progress import shown
from sonotune.sweeps.ablation import Session, exit_code, read_ablation
from sonotune.sweeps.arms import choose_arms
from sonotune.sweeps.plan import Plan, plan_ablation
from sonotune.sweeps.trials import TrialProcessError, error_in, run_apart
from sonotune.training.runtime import stop_on_signals

Planned = Callable[..., Plan]
Sit = Callable[..., dict[str, Any]]


def better_half(arm: str, seed: int, clip: int) -> int:
    """Entropy ranks save a word in three quarters of the clips, one training run a little more than another."""
    return 2 - (arm == "entropy_half" and clip % 4 > 0) + (clip % 11 == seed)


def test_an_ablation_runs_compares_and_writes(plan: Planned, sit: Sit, fake, tmp_path: Path):
    runs = fake(errors_of=better_half, rate_of=lambda arm, rate, seed: abs(rate - 1e-3))
    body = sit(plan(), runs)
    assert len(runs.calls) == 8  # 2 arms x (3 rates + 1 more seed)
    assert body["status"] == "finished"
    assert json.loads((tmp_path / "ablation" / "ablation.json").read_text("utf-8")) == body
    assert {row["name"]: row["learning_rate"] for row in body["arms"]} == {"uniform": 1e-3, "entropy_half": 1e-3}
    [row] = body["comparisons"]
    assert (row["arm"], row["against"], row["outcome"], row["seeds"]) == ("entropy_half", "uniform", "better", [2, 2])
    assert row["value"] == pytest.approx(-0.075)
    assert row["first"] == pytest.approx(body["trials"][0]["scores"]["test"]["wer"]["value"], abs=0.01)
    assert "entropy_half has a better WER than uniform: Δ = \u22127.50 pp" in body["verdict"][0]
    assert {"machine", "code", "words", "seeds", "seconds"} <= body.keys()
    assert (tmp_path / "ablation" / "report.html").is_file()
    assert exit_code(body) == 0
    trial = body["trials"][0]
    assert trial["line"].startswith("sonotune train model=whisper_nano ")
    assert "evaluation.zero_shot=false" in trial["line"]
    assert (trial["parameters"], trial["adapter_parameters"], trial["seconds"]) == (10_000, 9_000, 60.0)


def test_the_same_line_runs_nothing_again(plan: Planned, sit: Sit, fake):
    first = sit(plan(), fake(errors_of=better_half))
    again = fake(errors_of=better_half)
    second = sit(plan(), again)
    assert again.calls == []
    assert second["comparisons"] == first["comparisons"]
    assert sorted(map(str, second["trials"])) == sorted(map(str, first["trials"]))


@pytest.mark.parametrize("stop_at", [1, 2, 5, 8])
def test_a_kill_inside_a_trial_goes_on_with_it(plan: Planned, sit: Sit, fake, stop_at: int, tmp_path: Path):
    whole = fake(errors_of=better_half)
    expected = sit(plan(folder=tmp_path / "whole"), whole)
    killed = fake(errors_of=better_half, stop_at=stop_at)
    with pytest.raises(Interrupted):
        sit(plan(), killed)
    assert read_ablation(tmp_path / "ablation")["status"] == "stopped"
    rest = fake(errors_of=better_half)
    body = sit(plan(), rest)
    assert killed.calls[:-1] + rest.calls == whole.calls
    assert rest.resumed == [killed.calls[-1]]
    assert [row["value"] for row in body["comparisons"]] == [row["value"] for row in expected["comparisons"]]


def test_a_kill_between_trials_needs_no_record(plan: Planned, sit: Sit, fake, tmp_path: Path):
    sit(plan(), fake())
    (tmp_path / "ablation" / "ablation.json").unlink()
    again = fake()
    assert sit(plan(), again)["status"] == "finished"
    assert again.calls == []


def test_more_arms_and_seeds_join_what_is_done(plan: Planned, sit: Sit, fake):
    sit(plan("uniform", seeds=(0,)), fake())
    more = fake()
    body = sit(plan("uniform,inverse", seeds=(0, 1)), more)
    assert len(more.calls) == 5  # 3 rates of inverse, and seed 1 of both
    assert len(body["trials"]) == 8


def test_other_settings_in_the_same_directory_are_refused(plan: Planned, base: list[str], sit: Sit, fake):
    made = plan("uniform")
    sit(made, fake())
    other = plan_ablation([*base, "training.max_steps=5"], choose_arms("uniform"), seeds=(0, 1), folder=made.folder)
    with pytest.raises(RunDirectoryError, match="run of other settings"):
        sit(other, fake())


def test_other_clips_are_refused(plan: Planned, sit: Sit, fake):
    sit(plan("uniform"), fake())
    with pytest.raises(RunDirectoryError, match="run on other clips"):
        sit(plan("uniform,inverse"), fake(data="x" * 64))


def test_arms_that_train_unlike_numbers_of_parameters_stop_it_at_once(plan: Planned, sit: Sit, fake, tmp_path: Path):
    runs = fake(parameters={"entropy_half": 10_060})
    with pytest.raises(
        AdapterError, match=r"entropy_half trains 10,060 and uniform 10,000.*0\.67 % of their adapters apart"
    ) as caught:
        sit(plan(), runs)
    assert caught.value.exit_code == 2
    assert len(runs.calls) == 2  # the middle of both grids, and nothing more
    assert read_ablation(tmp_path / "ablation")["status"] == "failed"
    with pytest.raises(AdapterError):
        sit(plan(), fake())


def test_half_a_per_cent_is_equal_and_ceilings_need_not_be(plan: Planned, sit: Sit, fake):
    body = sit(plan("uniform,entropy_half,full"), fake(parameters={"entropy_half": 10_045, "full": 100_000}))
    by_arm = {row["arm"]: row["sentence"] for row in body["comparisons"]}
    assert "trainable parameters equal to 0.5 %" in by_arm["entropy_half"]
    assert "100,000 trainable parameters against 10,000" in by_arm["full"]


def test_a_signal_that_comes_when_a_run_is_past_stopping_stops_the_ablation(plan: Planned, sit: Sit, fake):
    runs = fake()

    def signalled(words: Sequence[str]) -> None:
        runs(words)
        with stop_on_signals():  # as a run has it
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM between two runs"):
        sit(plan(), signalled)
    assert len(runs.calls) == 1
    body = sit(plan(), runs)
    assert body["status"] == "finished"
    assert len(runs.calls) == len({tuple(call) for call in map(str, runs.calls)})  # none was run twice


def test_a_failed_trial_is_kept_and_the_rest_goes_on(plan: Planned, sit: Sit, fake):
    diverged = NumericError("the loss is NaN")
    runs = fake(fail={("entropy_half", 0.00316): diverged}, rate_of=lambda arm, rate, seed: rate)
    body = sit(plan(), runs)
    assert body["status"] == "finished"
    [failed] = [trial for trial in body["trials"] if trial["status"] == "failed"]
    assert (failed["run"], failed["exit_code"]) == ("entropy_half/lr0.00316-seed0", 4)
    assert "the loss is NaN" in failed["error"]
    assert any("lr0.00316-seed0 failed" in note for note in body["notes"])
    assert exit_code(body) == 4
    assert body["comparisons"][0]["seeds"] == [2, 2]
    again = fake(rate_of=lambda arm, rate, seed: rate)
    sit(plan(), again)
    assert again.calls == []  # the same line would only diverge again


def test_a_trial_without_memory_is_tried_again_by_the_next_session(plan: Planned, sit: Sit, fake):
    body = sit(plan("uniform"), fake(fail={("uniform", 0.001): ResourceError("out of memory")}))
    assert exit_code(body) == 5
    again = fake()
    assert exit_code(sit(plan("uniform"), again)) == 0
    assert again.calls[0] == "uniform/lr0.001-seed0"


def test_a_bug_in_a_trial_ends_with_one(plan: Planned, sit: Sit, fake):
    body = sit(plan(), fake(fail={"entropy_half": ZeroDivisionError("division by zero")}))
    assert exit_code(body) == 1
    assert body["comparisons"] == []
    assert next(row for row in body["arms"] if row["name"] == "entropy_half")["learning_rate"] is None


def test_the_hours_end_it_between_trials(plan: Planned, sit: Sit, fake):
    seconds = iter(range(0, 100_000, 60))
    runs = fake(errors_of=better_half)
    body = sit(plan(), runs, hours=0.1, clock=lambda: next(seconds))
    assert body["status"] == "stopped"
    assert exit_code(body) == 75
    assert 3 <= len(runs.calls) <= 6
    rest = fake(errors_of=better_half)
    assert sit(plan(), rest)["status"] == "finished"
    assert not set(runs.calls) & set(rest.calls)


def test_an_edge_that_stays_one_is_said(plan: Planned, sit: Sit, fake):
    body = sit(plan("uniform", seeds=(0,)), fake(rate_of=lambda arm, rate, seed: -rate))
    assert len(body["trials"]) == 5
    assert body["notes"] == ["The best learning rate of uniform is still the outermost of its grid."]


def test_two_processes_cannot_share_a_directory(plan: Planned, sit: Sit, fake, tmp_path: Path):
    folder = tmp_path / "ablation"
    folder.mkdir()
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / "ablation.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunDirectoryError, match="in use by another process"):
            sit(plan(), fake())
    assert sit(plan("uniform", seeds=(0,)), fake())["status"] == "finished"


def test_what_is_to_come_is_told(plan: Planned, fake):
    session = Session(plan=plan(), run=fake())
    assert session.seconds_to_come() is None
    session.go()
    assert session.seconds_to_come() == 0.0
    more = Session(plan=plan(seeds=(0, 1, 2)), run=fake())
    more.look()
    assert more.seconds_to_come() == pytest.approx(120.0)


def test_each_run_has_a_line_before_it_and_one_after(plan: Planned, sit: Sit, fake):
    told: list[str] = []
    sit(plan(seeds=(0,), points=1), fake(fail={"entropy_half": ModelError("no such layer")}), told=told.append)
    heads = [line for line in told if line.startswith("arm ")]
    assert heads[0].startswith("arm 1 of 2, uniform: learning rate ")
    assert heads[0].endswith("seed 0 (run 1 of 2)")
    assert heads[1].endswith("seed 0 (run 2 of 2)")
    assert re.search(r": WER 20\.00 % on data\.eval \(60 s; at least 1 run to go\)$", told[2])
    assert re.search(r": failed: ModelError: no such layer \(0 s; no run to go\)$", told[5])


def test_the_directory_follows_from_the_settings(base: list[str]):
    first, second = (plan_ablation(base, choose_arms(arms)).folder for arms in ("uniform", "ranks"))
    assert first == second
    assert first.parent == Path("runs")
    assert plan_ablation([*base, "training.max_steps=3"], choose_arms("uniform")).folder != first


def test_a_split_is_measured_against_all_linears(base: list[str]):
    assert plan_ablation(base, choose_arms("encoder_only,uniform_share")).baseline == "uniform_share"
    assert plan_ablation(base, choose_arms("encoder_only,eva")).baseline == "encoder_only"


def test_a_budget_that_an_arm_cannot_spend_stops_it(plan: Planned, sit: Sit, fake):
    counts = {"adapter": 9000, "trainable": 9000, "total": 10**6}
    made = plan("uniform,encoder_only", parameters_of=lambda words: counts)
    with pytest.raises(AdapterError, match="encoder_only must have 9,000 parameters in adapters and has 8,900"):
        sit(made, fake(parameters={"encoder_only": 9900}))


def test_finalists_get_further_seeds(plan: Planned, sit: Sit, fake):
    made = plan("uniform,entropy_half,eva,full", points=1, final_seeds=(7, 8), finalists=1)
    runs = fake(rate_of=lambda arm, rate, seed: {"eva": 0.1, "full": 0.05}.get(arm, 0.3))
    body = sit(made, runs)
    assert [call for call in runs.calls if call.endswith(("seed7", "seed8"))] == [
        "uniform/lr0.001-seed7",
        "eva/lr0.001-seed7",
        "uniform/lr0.001-seed8",
        "eva/lr0.001-seed8",
    ]
    assert body["finalists"] == ["uniform", "eva"]
    seeds = {row["arm"]: row["seeds"][0] for row in body["comparisons"]}
    assert seeds == {"entropy_half": 2, "eva": 4, "full": 2}


def test_runs_of_two_commits_are_said(plan: Planned, sit: Sit, fake):
    sit(plan("uniform"), fake())
    body = sit(plan("uniform,eva"), fake(commit="d"))
    assert any("2 commits of sonotune: c, d" in note for note in body["notes"])


def test_arms_of_the_same_budget_get_the_baselines(base: list[str]):
    asked: list[list[str]] = []

    def parameters_of(words: list[str]) -> dict[str, int]:
        asked.append(words)
        return {"adapter": 4321, "trainable": 98765, "total": 72_593_920}

    made = plan_ablation(base, choose_arms("uniform,encoder_only,uniform_large"), parameters_of=parameters_of)
    assert "adapter.allocator=uniform" in asked[0]
    assert "adapter.budget=4321" in made.words(made.schedule.trial("encoder_only", 0, 0))
    assert "adapter.unfreeze=encoder.norms" in asked[1]
    assert "adapter.budget=98765" in made.words(made.schedule.trial("uniform_large", 0, 0))
    assert not any(word.startswith("adapter.budget") for word in made.words(made.schedule.trial("uniform", 0, 0)))


def test_a_grid_of_rates_begins_at_the_usual_one_of_the_models_size(base: list[str]):
    words = [word for word in base if not word.startswith("training.learning_rate")]
    counts = {"adapter": 9000, "trainable": 9000, "total": 72_593_920}
    automatic = [*words, "training.learning_rate=auto"]
    made = plan_ablation(automatic, choose_arms("uniform,full"), parameters_of=lambda words: counts)
    assert made.schedule.centres == {"uniform": 1e-3, "full": pytest.approx(1e-3 / 10**0.5)}
    given = plan_ablation(
        [*words, "training.learning_rate=3e-4"], choose_arms("uniform"), parameters_of=lambda _: counts
    )
    assert given.schedule.centres == {"uniform": 3e-4}


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        (["run.dir=x"], {}, "run.dir"),
        (["training.seed=3"], {}, "--seeds"),
        (["training.max_stepz=3"], {}, "max_stepz"),
        ([], {"baseline": "eva"}, "not among the arms"),
        ([], {"seeds": (1, 1)}, "each once"),
        ([], {"seeds": ()}, "seeds"),
        ([], {"points": 0}, "1 to 15"),
        ([], {"final_seeds": (0, 5)}, "each once"),
        ([], {"finalists": 0}, "1 finalist"),
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(base: list[str], changes, options, said: str):
    with pytest.raises(ConfigError, match=said):
        plan_ablation([*base, *changes], choose_arms("uniform"), **options)


def test_clips_that_are_not_there_are_refused_before_anything_runs(base: list[str]):
    words = [word for word in base if not word.startswith("data.test")]
    with pytest.raises(ConfigError, match=r"data\.test is nowhere\.jsonl, and there is nothing"):
        plan_ablation([*words, "data.test=nowhere.jsonl"], choose_arms("uniform"))


def test_arms_that_no_run_has_to_show_wrong_are_refused_at_once(base: list[str]):
    def parameters_of(words: Sequence[str]) -> dict[str, int]:
        if "adapter.targets=nothing" in words:
            raise AdapterError("no module is called nothing")
        return {"adapter": 45_440, "trainable": 45_440, "total": 900_000}

    arms = choose_arms("uniform,entropy_half", ["bad: adapter.targets=nothing"])
    with pytest.raises(ConfigError, match="arm bad: no module is called nothing"):
        plan_ablation(base, arms, parameters_of=parameters_of)
    budget = [word for word in base if not word.startswith("adapter.rank")] + ["adapter.budget=50000"]
    with pytest.raises(ConfigError, match=r"equal ranks spend 45,440 of adapter\.budget=50,000"):
        plan_ablation(budget, arms[:2], parameters_of=parameters_of)
    plan_ablation(budget, arms[1:2], parameters_of=parameters_of)


def test_other_clips_are_noticed_before_another_run(plan: Planned, sit: Sit, fake, tmp_path: Path):
    sit(plan("uniform", seeds=(0,)), fake())
    kept = (tmp_path / "dev.jsonl").read_bytes()
    (tmp_path / "dev.jsonl").write_text("other", "utf-8")
    runs = fake()
    with pytest.raises(RunDirectoryError, match=r"data\.eval changed since the first run"):
        sit(plan("uniform"), runs)
    assert runs.calls == []
    (tmp_path / "dev.jsonl").write_bytes(kept)
    assert sit(plan("uniform"), runs)["status"] == "finished"


def test_a_folder_that_cannot_be_made_is_told(plan: Planned, sit: Sit, fake, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="--dir"):
        sit(plan(folder=tmp_path / "file" / "x"), fake())


def test_test_clips_are_required(base: list[str]):
    with pytest.raises(ConfigError, match=r"data\.test"):
        plan_ablation([word for word in base if "data.test" not in word], choose_arms("uniform"))


def test_wrong_settings_of_all_arms_come_at_once(base: list[str]):
    arms = choose_arms("uniform", ["one: adapter.rankk=2", "two: adapter.rank=0"])
    with pytest.raises(ConfigError, match=r"(?s)arm one: .*rankk.*arm two: .*adapter\.rank"):
        plan_ablation(base, arms)


def test_a_damaged_record_is_named(plan: Planned, sit: Sit, fake, tmp_path: Path):
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "ablation.json").write_text("{", "utf-8")
    with pytest.raises(RunDirectoryError, match="damaged"):
        sit(plan(), fake())


def test_a_run_in_a_process_of_its_own_is_heard_and_its_error_kept(capsys: pytest.CaptureFixture[str]):
    with shown(), pytest.raises(TrialProcessError, match="nonsense") as caught:
        run_apart(["nonsense"])
    assert caught.value.exit_code == 2
    assert "nonsense" in capsys.readouterr().err
    said = "loading: 1 s\n\nsonotune: out of memory.\nLower it.\n"
    assert error_in(said) == "sonotune: out of memory.\nLower it."
    assert error_in("killed") == "killed"
