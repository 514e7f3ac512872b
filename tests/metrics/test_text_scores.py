"""The seam of further scores: sums, intervals, what each clip adds, and scores that texts have nothing of."""

from __future__ import annotations

import numpy as np
import pytest

from sonotune import registry
from sonotune.errors import ConfigError, MissingExtraError
from sonotune.metrics.compounds import INSTALL
from sonotune.metrics.error_rate import edit_counts, error_rate
from sonotune.metrics.text_scores import FurtherScores, RateScore, ScoredText, pseudo_values, score_texts
from sonotune.types import LabelTokens

WORDS = ["one", "two", "three", "four,", "five."]
LIBRARY_FREE = [name for name in registry.SCORES if name != "open_asr"]


def random_texts(count: int, seed: int = 0) -> list[ScoredText]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        said = [WORDS[i] for i in rng.integers(0, 5, size=rng.integers(4, 12))]
        heard = [WORDS[rng.integers(0, 5)] if rng.random() < 0.2 else word for word in said if rng.random() > 0.1]
        tokens = LabelTokens(nll=float(rng.gamma(2.0)), count=len(said), right=int(rng.integers(0, len(said))))
        text = " ".join(said), " ".join(heard)
        found.append(
            ScoredText(
                reference=text[0],
                hypothesis=text[1],
                scored_reference=text[0].replace(",", ""),
                scored_hypothesis=text[1].replace(",", ""),
                label_tokens=tokens,
            )
        )
    return found


@pytest.mark.parametrize("name", LIBRARY_FREE)
def test_every_score_describes_itself_and_adds_up(name: str) -> None:
    further = FurtherScores([name])
    score = further.scores[name]
    assert score.name == name
    assert score.title
    assert score.better in ("lower", "higher")
    whole = random_texts(40)
    rows = further.statistics(name, whole)
    assert rows.shape[0] == 40
    np.testing.assert_array_equal(rows[7], score.statistics([whole[7]])[0])  # a clip does not depend on its company
    np.testing.assert_array_equal(rows, further.statistics(name, whole))  # nor on what was asked before
    found = further.score(whole, speakers=[f"s{i % 8}" for i in range(40)])[name]
    assert found.detail["resampled"] == "speaker"
    assert score.limits[0] <= found.low < found.value < found.high <= score.limits[1]
    assert not further.findings(whole)


@pytest.mark.parametrize("name", LIBRARY_FREE)
def test_the_mean_of_what_clips_add_is_the_score(name: str) -> None:
    further, whole = FurtherScores([name]), random_texts(60, seed=1)
    rows = further.statistics(name, whole)
    added = pseudo_values(further.scores[name], rows)
    value = further.score(whole, speakers=None)[name].value
    assert added.mean() == pytest.approx(value)
    # Their spread is that of the score: a normal interval by them is about that of the bootstrap.
    score = score_texts(further.scores[name], rows, speakers=None, resamples=4000)
    assert score is not None
    assert 2 * 1.96 * added.std(ddof=1) / 60**0.5 == pytest.approx(score.high - score.low, rel=0.15)


def test_a_rate_by_sums_is_the_error_rate() -> None:
    texts = random_texts(50, seed=2)
    [score] = FurtherScores(["wer_orthographic"]).score(texts, speakers=None, resamples=3000).values()
    counts = edit_counts([text.reference for text in texts], [text.hypothesis for text in texts], unit="word")
    known = error_rate("wer", counts, bootstrap=3000)
    assert score.value == known.value
    assert (score.low, score.high) == (pytest.approx(known.low, abs=0.01), pytest.approx(known.high, abs=0.01))


def test_texts_with_nothing_of_a_score_are_named_and_have_no_number() -> None:
    bare = ScoredText(reference="one two", hypothesis="one", scored_reference="one two", scored_hypothesis="one")
    further = FurtherScores(["punctuation", "perplexity", "wer_orthographic"])
    assert list(further.score([bare, bare], speakers=None)) == ["wer_orthographic"]
    titles = [finding.message for finding in further.findings([bare, bare])]
    assert [title.split(" is not given")[0] for title in titles] == ["Punctuation error rate", "Perplexity"]


def test_one_speaker_less_than_can_be_resampled_leaves_clips() -> None:
    texts = random_texts(20)
    for speakers, resampled in ((4, "clip"), (5, "speaker")):
        [score] = FurtherScores(["chrf"]).score(texts, speakers=[i % speakers for i in range(20)]).values()
        assert score.detail["resampled"] == resampled


def test_an_unknown_name_and_a_missing_package_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"there is no 'blue'; did you mean 'bleu'\?"):
        FurtherScores(["blue"])
    monkeypatch.setattr("sonotune.metrics.compounds.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as caught:
        FurtherScores(["open_asr"])
    assert INSTALL in str(caught.value)


def test_a_score_of_its_own_total_is_at_most_one() -> None:
    share = RateScore(name="x", title="X", columns=("a", "b"), counted=("a",), total=("a", "b"))
    assert share.limits == (0.0, 1.0)
    assert np.isnan(share.values(np.zeros((1, 2)))).all()
