"""Hand a trained model on: merged into plain weights, or as an adapter; proven before it is called done.

An export is written beside its final name and renamed when its proof has passed, so a folder that exists is whole.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from sonotune.adapters.kinds.base import read_tensors
from sonotune.adapters.merge import MergeProof, MergeTarget, compare_logits, merge_into
from sonotune.adapters.metadata import EXPORT_MARK, read_entries, read_metadata, use_of
from sonotune.errors import AdapterError, RunDirectoryError
from sonotune.loading import Opened, find_adapter, model_folder, open_model, own_output_layer
from sonotune.models.base import MULTI_LABEL, LoadedModel
from sonotune.models.checkpoints import as_os_error
from sonotune.models.decoding_defaults import set_decoding_defaults
from sonotune.models.precision import DTYPES
from sonotune.models.probe import probe_logits
from sonotune.progress import phase
from sonotune.runs import read_record, write_error
from sonotune.runs.folders import in_use, replacing
from sonotune.serving.parity import PARITY_FILE, ParitySettings, check_parity

logger = logging.getLogger(__name__)

ExportDtype = Literal["auto", "fp32", "bf16", "fp16"]
LARGEST_MERGE_ERROR = 1e-3
CARD_FILE = "README.md"
_OLD_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")  # exports that list no files have these


def export(
    checkpoint: str,
    folder: Path,
    *,
    target: MergeTarget = "dequantized",
    dtype: ExportDtype = "auto",
    adapter_only: bool = False,
    overwrite: bool = False,
    parity: ParitySettings | None = None,
    finish: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Write a model that plain `transformers` (or plain PEFT) loads.

    Args:
        checkpoint: A run, an adapter folder, or a model folder.
        folder: Where to write.
        target: Merge into the weights the adapter was trained over, or into the checkpoint's own 16-bit weights
            (another function when the base was quantised: evaluate it again).
        dtype: Of the saved weights; `auto` takes fp16 where every weight fits its range, else bf16.
        adapter_only: Copy the adapter instead of merging it.
        overwrite: Replace an earlier export; any other folder is refused.
        parity: How the export is compared with the run by the tool that will serve it; None compares nothing.
        finish: Adds to the folder before it takes its name, such as its card.

    Returns:
        What was written, how far its logits are from the adapted model's, and `parity` (`serving.parity`), which the
        export holds as `parity.json`.

    Raises:
        AdapterError: The merge changed the function.
        RunDirectoryError: The folder exists, or cannot be written.
        ResourceError: The disk is full; nothing half written is left.
    """
    folder = folder.resolve()
    _check_place(folder, overwrite=overwrite)
    with _writing(folder, 0), replacing(folder) as draft:
        result = (
            _copy_adapter(checkpoint, draft) if adapter_only else _merge(checkpoint, draft, target=target, dtype=dtype)
        )
        _write_mark(draft, result)
        if parity is not None:
            gc.collect()  # the merged model is not needed beside those that are compared
            result |= {"parity": check_parity(checkpoint, draft, parity, adapter=adapter_only)}
            found = json.dumps(result["parity"], indent=2, ensure_ascii=False) + "\n"
            (draft / PARITY_FILE).write_bytes(found.encode("utf-8", "backslashreplace"))
        if finish is not None:
            finish(draft)
        _check_place(folder, overwrite=overwrite)  # that was minutes ago
    return {"export": str(folder), "bytes": _size(folder), **result}


