"""Names that come from outside and that no file system takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonotune.errors import ConfigError, ManifestError, ModelError, problem_list
from sonotune.paths import exists, is_file, is_folder, short_names


def test_what_is_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert is_folder(tmp_path)
    assert is_folder(str(tmp_path))
    assert is_file(tmp_path / "file")
    assert exists(tmp_path / "file")
    assert not is_file(tmp_path)
    assert not is_folder(tmp_path / "file")
    assert not exists(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["x" * 5000, "ש" * 200, "a\0b", "/".join(["x" * 200] * 30)])
def test_an_impossible_name_names_nothing(name: str, tmp_path: Path) -> None:
    for place in (name, tmp_path / name):
        assert not is_folder(place)
        assert not is_file(place)
        assert not exists(place)


def test_another_error_of_the_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    for look in (is_folder, is_file, exists):
        with pytest.raises(PermissionError):
            look(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "ש" * 200])
def test_readers_say_that_nothing_is_there(name: str, tmp_path: Path) -> None:
    from sonotune.config.load import load_run_config
    from sonotune.data.corpus import read_source
    from sonotune.loading import choose_family, find_adapter

    with pytest.raises(ConfigError, match="no model preset"):
        load_run_config([f"model={name}", "data.train=x.jsonl"])
    with pytest.raises(ConfigError, match="not there"):
        load_run_config([f"config={name}"])
    with pytest.raises(ConfigError, match="the package has no"):
        choose_family(f"assets:{name}")
    with pytest.raises(ModelError, match="neither a folder here nor a hub name"):
        choose_family(f"./{name}")
    assert find_adapter(name) is None
    with pytest.raises(ManifestError, match="found nothing there"):
        read_source(name)
    (tmp_path / "wav.scp").write_text(f"u {name}.wav\n", "utf-8")
    with pytest.raises(ManifestError, match="the path is too long"):
        read_source(str(tmp_path))


def test_a_message_lists_twenty_problems_and_cuts_each() -> None:
    message = problem_list("30 problems:", [f"{'x' * 5000} is not there"] * 30)
    assert message.startswith("30 problems:\n  - xxx")
    assert message.count("x is not there") == 20
    assert message.endswith("\n  ... and 10 more")
    assert len(message) < 20_000
    assert problem_list("1 problem:", ["a"]) == "1 problem:\n  - a"


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["data/a/test.jsonl"], ["test.jsonl"]),
        (["data/a/test.jsonl", "data/b/test.jsonl"], ["a/test.jsonl", "b/test.jsonl"]),
        (["x/a/test.jsonl", "y/a/test.jsonl", "dev.jsonl"], ["x/a/test.jsonl", "y/a/test.jsonl", "dev.jsonl"]),
        (["a/test.jsonl", "a/test.jsonl"], ["a/test.jsonl", "a/test.jsonl"]),
        (["assets:quickstart/test.jsonl", Path("/b/test.jsonl")], ["assets:quickstart/test.jsonl", "b/test.jsonl"]),
        ([], []),
    ],
)
def test_short_names_tell_paths_apart(places: list[str | Path], names: list[str]) -> None:
    assert short_names(places) == names
