"""Finding and loading a checkpoint: packaged, a folder, or a hub name; safetensors only, no remote code.

Every way this can fail ends in one sentence with what to do instead.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sonotune.errors import ModelError
from sonotune.models.base import ModelFamily
from sonotune.models.published import PUBLISHED
from sonotune.registry import is_asset, resolve_asset
from sonotune.runs import digest_file, digest_json, torch_seed

logger = logging.getLogger(__name__)

_DEVIATION = 0.02  # of new matrices, as in `transformers`


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
    family: ModelFamily,
    *,
    class_name: str,
    revision: str | None,
    random_weights: bool,
    config_changes: Mapping[str, Any],
    processor_class: str | None = "AutoProcessor",
    new_parameters: str | None = None,
) -> tuple[Any, Any, str]:
    """Load module and processor of one architecture in fp32 on the CPU.

    Args:
        checkpoint: Packaged, local or hub name.
        family: Says whether the configuration is its own.
        class_name: Class of the module in `transformers`.
        revision: Hub revision.
        random_weights: Build from the configuration, for benchmarks and tests of geometry.
        config_changes: Settings of the configuration to override; None leaves one alone.
        processor_class: Class of the processor in `transformers`; None loads none.
        new_parameters: Regular expression of parameters that are made anew, such as an output layer for the user's own
            classes; all others must be in the checkpoint.

    Returns:
        The module in evaluation mode, its processor, and its identity (commit or digest of the files).

    Raises:
        ModelError: Missing, unreachable, of another family, without safetensors, or damaged.
    """
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415

    config = read_config(checkpoint, revision, published=False)
    check_family(checkpoint, config, family)
    _change(config, config_changes)
    processor = None
    if processor_class is not None:
        processor = load_processor(checkpoint, class_name=processor_class, revision=revision)
    source = locate(checkpoint)
    model_class = getattr(transformers, class_name)
    try:
        if random_weights:
            module = model_class(config)
            module.generation_config = _generation_config(source, revision, module.generation_config)
        else:
            module, told = model_class.from_pretrained(
                source, config=config, revision=revision, dtype=torch.float32, use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=new_parameters is not None,
            )  # fmt: skip
            draw_anew(module, _lacking(checkpoint, told, new_parameters))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_why(checkpoint, source, error)) from error
    module.eval()
    return module, processor, _identity(source, config, random_weights=random_weights)


def _lacking(checkpoint: str, told: Mapping[str, Any], new_parameters: str | None) -> set[str]:
    """The parameters that are made anew; every other came from the checkpoint."""
    lacking = {*told["missing_keys"], *(entry[0] for entry in told.get("mismatched_keys", ()))}
    made = {name for name in lacking if new_parameters is not None and re.search(new_parameters, name)}
    if absent := lacking - made:
        raise ModelError(
            f"{checkpoint} lacks {len(absent)} weights of its architecture, such as {min(absent)}; they would "
            "be random. Save the model again, or train from nothing with model.random_weights=true."
        )
    return made


def draw_anew(module: Any, names: Collection[str]) -> None:
    """Give matrices that no checkpoint has their first values, in place; the same every time.

    An adapter holds what was learned over them and not these values themselves, so that whoever opens it must get the
    same ones. Biases become 0; the vectors of norms keep the values that `transformers` gives them.
    """
    import torch  # noqa: PLC0415

    with torch.no_grad():
        for name in names:
            parameter = module.get_parameter(name)
            if parameter.ndim > 1:
                drawn = torch.Generator().manual_seed(torch_seed(0, "new parameter", name))
                parameter.copy_(_DEVIATION * torch.randn(parameter.shape, generator=drawn))
            elif name.endswith(".bias"):
                parameter.zero_()


def load_processor(checkpoint: str, *, class_name: str, revision: str | None) -> Any:
    """Load a processor, tokenizer or feature extractor.

    Raises:
        ModelError: Its files are missing or unreadable; the message names those that are missing.
    """
    import transformers  # noqa: PLC0415

    source = locate(checkpoint)
    try:
        return getattr(transformers, class_name).from_pretrained(source, revision=revision)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(source, Path) and class_name == "AutoTokenizer" and not _has_tokenizer(source):
            raise ModelError(
                f"{source} has no tokenizer: neither {' nor '.join(_TOKENIZER_FILES)} is there. Save the model with "
                "its processor, or set model.outputs=data for a new vocabulary."
            ) from error
        raise ModelError(_why(checkpoint, source, error)) from error


_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def outline_pretrained(
    checkpoint: str,
    family: ModelFamily,
    *,
    class_name: str,
    revision: str | None,
    config_changes: Mapping[str, Any] | None = None,
) -> tuple[Any, str]:
    """Build one architecture on the meta device: every shape and no weight.

    Args:
        checkpoint: Packaged, local or hub name; those of `models.published` need no network.
        family: Says whether the configuration is its own.
        class_name: Class in `transformers`.
        revision: Hub revision.
        config_changes: Settings of the configuration to override; None leaves one alone.

    Returns:
        The module, and the identity of its architecture.

    Raises:
        ModelError: The configuration is missing, unreachable or of another family.
    """
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    config = read_config(checkpoint, revision)
    check_family(checkpoint, config, family)
    _change(config, config_changes or {})
    with torch.device("meta"):
        module = getattr(transformers, class_name)(config)
    module.to("meta")  # a few parameters are made by `torch.Tensor(...)`, which knows no default device
    module.eval()
    return module, architecture_digest(config)


def _change(config: Any, changes: Mapping[str, Any]) -> None:
    """Override the settings that this architecture has; None leaves one alone."""
    for key, value in changes.items():
        *place, name = key.split(".")  # `encoder_config.dropout` is a setting of a part
        part = functools.reduce(getattr, place, config)
        if value is not None and hasattr(part, name):
            setattr(part, name, value)


def is_classifier(config: Any) -> bool:
    """Whether a configuration was saved with a classification head."""
    return any(name.endswith(_CLASSIFIERS) for name in config.architectures or ())


_CLASSIFIERS = ("ForAudioClassification", "ForSequenceClassification")


def read_config(checkpoint: str, revision: str | None, *, published: bool = True) -> Any:
    """The `transformers` configuration of a checkpoint.

    Args:
        checkpoint: Packaged, local or hub name.
        revision: Hub revision.
        published: Whether the numbers in `models.published` do, which need no network; not where weights come next.

    Raises:
        ModelError: It is missing, unreadable or unreachable.
    """
    import transformers  # noqa: PLC0415

    import sonotune.models.composed  # noqa: F401, PLC0415  (registers its configuration)

    if published and checkpoint in PUBLISHED and revision is None and not Path(checkpoint).is_dir():
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


def check_family(checkpoint: str, config: Any, family: ModelFamily) -> None:
    """Raise ModelError where a configuration is of another family."""
    if not family.handles(config):
        heads = ", ".join(config.architectures or ()) or "no architecture named"
        raise ModelError(
            f"{checkpoint} is a {config.model_type!r} checkpoint ({heads}), and the family {family.name!r} "
            f"(task {family.task}) cannot use it. Set model.family=auto."
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
        return f"random-{architecture_digest(config)}"
    if isinstance(source, str):
        return str(getattr(config, "_commit_hash", None) or "unknown")
    files = sorted(source.glob("*.safetensors"))
    return digest_json({path.name: digest_file(path) for path in files})[:16]


def architecture_digest(config: Any) -> str:
    """Identity of an architecture without weights."""
    return digest_json(json.loads(config.to_json_string(use_diff=False)))[:16]
