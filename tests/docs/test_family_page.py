"""The page about model families names everything that a family must have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sonotune.models.base import ModelFamily, SpeechFamily

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-model-family.md"


@pytest.mark.parametrize(("protocol", "column"), [(ModelFamily, 0), (SpeechFamily, 1)])
def test_every_member_of_the_protocols_stands_in_the_table(protocol: type, column: int):
    table = PAGE.read_text("utf-8").split("| for every family | for speech besides |")[1].split("\n\n")[0]
    rows = [line.strip().strip("|").split("|") for line in table.splitlines() if line.strip().startswith("|")]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row[column])} - {"transcribe", "classify"}
    own = {name for name in {*vars(protocol), *protocol.__annotations__} if not name.startswith("_")} - {"transcribe"}
    assert own <= named
