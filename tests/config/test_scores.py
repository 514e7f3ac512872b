"""Names of scores in settings."""

from __future__ import annotations

import pytest

from sonotune.config.load import load_run_config
from sonotune.errors import ConfigError


def test_scores_are_named_in_a_list_and_any_of_them_can_decide():
    config = load_run_config(["model=whisper_nano", "evaluation.scores=[bleu,chrf]", "evaluation.primary=bleu"]).config
    assert config.evaluation.scores == ("bleu", "chrf")
    assert config.evaluation.primary == "bleu"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("evaluation.scores=[blue]", "known: wer, cer, bleu, chrf"),
        ("evaluation.scores=[bleu,bleu]", "'bleu' stands twice"),
        ("evaluation.primary=mos", "known: wer, cer, accuracy, f1_macro, map, bleu"),
        ("evaluation.snr_edges_db=[20,10]", "snr_edges_db must rise"),
    ],
)
def test_wrong_names_and_edges_are_refused(word: str, said: str):
    with pytest.raises(ConfigError) as caught:
        load_run_config(["model=whisper_nano", word])
    assert said in str(caught.value)


def test_defaults_leave_the_digest_of_earlier_runs():
    plain = load_run_config(["model=whisper_nano"])
    named = load_run_config(["model=whisper_nano", "evaluation.scores=[]", "evaluation.snr_edges_db=[]"])
    more = load_run_config(["model=whisper_nano", "evaluation.scores=[bleu]"])
    assert plain.digest == named.digest != more.digest
