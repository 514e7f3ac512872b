"""The loop: exact accumulation, clipping, bad steps, evaluation, early stop, and a position that is always known."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sonotune.errors import CheckpointError, Interrupted, ManifestError, NumericError, TrainingCheckError
from sonotune.features.workers import Crew
from sonotune.models.losses import Losses
from sonotune.training import checkpoint
from sonotune.training.checks import check_frozen, check_moved, fingerprint
from sonotune.training.state import TrainingState
from sonotune.training.step import is_spike, record_loss, reset_losses

Build = Callable[..., Any]


def newest(folder: Path) -> checkpoint.Checkpoint:
    found = checkpoint.newest(folder, on_damage=lambda path, problem: pytest.fail(f"{path}: {problem}"))
    assert found is not None
    return found


# --- the gradient of a step ----------------------------------------------------------------------


def test_accumulating_unequal_micro_batches_is_one_big_batch(bench: Build):
    """The sum over units, not the mean of means: parts of 1, 4 and 2 clips with texts of unequal length."""
    parts = [(0,), (2, 1, 7, 4), (12, 3)]
    whole, cut = bench(), bench()
    loss_whole, units_whole, _ = whole.accumulate(whole.batch(*(index for part in parts for index in part)))
    loss_cut, units_cut, _ = cut.accumulate(*(cut.batch(*part) for part in parts))
    assert units_whole == units_cut == sum(len(str(clip.text)) + 1 for clip in whole.batch(*sum(parts, ())).clips)
    assert loss_cut == pytest.approx(loss_whole, rel=1e-6)
    expected, found = whole.gradients(), cut.gradients()
    assert expected.keys() == found.keys() == whole.stage.trainable
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    means = bench()  # the mistake this guards against is seen by the same measure
    for part in parts:
        losses = means.task.loss(means.loaded, means.batch(*part))
        (losses.total / losses.count / len(parts)).backward()
    worst = max(float((means.gradients()[name] - expected[name]).abs().max()) for name in expected)
    assert worst > 1e-3


def test_the_loss_is_logged_by_domain_where_there_are_several(bench: Build, clips: Callable[..., Path], tmp_path: Path):
    manifest = clips(tmp_path / "clips", "train", 20)
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    domains = [{"domain": "phone"}, {"domain": "studio"}, {}]
    several = manifest.with_name("several.jsonl")
    several.write_text(
        "".join(json.dumps(line | domains[index % 3]) + "\n" for index, line in enumerate(lines)), "utf-8"
    )
    one, made = bench(max_epochs=1, manifest=manifest), bench(max_epochs=1, manifest=several)
    for each in (one, made):
        each.loop.run()
    assert all("loss_by_domain" not in step for step in one.of("step"))
    first = made.of("step")[0]
    assert set(first["loss_by_domain"]) <= {"phone", "studio", "unknown"}
    assert min(first["loss_by_domain"].values()) <= first["loss"] <= max(first["loss_by_domain"].values())
    parts = {}
    for clip in [made.loop.loader.data.clips[index] for index in made.loop.loader.plan(0)[0]]:
        labels = len(str(clip.text)) + 1
        parts[clip.domain or "unknown"] = parts.get(clip.domain or "unknown", 0) + labels
    mean = sum(first["loss_by_domain"][name] * labels for name, labels in parts.items()) / sum(parts.values())
    assert mean == pytest.approx(first["loss"], rel=1e-6)


def test_clips_that_have_all_vanished_end_the_run(bench: Build, clips: Callable[..., Path], tmp_path: Path):
    made = bench(manifest=clips(tmp_path / "clips", "train", 6), batch_max_clips=2, max_epochs=2)
    for clip in made.loop.loader.data.clips:
        clip.path.unlink()
    with pytest.raises(ManifestError, match="none of the clips of the last 3 steps could be read"):
        made.loop.run()
    assert made.of("finding")


def test_clips_that_vanish_are_left_out_of_the_gradient_and_recorded(
    bench: Build, clips: Callable[..., Path], tmp_path: Path
):
    """One step sums over what is left; a step of nothing changes nothing; the position goes on as planned."""
    manifest = clips(tmp_path / "clips", "train", 6)
    whole = bench(folder=tmp_path / "whole", manifest=manifest, batch_max_clips=2, max_epochs=1)
    whole.loop.run()
    plan = whole.loop.loader.plan(0)
    made = bench(manifest=manifest, batch_max_clips=2, max_epochs=1, save_steps=1, keep_checkpoints=9)
    gone = [*plan[1], plan[2][0]]
    for index in gone:
        made.loop.loader.data.clips[index].path.unlink()
    made.loop.run()
    first, second, third = made.of("step")
    assert first["loss"] == whole.of("step")[0]["loss"]
    assert second["loss"] is None
    assert second["clips"] == 0
    before, after = newest_of(made.folder, 1), newest_of(made.folder, 2)
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert third["clips"] == 1
    assert third["loss"] is not None
    found = made.of("finding")
    assert sorted(finding["clip_ids"][0] for finding in found) == sorted(f"c{index}" for index in gone)
    assert [finding["step"] for finding in found] == [2, 2, 3]
    assert {finding["check"] for finding in found} == {"audio.missing"}


def test_label_smoothing_mixes_in_the_uniform_distribution(bench: Build):
    made = bench()
    made.loaded.module.eval()
    batch = made.batch(0, 1, 2)
    with torch.no_grad():
        plain = made.task.loss(made.loaded, batch)
        smooth = made.task.loss(made.loaded, batch, label_smoothing=0.2).total
        places = batch.targets[:, 1:] >= 0
        labelled = places.clone()
        labelled[:, :3] = False  # the rest of the prompt
        logits = made.family.logits(made.loaded, batch)[labelled[places]]
        uniform = -torch.log_softmax(logits.float(), dim=-1).mean(dim=-1).sum()
    assert plain.count == int(labelled.sum())
    assert float(smooth) == pytest.approx(0.8 * float(plain.total) + 0.2 * float(uniform), rel=1e-5)
    assert bench(label_smoothing=0.2).accumulate(batch)[0] == pytest.approx(float(smooth) / plain.count, rel=1e-5)


def test_clipping_goes_over_all_groups_together(bench: Build):
    summed, free, clipped = bench(), bench(max_steps=1), bench(max_steps=1, clip_norm=0.01)
    summed.accumulate(summed.batch(*summed.loop.loader.plan(0)[0]))
    before = summed.gradients()
    total = math.sqrt(sum(float(gradient.square().sum()) for gradient in before.values()))
    assert {group.name for group in free.stage.groups} == {"adapters", "weights"}
    seen = []
    for made in (free, clipped):
        made.on_gradients.calls.append(lambda step, made=made: seen.append(made.gradients()))
        made.loop.run()
        [event] = made.of("step")
        assert event["gradient_norm"] == pytest.approx(total, rel=1e-5)
    assert all(torch.equal(gradient, before[name]) for name, gradient in seen[0].items())
    assert [found.keys() for found in seen] == [before.keys()] * 2
    for name, gradient in seen[1].items():
        torch.testing.assert_close(gradient, before[name] * (0.01 / total), rtol=1e-3, atol=1e-9)


def test_a_step_moves_each_group_by_its_own_rate(bench: Build):
    """The first step of Adam moves every weight with a gradient by the learning rate, whatever the gradient's size."""
    made = bench(learning_rate=1e-3, learning_rates={"stem": 0.1, "decoder": 3.0}, max_steps=1)
    before = made.weights()
    made.loop.run()
    rates = {name: group.learning_rate for group in made.stage.groups for name in group.parameters}
    assert sorted(set(rates.values())) == pytest.approx([1e-4, 1e-3, 3e-3])
    for name, value in made.weights().items():
        moved = float((value - before[name]).abs().max())
        # While B is zero no gradient reaches A.
        expected = 0.0 if ".lora_A." in name else rates[name]
        assert moved == pytest.approx(expected, rel=1e-2), name
    [step] = made.of("step")
    assert step["learning_rates"] == pytest.approx({"adapters": 1e-3, "adapters:decoder": 3e-3, "weights:stem": 1e-4})


