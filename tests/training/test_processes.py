"""Two processes on one machine: what they train, score and keep is what one process does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from sonotune.adapters.trainable import check_shardable
from sonotune.config.load import LoadedConfig
from sonotune.errors import CheckpointError, ConfigError
from sonotune.processes import BUCKET_BYTES, SINGLE_PROCESS, Processes, started
from sonotune.runs import read_events, read_record
from sonotune.training.compatibility import Fingerprint
from sonotune.training.inputs import loop_settings
from sonotune.training.runtime import ComputeSetup

Settings = Callable[..., LoadedConfig]

WAIT_S = 240
STAGES = (
    "training.stages=[{name: first, adapters: [decoder], max_steps: 3}, "
    "{name: second, weights: [encoder.norms], adapters: all, max_steps: 4, learning_rates: {encoder.norms: 0.5}}]"
)
EVERYTHING = (
    "adapter.allocator=entropy",
    "regularization.entropy=spread",
    "reallocation.at=[0.3]",
    "allocation.clips=8",
    "adapter.dropout=0.1",
    "augmentation.speed_probability=0.5",
    "augmentation.frequency_masks=1",
)


@pytest.fixture
def train(tiny_model: Path, corpus: Path) -> Callable[..., tuple[int, str]]:
    """Trains with one process or several; gives the exit code and what was said."""

    def start(folder: Path, *words: str, processes: int = 1, driver: Path | None = None) -> tuple[int, str]:
        program = [str(driver)] if driver else ["-m", "sonotune", "train"]
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
        )
        line = [
            sys.executable,
            *launcher,
            *program,
            f"model={tiny_model}",
            f"data.train={corpus / 'train.jsonl'}",
            f"data.eval={corpus / 'eval.jsonl'}",
            f"run.dir={folder}",
            "training.batch_max_clips=3",
            "training.threads=1",
            "data.loader_workers=0",
            *(() if any(word.startswith("training.precision=") for word in words) else ("training.precision=fp32",)),
            "evaluation.bootstrap=100",
            "evaluation.max_new_tokens=4",
            "evaluation.batch_max_clips=1",
            "training.learning_rate=0.01",
            *words,
        ]
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=WAIT_S, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        return done.returncode, done.stdout + done.stderr

    return start


def steps(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["kind"] == "step"]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions" / "after.jsonl").read_text("utf-8").splitlines()]


def assert_same(one: Path, two: Path, of: Callable[[Path], dict[str, torch.Tensor]] = adapter) -> None:
    """The same losses, weights and predictions, but for the order of sums."""
    for mine, other in zip(steps(one), steps(two), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4), mine["step"]
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3), mine["step"]
        assert {key: mine[key] for key in ("step", "epoch", "stage", "clips", "learning_rates")} == {
            key: other[key] for key in ("step", "epoch", "stage", "clips", "learning_rates")
        }
        assert mine["audio_s"] == pytest.approx(other["audio_s"])
    left, right = of(one), of(two)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-3, atol=1e-4, msg=name)
    assert [row["id"] for row in predictions(one)] == [row["id"] for row in predictions(two)]


def test_two_processes_do_what_one_does(train: Callable[..., tuple[int, str]], tmp_path: Path):
    """Stages, moving ranks, penalties, dropout and augmentation included; odd numbers of micro-batches."""
    words = (*EVERYTHING, STAGES)
    code, said = train(tmp_path / "one", *words, "training.accumulation_steps=2")
    assert code == 0, said
    code, said = train(tmp_path / "two", *words, processes=2)
    assert code == 0, said
    assert_same(tmp_path / "one", tmp_path / "two")
    assert {event["stage"] for event in steps(tmp_path / "two")} == {"first", "second"}
    assert any(event["clips"] <= 3 for event in steps(tmp_path / "two"))  # the seventh micro-batch, alone
    one, two = read_record(tmp_path / "one"), read_record(tmp_path / "two")
    assert (one.environment["world_size"], two.environment["world_size"]) == (1, 2)
    assert one.ranks == two.ranks
    assert said.count("report ") == 1
    ranks = [json.loads((tmp_path / name / "ranks.json").read_text("utf-8")) for name in ("one", "two")]
    assert ranks[0] == ranks[1]  # the statistics of two halves, merged, are those of the whole


@pytest.mark.slow
def test_gates_learn_in_two_processes_what_they_learn_in_one(train: Callable[..., tuple[int, str]], tmp_path: Path):
    words = ("adapter.kind=gated_lora", "training.max_steps=3", "quantization.bits=16")
    for name, more in (("one", {}), ("two", {"processes": 2})):
        parts = ("training.accumulation_steps=2",) if name == "one" else ()
        code, said = train(tmp_path / name, *words, *parts, **more)
        assert code == 0, said
    assert_same(tmp_path / "one", tmp_path / "two")
    assert any(bool(value.any()) for name, value in adapter(tmp_path / "two").items() if "gate_head" in name)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_another_number_of_processes(train: Callable[..., tuple[int, str]], tmp_path: Path):
    """Three, one, two; the last number of micro-batches was chosen by the first."""
    words, drivers = (*EVERYTHING[4:], STAGES), []
    for step, name in ((2, "SIGUSR1"), (4, "SIGTERM")):
        drivers.append(tmp_path / f"{name}.py")
        drivers[-1].write_text(stops_after(step, name), "utf-8")
    assert train(tmp_path / "whole", "training.accumulation_steps=3", *words)[0] == 0
    code, said = train(tmp_path / "parts", *words, processes=3, driver=drivers[0])  # auto: three, and three they stay
    assert code != 0
    assert "stopped by SIGUSR1 after step 2 of 7" in said
    code, said = train(tmp_path / "parts", *words, driver=drivers[1])
    assert code == 75, said
    assert [event["step"] for event in steps(tmp_path / "parts")] == [1, 2, 3, 4]
    code, said = train(tmp_path / "parts", *words, processes=2)
    assert code == 0, said
    assert_same(tmp_path / "whole", tmp_path / "parts")


def stops_after(step: int, name: str) -> str:
    """A program that trains, of which one process sends itself a signal after a step."""
    return STOPS.replace("STEP", str(step)).replace("NAME", name)


STOPS = """
import os, signal, sys
from sonotune.cli import main
from sonotune.training.logging.progress import TrainingProgress

