"""What a run says about the model that it is about to train."""

from __future__ import annotations

import pytest

from sonotune.loading import open_model
from sonotune.training.model import findings_on_window
from sonotune.types import Context


@pytest.mark.parametrize(
    ("context", "trained", "asked", "said"),
    [
        ("cut", ("full", "thinned"), "cut", "warning: untuned they loop"),
        ("cut", ("cut",), None, ""),
        ("full", ("full",), None, "note: weights trained so serve for both"),
        ("full", ("full",), "full", ""),
        ("thinned", ("full", "thinned"), None, ""),
    ],
)
def test_what_is_said_of_the_window(
    context: Context, trained: tuple[Context, ...], asked: Context | None, said: str
) -> None:
    loaded = open_model("assets:whisper-nano", random_weights=True).loaded
    found = findings_on_window(loaded.with_(context=context, trained_contexts=trained), asked=asked)
    severity, _, words = said.partition(": ")
    assert [one.severity for one in found] == ([severity] if said else [])
    assert all(words in " ".join(one.message.split()) for one in found)


def test_a_model_without_a_window_says_nothing_of_it() -> None:
    assert findings_on_window(open_model("assets:ctc-nano", random_weights=True).loaded, asked=None) == ()