def test_the_learning_rate_of_a_step_is_the_schedule_at_that_step(bench: Build):
    made = bench(schedule="cosine", warmup_steps=2, learning_rate=1e-2)
    made.loop.run()
    total = len(made.of("step"))
    assert total == made.loop.total_steps == 10
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * (step - 2) / 8)) / 2 for step in range(2, 10)]
    found = [step["learning_rates"]["adapters"] for step in made.of("step")]
    assert found == pytest.approx([1e-2 * factor for factor in (0.5, 1.0, *falling)])


# --- how far a stage goes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 10), ({"accumulation_steps": 2}, 6), ({"max_steps": 7}, 7), ({"batch_max_clips": 100}, 2)],
)
def test_steps_are_those_announced(bench: Build, changes: dict[str, int], steps: int):
    made = bench(**changes)
    made.loop.run()
    assert made.loop.total_steps == len(made.of("step")) == made.loop.state.step == steps
    assert [event["step"] for event in made.of("step")] == list(range(1, steps + 1))


def test_every_clip_is_seen_once_an_epoch(bench: Build):
    made = bench(accumulation_steps=3)
    made.loop.run()
    assert sum(step["clips"] for step in made.of("step")) == 40 == made.loop.state.clips
    assert made.loop.state.epoch == 2
    assert made.loop.state.batch == 0
    by_epoch = [sum(step["clips"] for step in made.of("step")[start : start + 2]) for start in (0, 2)]
    assert by_epoch == [20, 20]


