"""The objective `star`: who may take it, how words are found, and what it does to flawed transcripts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sonotune.config.load import load_run_config
from sonotune.data.manifest import read_manifest
from sonotune.errors import ConfigError
from sonotune.features.batching import Batch, ClipBatches
from sonotune.loading import Opened, open_model
from sonotune.models.families.ast import AstFamily
from sonotune.models.families.ctc import CtcFamily, character_tokenizer
from sonotune.models.families.qwen3_asr import Qwen3AsrFamily
from sonotune.models.families.speech_llm import SpeechLlmFamily
from sonotune.models.families.whisper import WhisperFamily
from sonotune.registry import resolve_asset
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.classify import Classify
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings, make_objective

CTC = "assets:ctc-nano"
CLOSED = ObjectiveSettings(star_bypass_penalty=200.0, star_speech_penalty=200.0)


@pytest.fixture(scope="module")
def opened() -> Opened:
    found = open_model(CTC)
    found.loaded.module.eval()
    return found


@pytest.fixture(scope="module")
def task(opened: Opened) -> Transcribe:
    return Transcribe(opened.loaded.family, TaskSettings())  # type: ignore[arg-type]


def batch_of(opened: Opened, task: Transcribe, change=lambda text: text, *, clips: int = 12) -> Batch:
    """Clips of the packaged corpus, with changed transcripts."""
    found = [
        replace(clip, text=change(clip.text))
        for clip in read_manifest(resolve_asset("assets:quickstart/train.jsonl"))[:clips]
    ]
    prepared = task.prepare(opened.loaded, found)
    assert len(prepared.clips) > clips - 3  # a changed transcript may need more frames than its clip has
    rows = [tuple(range(len(prepared.clips)))]
    return ClipBatches(
        prepared.clips, prepared.targets, opened.loaded.frontend, batches=rows, seed=0, epoch=0, context="cut"
    )[0]


@pytest.mark.parametrize("family", [WhisperFamily, Qwen3AsrFamily, SpeechLlmFamily])
def test_models_that_predict_the_next_token_are_refused(family):
    with pytest.raises(ConfigError, match=rf"the family {family.name} does not.*model\.family=ctc.*`weight`"):
        make_objective("star", Transcribe(family(), TaskSettings()), ObjectiveSettings())


def test_classes_are_refused():
    with pytest.raises(ConfigError, match="needs a CTC model"):
        make_objective("star", Classify(AstFamily(), TaskSettings()), ObjectiveSettings())


def test_with_high_penalties_it_is_the_loss_of_the_task(opened: Opened, task: Transcribe):
    batch = batch_of(opened, task)
    settings = replace(CLOSED, label_smoothing=0.1)
    with torch.no_grad():
        star, plain = (make_objective(name, task, settings).losses(opened.loaded, batch) for name in ("star", "task"))
    torch.testing.assert_close(star.sums, plain.sums, rtol=1e-4, atol=1e-3)
    assert star.counts.tolist() == plain.counts.tolist()


def test_a_wrong_word_costs_less_and_pulls_less(opened: Opened, task: Transcribe):
    """The transcripts of other clips: CTC pays for every letter, and its gradient goes there."""
    swapped = iter(
        np.roll([clip.text for clip in read_manifest(resolve_asset("assets:quickstart/train.jsonl"))[:12]], 1)
    )
    batch = batch_of(opened, task, lambda text: str(next(swapped)))
    weight = next(one for one in opened.loaded.module.parameters() if one.ndim > 1).requires_grad_(True)
    sums, norms = {}, {}
    for name in ("star", "task"):
        losses = make_objective(name, task, ObjectiveSettings()).losses(opened.loaded, batch)
        sums[name] = losses.sums.detach()
        norms[name] = float(torch.autograd.grad(losses.total, weight)[0].norm())
    assert (sums["star"] <= sums["task"] + 1e-3).all()
    assert sums["star"].sum() < 0.75 * sums["task"].sum()
    assert norms["star"] < norms["task"]


def test_a_clip_too_short_for_its_transcript_counts_with_words_left_out(opened: Opened, task: Transcribe):
    batch = batch_of(opened, task, clips=2)
    targets = batch.targets.clamp_min(0).repeat(1, 40)
    long = replace(batch, targets=targets, target_lengths=torch.full((2,), targets.shape[1]))
    with torch.no_grad():
        star = make_objective("star", task, ObjectiveSettings()).losses(opened.loaded, long)
        plain = make_objective("task", task, ObjectiveSettings()).losses(opened.loaded, long)
    assert plain.count == 0
    assert star.count == 2 * targets.shape[1]
    assert star.sums.isfinite().all()


def test_words_begin_at_their_borders(opened: Opened):
    family = opened.loaded.family
    assert isinstance(family, CtcFamily)
    begins = family.word_starts(opened.loaded)
    tokenizer = opened.loaded.processor.tokenizer
    assert len(begins) == opened.loaded.module.config.vocab_size
    assert tokenizer.convert_ids_to_tokens(begins.nonzero()[:, 0].tolist()) == ["▁"]


def test_words_of_other_vocabularies():
    def begins(tokenizer, size):
        loaded = SimpleNamespace(
            processor=SimpleNamespace(tokenizer=tokenizer),
            module=SimpleNamespace(config=SimpleNamespace(vocab_size=size)),
        )
        return CtcFamily().word_starts(loaded).tolist()

    letters = character_tokenizer("ab")
    assert [
        symbol for symbol, begin in zip(["blank", "unknown", "|", "a", "b"], begins(letters, 5), strict=True) if begin
    ] == ["|"]
    pieces = SimpleNamespace(convert_ids_to_tokens=lambda ids: [["▁one", "s", "▁", None][one] for one in ids])
    assert begins(pieces, 4) == [True, False, True, False]
    bare = SimpleNamespace(convert_ids_to_tokens=lambda ids: [["一", "二"][one] for one in ids])
    assert begins(bare, 2) == [True, True]


def test_its_settings_are_refused_where_they_do_nothing():
    base = [f"model.checkpoint={CTC}"]
    with pytest.raises(ConfigError, match=r"training\.objective is auto"):
        load_run_config([*base, "training.star_bypass_penalty=3"])
    plain, star = load_run_config(base), load_run_config([*base, "training.objective=star"])
    assert not [name for name in plain.deciding() if "star" in name]
    other = load_run_config([*base, "training.objective=star", "training.star_bypass_penalty=3"])
    assert len({plain.digest, star.digest, other.digest}) == 3
