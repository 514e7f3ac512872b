"""Near copies are found among many texts; others are left apart."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.data.similar_texts import near_copies

SENTENCE = "the ministry of health reported fourteen more cases on monday"


def sentences(count: int, *, words: int = 12, seed: int = 0) -> list[str]:
    """Sentences of made-up words, no two alike."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(rng.choice(letters, size=rng.integers(2, 9))) for _ in range(3000)]
    return [" ".join(vocabulary[index] for index in rng.integers(0, 3000, size=words)) for _ in range(count)]


def test_clusters_are_numbered_by_their_first_text():
    assert near_copies([]).tolist() == []
    assert near_copies(["a", "b", "a", "", "ab", ""]).tolist() == [0, 1, 0, 2, 3, 2]


@pytest.mark.parametrize(
    "copy",
    [
        SENTENCE.replace("fourteen", "fifteen"),
        SENTENCE.replace("ministry", "minstry"),
        SENTENCE.removesuffix(" on monday"),
        "and so " + SENTENCE,
    ],
)
def test_a_sentence_with_a_word_changed_is_a_near_copy(copy: str):
    texts = [*sentences(200), SENTENCE, *sentences(200, seed=1), copy]
    clusters = near_copies(texts)
    assert clusters[200] == clusters[-1]
    assert len(set(clusters.tolist())) == len(texts) - 1


def test_scripts_without_spaces_are_compared_alike():
    texts = [
        "今天的天气非常好我们一起去公园散步吧",
        "今天的天气非常好我们一起去公园跑步吧",
        "明天早上八点钟火车从北京出发",
    ]
    clusters = near_copies(texts)
    assert clusters[0] == clusters[1] != clusters[2]


def test_other_sentences_of_the_same_words_are_no_copies():
    assert near_copies(["call anna tomorrow morning", "tomorrow bernard rings the doctor"]).tolist() == [0, 1]
    assert near_copies(["three", "tree", "free"]).tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=12), st.randoms())
def test_equal_texts_share_a_cluster_and_the_order_does_not_matter(texts: list[str], random: object):
    clusters = near_copies(texts).tolist()
    assert len(clusters) == len(texts)
    of_text = dict(zip(texts, clusters, strict=True))
    assert [of_text[text] for text in texts] == clusters
    turned = dict(zip(texts[::-1], near_copies(texts[::-1]).tolist(), strict=True))
    for one in texts:
        for other in texts:
            assert (of_text[one] == of_text[other]) == (turned[one] == turned[other])


def test_the_work_grows_with_the_texts_and_not_with_their_pairs():
    texts = sentences(8000)
    near_copies(texts[:100])
    took_s = []
    for count in (2000, 8000):
        began = time.process_time()
        near_copies(texts[:count])
        took_s.append(time.process_time() - began)
    assert took_s[1] < 10 * took_s[0]  # 4 where linear, 16 where by pairs
    templates = [f"turn on the light number {index} in the kitchen please" for index in range(8000)]
    began = time.process_time()
    assert len(set(near_copies(templates).tolist())) == 1
    assert time.process_time() - began < 10 * took_s[1]
