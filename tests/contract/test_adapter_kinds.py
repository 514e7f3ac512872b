"""What every kind of adapter promises: attached without a change, owned by name, kept, loaded, disabled and merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sonotune.adapters.kinds.base import AdapterKind, AdapterSettings, kind_named, kind_of
from sonotune.adapters.merge import merge_into
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.adapters.trainable import adapt_uncalibrated
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel, component_of_parameters
from sonotune.models.probe import probe_logits
from sonotune.registry import names

NANO = "assets:whisper-nano"
KINDS = names("adapters")
CARRIED = [name for name in KINDS if name != "none"]


def fresh() -> LoadedModel:
    return open_model(NANO).loaded


def adapted(kind: AdapterKind, loaded: LoadedModel, *, stem: str = "frozen") -> LoadedModel:
    settings = AdapterSettings(rank=4, stem=stem)  # type: ignore[arg-type]
    return adapt_uncalibrated(loaded, kind, RankSettings(rank=4, stem=stem), settings)


def moved(loaded: LoadedModel) -> LoadedModel:
    """With all that trains a little off its start, the same for the same names."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return loaded


@pytest.mark.parametrize("name", KINDS)
def test_attaching_changes_no_output_and_every_parameter_has_an_owner(name: str):
    loaded = fresh()
    before = probe_logits(loaded)
    made = adapted(kind_named(name), loaded)
    torch.testing.assert_close(probe_logits(made), before, rtol=0, atol=1e-6)
    assert kind_of(made).name == name
    bare = {parameter for parameter, _ in open_model(NANO).loaded.module.named_parameters()}
    assert set(component_of_parameters(made)) == bare
    trains = {key for key, value in made.module.named_parameters() if value.requires_grad}
    assert trains
    if name != "none":
        assert all(made.names.owns(key) for key in trains)
        assert set(kind_of(made).update_norms(made).values()) == {0.0}


@pytest.mark.parametrize("name", CARRIED)
def test_what_is_saved_is_loaded_to_the_same_outputs(name: str, tmp_path: Path):
    loaded = fresh()
    made = moved(adapted(kind_named(name), loaded, stem="train"))
    kind_of(made).save(made, tmp_path / "adapter", extra={"bits": 16})
    again = open_model(str(tmp_path / "adapter"))
    assert kind_of(again.loaded).name == name
    torch.testing.assert_close(probe_logits(again.loaded), probe_logits(made), rtol=0, atol=1e-6)
    with torch.device("meta"):
        outlined = kind_named(name).outline(loaded.family.outline(NANO), tmp_path / "adapter")
    shapes = {key: value.shape for key, value in again.loaded.module.named_parameters()}
    assert {key: value.shape for key, value in outlined.module.named_parameters()} == shapes


@pytest.mark.parametrize("name", CARRIED)
def test_disabled_it_is_the_base_and_merged_it_is_itself(name: str):
    loaded = fresh()
    before = probe_logits(loaded)
    made = moved(adapted(kind_named(name), loaded))
    after = probe_logits(made)
    assert float((after - before).abs().max()) > 1e-4
    with kind_of(made).disabled(made):
        torch.testing.assert_close(probe_logits(made), before, rtol=0, atol=1e-6)
    assert torch.equal(probe_logits(made), after)
    if kind_of(made).merge(made) is not None:
        merged = merge_into(made, fresh())
        torch.testing.assert_close(probe_logits(merged), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CARRIED)
def test_matrices_of_low_rank_multiply_to_what_a_merge_adds(name: str):
    made = moved(adapted(kind_named(name), fresh(), stem="lora"))
    factors, updates = kind_of(made).low_rank(made), kind_of(made).merge(made)
    if factors is None:
        return
    assert updates is not None
    assert {f"{module}.weight" for module in factors} == updates.keys()
    for module, (a, b_OR) in factors.items():
        product = (b_OR @ a.flatten(1)).view(len(b_OR), *a.shape[1:])
        torch.testing.assert_close(product, updates[f"{module}.weight"], rtol=1e-5, atol=1e-7)
