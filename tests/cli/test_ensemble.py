"""Several models in one command: members, votes, costs, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sonotune import cli
from sonotune.registry import resolve_asset
from sonotune.runs import read_predictions

TEST = ["data.test=assets:quickstart/test.jsonl", "data.limit=7", "evaluation.bootstrap=100"]


def call(*words: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main([*map(str, words)])
    return int(caught.value.code or 0), out.getvalue(), err.getvalue()


def read(*words: object) -> Any:
    code, said, err = call(*words, "--json")
    assert code == 0, err
    return json.loads(said)


@pytest.fixture(scope="module")
def speech() -> list[Path]:
    return sorted(resolve_asset("assets:quickstart").rglob("test-*.ogg"))[:3]


def test_members_are_scored_one_by_one_and_together(tmp_path: Path) -> None:
    """Two equal members outvote the third, so the ensemble is one of them, at three times the cost."""
    alone = read("evaluate", "model=ctc_nano", *TEST, "--out", tmp_path / "alone.jsonl")
    body = read("evaluate", "model=[ctc_nano, whisper_nano, ctc_nano]", *TEST, "--out", tmp_path / "together.jsonl")
    found = body["ensemble"]
    assert [one["model"] for one in found["members"]] == ["ctc_nano", "whisper_nano", "ctc_nano"]
    assert found["members"][0]["scores"]["wer"]["value"] == alone["scores"]["wer"]["value"]
    texts = [[row["hypothesis"] for row in read_predictions(tmp_path / f"{n}.jsonl")] for n in ("alone", "together")]
    assert texts[0] == texts[1]
    assert body["scores"]["wer"]["value"] == alone["scores"]["wer"]["value"]
    best = min(found["members"], key=lambda one: one["scores"]["wer"]["value"])
    assert found["best"] == best["model"]
    assert body["seconds"] >= sum(one["seconds"] for one in found["members"])
    assert found["cost_factor"] == pytest.approx(body["seconds"] / best["seconds"])
    assert found["difference"]["score"] == "wer"
    whole = body["scores"]["wer"]["value"] - best["scores"]["wer"]["value"]
    assert found["difference"]["value"] == pytest.approx(whole)
    assert (found["verdict"] == "no gain was shown") == (found["difference"]["low"] <= 0 <= found["difference"]["high"])
    assert any("ctc_nano stands twice" in warning for warning in body["warnings"])


def test_equal_members_print_that_no_gain_was_shown_and_what_it_cost() -> None:
    code, said, err = call("evaluate", "model=[ctc_nano,ctc_nano,ctc_nano]", *TEST, "ensemble.method=mbr")
    assert code == 0, err
    assert "ensemble of 3 members (mbr); the best by itself is ctc_nano" in said
    assert "no gain was shown: WER +0.0 points [+0.0, +0.0] against ctc_nano; the interval includes zero" in said
    assert "times the seconds of the best, ctc_nano" in said


def test_files_are_transcribed_by_vote(speech: list[Path]) -> None:
    alone = read("transcribe", "model=ctc_nano", *speech)["transcripts"]
    body = read("transcribe", "model=[whisper_nano,ctc_nano,ctc_nano]", *speech)
    assert body["transcripts"] == alone
    assert body["ensemble"]["best"] is None
    assert len(body["ensemble"]["members"]) == 3


@pytest.mark.slow
def test_two_members_vote_by_confidence(speech: list[Path]) -> None:
    words = ["evaluation.confidence=true", "ensemble.votes=confidence"]
    body = read("transcribe", "model=[ctc_nano,ctc_nano]", *words, *speech)
    assert body["transcripts"] == read("transcribe", "model=ctc_nano", *speech)["transcripts"]


def test_classes_are_averaged(speech: list[Path]) -> None:
    alone = read("classify", "model=ast_nano", *speech)["predictions"]
    together = read("classify", "model=[ast_nano,ast_nano]", *speech)["predictions"]
    for one, other in zip(alone, together, strict=True):
        assert other["scores"] == pytest.approx(one["scores"])
        assert other["labels"] == one["labels"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["model=[ctc_nano]"], "found 1"),
        (["model=[]"], "names no ensemble"),
        (["model=[ctc_nano,,ctc_nano]"], "names no ensemble"),
        (["model=[ctc_nano,ctc_nano"], "names no ensemble"),
        (["model=[ctc_nano,ctc_nano]", "model=[ctc_nano]"], "names no ensemble"),
        (["model=[ctc_nano,whisper_nano]"], "outvote"),
        (["model=[ctc_nano,ast_nano,ctc_nano]"], "ctc_nano can transcribe, and ast_nano can classify"),
        (["model=[ctc_nano,runs/absent,whisper_nano]"], "'runs/absent'"),
        (["model.checkpoint=[assets:ctc-nano,assets:absent,assets:ctc-nano]"], "absent"),
        (["model=ctc_nano", "ensemble.method=mbr"], "one model is named"),
        (["model=[ctc_nano,ctc_nano,ctc_nano]", "ensemble.method=vote"], "ensemble.method"),
        (["model=[ctc_nano,ctc_nano,ctc_nano]", "ensemble.votes=confidence"], "evaluation.confidence=true"),
        (["model=[ctc_nano,ctc_nano,ctc_nano]", "ensemble.deletion_confidence=0.5"], "ensemble.votes is count"),
        (["model=[ctc_nano,ctc_nano,ctc_nano]", "evaluation.keep=nonspeech"], "evaluation.keep is of one model"),
        (["model=[whisper_nano,whisper_nano,whisper_nano]", "evaluation.scores=perplexity"], "label tokens"),
    ],
)
def test_what_is_no_ensemble_is_refused_by_name(words: list[str], match: str) -> None:
    code, _, err = call("evaluate", *words, *TEST)
    assert code == 2
    assert match in err


@pytest.mark.slow
def test_members_that_bring_other_rules_of_scoring_along_are_refused(tmp_path: Path) -> None:
    from sonotune.adapters.kinds.base import AdapterSettings
    from sonotune.adapters.kinds.none import NONE
    from sonotune.loading import open_model

    loaded = NONE.attach(open_model("assets:ctc-nano").loaded, (), AdapterSettings(), None)
    for name in ("basic", "english"):
        NONE.save(loaded, tmp_path / name, extra={"text_scoring": name})
    members = f"model=[{tmp_path / 'basic'},{tmp_path / 'english'},ctc_nano]"
    code, _, err = call("evaluate", members, *TEST)
    assert code == 2
    assert f"english of {tmp_path / 'english'}" in err
    assert "data.text_scoring=VALUE" in err
    body = read("evaluate", members, *TEST, "data.text_scoring=english")
    assert any("is " in warning and "again" in warning for warning in body["warnings"])  # the same weights
