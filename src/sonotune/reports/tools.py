"""What a model card says of other tools: which of them read this form, and where an adapter finds its base.

What they read is from their sources: vLLM's `vllm/lora/peft_helper.py` and `vllm/config/lora.py`, SGLang's
`srt/lora/lora.py`.
"""

from __future__ import annotations

from typing import Final

from sonotune.reports.usage import BASE_BESIDE, Usage

_MAX_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's --max-lora-rank takes


def tools_lines(usage: Usage) -> str:
    """Markdown: a table of tools, and of an adapter where its base is."""
    rows = _of_model(usage) if usage.kind == "model" else _of_adapter(usage)
    table = ["| tool | reads this folder |", "| --- | --- |", *(f"| {tool} | {how} |" for tool, how in rows)]
    parts = [
        "\n".join(table),
        "What was run here is under *Parity*; the other rows go by what the tools document.",
    ]
    if usage.kind == "adapter" and (base := _base(usage)):
        parts.append(base)
    return "\n\n".join(parts)


def _of_model(usage: Usage) -> list[tuple[str, str]]:
    if usage.family == "whisper":
        return [
            ("`transformers`, vLLM", "yes"),
            (
                "faster-whisper",
                "after `ct2-transformers-converter --model . --output_dir ct2 "
                "--copy_files tokenizer.json preprocessor_config.json`",
            ),
            ("whisper.cpp", "after its own script of conversion"),
        ]
    if usage.family in ("qwen3_asr", "ctc", "ast"):
        return [("`transformers`", "yes")]
    return [("sonotune", "yes"), ("others", "no")]


def _of_adapter(usage: Usage) -> list[tuple[str, str]]:
    peft = ("PEFT, `transformers` with PEFT", "yes")
    others = "vLLM, SGLang"
    if usage.method != "lora":
        return [
            ("sonotune", "yes"),
            (f"PEFT, {others}", f"no: the kind `{usage.method}` is sonotune's own"),
        ]
    if usage.family not in ("whisper", "qwen3_asr"):
        return [peft, (others, "no: they have no such model")]
    if usage.patterns:
        return [
            peft,
            (
                others,
                f"**no**: they read one rank and one scale for all modules, and this adapter has {_listed(usage)}. "
                "`sonotune export RUN FOLDER --adapter --plain` writes one that they read; so is a merged export",
            ),
        ]
    base = usage.base.removeprefix(BASE_BESIDE) if usage.base.startswith(BASE_BESIDE) else _named(usage)
    limit = next((most for most in _MAX_RANKS if most >= usage.rank), None)
    if limit is None:
        served = f"no: rank {usage.rank} is above the {_MAX_RANKS[-1]} that vLLM allows; serve a merged export"
    else:
        served = (
            f"as `vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules tuned=.`. Read its log: some "
            "versions adapt only the text part of a model and name the modules that they ignore; serve a merged export "
            "there"
        )
    return [peft, ("vLLM", served), ("SGLang", "the form, where it adapts this architecture")]


def _listed(usage: Usage) -> str:
    return ", ".join(f"`{name}`" for name in usage.patterns)


def _named(usage: Usage) -> str:
    return usage.base if usage.base.count("/") == 1 else "BASE"


def _base(usage: Usage) -> str:
    """Where the base is; `adapter_config.json` has the place that plain PEFT is to open."""
    if usage.base.startswith(BASE_BESIDE):
        return (
            f"Its base is the folder `{usage.base.removeprefix(BASE_BESIDE)}` beside this card, a copy of the base "
            "with the weights that trained beside the adapter: over any other base this adapter is another function. "
            "`base_model_name_or_path` in `adapter_config.json` is where that folder was written; if you move it, "
            "name the folder to tools that do not ask for a base."
        )
    if usage.base.startswith("assets:"):
        return (
            f"Its base is `{usage.base}`, which is packaged with sonotune and on no hub. `base_model_name_or_path` in "
            "`adapter_config.json` is its folder in the installation that made this; with another, take the lines "
            "above, or hand on a merged export."
        )
    if usage.base.count("/") != 1:
        return (
            f"Its base is a folder called `{usage.base}`, on no hub that is known here. `base_model_name_or_path` in "
            "`adapter_config.json` is its place on the machine that made this; elsewhere, write where you have it, or "
            "hand on a merged export."
        )
    return ""
