"""Settings: YAML files, words of a command line, and what is to be composed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Final

from harness import Files, Target, attempt
from mutations import INTEGERS, LENGTHS, STRINGS, damage_json, damage_text, dump, parse

_TOKENS: Final = (
    *(
        "&a ",
        "*a",
        "!!python/object:os.system ",
        "!!int ",
        "!x ",
        "<<: *a",
        "- ",
        "-",
        "? ",
        ": ",
        ":",
        "|",
        "|+\n",
        ">",
        ">-\n",
    ),
    *(
        "{",
        "}",
        "[",
        "]",
        ",",
        "{{",
        "[[",
        "'",
        '"',
        '"\\u0000"',
        '"\\ud800"',
        '"\\x"',
        "%YAML 1.2\n---\n",
        "---\n",
        "...\n",
        "#",
    ),
    *(
        "\t",
        "  ",
        "\n",
        "\r",
        "\u2028",
        "\x85",
        "\x07",
        "~",
        "null",
        "yes",
        "no",
        "0o17",
        "0x1f",
        "1_000",
        "1e3",
        ".inf",
        ".nan",
    ),
    *(
        "12:30",
        "2001-01-01",
        "10" * 3000,
        "model: whisper_nano",
        "with:",
        "model.checkpoint: x",
        "a: {b: {c: 1}}",
        "config: x.yaml",
    ),
    *("recipe: quick", "@", "`", "=", "training:", "\ufeff", "\U0001f600"),
)


def _check(folder: Path) -> None:
    """As every command reads settings; what is printed by `--dump-config` has to mean the same."""
    from sonotune.config.composition import load_composition
    from sonotune.config.load import dump_yaml, load_run_config

    if (folder / "composition.yaml").is_file():
        attempt(load_composition, [f"config={folder / 'composition.yaml'}"])
        return
    words = json.loads((folder / "words.json").read_bytes()) if (folder / "words.json").is_file() else []
    loaded = attempt(load_run_config, [f"config={folder / 'settings.yaml'}", *words])
    attempt(load_run_config, words)
    if loaded is not None:
        json.dumps(loaded.plain(), allow_nan=False)
        attempt(loaded.run_dir)
        (folder / "again.yaml").write_text(dump_yaml(loaded.config), "utf-8")
        again = attempt(load_run_config, [f"config={folder / 'again.yaml'}"])
        assert again is not None, "settings that were written are refused"
        assert again.digest == loaded.digest


def _seeds() -> list[Files]:
    from sonotune.config.load import dump_yaml, load_run_config

    model, data = "model=whisper_nano", "data.train=train.jsonl"
    lines = (
        [model, data],
        [model, data, "training.learning_rates={encoder: 0.1, decoder: 1}", "adapter.unfreeze=[encoder.norms]"],
        ["model=ast_nano", data, "data.multi_label=true", "evaluation.duration_edges_s=[1, 5]", "training.max_steps=5"],
        [
            model,
            data,
            "adapter.kind=none",
            "training.stages=[{name: a, weights: [decoder], max_steps: 1}, {name: b, weights: [head], max_steps: 2}]",
        ],
        [
            "model=ctc_nano",
            data,
            "adapter.targets=[q_proj, v_proj]",
            "allocation.max_rank=16",
            "adapter.allocator=entropy",
        ],
    )
    found: list[Files] = []
    for words in lines:
        loaded = load_run_config(words)
        text = dump_yaml(loaded.config)
        found.append({"settings.yaml": text.encode(), "words.json": json.dumps(words).encode()})
    chosen = b"recipe: quickstart\nmodel: whisper_nano\ndata:\n  train: x.jsonl\n  eval: ~\ntraining.max_epochs: 3\n"
    parts = b"encoder: assets:whisper-nano\nlanguage_model: assets:x\nprojector:\n  kind: mlp\n  downsample: 4\n"
    found.append({"composition.yaml": parts})
    return [
        *found,
        {
            "settings.yaml": chosen,
            "words.json": json.dumps([model, data, "training.seed=3", "adapter.rank=4"]).encode(),
        },
    ]


def _as_tree(data: bytes) -> Any:
    from sonotune.config.load import parse_yaml

    return parse(json.dumps(parse_yaml(data.decode()), allow_nan=False))


def _damage_word(rng: random.Random, word: str) -> str:
    name, equals, text = word.partition("=")
    match rng.randrange(7):
        case 0:
            return name + equals + rng.choice((*STRINGS, *_TOKENS))
        case 1:
            return name + equals + str(rng.choice(INTEGERS[:-1]))
        case 2:
            return name + equals + text + rng.choice(_TOKENS)
        case 3:
            return rng.choice((*STRINGS, name[:-1], name + "s", name.upper(), name.replace("_", ""))) + equals + text
        case 4:
            return name + equals + rng.choice(("[", "{a: ", "1", "x", "[1, ", '"')) * rng.choice((5, 30, *LENGTHS))
        case 5:
            return rng.choice((name, text, name + "==" + text, equals + text, name + "." + name + equals + text))
        case _:
            return name + equals + dump(damage_json(rng, [text, 1, 0.5]))


def _mutate(rng: random.Random, files: Files) -> Files:
    if "composition.yaml" in files:
        return {"composition.yaml": damage_text(rng, bytes(files["composition.yaml"]), _TOKENS)}  # type: ignore[arg-type]
    changed = dict(files)
    data, words = files["settings.yaml"], json.loads(bytes(files["words.json"]))  # type: ignore[arg-type]
    assert isinstance(data, bytes)
    for _ in range(rng.choice((1, 1, 2))):
        match rng.randrange(4):
            case 0:
                tree = _as_tree(files["settings.yaml"])  # type: ignore[arg-type]
                data = dump(damage_json(rng, tree)).encode("utf-8", "surrogatepass")
            case 1 | 2:
                try:
                    data = damage_text(rng, data, _TOKENS)
                except UnicodeDecodeError:
                    data = data[::-1]
            case _:
                at = rng.randrange(len(words))
                words[at] = _damage_word(rng, words[at])
    return changed | {"settings.yaml": data, "words.json": json.dumps(words).encode()}


TARGETS: Final = (Target(name="settings", seeds=_seeds, mutate=_mutate, check=_check, weight=25.0),)
