"""The objective `distill`: what its loss is, what the student draws, which teachers are refused, and a run of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sonotune.adapters.trainable import recompute_activations
from sonotune.config.load import LoadedConfig, load_run_config
from sonotune.data.manifest import TEACHER_COLUMN, read_manifest
from sonotune.errors import CheckpointError, ConfigError, Interrupted
from sonotune.features.batching import Batch, ClipBatches
from sonotune.features.frontend import from_state
from sonotune.loading import Opened, model_digest, open_model
from sonotune.models.families.ast import AstFamily
from sonotune.models.families.ctc import CtcFamily
from sonotune.models.families.qwen3_asr import Qwen3AsrFamily
from sonotune.registry import resolve_asset
from sonotune.reports.card import build_card
from sonotune.runs import read_record
from sonotune.tasks.base import PreparedClips, TaskSettings
from sonotune.tasks.classify import Classify
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings, Weighted, make_objective
from sonotune.training.objectives.distill import Distill, divergence
from sonotune.training.run import run
from sonotune.training.teacher import Distillation, Teacher, check_teacher, note_on_itself, open_teacher
from sonotune.types import Score

NANO = "assets:whisper-nano"
Settings = Callable[..., LoadedConfig]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return open_teacher(NANO, bits=16, precision="fp32", device="cpu")


@pytest.fixture
def student(tiny_model: Path) -> Opened:
    opened = open_model(str(tiny_model), dropout=0.0)
    opened.loaded.module.eval()
    return opened


@pytest.fixture(scope="module")
def task(teacher: Teacher) -> Transcribe:
    return Transcribe(teacher.loaded.family, TaskSettings(language="en"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(teacher: Teacher, task: Transcribe) -> PreparedClips:
    return task.prepare(teacher.loaded, read_manifest(resolve_asset("assets:quickstart/train.jsonl"))[:6])


def batch_of(prepared: PreparedClips, teacher: Teacher, *rows: int, epoch: int = 0) -> Batch:
    frontend = teacher.loaded.frontend
    batches = ClipBatches(
        prepared.clips, prepared.targets, frontend, batches=[rows], seed=0, epoch=epoch, context="thinned"
    )
    return batches[0]


def objective(task: Transcribe, teacher: Teacher, **how: Any) -> Weighted:
    return make_objective("distill", task, ObjectiveSettings(distillation=Distillation(teacher=teacher, **how)))


# --- the loss --------------------------------------------------------------------------------------


def test_of_the_teacher_itself_there_is_nothing_to_learn(teacher: Teacher, task: Transcribe, prepared: PreparedClips):
    loaded = open_model(NANO).loaded
    batch = batch_of(prepared, teacher, 0, 1, 2)
    weight = loaded.module.model.encoder.layers[0].fc1.weight.requires_grad_(True)
    for share in (0.0, 1.0):
        losses = objective(task, teacher, loss_share=1.0, on_policy_share=share).losses(loaded, batch)
        assert losses.sums.tolist() == [0.0, 0.0, 0.0]
        [gradient] = torch.autograd.grad(losses.total, weight)
        assert float(gradient.abs().max()) < 1e-6
    assert not any(value.requires_grad for value in teacher.loaded.module.parameters())


def test_the_divergence_is_that_of_kullback_and_leibler():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (theirs / 2).softmax(-1), (ours / 2).softmax(-1)
    torch.testing.assert_close(
        divergence(ours, theirs, temperature=2.0), (4 * (p * (p / q).log()).sum(-1)).float(), rtol=1e-5, atol=1e-6
    )


def test_a_share_mixes_it_with_the_loss_of_the_task(
    teacher: Teacher, task: Transcribe, student: Opened, prepared: PreparedClips
):
    batch = batch_of(prepared, teacher, 0, 1, 2)
    sums = {}
    with torch.no_grad():
        for share in (0.0, 0.25, 1.0):
            losses = objective(task, teacher, loss_share=share).losses(student.loaded, batch)
            sums[share] = losses.sums
        plain = make_objective("task", task, ObjectiveSettings()).losses(student.loaded, batch)
    torch.testing.assert_close(sums[0.0], plain.sums)
    torch.testing.assert_close(sums[0.25], 0.75 * sums[0.0] + 0.25 * sums[1.0])
    assert losses.counts.tolist() == plain.counts.tolist()
    assert (sums[1.0] > 1).all()


def test_the_teacher_is_never_in_training(teacher: Teacher, task: Transcribe, prepared: PreparedClips):
    """Dropout of the student is drawn as it is without a teacher, and the teacher has none, whatever its flags say."""
    loaded = open_model(NANO, dropout=0.2).loaded
    batch = batch_of(prepared, teacher, 0, 1)
    loaded.module.train()
    found = []
    for name, how in (("distill", {"loss_share": 0.0}), ("distill", {"loss_share": 1.0}), ("task", None)):
        settings = ObjectiveSettings(distillation=None if how is None else Distillation(teacher=teacher, **how))
        for flag in (False, True) if how else (False,):
            teacher.loaded.module.train(flag)
            torch.manual_seed(3)
            with torch.no_grad():
                found.append(make_objective(name, task, settings).losses(loaded, batch).sums)
    teacher.loaded.module.eval()
    torch.testing.assert_close(found[0], found[-1])
    assert torch.equal(found[2], found[3])
    assert all(child.training for child in loaded.module.modules())


@pytest.mark.parametrize("trains", [False, True])
def test_logits_of_both_may_come_in_parts(
    teacher: Teacher, task: Transcribe, student: Opened, prepared: PreparedClips, monkeypatch, trains: bool
):
    batch, made = batch_of(prepared, teacher, 0, 1, 2), objective(task, teacher, temperature=2.0, on_policy_share=0.5)
    module = student.loaded.module
    module.proj_out.weight.requires_grad_(trains)  # tied to the embeddings
    weight = module.model.decoder.layers[0].fc1.weight.requires_grad_(True)
    found = []
    for at_once in (2**22, 391 * 3):
        monkeypatch.setattr("sonotune.models.losses._LOGITS_AT_ONCE", at_once)
        losses = made.losses(student.loaded, batch)
        found.append((losses.sums.detach(), torch.autograd.grad(losses.total, weight)[0]))
    torch.testing.assert_close(*[sums for sums, _ in found])
    torch.testing.assert_close(*[gradient for _, gradient in found], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["assets:qwen3-asr-nano", "assets:speech-llm-nano"])
def test_a_language_model_that_hears_learns_from_its_kind(name: str):
    """Its teacher in 4 bits says nearly what it says itself."""
    strict, loaded = open_teacher(name, bits=4, precision="fp32", device="cpu"), open_model(name, bits=16).loaded
    own = Transcribe(loaded.family, TaskSettings(language="en"))  # type: ignore[arg-type]
    prepared = own.prepare(loaded, read_manifest(resolve_asset("assets:quickstart/train.jsonl"))[:2])
    check_teacher(strict, loaded, prepared.clips, prepared.targets, contexts={loaded.context})
    batch = ClipBatches(
        prepared.clips, prepared.targets, loaded.frontend, batches=[(0, 1)], seed=0, epoch=0, context=loaded.context
    )[0]
    with torch.no_grad():
        plain = make_objective("task", own, ObjectiveSettings()).losses(loaded, batch)
        learned = objective(own, strict, loss_share=1.0).losses(loaded, batch)
    assert learned.counts.tolist() == plain.counts.tolist()
    assert (learned.sums > 0).all()
    assert float(learned.total) / learned.count < 0.5


# --- texts that the student draws -------------------------------------------------------------------


def drawn(made: Weighted, loaded: Any, batch: Batch) -> list[list[int]]:
    """Targets of every clip as the student draws them."""
    assert isinstance(made.of, Distill)
    found = made.of._with_drawn_texts(loaded, batch, range(len(batch.clips)))
    return [row[:size] for row, size in zip(found.targets.tolist(), found.target_lengths.tolist(), strict=True)]


def test_a_text_is_drawn_by_seed_epoch_and_clip(teacher: Teacher, task: Transcribe, prepared: PreparedClips):
    loaded, made = teacher.loaded, objective(task, teacher, on_policy_share=1.0)
    batch = batch_of(prepared, teacher, 0, 1, 2)
    together = drawn(made, loaded, batch)
    assert together == drawn(made, loaded, batch)
    assert [drawn(made, loaded, batch.rows([row]))[0] for row in (2, 0, 1)] == [together[row] for row in (2, 0, 1)]
    assert together != drawn(made, loaded, replace(batch, epoch=1))
    assert together != drawn(objective(task, teacher, on_policy_share=1.0, seed=1), loaded, batch)
    loaded.module.train()  # with dropout, of which a draw takes no notice
    assert together == drawn(made, loaded, batch)
    assert loaded.module.training
    loaded.module.eval()
    end = loaded.module.config.eos_token_id
    assert [row[:4] for row in together] == batch.targets[:, :4].tolist()
    assert all(end not in row[4:-1] for row in together)


def test_a_drawn_token_costs_the_divergence_alone(
    teacher: Teacher, task: Transcribe, student: Opened, prepared: PreparedClips
):
    batch = batch_of(prepared, teacher, 0, 1, 2)
    found = {}
    with torch.no_grad():
        for share in (0.0, 1.0):
            made = objective(task, teacher, loss_share=share, on_policy_share=1.0)
            found[share] = made.losses(student.loaded, batch)
    assert torch.equal(found[0.0].sums, found[1.0].sums)
    assert found[0.0].counts.tolist() == [len(row) - 4 for row in drawn(made, student.loaded, batch)]
    most = [2 * length + 16 for length in batch.target_lengths.tolist()]
    assert all(count <= limit for count, limit in zip(found[0.0].counts.tolist(), most, strict=True))


def test_the_clips_that_are_drawn_for_change_from_epoch_to_epoch(
    teacher: Teacher, task: Transcribe, prepared: PreparedClips
):
    made = objective(task, teacher, on_policy_share=0.5).of
    assert isinstance(made, Distill)
    batch = batch_of(prepared, teacher, 0, 1, 2, 3, 4, 5)
    assert [batch_of(prepared, teacher, 0, epoch=epoch).epoch for epoch in (0, 7)] == [0, 7]
    drawn_BE = [made._drawn(replace(batch, epoch=epoch)) for epoch in range(30)]
    shares = [float(sum(row[clip] for row in drawn_BE) / 30) for clip in range(6)]
    assert all(0.2 < share < 0.8 for share in shares)


def test_activations_may_be_computed_again(teacher: Teacher, task: Transcribe, prepared: PreparedClips):
    batch = batch_of(prepared, teacher, 0, 1, 2)
    gradients = []
    for again in (False, True):
        loaded = open_model(NANO, dropout=0.0).loaded
        loaded.module.train()
        loaded.module.requires_grad_(True)
        if again:
            recompute_activations(loaded)
        made = objective(task, teacher, temperature=2.0, on_policy_share=0.5)
        torch.autograd.backward(made.losses(loaded, batch).total)
        gradients.append(loaded.module.model.encoder.layers[0].fc1.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert float(gradients[0].abs().max()) > 0


def test_two_micro_batches_are_the_step_of_one(
    teacher: Teacher, task: Transcribe, student: Opened, prepared: PreparedClips
):
    made = objective(task, teacher, on_policy_share=0.5)
    weight = student.loaded.module.model.decoder.layers[0].fc1.weight.requires_grad_(True)

    def gradient(*batches: Batch) -> torch.Tensor:
        losses = [made.losses(student.loaded, batch) for batch in batches]
        total = sum(one.total for one in losses) / sum(one.count for one in losses)
        return torch.autograd.grad(total, weight)[0]

    whole = gradient(batch_of(prepared, teacher, 0, 1, 2, 3))
    parts = gradient(batch_of(prepared, teacher, 0), batch_of(prepared, teacher, 1, 2, 3))
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


# --- who may teach ----------------------------------------------------------------------------------


def refusal(teacher: Teacher, loaded: Any, prepared: PreparedClips, **changes: Any) -> str:
    given = {"contexts": {"thinned"}, **changes}
    with pytest.raises(ConfigError) as caught:
        check_teacher(teacher, loaded, given.pop("clips", prepared.clips), prepared.targets, **given)
    return str(caught.value)


def test_a_fitting_teacher_is_taken(teacher: Teacher, student: Opened, prepared: PreparedClips):
    check_teacher(teacher, student.loaded, prepared.clips, prepared.targets, contexts={"thinned", "full"})


def test_a_teacher_of_other_tokens_is_refused(teacher: Teacher, student: Opened, prepared: PreparedClips):
    vocabulary = {token: (place + 1) % 391 for token, place in student.loaded.processor.tokenizer.get_vocab().items()}
    other = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: vocabulary))
    told = refusal(teacher, student.loaded.with_(processor=other), prepared)
    assert "another tokenizer" in told
    assert "sonotune data label" in told


def test_a_teacher_of_other_features_is_refused(teacher: Teacher, student: Opened, prepared: PreparedClips):
    state = teacher.loaded.frontend.state()
    bins = from_state({**state, "feature_bins": 128})
    assert "feature_bins 80 and not 128" in refusal(teacher, student.loaded.with_(frontend=bins), prepared)
    rate = from_state({**state, "sample_rate_hz": 8000})
    assert "sample_rate_hz 16000 and not 8000" in refusal(teacher, student.loaded.with_(frontend=rate), prepared)


def test_a_teacher_of_another_family_is_refused(teacher: Teacher, student: Opened, prepared: PreparedClips):
    other = student.loaded.with_(family=Qwen3AsrFamily())
    assert "is of the family whisper, and the model of qwen3_asr" in refusal(teacher, other, prepared)


def test_a_teacher_that_lacks_a_language_is_refused(teacher: Teacher, student: Opened, prepared: PreparedClips):
    foreign = [replace(clip, language="sw") for clip in prepared.clips]
    assert "does not know the language 'sw'" in refusal(teacher, student.loaded, prepared, clips=foreign)


def test_a_teacher_of_other_contexts_is_refused(teacher: Teacher, student: Opened, prepared: PreparedClips):
    whole = replace(teacher, loaded=teacher.loaded.with_(trained_contexts=("full",)))
    assert "have the context thinned" in refusal(whole, student.loaded, prepared)


def test_texts_of_another_teacher_are_refused(teacher: Teacher, student: Opened, prepared: PreparedClips):
    def labelled(digest: str) -> list[Any]:
        return [replace(clip, extra={TEACHER_COLUMN: digest}) for clip in prepared.clips]

    check_teacher(teacher, student.loaded, labelled(teacher.digest), prepared.targets, contexts={"thinned"})
    told = refusal(teacher, student.loaded, prepared, clips=labelled("0123456789abcdef"))
    assert f"digest {teacher.digest[:12]}, and data.train has texts of another teacher, 0123456789ab" in told


def test_a_classifier_teaches_no_texts():
    with pytest.raises(ConfigError, match="must transcribe"):
        open_teacher("assets:ast-nano", bits=16, precision="fp32", device="cpu")


def test_who_cannot_learn_so_is_refused(teacher: Teacher):
    learned = ObjectiveSettings(distillation=Distillation(teacher=teacher))
    for made, settings, told in (
        (Transcribe(CtcFamily(), TaskSettings()), learned, "writes frames.*sonotune data label"),
        (Classify(AstFamily(), TaskSettings()), learned, "the task is classify"),
        (Transcribe(Qwen3AsrFamily(), TaskSettings()), ObjectiveSettings(), r"name distillation\.teacher"),
    ):
        with pytest.raises(ConfigError, match=told):
            make_objective("distill", made, settings)
    drawing = ObjectiveSettings(distillation=Distillation(teacher=teacher, on_policy_share=0.5))
    with pytest.raises(ConfigError, match=r"the family qwen3_asr does not\. Set it to 0"):
        make_objective("distill", Transcribe(Qwen3AsrFamily(), TaskSettings()), drawing)
    make_objective("distill", Transcribe(Qwen3AsrFamily(), TaskSettings()), learned)


def test_its_settings_are_refused_where_they_do_nothing():
    base = [f"model.checkpoint={NANO}"]
    with pytest.raises(ConfigError, match=r"distillation\.teacher cannot take effect"):
        load_run_config([*base, f"distillation.teacher={NANO}"])
    taught = [*base, "training.objective=distill", f"distillation.teacher={NANO}"]
    with pytest.raises(ConfigError, match="weights in parts cannot"):
        load_run_config([*taught, "distillation.on_policy_share=0.5", "training.shard_weights=true"])
    plain, one = load_run_config(base), load_run_config(taught)
    assert not [name for name in plain.deciding() if name.startswith("distillation")]
    assert one.digest != load_run_config([*taught, "distillation.temperature=2"]).digest


# --- runs -------------------------------------------------------------------------------------------

TAUGHT = (
    "training.objective=distill",
    f"distillation.teacher={NANO}",
    "distillation.on_policy_share=0.5",
    "evaluation.zero_shot=false",
    "training.eval_steps=never",
    "training.max_epochs=1",
    "training.max_steps=4",
    "training.batch_max_clips=3",
    "training.save_steps=2",
)


class StopAfter:
    """Asks to stop by an interrupt after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, total_steps: int, step: int) -> None:
        pass

    def stepped(self, values: Mapping[str, Any]) -> None:
        if values["step"] == self.step:
            raise Interrupted("enough")

    def evaluated(self, step: int, scores: Mapping[str, Score]) -> None:
        pass


