"""Uploading: what is sent, and that nothing is lost when it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sonotune.errors import ConfigError, HubError
from sonotune.serving import hub
from sonotune.serving.hub import check_name, push


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "why_unreachable", lambda: None)


class Hub:
    """Keeps what it was sent."""

    sent: dict[str, Any]

    def create_repo(self, name: str, **options: Any) -> None:
        type(self).sent = {"name": name, **options}

    def upload_folder(self, **options: Any) -> str:
        type(self).sent |= options
        return "https://hub/commit"


def test_a_folder_is_sent_to_a_private_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push(tmp_path, "me/mine") == "https://hub/commit"
    assert Hub.sent["private"]
    assert (Hub.sent["name"], Hub.sent["folder_path"]) == ("me/mine", tmp_path)


@pytest.mark.parametrize("error", [OSError("no route to host\nsecond line"), RuntimeError("")])
def test_what_cannot_be_sent_is_kept_and_the_command_is_told(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Gone(Hub):
        def create_repo(self, name: str, **options: Any) -> None:
            raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Gone)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(HubError, match=rf"hf upload me/mine {tmp_path}") as caught:
        push(tmp_path, "me/mine")
    assert caught.value.exit_code == 2
    assert "second line" not in str(caught.value)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_without_a_network_nobody_is_asked_to_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "why_unreachable", lambda: "https://hub cannot be reached (Name or service not known)")
    with pytest.raises(HubError) as caught:
        push(tmp_path, "me/mine")
    assert str(caught.value) == (
        "me/mine could not be uploaded: https://hub cannot be reached (Name or service not known). Nothing is lost, "
        f"{tmp_path} is whole. When it can be reached: hf upload me/mine {tmp_path}"
    )


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../x", "", "me/mi ne", "http://x/y"])
def test_a_name_that_is_none_is_refused(name: str):
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        check_name(name)
