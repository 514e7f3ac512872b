"""What every model family promises. A new family adds a row to `conftest.BUILDERS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.adapters.kinds import lora
from sonotune.adapters.merge import compare_logits, merge_into
from sonotune.adapters.ranks.plan import RankPlan, unit_costs
from sonotune.data.words import words_of
from sonotune.errors import ConfigError
from sonotune.features.batching import Batch, pad_targets
from sonotune.features.frontend import from_state
from sonotune.loading import choose_family, open_model
from sonotune.models import decoding
from sonotune.models.base import LoadedModel, ModelFamily, component_of_parameters, count_parameters, select
from sonotune.models.losses import LabelOutputs
from sonotune.models.probe import probe_logits
from sonotune.models.quantize import quantize
from sonotune.registry import names, resolve
from sonotune.tasks.base import Task, TaskSettings
from sonotune.types import Clip, Context, DecodingSettings

TEXTS = ["one", "two three", "שבע"]
OWN_TOKENS = {"whisper", "qwen3_asr", "speech_llm"}


class Case:
    """A family with a small model of it."""

    def __init__(self, family: str, checkpoint: str) -> None:
        self.family: ModelFamily = resolve("families", family)()
        self.checkpoint = checkpoint
        self.loaded = self.family.load(checkpoint)
        self.task: Task = resolve("tasks", self.family.task)(self.family, TaskSettings(language="en"))

    def fresh(self) -> LoadedModel:
        """Loaded again, to be changed."""
        return self.family.load(self.checkpoint)

    def waveform(self, row: int) -> NDArray[np.float32]:
        """Seeded noise of another length for each row, the same in every batch."""
        rate = self.loaded.frontend.sample_rate_hz
        return (0.1 * np.random.default_rng(row).standard_normal(rate // 2 + 1733 * row)).astype(np.float32)

    def clip(self, row: int) -> Clip:
        label = (self.loaded.labels[row % len(self.loaded.labels)],) if self.loaded.labels else ()
        return Clip(
            id=f"c{row}",
            path=Path("x.wav"),
            duration_s=0.5 + row * 1733 / 16000,
            text=TEXTS[row],
            language="en",
            label=label,
        )

    def batch(self, rows: list[int], *, context: Context = "cut") -> Batch:
        inputs, lengths = self.loaded.frontend([self.waveform(row) for row in rows], full_context=context == "full")
        prepared = self.task.prepare(self.loaded, [self.clip(row) for row in rows])
        assert not prepared.findings
        targets, target_lengths = pad_targets(prepared.targets)
        return Batch(
            inputs=inputs,
            input_lengths=lengths,
            targets=targets,
            target_lengths=target_lengths,
            clips=prepared.clips,
            context=context,
        )


@pytest.fixture(scope="module")
def case(row: str, checkpoint: Callable[[str], tuple[str, str]]) -> Case:
    return Case(*checkpoint(row))


@pytest.fixture
def speech(case: Case) -> Case:
    if case.family.task != "transcribe":
        pytest.skip("a family without text")
    return case


def test_every_family_has_a_row(families_with_rows: set[str]) -> None:
    assert set(names("families")) == families_with_rows


def test_the_name_is_that_of_the_registry_and_is_found_from_the_checkpoint(case: Case) -> None:
    assert resolve("families", case.family.name) is type(case.family)
    assert case.loaded.family.name == case.family.name
    assert case.family.task in names("tasks")
    assert type(choose_family(case.checkpoint)) is type(case.family)


def test_every_parameter_belongs_to_exactly_one_component(case: Case) -> None:
    owners = component_of_parameters(case.loaded)
    assert set(owners) == {name for name, _ in case.loaded.module.named_parameters()}
    rows = count_parameters(case.loaded)
    assert sum(row["parameters"] for row in rows.values()) == sum(p.numel() for p in case.loaded.module.parameters())
    for component in rows:
        assert select(case.loaded, [component])
    assert len(case.loaded.component("encoder").layers) > 1


def test_linears_are_full_names_in_model_order_and_none_is_tied(case: Case) -> None:
    found = [name for name, module in case.loaded.module.named_modules() if isinstance(module, nn.Linear)]
    assert [name for name in found if name in set(case.loaded.linears)] == list(case.loaded.linears)
    tied = {name.removesuffix(".weight") for group in case.loaded.tied for name in group}
    assert not tied & set(case.loaded.linears)


def test_the_model_is_loaded_in_fp32_in_evaluation_mode(case: Case) -> None:
    assert {parameter.dtype for parameter in case.loaded.module.parameters()} == {torch.float32}
    assert not case.loaded.module.training
    assert case.loaded.revision


def test_an_outline_has_every_shape_and_no_weight(case: Case) -> None:
    outline = case.family.outline(case.checkpoint)
    shapes = {name: value.shape for name, value in case.loaded.module.named_parameters()}
    assert {name: value.shape for name, value in outline.module.named_parameters()} == shapes
    assert all(value.is_meta for value in outline.module.parameters())
    assert outline.components == case.loaded.components
    assert (outline.linears, outline.tied) == (case.loaded.linears, case.loaded.tied)
    assert outline.frontend.max_duration_s == case.loaded.frontend.max_duration_s


def test_the_frontend_is_that_of_the_checkpoints_own_extractor(case: Case) -> None:
    extractor = getattr(case.loaded.processor, "feature_extractor", case.loaded.processor)
    ours_BTF, lengths_B = case.loaded.frontend([case.waveform(row) for row in range(3)])
    for row in range(3):
        # The processor of Qwen3-ASR asks its extractor for no more than the clip; the others pad as they are.
        own_length = {"padding": "longest"} if case.family.name == "qwen3_asr" else {}
        given: Any = extractor(case.waveform(row), sampling_rate=16_000, return_tensors="pt", **own_length)
        theirs = given[extractor.model_input_names[0]][0]
        if theirs.ndim == 1:
            theirs = theirs.unsqueeze(-1)
        elif theirs.shape[1] != ours_BTF.shape[2]:
            theirs = theirs.T
        length = int(lengths_B[row])
        torch.testing.assert_close(ours_BTF[row, :length], theirs[:length], atol=2e-4, rtol=1e-4)
    assert from_state(case.loaded.frontend.state()).state() == case.loaded.frontend.state()


def test_the_loss_of_a_batch_is_that_of_its_clips(case: Case) -> None:
    with torch.no_grad():
        together = case.task.loss(case.loaded, case.batch([0, 1, 2]), label_smoothing=0.1)
        parts = [case.task.loss(case.loaded, case.batch([row]), label_smoothing=0.1) for row in range(3)]
    assert together.counts.tolist() == [part.count for part in parts]
    assert min(together.counts.tolist()) > 0
    torch.testing.assert_close(together.sums, torch.stack([part.total for part in parts]), rtol=1e-4, atol=1e-5)


def test_padding_never_changes_an_output(case: Case) -> None:
    with torch.no_grad():
        together = case.family.logits(case.loaded, case.batch([0, 1, 2]))
        alone = torch.cat([case.family.logits(case.loaded, case.batch([row])) for row in range(3)])
    assert bool(torch.isfinite(together).all())
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=2e-5)


def test_clips_say_something(case: Case) -> None:
    """A model that gave the same logits to every clip would pass the tests of equality."""
    with torch.no_grad():
        first, second = (case.family.logits(case.loaded, case.batch([row])) for row in (0, 2))
    rows = min(len(first), len(second))
    assert float((first[:rows] - second[:rows]).abs().max()) > 1e-5


def test_the_order_of_a_batch_changes_no_prediction(case: Case) -> None:
    forward = case.task.predict(case.loaded, case.batch([0, 1, 2]), DecodingSettings(max_new_tokens=5))
    backward = case.task.predict(case.loaded, case.batch([2, 1, 0]), DecodingSettings(max_new_tokens=5))
    assert [p.text for p in forward] == [p.text for p in backward[::-1]]
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    assert not case.loaded.module.training
    assert all(parameter.grad is None for parameter in case.loaded.module.parameters())


def test_every_word_has_tokens_and_is_as_sure_alone_as_in_a_batch(speech: Case) -> None:
    settings = DecodingSettings(max_new_tokens=12, confidence=True, temperatures=(0.0,))
    together = speech.task.predict(speech.loaded, speech.batch([2, 0, 1]), settings)
    alone = [speech.task.predict(speech.loaded, speech.batch([row]), settings)[0] for row in (2, 0, 1)]
    plain = speech.task.predict(speech.loaded, speech.batch([2, 0, 1]), replace(settings, confidence=False))
    for one, other, unrated in zip(together, alone, plain, strict=True):
        assert one.words is not None
        assert other.words is not None
        assert (one.text, unrated.words) == (unrated.text, None)
        assert [word.text for word in one.words] == words_of(one.text or "")
        for word, same in zip(one.words, other.words, strict=True):
            assert word.logprobs
            assert all(logprob < 1e-5 for logprob in word.logprobs)
            assert word.logprobs == pytest.approx(same.logprobs, abs=2e-3)


def test_log_probabilities_are_those_that_the_model_gives_its_own_text(speech: Case) -> None:
    """Teacher-forced, the tokens of a text have the probabilities that decoding found."""
    if speech.family.name != "whisper":
        pytest.skip("frames, or an untrained model, whose texts a tokenizer would write with other tokens")
    settings = DecodingSettings(max_new_tokens=12, confidence=True, temperatures=(0.0,))
    [made] = speech.task.predict(speech.loaded, speech.batch([1]), settings)
    if made.cut or not made.words:
        pytest.skip("no whole text")
    ids = speech.family.encode_text(speech.loaded, made.text or "", "en")
    batch = replace(
        speech.batch([1]), targets=torch.as_tensor(ids)[None], target_lengths=torch.tensor([len(ids)], dtype=torch.long)
    )
    with torch.no_grad():
        outputs = speech.family.forward(speech.loaded, batch)
    assert isinstance(outputs, LabelOutputs)
    logprobs = outputs.logits.float().log_softmax(dim=-1).gather(1, outputs.labels[:, None])[:, 0]
    words = [one for word in made.words for one in word.logprobs]
    assert words == pytest.approx(logprobs[-1 - len(words) : -1].tolist(), abs=1e-2)


@pytest.mark.parametrize("beam_size", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_clip_without_numbers_says_so_and_leaves_the_others_alone(case: Case, value: float, beam_size: int) -> None:
    settings = DecodingSettings(max_new_tokens=5, beam_size=beam_size)
    whole = case.batch([0, 1, 2])
    broken = whole.inputs.clone()
    broken[1] = value
    expected = case.task.predict(case.loaded, whole, settings)
    found = case.task.predict(case.loaded, replace(whole, inputs=broken), settings)
    assert [prediction.finite for prediction in found] == [True, False, True]
    assert (found[1].text or "", found[1].scores) == ("", {})
    for row in (0, 2):
        assert found[row].text == expected[row].text
        assert found[row].scores == expected[row].scores


@pytest.mark.parametrize("beams", [1, 2])
def test_a_text_that_reaches_its_limit_says_so(case: Case, beams: int) -> None:
    """Token by token, a text without its end token was cut; CTC and classes know no limit."""
    limited = case.family.name in OWN_TOKENS
    made = case.task.predict(case.loaded, case.batch([0, 1]), DecodingSettings(max_new_tokens=1, beam_size=beams))
    assert all(one.cut == limited for one in made if one.text)
    assert any(one.cut for one in made) == limited


def test_the_limit_follows_the_transcripts_a_model_was_trained_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    honest = decoding.token_limits

    def watched(*arguments: Any, tokens_per_second: float, **options: Any) -> list[int]:
        rates.append(tokens_per_second)
        return [2] * len(honest(*arguments, tokens_per_second=tokens_per_second, **options))

    monkeypatch.setattr(decoding, "token_limits", watched)
    for trained in (0.0, 1000.0):
        case.task.predict(case.loaded.with_(tokens_per_second=trained), case.batch([0]))
    if case.family.name in OWN_TOKENS:
        assert 75.0 <= rates[0] <= 100.0
        assert rates[1:] == [1000.0]
    else:
        assert rates == []


def plan(loaded: LoadedModel, *, rank: int = 3) -> RankPlan:
    costs = unit_costs(loaded, loaded.linears)
    return RankPlan(ranks=dict.fromkeys(costs, rank), allocator="test", parameters=rank * sum(costs.values()))


def adapted(case: Case, *, stem: Any = "frozen", scale: float = 0.05) -> LoadedModel:
    """Adapters on every linear, far from where they began."""
    attached = lora.attach(case.fresh(), plan(case.loaded), rank=3, alpha=6.0, stem=stem)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in attached.module.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    attached.module.eval()
    return attached


def test_adapters_attach_to_every_linear_and_only_they_train(case: Case) -> None:
    attached = adapted(case)
    assert set(lora.lora_layers(attached)) == set(case.loaded.linears)
    trains = {name for name, parameter in attached.module.named_parameters() if parameter.requires_grad}
    assert trains
    assert all(".lora_" in name for name in trains)
    assert sum(p.numel() for p in attached.module.parameters() if p.requires_grad) == plan(case.loaded).parameters
    case.task.loss(attached, case.batch([0, 1, 2]), label_smoothing=0.0).total.backward()
    assert [
        name
        for name, parameter in attached.module.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.abs().max() > 0))
    ] == []
    assert all(parameter.grad is None for parameter in attached.module.parameters() if not parameter.requires_grad)


def test_a_merge_is_exact(case: Case) -> None:
    attached = adapted(case, stem="train")
    before = probe_logits(attached)
    assert float((before - probe_logits(case.loaded)).abs().max()) > 1e-3
    merged = merge_into(attached, case.fresh())
    proof = compare_logits(before, probe_logits(merged))
    assert proof.largest <= 1e-4 * max(1.0, proof.scale)


def test_a_quantised_base_trains_adapters(case: Case) -> None:
    kept = {name for name in case.loaded.linears if case.loaded.owner(name) == "head"}
    quantized = quantize(case.fresh(), bits=4, keep=kept)
    assert len(quantized.quantized) == len(case.loaded.linears) - len(kept)
    attached = lora.attach(quantized, plan(case.loaded), rank=3, alpha=3.0, stem="frozen")
    with torch.no_grad():
        case.task.loss(attached, case.batch([0, 1]), label_smoothing=0.0)  # an evaluation before training
    attached.module.train()
    losses = case.task.loss(attached, case.batch([0, 1]), label_smoothing=0.0)
    losses.total.backward()
    assert math.isfinite(float(losses.total.detach()))
    moved = [
        name
        for name, parameter in attached.module.named_parameters()
        if ".lora_B." in name and parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
    ]
    assert len(moved) == len(case.loaded.linears)


def test_saved_and_loaded_it_is_the_same(case: Case, tmp_path: Path) -> None:
    before = probe_logits(case.loaded)
    case.loaded.module.save_pretrained(tmp_path / "model")
    case.loaded.processor.save_pretrained(tmp_path / "model")
    again = case.family.load(str(tmp_path / "model"))
    assert torch.equal(probe_logits(again), before)
    assert (again.components, again.linears, again.labels) == (
        case.loaded.components,
        case.loaded.linears,
        case.loaded.labels,
    )


def test_a_saved_adapter_is_the_same_again(case: Case, tmp_path: Path) -> None:
    attached = adapted(case, stem="train")
    lora.save(attached, tmp_path)
    again = open_model(str(tmp_path))
    assert again.loaded.family.name == case.family.name
    assert torch.equal(probe_logits(again.loaded), probe_logits(attached))


def test_a_new_output_layer_is_kept_with_its_adapter(case: Case, tmp_path: Path) -> None:
    wanted = ("x", "y", "z") if case.loaded.labels else tuple("abcdeghijnorstuvwz")
    if case.family.name in OWN_TOKENS:
        pytest.skip("this family writes with the checkpoint's own tokens")
    loaded = case.family.load(case.checkpoint, outputs=wanted, renew_outputs=True)
    assert loaded.new_outputs
    attached = (
        lora.attach(loaded, plan(loaded), rank=3, alpha=3.0, stem="frozen", unfreeze=())
        if (any(loaded.owner(name) == "head" for name in loaded.linears))
        else lora.attach(loaded, plan(loaded), rank=3, alpha=3.0, stem="frozen", unfreeze=["head"])
    )
    with torch.no_grad():
        for parameter in attached.module.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    lora.save(attached, tmp_path, extra={"outputs": list(loaded.new_outputs)})
    if hasattr(loaded.processor, "tokenizer"):
        loaded.processor.tokenizer.save_pretrained(tmp_path)
    again = open_model(str(tmp_path)).loaded
    assert again.new_outputs == loaded.new_outputs
    assert torch.equal(probe_logits(again), probe_logits(attached))


def test_a_new_output_layer_is_refused_where_it_could_not_be_made(case: Case, tmp_path: Path) -> None:
    if case.family.name not in OWN_TOKENS:
        pytest.skip("this family makes one")
    case.family.load(case.checkpoint, outputs=("a", "b"))  # what the data has is no request
    with pytest.raises(ConfigError, match=r"model\.outputs=data cannot take effect.*only family ctc"):
        case.family.load(case.checkpoint, outputs=("a", "b"), renew_outputs=True)
    with pytest.raises(ConfigError, match=r"model\.tokenizer=.* cannot take effect"):
        case.family.load(case.checkpoint, tokenizer=str(tmp_path))


def test_a_note_on_a_language_is_a_sentence_or_none(speech: Case) -> None:
    family: Any = speech.family
    assert family.note_on_language(speech.loaded, "en") is None
    for language in ("he_IL", "iw", "xx"):
        note = family.note_on_language(speech.loaded, language)
        assert note is None or note.endswith(".")


def test_logits_have_a_finite_row_for_each_place(case: Case) -> None:
    with torch.no_grad():
        logits: Tensor = case.family.logits(case.loaded, case.batch([0, 1, 2]))
    sizes = {len(case.loaded.labels)} if case.loaded.labels else {logits.shape[1]}
    assert logits.ndim == 2
    assert logits.shape[1] in sizes
    assert len(logits) >= 3
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_targets(speech: Case, text: str) -> None:
    family: Any = speech.family
    ids = family.encode_text(speech.loaded, text, "en")
    assert ids.dtype == np.int64
    assert family.decode_text(speech.loaded, ids.tolist()) == text
