"""The plug-ins of the pages about adapter kinds, objectives and aligners do what a built-in one does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sonotune.adapters.metadata import read_metadata
from sonotune.alignment.base import Alignment
from sonotune.alignment.open import open_aligner
from sonotune.api import audit
from sonotune.cli import main
from sonotune.config.load import load_run_config
from sonotune.data.manifest import read_manifest
from sonotune.errors import ConfigError, Interrupted
from sonotune.loading import open_model
from sonotune.models.probe import probe_logits
from sonotune.registry import resolve_asset
from sonotune.runs import read_record
from sonotune.training.run import run
from sonotune.types import Finding

WORDS = (
    "model=whisper_nano",
    "data=quickstart",
    "data.limit=16",
    "training.max_steps=4",
    "training.batch_max_clips=4",
    "evaluation.zero_shot=false",
    "evaluation.bootstrap=100",
    "run.progress=false",
    "data.loader_workers=0",
    "training.precision=fp32",
)
Install = Callable[..., str]


class StopAfter:
    """Asks to stop after a step, as a signal does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def started(self, total_steps: int, step: int) -> None: ...

    def stepped(self, values: Any) -> None:
        if values["step"] == self._step:
            raise Interrupted("for the test")

    def evaluated(self, step: int, scores: Any) -> None: ...


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--json"])
    found = capsys.readouterr()
    assert stopped.value.code == 0, found.err
    return json.loads(found.out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from sonotune.adapters.kinds.base import read_tensors

    return read_tensors(folder / "adapter")


def test_a_kind_of_adapter_trains_resumes_is_inspected_planned_for_and_exported(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    kind = install("add-an-adapter-kind.md", "adapters")
    words = [
        *WORDS,
        f"adapter.kind={kind}",
        "adapter.targets=[fc1,fc2]",
        "training.save_steps=1",
        "training.learning_rate=1e-2",
    ]
    record, straight = run(load_run_config([*words, f"run.dir={tmp_path / 'straight'}"]))
    assert record.status == "finished"
    assert read_metadata(straight / "adapter")["adapter"] == kind
    [stage] = record.stages
    assert {group["name"].partition(":")[0] for group in stage["groups"]} == {"adapters", "weights"}  # and the stem

    settings = load_run_config([*words, f"run.dir={tmp_path / 'stopped'}"])
    with pytest.raises(Interrupted):
        run(settings, listeners=[StopAfter(2)])
    run(settings)
    again, once = weights(tmp_path / "stopped"), weights(straight)
    assert again.keys() == once.keys()
    assert all(torch.equal(again[name], once[name]) for name in once)

    found = ask(
        capsys,
        "inspect",
        "model=whisper_nano",
        f"adapter.kind={kind}",
        "adapter.stem=frozen",
        "adapter.targets=[fc1,fc2]",
    )
    biases = sum(value.numel() for name, value in once.items() if name.endswith(".adapter_bias"))
    assert found["parameters"]["adapter"] == found["parameters"]["trainable"] == biases > 0
    plan = ask(capsys, "plan", "model=whisper_nano", f"adapter.kind={kind}", "--device", "cpu")
    assert plan["stages"][0]["trainable"] > biases

    exported = ask(capsys, "export", str(straight), str(tmp_path / "out"), "--parity-clips", "4")
    assert exported["kind"] == "merged"
    assert exported["merge"]["largest"] < 1e-3 * exported["merge"]["scale"]

    with pytest.raises(ConfigError, match=r"reallocation\.at cannot take effect: adapters of the kind 'bias'"):
        run(load_run_config([*words, "reallocation.at=[0.5]", f"run.dir={tmp_path / 'refused'}"]))

    opened = open_model(str(straight))
    frozen = [value for name, value in opened.loaded.module.named_parameters() if not opened.loaded.names.owns(name)]
    assert frozen
    logits = probe_logits(opened.loaded)
    with opened.loaded.names.disabled(opened.loaded):  # type: ignore[attr-defined]
        assert not torch.equal(probe_logits(opened.loaded), logits)


def test_an_objective_trains_and_is_calibrated_by(install: Install, tmp_path: Path):
    objective = install("add-an-objective.md", "objectives")
    plain, focal = (
        run(load_run_config([*WORDS, *words, f"run.dir={tmp_path / name}"]))
        for name, words in (("plain", ()), ("focal", (f"training.objective={objective}",)))
    )
    first, second = (
        [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
        for _, folder in (plain, focal)
    )
    losses = [[event["loss"] for event in events if event["kind"] == "step"] for events in (first, second)]
    assert 0 < losses[1][0] < losses[0][0]
    assert all(math.isfinite(loss) for loss in losses[1])
    assert read_record(focal[1]).config["training"]["objective"] == objective
    assert focal[0].config_digest != plain[0].config_digest
    words = [
        *WORDS,
        f"training.objective={objective}",
        "adapter.allocator=gradient",
        "allocation.clips=16",
        "adapter.rank=2",
    ]
    record, _ = run(load_run_config([*words, f"run.dir={tmp_path / 'ranks'}"]))
    assert len(set(record.ranks.values())) > 1


def test_an_aligner_places_words_and_audits_a_corpus(install: Install, tmp_path: Path):
    name = install("add-an-aligner.md", "aligners")
    clips = read_manifest(resolve_asset("assets:quickstart/eval.jsonl"))[:8]
    silent, crowded = replace(clips[0], id="silent", text="..."), replace(clips[0], id="crowded", text="seven " * 200)
    asked = [*clips, silent, crowded]
    plain, ctc = (open_aligner("assets:ctc-nano", name=one, device="cpu") for one in (name, "ctc"))
    found, usual = list(plain.align(asked)), list(ctc.align(asked))
    assert [one.check for one in found[-2:] if isinstance(one, Finding)] == ["align.empty_text", "align.too_long_text"]
    for clip, one, other in zip(clips, found[:-2], usual[:-2], strict=True):
        assert isinstance(one, Alignment)
        assert isinstance(other, Alignment)
        assert " ".join(word.text for word in one.words) == clip.text
        times = [time for word in one.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert 0 <= times[0] < times[-1] <= clip.duration_s
        assert one.evidence is not None
        assert other.evidence is not None
        assert (one.evidence.given <= one.evidence.best).all()
        # With closed gaps the path is the best one; open gaps can only take frames away from it.
        assert one.evidence.given.sum() >= other.evidence.given.sum() - 1e-3
    report, folder = audit(
        {
            "model": "ctc_nano",
            "data": "quickstart",
            "audit.aligner": name,
            "audit.min_clips": 30,
            "audit.max_clips": 30,
            "audit.dir": tmp_path / "audit",
            "training.precision": "fp32",
        }
    )
    assert report.model["aligner"] == name
    assert "min_window_llr" in report.calibration.thresholds
    assert (folder / "report.html").is_file()
