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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from sonotune.adapters.kinds.base import kind_of, read_tensors
from sonotune.adapters.merge import MergeProof, MergeTarget, compare_logits, merge_into
from sonotune.adapters.metadata import (
    BESIDE,
    EXPORT_MARK,
    METADATA_SCHEMA,
    PEFT_CONFIG,
    absolute_folder,
    name_for_peft,
    peft_entries,
    read_entries,
    read_metadata,
    use_of,
    write_metadata,
)
from sonotune.adapters.plain import PlainAdapter, applied, plain_adapter, write_plain
from sonotune.errors import AdapterError, ConfigError, ModelError, RunDirectoryError
from sonotune.loading import Opened, base_of, choose_family, find_adapter, open_model, own_output_layer
from sonotune.models.base import MULTI_LABEL, LoadedModel
from sonotune.models.beside import save_processor, save_use_of_adapter
from sonotune.models.checkpoints import as_os_error
from sonotune.models.decoding_defaults import set_decoding_defaults
from sonotune.models.frame_merging.settings import NO_MERGING
from sonotune.models.precision import DTYPES
from sonotune.models.probe import probe_logits
from sonotune.models.weight_files import weights_digest
from sonotune.paths import is_file
from sonotune.progress import phase
from sonotune.registry import is_asset
from sonotune.runs import digest_file, read_record, write_error
from sonotune.runs.folders import in_use, replacing
from sonotune.serving.baking import BakeSettings, bake_gates
from sonotune.serving.parity import PARITY_FILE, ParitySettings, check_parity
from sonotune.types import RunRecord

logger = logging.getLogger(__name__)

ExportDtype = Literal["auto", "fp32", "bf16", "fp16"]
LARGEST_MERGE_ERROR = 1e-3
CARD_FILE = "README.md"
BASE_FOLDER = "base"
"""In the export of a plain adapter: the base with what was trained beside the adapter."""
_TEXTS: Final = frozenset({".md", ".json", ".jinja", ".txt"})
_OLD_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")  # exports that list no files have these


