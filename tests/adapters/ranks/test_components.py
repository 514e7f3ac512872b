"""The split between parts of a model: the gain of the first step against real adapters, the rule, and the halves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from sonotune.adapters.kinds import lora
from sonotune.adapters.kinds.lora import stem_cost
from sonotune.adapters.ranks import components as split
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.ranks.components import (
    MAX_COMPONENT_RATIO,
    FirstStep,
    Split,
    decide,
    full_parts,
    halves,
    measure,
)
from sonotune.adapters.ranks.plan import RankPlan, targets_in
from sonotune.errors import AdapterError
from sonotune.features.batching import ClipBatches
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.task import TaskObjective
from sonotune.types import Clip

TASK = Transcribe(WhisperFamily(), TaskSettings(language="en"))
OBJECTIVE = TaskObjective(TASK, ObjectiveSettings())
RANK = 3


def load() -> LoadedModel:
    return WhisperFamily().load("assets:whisper-nano", context="cut")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Modulated noise of two speakers, with texts."""
    folder = tmp_path_factory.mktemp("split")
    made = []
    for index, text in enumerate(("one two", "three", "four five six", "seven")):
        draw = np.random.default_rng(index)
        samples = 8000 + 1777 * index
        tone = np.sin(np.arange(samples) * (0.02 + 0.01 * index)) * (1 + np.sin(np.arange(samples) / 900))
        path = folder / f"{index}.wav"
        soundfile.write(path, 0.1 * tone + 0.05 * draw.standard_normal(samples), 16_000)
        made.append(
            Clip(
                id=f"clip {index}",
                path=path,
                duration_s=samples / 16_000,
                text=text,
                speaker=f"s{index % 2}",
                language="en",
            )
        )
    return made


def gradients(loaded: LoadedModel, clips: list[Clip]) -> dict[str, torch.Tensor]:
    """Of the mean loss over all labels, by autograd, for every trainable parameter."""
    for parameter in loaded.module.parameters():
        parameter.grad = None
    prepared = TASK.prepare(loaded, clips)
    batches = ClipBatches(
        prepared.clips,
        prepared.targets,
        loaded.frontend,
        batches=[(i,) for i in range(len(clips))],
        seed=0,
        epoch=0,
        context="cut",
    )
    losses = [TASK.loss(loaded, batches[index], label_smoothing=0.0) for index in range(len(batches))]
    (sum(loss.total for loss in losses) / sum(loss.count for loss in losses)).backward()
    return {name: parameter.grad for name, parameter in loaded.module.named_parameters() if parameter.requires_grad}


def test_the_gain_is_that_of_real_adapters_and_weights(clips: list[Clip]):
    """What PEFT trains beside stem and norms, with the same A, has the same crossed gradients."""
    loaded = load()
    sites = targets_in(loaded, loaded.linears)
    before = {name: value.clone() for name, value in loaded.module.state_dict().items()}
    found = measure(loaded, OBJECTIVE, clips, sites, rank=RANK, scale=2.0, seed=7)
    assert all(torch.equal(value, before[name]) for name, value in loaded.module.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.module.parameters())
    assert set(found.groups) == {"encoder", "decoder", "decoder.cross_attention"}
    assert set(found.gains) == {*found.groups, "stem", "encoder.norms", "decoder.norms"}

    plan = RankPlan(
        ranks=dict.fromkeys(loaded.linears, RANK),
        allocator="uniform",
        parameters=0,
        initial={site.name: split.initial_rows(loaded, site.name, RANK, 7).numpy() for site in sites},
    )
    adapted = lora.attach(loaded, plan, rank=RANK, alpha=2.0 * RANK, unfreeze=["encoder.norms", "decoder.norms"])
    adapted.module.eval()
    first, second = (gradients(adapted, half) for half in halves(clips))
    group_of = {site.name: site.group for site in sites}
    expected = dict.fromkeys(found.gains, 0.0)
    sizes = dict.fromkeys(found.gains, 0)
    for name, one in first.items():
        bare = lora.LORA.unwrapped(name)
        part = next((group for site, group in group_of.items() if f"{site}." in bare and ".lora_" in name), None)
        part = part or ("stem" if ".conv" in bare else f"{'encoder' if '.encoder.' in bare else 'decoder'}.norms")
        expected[part] += float((one.sign() * second[name] + second[name].sign() * one).sum()) / 2
        sizes[part] += one.numel()
    assert sizes == dict(found.parameters)
    for part, gain in expected.items():
        assert found.gains[part] == pytest.approx(gain, rel=2e-3, abs=1e-5), part


def test_what_carries_an_adapter_does_not_train_in_full():
    loaded = load()
    assert set(full_parts(loaded, targets_in(loaded, loaded.linears))) == {
        "stem",
        "encoder.norms",
        "decoder.norms",
    }


def step(**density: float) -> FirstStep:
    """Gains per parameter by part; groups are those without a dot, and of 100 parameters each."""
    names = {name.replace("_", "."): value for name, value in density.items()}
    return FirstStep(
        gains={name: 100 * value for name, value in names.items()},
        parameters=dict.fromkeys(names, 100),
        groups=tuple(name for name in names if name in ("encoder", "decoder")),
    )


def test_a_part_trains_where_its_weights_gain_what_those_of_the_best_group_do():
    found = decide(step(encoder=1.0, decoder=1.0, stem=1.01, encoder_norms=0.99, decoder_norms=-5.0))
    assert (found.stem, found.unfreeze) == (True, ())
    assert found.weights == {"encoder": 1.0, "decoder": 1.0}
    assert found.rates == {}  # all adapters together still gain more
    assert not decide(step(encoder=1.0, decoder=3.0, stem=2.9)).stem  # more than on average, less than the best