def _write_mark(draft: Path, result: dict[str, Any]) -> None:
    """By which an export is known, and what in its folder is its own."""
    files = {path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()}
    entries = {**result, "files": sorted(files | {EXPORT_MARK, PARITY_FILE, CARD_FILE})}
    (draft / EXPORT_MARK).write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _check_place(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if in_use(folder):
        raise RunDirectoryError(f"{folder} is where this command runs, and cannot be replaced. Run it from elsewhere.")
    if not overwrite:
        raise RunDirectoryError(f"{folder} exists already. Give another folder, or pass --overwrite.")
    if not (folder / EXPORT_MARK).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise RunDirectoryError(f"{folder} is no earlier export (it has no {EXPORT_MARK}), so it is not replaced.")
    if foreign := _foreign_files(folder):
        raise RunDirectoryError(
            f"{folder} holds {len(foreign)} files that no export wrote, such as {foreign[0]}, and would lose them. "
            "Move them, or give another folder."
        )


def _foreign_files(folder: Path) -> list[str]:
    """Files in the folder of an export that are somebody else's; of an older export by what such files are called."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    entries = read_entries(folder / EXPORT_MARK) if files else {}
    own = entries.get("files")
    if isinstance(own, list):
        return [name for name in files if name not in own]
    return [name for name in files if "/" in name or not (name == CARD_FILE or name.endswith(_OLD_SUFFIXES))]


@contextmanager
def _writing(folder: Path, num_bytes: int) -> Iterator[None]:
    """Turn a failed write into the error that names the folder and what it needs."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise write_error(as_os_error(error), folder, num_bytes, choose="the folder to export to") from error


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _copy_adapter(checkpoint: str, folder: Path) -> dict[str, Any]:
    adapter = find_adapter(checkpoint)
    if adapter is None:
        raise AdapterError(
            f"{checkpoint} has no adapter to export; it was trained in full. Export it without --adapter."
        )
    metadata = read_metadata(adapter)
    read_tensors(adapter)
    files = [path for path in adapter.rglob("*") if path.name != PARITY_FILE]  # that is of an earlier export
    if links := sorted(path.name for path in files if path.is_symlink()):
        raise AdapterError(f"{adapter / links[0]} is a link, and what it names may be no part of the adapter. Copy it.")
    with _writing(folder, _size(adapter)):
        shutil.copytree(adapter, folder, ignore=shutil.ignore_patterns(PARITY_FILE), dirs_exist_ok=True)
    return {"kind": "adapter", **metadata, **use_of(checkpoint)}


def _merge(checkpoint: str, folder: Path, *, target: MergeTarget, dtype: ExportDtype) -> dict[str, Any]:
    opened = open_model(checkpoint, precision="fp32")
    with phase("merging"):
        merged, proof = merged_model(opened, checkpoint, target=target)
    chosen = _choose_dtype(merged) if dtype == "auto" else dtype
    rounded = _round(merged, opened, DTYPES[chosen])
    _check_finite(
        rounded, f"the model in {chosen}", "Take --dtype fp32; where that fails too, the weights are damaged."
    )
    used = use_of(checkpoint)
    decoding = set_decoding_defaults(
        merged.module,
        getattr(merged.processor, "tokenizer", None),
        family=opened.loaded.family.name,
        language=used.get("language"),
        **_scored_with(checkpoint),
    )
    with _writing(folder, sum(value.numel() * value.element_size() for value in merged.module.parameters())):
        merged.module.save_pretrained(folder, safe_serialization=True)
        merged.processor.save_pretrained(folder)
    return {
        "kind": "merged" if proof else "model",
        "target": target,
        "dtype": chosen,
        "base": opened.settings.get("checkpoint", checkpoint),
        "merge": asdict(proof) if proof else None,
        "rounding": asdict(rounded),
        "context": opened.loaded.context,
        "trained_contexts": list(opened.loaded.trained_contexts),
        "thinning": asdict(opened.loaded.thinning),
        "decoding": decoding,
        **used,
    }


def _scored_with(checkpoint: str) -> dict[str, Any]:
    """Decoding settings that a run is scored with and other tools have as well; empty for what is no run."""
    if not (Path(checkpoint) / "run.json").is_file():
        return {}
    asked = read_record(Path(checkpoint)).config.get("evaluation", {})
    names = ("beam_size", "no_repeat_ngram_size", "repetition_penalty")
    return {name: asked[name] for name in names if isinstance(asked.get(name), int | float)}


def merged_model(opened: Opened, checkpoint: str, *, target: MergeTarget) -> tuple[LoadedModel, MergeProof | None]:
    """A plain model of the same function, and the proof; the proof is None where there was nothing to merge.

    Raises:
        AdapterError: The merged logits are not the adapted model's.
    """
    if opened.loaded.adapter is None:
        return opened.loaded, None
    base = model_folder(opened.settings.get("checkpoint", "") or opened.loaded.checkpoint)
    adapter = find_adapter(checkpoint)
    layer = own_output_layer(adapter, opened.settings) if adapter else {}
    fresh = opened.loaded.family.load(base, context=opened.loaded.context, **layer)
    if opened.settings.get("multi_label"):
        fresh.module.config.problem_type = MULTI_LABEL
    before = probe_logits(opened.loaded)
    merged = merge_into(opened.loaded, fresh, target=target)
    proof = compare_logits(before, probe_logits(merged))
    _check_finite(proof, "the merged model", "The weights are damaged, or training ended in NaN: take another run.")
    # Not `>`: what cannot be compared is not proven.
    if target == "dequantized" and not proof.largest <= LARGEST_MERGE_ERROR * max(1.0, proof.scale):
        raise AdapterError(
            f"the merged model is not the adapted one: logits differ by {proof.largest:.3g} of {proof.scale:.3g}. "
            "Nothing was written; please report this with the run's record."
        )
    return merged, proof


def _check_finite(proof: MergeProof, what: str, advice: str) -> None:
    if not (math.isfinite(proof.largest) and math.isfinite(proof.scale)):
        raise AdapterError(
            f"{what} gives no numbers: the largest logit difference is {proof.largest} of {proof.scale}. "
            f"Nothing was written. {advice}"
        )


def _choose_dtype(loaded: LoadedModel) -> Literal["bf16", "fp16"]:
    largest = max(float(parameter.detach().abs().max()) for parameter in loaded.module.parameters())
    return "fp16" if largest < torch.finfo(torch.float16).max / 2 else "bf16"


def _round(merged: LoadedModel, opened: Opened, dtype: torch.dtype) -> MergeProof:
    """Cast the module to its saved type; returns what that does to the logits."""
    before = probe_logits(merged)
    merged.module.to(dtype)
    as_saved = probe_logits(merged.with_(module=merged.module.float()))
    merged.module.to(dtype)
    return compare_logits(before, as_saved)