def stepped(self, values):
    # One process alone gets the signal, as when a scheduler takes away one machine.
    if values["step"] == STEP and os.environ.get("RANK", "1") == "1":
        os.kill(os.getpid(), signal.NAME)

TrainingProgress.stepped = stepped
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_gradients_that_are_not_added_up_are_noticed(train: Callable[..., tuple[int, str]], tmp_path: Path):
    """What DDP does in silence when a stage lets other parameters train than those that it was made for."""
    driver = tmp_path / "stale.py"
    driver.write_text(STALE, "utf-8")
    code, said = train(tmp_path / "run", STAGES, processes=2, driver=driver)
    assert code != 0
    assert "they train apart" in said
    assert "after step 4 process 1" in said
    assert {event["stage"] for event in steps(tmp_path / "run")} <= {"first"}


STALE = """
import sys
from sonotune.cli import main
from sonotune.processes import Processes

known = []
add_up = Processes.all_reduce

def stale(self, tensors):
    if not known:
        known.append(len(tensors))
    add_up(self, tensors[: known[0]])

Processes.all_reduce = stale
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_what_is_not_finite_in_one_process_is_skipped_by_all(train: Callable[..., tuple[int, str]], tmp_path: Path):
    driver = tmp_path / "nan.py"
    driver.write_text(NOT_A_NUMBER, "utf-8")
    code, said = train(tmp_path / "run", "training.max_steps=4", "adapter.dropout=0", processes=2, driver=driver)
    assert code == 0, said
    [bad] = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["kind"] == "bad_step"]
    assert (bad["step"], len(bad["clips"])) == (2, 6)  # those of both
    assert [step["loss"] is None for step in steps(tmp_path / "run")] == [False, True, False, False]
    assert all(torch.isfinite(value).all() for value in adapter(tmp_path / "run").values())


NOT_A_NUMBER = """
import dataclasses, os, sys
from sonotune.cli import main
from sonotune.training.objectives.task import TaskObjective

honest = TaskObjective.losses
calls = []

def broken(self, loaded, batch):
    losses = honest(self, loaded, batch)
    calls.append(batch)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        return dataclasses.replace(losses, sums=losses.sums + float("nan"))  # the gradient is as it was
    return losses

