"""What a run says of its own scores."""

from __future__ import annotations

from typing import Any

import pytest

from sonotune.training.scoring import worse_than_before
from sonotune.types import Score


def scores(before: float | None, after: float, *, better: str = "lower") -> dict[str, Any]:
    def one(value: float) -> dict[str, Any]:
        made = Score(
            name="wer",
            value=value,
            low=value,
            high=value,
            count=8,
            better=better,
            title="WER",
            role="primary",  # type: ignore[arg-type]
        )
        return {"wer": made.to_json(), "cer": {**made.to_json(), "role": "plain", "value": 0.0}}

    return {"after": one(after), **({} if before is None else {"before": one(before)})}


def test_a_run_that_got_worse_says_so():
    [finding] = worse_than_before(scores(0.25, 1.0))
    assert (finding.check, finding.severity) == ("training.worse", "warning")
    assert "WER was 25.0 %" in finding.message
    assert "is 100.0 %" in finding.message
    assert worse_than_before(scores(0.9, 0.8, better="higher"))


@pytest.mark.parametrize(
    "found", [scores(0.25, 0.2), scores(0.25, 0.25), scores(None, 0.9), scores(0.8, 0.9, better="higher"), {}]
)
def test_any_other_says_nothing(found: dict[str, Any]):
    assert worse_than_before(found) == []