def export(
    checkpoint: str,
    folder: Path,
    *,
    target: MergeTarget = "dequantized",
    dtype: ExportDtype = "auto",
    adapter_only: bool = False,
    plain: bool = False,
    overwrite: bool = False,
    parity: ParitySettings | None = None,
    baking: BakeSettings | None = None,
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
        plain: Write the adapter with one rank and one scale for all modules, for tools that know no others, and what
            was trained beside it into a copy of the base (`adapters.plain`), which `target` and `dtype` are about.
        overwrite: Replace an earlier export; any other folder is refused.
        parity: How the export is compared with the run by the tool that will serve it; None compares nothing.
        baking: How gates are put at their means, which a merge needs where they depend on what is heard; None refuses
            such an adapter.
        finish: Adds to the folder before it takes its name, such as its card.

    Returns:
        What was written, how far its logits are from the adapted model's, and `parity` (`serving.parity`), which the
        export holds as `parity.json`.

    Raises:
        AdapterError: The merge changed the function, or the adapter has no plain form.
        ConfigError: `plain` without `adapter_only`.
        RunDirectoryError: The folder exists, or cannot be written.
        ResourceError: The disk is full; nothing half written is left.
    """
    if plain and not adapter_only:
        raise ConfigError("--plain is a form of an adapter: pass --adapter too. A merged model is plain as it is.")
    if adapter_only and not plain and baking is not None:
        baking.refuse_tolerance("an adapter is copied with its gates as they are")
    folder = folder.resolve()
    _check_place(folder, overwrite=overwrite)
    _warn_of_merging(checkpoint)
    with _writing(folder, 0), replacing(folder) as draft:
        if plain:
            result = _write_plain(checkpoint, draft, folder, target=target, dtype=dtype, baking=baking)
        elif adapter_only:
            result = _copy_adapter(checkpoint, draft, folder)
        else:
            result = _merge(checkpoint, draft, target=target, dtype=dtype, baking=baking)
        result |= _calibration_of(checkpoint)
        _write_mark(draft, result)
        if parity is not None:
            gc.collect()  # the merged model is not needed beside those that are compared
            result |= {"parity": check_parity(checkpoint, draft, parity, adapter=adapter_only)}
            found = json.dumps(result["parity"], indent=2, ensure_ascii=False) + "\n"
            (draft / PARITY_FILE).write_bytes(found.encode("utf-8", "backslashreplace"))
        if finish is not None:
            finish(draft)
        _write_digests(draft)
        _check_place(folder, overwrite=overwrite)  # that was minutes ago
    return {"export": str(folder), "bytes": _size(folder), **result}


def _warn_of_merging(checkpoint: str) -> None:
    """Other tools know nothing of frame merging, and compute more than the weights were trained to."""
    if found := use_of(checkpoint).get("frame_merging"):
        logger.warning(
            "%s was trained with frame_merging.ratio=%g and frame_merging.audio_ratio=%g. sonotune merges in the "
            "export as well, by its %s; plain transformers merges nothing and computes another function. What that "
            "changes is measured where clips are compared (parity.json).",
            checkpoint,
            found.get("ratio", 0.0),
            found.get("audio_ratio", 0.0),
            EXPORT_MARK,
        )


def _write_mark(draft: Path, result: dict[str, Any]) -> None:
    """By which an export is known, and what in its folder is its own."""
    files = {path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()}
    entries = {"schema": METADATA_SCHEMA, **result, "files": sorted(files | {EXPORT_MARK, PARITY_FILE, CARD_FILE})}
    (draft / EXPORT_MARK).write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_digests(draft: Path) -> None:
    """What the texts beside the weights hold, so that a card that somebody has edited is known as theirs."""
    entries = read_entries(draft / EXPORT_MARK)
    texts = [path for path in draft.rglob("*") if path.suffix in _TEXTS and path.name != EXPORT_MARK]
    entries["digests"] = {path.relative_to(draft).as_posix(): digest_file(path) for path in sorted(texts)}
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
    if changed := _changed_files(folder):
        raise RunDirectoryError(
            f"{changed[0]} in {folder} was changed since it was exported, and would be lost. Move it, or give another "
            "folder."
        )


def _changed_files(folder: Path) -> list[str]:
    """Texts of an export that somebody has edited."""
    digests = read_entries(folder / EXPORT_MARK).get("digests") if (folder / EXPORT_MARK).is_file() else None
    if not isinstance(digests, dict):  # an older export
        return []
    return [name for name, digest in digests.items() if is_file(folder / name) and digest_file(folder / name) != digest]


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


def _adapter_of(checkpoint: str) -> Path:
    """The folder of an adapter whose weights are whole."""
    adapter = find_adapter(checkpoint)
    if adapter is None:
        raise AdapterError(
            f"{checkpoint} has no adapter to export; it was trained in full. Export it without --adapter."
        )
    read_tensors(adapter)
    return adapter


def _copy_adapter(checkpoint: str, draft: Path, folder: Path) -> dict[str, Any]:
    adapter = _adapter_of(checkpoint)
    metadata = read_metadata(adapter)
    files = [path for path in adapter.rglob("*") if path.name != PARITY_FILE]  # that is of an earlier export
    if links := sorted(path.name for path in files if path.is_symlink() and not _is_in_hub_cache(path, adapter)):
        raise AdapterError(f"{adapter / links[0]} is a link, and what it names may be no part of the adapter. Copy it.")
    with _writing(draft, _size(adapter)):
        shutil.copytree(adapter, draft, ignore=shutil.ignore_patterns(PARITY_FILE), dirs_exist_ok=True)
        _name_base_for_peft(draft, str(metadata.get("checkpoint") or ""), folder)
        decoding = _save_use(checkpoint, adapter, draft)
    return {"kind": "adapter", **metadata, **use_of(checkpoint), **decoding}


def _is_in_hub_cache(link: Path, snapshot: Path) -> bool:
    """Whether it is a file of the cache of `huggingface_hub`: `snapshots/REVISION/FILE` -> `blobs/HASH`."""
    return link.resolve().parent == snapshot.resolve().parent.parent / "blobs"


def _name_base_for_peft(draft: Path, base: str, folder: Path) -> None:
    """Plain PEFT knows no packaged bases, which older versions named, and no base beside an adapter."""
    path = draft / PEFT_CONFIG
    named = str(peft_entries(draft).get("base_model_name_or_path") or "") if path.is_file() else ""
    known = str(folder / base) if base.startswith(BESIDE) else name_for_peft(named)
    if path.is_file() and named != known:
        entries = {**json.loads(path.read_text("utf-8")), "base_model_name_or_path": known}
        path.write_text(json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _save_use(checkpoint: str, adapter: Path, folder: Path) -> dict[str, Any]:
    """`preprocessor_config.json` and `generation_config.json` beside an adapter, where its base can be read."""
    metadata = read_metadata(adapter)
    base = base_of(adapter, metadata)
    on_hub = not (is_asset(base) or Path(base).is_dir())
    try:
        decoding = save_use_of_adapter(
            base,
            folder,
            revision=metadata.get("revision") if on_hub else None,
            family=choose_family(checkpoint).name,
            language=use_of(checkpoint).get("language"),
            **_scored_with(checkpoint),
        )
    except ModelError as error:
        logger.warning("the adapter is exported without its features and decoding settings: %s", error)
        return {}
    return {"decoding": decoding}


def _write_plain(
    checkpoint: str,
    draft: Path,
    folder: Path,
    *,
    target: MergeTarget,
    dtype: ExportDtype,
    baking: BakeSettings | None,
) -> dict[str, Any]:
    adapter = _adapter_of(checkpoint)
    opened = open_model(checkpoint, precision="fp32", merging=NO_MERGING)
    loaded = opened.loaded
    baked = bake_gates(opened, baking)
    plain = plain_adapter(loaded)
    before = probe_logits(loaded)
    entries, copy = dict(opened.settings), dict[str, Any]()
    base = name_for_peft(loaded.checkpoint)
    if plain.beside:
        copy = _write_base(opened, checkpoint, draft / BASE_FOLDER, plain, before, target=target, dtype=dtype)
        revision = weights_digest(draft / BASE_FOLDER)
        entries |= {"checkpoint": f"{BESIDE}{BASE_FOLDER}", "revision": revision, "bits": 16, "outputs": []}
        base = str(folder / BASE_FOLDER)
    else:
        with kind_of(loaded).disabled(loaded), applied(loaded, plain):
            proof = compare_logits(before, probe_logits(loaded))
        _check_same(proof, "the plain adapter", checked=True)
        copy = {"merge": asdict(proof)}
        entries |= {"checkpoint": absolute_folder(loaded.checkpoint)}
    with _writing(draft, sum(a.numel() + b.numel() for a, b in plain.factors.values()) * 4):
        write_plain(plain, draft, base=base)
        write_metadata(loaded, draft, extra={**entries, "adapter": "lora"})  # what is written, whatever it was made of
        decoding = _save_use(checkpoint, adapter, draft)
    copy |= {"baked": baked} if baked else {}
    beside = {"rank": plain.rank, "base": BASE_FOLDER if plain.beside else None, "beside": list(plain.beside)}
    return {"kind": "adapter", **entries, **use_of(checkpoint), **decoding, **copy, "plain": beside}


def _write_base(
    opened: Opened,
    checkpoint: str,
    folder: Path,
    plain: PlainAdapter,
    before: Tensor,
    *,
    target: MergeTarget,
    dtype: ExportDtype,
) -> dict[str, Any]:
    """The base with all that was trained but the plain adapter."""
    with phase("copying the base"):
        base = merge_into(opened.loaded, _fresh(opened, checkpoint), target=target, apart=plain.factors)
    with applied(base, plain):
        proof = compare_logits(before, probe_logits(base))
    _check_same(proof, "the plain adapter over the copy of its base", checked=target == "dequantized")
    saved = _save_model(base, opened, checkpoint, folder, dtype=dtype, within=lambda: applied(base, plain))
    write_metadata(base, folder, extra=use_of(checkpoint))
    return {"target": target, "merge": asdict(proof), **saved}


def _merge(
    checkpoint: str, folder: Path, *, target: MergeTarget, dtype: ExportDtype, baking: BakeSettings | None
) -> dict[str, Any]:
    opened = open_model(checkpoint, precision="fp32", merging=NO_MERGING)
    baked = bake_gates(opened, baking)
    with phase("merging"):
        merged, proof = merged_model(opened, checkpoint, target=target)
    saved = _save_model(merged, opened, checkpoint, folder, dtype=dtype)
    adapted = opened.loaded.adapter is not None
    return {
        "kind": "merged" if proof else "model",
        "target": target,
        "base": opened.loaded.checkpoint if adapted else checkpoint,
        "merge": asdict(proof) if proof else None,
        **({"baked": baked} if baked else {}),
        "context": opened.loaded.context,
        "trained_contexts": list(opened.loaded.trained_contexts),
        "thinning": asdict(opened.loaded.thinning),
        "tokens_per_second": opened.loaded.tokens_per_second,
        **saved,
        **use_of(checkpoint),
    }


def _save_model(
    model: LoadedModel,
    opened: Opened,
    checkpoint: str,
    folder: Path,
    *,
    dtype: ExportDtype,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """Write a plain model in its type, with what other tools read beside it; returns what rounding did."""
    chosen = _choose_dtype(model) if dtype == "auto" else dtype
    rounded = _round(model, DTYPES[chosen], within)
    _check_finite(
        rounded, f"the model in {chosen}", "Take --dtype fp32; where that fails too, the weights are damaged."
    )
    decoding = set_decoding_defaults(
        model.module,
        getattr(model.processor, "tokenizer", None),
        family=opened.loaded.family.name,
        language=use_of(checkpoint).get("language"),
        **_scored_with(checkpoint),
    )
    with _writing(folder, sum(value.numel() * value.element_size() for value in model.module.parameters())):
        model.module.save_pretrained(folder, safe_serialization=True)
        save_processor(model.processor, folder)
    return {"dtype": chosen, "rounding": asdict(rounded), "decoding": decoding}


def _record_of(checkpoint: str) -> RunRecord | None:
    folder = Path(checkpoint)
    return read_record(folder) if (folder / "run.json").is_file() else None


def _scored_with(checkpoint: str) -> dict[str, Any]:
    """Decoding settings that a run is scored with and other tools have as well; empty for what is no run."""
    record = _record_of(checkpoint)
    asked = {} if record is None else record.config.get("evaluation", {})
    names = ("beam_size", "length_penalty", "no_repeat_ngram_size", "repetition_penalty")
    return {name: asked[name] for name in names if isinstance(asked.get(name), int | float)}


def _calibration_of(checkpoint: str) -> dict[str, Any]:
    """How word confidences are made, of a run that was calibrated."""
    record = _record_of(checkpoint)
    made = None if record is None else record.confidence.get("calibration")
    return {} if made is None else {"calibration": made}


def merged_model(opened: Opened, checkpoint: str, *, target: MergeTarget) -> tuple[LoadedModel, MergeProof | None]:
    """A plain model of the same function, and the proof; the proof is None where there was nothing to merge.

    Raises:
        AdapterError: The merged logits are not the adapted model's.
    """
    if opened.loaded.adapter is None:
        return opened.loaded, None
    fresh = _fresh(opened, checkpoint)
    before = probe_logits(opened.loaded)
    merged = merge_into(opened.loaded, fresh, target=target)
    proof = compare_logits(before, probe_logits(merged))
    _check_same(proof, "the merged model", checked=target == "dequantized")
    return merged, proof


def _fresh(opened: Opened, checkpoint: str) -> LoadedModel:
    """The base once more, in fp32, with an output layer as the adapter's."""
    adapter = find_adapter(checkpoint)
    layer = own_output_layer(adapter, opened.settings) if adapter else {}
    loaded = opened.loaded
    fresh = loaded.family.load(loaded.checkpoint, context=loaded.context, **layer)
    if opened.settings.get("multi_label"):
        fresh.module.config.problem_type = MULTI_LABEL
    return fresh


def _check_same(proof: MergeProof, what: str, *, checked: bool) -> None:
    _check_finite(proof, what, "The weights are damaged, or training ended in NaN: take another run.")
    # Not `>`: what cannot be compared is not proven.
    if checked and not proof.largest <= LARGEST_MERGE_ERROR * max(1.0, proof.scale):
        raise AdapterError(
            f"{what} is not the adapted one: logits differ by {proof.largest:.3g} of {proof.scale:.3g}. "
            "Nothing was written; please report this with the run's record."
        )


def _check_finite(proof: MergeProof, what: str, advice: str) -> None:
    if not (math.isfinite(proof.largest) and math.isfinite(proof.scale)):
        raise AdapterError(
            f"{what} gives no numbers: the largest logit difference is {proof.largest} of {proof.scale}. "
            f"Nothing was written. {advice}"
        )


def _choose_dtype(loaded: LoadedModel) -> Literal["bf16", "fp16"]:
    largest = max(float(parameter.detach().abs().max()) for parameter in loaded.module.parameters())
    return "fp16" if largest < torch.finfo(torch.float16).max / 2 else "bf16"


def _round(model: LoadedModel, dtype: torch.dtype, within: Callable[[], AbstractContextManager[None]]) -> MergeProof:
    """Cast the module to its saved type; returns what that does to the logits."""
    with within():
        before = probe_logits(model)
    model.module.to(dtype)
    with within():
        as_saved = probe_logits(model.with_(module=model.module.float()))
    model.module.to(dtype)
    return compare_logits(before, as_saved)
