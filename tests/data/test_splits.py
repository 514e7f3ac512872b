"""No speaker in two parts, whatever the data; and every kind of leak is found."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.data.splits import check_leaks, split_by_speaker
from sonotune.errors import ManifestError
from sonotune.types import Clip


def clip(name: str, speaker: str | None, seconds: float = 1.0, path: str | None = None, **more: object) -> Clip:
    place = Path(f"/nowhere/{path or name}.wav")
    return Clip(id=name, path=place, duration_s=seconds, speaker=speaker, **more)  # type: ignore[arg-type]


def corpus(num_speakers: int, clips_each: int = 3) -> list[Clip]:
    return [clip(f"s{s}-{i}", f"s{s}", 1.0 + (s * 7 + i) % 5) for s in range(num_speakers) for i in range(clips_each)]


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(
        st.tuples(st.none() | st.sampled_from("abcdefgh"), st.sampled_from("xyz"), st.floats(0.1, 30)),
        min_size=1,
        max_size=40,
    ),
    seed=st.integers(0, 5),
)
def test_parts_are_disjoint_complete_and_never_empty(data: list[tuple[str | None, str, float]], seed: int) -> None:
    clips = [clip(str(i), speaker, seconds, path) for i, (speaker, path, seconds) in enumerate(data)]
    groups = {c.speaker or c.path for c in clips}
    fractions = {"train": 0.7, "eval": 0.2, "test": 0.1}
    if len(groups) < 3:
        with pytest.raises(ManifestError, match="cannot be split"):
            split_by_speaker(clips, fractions=fractions, seed=seed)
        return
    parts = split_by_speaker(clips, fractions=fractions, seed=seed)
    assert list(parts) == list(fractions)
    assert all(parts.values())
    assert sorted(c.id for part in parts.values() for c in part) == sorted(c.id for c in clips)
    owners = [{c.speaker or c.path for c in part} for part in parts.values()]
    assert sum(map(len, owners)) == len(groups)
    for part in parts.values():
        assert part == [c for c in clips if c in part]


def test_shares_are_of_the_duration() -> None:
    clips = corpus(60)
    total = math.fsum(c.duration_s for c in clips)
    parts = split_by_speaker(clips, fractions={"train": 0.8, "eval": 0.15, "test": 0.05}, seed=1)
    for part, share in (("train", 0.8), ("eval", 0.15), ("test", 0.05)):
        assert math.fsum(c.duration_s for c in parts[part]) / total == pytest.approx(share, abs=0.02)


def test_one_long_speaker_does_not_go_to_evaluation() -> None:
    clips = [clip("long", "a", 100.0), *(clip(f"b{i}", f"b{i}", 2.0) for i in range(5))]
    parts = split_by_speaker(clips, seed=3)
    assert "long" in {c.id for c in parts["train"]}


def test_the_seed_decides_and_nothing_else() -> None:
    clips = corpus(40)
    first = split_by_speaker(clips, seed=0)
    assert split_by_speaker(clips, seed=0) == first
    again = split_by_speaker(clips[::-1], seed=0)
    assert {c.id for c in again["eval"]} == {c.id for c in first["eval"]}
    assert len({frozenset(c.speaker for c in split_by_speaker(clips, seed=s)["eval"]) for s in range(5)}) > 1


def test_named_speakers() -> None:
    clips = [*corpus(3), clip("anonymous", None)]
    parts = split_by_speaker(clips, eval_speakers=["s1"])
    assert {c.speaker for c in parts["eval"]} == {"s1"}
    assert {c.speaker for c in parts["train"]} == {"s0", "s2", None}


def test_refusals() -> None:
    clips = corpus(2)
    for arguments, said in (
        ({"eval_speakers": ["s10"]}, "'s10'.*s0, s1"),
        ({"eval_speakers": ["s0", "s1"]}, "nothing to train on"),
        ({"eval_speakers": ["s0"], "fractions": {"train": 1.0}}, "both"),
        ({"fractions": {"train": 0.9, "eval": 0.2}}, "add up to 1"),
        ({"fractions": {"train": 1.0, "eval": 0.0}}, "above 0"),
        ({"fractions": {"train": float("nan"), "eval": 0.5}}, "above 0"),
        ({"fractions": {}}, "add up to 1"),
    ):
        with pytest.raises(ManifestError, match=said):
            split_by_speaker(clips, **arguments)
    with pytest.raises(ManifestError, match=r"found 1 speaker"):
        split_by_speaker(corpus(1), seed=0)
    with pytest.raises(ManifestError, match=r"found 0 speaker"):
        split_by_speaker([])


# --- leaks ---------------------------------------------------------------------------------------


def by_check(train: list[Clip], evaluation: list[Clip]) -> dict[str, tuple[str, ...]]:
    findings = check_leaks(train, {"eval": evaluation})["eval"]
    assert all(finding.severity == ("error" if finding.check in ERRORS else "note") for finding in findings)
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding.clip_ids for finding in findings}


ERRORS = {"leak.speaker", "leak.id", "leak.span", "leak.audio"}


def test_clean_sets_have_no_leak() -> None:
    assert check_leaks([clip("a", "s1", text="one")], {"eval": [clip("b", "s2", text="two")]}) == {"eval": []}


def test_a_split_of_ours_does_not_leak() -> None:
    parts = split_by_speaker(corpus(10), seed=2)
    assert check_leaks(parts["train"], {"eval": parts["eval"]}) == {"eval": []}


def test_shared_speakers_and_ids() -> None:
    train = [clip("a", "s1"), clip("b", "s2"), clip("c", "s3")]
    found = by_check(train, [clip("d", "s2"), clip("c", "s9", path="other")])
    assert found == {"leak.speaker": ("b", "d"), "leak.id": ("c",)}


def test_overlapping_spans_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "real.wav").write_bytes(b"x")
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    whole = Clip(id="a", path=tmp_path / "real.wav", start_s=2.0, duration_s=3.0, speaker="s1")
    after = Clip(id="b", path=tmp_path / "link.wav", start_s=5.0, duration_s=3.0, speaker="s2")
    assert by_check([whole], [after]) == {}
    assert by_check([whole], [dataclasses.replace(after, start_s=4.5)]) == {"leak.span": ("a", "b")}


def test_the_same_recording_under_another_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(size=800) * 0.1, 8000)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    clips = {
        name: Clip(id=name, path=tmp_path / f"{name}.wav", duration_s=0.1, speaker=name)
        for name in ("a", "b", "copy", "gone")
    }
    assert by_check([clips["a"]], [clips["b"], clips["gone"]]) == {}
    assert by_check([clips["a"], clips["gone"]], [clips["b"], clips["copy"]]) == {"leak.audio": ("a", "copy")}


def test_sentences_and_missing_speakers_are_notes() -> None:
    found = by_check([clip("a", "s1", text="One, two!")], [clip("b", None, text="one two"), clip("c", "s2", text="")])
    assert found == {"leak.sentence": ("a", "b"), "leak.unchecked": ("b",)}


def test_each_finding_names_its_split_and_what_holds_for_all_is_said_once() -> None:
    train, scored = [clip("a", "s1"), clip("b", "s2")], {"eval": [clip("c", "s1")], "test": [clip("d", "s2")]}
    found = check_leaks(train, scored)
    assert [one.message.split(",")[0] for one in found["eval"]] == ["train and eval share 1 speaker ('s1')"]
    assert [one.message.split(",")[0] for one in found["test"]] == ["train and test share 1 speaker ('s2')"]
    found = check_leaks([clip("a", "s1")], {"eval": [clip("c", "s1")], "test": [clip("d", "s1")]})
    assert found["test"] == []
    [one] = found["eval"]
    assert (one.check, one.severity, one.clip_ids) == ("leak.speaker", "warning", ("a", "c", "d"))
    assert one.message.startswith("train, eval and test share their only speaker ('s1')")
    nameless = check_leaks([clip("a", None), clip("b", None)], {"eval": [clip("c", None)], "test": [clip("d", "s1")]})
    assert nameless["test"] == []
    [one] = nameless["eval"]
    assert one.message.startswith("3 clips name no speaker (train 2, eval 1): ")


def test_two_channels_of_one_call_are_two_recordings(tmp_path: Path) -> None:
    (tmp_path / "call.wav").write_bytes(b"x")
    agent = Clip(id="a", path=tmp_path / "call.wav", duration_s=3.0, channel=0, speaker="agent")
    customer = Clip(id="b", path=tmp_path / "call.wav", duration_s=3.0, channel=1, speaker="customer")
    assert by_check([agent], [customer]) == {}
    assert by_check([agent], [dataclasses.replace(customer, channel=0)]) == {"leak.span": ("a", "b")}
    assert by_check([agent], [dataclasses.replace(customer, channel=None)]) == {"leak.span": ("a", "b")}
