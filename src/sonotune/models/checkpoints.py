"""Finding and loading a checkpoint: packaged, a folder, or a hub name; safetensors only, no remote code.

Every way this can fail ends in one sentence with what to do instead.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sonotune.errors import ModelError, SonotuneError, first_line
from sonotune.hub_access import why_unreachable
from sonotune.models.base import LoadedModel, ModelFamily
from sonotune.models.config_files import check_config_files, check_entries, refuse_pipes
from sonotune.models.foreign_code import check_settings_files
from sonotune.models.pretrained import load_weights, mismatched, wrong_shape
from sonotune.models.published import PUBLISHED
from sonotune.models.weight_files import check_weight_files, weights_digest
from sonotune.paths import is_folder
from sonotune.registry import in_order, is_asset, resolve, resolve_asset
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
    try:
        folder = Path(checkpoint).expanduser()
    except RuntimeError as error:  # of a user who is none
        raise ModelError(f"checkpoint {checkpoint!r} names no folder: {error} Write the whole path.") from error
    if is_folder(folder):
        if re.search("[\ud800-\udfff]", str(folder.absolute())):
            raise ModelError(f"the path {str(folder)!r} is no UTF-8, and safetensors opens no such path. Rename it.")
        refuse_pipes(folder)
        return folder
    if folder.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise ModelError(
            f"checkpoint {checkpoint!r} is neither a folder here nor a hub name such as openai/whisper-small. "
            f"Check the path, or use {_packaged(checkpoint)}."
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
        ModelError: Missing, unreachable, of another family, without safetensors, or damaged; a weight is no finite
            number; or the settings name code from elsewhere.
    """
    import transformers  # noqa: PLC0415

    config = read_config(checkpoint, revision, published=False)
    check_family(checkpoint, config, family)
    _change(config, config_changes)
    processor = None
    if processor_class is not None:
        processor = load_processor(checkpoint, class_name=processor_class, revision=revision)
    source = locate(checkpoint)
    if isinstance(source, Path) and not random_weights:
        check_weight_files(source)
    try:
        if random_weights:
            module = getattr(transformers, class_name)(config)
            module.generation_config = _generation_config(source, revision, module.generation_config)
        else:
            module, told = load_weights(
                class_name, source, config=config, revision=revision, ignore_mismatched_sizes=True
            )
            reinitialise(module, _lacking(checkpoint, source, told, new_parameters))
    except SonotuneError:
        raise
    except Exception as error:  # which one depends on what is wrong with the files, and where it is used
        raise ModelError(_why(checkpoint, source, error)) from error
    module.eval()
    return module, processor, _identity(source, config, random_weights=random_weights)


def _lacking(checkpoint: str, source: Path | str, told: Mapping[str, Any], new_parameters: str | None) -> set[str]:
    """The parameters that are made anew; every other came from the checkpoint."""
    shapes = mismatched(told)
    lacking = {*told["missing_keys"], *shapes}
    made = {name for name in lacking if new_parameters is not None and re.search(new_parameters, name)}
    if wrong := sorted(shapes.keys() - made):
        raise ModelError(wrong_shape(source, wrong, shapes))
    if absent := lacking - made:
        raise ModelError(
            f"{checkpoint} lacks {len(absent)} weights of its architecture, such as {min(absent)}; they would "
            "be random. Save the model again, or train from nothing with model.random_weights=true."
        )
    return made


def check_frontend(loaded: LoadedModel) -> None:
    """Refuse a feature extractor that makes other features than the model was built for.

    Raises:
        ModelError: The mel bins, the window or the chunk differ.
    """
    made = loaded.frontend.state()
    for name, (found, wanted) in {
        "mel bins": (loaded.frontend.feature_bins, _bins(loaded.module.config)),
        "seconds of window": (made.get("window_s"), _window_s(loaded.module.config)),
        "frames of window": (made.get("max_frames"), _window_frames(loaded.module.config)),
        "frames of a chunk": (made.get("chunk_frames"), _chunk_frames(loaded.module.config)),
    }.items():
        if found is not None and wanted is not None and found != wanted:
            raise ModelError(
                f"the feature extractor of {loaded.checkpoint} makes {found:g} {name}, and its config.json asks for "
                f"{wanted:g}. Keep the preprocessor_config.json or processor_config.json of the model beside it."
            )