def test_the_loss_falls(bench: Build):
    made = bench(max_epochs=8)
    made.loop.run()
    losses = [step["loss"] for step in made.of("step")]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_adapters_that_have_no_decomposition_end_training_as_a_numeric_failure(
    bench: Build, monkeypatch: pytest.MonkeyPatch
):
    made = bench(max_epochs=1)

    def fail(*_: object) -> None:
        torch.linalg.eigh(torch.full((3, 3), float("nan")))

    monkeypatch.setattr(made.on_gradients, "after_step", fail)
    with pytest.raises(NumericError, match="cannot be decomposed after step 1"):
        made.loop.run()


def test_training_stops_when_scores_get_no_better(bench: Build):
    made = bench(max_epochs=9, scores=[0.9, 0.5, 0.5, 0.7, 0.1], patience=2)
    made.loop.run()
    assert made.loop.state.step == 20  # the evaluations after steps 15 and 20 were not better than 0.5
    assert made.loop.state.best == 0.5
    assert [event["best"] for event in made.of("evaluation")] == [True, True, False, False]


def test_evaluations_of_equal_score_are_told_apart_by_characters(bench: Build):
    """As in a script without spaces, where every evaluation has a word error rate of 100 %."""
    made = bench(
        max_epochs=9, scores=[(1.0, 0.6), (1.0, 0.4), (1.0, 0.5), (1.0, 0.3), (1.0, 0.4), (1.0, 0.4)], patience=2
    )
    made.loop.run()
    assert [event["best"] for event in made.of("evaluation")] == [True, True, False, True, False, False]
    assert made.loop.state.step == 30  # patience has counted from the best rate of characters
    assert made.loop.load_best() == 20


def test_the_rate_that_decides_comes_first(bench: Build):
    made = bench(max_epochs=3, scores=[(0.5, 0.6), (0.9, 0.4), (0.4, 0.4)], primary="cer")
    made.loop.run()
    assert [event["best"] for event in made.of("evaluation")] == [True, True, True]
    assert made.loop.state.primary == "cer"
    assert made.loop.state.best == 0.4
    assert made.loop.load_best() == 15


def test_what_is_equal_in_all_rates_is_told_apart_by_the_loss_and_keeps_no_run_going(bench: Build):
    made = bench(max_epochs=9, scores=[(1.0, 1.0)] * 4, patience=2)
    made.loop.run()
    assert made.loop.state.step == 15
    ties = {int(step): ties for step, ties in made.loop.state.ties.items()}
    assert [len(each) for each in ties.values()] == [2, 2, 2]
    assert made.loop.load_best() == min(ties, key=lambda step: ties[step][-1])
    assert len({each[-1] for each in ties.values()}) == 3


def test_the_average_is_kept_only_where_no_rate_says_otherwise(bench: Build):
    scores = [(1.0, 0.6), (1.0, 0.4), (1.0, 0.5)]
    for of_average, kept in (((1.0, 0.4), True), ((1.0, 0.41), False), ((0.9, 0.9), True)):
        made = bench(max_epochs=3, scores=[*scores, of_average], average_checkpoints=2)
        made.loop.run()
        assert made.loop.load_best() == 10
        assert [event["kept"] for event in made.of("average")] == [kept]
        shutil.rmtree(made.folder)


