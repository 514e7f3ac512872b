"""Folders of models and adapters: configurations, tokenizers, tables of weights, and what sonotune notes of them."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from harness import Files, Target, attempt
from mutations import damage_bytes, damage_folder, damage_json_file

_SMALL: Final = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_source_positions": 750,
}
_WAVEFORM: Final = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 8),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


# --- models --------------------------------------------------------------------------------------


def _check_model(folder: Path) -> None:
    """As `inspect`, `plan` and everything that opens a model do."""
    from sonotune.adapters.metadata import use_of
    from sonotune.api import inspect
    from sonotune.loading import open_model
    from sonotune.models.checkpoints import settings_digest

    place = str(folder / "model")
    attempt(use_of, place)
    attempt(inspect, [f"model={place}"])
    attempt(settings_digest, place)
    opened = attempt(open_model, place)
    if opened is not None:
        sum(parameter.numel() for parameter in opened.loaded.module.parameters())


def _check_outline(folder: Path) -> None:
    """The configuration alone, which is many times faster to read."""
    from sonotune.loading import choose_family
    from sonotune.planning.inspection import inspect_model

    place = str(folder / "model")
    attempt(choose_family, place)
    attempt(inspect_model, place)


def _whisper(folder: Path) -> None:
    import transformers

    from sonotune.registry import resolve_asset

    source = resolve_asset("assets:whisper-nano")
    config = transformers.WhisperConfig.from_pretrained(source)
    config.update(_SMALL)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    for file in source.iterdir():
        if file.suffix == ".json" and file.name not in ("config.json", "run.json", "sonotune.json"):
            (folder / file.name).write_bytes(file.read_bytes())


def _ctc(folder: Path) -> None:
    import transformers

    from sonotune.models.families.ctc import character_tokenizer

    tokenizer = character_tokenizer([*"abcdefgh"])
    config = transformers.Wav2Vec2Config(**_WAVEFORM, vocab_size=len(tokenizer), pad_token_id=0)
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)


def _ast(folder: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ASTConfig(
        **sizes, num_mel_bins=32, max_length=64, id2label=dict(enumerate(["flam", "drag", "roll"]))
    )
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)


def _other_configs() -> list[Files]:
    """Configurations of the packaged models: Qwen3-ASR, and one that is composed of parts."""
    from sonotune.registry import resolve_asset

    return [
        {"model/config.json": (resolve_asset(f"assets:{name}") / "config.json").read_bytes()}
        for name in ("qwen3-asr-nano", "speech-llm-nano", "whisper-nano", "ctc-nano", "ast-nano")
    ]


@functools.cache
def _made(make: Callable[[Path], None], *, index: bool = False) -> Files:
    """The files of a model; `index` adds a table of its weights, as large models have."""
    import torch

    torch.manual_seed(3)
    with tempfile.TemporaryDirectory() as place:
        make(Path(place))
        files = {f"model/{path.name}": path.read_bytes() for path in sorted(Path(place).iterdir()) if path.is_file()}
    if index:
        files["model/part.safetensors"] = files.pop("model/model.safetensors")
        names = [name for name in _tensor_names(files["model/part.safetensors"]) if name != "__metadata__"]
        table = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "part.safetensors")}
        files["model/model.safetensors.index.json"] = json.dumps(table).encode()
    return files


def _tensor_names(data: bytes) -> list[str]:
    return list(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))


def _model_seeds() -> list[Files]:
    note = json.dumps({"schema": 1, "family": "ctc", "context": "cut", "outputs": ["a"], "language": "en"}).encode()
    whole = [_made(make) for make in (_whisper, _ctc, _ast)]
    return [*whole, _made(_ctc, index=True), {**whole[1], "model/sonotune.json": note}]


def _damage_tensors(rng: random.Random, data: bytes) -> bytes:
    """The table at the head of a file of tensors, or any of its bytes."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3 or 8 + size > len(data):
        return damage_bytes(rng, data)
    head = damage_json_file(rng, data[8 : 8 + size])
    length = len(head) if rng.random() < 0.9 else rng.getrandbits(64)
    return length.to_bytes(8, "little") + head + data[8 + size :]


_MODEL_FILES: Final = {
    "model/config.json": damage_json_file,
    "processor_config.json": damage_json_file,
    ".safetensors": _damage_tensors,
    ".json": damage_json_file,
}


# --- adapters ------------------------------------------------------------------------------------


def _check_adapter(folder: Path) -> None:
    """As everything that opens an adapter does, and `inspect`."""
    from sonotune.adapters.metadata import use_of
    from sonotune.api import inspect
    from sonotune.loading import open_model

    place = str(folder / "adapter")
    attempt(use_of, place)
    attempt(inspect, [f"model={place}"])
    attempt(open_model, place)


