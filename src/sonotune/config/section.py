"""The base of every section of settings."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict

NO_EFFECT_ON_RESULT: Final[dict[str, Any]] = {"affects_result": False}
"""Of a setting that cannot change the weights, scores or predictions of a run."""
LATER: Final[dict[str, Any]] = {"in_digest_at_default": False}
"""Of a setting that came later: at its default it is left out of the digest, as in older runs."""


class Section(BaseModel):
    """Base of every section: frozen, closed to unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def _ordered(self, low: str, high: str) -> None:
        if getattr(self, low) > getattr(self, high):
            raise ValueError(
                f"{low} is {getattr(self, low)!r} and {high} is {getattr(self, high)!r}; {low} must be at most {high}"
            )
