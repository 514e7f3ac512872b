"""Put a folder on the Hugging Face hub; whatever happens there, the folder stays as it is."""

from __future__ import annotations

import re
from pathlib import Path

from sonotune.errors import ConfigError, HubError

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

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))
    except Exception as error:  # the hub's, the network's and the token's errors have nothing in common
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"{name} could not be reached: {reason} Nothing is lost, {folder} is whole. Log in with `hf auth login` "
            f"and try again: hf upload {name} {folder}"
        ) from error
