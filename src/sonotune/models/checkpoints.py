"""Finding and loading a checkpoint: packaged, a folder, or a hub name; safetensors only, no remote code.

Every way this can fail ends in one sentence with what to do instead.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sonotune.errors import ModelError
from sonotune.models.published import PUBLISHED
from sonotune.registry import is_asset, resolve_asset
from sonotune.runs import digest_file, digest_json

logger = logging.getLogger(__name__)


def locate(checkpoint: str) -> Path | str:
    """`assets:name` -> packaged folder; a folder -> itself; otherwise a hub name, unchanged.

    Raises:
        ModelError: The folder or packaged model does not exist, or the name can be neither.
    """
    if is_asset(checkpoint):
        return resolve_asset(checkpoint)
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise ModelError(
            f"checkpoint {checkpoint!r} is neither a folder here nor a hub name such as openai/whisper-small. "
            "Check the path, or use the packaged model=whisper_nano."
        )
    return checkpoint


def load_pretrained(
    checkpoint: str,
    *,
    model_type: str,
    class_name: str,
    revision: str | None,
    random_weights: bool,
    config_changes: Mapping[str, Any],
) -> tuple[Any, Any, str]:
    """Load module and processor of one architecture in fp32 on the CPU.

    Args:
        checkpoint: Packaged, local or hub name.
        model_type: `config.model_type` that the family handles.
        class_name: Class in `transformers`.
        revision: Hub revision.
        random_weights: Build from the configuration, for benchmarks and tests of geometry.
        config_changes: Settings of the configuration to override; None leaves one alone.

    Returns:
        The module in evaluation mode, its processor, and its identity (commit or digest of the files).

    Raises:
        ModelError: Missing, unreachable, of another family, without safetensors, or damaged.
    """
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415

    source = locate(checkpoint)
    model_class = getattr(transformers, class_name)
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
        _check_type(checkpoint, config.model_type, model_type)
        for key, value in config_changes.items():
            if value is not None:
                setattr(config, key, value)
        processor = transformers.AutoProcessor.from_pretrained(source, revision=revision)
        if random_weights:
            module = model_class(config)
            module.generation_config = _generation_config(source, revision, module.generation_config)
        else:
            module, told = model_class.from_pretrained(
                source, config=config, revision=revision, dtype=torch.float32, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
            if missing := sorted(told["missing_keys"]):
                raise ModelError(
                    f"{checkpoint} lacks {len(missing)} weights of its architecture, such as {missing[0]}; they would "
                    "be random. Save the model again, or train from nothing with model.random_weights=true."
                )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_why(checkpoint, source, error)) from error
    module.eval()
    return module, processor, _identity(source, config, random_weights=random_weights)


def outline_pretrained(checkpoint: str, *, model_type: str, class_name: str, revision: str | None) -> tuple[Any, str]:
    """Build one architecture on the meta device: every shape and no weight.

    Args:
        checkpoint: Packaged, local or hub name; those of `models.published` need no network.
        model_type: `config.model_type` that the family handles.
        class_name: Class in `transformers`.
        revision: Hub revision.

    Returns:
        The module, and the identity of its architecture.

    Raises:
        ModelError: The configuration is missing, unreachable or of another family.
    """
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    config = read_config(checkpoint, revision)
    _check_type(checkpoint, config.model_type, model_type)
    with torch.device("meta"):
        module = getattr(transformers, class_name)(config)
    module.eval()
    return module, _architecture_digest(config)


def read_config(checkpoint: str, revision: str | None) -> Any:
    """The `transformers` configuration of a checkpoint; a published one needs no network.

    Raises:
        ModelError: It is missing, unreadable or unreachable.
    """
    import transformers  # noqa: PLC0415

    if checkpoint in PUBLISHED and revision is None and not Path(checkpoint).is_dir():
        return transformers.AutoConfig.for_model(**PUBLISHED[checkpoint])
    source = locate(checkpoint)
    try:
        return transformers.AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        if isinstance(source, str):
            raise ModelError(
                f"the hub checkpoint {checkpoint!r} could not be read ({str(error).strip().splitlines()[0][:160]}). "
                "Without network, give a folder as model.checkpoint or use the packaged model=whisper_nano."
            ) from error
        raise ModelError(f"{source} is not a model folder: config.json is missing or unreadable.") from error


def _generation_config(source: Path | str, revision: str | None, default: Any) -> Any:
    """The checkpoint's own decoding settings, which a configuration alone does not have; else the default."""
    import transformers  # noqa: PLC0415

    try:
        return transformers.GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:
        return default


def _check_type(checkpoint: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ModelError(
            f"{checkpoint} is a {found!r} checkpoint, but model.family asks for {wanted!r}. Set model.family=auto."
        )


def _why(checkpoint: str, source: Path | str, error: Exception) -> str:
    first = str(error).strip().partition("\n")[0][:200]
    if isinstance(source, str):
        return (
            f"the hub checkpoint {checkpoint!r} could not be loaded ({first}). Without network, download it elsewhere "
            "and give its folder as model.checkpoint, or use the packaged model=whisper_nano."
        )
    missing = [name for name in ("config.json", "preprocessor_config.json") if not (source / name).is_file()]
    if missing and not (source / "processor_config.json").is_file():
        return f"{source} is not a model folder: {' and '.join(missing)} missing. Save the model with its processor."
    if not any(source.glob("*.safetensors")):
        return f"{source} has no safetensors weights; pickled weights (.bin, .pt) are refused. Convert it first."
    return f"{source} could not be loaded: {first}"


def as_os_error(error: Exception) -> OSError:
    """The error of a failed write; a full disk is one also where safetensors reports it as text."""
    if isinstance(error, OSError):
        return error
    return OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error))


def _identity(source: Path | str, config: Any, *, random_weights: bool) -> str:
    if random_weights:
        return f"random-{_architecture_digest(config)}"
    if isinstance(source, str):
        return str(getattr(config, "_commit_hash", None) or "unknown")
    files = sorted(source.glob("*.safetensors"))
    return digest_json({path.name: digest_file(path) for path in files})[:16]


def _architecture_digest(config: Any) -> str:
    return digest_json(json.loads(config.to_json_string(use_diff=False)))[:16]
