"""What ran, and where: for the record of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "sonotune",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "soundfile",
    "soxr",
    "jiwer",
    "sacrebleu",
)


def environment() -> dict[str, Any]:
    """Describe the machine and the packages. Reads metadata only: nothing is imported, no variable is copied."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    processor = _processor()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor.get("model name", platform.processor() or platform.machine()),
        "avx512_bf16": "avx512_bf16" in processor.get("flags", "").split(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "packages": packages,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _processor() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def code_version() -> dict[str, str]:
    """The package's version, and the commit and state of the checkout it runs from, where it runs from one."""
    try:
        version = metadata.version("sonotune")
    except metadata.PackageNotFoundError:
        version = "unknown"
    here = Path(__file__).resolve()
    # A virtual environment may lie inside somebody else's repository: the file itself must be tracked.
    if _git("ls-files", "--error-unmatch", here.name, folder=here.parent) is None:
        return {"version": version, "commit": "none", "tree": "installed package"}
    commit = _git("rev-parse", "HEAD", folder=here.parent)
    changes = _git("status", "--porcelain", "--untracked-files=no", folder=here.parent)
    if commit is None or changes is None:
        return {"version": version, "commit": "none", "tree": "no commit yet"}
    return {"version": version, "commit": commit, "tree": "changed" if changes else "clean"}


def _git(*words: str, folder: Path) -> str | None:
    """Output of a git command, or None when it fails or git is not there."""
    try:
        done = subprocess.run(  # noqa: S603  (fixed words, no shell)
            ["git", *words],  # noqa: S607  (git is found where the user's shell finds it)
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
