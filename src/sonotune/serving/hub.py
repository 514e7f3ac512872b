"""Put a folder on the Hugging Face hub; whatever happens there, the folder stays as it is."""

from __future__ import annotations

import re
from pathlib import Path

from sonotune.errors import ConfigError, HubError, first_line
from sonotune.hub_access import why_unreachable

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def check_name(name: str) -> None:
    """Refuse what is no name of a repository, before anything is made.

    Raises:
        ConfigError: It is not `OWNER/NAME`.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--push: {name!r} is no OWNER/NAME of the hub.")


def push(folder: Path, name: str, *, private: bool = True, message: str = "Made by sonotune") -> str:
    """Upload every file of a folder, making the repository where there is none.

    Args:
        folder: An export.
        name: `OWNER/NAME`.
        private: Of a repository that is made.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        HubError: It could not be uploaded; the message has the command to try again.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415  (half a second, and most exports stay here)

    if (unreachable := why_unreachable()) is not None:
        raise _not_sent(folder, name, unreachable, "When it can be reached")
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))
    except Exception as error:  # the hub's, the network's and the token's errors have nothing in common
        raise _not_sent(folder, name, first_line(error), "Log in with `hf auth login`, and then") from error


def _not_sent(folder: Path, name: str, reason: str, when: str) -> HubError:
    return HubError(
        f"{name} could not be uploaded: {reason.rstrip('.')}. Nothing is lost, {folder} is whole. "
        f"{when}: hf upload {name} {folder}"
    )
