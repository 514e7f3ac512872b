"""Adapters sit where they were asked for, and a saved one is the same function everywhere."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonotune.adapters.kinds import lora
from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.none import NONE
from sonotune.adapters.metadata import read_metadata
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.adapters.targets import resolve_targets
from sonotune.adapters.trainable import check_plain
from sonotune.errors import AdapterError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel, select
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.probe import probe_batch
from sonotune.models.quantize import cast_frozen
from sonotune.registry import resolve_asset

Fresh = Callable[..., LoadedModel]
Plan = Callable[..., RankPlan]
Logits = Callable[[LoadedModel], Tensor]
STEM = {"model.encoder.conv1", "model.encoder.conv2"}


def trainable(loaded: LoadedModel) -> set[str]:
    return {name for name, parameter in loaded.module.named_parameters() if parameter.requires_grad}


# --- where adapters go ---------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all_linear", "q_v", ["fc1"], ["encoder"], ["decoder.cross_attention"]])
def test_adapters_sit_on_exactly_the_targets(fresh: Fresh, plan: Plan, targets: Any):
    """A bare suffix would reach `layers.0.fc1` of both towers."""
    loaded = fresh()
    expected = set(resolve_targets(loaded, targets))
    attached = lora.attach(loaded, plan(loaded, targets), rank=4, alpha=4.0, stem="frozen")
    assert set(lora.lora_layers(attached)) == expected
    assert trainable(attached) == {f"{name}.lora_{part}.default.weight" for name in expected for part in ("A", "B")}


def test_the_plan_counts_what_trains(fresh: Fresh, plan: Plan):
    loaded = fresh()
    ranks = plan(loaded, rank=4, fc1=9, q_proj=1)
    attached = lora.attach(loaded, ranks, rank=4, alpha=4.0, stem="frozen")
    assert sum(value.numel() for value in attached.module.parameters() if value.requires_grad) == ranks.parameters


@pytest.mark.parametrize("stem", ["train", "lora", "frozen"])
def test_the_stem_trains_in_full_is_adapted_or_stays_frozen(fresh: Fresh, plan: Plan, stem: str):
    loaded = fresh()
    attached = lora.attach(loaded, plan(loaded, "q_v"), rank=4, alpha=4.0, stem=stem)  # type: ignore[arg-type]
    in_stem = {name for name in trainable(attached) if ".conv" in name}
    expected = {
        "train": {f"{name}.modules_to_save.default.{part}" for name in STEM for part in ("weight", "bias")},
        "lora": {f"{name}.lora_{part}.default.weight" for name in STEM for part in ("A", "B")},
        "frozen": set(),
    }
    assert in_stem == expected[stem]
    assert set(lora.lora_layers(attached)) - set(resolve_targets(loaded, "q_v")) == (STEM if stem == "lora" else set())


def test_norms_train_beside_the_adapters(fresh: Fresh, plan: Plan):
    loaded = fresh()
    attached = lora.attach(loaded, plan(loaded, "q_v"), rank=4, alpha=4.0, stem="frozen", unfreeze=["encoder.norms"])
    beside = {lora.LORA.unwrapped(name).rpartition(".")[0] for name in trainable(attached) if ".lora_" not in name}
    norms = {name for name, module in fresh().module.named_modules() if "encoder" in name and "layer_norm" in name}
    assert beside == {name for name in norms if name.startswith("model.encoder.")}
    assert select(attached, ["encoder.norms"]) == select(fresh(), ["encoder.norms"])  # for learning rates and stages


def test_what_trains_is_in_fp32_and_nothing_else_moves_type(fresh: Fresh, plan: Plan):
    loaded = fresh(bits=4)
    attached = lora.attach(loaded, plan(loaded), rank=4, alpha=4.0)
    cast_frozen(attached, torch.bfloat16)
    for name, parameter in attached.module.named_parameters():
        if parameter.requires_grad or parameter.ndim < 2:
            assert parameter.dtype == torch.float32, name
        else:
            assert parameter.dtype in (torch.bfloat16, torch.uint8), name


def test_attaching_twice_is_refused(fresh: Fresh, plan: Plan):
    loaded = fresh()
    ranks = plan(loaded)
    attached = lora.attach(loaded, ranks, rank=4, alpha=4.0)
    with pytest.raises(AdapterError, match="already carries an adapter"):
        lora.attach(attached, ranks, rank=4, alpha=4.0)


def test_a_module_cannot_be_adapted_and_trained_in_full(fresh: Fresh, plan: Plan):
    loaded = fresh()
    with pytest.raises(AdapterError, match=r"layers\.0\..* and 5 more would carry an adapter and train in full"):
        lora.attach(loaded, plan(loaded), rank=4, alpha=4.0, unfreeze=["encoder.layers[0]"])


def test_quantised_modules_cannot_be_unfrozen(fresh: Fresh, plan: Plan):
    loaded = fresh(bits=4)
    with pytest.raises(AdapterError, match="quantised to 4 bits"):
        lora.attach(loaded, plan(loaded, ["decoder"]), rank=4, alpha=4.0, unfreeze=["encoder"])


def test_tied_embeddings_cannot_be_unfrozen(fresh: Fresh, plan: Plan):
    loaded = fresh()
    with pytest.raises(AdapterError, match="tied"):
        lora.attach(loaded, plan(loaded), rank=4, alpha=4.0, unfreeze=["embeddings"])


def test_full_fine_tuning_trains_all_but_the_sinusoids_and_refuses_quantised_weights(fresh: Fresh):
    loaded = NONE.attach(fresh(), (), AdapterSettings(), None)
    frozen = {name for name, parameter in loaded.module.named_parameters() if not parameter.requires_grad}
    assert frozen == {"model.encoder.embed_positions.weight"}
    with pytest.raises(AdapterError, match=r"quantization\.bits=16"):
        NONE.attach(fresh(bits=4), (), AdapterSettings(), None)


# --- what they compute ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("stem", ["train", "lora"])
def test_a_new_adapter_changes_nothing(fresh: Fresh, plan: Plan, logits: Logits, bits: int, stem: str):
    """B is zero at the start, to the bit."""
    before = logits(fresh(bits=bits))
    loaded = fresh(bits=bits)
    attached = lora.attach(loaded, plan(loaded), rank=4, alpha=4.0, stem=stem)  # type: ignore[arg-type]
    assert torch.equal(logits(attached), before)
    with attached.adapter.disable_adapter():
        assert torch.equal(logits(attached), before)
    assert set(lora.update_norms(attached).values()) == {0.0}


def test_a_trained_adapter_changes_something_and_can_be_turned_off(adapted: Fresh, fresh: Fresh, logits: Logits):
    loaded = adapted()
    base = logits(fresh())
    assert float((logits(loaded) - base).abs().max()) > 0.1
    with loaded.adapter.disable_adapter():
        assert torch.equal(logits(loaded), base)
    assert min(lora.update_norms(loaded).values()) > 0


def test_a_layer_computes_base_plus_scaled_update(adapted: Fresh):
    layer = lora.lora_layers(adapted(ranks={"fc1": 7}))["model.encoder.layers.0.fc1"]
    inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == 7
    scale = 8.0 / 4 * math.sqrt(4 / 7)
    expected = inputs @ layer.base_layer.weight.T + layer.base_layer.bias + scale * (inputs @ a.T @ b.T)
    torch.testing.assert_close(layer(inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "scale"),
    [
        ("constant", lambda rank: 8.0 / 4),
        ("balanced", lambda rank: 8.0 / 4 * math.sqrt(4 / rank)),
        ("rslora", lambda rank: 8.0 / math.sqrt(rank)),
    ],
)
def test_each_module_has_its_own_rank_and_the_scale_that_was_asked_for(
    adapted: Fresh, scaling: str, scale: Callable[[int], float]
):
    ranks = {"fc1": 9, "q_proj": 1}
    layers = lora.lora_layers(adapted(ranks=ranks, scaling=scaling))
    assert len(layers) > 40
    for name, layer in layers.items():
        rank = ranks.get(name.rpartition(".")[2], 4)
        assert layer.lora_A["default"].weight.shape[0] == layer.lora_B["default"].weight.shape[1] == rank
        assert layer.scaling["default"] == pytest.approx(scale(rank))


def test_ranks_are_matched_by_full_name(fresh: Fresh, tmp_path: Path):
    """`layers.0.fc1` is in both towers, and `layers.1` begins `layers.10`: every module has another rank here."""
    loaded = fresh()
    ranks = {name: 1 + number % 11 for number, name in enumerate(loaded.linears)}
    made = RankPlan(ranks=ranks, allocator="test", parameters=0)
    attached = lora.attach(loaded, made, rank=4, alpha=8.0, stem="frozen")
    lora.save(attached, tmp_path)
    for model in (attached, lora.load(fresh(), tmp_path)):
        layers = lora.lora_layers(model)
        assert {name: layer.r["default"] for name, layer in layers.items()} == ranks
        for name, layer in layers.items():
            assert layer.scaling["default"] == pytest.approx(2.0 * math.sqrt(4 / ranks[name]))


# --- saved and loaded ----------------------------------------------------------------------------

KINDS = {
    "all linears": {},
    "own ranks": {"ranks": {"fc1": 9, "q_proj": 1}},
    "stem adapted": {"stem": "lora"},
    "norms": {"stem": "frozen", "targets": "q_v", "unfreeze": ["encoder.norms"]},
    "square root": {"ranks": {"fc1": 9}, "scaling": "rslora"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [16, 4])
def test_saving_and_loading_gives_the_same_bits(
    adapted: Fresh, fresh: Fresh, logits: Logits, tmp_path: Path, kind: str, bits: int
):
    trained = adapted(bits=bits, **KINDS[kind])
    lora.save(trained, tmp_path / "adapter")
    loaded = lora.load(fresh(bits=bits), tmp_path / "adapter")
    saved = {name: value for name, value in trained.module.named_parameters() if name in trainable(trained)}
    found = dict(loaded.module.named_parameters())
    for name, value in saved.items():
        assert torch.equal(found[name], value), name
    assert not trainable(loaded)
    assert torch.equal(logits(loaded), logits(trained))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(value.numel() for value in stored.values()) == sum(value.numel() for value in saved.values())
    assert {"adapter_model.safetensors", "adapter_config.json", "sonotune.json"} <= {
        path.name for path in (tmp_path / "adapter").iterdir()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_loads_in_plain_peft_on_a_plain_model(adapted: Fresh, tmp_path: Path, kind: str):
    """No code of ours: `PeftModel.from_pretrained` on `WhisperForConditionalGeneration`, at the full window."""
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

    trained = adapted(context="full", **KINDS[kind])
    lora.save(trained, tmp_path)
    plain = WhisperForConditionalGeneration.from_pretrained(resolve_asset("assets:whisper-nano"), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT has to say of the newest transformers
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
        if kind == "stem adapted":  # Whisper's forward asks the convolutions for their stride, which PEFT's have not
            theirs = theirs.merge_and_unload()
    batch = probe_batch(trained)
    assert batch.context == "full"
    with torch.no_grad():
        ours = WhisperFamily().logits(trained, batch)
        found = theirs(input_features=batch.inputs.transpose(1, 2), decoder_input_ids=batch.targets[:, :-1]).logits
    torch.testing.assert_close(found.reshape(-1, found.shape[-1]), ours, atol=1e-4, rtol=1e-4)


def test_training_goes_on_from_a_loaded_adapter(adapted: Fresh, fresh: Fresh, tmp_path: Path):
    trained = adapted()
    lora.save(trained, tmp_path)
    assert trainable(lora.load(fresh(), tmp_path, trainable=True)) == trainable(trained)


def test_an_adapter_of_other_weights_is_refused(adapted: Fresh, fresh: Fresh, tmp_path: Path):
    lora.save(adapted(), tmp_path)
    other = fresh().with_(revision="0123456789abcdef")
    with pytest.raises(AdapterError, match="0123456789abcdef"):
        lora.load(other, tmp_path)


@pytest.mark.parametrize("entry", [{"megatron_config": {"a": 1}}, {"init_lora_weights": {"a": 1}}])
def test_an_entry_that_peft_cannot_use_is_an_error_of_the_adapter(
    adapted: Fresh, fresh: Fresh, tmp_path: Path, entry: dict[str, object]
):
    """PEFT imports a package for the first of them, which nobody has."""
    lora.save(adapted(), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entry), "utf-8")
    with pytest.raises(AdapterError, match="does not fit"):
        lora.load(fresh(), tmp_path)


def test_an_adapter_of_another_geometry_is_refused_in_one_line(adapted: Fresh, fresh: Fresh, tmp_path: Path):
    lora.save(adapted(), tmp_path)
    (tmp_path / "sonotune.json").unlink()  # as another tool would leave it
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["r"] = 5
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(AdapterError, match=r"lora_A\.weight as \(4, 160\), and .* ask for \(5, 160\)"):
        lora.load(fresh(), tmp_path)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")


def without_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(tensors.items())[: len(tensors) // 2])


def without_the_stem(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".conv" not in name}


def with_one_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"base_model.model.elsewhere.lora_A.weight": torch.zeros(2, 2)}


def with_a_hole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = max(tensors)
    return tensors | {name: tensors[name] * float("nan")}


def with_codes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = max(tensors)
    return tensors | {name: tensors[name].to(torch.int8)}


def in_eight_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_half, r"lacks \d+ of the \d+ tensors .* such as base_model\.model\."),
        (without_the_stem, r"lacks 4 of the \d+ tensors .*conv1"),  # what trains in full: PEFT has a KeyError
        (with_one_more, r"holds 1 tensors .* does not ask for, such as base_model\.model\.elsewhere"),
        (with_a_hole, r"NaN or infinity in 1 of \d+ tensors, such as base_model\.model\."),
        (with_codes, r"as int8, and adapters are floats of 16 bits or more; 1 of \d+ tensors"),
        (in_eight_bits, r"as float8_e4m3fn, and adapters are floats of 16 bits or more; (\d+) of \1 tensors"),
    ],
)
def test_an_adapter_has_exactly_its_tensors_and_all_are_finite(
    adapted: Fresh, fresh: Fresh, tmp_path: Path, change: Any, said: str
):
    lora.save(adapted(), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(AdapterError, match=said):
        lora.load(fresh(), tmp_path)


@pytest.mark.parametrize("size", [0, 5000])
def test_cut_weights_of_an_adapter_are_named(adapted: Fresh, fresh: Fresh, tmp_path: Path, size: int):
    lora.save(adapted(), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is damaged or empty"):
        lora.load(fresh(), tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("sonotune.json", '{"bits": ', "sonotune.json is damaged"),
        ("sonotune.json", "[1]", "it is a list, and it must be an object"),
        ("sonotune.json", '{"bits": "four"}', "bits is 'four', and it must be 4, 8 or 16"),
        ("sonotune.json", '{"bits": [4]}', "bits is a list"),
        ("sonotune.json", '{"outputs": ["x", 1]}', r"outputs\.1 is 1, and it must be text"),
        ("sonotune.json", '{"context": "half"}', "context is 'half'"),
        ("sonotune.json", '{"max_duration_s": "long"}', "max_duration_s is 'long'"),
        ("adapter_config.json", "[]", "it is a list, and it must be an object"),
        ("adapter_config.json", '{"r": ', "adapter_config.json is damaged"),
    ],
)
def test_a_damaged_description_of_an_adapter_is_named(adapted: Fresh, tmp_path: Path, file: str, text: str, said: str):
    lora.save(adapted(), tmp_path)
    (tmp_path / file).write_text(text, "utf-8")
    with pytest.raises(AdapterError, match=said) as caught:
        open_model(str(tmp_path))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"lora_alpha": 1e308}, r"beyond 1e\+100"),
        ({"lora_alpha": 1e38}, r"lora_alpha is 1e\+38, and it must be less than or equal to 1000000"),
        ({"lora_alpha": -8}, "lora_alpha is -8, and it must be greater than 0"),
        ({"lora_alpha": 0.0}, "lora_alpha is 0.0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is null"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"alpha_pattern": {"model.encoder.layers.0.fc1": 1e30}}, r"fc1 is 1e\+30"),
        ({"r": "eight"}, "r is 'eight'"),
        ({"r": 0}, "r is 0"),
        ({"r": 200_000}, r"asks for rank 200000, and no tensor .* has a rank above \d+\."),
        ({"rank_pattern": {"fc1": 200_000}}, "asks for rank 200000"),
        ({"rank_pattern": {"fc1": "4"}}, "rank_pattern.fc1"),
        ({"modules_to_save": "conv1"}, "modules_to_save is 'conv1'"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"use_dora": "no"}, "use_dora is 'no'"),
    ],
)
def test_the_entries_of_an_adapter_are_of_their_kind(
    adapted: Fresh, tmp_path: Path, entries: dict[str, Any], said: str
):
    lora.save(adapted(), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), "utf-8")
    with pytest.raises(AdapterError, match=said) as caught:
        open_model(str(tmp_path))
    assert caught.value.exit_code == 2


def test_training_over_an_adapter_names_what_to_do(adapted: Fresh):
    with pytest.raises(AdapterError, match=r"already carries an adapter\. Merge it first: sonotune export"):
        check_plain(adapted())


def test_plain_weights_may_train(fresh: Fresh):
    check_plain(fresh())


def test_a_folder_without_an_adapter_is_refused(fresh: Fresh, tmp_path: Path):
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        lora.load(fresh(), tmp_path)
    with pytest.raises(AdapterError, match="no adapter to save"):
        lora.save(fresh(), tmp_path)


def test_the_metadata_says_what_the_adapter_belongs_to(adapted: Fresh, tmp_path: Path):
    trained = adapted()
    lora.save(trained, tmp_path, extra={"bits": 4, "language": "he"})
    metadata = read_metadata(tmp_path)
    assert metadata == {
        "schema": 1,
        "adapter": "lora",
        "family": "whisper",
        "checkpoint": "assets:whisper-nano",
        "revision": trained.revision,
        "context": "cut",
        "trained_contexts": ["full", "thinned"],
        "thinning": {"margin": 50, "spacing": 30},
        "tokens_per_second": 0.0,
        "bits": 4,
        "language": "he",
    }


SAVE_IN_ANOTHER_PROCESS = """
import sys, torch
from pathlib import Path
from sonotune.adapters.kinds import lora
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.models.families.whisper import WhisperFamily
torch.manual_seed(0)
loaded = WhisperFamily().load("assets:whisper-nano")
plan = RankPlan(ranks=dict.fromkeys(loaded.linears[:30], 2), allocator="test", parameters=0)
lora.save(lora.attach(loaded, plan, rank=2, alpha=2.0), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_the_same_adapter_is_the_same_bytes_in_every_process(tmp_path: Path):
    """Python's order of a set of texts differs from process to process."""
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", SAVE_IN_ANOTHER_PROCESS, str(tmp_path / seed)],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            timeout=120,
        )
    for name in ("adapter_model.safetensors", "adapter_config.json", "sonotune.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
