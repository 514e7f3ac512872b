"""Names, plug-ins and packaged files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib import metadata

import pytest

from sonotune import registry
from sonotune.errors import ConfigError


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in registry.TABLES.items() for name in table])
def test_every_name_stands_for_something_that_exists(kind, name):
    module = registry.TABLES[kind][name].partition(":")[0]
    assert importlib.util.find_spec(module) is not None
    assert registry.resolve(kind, name) is not None


def test_an_unknown_name_gets_a_suggestion_and_the_list():
    with pytest.raises(
        ConfigError, match=r"no 'bassic'; did you mean 'basic'\? Known: arabic, basic, cjk, english, hebrew"
    ) as caught:
        registry.resolve("normalizers", "bassic")
    assert "sonotune.normalizers" in str(caught.value)


def fake_plugins(monkeypatch, **values):
    def entry_points(group):
        return [metadata.EntryPoint(name, value, group) for name, value in values.items()]

    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)


def test_a_plug_in_joins_a_table(monkeypatch):
    fake_plugins(monkeypatch, mine="collections:OrderedDict.fromkeys")
    assert "mine" in registry.names("tasks")
    assert callable(registry.resolve("tasks", "mine"))


def test_a_plug_in_cannot_take_over_a_built_in_name(monkeypatch):
    before = registry.resolve("normalizers", "basic")
    fake_plugins(monkeypatch, basic="collections:OrderedDict")
    assert registry.resolve("normalizers", "basic") is before


@pytest.mark.parametrize("value", ["no_such_module_93:x", "collections:no_such_name"])
def test_a_broken_plug_in_is_named(monkeypatch, value):
    fake_plugins(monkeypatch, broken=value)
    with pytest.raises(ConfigError, match=r"'broken' names .* cannot be imported"):
        registry.resolve("tasks", "broken")


def test_a_fault_of_our_own_is_not_dressed_up(monkeypatch):
    fake_plugins(monkeypatch, wrong="sonotune.registry:no_such_name")
    with pytest.raises(AttributeError):
        registry.resolve("tasks", "wrong")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("train.jsonl", ("auto", "train.jsonl")),
        ("assets:quickstart/train.jsonl", ("auto", "assets:quickstart/train.jsonl")),
        ("folder:my clips", ("folder", "my clips")),
        ("fsdd:", ("fsdd", "")),
        ("hub:owner/name:split", ("hub", "owner/name:split")),
        ("./odd:name.jsonl", ("auto", "./odd:name.jsonl")),
    ],
)
def test_split_source(source, expected):
    assert registry.split_source(source) == expected


def test_split_source_refuses_an_unknown_importer():
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        registry.split_source("foldr:clips")


def test_assets_are_found_inside_the_package_only(tmp_path, monkeypatch):
    (tmp_path / "assets" / "whisper-x").mkdir(parents=True)
    (tmp_path / "secret").write_text("")
    monkeypatch.setattr(registry.resources, "files", lambda _: tmp_path)
    assert registry.resolve_asset("assets:whisper-x") == tmp_path / "assets" / "whisper-x"
    for name in ("assets:../secret", "assets:/etc/passwd", "assets:", "assets:whisper-x/../../secret"):
        with pytest.raises(ConfigError, match="does not name a packaged file"):
            registry.resolve_asset(name)
    with pytest.raises(ConfigError, match="Known: assets:whisper-x"):
        registry.resolve_asset("assets:whisper-y")


def test_importing_the_registry_imports_nothing_it_names():
    code = """if True:
        import sys
        import sonotune.registry
        print(*sorted(name for name in sys.modules if name.startswith("sonotune.") or name == "torch"))
    """
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "sonotune.errors sonotune.paths sonotune.registry\n"
