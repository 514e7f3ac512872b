"""What `inspect` says is what a run would hold, and at real size what the published architectures have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sonotune.adapters.kinds import lora
from sonotune.adapters.kinds.base import AdapterSettings, kind_named
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.trainable import adapt
from sonotune.errors import AdapterError, ConfigError, ModelError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel, count_parameters
from sonotune.models.quantize import quantized_bytes
from sonotune.planning.inspection import Inspection, inspect_model

NANO = "assets:whisper-nano"


def settings(*, full: bool = False, **changes: Any) -> dict[str, Any]:
    """What `inspect_model` takes of the settings of an adapter."""
    ranks = {name: value for name, value in changes.items() if name in ("rank", "targets", "unfreeze")}
    adapter = {name: value for name, value in changes.items() if name in AdapterSettings.__dataclass_fields__}
    return {
        "kind": "none" if full else "lora",
        "ranks": RankSettings(**ranks),
        "adapter": AdapterSettings(**adapter),
    }


def really_adapted(*, kind: str, ranks: RankSettings, adapter: AdapterSettings) -> LoadedModel:
    loaded = open_model(NANO).loaded
    plan = plan_ranks(loaded, ranks) if kind == "lora" else None
    return adapt(loaded, kind_named(kind), plan, adapter)


def row(found: Inspection, name: str) -> dict[str, Any]:
    return next(row for row in found.components if row["name"] == name)


def test_whisper_large_at_true_size():
    found = inspect_model("openai/whisper-large-v3", bits=4, **settings(stem="frozen"))
    assert found.total == 1_543_490_560
    assert row(found, "encoder")["parameters_per_rank"] == 737_280
    assert row(found, "decoder")["parameters_per_rank"] == 1_064_960
    assert found.trainable == found.adapter == 8 * (737_280 + 1_064_960)
    body = found.to_json()
    assert body["bits_per_quantized_parameter"] == 4.126953125
    assert body["bytes"]["quantized"] == found.quantized * 4.126953125 / 8
    assert body["compression"]["parameters"] == pytest.approx(found.total / found.trainable)
    assert sum(part["parameters"] for part in body["components"]) == found.total
    assert sum(part["trainable"] for part in body["components"]) == found.trainable
    assert sum(part["bytes"] for part in body["components"]) == body["bytes"]["weights"]


@pytest.mark.parametrize("name", ["openai/whisper-tiny", "openai/whisper-small"])
def test_nothing_is_allocated(name: str):
    """The published sizes: 37.8 M and 241.7 M with tied embeddings counted once."""
    found = inspect_model(name, **settings())
    assert found.total == {"openai/whisper-tiny": 37_760_640, "openai/whisper-small": 241_734_912}[name]
    assert found.bits[0] == 16


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem": "lora"},
        {"stem": "frozen", "targets": "q_v"},
        {"unfreeze": ("encoder.norms",), "rank": 3},
        {"full": True},
    ],
    ids=["default", "stem adapted", "q and v", "norms", "full"],
)
def test_what_would_train_is_what_trains(changes: dict[str, Any]):
    real = really_adapted(**settings(**changes))
    found = inspect_model(NANO, **settings(**changes))
    counted = count_parameters(real)
    assert {part["name"]: (part["parameters"], part["trainable"]) for part in found.components} == {
        name: (part["parameters"], part["trainable"]) for name, part in counted.items()
    }


@pytest.mark.parametrize(("bits", "double"), [(4, True), (4, False), (8, True)])
def test_quantised_bytes_are_those_of_bitsandbytes(bits: int, double: bool):
    """Above the formula stand only the constants of each tensor: its code books, offsets and shapes."""
    loaded = open_model(NANO, bits=bits, double=double).loaded
    found = inspect_model(NANO, bits=bits, double=double, **settings())
    weights = [loaded.module.get_submodule(name).weight for name in loaded.quantized]
    held = sum(weight.numel() * weight.element_size() for weight in weights)
    if bits == 8:
        held += sum(4 * loaded.module.get_submodule(name).out_features for name in loaded.quantized)
        assert found.quantized_bytes == held
    else:
        constants = quantized_bytes(loaded) - found.quantized_bytes
        assert 0 < constants < 2000 * len(loaded.quantized)
        blocks = found.quantized / 64
        assert found.quantized_bytes == pytest.approx(held + blocks * (1 + 4 / 256 if double else 4), abs=len(weights))


def test_a_saved_adapter_brings_its_own_ranks(tmp_path: Path):
    real = really_adapted(**settings(rank=5, stem="frozen"))
    lora.save(real, tmp_path / "adapter", extra={"bits": 4})
    found = inspect_model(str(tmp_path), bits=16, **settings(rank=8))
    assert found.trainable == sum(row["trainable"] for row in count_parameters(real).values())
    assert found.checkpoint == str(tmp_path)


def test_what_is_computed_of_the_window_is_said(tmp_path: Path):
    found = inspect_model("openai/whisper-tiny", **settings()).to_json()["context"]
    assert (found["used"], found["window_s"]) == ("thinned", 30.0)
    assert set(found["trained"]) == {"full", "thinned"}
    assert found["computed_s"]["10"] == pytest.approx(11 + 19 / 30)
    assert inspect_model("openai/whisper-tiny", context="full", **settings()).computed_s[3.0] == 30.0
    lora.save(really_adapted(**settings()), tmp_path / "adapter", extra={"context": "cut", "bits": 16})
    assert inspect_model(str(tmp_path), **settings()).context == "cut"
    windowless = inspect_model("assets:ctc-nano", **settings(stem="frozen")).to_json()["context"]
    assert windowless == {"used": None, "trained": [], "window_s": None, "computed_s": {}}


@pytest.mark.parametrize("name", ["assets:ctc-nano", "assets:qwen3-asr-nano"])
def test_a_model_without_a_window_refuses_to_thin_it(name: str):
    with pytest.raises(ConfigError, match="computes every clip at its own length"):
        inspect_model(name, context="thinned", **settings(stem="frozen"))
    with pytest.raises(ConfigError, match="computes every clip at its own length"):
        open_model(name, context="thinned")


def test_no_weight_is_read_or_made(monkeypatch: pytest.MonkeyPatch):
    made = []
    honest = torch.nn.Parameter.__new__

    def spy(cls: type, data: Any = None, requires_grad: bool = True) -> Any:
        if data is not None and data.device.type != "meta" and data.numel() > 1_000_000:
            made.append(tuple(data.shape))
        return honest(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", spy)
    inspect_model("openai/whisper-large-v3", bits=4, **settings())
    assert made == []


def test_what_is_wrong_is_said():
    with pytest.raises(AdapterError, match="matches none"):
        inspect_model(NANO, **settings(targets=["nothing"]))
    with pytest.raises(ModelError, match="neither a folder"):
        inspect_model("./absent", **settings())
