"""What `sonotune plan` says: buckets, what fits, time and money, the published table."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from sonotune.cli import main
from sonotune.cli.plan import parse_bytes
from sonotune.errors import ConfigError
from sonotune.features.batching import plan_batches
from sonotune.loading import open_model
from sonotune.planning.cost import estimate, read_throughput
from sonotune.planning.layout import TrainingSettings
from sonotune.planning.plan import advice, largest_that_fits, make_plan

NANO = "assets:whisper-nano"


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *words, "--json"])
    return int(stop.value.code or 0), json.loads(capsys.readouterr().out)


def test_json_has_what_is_promised(capsys: pytest.CaptureFixture[str]):
    code, body = ask(
        capsys,
        "model=whisper_nano",
        "training.max_epochs=3",
        "--device",
        "cpu",
        "--throughput",
        "50",
        "--audio-hours",
        "10",
        "--price",
        "2",
        "--devices",
        "2",
        "--memory",
        "1GB",
    )
    assert code == 0
    stage = body["stages"][0]
    assert body["peak_bytes"] == max(body["loading_bytes"], stage["peak_bytes"])
    assert sum(row["bytes"] for row in body["components"]) == stage["peak_bytes"]
    assert stage["peak_bytes"] == max(bucket["peak_bytes"] for bucket in stage["buckets"])
    assert [bucket["clip_seconds"] for bucket in stage["buckets"]] == [2, 5, 10, 15]
    epochs = 3
    assert body["seconds"] == pytest.approx(10 * 3600 * epochs / (50 * 2))
    assert body["cost"] == pytest.approx(body["seconds"] / 3600 * 2 * 2)
    assert body["fits"] is True


def test_without_throughput_there_is_no_time(capsys: pytest.CaptureFixture[str]):
    _, body = ask(capsys, "model=whisper_nano", "--clip-seconds", "3", "--device", "cpu")
    assert body["seconds"] is None
    assert body["cost"] is None
    assert body["fits"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--memory", "big"), "no size"),
        (("--throughput", "5"), "--throughput and --audio-hours together"),
        (("--throughput", "nowhere", "--audio-hours", "1"), "neither a number nor a run"),
        (("--throughput", "0", "--audio-hours", "1"), "above 0"),
        (("--throughput", "5", "--audio-hours", "0"), "--audio-hours is 0"),
        (("--device", "tpu"), "take one of auto, cpu, cuda"),
        (("--clip-seconds", "-1"), "must be above 0"),
        (("--label-tokens", "0"), "--label-tokens is 0"),
    ],
)
def test_wrong_words_end_with_code_2(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str):
    code, body = ask(capsys, "model=whisper_nano", *words)
    assert code == 2
    assert told in body["error"]


def test_sizes_are_read():
    assert parse_bytes("8GB") == 8_000_000_000
    assert parse_bytes("24 gib") == 24 * 2**30
    assert parse_bytes("40") == 40 * 2**30
    assert parse_bytes("1.5MB") == 1_500_000
    with pytest.raises(ConfigError):
        parse_bytes("-1GB")


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100])
def test_the_largest_is_the_largest(limit: int):
    def peak(clips: int) -> int:
        return 10 * clips

    found = largest_that_fits(peak, 10 * limit)
    assert found == limit


def test_what_fits_fits_and_one_more_does_not():
    settings = TrainingSettings(checkpoint=NANO)

    def plan(clips: int, memory: int | None = None) -> Any:
        return make_plan(
            settings, clip_seconds=[5.0], batch_seconds=1000, batch_max_clips=clips, memory_bytes=memory
        ).worst.worst

    limit = 100_000_000
    largest = plan(1, limit).largest
    assert largest is not None
    assert plan(largest).memory.peak_bytes <= limit < plan(largest + 1).memory.peak_bytes


def test_the_worst_bucket_is_run_and_the_others_are_not():
    plan = make_plan(
        TrainingSettings(checkpoint=NANO),
        clip_seconds=[2.0, 4.0],
        batch_seconds=16,
        batch_max_clips=4,
        exact=True,
        memory_bytes=10**9,
    )
    assert sorted(bucket.exact for bucket in plan.worst.buckets) == [False, True]
    assert plan.worst.worst.largest is not None


def test_advice_is_what_is_left_to_do():
    def told(**changes: Any) -> str:
        plan = make_plan(
            TrainingSettings(checkpoint=NANO, **changes),
            clip_seconds=[10.0],
            batch_seconds=300,
            batch_max_clips=30,
            memory_bytes=60_000_000,
        )
        return "; ".join(advice(plan))

    assert "gradient_checkpointing=true" in told()
    assert "quantization.bits=4" in told()
    assert "adapter.kind=lora" in told(kind="none")
    assert "training.shard_weights=true" in told(kind="none")
    assert "training.shard_weights=true" not in told(kind="none", shards=2)
    assert "quantization.bits=4 without training.shard_weights" in told(shards=2)
    assert "batch_seconds=" in told()
    assert "gradient_checkpointing" not in told(gradient_checkpointing=True)


def test_throughput_of_a_run_leaves_its_first_step_out(tmp_path: Path):
    events = [{"audio_s": 60.0, "seconds": 30.0}, {"audio_s": 60.0, "seconds": 2.0}, {"audio_s": 40.0, "seconds": 2.0}]
    lines = [{"event": "checkpoint", "seconds": 5.0}, *events]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rate, source = read_throughput(str(tmp_path))
    assert rate == 25.0
    assert source.startswith("2 steps")


def test_steps_end_a_run_before_its_epochs():
    given: dict[str, Any] = {
        "audio_hours": 1.0,
        "step_seconds": 60.0,
        "throughput": "10",
        "price_per_hour": None,
    }
    assert estimate(stages=[(2, None)], devices=1, **given).seconds == 720
    assert estimate(stages=[(2, 10)], devices=1, **given).seconds == 60
    assert estimate(stages=[(2, 10)], devices=2, **given).seconds == 30
    assert estimate(stages=[(2, None), (1_000_000, 10)], devices=2, **given).seconds == 390
    assert estimate(stages=[(2, 10)], devices=1, **given).cost is None


def test_throughput_of_several_processes_is_that_of_one(tmp_path: Path):
    (tmp_path / "events.jsonl").write_text(json.dumps({"audio_s": 60.0, "seconds": 2.0}) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"environment": {"world_size": 2}}))
    rate, source = read_throughput(str(tmp_path))
    assert (rate, source.split(" of ")[0]) == (15.0, "1 steps")
    assert source.endswith("on 2 devices")


def test_the_published_table_is_as_printed_and_does_not_add_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    published = importlib.import_module("benchmarks.planner.published")
    rows, notes = published.compare_published()
    by_item = {row.item: row for row in rows}
    parts = [row.reported for row in rows if row.item != "total"]
    assert by_item["total"].reported == pytest.approx(sum(parts), abs=0.05)  # this sum is right
    wrong = {row.item for row in rows if row.derived is not None and abs(row.derived - row.reported) > 0.1}
    assert wrong == {"audio tower", "LLM decoder", "LM head", "optimiser, two moments", "master weights", "gradients"}
    ours = [row.predicted for row in rows if row.item in ("audio tower", "projector", "LLM decoder", "LM head")]
    assert sum(value or 0.0 for value in ours) == pytest.approx(4.08, abs=0.05)  # 2.04 billion parameters in bf16
    assert any("51 % less, printed 53" in note for note in notes)
    assert any("1,986 M" in note for note in published.inconsistencies())
    assert any("23.7 h of 2 cards" in note for note in notes)


def test_every_stage_is_planned_with_the_moments_of_those_before(capsys: pytest.CaptureFixture[str]):
    stages = (
        "[{name: stem, weights: [stem], adapters: none, max_steps: 5}, {name: all, weights: [stem], max_steps: 5}, "
        "{name: adapters, max_steps: 5}]"
    )
    code, body = ask(capsys, "model=whisper_nano", f"training.stages={stages}", "--device", "cpu")
    assert code == 0
    stem, both, last = body["stages"]
    assert [one["name"] for one in body["stages"]] == ["stem", "all", "adapters"]
    assert stem["trainable"] + last["trainable"] == both["trainable"]
    assert stem["bytes"]["optimizer"] < both["bytes"]["optimizer"] == last["bytes"]["optimizer"]
    assert stem["bytes"]["weights"] == both["bytes"]["weights"]
    assert body["peak_bytes"] >= max(one["peak_bytes"] for one in body["stages"])


def test_usual_lengths_end_at_the_window_of_the_model(capsys: pytest.CaptureFixture[str]):
    code, body = ask(capsys, "model=ast_nano", "model.num_labels=4", "--device", "cpu")
    assert code == 0
    lengths = [row["clip_seconds"] for row in body["stages"][0]["buckets"]]
    assert max(lengths) == pytest.approx(4.095)


@pytest.mark.parametrize(("context", "clips"), [("cut", 12), ("thinned", 8), ("full", 2)])
def test_a_micro_batch_is_that_of_training_which_counts_what_is_computed(
    capsys: pytest.CaptureFixture[str], context: str, clips: int
):
    limits = ("training.batch_seconds=36", "training.batch_max_clips=32")
    _, body = ask(
        capsys, "model=whisper_nano", f"model.context={context}", *limits, "--clip-seconds", "3", "--device", "cpu"
    )
    assert body["stages"][0]["buckets"][0]["clips"] == clips
    loaded = open_model("assets:whisper-nano", context=context).loaded
    batches = plan_batches([loaded.computed_s(3.0)] * 24, max_seconds=36, max_clips=32, seed=0, epoch=0)
    assert max(map(len, batches)) == clips


def test_on_a_card_a_quantised_model_is_never_there_in_single_precision(capsys: pytest.CaptureFixture[str]):
    words = ("model=qwen3_asr_0_6b", "quantization.bits=4", "--clip-seconds", "3")
    card, processor = (ask(capsys, *words, "--device", device)[1]["loading_bytes"] for device in ("cuda", "cpu"))
    assert card < 0.55 * processor
