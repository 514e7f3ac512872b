"""Turn a finished run into a packaged nano model: fp16 weights, processor, card, and the record of the run.

python recipes/nano/package_model.py RUN src/sonotune/assets/whisper-nano
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sonotune.runs import read_record, record_to_json
from sonotune.serving.export import export

SPEECH = "English digits, numbers, about 100 command words, and Hebrew digits and words; letters are its symbols"
KINDS = {
    "whisper": ("A Whisper", SPEECH, "synthetic corpus `nano_speech`"),
    "ctc": ("A Parakeet (Fast Conformer with CTC)", SPEECH, "synthetic corpus `nano_speech`"),
    "qwen3_asr": ("A Qwen3-ASR", SPEECH, "synthetic corpus `nano_speech`"),
    "ast": (
        "An audio spectrogram transformer",
        "the 40 standard drum rudiments on rendered drums",
        "rendered corpus `rudiments`",
    ),
}

CARD = """# {name}

{architecture} of {parameters:.2f} million parameters that this project trained from nothing on sound it made itself.
It knows {knows}.
It is made for trying the tool and comparing methods of adaptation, not for use on real recordings as it is.

| | |
| --- | --- |
| architecture | {class_name} |
| weights | fp16 safetensors |
| trained on | the {corpus}, {steps}; commit {commit} |
| time | {seconds:.0f} s on {processor} |
| {unheard} ({count}) | {scores} |
| licence | Apache-2.0 |

`record.json` is the record of the run that made it; `recipes/nano/README.md` has the commands.
"""


def main() -> None:
    """Package one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        exported = Path(place) / "export"
        export(str(options.run), exported, dtype="fp16")
        said = exported / "sonotune_export.json"  # also where the run lay, which is nobody else's business
        contexts = {name: json.loads(said.read_text("utf-8"))[name] for name in ("context", "trained_contexts")}
        said.write_text(json.dumps(contexts, indent=2) + "\n", "utf-8")
        options.folder.mkdir(parents=True, exist_ok=True)
        for file in exported.iterdir():
            shutil.copyfile(file, options.folder / file.name)  # with this folder's permissions: anyone may read them
    record = read_record(options.run)
    (options.folder / "record.json").write_text(
        json.dumps(record_to_json(record), indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8"
    )
    config = json.loads((options.folder / "config.json").read_text("utf-8"))
    (options.folder / "CARD.md").write_text(_card(options.folder.name, record, config), "utf-8")
    print((options.folder / "CARD.md").read_text("utf-8"))


def _card(name: str, record: Any, config: dict[str, Any]) -> str:
    scores = record.scores["after"]
    rows = record.model["components"].values()
    architecture, knows, corpus = KINDS[record.model["family"]]
    drums = record.model["family"] == "ast"
    return CARD.format(
        name=name,
        architecture=architecture,
        knows=knows,
        corpus=corpus,
        parameters=sum(row["parameters"] for row in rows) / 1e6,
        class_name=config["architectures"][0],
        steps=_length(record.config["training"]),
        commit=record.code.get("commit", "unknown")[:12],
        seconds=record.seconds,
        processor=f"{record.environment['cores']} core(s) of {record.environment['processor']}",
        unheard="drum kits never heard in training" if drums else "synthetic development clips, voices never heard",
        count=next(iter(scores.values()))["count"],
        scores=", ".join(f"{score.upper()} {_percent(value)}" for score, value in scores.items()),
    )


def _length(training: dict[str, Any]) -> str:
    return f"{training['max_steps']} steps" if training["max_steps"] else f"{training['max_epochs']} epochs"


def _percent(score: dict[str, Any]) -> str:
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


if __name__ == "__main__":
    main()