def test_what_would_move_the_loss_more_than_all_adapters_is_slowed():
    found = decide(step(encoder=1.0, decoder=3.0, stem=16.0, decoder_norms=4.0))
    assert found.rates == {"stem": 0.5}  # the square root of a quarter
    assert found.unfreeze == ("decoder.norms",)
    assert found.words() == [
        "adapter.stem=train",
        "adapter.unfreeze=[decoder.norms]",
        "training.learning_rates={stem: 0.5}",
        "allocation.group_weights={encoder: 0.707, decoder: 1.22}",
    ]
    assert decide(step(encoder=1.0, decoder=3.0, stem=16.0), gamma=1.0).rates == {"stem": 0.25}
    assert "stem at 0.5 of the learning rate, decoder.norms at 1" in found.sentence()
    assert decide(step(encoder=1.0, decoder=3.0), gamma=0.0).weights == {"encoder": 1.0, "decoder": 1.0}


def test_where_halves_teach_each_other_nothing_there_is_no_rule():
    with pytest.raises(AdapterError, match=r"adapter\.split=given"):
        decide(step(encoder=-1.0, decoder=0.0, stem=3.0))


@pytest.mark.parametrize("tiny", [5e-324, 1e-308])
def test_gains_at_the_edge_of_what_a_number_holds_are_decided(tiny: float):
    parameters = {"encoder": 10, "decoder": 10, "stem": 10}
    found = FirstStep(
        gains={"encoder": 0.0, "decoder": tiny, "stem": 1.0}, parameters=parameters, groups=("encoder", "decoder")
    )
    assert 0 < decide(found, gamma=2.0).rates["stem"] < 1e-5


@given(
    gains=st.lists(st.floats(-1.0, 1e6), min_size=3, max_size=6),
    sizes=st.lists(st.integers(1, 10**7), min_size=6, max_size=6),
    gamma=st.floats(0, 2),
    scale=st.floats(1e-3, 1e3),
)
def test_the_rule_is_bounded_and_knows_no_unit(gains: list[float], sizes: list[int], gamma: float, scale: float):
    names = ["encoder", "decoder", "stem", "encoder.norms", "decoder.norms", "projector.norms"][: len(gains)]
    parameters = dict(zip(names, sizes, strict=False))
    groups = ("encoder", "decoder")
    found = FirstStep(gains=dict(zip(names, gains, strict=True)), parameters=parameters, groups=groups)
    if max(gains[:2]) <= 0:
        with pytest.raises(AdapterError):
            decide(found, gamma=gamma)
        return
    made = decide(found, gamma=gamma)
    assert all(1 / MAX_COMPONENT_RATIO <= weight <= MAX_COMPONENT_RATIO for weight in made.weights.values())
    assert set(made.weights) == set(groups)
    assert all(0 < rate <= 1 for rate in made.rates.values())
    assert set(made.rates) <= {*made.unfreeze, *(["stem"] if made.stem else [])}
    assert all(found.gains[part] > 0 for part in made.unfreeze)
    assert Split.from_json(json.loads(json.dumps(made.to_json()))) == made
    scaled = FirstStep(
        gains={name: 2.0 ** round(math.log2(scale)) * gain for name, gain in found.gains.items()},
        parameters=parameters,
        groups=groups,
    )
    again = decide(scaled, gamma=gamma)
    assert (again.stem, again.unfreeze, again.rates, again.weights) == (
        made.stem,
        made.unfreeze,
        made.rates,
        made.weights,
    )


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=2, max_size=30), st.randoms())
def test_halves_share_no_speaker_where_all_are_known(speakers: list[str | None], order):
    made = [
        Clip(id=f"{index:02d}", path=Path("x"), duration_s=1.0, speaker=speaker)
        for index, speaker in enumerate(speakers)
    ]
    first, second = halves(made)
    assert sorted(clip.id for clip in (*first, *second)) == [clip.id for clip in made]
    assert first
    assert second
    if None not in speakers and len(set(speakers)) > 1:
        assert not {clip.speaker for clip in first} & {clip.speaker for clip in second}
    else:
        assert abs(len(first) - len(second)) <= 1
    shuffled = list(made)
    order.shuffle(shuffled)
    assert halves(shuffled) == (first, second)


def test_one_clip_is_no_two_halves():
    with pytest.raises(AdapterError, match="2 calibration clips or more"):
        halves([Clip(id="a", path=Path("x"), duration_s=1.0)])


@pytest.mark.parametrize("body", [[], {}, {"schema": 2}, {"schema": 1, "gains": {}}, {"schema": 1, "gains": 3}])
def test_a_damaged_split_is_refused(body):
    with pytest.raises(AdapterError, match="measured anew"):
        Split.from_json(body)


def test_adapters_of_the_stem_are_paid_from_the_budget():
    loaded = load()
    settings, stem = RankSettings(stem="lora", rank=RANK, budget=40_000), stem_cost(loaded) * RANK
    assert settings.bounds_in(loaded).parameters == 40_000 - stem
    plan = plan_ranks(loaded, settings)
    adapted = lora.attach(loaded, plan, rank=RANK, alpha=RANK, stem="lora")
    trained = sum(value.numel() for name, value in adapted.module.named_parameters() if ".lora_" in name)
    assert trained == plan.parameters + stem <= 40_000
    assert RankSettings(stem="train", budget=40_000).bounds_in(load()).parameters == 40_000