def _listening(config: Any) -> Any:
    """The part of a configuration that describes what hears."""
    parts = (getattr(config, name, None) for name in ("audio_config", "encoder_config"))
    return next((part for part in parts if part is not None), config)


def _bins(config: Any) -> int | None:
    part = _listening(config)
    bins: int | None = getattr(part, "num_mel_bins", None)
    return 1 if bins is None and hasattr(part, "conv_dim") else bins  # convolutions over samples


def _window_s(config: Any) -> float | None:
    part = _listening(config)
    return part.max_source_positions / 50 if part.model_type == "whisper" else None


def _window_frames(config: Any) -> int | None:
    spectrogram = config.model_type == "audio-spectrogram-transformer"
    return int(config.max_length) if spectrogram else None


def _chunk_frames(config: Any) -> int | None:
    half = getattr(_listening(config), "n_window", None)
    return None if half is None else 2 * int(half)


def reinitialise(module: Any, names: Collection[str]) -> None:
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
        ModelError: Its files are missing or unreadable, or name code from elsewhere; the message names them.
    """
    import transformers  # noqa: PLC0415

    source = locate(checkpoint)
    writes = class_name in ("AutoTokenizer", "AutoProcessor")
    if isinstance(source, Path) and writes and not any((source / name).is_file() for name in _TOKENIZER_FILES):
        # Some classes would be made without words, and the model would write nothing.
        raise ModelError(
            f"{source} has no tokenizer: neither {' nor '.join(_TOKENIZER_FILES[:2])} is there. Save the model with "
            "its processor; a CTC model can have a new vocabulary of your transcripts with model.outputs=data."
        )
    try:
        check_settings_files(source, revision)
        made = getattr(transformers, class_name).from_pretrained(source, revision=revision)
        _check_parts(made, source, class_name)
        return made
    except ModelError:
        raise
    except Exception as error:  # `tokenizers` raises bare exceptions
        if isinstance(source, Path) and writes and (damage := _tokenizer_damage(source)):
            raise ModelError(damage) from error
        if isinstance(source, Path) and class_name == "AutoTokenizer":
            raise ModelError(
                f"the tokenizer in {source} could not be loaded: {first_line(error)}. Save it again, or make one "
                "with `sonotune data tokenizer`."
            ) from error
        raise ModelError(_why(checkpoint, source, error)) from error


def _check_parts(processor: Any, source: Path | str, class_name: str) -> None:
    """Refuse what is no processor, and tokens without a number, which tokenizers take as they stand in their file."""
    lacking = [part for part in ("tokenizer", "feature_extractor") if not hasattr(processor, part)]
    if class_name == "AutoProcessor" and lacking:
        raise ModelError(
            f"the processor in {source} is a {type(processor).__name__} and has no {' and no '.join(lacking)}. "
            "Save the model with its processor, or copy its processor_config.json again."
        )
    tokenizer = getattr(processor, "tokenizer", processor)
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    wrong = next((token for token, index in vocabulary.items() if not isinstance(index, int) or index < 0), None)
    if wrong is not None:
        raise ModelError(
            f"the tokenizer in {source} is damaged: the token {wrong!r:.60} of its vocabulary has the number "
            f"{vocabulary[wrong]!r:.60}. Save it again, or copy its files again."
        )


_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def _tokenizer_damage(folder: Path) -> str | None:
    """What is wrong with `tokenizer.json`; None where it can be read, or is not there."""
    import tokenizers  # noqa: PLC0415

    path = folder / _TOKENIZER_FILES[0]
    if not path.is_file():
        return None
    try:
        tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  (it has no error class of its own)
        return f"{path} is damaged: {first_line(error)}. Save the tokenizer again, or copy the file again."
    return None


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
    with built_from(checkpoint):
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
        ModelError: It is missing, unreadable or unreachable, or the checkpoint names code from elsewhere.
    """
    import transformers  # noqa: PLC0415

    import sonotune.models.composed.model  # noqa: F401, PLC0415  (registers its configuration)

    if published and checkpoint in PUBLISHED and revision is None and not is_folder(checkpoint):
        return transformers.AutoConfig.for_model(**PUBLISHED[checkpoint])
    source = locate(checkpoint)
    if isinstance(source, str):
        why_unreachable()
    try:
        check_settings_files(source, revision)
        check_config_files(source, revision)  # before a reader without bounds
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
        check_entries(config.to_dict(), f"the config.json of {source}")
        return config
    except (OSError, ValueError) as error:
        if isinstance(source, str):
            raise ModelError(
                f"the hub checkpoint {checkpoint!r} could not be read ({_of_hub(error)}). "
                f"Without network, give a folder as model.checkpoint or use {_packaged(checkpoint)}."
            ) from error
        raise ModelError(f"{source} is not a model folder: config.json is missing or unreadable.") from error
    except SonotuneError:
        raise
    except Exception as error:  # which one depends on where the value is used
        raise ModelError(_wrong_value(source, error)) from error


