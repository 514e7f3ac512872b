"""An aligner is opened by what its model is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sonotune.alignment.base import AlignerSettings, Alignment
from sonotune.alignment.ctc import CtcAligner
from sonotune.alignment.open import MULTILINGUAL, PRESETS, open_aligner, preset_for
from sonotune.errors import ConfigError, ModelError
from sonotune.types import Clip


def test_a_ctc_model_is_opened_as_what_it_is(quickstart: list[Clip]) -> None:
    aligner = open_aligner("assets:ctc-nano", device="cpu", settings=AlignerSettings(transcribe=False))
    assert isinstance(aligner, CtcAligner)
    [found] = aligner.align(quickstart[:1])
    assert isinstance(found, Alignment)
    assert found.transcript is None
    assert open_aligner("assets:ctc-nano", name="ctc", device="cpu").name == "ctc"


def test_a_model_that_cannot_align_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot align: its family is ast; allowed are models of ctc, whisper"):
        open_aligner("assets:ast-nano", device="cpu")
    with pytest.raises(ModelError, match="its family is whisper; allowed is ctc"):
        open_aligner("assets:whisper-nano", name="ctc", device="cpu")


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ctc'"):
        open_aligner("assets:ctc-nano", name="ctcc", device="cpu")
    with pytest.raises(ModelError):
        open_aligner(str(tmp_path / "nothing"), device="cpu")


def test_presets_are_names_of_the_hub() -> None:
    for language, checkpoint in PRESETS.items():
        assert re.fullmatch("[a-z]{2}", language)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint)
        assert preset_for(language) == checkpoint
    assert preset_for("br") == MULTILINGUAL
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", MULTILINGUAL)
