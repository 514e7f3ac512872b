"""Commands that run in the process of the tests."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    """A command sets variables, which `huggingface_hub` reads once, where it is imported: here before."""
    importlib.import_module("huggingface_hub.constants")
    with mock.patch.dict(os.environ):
        yield
