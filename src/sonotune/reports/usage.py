"""Lines that use a model: with sonotune, and with plain `transformers` (and PEFT) from the folder of a model card.

What they print is what `serving.served` gets when an export is compared with its run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

Kind = Literal["adapter", "model"]
BASE_BESIDE = "./"
"""A base whose name begins so lies in the folder of its adapter."""
_LOADERS = {
    "whisper": "AutoModelForSpeechSeq2Seq",
    "qwen3_asr": "Qwen3ASRForConditionalGeneration",
    "ctc": "AutoModelForCTC",
    "ast": "AutoModelForAudioClassification",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What is to be known to use a model.

    Attributes:
        family: Registry name of the architecture.
        kind: What lies beside the card.
        base: Of an adapter: a hub name, `assets:NAME`, the name of a folder (without its place), or one beside the card
            (`BASE_BESIDE`).
        revision: Of a base on the hub.
        language: As the tool is told it: a code for Whisper, an English name for Qwen3-ASR; None tells nothing.
        multilingual: Whether a Whisper model is told languages and tasks at all.
        listed_language: Whether the processor of Qwen3-ASR knows the language; another is written into its answer.
        brings_outputs: Whether an adapter has an output layer that its base lacks.
        masks_frames: Whether a CTC model has a `generate` that leaves out frames beyond the clip (Parakeet).
        multi_label: Whether a clip may have several classes.
        bits: In which the base of an adapter was held.
        method: Registry name of the kind of adapter.
        patterns: Settings of an adapter that tools of one rank and one scale do not read, such as `rank_pattern`.
        rank: Of an adapter without patterns.
        window_s: What the model takes at once; None where it takes clips of any length.
    """

    family: str
    kind: Kind
    base: str = ""
    revision: str | None = None
    language: str | None = None
    multilingual: bool = False
    listed_language: bool = True
    brings_outputs: bool = False
    masks_frames: bool = False
    multi_label: bool = False
    bits: int = 16
    method: str = "lora"
    patterns: tuple[str, ...] = ()
    rank: int = 0
    window_s: float | None = None


def usage_lines(usage: Usage) -> str:
    """Markdown with a block of shell and, where another tool loads the model, a block of Python.

    Both are run from the folder of the card, beside a recording `speech.wav` of one channel at 16 kHz.
    """
    command = "classify" if usage.family == "ast" else "transcribe"
    parts = [f"```bash\nsonotune {command} model=. speech.wav\n```"]
    if usage.family not in _LOADERS:
        return parts[0] + f"\n\nNo other tool loads a model of the family `{usage.family}`."
    tool = "`transformers` and `peft`" if usage.kind == "adapter" else "`transformers`"
    parts.append(f"Or with plain {tool}, from this folder (`speech.wav` has one channel at 16 kHz):")
    parts.append("```python\n" + "\n".join([*_loading(usage), *_RUNNING[usage.family](usage)]) + "\n```")
    if usage.window_s is not None:
        parts.append(
            f"The model takes windows of {usage.window_s:g} s. The Python lines leave out what comes after the first; "
            "sonotune goes through longer recordings window by window."
            if usage.family == "whisper"
            else f"The model takes windows of {usage.window_s:g} s, and what comes after that is left out."
        )
    if usage.kind == "adapter" and usage.bits < 16:
        parts.append(
            f"The adapter was trained over weights of {usage.bits} bits, which the lines above do not make; over those "
            "of 16 bits it is a slightly other function. `sonotune export` merges exactly what was trained."
        )
    return "\n\n".join(parts)


def _loading(usage: Usage) -> list[str]:
    """Imports, the recording, and `model` with its processor."""
    adapter, loader = usage.kind == "adapter", _LOADERS[usage.family]
    source = "BASE" if adapter else '"."'
    processors = _processors(usage, source)
    classes = sorted({loader, *(line.split(" = ")[1].split(".")[0] for line in processors)})
    asset = adapter and usage.base.startswith("assets:")
    lines = ["import json"] if adapter and usage.brings_outputs and usage.family == "ast" else []
    lines += ["import soundfile", "import torch"]
    lines += ["from peft import PeftModel"] if adapter else []
    lines += [f"from transformers import {', '.join(classes)}"]
    lines += ["from sonotune.registry import resolve_asset"] if asset else []
    lines += ["", 'audio, rate = soundfile.read("speech.wav", dtype="float32")']
    if adapter:
        lines.append(f"BASE = {_base(usage)}")
    lines += processors
    changes = _changes(usage) if adapter else []
    lines += changes[:-1]
    given = ["dtype=torch.float32", *changes[-1:]]
    if adapter and usage.revision and usage.base.count("/") == 1 and not usage.base.startswith(BASE_BESIDE):
        given.insert(0, f"revision={_quoted(usage.revision)}")
    lines.append(f"model = {loader}.from_pretrained({source}, {', '.join(given)})")
    lines += ['model = PeftModel.from_pretrained(model, ".").eval()'] if adapter else []
    return lines


