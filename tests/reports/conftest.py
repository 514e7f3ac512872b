"""A made-up run with everything in it that a report can show."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import pytest

from sonotune.metrics.error_rate import cer, wer
from sonotune.types import Finding, RunRecord

VOID = {"meta", "br", "hr", "link", "input", "img"}


class Page(HTMLParser):
    """Text by section, every element, and whether each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.section = ""
        self.text: dict[str, str] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data

    def flat(self, section: str) -> str:
        return " ".join(self.text[section].split())


REFERENCES = [
    ("a1", "seven three nine one", "seven tree nine one one", "phone", "ana", "en"),
    ("a2", "turn the lights off", "turn lights off", "phone", "ben", "en"),
    ("a3", "stop", "", "studio", "cyd", "en"),
    ("a4", "שלוש ארבע חמש", "שלוש ארבה חמש שש", "studio", "dan", "he"),
    ("a5", "<script>alert(1)</script> & $x^2$", "<script>alert(2)</script> & $x^2$", "studio", "eve", "en"),
    ("a6", "nine nine", "nine nine", "phone", "fay", "en"),
]


def predictions() -> list[dict[str, Any]]:
    return [
        {
            "id": clip_id,
            "reference": reference,
            "hypothesis": hypothesis,
            "duration_s": 0.8 + 1.7 * index,
            "domain": domain,
            "speaker": speaker,
            "language": language,
        }
        for index, (clip_id, reference, hypothesis, domain, speaker, language) in enumerate(REFERENCES)
    ]


def events() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {
            "kind": "step",
            "step": step,
            "loss": 3.0 * math.exp(-step / 120) + 0.2 + 0.1 * math.sin(7 * step),
            "learning_rates": {"adapter": 1e-3 * (1 - step / 500), "stem": 1e-4 * (1 - step / 500)},
            "samples_per_s": 30 + math.sin(step),
        }
        for step in range(1, 501)
    ]
    evaluations = [
        {
            "kind": "evaluation",
            "step": step,
            "scores": {
                "wer": {"value": 0.1 + 0.4 * math.exp(-step / 150), "low": 0.08, "high": 0.55},
                "cer": {"value": 0.05 + 0.2 * math.exp(-step / 150), "low": 0.04, "high": 0.3},
            },
        }
        for step in range(0, 501, 100)
    ]
    timing = {
        "kind": "spent",
        "seconds": {"decode": 6.2, "features": 4.1, "forward": 21.0, "backward": 34.5, "optimizer": 3.2},
    }
    return [*steps, *evaluations, timing]


def record(**changes: Any) -> RunRecord:
    references = [row[1] for row in REFERENCES]
    hypotheses = [row[2] for row in REFERENCES]
    speakers = [row[4] for row in REFERENCES]
    after = {
        "wer": wer(references, hypotheses, speakers=speakers).to_json(),
        "cer": cer(references, hypotheses, speakers=speakers).to_json(),
    }
    before = {
        "wer": wer(references, hypotheses[::-1], speakers=speakers).to_json(),
        "cer": cer(references, hypotheses[::-1], speakers=speakers).to_json(),
    }
    values: dict[str, Any] = {
        "schema": 1,
        "run_id": "20260114-0930-3f9a1c",
        "status": "finished",
        "config": {
            "model": {"checkpoint": "assets:whisper-nano", "context": "dynamic"},
            "training": {"learning_rate": 1e-3, "max_epochs": 3},
            "adapter": {"targets": ["q_proj", "v_proj"], "rank": 8},
        },
        "config_origin": {
            "model.checkpoint": "preset model/whisper_nano.yaml",
            "training.learning_rate": "command line: training.learning_rate=1e-3",
        },
        "config_digest": "ab" * 32,
        "data_digest": {"train": "cd" * 32, "eval": "ef" * 32},
        "code": {"version": "0.1.0", "commit": "1234567", "tree": "clean"},
        "environment": {"python": "3.11.9", "packages": {"torch": "2.13.0"}, "cores": 2, "world_size": 1},
        "model": {
            "family": "whisper",
            "checkpoint": "assets:whisper-nano",
            "revision": "0" * 40,
            "parameters": {"total": 2_300_000, "trainable": 180_000, "adapter": 120_000, "quantized": 1_700_000},
            "components": [
                {"name": "stem", "parameters": 120_000, "trainable": 60_000, "bytes": 240_000},
                {"name": "encoder", "parameters": 900_000, "trainable": 60_000, "bytes": 520_000},
                {"name": "decoder", "parameters": 1_280_000, "trainable": 60_000, "bytes": 700_000},
            ],
        },
        "ranks": {"model.encoder.layers.0.self_attn.q_proj": 8, "model.encoder.layers.0.fc1": 4},
        "findings": (
            Finding(check="data.no_speaker", severity="note", message="12 clips have no speaker."),
            Finding(
                check="audio.truncated",
                severity="error",
                message="clip b7: the header promises 3.20 s, the file holds 1.10 s; re-export it.",
                clip_ids=tuple(f"b{index}" for index in range(12)),
                path="audio/<b7>.wav",
                measured=1.1,
                limit=3.2,
                unit="s",
            ),
        ),
        "scores": {"before": before, "after": after},
        "stages": (
            {
                "name": "train",
                "max_epochs": 5,
                "max_steps": None,
                "groups": [
                    {
                        "name": "adapters",
                        "learning_rate": 1e-3,
                        "decay": True,
                        "parameters": 98_304,
                        "tensors": [f"model.encoder.layers.{layer}.fc1.lora_A" for layer in range(8)],
                    },
                    {
                        "name": "weights:stem",
                        "learning_rate": 1e-4,
                        "decay": False,
                        "parameters": 1024,
                        "tensors": ["model.encoder.conv1.bias"],
                    },
                ],
            },
        ),
        "choices": {"quantization.bits": "4 because the command line asked for it"},
        "peak_memory_bytes": 812_000_000,
        "seconds": 143.2,
        "energy_joules": None,
        "data": {
            "train": {
                "clips": 1200,
                "hours": 1.254,
                "duration_s": {"min": 0.6, "p50": 3.1, "max": 14.2},
                "speakers": 31,
                "labels": 0,
                "domains": {"phone": 900, "<b>studio</b>": 300},
                "languages": {"en": 1000, "he": 200},
            },
            "eval": {"clips": 6, "hours": 0.01, "duration_s": {}, "speakers": 0, "domains": {}, "languages": {}},
        },
    }
    return RunRecord(**(values | changes))


@pytest.fixture(scope="session")
def run_record() -> RunRecord:
    return record()


@pytest.fixture(scope="session")
def run_events() -> list[dict[str, Any]]:
    return events()


@pytest.fixture(scope="session")
def run_predictions() -> list[dict[str, Any]]:
    return predictions()


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    return Page