def test_a_checkpoint_that_was_chosen_by_another_score_starts_the_choice_anew(bench: Build):
    made = bench(max_epochs=2, scores=[(0.2, 0.6), (0.3, 0.5)])
    made.loop.run()
    made.loop.state.primary = ""  # as older versions left it
    saved = newest_of(made.folder, 10)
    position = {name: value for name, value in saved.state["position"].items() if name not in ("primary", "ties")}
    later = bench(max_epochs=3, scores=[(0.9, 0.7)], primary="cer")
    later.loop.resume(replace(saved, state={**saved.state, "position": position}))
    later.loop.run()
    assert [event["best"] for event in later.of("evaluation")] == [True]
    assert (later.loop.state.primary, later.loop.state.best, later.loop.state.best_step) == ("cer", 0.7, 15)
    [told] = later.of("primary")
    assert (told["score"], told["earlier"]) == ("cer", "wer")


def test_the_best_weights_are_put_back_at_the_end(bench: Build):
    made = bench(max_epochs=4, scores=[0.9, 0.2, 0.5, 0.3], keep_checkpoints=1)
    made.loop.run()
    last = made.weights()
    assert made.loop.load_best() == 10
    best = newest_of(made.folder, 10)
    for name, value in made.weights().items():
        assert torch.equal(value, best.weights[name])
    assert any(not torch.equal(last[name], value) for name, value in made.weights().items())
    assert sorted(path.name for path in made.folder.iterdir()) == ["step-000010", "step-000020"]


def test_the_best_few_are_averaged_where_that_is_no_worse(bench: Build):
    """Three of five evaluations are averaged: the best and the next two, whatever came between."""
    scores = [0.9, 0.2, 0.5, 0.3, 0.6]
    made = bench(max_epochs=5, scores=[*scores, 0.2], average_checkpoints=3, keep_checkpoints=1)
    made.loop.run()
    assert (made.loop.state.best_step, made.loop.state.runners_up) == (10, [20, 15])
    assert made.loop.load_best() == 10
    three = [newest_of(made.folder, step).weights for step in (10, 20, 15)]
    for name, value in made.weights().items():
        torch.testing.assert_close(value, sum(one[name] for one in three) / 3)
    [told] = made.of("average")
    assert (told["steps"], told["kept"]) == ([10, 20, 15], True)

    worse = bench(max_epochs=5, scores=[*scores, 0.21], average_checkpoints=3, folder=made.folder.with_name("worse"))
    worse.loop.run()
    worse.loop.load_best()
    best = newest_of(worse.folder, 10).weights
    assert all(torch.equal(value, best[name]) for name, value in worse.weights().items())
    assert not worse.of("average")[0]["kept"]


def newest_of(folder: Path, step: int) -> checkpoint.Checkpoint:
    return checkpoint.read(checkpoint.step_path(folder, step))


def test_a_best_checkpoint_that_was_damaged_is_not_loaded(bench: Build):
    made = bench(max_epochs=2, scores=[0.1, 0.5])
    made.loop.run()
    before = made.weights()
    path = made.folder / "step-000005" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="step-000005"):
        made.loop.load_best()
    assert all(torch.equal(value, before[name]) for name, value in made.weights().items())


@pytest.mark.parametrize(
    ("wer", "cer", "best"),
    [(0.4, 0.5, 0), (0.5, 0.3, 0), (0.5, 0.4, 10), (0.6, 0.1, 10), (None, None, 10)],
)
def test_the_weights_from_before_training_are_put_back_where_none_was_better(
    bench: Build, wer: float | None, cer: float | None, best: int
):
    rates = {"wer": wer, "cer": cer}
    start = {name: {"value": value, "better": "lower"} for name, value in rates.items() if value is not None}
    made = bench(max_epochs=3, scores=[(0.9, 0.9), (0.5, 0.4), (0.7, 0.7)])
    before = made.weights()
    made.loop.keep_start()
    made.loop.run()
    assert made.loop.load_best(start) == best
    assert all(torch.equal(value, before[name]) for name, value in made.weights().items()) is (best == 0)


