"""The average of adapters adds what its members add on average; what has no average is refused by name."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from sonotune.adapters.averaging import average_factors, product_norm, shorten
from sonotune.adapters.kinds.base import AdapterSettings, kind_named, kind_of
from sonotune.adapters.kinds.lora import LORA
from sonotune.adapters.kinds.none import NONE
from sonotune.adapters.metadata import METADATA
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.errors import AdapterError, ConfigError, RunDirectoryError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.probe import probe_batch
from sonotune.registry import resolve_asset
from sonotune.serving.average import average, members_of

Build = Callable[..., str]
BASE = "assets:whisper-nano"
ENDINGS = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.fc2", "decoder.layers.0.fc1")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Folder of an adapter of whisper-nano that has trained a little, each seed another way; made once."""

    @functools.cache
    def build(
        seed: int,
        *,
        ranks: tuple[int, ...] = (3,),
        stem: str = "train",
        endings: tuple[str, ...] = ENDINGS,
        unfreeze: tuple[str, ...] = (),
        context: str = "full",
        kind: str = "lora",
        base: str = BASE,
        **extra: Any,
    ) -> str:
        loaded = WhisperFamily().load(base, context=context)  # type: ignore[arg-type]
        names = [name for name in loaded.linears if name.endswith(endings)]
        own = {name: ranks[index % len(ranks)] for index, name in enumerate(names)}
        settings = AdapterSettings(rank=4, alpha=6.0, stem=stem, unfreeze=unfreeze)  # type: ignore[arg-type]
        plan = RankPlan(ranks=own, allocator="test", parameters=0)
        loaded = kind_named(kind).attach(loaded, names, settings, plan)
        folder = tmp_path_factory.mktemp(f"{kind}-{seed}")
        kind_of(moved(loaded, seed)).save(loaded, folder, extra={"bits": 16, "language": "en", **extra})
        return str(folder)

    return build


def moved(loaded: LoadedModel, seed: int) -> LoadedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    loaded.module.eval()
    return loaded


def updates(place: str | Path) -> dict[str, Tensor]:
    """What an adapter adds to every weight, and what it trained in full."""
    loaded = open_model(str(place)).loaded
    copies = {
        loaded.names.unwrapped(name): tensor
        for name, tensor in loaded.module.state_dict().items()
        if loaded.names.is_copy(name)
    }
    return {**(LORA.merge(loaded) or {}), **copies}


