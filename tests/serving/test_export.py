"""An export is a plain model of the same function, whole or absent."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperProcessor

from sonotune.adapters.kinds import lora
from sonotune.adapters.merge import MergeProof
from sonotune.adapters.metadata import use_of
from sonotune.errors import AdapterError, ResourceError, RunDirectoryError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.probe import probe_batch, probe_logits
from sonotune.runs import folders
from sonotune.serving import export as module
from sonotune.serving.export import export
from sonotune.serving.recognizer import Recognizer

Trained = Callable[..., tuple[Path, LoadedModel]]


def plain_logits(folder: Path, like: LoadedModel) -> Tensor:
    """Logits of plain `transformers` on the probe, at the whole window."""
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    batch = probe_batch(like.with_(context="full"))
    with torch.no_grad():
        logits = model(input_features=batch.inputs.transpose(1, 2), decoder_input_ids=batch.targets[:, :-1]).logits
    return logits.reshape(-1, logits.shape[-1])


def our_logits(loaded: LoadedModel) -> Tensor:
    return probe_logits(loaded.with_(context="full"))


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("stem", ["train", "lora"])
def test_the_export_loads_in_plain_transformers_and_is_the_same_function(
    trained: Trained, tmp_path: Path, bits: int, stem: str
):
    folder, loaded = trained(bits=bits, stem=stem)
    result = export(str(folder), tmp_path / "export", dtype="fp32")
    torch.testing.assert_close(plain_logits(tmp_path / "export", loaded), our_logits(loaded), atol=1e-3, rtol=1e-3)
    assert result["merge"]["largest"] < 1e-3 * max(1.0, result["merge"]["scale"])
    assert result["rounding"]["largest"] == 0.0
    assert result["dtype"] == "fp32"
    assert result["bytes"] == sum(file.stat().st_size for file in (tmp_path / "export").iterdir())


def test_a_run_is_exported_like_its_adapter(trained: Trained, tmp_path: Path):
    folder, loaded = trained()
    export(str(folder.parent), tmp_path / "export", dtype="fp32")
    torch.testing.assert_close(plain_logits(tmp_path / "export", loaded), our_logits(loaded), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "kind"), [("auto", "fp16"), ("fp16", "fp16"), ("bf16", "bf16")])
def test_what_rounding_does_is_measured_and_recorded(trained: Trained, tmp_path: Path, dtype: Any, kind: str):
    folder, _ = trained()
    result = export(str(folder), tmp_path / "export", dtype=dtype)
    recorded = json.loads((tmp_path / "export" / "sonotune_export.json").read_text("utf-8"))
    assert recorded["dtype"] == result["dtype"] == kind
    assert recorded["rounding"] == result["rounding"]
    exact, rounded = (probe_logits(open_model(str(place)).loaded) for place in (folder, tmp_path / "export"))
    found = float((exact - rounded).abs().max())
    assert result["rounding"]["largest"] == pytest.approx(found, rel=0.05, abs=result["merge"]["largest"] * 4)
    assert 0 < result["rounding"]["largest"] < (0.2 if kind == "fp16" else 2.0)


@pytest.mark.parametrize(("largest", "dtype"), [(30_000.0, "fp16"), (60_000.0, "bf16")])
def test_weights_too_large_for_fp16_are_kept_in_bf16(tmp_path: Path, largest: float, dtype: str):
    opened = open_model("assets:whisper-nano", precision="fp32").loaded
    with torch.no_grad():
        opened.module.model.decoder.embed_positions.weight[-1, 0] = largest  # where no text of the probe gets to
    opened.module.save_pretrained(tmp_path / "model")
    opened.processor.save_pretrained(tmp_path / "model")
    assert export(str(tmp_path / "model"), tmp_path / "export")["dtype"] == dtype


def test_an_export_is_opened_and_exported_again(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    export(str(folder), tmp_path / "one", dtype="fp32")
    again = export(str(tmp_path / "one"), tmp_path / "two", dtype="fp32")
    assert again["merge"] is None
    first, second = (probe_logits(open_model(str(tmp_path / name)).loaded) for name in ("one", "two"))
    assert torch.equal(first, second)


def test_merging_into_the_original_weights_is_said_so(trained: Trained, tmp_path: Path):
    folder, loaded = trained(bits=4)
    result = export(str(folder), tmp_path / "export", target="original", dtype="fp32")
    assert result["target"] == "original"
    assert result["merge"]["largest"] > 1e-2  # another function, and the record shows how far
    difference = float((plain_logits(tmp_path / "export", loaded) - our_logits(loaded)).abs().max())
    assert difference > 1e-2


def test_a_merge_that_changed_the_function_is_refused_and_nothing_is_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = trained()
    honest = module.merge_into

    def wrong(loaded: LoadedModel, fresh: LoadedModel, **settings: Any) -> LoadedModel:
        merged = honest(loaded, fresh, **settings)
        with torch.no_grad():
            merged.module.model.encoder.layers[0].fc1.weight *= 0.5
        return merged

    monkeypatch.setattr(module, "merge_into", wrong)
    with pytest.raises(AdapterError, match="the merged model is not the adapted one"):
        export(str(folder), tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    target = tmp_path / "export"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="--overwrite"):
        export(str(folder), target)
    assert [path.name for path in target.iterdir()] == ["precious.txt"]
    with pytest.raises(RunDirectoryError, match="no earlier export"):
        export(str(folder), target, overwrite=True)
    assert (target / "precious.txt").read_text() == "mine"
    (target / "precious.txt").unlink()
    export(str(folder), target, overwrite=True)
    (target / "model.safetensors").write_bytes(b"old")
    export(str(folder), target, overwrite=True)
    assert (target / "model.safetensors").stat().st_size > 100


def test_the_adapter_alone_is_copied_as_it_is(trained: Trained, tmp_path: Path):
    folder, _ = trained(bits=4)
    result = export(str(folder.parent), tmp_path / "export", adapter_only=True)
    assert result["kind"] == "adapter"
    assert result["bits"] == 4
    for file in folder.iterdir():
        assert (tmp_path / "export" / file.name).read_bytes() == file.read_bytes()
    first = probe_logits(open_model(str(folder)).loaded)
    second = probe_logits(open_model(str(tmp_path / "export")).loaded)
    assert torch.equal(first, second)


def test_a_model_without_adapter_has_none_to_copy(tmp_path: Path):
    with pytest.raises(AdapterError, match="no adapter to export"):
        export("assets:whisper-nano", tmp_path / "export", adapter_only=True)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_half_written(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, _ = trained()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.WhisperForConditionalGeneration.save_pretrained", full)
    with pytest.raises(ResourceError, match="export") as caught:
        export(str(folder), tmp_path / "export")
    assert caught.value.exit_code == 5
    assert "run.dir" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_export_keeps_the_settings_it_is_to_be_used_with(trained: Trained, tmp_path: Path):
    folder, loaded = trained()
    made_with = {
        "language": "en",
        "text_scoring": "identity",
        "min_duration_s": 0.1,
        "max_duration_s": 9.0,
        "multi_label": False,
        "silence_db": -60.0,
        "primary": "cer",
    }
    contexts = {
        "context": "cut",
        "trained_contexts": list(loaded.trained_contexts),
        "thinning": asdict(loaded.thinning),
        "tokens_per_second": 120.0,
    }
    loaded = loaded.with_(tokens_per_second=120.0)
    lora.save(loaded, folder, extra={"bits": 16, **made_with})
    for name, only in (("export", False), ("adapter", True)):
        export(str(folder), tmp_path / name, adapter_only=only)
        recorded = json.loads((tmp_path / name / "sonotune_export.json").read_text("utf-8"))
        assert {key: recorded[key] for key in made_with} == made_with
        assert use_of(str(tmp_path / name)) == made_with | contexts
        assert Recognizer.open(str(tmp_path / name), device="cpu").opened.settings["language"] == "en"
    export(str(tmp_path / "export"), tmp_path / "again")  # and from one to the next
    assert use_of(str(tmp_path / "again")) == made_with | contexts


def test_logits_that_are_no_numbers_prove_nothing(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, _ = trained()
    monkeypatch.setattr(module, "compare_logits", lambda *_: MergeProof(largest=math.nan, scale=1.0, agreement=0.0))
    with pytest.raises(AdapterError, match=r"the merged model gives no numbers: .* nan of 1"):
        export(str(folder), tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_weights_that_do_not_fit_their_type_are_not_written(trained: Trained, tmp_path: Path):
    folder, loaded = trained()
    with torch.no_grad():  # beyond the range of fp16
        loaded.module.model.encoder.conv2.modules_to_save["default"].weight *= 1e7
    lora.save(loaded, folder)
    with pytest.raises(AdapterError, match="the model in fp16 gives no numbers"):
        export(str(folder), tmp_path / "export", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_without_adapter_is_not_called_merged(tmp_path: Path):
    assert export("assets:whisper-nano", tmp_path / "export")["kind"] == "model"


@pytest.mark.parametrize("only", [False, True])
def test_a_damaged_adapter_is_not_handed_on(trained: Trained, tmp_path: Path, only: bool):
    folder, _ = trained()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="damaged or empty"):
        export(str(folder), tmp_path / "export", adapter_only=only)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_written_is_told_as_that_of_an_export(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="the folder to export to") as caught:
        export(str(folder), tmp_path / "file" / "export")
    assert "run.dir" not in str(caught.value)


@pytest.mark.parametrize("context", ["full", None])
def test_an_export_is_opened_in_the_context_it_is_at_home_in(trained: Trained, tmp_path: Path, context: Any):
    folder, loaded = trained(**({} if context is None else {"context": context}))
    export(str(folder), tmp_path / "export")
    assert open_model(str(tmp_path / "export")).loaded.context == loaded.context
    assert open_model(str(tmp_path / "export"), context="full").loaded.context == "full"


def test_an_export_carries_the_language_of_its_run(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    result = export(str(folder), tmp_path / "export")
    written = json.loads((tmp_path / "export" / "generation_config.json").read_text("utf-8"))
    assert (written["language"], written["task"], written["forced_decoder_ids"]) == ("en", "transcribe", None)
    assert result["decoding"]["language"] == "en"


@pytest.mark.parametrize("form", [{}, {"adapter_only": True}, {"adapter_only": True, "plain": True}])
def test_every_form_has_the_files_that_other_tools_look_for(trained: Trained, tmp_path: Path, form: Any):
    folder, _ = trained()
    export(str(folder), tmp_path / "export", **form)
    written = json.loads((tmp_path / "export" / "generation_config.json").read_text("utf-8"))
    assert (written["language"], written["task"]) == ("en", "transcribe")
    features = json.loads((tmp_path / "export" / "preprocessor_config.json").read_text("utf-8"))
    assert (features["feature_extractor_type"], features["chunk_length"]) == ("WhisperFeatureExtractor", 15)
    for place in (tmp_path / "export", tmp_path / "export" / "base"):
        if (place / "config.json").is_file():
            assert WhisperFeatureExtractor.from_pretrained(place).chunk_length == 15
            assert WhisperProcessor.from_pretrained(place).tokenizer("one").input_ids


@pytest.mark.parametrize("family", ["ctc", "qwen3_asr", "ast"])
def test_features_stand_beside_adapters_of_every_family(adapted: Callable[..., Path], tmp_path: Path, family: str):
    export(str(adapted(family)), tmp_path / "export", adapter_only=True)
    assert (tmp_path / "export" / "preprocessor_config.json").is_file()
    assert (tmp_path / "export" / "generation_config.json").is_file() == (family == "qwen3_asr")


def test_an_adapter_names_a_base_that_plain_peft_opens(trained: Trained, tmp_path: Path):
    from transformers import WhisperForConditionalGeneration

    folder, _ = trained()
    config = folder / "adapter_config.json"
    named = json.loads(config.read_text("utf-8"))["base_model_name_or_path"]
    assert WhisperForConditionalGeneration.from_pretrained(named).config.model_type == "whisper"
    older = json.loads(config.read_text("utf-8")) | {"base_model_name_or_path": "assets:whisper-nano"}
    config.write_text(json.dumps(older), "utf-8")
    export(str(folder), tmp_path / "export", adapter_only=True)
    again = json.loads((tmp_path / "export" / "adapter_config.json").read_text("utf-8"))
    assert again == older | {"base_model_name_or_path": named}


def test_an_adapter_whose_base_is_gone_is_exported_all_the_same(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    entries = json.loads((folder / "sonotune.json").read_text("utf-8"))
    (folder / "sonotune.json").write_text(json.dumps(entries | {"checkpoint": str(tmp_path / "gone")}), "utf-8")
    export(str(folder), tmp_path / "export", adapter_only=True)
    assert (tmp_path / "export" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "export" / "preprocessor_config.json").exists()


def test_an_export_that_is_replaced_is_there_until_the_new_one_is(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = trained()
    target = tmp_path / "export"
    export(str(folder), target)
    before = (target / "model.safetensors").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "exchange", killed)
    with pytest.raises(KeyboardInterrupt):
        export(str(folder), target, overwrite=True)
    monkeypatch.undo()
    assert (target / "model.safetensors").read_bytes() == before
    export(str(folder), target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "run"]


def test_files_that_no_export_wrote_are_never_removed(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    target = tmp_path / "export"
    beside = tmp_path / ".tmp-export"
    beside.mkdir()
    (beside / "important.txt").write_text("mine")
    export(str(folder), target, adapter_only=True)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"1 files that no export wrote, such as notes\.txt"):
        export(str(folder), target, adapter_only=True, overwrite=True)
    assert (target / "notes.txt").read_text() == (beside / "important.txt").read_text() == "mine"
    mark = target / "sonotune_export.json"
    entries = json.loads(mark.read_text("utf-8"))
    del entries["files"]  # as older exports have it
    mark.write_text(json.dumps(entries), "utf-8")
    (target / "notes.txt").rename(target / "notes.md")
    with pytest.raises(RunDirectoryError, match=r"such as notes\.md"):
        export(str(folder), target, adapter_only=True, overwrite=True)
    (target / "notes.md").unlink()
    export(str(folder), target, adapter_only=True, overwrite=True)


def test_a_card_that_somebody_has_edited_is_not_replaced(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    target = tmp_path / "export"

    def card(draft: Path) -> None:
        (draft / "README.md").write_text("ours")

    export(str(folder), target, adapter_only=True, finish=card)
    export(str(folder), target, adapter_only=True, finish=card, overwrite=True)
    (target / "README.md").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"README\.md in .* was changed since it was exported"):
        export(str(folder), target, adapter_only=True, finish=card, overwrite=True)
    assert (target / "README.md").read_text() == "mine"
    (target / "README.md").unlink()
    export(str(folder), target, adapter_only=True, finish=card, overwrite=True)
    assert (target / "README.md").read_text() == "ours"


def test_the_links_of_the_hub_cache_are_its_files(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, path in enumerate(folder.iterdir()):
        shutil.copy(path, blobs / str(index))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(index)))
    export(str(snapshot), tmp_path / "out", adapter_only=True)
    copied = tmp_path / "out" / "adapter_model.safetensors"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (folder / copied.name).read_bytes()


def test_a_link_in_an_adapter_is_not_followed(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    (tmp_path / "secret").write_text("mine")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError, match=r"notes\.txt is a link"):
        export(str(folder), tmp_path / "export", adapter_only=True)
    assert not (tmp_path / "export").exists()


def test_weights_can_be_read_by_whoever_may_read_other_files(trained: Trained, tmp_path: Path):
    folder, _ = trained()
    before = os.umask(0o022)
    try:
        export(str(folder), tmp_path / "export")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()} == {0o644}


def test_the_folder_a_user_stands_in_is_not_taken_away(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = trained()
    place = tmp_path / "export" / "deeper"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    for target in (place, place.parent):
        with pytest.raises(RunDirectoryError, match="where this command runs"):
            export(str(folder), target, overwrite=True)
    assert place.is_dir()


def test_what_finishes_an_export_is_in_it_before_it_takes_its_name(trained: Trained, tmp_path: Path):
    folder, _ = trained()

    def finish(draft: Path) -> None:
        assert not (tmp_path / "export").exists()
        assert (draft / "config.json").is_file()
        (draft / "README.md").write_text("a card")

    export(str(folder), tmp_path / "export", finish=finish)
    assert (tmp_path / "export" / "README.md").read_text() == "a card"
    export(str(folder), tmp_path / "export", overwrite=True)  # the card is an export's own
    assert not (tmp_path / "export" / "README.md").exists()