def test_weights_from_before_training_that_no_longer_fit_are_no_candidate(bench: Build):
    made = bench(max_epochs=1, scores=[0.9])
    checkpoint.save_start(made.folder, {name: torch.zeros(3) for name in made.weights()})
    made.loop.run()
    assert made.loop.load_best({"wer": {"value": 0.1, "better": "lower"}}) == 5
    (made.folder / "start.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"start\.safetensors cannot be read"):
        made.loop.load_best({"wer": {"value": 0.1, "better": "lower"}})


def test_without_evaluation_the_last_weights_stay(bench: Build):
    made = bench(max_epochs=1)
    made.loop.run()
    before = made.weights()
    assert made.loop.load_best() is None
    assert all(torch.equal(value, before[name]) for name, value in made.weights().items())


def test_evaluation_every_few_steps_and_once_at_the_end(bench: Build):
    made = bench(max_epochs=1, eval_steps=2, scores=[0.9, 0.8, 0.7])
    made.loop.run()
    assert [event["step"] for event in made.of("evaluation")] == [2, 4, 5]
    assert made.loop.state.scores == {"2": 0.9, "4": 0.8, "5": 0.7}


# --- what must not happen ------------------------------------------------------------------------


def poison(made: Any, steps: set[int], value: float = float("nan")) -> None:
    """Multiply the loss at some steps, so that it is not finite there."""
    honest = made.task.loss

    def loss(loaded: Any, batch: Any, *, label_smoothing: float = 0.0) -> Losses:
        losses = honest(loaded, batch, label_smoothing=label_smoothing)
        if made.loop.state.step in steps:
            losses = replace(losses, sums=losses.sums * value)
        return losses

    made.task.loss = loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_skipped_and_recorded(bench: Build, value: float):
    made = bench(max_epochs=1, save_steps=1, keep_checkpoints=9)
    poison(made, {2}, value)
    made.loop.run()
    before, after = newest_of(made.folder, 2), newest_of(made.folder, 3)
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert all(torch.equal(before.optimizer[name], after.optimizer[name]) for name in before.optimizer)
    [event] = made.of("bad_step")
    assert event["step"] == 3
    assert len(event["clips"]) == 4
    assert [step["loss"] is None for step in made.of("step")] == [False, False, True, False, False]
    assert made.loop.state.bad_steps == 0  # the next good step forgives
    assert all(bool(torch.isfinite(value).all()) for value in made.weights().values())


def test_a_gradient_that_is_not_finite_is_a_bad_step_too(bench: Build):
    made = bench(max_epochs=1)
    name = sorted(made.stage.trainable)[0]
    parameter = dict(made.loaded.module.named_parameters())[name]
    parameter.register_hook(lambda gradient: gradient * (math.nan if made.loop.state.step == 1 else 1.0))
    made.loop.run()
    assert [event["step"] for event in made.of("bad_step")] == [2]
    assert all(bool(torch.isfinite(value).all()) for value in made.weights().values())


def test_a_loss_spike_is_skipped_and_one_that_stays_there_ends_the_run(bench: Build):
    made = bench(max_epochs=9)
    poison(made, {20, 30, 31, 32}, 1000.0)
    before = made.weights()
    with pytest.raises(NumericError, match="far beyond those before"):
        made.loop.run()
    assert [event["step"] for event in made.of("bad_step")] == [21, 31, 32, 33]
    assert [step["loss"] is None for step in made.of("step")].count(True) >= 3
    assert any(not torch.equal(before[name], value) for name, value in made.weights().items())


def test_no_step_of_the_first_is_a_leap_nor_a_hard_clip_of_a_model_that_has_learned():
    position = TrainingState()
    for loss in [5.0] * 15 + [0.001] * 32:
        assert not is_spike(1e6, position) or len(position.recent_losses) >= 16
        record_loss(loss, position)
    assert not is_spike(9.0, position)  # thousands of times the median, and what a model that knew nothing had twice
    assert is_spike(10.1, position)
    reset_losses(position)
    assert not is_spike(1e9, position)


def test_three_bad_steps_in_a_row_stop_the_run_and_name_the_clips(bench: Build):
    made = bench()
    poison(made, {1, 3, 4, 5})
    with pytest.raises(NumericError) as caught:
        made.loop.run()
    assert caught.value.exit_code == 4
    assert made.loop.state.step == 5  # a single one in between did not stop it
    last = made.of("bad_step")[-1]["clips"]
    assert len(last) == 4
    assert all(clip in str(caught.value) for clip in last)
    assert all(bool(torch.isfinite(value).all()) for value in made.weights().values())


def test_a_checkpoint_after_a_bad_first_step_can_be_resumed(bench: Build, tmp_path: Path):
    """There are no moments yet, and that is no damage."""
    straight, stopped = bench(max_epochs=1, folder=tmp_path / "a"), bench(max_epochs=1, save_steps=1)
    for made in (straight, stopped):
        poison(made, {0})
    straight.loop.run()
    stopped.stop.ask("test")
    with pytest.raises(Interrupted):
        stopped.loop.run()
    taken_up = bench(max_epochs=1)
    taken_up.loop.resume(newest(taken_up.folder))
    taken_up.loop.run()
    assert all(torch.equal(value, straight.weights()[name]) for name, value in taken_up.weights().items())


def test_frozen_parameters_keep_every_byte(bench: Build):
    made = bench()
    before = fingerprint(made.loaded.module, exclude=made.stage.trainable)
    made.loop.run()
    check_frozen(before, made.loaded.module, exclude=made.stage.trainable)
    assert len(before) > 40
    frozen = next(name for name in before if name.endswith("layer_norm.bias"))
    parameter = dict(made.loaded.module.named_parameters())[frozen]
    with torch.no_grad():
        parameter.view(torch.int32).view(-1)[0] ^= 1
    with pytest.raises(TrainingCheckError, match=frozen.replace(".", r"\.")):
        check_frozen(before, made.loaded.module, exclude=made.stage.trainable)


def test_a_group_that_did_not_move_is_an_error(bench: Build):
    made = bench(learning_rates={"decoder": 0.0}, max_epochs=1)
    before = fingerprint(made.loaded.module, exclude=frozenset())
    made.loop.run()
    with pytest.raises(TrainingCheckError, match="adapters:decoder") as caught:
        check_moved(before, made.loaded.module, [made.stage], made.loaded)
    assert caught.value.exit_code == 4


def test_groups_that_moved_pass(bench: Build):
    made = bench(max_epochs=1)
    before = fingerprint(made.loaded.module, exclude=frozenset())
    made.loop.run()
    check_moved(before, made.loaded.module, [made.stage], made.loaded)


def test_a_group_without_gradient_is_an_error_after_three_steps(bench: Build):
    made = bench()
    for name, parameter in made.loaded.module.named_parameters():
        if ".conv" in name and parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(TrainingCheckError, match="weights"):
        made.loop.run()
    assert made.loop.state.step == 2


# --- stopping and going on -----------------------------------------------------------------------

SCORES = [0.9, 0.4, 0.6]


def run_until(made: Any, step: int) -> None:
    """Ask for a stop after a step, as a signal does."""
    made.after_steps.calls.append(lambda done: made.stop.ask("SIGTERM") if done == step else None)
    made.loop.run()


@pytest.mark.parametrize("step", [1, 3, 5, 6, 10, 14])
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(bench: Build, tmp_path: Path, step: int):
    """Mid-epoch (1, 3), after an epoch and its evaluation (5, 10), one step later (6), one before the end (14)."""
    common = {"max_epochs": 3, "schedule": "cosine", "dropout": 0.1, "clip_norm": 1.0, "label_smoothing": 0.1}
    straight = bench(folder=tmp_path / "straight", scores=list(SCORES), **common)
    straight.loop.run()
    stopped = bench(scores=list(SCORES), **common)
    with pytest.raises(Interrupted) as caught:
        run_until(stopped, step)
    assert caught.value.exit_code == 75
    assert f"after step {step} of 15" in str(caught.value)
    saved = newest(stopped.folder)
    assert saved.step == step
    seen = len(stopped.of("evaluation"))
    with Crew(2) as crew:
        taken_up = bench(scores=list(SCORES[seen:]), crew=crew, **common)
        taken_up.loop.resume(saved)
        taken_up.loop.run()
    for name, value in straight.weights().items():
        assert torch.equal(value, taken_up.weights()[name]), name
    first, second = (newest(made.folder) for made in (straight, taken_up))
    assert all(torch.equal(first.optimizer[name], second.optimizer[name]) for name in first.optimizer)
    for field in ("step", "epoch", "batch", "clips", "audio_s", "best", "best_step", "stale", "scores"):
        assert getattr(straight.loop.state, field) == getattr(taken_up.loop.state, field), field
    assert straight.loop.load_best() == taken_up.loop.load_best() == 10
    for name, value in straight.weights().items():
        assert torch.equal(value, taken_up.weights()[name]), name


def test_a_stop_at_the_last_step_is_the_end(bench: Build):
    made = bench(max_epochs=1)
    run_until(made, 5)
    assert newest(made.folder).step == 5


def test_a_resumed_run_that_was_done_trains_no_further(bench: Build):
    done = bench(max_epochs=1)
    done.loop.run()
    again = bench(max_epochs=1)
    again.loop.resume(newest(done.folder))
    again.loop.run()
    assert not again.of("step")
    assert all(torch.equal(value, done.weights()[name]) for name, value in again.weights().items())


def test_patience_that_ran_out_before_a_kill_stays_out(bench: Build):
    done = bench(max_epochs=9, scores=[0.5, 0.6], patience=1)
    done.loop.run()
    again = bench(max_epochs=9, scores=[0.1], patience=1)
    again.loop.resume(newest(done.folder))
    again.loop.run()
    assert not again.of("step")


def test_a_checkpoint_of_other_settings_is_refused(bench: Build):
    done = bench(max_epochs=1)
    done.loop.run()
    other = bench(max_epochs=1, identity={"training data": "x" * 64})
    before = other.weights()
    with pytest.raises(CheckpointError, match="training data was dddd"):
        other.loop.resume(newest(done.folder))
    assert all(torch.equal(value, before[name]) for name, value in other.weights().items())


def test_a_checkpoint_without_moments_that_were_there_is_refused(bench: Build):
    done = bench(max_epochs=1)
    done.loop.run()
    saved = newest(done.folder)
    name = sorted(done.stage.trainable)[3]
    kept = {key: value for key, value in saved.optimizer.items() if not key.startswith(f"{name}/")}
    other = bench(max_epochs=1)
    with pytest.raises(CheckpointError) as caught:
        other.loop.resume(
            checkpoint.Checkpoint(
                path=saved.path, step=saved.step, weights=saved.weights, optimizer=kept, state=saved.state
            )
        )
    assert name in str(caught.value)


# --- fp16 ----------------------------------------------------------------------------------------


class Scaled:
    """What accelerate is to the loop under fp16, on a processor."""

    def __init__(self, scale: float) -> None:
        self.device, self.num_processes = torch.device("cpu"), 1
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)

    def prepare_model(self, module: torch.nn.Module, **settings: bool) -> torch.nn.Module:
        return module

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()


