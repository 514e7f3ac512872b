"""Recognise clips as another tool would: plain `transformers` (and PEFT), without any model code of sonotune.

These are the lines that a model card gives, run over many clips: `reports.usage` writes them, and they are kept in
step by a test that runs both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonotune.progress import phase

_BATCH = 8  # clips that `generate` takes together; every one fills Whisper's window, so none sees another


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """Where another tool finds what it loads.

    Attributes:
        folder: A whole model, or an adapter in PEFT format.
        base: Of an adapter: the folder or hub name of its base model.
        revision: Of a base on the hub.
        outputs: Symbols or classes of an output layer that the adapter brings and its base lacks.
    """

    folder: Path
    base: str | None = None
    revision: str | None = None
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Clips for the tool.

    Attributes:
        saved: What it loads.
        waveforms: One (S,) array a clip; read one after the other, so they may be read when asked for.
        sample_rate_hz: Of all.
        languages: What the tool is told of each clip; None leaves it to what the export says.
        multi_label: Whether a clip may have several classes.
    """

    saved: SavedModel
    waveforms: Sequence[NDArray[np.float32]]
    sample_rate_hz: int
    languages: Sequence[str | None]
    multi_label: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the tool gave back.

    Attributes:
        texts: One a clip, for a recogniser.
        scores: Class -> probability, one mapping a clip, for a classifier.
    """

    texts: tuple[str, ...] = ()
    scores: tuple[dict[str, float], ...] = ()


def tool_of(family: str, *, adapter: bool) -> str | None:
    """What serves a family, with its version; None where no other tool is known to load it."""
    import transformers  # noqa: PLC0415

    if family not in _READERS:
        return None
    calls = {"whisper": " generate", "qwen3_asr": " generate"}
    name = f"transformers {transformers.__version__}{calls.get(family, '')}"
    if adapter:
        import peft  # noqa: PLC0415

        name += f" with peft {peft.__version__}"
    return name


def recognize_served(family: str, request: Request) -> Served:
    """Recognise or classify with plain `transformers`, in fp32 on the CPU, or on CUDA where there is a card.

    Args:
        family: Registry name of the architecture, one that `tool_of` knows.
        request: The clips and the model.

    Raises:
        Exception: Whatever the tool raises.
    """
    import torch  # noqa: PLC0415

    with phase("recognising with transformers"), _quiet(), torch.inference_mode():
        return _READERS[family](request)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the tools have to say of each other is no finding about the model
        yield


def _model(class_name: str, saved: SavedModel, **changes: Any) -> Any:
    """The module in fp32, with its adapter, in evaluation mode."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    source = saved.base or str(saved.folder)
    if saved.base is not None and saved.outputs:
        changes["ignore_mismatched_sizes"] = True  # the adapter brings its own output layer
    module = getattr(transformers, class_name).from_pretrained(
        source, revision=saved.revision, dtype=torch.float32, use_safetensors=True, **changes
    )
    if saved.base is not None:
        from peft import PeftModel  # noqa: PLC0415

        module = PeftModel.from_pretrained(module, str(saved.folder))
    return module.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _processor(class_name: str, saved: SavedModel, *, own: bool = False) -> Any:
    """Of the base where there is an adapter, unless the adapter brings its own."""
    import transformers  # noqa: PLC0415

    source, revision = (str(saved.folder), None) if own or saved.base is None else (saved.base, saved.revision)
    return getattr(transformers, class_name).from_pretrained(source, revision=revision)


def _whisper(request: Request) -> Served:
    """At the whole window, as `generate` has it; clips of one language together."""
    saved, languages, waveforms = request.saved, request.languages, request.waveforms
    processor, module = _processor("AutoProcessor", saved), _model("AutoModelForSpeechSeq2Seq", saved)
    texts = [""] * len(waveforms)
    for language in dict.fromkeys(languages):
        members = [index for index, own in enumerate(languages) if own == language]
        told = {} if language is None else {"language": language, "task": "transcribe"}
        for first in range(0, len(members), _BATCH):
            part = members[first : first + _BATCH]
            heard = [waveforms[index] for index in part]
            inputs = processor(heard, sampling_rate=request.sample_rate_hz, return_tensors="pt")
            ids = module.generate(**inputs.to(module.device), **told)
            for index, text in zip(part, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
                texts[index] = text
    return Served(texts=tuple(texts))


def _ctc(request: Request) -> Served:
    """Clip by clip: some of these models hear the padding of a batch."""
    saved, changes = request.saved, dict[str, Any]()
    if saved.base is not None and saved.outputs:  # the adapter brings its vocabulary
        extractor, words = _processor("AutoFeatureExtractor", saved), _processor("AutoTokenizer", saved, own=True)
        changes = {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    else:
        extractor = words = _processor("AutoProcessor", saved)
    module = _model("AutoModelForCTC", saved, **changes)
    masked = module.config.model_type == "parakeet_ctc"  # it hears a frame beyond the clip, which `generate` masks
    texts = []
    for waveform in request.waveforms:
        inputs = extractor(waveform, sampling_rate=request.sample_rate_hz, return_tensors="pt").to(module.device)
        ids = module.generate(**inputs) if masked else module(**inputs).logits.argmax(dim=-1)
        texts.append(words.batch_decode(ids)[0])
    return Served(texts=tuple(texts))


def _qwen3_asr(request: Request) -> Served:
    saved = request.saved
    processor, module = _processor("AutoProcessor", saved), _model("Qwen3ASRForConditionalGeneration", saved)
    texts = []
    for waveform, language in zip(request.waveforms, request.languages, strict=True):
        turns = [{"role": "user", "content": [{"type": "audio", "audio": waveform}]}]
        if language is not None:
            told = {"type": "text", "text": f"language {language}<asr_text>"}
            turns.append({"role": "assistant", "content": [told]})
        inputs = processor.apply_chat_template(
            [turns],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=language is None,
            continue_final_message=language is not None,
        ).to(module.device)
        ids = module.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        texts.append(processor.decode(ids[0], return_format="transcription_only"))
    return Served(texts=tuple(texts))


def _classify(request: Request) -> Served:
    saved = request.saved
    extractor = _processor("AutoFeatureExtractor", saved)
    labels = dict(enumerate(saved.outputs))
    changes = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}} if labels else {}
    module = _model("AutoModelForAudioClassification", saved, **(changes if saved.base else {}))
    names = module.config.id2label
    scores = []
    for waveform in request.waveforms:
        inputs = extractor(waveform, sampling_rate=request.sample_rate_hz, return_tensors="pt").to(module.device)
        logits_C = module(**inputs).logits[0]
        shares_C = logits_C.sigmoid() if request.multi_label else logits_C.softmax(dim=-1)
        scores.append({names[index]: share for index, share in enumerate(shares_C.tolist())})
    return Served(scores=tuple(scores))


_READERS: dict[str, Callable[[Request], Served]] = {
    "whisper": _whisper,
    "ctc": _ctc,
    "qwen3_asr": _qwen3_asr,
    "ast": _classify,
}
