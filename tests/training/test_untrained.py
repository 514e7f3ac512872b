"""A composed model whose projector is still random must train it."""

from __future__ import annotations

import pytest

from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.lora import LORA
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.trainable import adapt, untrained_parts
from sonotune.api import inspect
from sonotune.errors import AdapterError
from sonotune.loading import open_model
from sonotune.models.base import NEW, select


def parts(targets: object, unfreeze: tuple[str, ...] = ()) -> list[str]:
    loaded = open_model("assets:speech-llm-nano").loaded
    settings = RankSettings(rank=2, targets=targets, unfreeze=unfreeze)  # type: ignore[arg-type]
    loaded = adapt(
        loaded, LORA, plan_ranks(loaded, settings), AdapterSettings(rank=2, stem="frozen", unfreeze=unfreeze)
    )
    return [finding.message for finding in untrained_parts(loaded)]


def test_an_adapter_over_a_random_projector_is_a_warning():
    (message,) = parts("all_linear")
    assert "projector" in message
    assert "a stage with weights: [projector] trains it in full" in message


def test_a_random_projector_that_would_stay_so_is_refused():
    with pytest.raises(AdapterError, match=r"projector of .* would not train.*weights: \[projector\]"):
        parts(["encoder", "decoder"])


def test_a_projector_that_trains_is_nothing_to_tell():
    assert parts(["encoder", "decoder"], ("projector",)) == []


def test_a_model_with_nothing_new_has_no_such_part():
    loaded = open_model("assets:whisper-nano").loaded
    assert untrained_parts(adapt(loaded, LORA, plan_ranks(loaded, RankSettings(rank=2)), AdapterSettings(rank=2))) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["model=speech_llm_nano"], "projector"),
        (["model=ast_nano", "model.num_labels=3"], "head"),
        (["model=wav2vec2_base", "model.num_labels=30"], "head"),
    ],
)
def test_what_is_new_trains_in_full_without_being_named(words: list[str], part: str):
    found = {row["name"]: row for row in inspect(words).components}
    assert found[part]["trainable"] == found[part]["parameters"] > 0
    assert found["encoder"]["trainable"] < found["encoder"]["parameters"]


def test_the_selector_of_what_is_new_may_match_nothing():
    loaded = open_model("assets:whisper-nano").loaded
    assert select(loaded, [NEW]) == ()
    classifier = open_model("assets:ast-nano").loaded
    assert select(classifier.with_(new_outputs=("a", "b")), [NEW]) == select(classifier, ["head"]) != ()


@pytest.mark.parametrize("words", [["model.num_labels=3"], ["adapter.unfreeze=[head]"]])
def test_adapters_on_nothing_but_what_trains_in_full_are_refused(words: list[str]):
    with pytest.raises(AdapterError, match=r"which trains in full.*adapters: none"):
        inspect(["model=ast_nano", "adapter.targets=[head]", *words])