TaskObjective.losses = broken
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["saving, the first", "stepping, the other"])
def test_a_process_that_is_killed_ends_the_others_and_the_next_start_goes_on(
    where: str, train: Callable[..., tuple[int, str]], tmp_path: Path
):
    driver, rank = tmp_path / "dies.py", 0 if where == "saving, the first" else 1
    driver.write_text(DIES_IN_A_SAVE if rank == 0 else DIES, "utf-8")
    words = ("training.accumulation_steps=2", "training.max_steps=6", "training.save_steps=2")
    assert train(tmp_path / "whole", *words)[0] == 0
    code, said = train(tmp_path / "run", *words, processes=2, driver=driver)
    assert code != 0
    assert "another process is gone" in said
    assert read_record(tmp_path / "run").status == ("failed" if rank else "interrupted")
    left = {path.name.partition("-")[0] for path in (tmp_path / "run" / "checkpoints").glob("*-*")}
    assert left == ({"step"} if rank else {"step", ".tmp"})
    code, said = train(tmp_path / "run", *words)
    assert code == 0, said
    assert_same(tmp_path / "whole", tmp_path / "run")


DIES = f"""
import os, sys
from sonotune.cli import main
from sonotune.training.logging.progress import TrainingProgress

def stepped(self, values):
    if values["step"] == 3 and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), {int(signal.SIGKILL)})

TrainingProgress.stepped = stepped
main(["train", *sys.argv[1:]])
"""

DIES_IN_A_SAVE = f"""
import json, os, sys
from pathlib import Path
from sonotune.cli import main
from sonotune.training import checkpoint

write = json.dump

def dies(value, file, **options):
    if Path(file.name).name == checkpoint.MANIFEST and value["step"] == 4:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    write(value, file, **options)

json.dump = dies
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_what_one_process_is_refused_ends_all_at_once(train: Callable[..., tuple[int, str]], tmp_path: Path):
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    code, said = train(tmp_path / "file", processes=2)
    assert code != 0
    assert "process 0 was refused" in said
    assert time.monotonic() - began < 30  # after which torchrun kills what does not end


@pytest.mark.slow
def test_processes_with_other_clips_are_refused_before_anything_is_scored(
    train: Callable[..., tuple[int, str]], corpus: Path, tmp_path: Path
):
    other = corpus / "fewer.jsonl"
    lines = (corpus / "eval.jsonl").read_text("utf-8").splitlines()
    other.write_text("\n".join(lines[:-1]) + "\n", "utf-8")
    driver = tmp_path / "other.py"
    driver.write_text(OTHER_CLIPS.replace("OTHER", str(other)), "utf-8")
    code, said = train(tmp_path / "run", processes=2, driver=driver)
    assert code != 0
    assert "was started with other settings, evaluation data, content of the evaluation audio than" in said
    assert not (tmp_path / "run" / "ranks.json").exists()


OTHER_CLIPS = """
import os, sys
from sonotune.cli import main

words = ["data.eval=OTHER" if word.startswith("data.eval=") and os.environ["RANK"] == "1" else word
         for word in sys.argv[1:]]