@contextmanager
def built_from(checkpoint: str) -> Iterator[None]:
    """Turn whatever an architecture says of a value that it cannot have into a ModelError.

    It is checked nowhere before, and which error comes depends on where the value is used.
    """
    try:
        yield
    except SonotuneError:
        raise
    except Exception as error:
        raise ModelError(_wrong_value(locate(checkpoint), error)) from error


def _wrong_value(source: Path | str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the config.json of {source} holds a value that it cannot have: {said}. Copy the file again."


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
    if isinstance(source, str):
        return (
            f"the hub checkpoint {checkpoint!r} could not be loaded ({_of_hub(error)}). Without network, download it "
            f"elsewhere and give its folder as model.checkpoint, or use {_packaged(checkpoint)}."
        )
    missing = [name for name in ("config.json", "preprocessor_config.json") if not (source / name).is_file()]
    if "preprocessor_config.json" in str(error) and not (source / "processor_config.json").is_file():
        return f"{source} is not a model folder: {' and '.join(missing)} missing. Save the model with its processor."
    if not any(source.glob("*.safetensors")):
        return f"{source} has no safetensors weights; pickled weights (.bin, .pt) are refused. Convert it first."
    return f"{source} could not be loaded: {first_line(error)}"


def _of_hub(error: Exception) -> str:
    """Why something of the hub is not to be had."""
    reason, said = why_unreachable(), first_line(error) or type(error).__name__
    if reason is None:
        return said
    # The client says so of what it looked for in its cache in vain; anything else is wrong with a copy that is here.
    return f"{reason}, and no copy of it is on this machine" if "cache" in str(error).lower() else f"{said}; {reason}"


def _packaged(checkpoint: str) -> str:
    """The packaged model that is of the kind of one that cannot be had; all of them where the name does not say."""
    known = str(PUBLISHED.get(checkpoint, {}).get("model_type", checkpoint)).lower().replace("_", "-")
    for name in in_order("families"):
        family = resolve("families", name)
        if family.published_names and re.search(family.published_names, known):
            return f"the packaged model={family.packaged}"
    return "a packaged one: model=whisper_nano, ctc_nano or qwen3_asr_nano to transcribe, ast_nano to classify"


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
    return weights_digest(source)


def settings_digest(checkpoint: str, *, within: Sequence[str] = ()) -> str:
    """Digest of the files beside the weights that decide what a model computes: features, tokens and the like.

    Args:
        checkpoint: Packaged or local model, or a hub name, whose commit says all of it.
        within: Composed models that name this one as a part.

    Raises:
        ModelError: A composed model is a part of itself.
    """
    if checkpoint in within:
        raise ModelError(f"{checkpoint} names itself as a part. Compose the model again.")
    source = locate(checkpoint)
    if isinstance(source, str):
        return digest_json(source)
    files = sorted(
        path
        for pattern in _SETTINGS
        for path in source.glob(pattern)
        if path.name not in _NOT_SETTINGS and path.is_file()
    )
    found = {path.name: digest_file(path) for path in files}
    return digest_json(
        {**found, **{part: settings_digest(part, within=(*within, checkpoint)) for part in _parts_of(source)}}
    )


def _parts_of(source: Path) -> list[str]:
    """Checkpoints that a composed model names instead of having weights."""
    config = read_config(str(source), None)
    named = getattr(config, "parts", None) or {}
    return [named[part] for part in ("encoder", "language_model") if isinstance(named.get(part), str)]


_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_SETTINGS = ("sonotune.json", "parity.json")  # what is known of the model; the context is checked by itself


def architecture_digest(config: Any) -> str:
    """Identity of an architecture without weights."""
    return digest_json(json.loads(config.to_json_string(use_diff=False)))[:16]
