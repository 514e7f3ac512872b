"""A model folder names code from elsewhere: refused by name, without a connection and without an import."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from sonotune.errors import ModelError
from sonotune.loading import open_model
from sonotune.models.checkpoints import load_processor, read_config
from sonotune.models.probe import probe_logits
from sonotune.registry import resolve_asset

KERNEL = "owner/kernel"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(resolve_asset("assets:whisper-nano"), folder)
    for module in ("evil", "configuration_evil"):
        (folder / f"{module}.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    return folder


def put(folder: Path, file: str, entries: dict[str, Any]) -> None:
    path = folder / file
    held = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(held | entries), "utf-8")


@pytest.mark.parametrize(
    ("file", "entries", "place", "value"),
    [
        ("config.json", {"attn_implementation": KERNEL}, "attn_implementation", KERNEL),
        ("config.json", {"attn_implementation": f"paged|{KERNEL}"}, "attn_implementation", KERNEL),
        ("config.json", {"attn_implementation": f"{KERNEL}@main:fn"}, "attn_implementation", f"{KERNEL}@main:fn"),
        ("config.json", {"attn_implementation": {"": "sdpa", "x": KERNEL}}, "attn_implementation", KERNEL),
        ("config.json", {"attn_implementation": [KERNEL]}, "attn_implementation", KERNEL),
        ("config.json", {"_attn_implementation": KERNEL}, "_attn_implementation", KERNEL),
        ("config.json", {"_attn_implementation_internal": KERNEL}, "_attn_implementation_internal", KERNEL),
        ("config.json", {"experts_implementation": "deepgemm"}, "experts_implementation", "deepgemm"),
        ("config.json", {"kernel_config": {"RMSNorm": KERNEL}}, "kernel_config", KERNEL),
        ("config.json", {"use_kernels": True}, "use_kernels", "True"),
        ("config.json", {"audio_config": {"attn_implementation": KERNEL}}, "audio_config.attn_implementation", KERNEL),
        ("config.json", {"per_layer_config": [{"x": {"attn_implementation": KERNEL}}]}, "per_layer_config.0.x", KERNEL),
        ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config", "mxfp4"),
        ("config.json", {"auto_map": {"AutoConfig": "configuration_evil.Evil"}}, "auto_map", "configuration_evil"),
        ("config.json", {"auto_map": {"AutoModel": "owner/repo--evil.Evil"}}, "auto_map", "owner/repo--evil.Evil"),
        ("generation_config.json", {"attn_implementation": KERNEL}, "attn_implementation", KERNEL),
        ("generation_config.json", {"custom_generate": KERNEL}, "custom_generate", KERNEL),
        ("generation_config.json", {"dola_layers": "high"}, "dola_layers", "high"),
        ("generation_config.json", {"num_beam_groups": 2}, "num_beam_groups", "2"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}, "auto_map", "evil.Evil"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map", "evil.Evil"),
        ("audio_tokenizer_config.json", {"audio_tokenizer_name_or_path": KERNEL}, "audio_tokenizer_name_or", KERNEL),
    ],
)
def test_code_from_elsewhere_is_refused_by_its_name(
    model: Path, tmp_path: Path, file: str, entries: dict[str, Any], place: str, value: str
):
    put(model, file, entries)
    before = set(sys.modules)
    with pytest.raises(ModelError) as caught:
        open_model(str(model))
    said = str(caught.value)
    assert said.startswith(f"{model / file}: {place}")
    assert value in said
    assert caught.value.exit_code == 2
    assert not (tmp_path / "ran").exists()
    assert not [name for name in set(sys.modules) - before if "evil" in name or name.partition(".")[0] == "kernels"]


def test_a_configuration_and_a_tokenizer_alone_are_looked_at_too(model: Path):
    put(model, "config.json", {"attn_implementation": KERNEL})
    with pytest.raises(ModelError, match=KERNEL):
        read_config(str(model), None)
    with pytest.raises(ModelError, match=KERNEL):
        load_processor(str(model), class_name="AutoTokenizer", revision=None)


def test_parts_of_a_model_are_looked_at(tmp_path: Path):
    folder = tmp_path / "qwen"
    shutil.copytree(resolve_asset("assets:qwen3-asr-nano"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["text_config"]["_attn_implementation_internal"] = KERNEL
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match=r"text_config\._attn_implementation_internal is 'owner/kernel'"):
        open_model(str(folder))


@pytest.mark.parametrize(
    "entries",
    [
        {"attn_implementation": "eager"},
        {"attn_implementation": "sdpa"},
        {"attn_implementation": None},
        {"_attn_implementation_autoset": True},  # older releases of transformers wrote it
        {"quantization_config": None, "auto_map": {}, "use_kernels": False, "num_beam_groups": 1},
        {"label2id": {"auto_map": 0, "constraints": 1}},  # names of classes are no settings
    ],
)
def test_what_transformers_has_itself_is_passed_on(model: Path, entries: dict[str, Any]):
    plain = probe_logits(open_model("assets:whisper-nano").loaded)
    put(model, "config.json", entries)
    opened = open_model(str(model)).loaded
    torch.testing.assert_close(probe_logits(opened), plain, atol=1e-4, rtol=1e-4)
    if asked := entries.get("attn_implementation"):
        assert opened.module.config._attn_implementation == asked


def test_flash_attention_that_is_not_installed_is_not_fetched(model: Path):
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        pytest.skip("flash_attn is installed here")
    put(model, "config.json", {"attn_implementation": "flash_attention_2"})
    with pytest.raises(ModelError, match=r"'flash_attention_2', and the package flash_attn .* is not installed"):
        open_model(str(model))


@pytest.mark.slow  # a process of its own, for the cache of the hub is found at import
def test_a_checkpoint_of_the_hub_is_looked_at_as_well(model: Path, tmp_path: Path):
    put(model, "config.json", {"attn_implementation": KERNEL})
    place, commit = tmp_path / "hub" / "models--owner--model", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(model, place / "snapshots" / commit)
    done = subprocess.run(
        [sys.executable, "-m", "sonotune", "inspect", "model.checkpoint=owner/model", "model.family=whisper"],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"attn_implementation is '{KERNEL}'" in done.stderr