main(["train", *words])
"""


@pytest.mark.slow
def test_a_user_error_under_several_processes_ends_them_all(train: Callable[..., tuple[int, str]], tmp_path: Path):
    code, said = train(tmp_path / "run", "training.accumulation_steps=1", processes=2)
    assert code != 0
    assert "cannot be shared by 2 processes" in said
    assert "sonotune/training" not in said  # the launcher has a traceback of its own, and ours none


FULL = (
    "adapter.kind=none",
    "quantization.bits=16",
    "training.learning_rates={encoder: 0.2, decoder: 0.2}",
    "training.stages=[{name: first, weights: [decoder], max_steps: 3}, "
    "{name: second, weights: [encoder, decoder], max_steps: 4}]",
)
FROZEN = ("quantization.bits=16", "training.gradient_checkpointing=true", *EVERYTHING, STAGES)


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """What was trained."""
    model = folder / "model" / "model.safetensors"
    return load_file(model) if model.is_file() else adapter(folder)


@pytest.mark.slow
@pytest.mark.parametrize("words", [FULL, FROZEN], ids=["full", "adapters"])
def test_weights_in_parts_learn_what_whole_ones_do(
    words: tuple[str, ...], train: Callable[..., tuple[int, str]], tmp_path: Path
):
    """Stages included, and odd numbers of micro-batches; stopped, and finished by one process that has all weights."""
    whole, parts = ("training.accumulation_steps=3", *words), "training.shard_weights=true"
    code, said = train(tmp_path / "one", *whole)
    assert code == 0, said
    driver = tmp_path / "counts.py"
    driver.write_text(COUNTS, "utf-8")
    code, said = train(tmp_path / "two", *whole, parts, processes=2, driver=driver)
    assert code == 0, said
    assert_same(tmp_path / "one", tmp_path / "two", of=kept)
    assert any(event["clips"] <= 3 for event in steps(tmp_path / "two"))  # one process had no micro-batch of its own
    for line in (line for line in said.splitlines() if line.startswith("held ")):
        held, of = map(int, line.split()[1:])
        assert held == pytest.approx(of / 2, rel=0.02)
    assert said.count("held ") == 2
    driver.write_text(stops_after(4, "SIGTERM"), "utf-8")
    code, said = train(tmp_path / "parts", *whole, parts, processes=2, driver=driver)
    assert "stopped by SIGTERM after step 4 of 7" in said
    code, said = train(tmp_path / "parts", *whole, parts)
    assert code == 0, said
    assert_same(tmp_path / "one", tmp_path / "parts", of=kept)
    assert "there is one process" in read_record(tmp_path / "parts").choices["training.shard_weights"]


COUNTS = """
import sys
from sonotune.cli import main
from sonotune.training import model as room
from sonotune.training.sharding import is_shard, local

shard = room.shard_layers

def counted(loaded, processes, **options):
    shard(loaded, processes, **options)
    parts = [value for value in loaded.module.parameters() if is_shard(value)]
    print(f"held {sum(local(one).numel() for one in parts)} {sum(one.numel() for one in parts)}\\n", end="", flush=True)

room.shard_layers = counted
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_no_copies_of_weights_in_parts_are_kept_for_the_backward_pass(
    train: Callable[..., tuple[int, str]], tmp_path: Path
):
    """Autocast makes one of each matrix in fp32, and the backward pass holds on to all of them."""
    driver = tmp_path / "copies.py"
    driver.write_text(COPIES, "utf-8")
    words = (
        "adapter.kind=none",
        "quantization.bits=16",
        "training.precision=bf16",
        "training.max_steps=1",
        "training.accumulation_steps=2",
        "training.learning_rates={encoder: 0.2, decoder: 0.2}",
    )
    kept = []
    for processes, parts in ((1, "false"), (2, "true")):
        code, said = train(
            tmp_path / parts, *words, f"training.shard_weights={parts}", processes=processes, driver=driver
        )
        assert code == 0, said
        kept.append(next(int(line.split()[1]) for line in said.splitlines() if line.startswith("kept ")))
    assert kept[0] == 2 * 28_672  # bytes of the matrices of the layers
    assert kept[1] == 0


