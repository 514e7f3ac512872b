"""Adapters and runs to hand on, and audio to recognise."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sonotune import cli
from sonotune.adapters.kinds import lora
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.data.manifest import read_manifest
from sonotune.loading import choose_family
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.quantize import quantize
from sonotune.registry import resolve_asset
from sonotune.types import Clip


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[Path, LoadedModel]]:
    """An adapter folder as a run keeps it, and the model it was saved from."""

    def build(*, bits: int = 16, context: str = "cut", stem: str = "train") -> tuple[Path, LoadedModel]:
        loaded = WhisperFamily().load("assets:whisper-nano", context=context)  # type: ignore[arg-type]
        if bits != 16:
            loaded = quantize(loaded, bits=bits)  # type: ignore[arg-type]
        plan = RankPlan(ranks=dict.fromkeys(loaded.linears, 2), allocator="test", parameters=0)
        loaded = lora.attach(loaded, plan, rank=2, alpha=2.0, stem=stem)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        loaded.module.eval()
        folder = tmp_path / "run" / "adapter"
        lora.save(loaded, folder, extra={"bits": bits, "language": "en"})
        return folder, loaded

    return build


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """`a.wav`, `b.flac` and `deep/c.ogg`, three tones of half a second."""
    folder = tmp_path / "recordings"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.wav", "b.flac", "deep/c.ogg")):
        tone = 0.3 * np.sin(2 * np.pi * (300 + 200 * index) * np.arange(8000) / 16000)
        soundfile.write(folder / name, tone, 16000)
    return folder


NANO = {"whisper": "whisper-nano", "ctc": "ctc-nano", "qwen3_asr": "qwen3-asr-nano", "ast": "ast-nano"}


@pytest.fixture
def adapted(tmp_path: Path) -> Callable[..., Path]:
    """An adapter folder of any packaged model, with an output layer of its own where `outputs` are given."""

    def build(family: str, *, outputs: tuple[str, ...] = (), language: str | None = None) -> Path:
        base = f"assets:{NANO[family]}"
        architecture = choose_family(base)
        loaded = architecture.load(base, context="full", outputs=outputs, renew_outputs=bool(outputs))
        linears = [name for name in loaded.linears if loaded.owner(name) != "head"]
        plan = RankPlan(ranks=dict.fromkeys(linears, 2), allocator="test", parameters=0)
        unfreeze = ("head",) if outputs else ()
        loaded = lora.attach(loaded, plan, rank=2, alpha=2.0, stem="frozen", unfreeze=unfreeze)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                if parameter.requires_grad:
                    parameter += 0.005 * torch.randn(parameter.shape, generator=generator)
            if outputs and family == "ctc":  # plain decoding writes `<unk>`, and ours leaves it out
                loaded.module.ctc_head.modules_to_save["default"].bias[1] = -100.0
        folder = tmp_path / f"{family}-run" / "adapter"
        extra = {"bits": 16, "outputs": list(loaded.new_outputs)} | ({"language": language} if language else {})
        lora.save(loaded, folder, extra=extra)
        if outputs and hasattr(loaded.processor, "tokenizer"):
            loaded.processor.tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def digits() -> tuple[Path, list[Clip]]:
    """The packaged evaluation clips: their manifest, and the clips."""
    manifest = resolve_asset("assets:quickstart") / "eval.jsonl"
    return manifest, read_manifest(manifest)


@pytest.fixture(scope="session")
def short_run(digits: tuple[Path, list[Clip]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step over the packaged whisper-nano, at home in the whole window."""
    manifest, _ = digits
    folder = tmp_path_factory.mktemp("short") / "run"
    words = [
        "model=whisper_nano",
        f"data.train={manifest.with_name('train.jsonl')}",
        f"data.eval={manifest}",
        "data.limit=8",
        "model.context=full",
        "model.language=en",
        "training.max_steps=1",
        "evaluation.zero_shot=false",
        "training.eval_steps=never",
        "training.batch_max_clips=2",
        "training.precision=fp32",
        "adapter.rank=2",
        "data.loader_workers=0",
        "data.check=header",
        "run.progress=false",
        f"run.dir={folder}",
        "evaluation.bootstrap=100",
        "training.learning_rate=1e-6",
        "quantization.bits=16",
    ]
    code, _, err = call("train", *words)
    assert code == 0, err
    return folder


def call(*words: str) -> tuple[int, str, str]:
    """Run a command in this process; exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def sonotune() -> Callable[..., tuple[int, str, str]]:
    """Runs a command: exit code, stdout and stderr."""
    return call