def _base(usage: Usage) -> str:
    if usage.base.startswith("assets:"):
        return f"str(resolve_asset({_quoted(usage.base)}))  # packaged with sonotune"
    if usage.base.startswith(BASE_BESIDE):
        return _quoted(usage.base) + "  # the copy of the base beside this card"
    return _quoted(usage.base) + ("" if usage.base.count("/") == 1 else "  # the folder of the base model")


def _quoted(text: str) -> str:
    """A Python string."""
    return json.dumps(text, ensure_ascii=False)


def _processors(usage: Usage, source: str) -> list[str]:
    if usage.family == "ast":
        return [f"extractor = AutoFeatureExtractor.from_pretrained({source})"]
    if usage.family == "ctc" and usage.kind == "adapter" and usage.brings_outputs:
        return [
            f"extractor = AutoFeatureExtractor.from_pretrained({source})",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
        ]
    return [f"processor = AutoProcessor.from_pretrained({source})"]


def _changes(usage: Usage) -> list[str]:
    """Lines that come before the base is loaded, and last what it is given so that it takes the adapter's outputs."""
    if not usage.brings_outputs:
        return []
    if usage.family == "ctc":
        return ["vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, ignore_mismatched_sizes=True"]
    return [
        'labels = json.load(open("sonotune.json", encoding="utf-8"))["outputs"]',
        "names = dict(enumerate(labels))",
        "id2label=names, label2id={name: index for index, name in names.items()}, ignore_mismatched_sizes=True",
    ]


def _run_whisper(usage: Usage) -> list[str]:
    told = [f"language={_quoted(usage.language)}"] if usage.language else []
    told = [*told, 'task="transcribe"'] if usage.multilingual else []
    return [
        'inputs = processor(audio, sampling_rate=rate, return_tensors="pt")',
        f"ids = model.generate({', '.join(['**inputs', *told])})",
        "print(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())",
    ]


def _run_ctc(usage: Usage) -> list[str]:
    own = usage.kind == "adapter" and usage.brings_outputs
    forward = ["with torch.no_grad():", "    ids = model(**inputs).logits.argmax(dim=-1)"]
    return [
        f'inputs = {"extractor" if own else "processor"}(audio, sampling_rate=rate, return_tensors="pt")',
        *(["ids = model.generate(**inputs)"] if usage.masks_frames else forward),
        f"print({'tokenizer' if own else 'processor'}.batch_decode(ids)[0].strip())",
    ]


def _run_qwen3_asr(usage: Usage) -> list[str]:
    if usage.language is None or usage.listed_language:
        told = f", language={_quoted(usage.language)}" if usage.language else ""
        asked = [f"inputs = processor.apply_transcription_request(audio{told})"]
    else:
        asked = [
            f"told = {_quoted(f'language {usage.language}<asr_text>')}",
            'turns = [{"role": "user", "content": [{"type": "audio", "audio": audio}]},',
            '         {"role": "assistant", "content": [{"type": "text", "text": told}]}]',
            "inputs = processor.apply_chat_template(",
            "    [turns], tokenize=True, return_dict=True, continue_final_message=True",
            ")",
        ]
    return [
        *asked,
        'ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]',
        'print(processor.decode(ids[0], return_format="transcription_only").strip())',
    ]


def _run_classifier(usage: Usage) -> list[str]:
    if usage.multi_label:
        says = [
            "scores = logits.sigmoid()",
            "print([model.config.id2label[i] for i, score in enumerate(scores) if score >= 0.5])",
        ]
    else:
        says = ["print(model.config.id2label[int(logits.argmax())])"]
    return [
        'inputs = extractor(audio, sampling_rate=rate, return_tensors="pt")',
        "with torch.no_grad():",
        "    logits = model(**inputs).logits[0]",
        *says,
    ]


_RUNNING = {"whisper": _run_whisper, "ctc": _run_ctc, "qwen3_asr": _run_qwen3_asr, "ast": _run_classifier}