def _check_notes(folder: Path) -> None:
    """Both descriptions of an adapter, without its base: what comes before any weight."""
    from sonotune.adapters.kinds.patterns import check_patterns
    from sonotune.adapters.metadata import peft_entries, read_metadata, use_of
    from sonotune.loading import base_of, find_adapter, own_output_layer, recorded_contexts, storage

    place = folder / "adapter"
    adapter = attempt(find_adapter, str(place))
    settings = attempt(read_metadata, place)
    attempt(use_of, str(place))
    if settings is not None and adapter is not None:
        base = attempt(base_of, adapter, settings)
        if base is not None:
            attempt(recorded_contexts, adapter, settings, base)
        attempt(own_output_layer, adapter, settings)
        attempt(storage, settings, bits="auto", double=True, skip=(), parameters=1, device="cpu")
        modules = [f"encoder.layers.{index}.{name}" for index in range(40) for name in ("fc1", "fc2", "q_proj")]
        attempt(check_patterns, peft_entries(adapter), modules, file="adapter_config.json")


def _adapter_seeds() -> list[Files]:
    from sonotune.adapters.kinds import lora
    from sonotune.adapters.ranks.plan import RankPlan, unit_costs
    from sonotune.adapters.targets import resolve_targets
    from sonotune.loading import open_model

    base = {name.replace("model/", "base/", 1): data for name, data in _made(_ctc).items()}
    with tempfile.TemporaryDirectory() as place:
        for name, data in base.items():
            path = Path(place) / name
            path.parent.mkdir(exist_ok=True)
            assert isinstance(data, bytes)
            path.write_bytes(data)
        loaded = open_model(str(Path(place) / "base")).loaded
        names = resolve_targets(loaded, "all_linear")
        ranks = {name: 2 + index % 2 for index, name in enumerate(names)}
        costs = unit_costs(loaded, names)
        total = sum(costs[name] * rank for name, rank in ranks.items())
        plan = RankPlan(ranks=ranks, allocator="test", parameters=total)
        folder = Path(place) / "adapter"
        adapted = lora.attach(loaded, plan, rank=2, alpha=4.0, unfreeze=("encoder.norms",))
        lora.save(adapted, folder, extra={"language": "en", "bits": 16, "min_duration_s": 0.5})
        made = {f"adapter/{path.name}": path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    for name in ("adapter/adapter_config.json", "adapter/sonotune.json"):
        made[name] = made[name].replace(f"{Path(place).resolve()}/base".encode(), b"base")
    alone = {name: data for name, data in made.items() if name != "adapter/sonotune.json"}
    return [{**base, **made}, {**base, **alone}]


def _note_seeds() -> list[Files]:
    return [{name: data for name, data in files.items() if name.startswith("adapter/")} for files in _adapter_seeds()]


_ADAPTER_FILES: Final = {
    "adapter/adapter_config.json": damage_json_file,
    "adapter/sonotune.json": damage_json_file,
    "adapter/adapter_model.safetensors": _damage_tensors,
}


# --- ranks ---------------------------------------------------------------------------------------


@functools.cache
def _outlined() -> Any:
    from sonotune.loading import choose_family

    return choose_family("assets:whisper-nano").outline("assets:whisper-nano")


def _check_ranks(folder: Path) -> None:
    """As `allocation.file` and a split that was measured before are read."""
    from sonotune.adapters.ranks.choose import RankSettings, plan_ranks, ranks_text, read_components

    plan = attempt(plan_ranks, _outlined(), RankSettings(file=folder / "ranks.json"))
    if plan is not None:
        ranks_text(plan, _outlined())
    split = attempt(read_components, folder / "split.json")
    if split is not None:
        json.dumps(split.to_json())
        split.words()
        split.sentence()


def _rank_seeds() -> list[Files]:
    from sonotune.adapters.ranks.choose import RankSettings, plan_ranks, ranks_text

    split = {
        "schema": 1,
        "stem": True,
        "unfreeze": ["encoder.norms"],
        "rates": {"stem": 0.5},
        "weights": {"encoder": 1.5},
        "gains": {"stem": 0.1, "encoder": 0.4},
        "parameters": {"stem": 100, "encoder": 900},
        "groups": ["encoder"],
    }
    plan = plan_ranks(_outlined(), RankSettings(rank=4))
    return [{"ranks.json": ranks_text(plan, _outlined()).encode(), "split.json": json.dumps(split).encode()}]


def _target(name: str, seeds: Any, how: Any, check: Callable[[Path], None], weight: float) -> Target:
    def mutate(rng: random.Random, files: Files) -> Files:
        return damage_folder(rng, files, how)

    return Target(name=name, seeds=seeds, mutate=mutate, check=check, weight=weight)


TARGETS: Final = (
    _target("ranks", _rank_seeds, {".json": damage_json_file}, _check_ranks, 5.0),
    _target("notes", _note_seeds, _ADAPTER_FILES, _check_notes, 5.0),
    _target("adapter", _adapter_seeds, _ADAPTER_FILES, _check_adapter, 150.0),
    _target("config", _other_configs, {".json": damage_json_file}, _check_outline, 50.0),
    _target("model", _model_seeds, _MODEL_FILES, _check_model, 150.0),
)