def is_average(found: dict[str, Tensor], members: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> bool:
    names = {name for one in members for name in one}
    assert found.keys() == names
    return all(
        torch.allclose(
            found[name],
            sum(share * one[name] for one, share in zip(members, shares, strict=True) if name in one),  # type: ignore[arg-type]
            atol=1e-6,
        )
        for name in names
    )


def test_the_average_adds_the_average_of_the_products_and_names_its_members(tuned: Build, tmp_path: Path) -> None:
    """Of unequal ranks, and of modules that one member has not adapted."""
    first = tuned(1, ranks=(1, 4, 2), run="a", text_scoring="basic")
    places = [first, tuned(2, endings=ENDINGS[:1], text_scoring="english")]
    result = average(members_of(places, [3, 1]), tmp_path / "averaged")
    assert result["error"] is None
    assert is_average(updates(tmp_path / "averaged"), [updates(place) for place in places], (0.75, 0.25))
    entries = json.loads((tmp_path / "averaged" / METADATA).read_text())
    assert [one["place"] for one in entries["average"]["members"]] == places
    assert [one["share"] for one in entries["average"]["members"]] == [0.75, 0.25]
    assert len({one["digest"] for one in entries["average"]["members"]}) == 2
    assert entries["language"] == "en"
    assert "text_scoring" not in entries  # each has another
    assert "run" not in entries


def test_averages_of_the_factors_by_themselves_would_be_another_function() -> None:
    first, second = ({"one": (torch.randn(3, 5), torch.randn(7, 3))} for _ in range(2))
    down, up = average_factors([first, second], [0.5, 0.5])["one"]
    products = [b @ a for a, b in (first["one"], second["one"])]
    torch.testing.assert_close(up @ down, (products[0] + products[1]) / 2)
    factors = [(one + other) / 2 for one, other in zip(first["one"], second["one"], strict=True)]
    assert not torch.allclose(up @ down, factors[1] @ factors[0], rtol=0.1)


def test_a_run_averaged_with_itself_is_itself_and_the_doubling_is_told(tuned: Build, tmp_path: Path) -> None:
    place = tuned(1)
    result = average(members_of([place, place], None), tmp_path / "averaged")
    assert "count twice" in result["warnings"][0]
    assert is_average(updates(tmp_path / "averaged"), [updates(place)], (1.0,))
    short = average(members_of([place, place], None), tmp_path / "short", rank=3)
    assert short["rank"] == 3
    assert short["error"]["whole"] < 1e-6  # its product has that rank
    assert is_average(updates(tmp_path / "short"), [updates(place)], (1.0,))


def test_an_svd_is_the_nearest_of_its_rank_and_tells_its_error(tuned: Build, tmp_path: Path) -> None:
    places = [tuned(1, stem="lora"), tuned(2, stem="lora")]
    exact, short = tmp_path / "exact", tmp_path / "short"
    average(members_of(places, None), exact)
    result = average(members_of(places, None), short, rank=2)
    assert result["rank"] == 2
    full, found = updates(exact), updates(short)
    assert is_average(full, [updates(place) for place in places], (0.5, 0.5))
    lost = {name: (full[name] - found[name]).norm() for name in full}
    parts = {name: float(one / full[name].norm()) for name, one in lost.items()}
    whole = torch.stack(list(lost.values())).norm() / torch.stack([one.norm() for one in full.values()]).norm()
    assert result["error"]["whole"] == pytest.approx(float(whole), rel=1e-4)
    assert result["error"]["worst"] == pytest.approx(max(parts.values()), rel=1e-4)
    assert parts[f"{result['error']['module']}.weight"] == pytest.approx(max(parts.values()), rel=1e-4)
    for name, update in full.items():
        best = torch.linalg.svdvals(update.flatten(1))[2:].norm()  # Eckart-Young
        assert float(lost[name]) == pytest.approx(float(best), rel=1e-3)


@pytest.mark.slow
def test_plain_peft_computes_the_average(tuned: Build, tmp_path: Path) -> None:
    average(members_of([tuned(1, ranks=(1, 4)), tuned(2, ranks=(3, 2))], None), tmp_path / "averaged")
    ours = open_model(str(tmp_path / "averaged")).loaded
    batch = probe_batch(ours)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ours.family.forward(ours, batch).logits
        plain = WhisperForConditionalGeneration.from_pretrained(resolve_asset(BASE), dtype=torch.float32)
        theirs = ours.with_(module=PeftModel.from_pretrained(plain, tmp_path / "averaged").eval().base_model.model)
        found = theirs.family.forward(theirs, batch).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_norms_of_products_need_no_product() -> None:
    a, b = torch.randn(3, 5), torch.randn(7, 3)
    assert product_norm(a, b) == pytest.approx(float((b @ a).norm()), rel=1e-5)


def test_an_update_of_zero_loses_nothing() -> None:
    _, error = shorten({"one": (torch.randn(4, 5), torch.zeros(7, 4))}, 2)
    assert error.whole == error.worst == 0.0


# --- whole models ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Folder of a fully tuned whisper-nano; made once."""

    @functools.cache
    def build(seed: int) -> str:
        loaded = WhisperFamily().load(BASE, context="full")
        loaded = moved(NONE.attach(loaded, (), AdapterSettings(), None), seed)
        folder = tmp_path_factory.mktemp(f"whole-{seed}")
        NONE.save(loaded, folder, extra={"language": "en"})
        return str(folder)

    return build


def test_whole_models_are_averaged_weight_by_weight(whole: Build, tmp_path: Path) -> None:
    places = [whole(1), whole(2)]
    result = average(members_of(places, [3, 1]), tmp_path / "averaged")
    assert result["kind"] == "model"
    assert result["warnings"] == []
    states = [open_model(place).loaded.module.state_dict() for place in places]
    found = open_model(str(tmp_path / "averaged")).loaded.module.state_dict()
    for name, tensor in found.items():
        expected = 0.75 * states[0][name] + 0.25 * states[1][name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
    plain = WhisperForConditionalGeneration.from_pretrained(tmp_path / "averaged", dtype=torch.float32).state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in found.items())
    entries = json.loads((tmp_path / "averaged" / METADATA).read_text())
    assert entries["checkpoint"] == json.loads((Path(places[0]) / METADATA).read_text())["checkpoint"]  # their base


@pytest.mark.slow
def test_a_whole_model_without_a_record_is_compared_by_shapes_and_that_is_told(whole: Build, tmp_path: Path) -> None:
    places = []
    for seed in (1, 2):
        places.append(str(shutil.copytree(whole(seed), tmp_path / str(seed))))
        (tmp_path / str(seed) / METADATA).unlink()
    result = average(members_of(places, None), tmp_path / "averaged")
    assert len(result["warnings"]) == 2
    assert "only names and shapes" in result["warnings"][0]


# --- what is refused ---------------------------------------------------------------------------------


def refused(places: Sequence[str], tmp_path: Path, match: str, **more: Any) -> None:
    with pytest.raises((AdapterError, ConfigError, RunDirectoryError), match=match):
        average(members_of(places, more.pop("shares", None)), tmp_path / "averaged", **more)
    assert not (tmp_path / "averaged").exists()


def test_members_that_trained_something_else_are_refused_by_name(tuned: Build, tmp_path: Path) -> None:
    refused([tuned(1), tuned(2, stem="frozen")], tmp_path, r"conv1 in full .*adapter\.stem")
    refused([tuned(1), tuned(2, context="cut")], tmp_path, "their context is not the same")
    unfrozen = tuned(3, unfreeze=("encoder.norms",))
    refused([tuned(1), unfrozen], tmp_path, "adapter.unfreeze")


def test_kinds_that_are_no_lora_are_refused_by_name(tuned: Build, tmp_path: Path) -> None:
    refused([tuned(1, stem="frozen"), tuned(2, stem="frozen", kind="gated_lora")], tmp_path, "kind 'gated_lora'")


def test_another_base_is_refused(tuned: Build, tmp_path: Path) -> None:
    base = tmp_path / "other-base"
    shutil.copytree(resolve_asset(BASE), base)
    loaded = WhisperFamily().load(str(base), context="full")
    with torch.no_grad():
        loaded.module.model.encoder.conv1.weight += 1e-3
    loaded.module.save_pretrained(base)
    refused([tuned(1), tuned(2, base=str(base))], tmp_path, "their base is not the same")


def test_other_bits_are_refused(tuned: Build, tmp_path: Path) -> None:
    refused([tuned(1), tuned(2, bits=4, double=True)], tmp_path, "their quantisation is not the same")


def test_adapters_and_whole_models_do_not_mix(tuned: Build, whole: Build, tmp_path: Path) -> None:
    refused([tuned(1), whole(1)], tmp_path, "is an adapter and .* a whole model")
    refused([whole(1), whole(2)], tmp_path, "--rank is of adapters", rank=2)


@pytest.mark.slow
def test_other_vocabularies_and_shapes_are_refused(adapted: Build, tmp_path: Path) -> None:
    first = adapted("ctc", outputs=("a", "b", "c"))
    moved_to = first.rename(first.with_name("first"))  # type: ignore[attr-defined]
    second = adapted("ctc", outputs=("a", "b", "d"))
    refused([str(moved_to), str(second)], tmp_path, "classes or symbols is not the same")
    result = average(members_of([str(moved_to), str(moved_to)], None), tmp_path / "averaged")
    assert result["kind"] == "adapter"
    assert open_model(str(tmp_path / "averaged")).loaded.new_outputs == open_model(str(moved_to)).loaded.new_outputs


def test_too_few_members_wrong_shares_and_missing_folders_are_refused(tuned: Build, tmp_path: Path) -> None:
    place = tuned(1)
    refused([place], tmp_path, "at least two members")
    refused([place, place], tmp_path, "--shares", shares=[1.0])
    refused([place, place], tmp_path, "--shares", shares=[1.0, -1.0])
    refused([place, place], tmp_path, "--shares", shares=[1.0, float("nan")])
    refused([place, str(tmp_path / "absent")], tmp_path, "absent")
    with pytest.raises(RunDirectoryError, match="exists already"):
        average(members_of([place, place], None), Path(place))


def test_the_command_tells_members_ranks_and_error(
    tuned: Build, tmp_path: Path, sonotune: Callable[..., tuple[int, str, str]]
) -> None:
    places = [tuned(1), tuned(2)]
    out = tmp_path / "averaged"
    code, said, err = sonotune("average", *places, "--out", str(out), "--rank", "3", "--shares", "1,2")
    assert code == 0, err
    assert f"member   {places[1]}: 66.7%" in said
    assert "of the update is lost by the SVD" in said
    code, _, err = sonotune("average", *places, "--out", str(out))
    assert code == 2
    assert "exists already" in err
    code, _, err = sonotune("average", *places, "--out", str(tmp_path / "b"), "--shares", "one,two")
    assert code == 2
    assert "--shares one,two" in err