def weights_of(folder: Path) -> dict[str, bytes]:
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_run_goes_on_to_the_bit_and_names_its_teacher(settings: Settings, tmp_path: Path, teacher: Teacher):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(settings(*TAUGHT, folder=whole, augmented=True))
    with pytest.raises(Interrupted):
        run(settings(*TAUGHT, folder=stopped, augmented=True), listeners=[StopAfter(3)])
    run(settings(*TAUGHT, folder=stopped, augmented=True))
    assert weights_of(whole) == weights_of(stopped)
    record = read_record(whole)
    assert record.model["teacher"]["digest"] == teacher.digest == model_digest(NANO, teacher.loaded)
    assert record.model["teacher"]["bytes"] == teacher.held_bytes > 4 * 2_000_000
    assert record.config["training"]["objective"] == "distill"
    card = build_card(record, kind="adapter", task="transcribe")
    assert f"learned from the teacher assets:whisper-nano (digest `{teacher.digest[:12]}`)" in card


def test_another_teacher_does_not_go_on(settings: Settings, tmp_path: Path, tiny_model: Path):
    place = tmp_path / "teacher"
    shutil.copytree(tiny_model, place)
    taught = [word for word in TAUGHT if "teacher" not in word] + [f"distillation.teacher={place}"]
    with pytest.raises(Interrupted):
        run(settings(*taught), listeners=[StopAfter(3)])
    generation = json.loads((place / "generation_config.json").read_text("utf-8"))
    (place / "generation_config.json").write_text(json.dumps({**generation, "suppress_tokens": [7]}), "utf-8")
    with pytest.raises(CheckpointError, match="teacher was"):
        run(settings(*taught))


def test_a_run_needs_a_teacher(settings: Settings, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"distillation\.teacher names no model to learn from"):
        run(settings("training.objective=distill"))
    assert not (tmp_path / "run").exists()


def test_the_model_itself_is_told(teacher: Teacher, student: Opened, tiny_model: Path):
    told = note_on_itself(teacher, model_digest(NANO, open_model(NANO).loaded))
    assert told is not None
    assert told.check == "distillation.itself"
    assert note_on_itself(teacher, model_digest(str(tiny_model), student.loaded)) is None


def test_a_few_steps_bring_the_student_nearer(
    teacher: Teacher, task: Transcribe, student: Opened, prepared: PreparedClips
):
    batch, made = batch_of(prepared, teacher, *range(4)), objective(task, teacher, loss_share=1.0)
    trains: Sequence[torch.nn.Parameter] = list(student.loaded.module.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(trains, lr=3e-3)
    found = []
    for _ in range(14):
        losses = made.losses(student.loaded, batch)
        found.append(float(losses.total.detach()) / losses.count)
        optimizer.zero_grad()
        torch.autograd.backward(losses.total / losses.count)
        optimizer.step()
    assert found[-1] < 0.7 * found[0]
