"""The model card says what the record says, and nothing of the machine it was made on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from sonotune.reports.card import build_card
from sonotune.types import Finding, RunRecord


def score(value: float, **detail: Any) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
        "count": 40,
        "unit": "fraction",
        "better": "lower",
        "detail": detail,
    }


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        schema=1,
        run_id="עברית one",
        status="finished",
        config={
            "model": {"language": "he"},
            "adapter": {"allocator": "entropy"},
            "training": {"learning_rate": 1e-3, "seed": 4},
            "data": {"train": "/home/somebody/train.jsonl"},
        },
        config_origin={},
        config_digest="c" * 64,
        data_digest={"train": "a" * 64, "test": "b" * 64},
        code={"version": "0.1.0", "commit": "0123456789abcdef", "tree": "clean"},
        environment={"packages": {"torch": "2.13.0", "peft": "0.21.2"}, "platform": "secret"},
        model={
            "checkpoint": "openai/whisper-large-v3",
            "family": "whisper",
            "components": {"encoder": {"parameters": 1000, "trainable": 10}},
        },
        ranks={"a": 2, "b": 8},
        findings=(Finding(check="x", severity="warning", message="few clips"),),
        scores={"before": {"wer": score(0.9)}, "after": {"wer": score(0.5)}, "test": {"wer": score(0.25, speakers=3)}},
        stages=(),
        choices={"quantization.bits": "4: large"},
        peak_memory_bytes=2**31,
        seconds=600.0,
        energy_joules=7200.0,
    )


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_the_front_matter_is_what_the_hub_reads(record: RunRecord):
    found = front(build_card(record, kind="adapter", task="transcribe"))
    assert found["base_model"] == "openai/whisper-large-v3"
    assert (found["library_name"], found["pipeline_tag"]) == ("peft", "automatic-speech-recognition")
    assert found["language"] == ["he"]
    [result] = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "wer", "value": 25.0, "name": "WER"}]
    assert result["dataset"] == {"name": "own test clips", "type": "own", "split": "test"}
    merged = front(build_card(record, kind="model", task="classify"))
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")
    assert merged["pipeline_tag"] == "audio-classification"


def test_parameters_lie_beside_the_base_or_are_its_own(record: RunRecord):
    assert "- 10 trained parameters beside 1,000 of the base" in build_card(record, kind="adapter", task="transcribe")
    whole = replace(record, config={**record.config, "adapter": {"kind": "none"}}, ranks={})
    assert "- 10 of 1,000 parameters were trained\n" in build_card(whole, kind="model", task="transcribe")


def test_a_card_names_the_kind_of_adapter(record: RunRecord):
    card = build_card(record, kind="adapter", task="transcribe")
    assert front(card)["tags"] == ["sonotune", "lora"]
    assert "A LoRA adapter for `openai/whisper-large-v3`" in card
    other = replace(record, config={**record.config, "adapter": {"kind": "biases"}})
    card = build_card(other, kind="adapter", task="transcribe")
    assert front(card)["tags"] == ["sonotune", "biases"]
    assert "An adapter (`biases`) for `openai/whisper-large-v3`" in card
    assert front(build_card(other, kind="model", task="transcribe"))["tags"] == ["sonotune"]


def test_scores_stand_with_their_intervals_and_on_what_they_were_taken(record: RunRecord):
    card = build_card(record, kind="adapter", task="transcribe")
    assert "| WER | 25.00 % | 24.00 to 26.00 | test clips, 40 clips of 3 speakers |" in card
    assert "| WER | 90.00 % | 89.00 to 91.00 | development clips, before training, 40 clips |" in card
    assert "ranks 2 to 8 in 2 modules (`entropy`)" in card
    assert "10 minutes, peak memory 2.00 GiB" in card
    assert "2 Wh" in card
    assert "- few clips" in card
    assert "40 clips of 3 speakers, and on nothing else" in card


def test_a_score_of_the_clips_that_chose_the_weights_says_so(record: RunRecord):
    untested = replace(record, scores={moment: record.scores[moment] for moment in ("before", "after")})
    card = build_card(untested, kind="adapter", task="transcribe")
    [result] = front(card)["model-index"][0]["results"]
    name = "own development clips, which chose the weights"
    assert result["dataset"] == {"name": name, "type": "own", "split": "validation"}
    assert result["metrics"][0]["value"] == 50.0
    assert "| WER | 50.00 % | 49.00 to 51.00 | development clips, which chose the weights, 40 clips |" in card
    assert "It was scored on 40 clips that chose its weights, and on nothing else." in card


def test_one_rank_and_a_short_run_are_said_plainly(record: RunRecord):
    card = build_card(replace(record, ranks={"a": 8, "b": 8}, seconds=28.7), kind="adapter", task="transcribe")
    assert "- rank 8 in 2 modules" in card
    assert "- 28 seconds, peak memory" in card
    for seconds, told in ((0.4, "less than a second"), (1.0, "1 second"), (59.9, "59 seconds"), (60.0, "1 minute")):
        assert f"- {told}, peak" in build_card(replace(record, seconds=seconds), kind="adapter", task="transcribe")


@pytest.mark.parametrize(
    ("context", "share", "told"),
    [
        ("thinned", 0.0, "- trained with model.context=thinned; other tools compute the whole window\n"),
        ("thinned", 0.1, "thinned (10 % of the batches over the whole window); other tools compute the whole"),
        ("cut", 0.0, "- trained with model.context=cut; other tools compute the whole window\n"),
        ("full", 0.0, "- trained with model.context=full, the whole window, as other tools compute it\n"),
    ],
)
def test_the_context_of_training_is_named(record: RunRecord, context: str, share: float, told: str):
    config = {**record.config, "model": {**record.config["model"], "full_context_share": share}}
    whisper = replace(record, config=config, model={**record.model, "context": context})
    assert told in build_card(whisper, kind="model", task="transcribe")
    without = replace(whisper, model={**whisper.model, "family": "ctc"})  # a model without a window
    assert "model.context" not in build_card(without, kind="model", task="transcribe")


def test_no_path_of_a_machine_is_in_it(record: RunRecord):
    local = replace(record, model={**record.model, "checkpoint": "/home/somebody/models/mine"})
    for one in (record, local):
        card = build_card(one, kind="model", task="transcribe")
        assert "somebody" not in card
        assert "secret" not in card
    assert "Fine-tuned from `mine`" in build_card(local, kind="model", task="transcribe")
    assert "base_model" not in front(build_card(local, kind="model", task="transcribe"))


def test_a_local_folder_is_never_called_a_repository_of_the_hub(record: RunRecord):
    commit = {"checkpoint": "openai/whisper-small", "revision": "973afd24965f72e36ca33b3055d56a652f456b4d"}
    digest = {"checkpoint": "openai/whisper-small", "revision": "0123456789abcdef"}  # of the files of a folder
    random = {"checkpoint": "openai/whisper-small", "revision": "random-0123456789abcdef"}
    for model, base in ((commit, "openai/whisper-small"), (digest, None), (random, None)):
        card = build_card(replace(record, model={**record.model, **model}), kind="adapter", task="transcribe")
        assert front(card).get("base_model") == base
        assert ("openai" in card) == (base is not None)


def test_a_run_without_scores_says_so(record: RunRecord):
    card = build_card(replace(record, scores={}, ranks={}, data_digest={}), kind="model", task="transcribe")
    assert "Nothing was scored." in card
    assert "It was not scored." in card
    assert front(card)["model-index"][0]["results"] == []
