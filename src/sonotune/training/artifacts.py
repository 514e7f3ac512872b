"""Keep what was trained: the adapter, or the model after full fine-tuning. A folder that exists is whole."""

from __future__ import annotations

from safetensors import SafetensorError

from sonotune.adapters.kinds.base import kind_of
from sonotune.models.base import LoadedModel
from sonotune.models.checkpoints import as_os_error
from sonotune.runs import write_error
from sonotune.runs.folders import replacing
from sonotune.training.adaptation import unquantized
from sonotune.training.model import PreparedModel
from sonotune.training.session import Session
from sonotune.training.sharding import full_tensors, is_sharded


def save_artifacts(session: Session, model: PreparedModel) -> None:
    """Write the adapter, or the whole model where there is none, beside its final name and rename it.

    All processes have to come here, for the weights may be sharded; the first one writes.

    Args:
        session: The run; an older `adapter/` or `model/` in its directory is replaced.
        model: The trained model.

    Raises:
        ResourceError: The disk is full; nothing half written is left.
        RunDirectoryError: The directory cannot be written.
    """
    loaded, directory = model.loaded, session.log.directory
    weights = full_tensors(loaded.module.state_dict()) if is_sharded(loaded.module) else None
    if not session.compute.processes.main:
        return
    kind = kind_of(loaded)
    folder = directory.path / kind.folder
    try:
        with replacing(folder, alone=True) as draft:
            kind.save(loaded, draft, extra=_metadata(session, model), weights=weights)
            if loaded.adapter is not None and loaded.new_outputs and hasattr(loaded.processor, "tokenizer"):
                loaded.processor.tokenizer.save_pretrained(draft)  # the base has another vocabulary, or none
    except (OSError, SafetensorError) as error:
        raise write_error(as_os_error(error), folder, _size(loaded)) from error


def _size(loaded: LoadedModel) -> int:
    kept = [value for value in loaded.module.parameters() if loaded.adapter is None or value.requires_grad]
    return sum(value.numel() * value.element_size() for value in kept)


def _metadata(session: Session, model: PreparedModel) -> dict[str, object]:
    """What `sonotune.json` says of a run."""
    config = session.config
    return {
        "bits": model.bits,
        "double": config.quantization.double,
        "quantization_skip": list(unquantized(config)),
        "language": session.log.record.model["language"],
        "text_scoring": config.data.text_scoring,
        "min_duration_s": config.data.min_duration_s,
        "max_duration_s": config.data.max_duration_s,
        "multi_label": config.data.multi_label,
        "silence_db": config.data.silence_db,
        "primary": config.evaluation.primary,
        "scores": list(config.evaluation.scores),
        "outputs": list(model.loaded.new_outputs),
        "run": session.log.record.run_id,
    }
