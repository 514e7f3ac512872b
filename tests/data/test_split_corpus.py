"""A corpus is divided by what is asked, evenly, the same way each time; what is shared is said."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.data.corpus import load_corpus
from sonotune.data.manifest import write_manifest
from sonotune.data.split_corpus import Sizes, Split, split_by_column, split_clips
from sonotune.data.split_folder import parse_sizes
from sonotune.errors import ManifestError
from sonotune.types import Clip

THREE = Sizes(shares={"train": 0.8, "eval": 0.1, "test": 0.1})


def sentence(index: int, words: int = 8) -> str:
    rng = np.random.default_rng(index)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return " ".join("".join(rng.choice(letters, size=rng.integers(3, 9))) for _ in range(words))


def clip(name: str, **more: object) -> Clip:
    values: dict[str, object] = {"path": Path(f"/nowhere/{name}.wav"), "duration_s": 2.0} | more
    return Clip(id=name, **values)  # type: ignore[arg-type]


def corpus(count: int = 400, *, speakers: int = 1, domains: str = "ab", first: int = 0) -> list[Clip]:
    """Clips of 1 to 25 s; every fifth sentence is read twice, the second time with another last word."""
    clips = []
    for index in range(first, first + count):
        text = sentence(index)
        if index % 5 == 1:
            text = " ".join([*sentence(index - 1).split()[:-1], "again"])
        clips.append(
            clip(
                f"c{index}",
                text=text,
                speaker=f"s{index % speakers}",
                duration_s=1.0 + (index * 7) % 25,
                domain=domains[(index // 3) % len(domains)] if domains else None,
            )
        )
    return clips


def share_of(split: Split, part: str) -> float:
    seconds = {name: math.fsum(one.duration_s for one in clips) for name, clips in split.parts.items()}
    return seconds[part] / sum(seconds.values())


def part_of(split: Split) -> dict[str, str]:
    return {one.id: part for part, clips in split.parts.items() for one in clips}


def test_one_speaker_is_divided_by_text_and_near_copies_stay_together():
    clips = corpus()
    split = split_clips(clips, by="text", sizes=THREE)
    parts = part_of(split)
    for index in range(1, 400, 5):
        assert parts[f"c{index}"] == parts[f"c{index - 1}"]
    for name, share in THREE.shares.items():
        assert share_of(split, name) == pytest.approx(share, rel=0.05)
    assert split.shared["eval"]["train"] == {"speakers": 1, "texts": 0, "near_copies": 0}
    assert split.shared["test"].keys() == {"train", "eval"}
    assert split.findings["test"] == []
    [finding] = split.findings["eval"]
    assert finding.check == "leak.speaker"
    assert "this voice only" in finding.message
    alone = split_clips(clips, by="clip", sizes=THREE)
    in_train = {index // 5 for index in range(400) if index % 5 < 2 and part_of(alone)[f"c{index}"] == "train"}
    copied = [index for index in range(400) if index % 5 < 2 and part_of(alone)[f"c{index}"] == "test"]
    expected = sum(index // 5 in in_train for index in copied)
    assert alone.shared["test"]["train"] == {"speakers": 1, "texts": 0, "near_copies": expected}
    assert expected > 0


def test_one_speaker_by_speaker_is_refused_with_the_way_that_works():
    with pytest.raises(ManifestError, match=r"found 1 speaker.*--by text"):
        split_clips(corpus(), sizes=THREE)
    with pytest.raises(ManifestError, match="--by clip"):
        split_clips([clip(str(index), speaker="s") for index in range(9)], sizes=THREE)
    recorded = [clip(str(index), speaker="s", extra={"session": str(index // 3)}) for index in range(9)]
    with pytest.raises(ManifestError, match="--by session"):
        split_clips(recorded, sizes=THREE)
    with pytest.raises(ManifestError, match="Add clips"):
        split_clips(recorded[:2], sizes=THREE)


def test_domains_durations_and_classes_are_spread_evenly():
    clips = [dataclasses.replace(one, label=("yes" if index % 4 else "no",)) for index, one in enumerate(corpus(1200))]
    split = split_clips(clips, by="clip", sizes=THREE)
    for key in (lambda one: one.domain, lambda one: one.label, lambda one: one.duration_s >= 10):
        whole = Counter(key(one) for one in clips)
        for members in split.parts.values():
            found = Counter(key(one) for one in members)
            for value, count in whole.items():
                assert found[value] / len(members) == pytest.approx(count / len(clips), abs=0.05)


def test_a_domain_of_few_speakers_is_in_every_part():
    """By speaker as well: chance alone leaves the rare domain out of one part in most orders."""
    clips = [
        clip(
            f"{speaker}-{index}",
            speaker=f"s{speaker}",
            domain="phone" if speaker < 6 else "studio",
            text=sentence(index),
        )
        for speaker in range(40)
        for index in range(3)
    ]
    for seed in range(5):
        split = split_clips(clips, sizes=THREE, seed=seed)
        for members in split.parts.values():
            assert {one.domain for one in members} == {"phone", "studio"}


@pytest.mark.parametrize("unknown", [0.3, 1.0])
def test_clips_of_unknown_duration_are_spread_like_the_others(unknown: float):
    """Their files cannot be opened; without a weight all of them would go to one part."""
    clips = [dataclasses.replace(one, duration_s=0.0) if i < unknown * 400 else one for i, one in enumerate(corpus())]
    split = split_clips(clips, by="clip", sizes=THREE)
    for part, share in THREE.shares.items():
        found = sum(one.duration_s == 0 for one in split.parts[part]) / sum(one.duration_s == 0 for one in clips)
        assert found == pytest.approx(share, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(
        st.tuples(
            st.none() | st.sampled_from("abcdef"),
            st.sampled_from(["", "one two three", "one two four", "five six seven eight", "yes"]),
            st.just(0.0) | st.floats(0.1, 30),
            st.sampled_from("xyz"),
        ),
        min_size=3,
        max_size=30,
    ),
    by=st.sampled_from(["speaker", "text", "clip", "session", "column=room"]),
    seed=st.integers(0, 3),
)
def test_parts_are_disjoint_complete_never_empty_and_keep_apart_what_was_asked(
    data: list[tuple[str | None, str, float, str]], by: str, seed: int
):
    clips = [
        clip(str(index), speaker=speaker, text=text, duration_s=seconds, extra={"room": room, "session": room})
        for index, (speaker, text, seconds, room) in enumerate(data)
    ]
    kept = {
        "speaker": lambda one: one.speaker or one.path,
        "text": lambda one: one.text or one.id,
        "clip": lambda one: one.id,
        "session": lambda one: one.extra["session"],
        "column=room": lambda one: one.extra["room"],
    }[by]
    if len({kept(one) for one in clips}) < 3 or (by == "text" and not any(one.text for one in clips)):
        with pytest.raises(ManifestError, match=r"cannot be split|no clip with a transcript"):
            split_clips(clips, by=by, sizes=THREE, seed=seed)
        return
    split = split_clips(clips, by=by, sizes=THREE, seed=seed)
    assert list(split.parts) == ["train", "eval", "test"]
    assert all(split.parts.values())
    assert sorted(one.id for part in split.parts.values() for one in part) == sorted(one.id for one in clips)
    for part in split.parts.values():
        assert list(part) == [one for one in clips if one in part]
    owners = [{kept(one) for one in part} for part in split.parts.values()]
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_the_clips_and_the_seed_decide_and_nothing_else():
    clips = corpus(speakers=40)
    for by in ("speaker", "text", "clip"):
        first = part_of(split_clips(clips, by=by, sizes=THREE))
        moved = [dataclasses.replace(one, path=Path("/elsewhere") / one.path.name) for one in clips]
        assert part_of(split_clips(moved[::-1], by=by, sizes=THREE)) == first
        assert part_of(split_clips(clips, by=by, sizes=THREE, seed=1)) != first


@pytest.mark.parametrize("by", ["text", "clip", "speaker"])
def test_clips_that_are_added_move_few_others(by: str):
    clips = corpus(2000, speakers=500)
    before = part_of(split_clips(clips, by=by, sizes=THREE))
    after = part_of(split_clips([*clips, *corpus(200, speakers=500, first=2000)], by=by, sizes=THREE))
    moved = [name for name, part in before.items() if after[name] != part]
    assert len(moved) < 0.03 * len(clips)  # a draw over the whole list moves a third
    assert before != {name: after[name] for name in before} or not moved


def test_the_same_seconds_and_the_same_bytes_go_together_whatever_is_asked(tmp_path: Path):
    rng = np.random.default_rng(0)
    clips = []
    for index in range(30):
        samples = rng.normal(size=4000) * 0.1
        for copy in ("a", "b"):
            soundfile.write(tmp_path / f"{copy}{index}.wav", samples, 8000)
            clips.append(clip(f"{copy}{index}", path=tmp_path / f"{copy}{index}.wav", duration_s=0.5, speaker="s"))
    long = [clip(f"l{i}", path=tmp_path / "long.wav", start_s=i * 0.5, duration_s=0.8, speaker="s") for i in range(9)]
    split = split_clips([*clips, *long], by="clip", sizes=THREE)
    parts = part_of(split)
    assert all(parts[f"a{index}"] == parts[f"b{index}"] for index in range(30))
    assert len({parts[one.id] for one in long}) == 1
    assert {finding.check for found in split.findings.values() for finding in found} == {"leak.speaker"}


def test_speakers_who_read_the_same_sentences_are_still_divided():
    """All of them share all texts: kept together they would be one group."""
    clips = [clip(f"{s}-{i}", speaker=f"s{s}", text=sentence(i)) for s in range(20) for i in range(5)]
    split = split_clips(clips, sizes=THREE)
    assert split.shared["test"]["train"] == {"speakers": 0, "texts": 5, "near_copies": 5}
    assert [finding.check for finding in split.findings["test"]] == ["leak.sentence"]
    pairs = [clip(f"{s}-{i}", speaker=f"s{s}", text=sentence(100 * (s // 2) + i)) for s in range(60) for i in range(3)]
    kept = split_clips(pairs, sizes=THREE)
    assert kept.shared["test"]["train"]["texts"] == 0
    assert share_of(kept, "test") == pytest.approx(0.1, rel=0.25)


def test_near_copies_that_chain_through_everything_leave_exact_copies_together():
    texts = [f"turn on the light number {index} in the kitchen please" for index in range(1000)]
    clips = [clip(str(index), text=text, speaker="s") for index, text in enumerate([*texts, *texts[:50]])]
    split = split_clips(clips, by="text", sizes=THREE)
    assert split.shared["test"]["train"]["texts"] == 0
    assert share_of(split, "test") == pytest.approx(0.1, rel=0.1)
    assert any("only exact copies" in note for note in split.notes)


def test_a_session_is_a_column_or_a_file_of_several_clips():
    spans = [clip(f"{f}-{i}", path=Path(f"/nowhere/{f}.wav"), start_s=3.0 * i) for f in range(12) for i in range(4)]
    split = split_clips(spans, by="session", sizes=THREE)
    for part in split.parts.values():
        assert all(count == 4 for count in Counter(one.path for one in part).values())
    with pytest.raises(ManifestError, match=r"nothing says which clips were recorded together.*--by text"):
        split_clips(corpus(), by="session", sizes=THREE)


# --- columns -------------------------------------------------------------------------------------


def with_column(values: Sequence[str | None], name: str = "split") -> list[Clip]:
    return [
        clip(str(index), text=sentence(index), speaker="s", extra={} if value is None else {name: value})
        for index, value in enumerate(values)
    ]


def test_a_split_column_decides():
    split = split_by_column(with_column(["train", "dev", "test", "Train", "validation", "val", "eval"]), "split")
    assert split is not None
    assert {part: [one.id for one in clips] for part, clips in split.parts.items()} == {
        "train": ["0", "3"],
        "eval": ["1", "4", "5", "6"],
        "test": ["2"],
    }
    assert split.shared["eval"]["train"]["speakers"] == 1
    assert split_by_column(with_column(["train", "dev"], "subset"), "subset") is not None


def test_other_columns_group_clips():
    clips = with_column([str(index // 5) for index in range(60)], "book")
    assert split_by_column(clips, "book") is None
    split = split_clips(clips, by="column=book", sizes=THREE)
    books = [{one.extra["book"] for one in part} for part in split.parts.values()]
    assert sum(map(len, books)) == 12


def test_columns_that_cannot_be_used_are_refused():
    for values, said in (
        (["train", None], "1 of 2 clips have no value, such as clip '1'"),
        (["train", "other"], "'other'; allowed are train"),
        (["dev", "test"], "no clip for training"),
    ):
        with pytest.raises(ManifestError, match=said):
            split_by_column(with_column(values), "split")
    with pytest.raises(ManifestError, match=r"no clip with that column.*did you mean 'split'"):
        split_by_column(with_column(["train", "dev"]), "spilt")
    with pytest.raises(ManifestError, match=r"found 'speakers'; did you mean 'speaker'"):
        split_clips(corpus(), by="speakers", sizes=THREE)


# --- sizes and the gate --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "share", "unit"),
    [
        ("0.2", 0.2, "seconds"),
        ("20%", 0.2, "seconds"),
        ("20clips", 0.2, "clips"),
        ("40 s", 0.2, "seconds"),
        ("1min", 0.3, "seconds"),
        ("0.01h", 0.18, "seconds"),
        (".5", 0.5, "seconds"),
        ("0", None, "seconds"),
    ],
)
def test_sizes(asked: str, share: float | None, unit: str):
    clips = [clip(str(index)) for index in range(100)]
    sizes = parse_sizes(clips, evaluation="0", test=asked)
    assert sizes.unit == unit
    assert sizes.shares.get("test") == (None if share is None else pytest.approx(share))
    assert sum(sizes.shares.values()) == pytest.approx(1)
    if share is not None:
        split = split_clips(clips, by="clip", sizes=sizes)
        assert len(split.parts["test"]) == pytest.approx(100 * share, abs=1)


@pytest.mark.parametrize(
    ("evaluation", "test", "said"),
    [
        ("many", "0.1", "'many'"),
        ("-0.1", "0.1", "'-0.1'"),
        ("nan", "0.1", "'nan'"),
        ("10clips", "10s", "Give both alike"),
        ("0.5", "0.5", "nothing to train on"),
        (float("nan"), 0.1, "nan"),
        (-0.1, 0.1, "-0.1"),
        ("90clips", "20clips", "nothing to train on"),
    ],
)
def test_sizes_that_cannot_be_used_are_refused(evaluation: str | float, test: str | float, said: str):
    with pytest.raises(ManifestError, match=said):
        parse_sizes([clip(str(index)) for index in range(100)], evaluation=evaluation, test=test)


def test_a_share_may_be_a_small_number():
    shares = parse_sizes([clip("a")], evaluation=1e-5, test=0.0).shares
    assert shares == {"train": pytest.approx(1 - 1e-5), "eval": 1e-5}


def test_what_a_split_says_is_what_train_says_and_its_gate_lets_it_pass(tmp_path: Path):
    rng = np.random.default_rng(0)
    clips = []
    for index in range(30):
        soundfile.write(tmp_path / f"{index}.wav", rng.normal(size=4800) * 0.1, 8000)
        text = sentence(index % 10)
        clips.append(clip(str(index), path=tmp_path / f"{index}.wav", duration_s=0.6, speaker="s", text=text))
    split = split_clips(clips, by="clip", sizes=Sizes(shares={"train": 0.7, "eval": 0.3}))
    for name, members in split.parts.items():
        write_manifest(tmp_path / f"{name}.jsonl", members)

    def load(sources: dict[str, str]):
        return load_corpus(
            sources,
            root=None,
            allow_outside_root=False,
            min_duration_s=0.1,
            max_duration_s=None,
            check="header",
            max_bad_fraction=0.0,
            truncated="use",
            eval_speakers=(),
            eval_fraction=0.1,
            leaks="stop",
            limit=None,
            seed=0,
        )

    found = load({name: str(tmp_path / f"{name}.jsonl") for name in split.parts})
    assert [finding.check for finding in found.findings] == ["leak.speaker", "leak.sentence"]
    assert list(found.findings) == list(split.findings["eval"])
    with pytest.raises(ManifestError, match=r"sonotune data split .*train.jsonl FOLDER --by text"):
        load({"train": str(tmp_path / "train.jsonl")})
