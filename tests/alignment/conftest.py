"""A packaged model that is opened once, and clips of the packaged corpus."""

from __future__ import annotations

import pytest

from sonotune.data.manifest import read_manifest
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.registry import resolve_asset
from sonotune.types import Clip


@pytest.fixture(scope="session")
def ctc_nano() -> LoadedModel:
    return open_model("assets:ctc-nano").loaded


@pytest.fixture(scope="session")
def quickstart() -> list[Clip]:
    return read_manifest(resolve_asset("assets:quickstart/eval.jsonl"))
