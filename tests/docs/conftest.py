"""Plug-ins that pages show, installed as a package would install them."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest

from sonotune import registry

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, registry.Kind], str]:
    """Page, table -> name of the plug-in of its code block."""

    def build(page: str, kind: registry.Kind) -> str:
        text = (PAGES / page).read_text("utf-8")
        (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        module = ModuleType("my_package")
        exec(compile(textwrap.dedent(block), str(PAGES / page), "exec"), module.__dict__)  # noqa: S102  (our own page)
        monkeypatch.setitem(sys.modules, "my_package", module)
        found = re.search(r'^\s*(\w+) = "(my_package:\w+)"$', text, re.MULTILINE)
        assert found is not None
        table = MappingProxyType({**registry.TABLES[kind], found[1]: found[2]})
        monkeypatch.setattr(registry, "TABLES", MappingProxyType({**registry.TABLES, kind: table}))
        return found[1]

    return build