COPIES = """
import sys
import torch
from sonotune.cli import main
from sonotune.training.objectives.task import TaskObjective

honest = TaskObjective.losses

def counted(self, loaded, batch):
    layers = [value for name, value in loaded.module.named_parameters() if ".layers." in name and value.ndim > 1]
    shapes = {shape for value in layers for shape in (tuple(value.shape), tuple(value.shape)[::-1])}
    kept = {}

    def keep(tensor):
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = honest(self, loaded, batch)
    print(f"kept {sum(storage.nbytes() for storage in kept.values())}\\n", end="", flush=True)
    return losses

TaskObjective.losses = counted
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_ends_those_that_need_its_weights(
    train: Callable[..., tuple[int, str]], tmp_path: Path
):
    driver = tmp_path / "dies.py"
    driver.write_text(DIES.replace("RANK_TO_KILL", "1"), "utf-8")
    code, said = train(tmp_path / "run", *FULL, "training.shard_weights=true", processes=2, driver=driver)
    assert code != 0
    assert "another process is gone" in said, said
    assert "sonotune/training" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "lora", "bits": 4}, "quantization.bits=4 packs"),
        ({"memory_limit_bytes": 10}, "memory_limit_bytes cuts"),
        ({"precision": "fp16"}, "precision=bf16 or fp32"),
        ({"optimizer": "adamw_8bit"}, "optimizer=adamw_8bit knows no parts"),
    ],
)
def test_settings_that_weights_in_parts_do_not_bear_are_refused(changes: dict[str, Any], message: str):
    settings = {"kind": "none", "bits": 16, "precision": "fp32", "optimizer": "adamw", "memory_limit_bytes": None}
    check_shardable(**settings)
    with pytest.raises(ConfigError, match=message):
        check_shardable(**{**settings, **changes})


def among(processes: Processes = SINGLE_PROCESS) -> ComputeSetup:
    return ComputeSetup(accelerator=Accelerator(cpu=True), processes=processes, precision="fp32", why="")


def test_a_step_needs_a_micro_batch_for_each_process(settings: Settings):
    config = settings().config
    assert loop_settings(config, among()).accumulation_steps == 1
    assert loop_settings(config, among(Processes(0, 3))).accumulation_steps == 3
    four = settings("training.accumulation_steps=4").config
    assert loop_settings(four, among(Processes(0, 3))).accumulation_steps == 4
    with pytest.raises(ConfigError, match="4 micro-batches of a step cannot be shared by 5 processes"):
        loop_settings(four, among(Processes(1, 5)))
    assert loop_settings(config, among(Processes(0, 1)), begun=2).accumulation_steps == 2
    assert loop_settings(four, among(), begun=2).accumulation_steps == 4
    with pytest.raises(ConfigError, match=r"begun with 2: .* cannot be shared by 3 processes. Start 2 processes"):
        loop_settings(config, among(Processes(0, 3)), begun=2)


def test_shares_are_apart_and_whole():
    for count in range(1, 5):
        for size in range(9):
            shares = [Processes(rank, count).shard(range(size)) for rank in range(count)]
            assert sorted(item for share in shares for item in share) == list(range(size))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_tensors_are_summed_with_neighbours_of_one_type_up_to_the_size_of_a_bucket(monkeypatch: pytest.MonkeyPatch):
    exchanged: list[tuple[int, torch.dtype]] = []

    def sum_over_two(joined: torch.Tensor) -> None:
        exchanged.append((joined.numel(), joined.dtype))
        joined.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", sum_over_two)
    wide = BUCKET_BYTES // 4
    tensors = [
        torch.empty(wide // 2),
        torch.empty(wide // 2),
        torch.empty(1),
        torch.empty(1, dtype=torch.bfloat16),
        torch.empty(2 * wide),
        torch.empty(3),
    ]
    for value, tensor in enumerate(tensors):
        tensor.fill_(value)
    Processes(0, 2).all_reduce(tensors)
    assert exchanged == [
        (wide, torch.float32),
        (1, torch.float32),
        (1, torch.bfloat16),
        (2 * wide, torch.float32),
        (3, torch.float32),
    ]
    assert all(bool((tensor == 2 * value).all()) for value, tensor in enumerate(tensors))


class Other(Processes):
    """The first of two, the other of which has another training set."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def all_gather(self, value: Any) -> list[Any]:
        return [value, {**value, "training data": "b" * 64}]


def test_processes_that_were_started_with_other_clips_are_refused():
    with pytest.raises(ConfigError, match="process 1 was started with other training data than process 0"):
        Other().assert_equal({"settings": "s", "training data": "a" * 64})
    Processes().assert_equal({"settings": "s"})


def test_processes_that_did_not_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch):
    """`accelerate launch --cpu` sets the number and starts one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match="started 2 processes and 1 found each other"):
        Processes.from_env(1)


@pytest.mark.parametrize("count", ["2", "many", "-1", ""])
def test_a_number_of_processes_without_a_launcher_is_refused(count: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="Unset it for one process"):
        started()


def test_a_checkpoint_of_other_steps_is_refused(settings: Settings, tmp_path: Path):
    from sonotune.training import checkpoint

    saved = checkpoint.save(
        tmp_path,
        1,
        weights={},
        optimizer={},
        state={"position": {}, "identity": {"micro-batches of a step": "2"}},
    )
    wanted = Fingerprint(values={"micro-batches of a step": "1"}, may_differ=frozenset())
    with pytest.raises(CheckpointError, match="micro-batches of a step was 2 and is now 1"):
        checkpoint.check_fingerprint(checkpoint.read(saved), wanted, ())