def test_loss_scaling_changes_no_step(bench: Build, tmp_path: Path):
    accelerator = Scaled(2.0**10)
    plain, scaled = bench(folder=tmp_path / "a"), bench(accelerator=accelerator)
    plain.loop.run()
    scaled.loop.run()
    for name, value in plain.weights().items():
        torch.testing.assert_close(scaled.weights()[name], value, rtol=1e-4, atol=1e-6)
    assert accelerator.scaler.get_scale() == 2.0**13  # ten good steps, growth every third


def test_a_scale_that_overflows_is_lowered_and_is_no_bad_step(bench: Build):
    accelerator = Scaled(2.0**127)
    made = bench(accelerator=accelerator, max_epochs=1)
    name = sorted(made.stage.trainable)[0]
    parameter = dict(made.loaded.module.named_parameters())[name]
    parameter.register_hook(lambda gradient: gradient * 2.0**14)
    made.loop.run()
    assert made.of("scale_lowered")
    assert not made.of("bad_step")
    assert accelerator.scaler.get_scale() < 2.0**127


def test_the_scale_is_part_of_a_checkpoint(bench: Build):
    first, second = Scaled(2.0**10), Scaled(1.0)
    done = bench(accelerator=first, max_epochs=1)
    done.loop.run()
    again = bench(accelerator=second, max_epochs=1)
    again.loop.resume(newest(done.folder))
    assert second.scaler.state_dict() == first.scaler.state_dict()
