"""Transcripts become targets, or findings; predictions become scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sonotune.data.text import get
from sonotune.errors import ConfigError, MissingExtraError
from sonotune.models.base import LoadedModel
from sonotune.models.decoding import TOKENS_MARGIN
from sonotune.models.families.ctc import CtcFamily
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.probe import probe_batch
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, DecodingSettings, Prediction

FAMILY = WhisperFamily()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return FAMILY.load("assets:whisper-nano")


def task(
    *, language: str | None = "en", training: str = "basic", scoring: str = "basic", limit: int | None = None
) -> Transcribe:
    settings = TaskSettings(
        training_text=get(training), scoring_text=get(scoring), language=language, max_label_tokens=limit
    )
    return Transcribe(FAMILY, settings)


def clip(number: int, text: str | None, **changes: str | None) -> Clip:
    return Clip(id=f"c{number}", path=Path("x.wav"), duration_s=1.0, text=text, **changes)  # type: ignore[arg-type]


def spoken(*texts: str) -> list[Clip]:
    return [clip(number, text) for number, text in enumerate(texts)]


def predictions(*texts: str | None) -> list[Prediction]:
    return [Prediction(clip_id=f"c{number}", text=text) for number, text in enumerate(texts)]


def test_targets_are_the_prompt_the_training_form_and_the_end(loaded: LoadedModel):
    prepared = task().prepare(loaded, [clip(0, "Seven\u200b, two")])
    [ids], [kept] = prepared.targets, prepared.clips
    assert kept.text == get("basic").training("Seven\u200b, two")
    assert kept.language == "en"
    assert FAMILY.decode_text(loaded, ids.tolist()) == kept.text
    assert ids[0] == loaded.module.config.decoder_start_token_id
    assert ids[-1] == loaded.module.config.eos_token_id
    assert not prepared.findings


def test_the_language_of_a_clip_goes_before_that_of_the_task(loaded: LoadedModel):
    prepared = task().prepare(loaded, [clip(0, "seven"), clip(1, "seven", language="he")])
    english, hebrew = prepared.targets
    assert english[1] != hebrew[1]
    assert [kept.language for kept in prepared.clips] == ["en", "he"]


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [
        ("one <|endoftext|>", "en", "cannot write"),
        ("seven", "klingon", "'klingon'"),
        ("seven", None, "model.language=en"),
    ],
)
def test_what_cannot_be_a_target_is_a_finding_that_names_the_clip(
    loaded: LoadedModel, text: str, language: str | None, said: str
):
    good = clip(0, "two", language="en")
    prepared = task(language=None).prepare(loaded, [good, clip(1, text, language=language), replace(good, id="c2")])
    [finding] = prepared.findings
    assert finding.check == "text.not_encodable"
    assert finding.severity == "error"
    assert finding.clip_ids == ("c1",)
    assert said in finding.message
    assert "'c1'" in finding.message
    assert [kept.id for kept in prepared.clips] == ["c0", "c2"]
    assert len(prepared.targets) == 2


def test_transcripts_beyond_the_decoder_are_left_out_together_and_are_not_bad(loaded: LoadedModel):
    clips = [clip(0, "two"), clip(1, "seven " * 60), clip(2, "one <|endoftext|>"), clip(3, "seven " * 70)]
    prepared = task().prepare(loaded, clips)
    bad, long = prepared.findings
    assert (long.check, long.severity, long.clip_ids) == ("data.text_too_long", "warning", ("c1", "c3"))
    assert long.message.startswith("2 of 4 training transcripts are longer than the model can write")
    assert "Of clip 'c1': the transcript needs" in long.message
    assert prepared.dropped == (bad,)
    assert [kept.id for kept in prepared.clips] == ["c0"]


def test_clips_of_a_language_that_the_model_lacks_are_a_finding_each_time_they_are_scored(loaded: LoadedModel):
    one, clips = task(language=None), [clip(0, "seven", language="gn"), clip(1, "two", language="en")]
    for _ in range(2):
        one.check_references(loaded, clips)
        _, findings = one.details(predictions("seven", "two"), clips)
        [found] = [finding for finding in findings if finding.check == "text.language"]
        assert (found.severity, found.clip_ids) == ("warning", ("c0",))
        assert "does not know the language 'gn'" in found.message
    one.check_references(loaded, clips[1:])
    assert not [one for one in one.details(predictions("two"), clips[1:])[1] if one.check == "text.language"]


def test_a_language_that_is_none_is_refused_before_anything_is_written(loaded: LoadedModel):
    for method in (task(language="hebrw").prepare, task(language="hebrw").check_references):
        with pytest.raises(ConfigError, match=r"model\.language=hebrw: .*did you mean he \(Hebrew\)\?"):
            method(loaded, [clip(0, "seven")])


@pytest.mark.parametrize(
    "text",
    ["\u200b\u200d", "...", " \u05be ", "\ufe0f", "?!", "\u0301", "\u3164 \u115f\u1160", "\uffa0", "\u2800\u2800"],
)
def test_a_transcript_that_says_nothing_is_not_trained_on(loaded: LoadedModel, text: str):
    prepared = task().prepare(loaded, [clip(0, "two"), clip(1, text), clip(2, "\u05d0\u05d1"), clip(3, "5 %")])
    [finding] = prepared.findings
    assert (finding.check, finding.severity, finding.clip_ids) == ("text.empty", "error", ("c1",))
    assert [kept.id for kept in prepared.clips] == ["c0", "c2", "c3"]


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_only_the_tokens_of_the_text_are_limited(loaded: LoadedModel, limit: int):
    clips = [clip(0, "seven two nine one six"), clip(1, "", language="he")]
    whole, empty = task().prepare(loaded, clips).targets
    assert len(whole) > len(empty) + 4
    prepared = task(limit=limit).prepare(loaded, clips)
    prompt = len(empty) - 1
    assert prepared.targets[0].tolist() == whole[: prompt + limit].tolist()  # and no end
    assert prepared.targets[1].tolist() == empty.tolist()
    [finding] = prepared.findings
    assert (finding.check, finding.severity, finding.clip_ids) == ("text.truncated", "warning", ("c0",))
    assert f"data.max_label_tokens={limit}" in finding.message
    assert task(limit=len(whole) - len(empty)).prepare(loaded, clips).findings == ()


def test_where_text_is_aligned_with_the_audio_a_long_one_is_left_out(loaded: LoadedModel):
    """Its beginning alone would teach that the rest of the clip is silence."""
    clips = [clip(0, "seven"), clip(1, "seven two nine")]
    settings = TaskSettings(training_text=get("basic"), max_label_tokens=5)
    ctc = CtcFamily().load("assets:ctc-nano")
    hybrid = Transcribe(FAMILY, replace(settings, aligned=True, language="en"))
    for made, model in ((Transcribe(CtcFamily(), settings), ctc), (hybrid, loaded)):
        prepared = made.prepare(model, [replace(one, duration_s=5.0) for one in clips])
        assert [kept.id for kept in prepared.clips] == ["c0"]
        [finding] = prepared.findings
        assert (finding.check, finding.severity, finding.clip_ids) == ("data.too_many_tokens", "warning", ("c1",))
        assert prepared.dropped == ()  # the setting asks for it; the data are sound


def test_scores_compare_scoring_forms_and_count_each_kind_of_error():
    clips = [clip(0, "One, two!", speaker="a"), clip(1, "three four", speaker="b"), clip(2, "five", speaker="b")]
    scores = task().score(predictions("one TWO", "three for four", ""), clips, resamples=100)
    wer = scores["wer"]
    assert wer.detail["insertions"] == 1
    assert wer.detail["deletions"] == 1  # an empty hypothesis
    assert wer.detail["substitutions"] == 0
    assert wer.value == pytest.approx(2 / 5)
    assert wer.low <= wer.value <= wer.high
    assert wer.count == 3
    exact = task(scoring="identity").score(predictions("one TWO", "three for four", ""), clips, resamples=100)
    assert exact["wer"].value == pytest.approx(4 / 5)


def test_no_text_at_all_counts_as_deletions():
    scores = task().score(predictions(None), [clip(0, "one two three")], resamples=100)
    assert scores["wer"].value == 1.0
    assert scores["wer"].detail["deletions"] == 3
    assert scores["cer"].value == 1.0


def test_predictions_come_in_the_order_of_the_batch(loaded: LoadedModel):
    batch = probe_batch(loaded)
    found = task().predict(loaded, batch, DecodingSettings(max_new_tokens=4))
    assert [prediction.clip_id for prediction in found] == [made.id for made in batch.clips]
    spoken = replace(batch, clips=tuple(replace(made, language="he") for made in batch.clips))
    assert [item.text for item in task(language=None).predict(loaded, spoken, DecodingSettings(max_new_tokens=4))] == [
        item.text for item in task(language="he").predict(loaded, batch, DecodingSettings(max_new_tokens=4))
    ]


@pytest.mark.parametrize(
    ("texts", "decides"),
    [
        (["one two three", "four"], "wer"),
        (["Donaudampfschifffahrt", "und Kapitänsmütze"], "wer"),
        (["今天天气很好", "hello"], "cer"),
        (["今日はいい天気です"], "cer"),
        (["รัฐบาลตัดสินใจเพิ่มค่าแรง"], "cer"),
        (["བོད་ཡིག"], "cer"),
        (["ဒီနေ့ ရာသီဥတု ကောင်းတယ်"], "cer"),
        (["오늘 날씨가 좋네요"], "wer"),
        (["onetwothreefour", "fivesixseveneight"], "cer"),
        (["", "42"], "wer"),
    ],
)
def test_the_score_that_decides_follows_the_script(texts: list[str], decides: str):
    made, said = predictions(*texts), spoken(*texts)
    assert task().primary_of(said)[0] == decides
    roles = {name: score.role for name, score in task().score(made, said, resamples=100).items()}
    assert roles == {name: "primary" if name == decides else "plain" for name in ("wer", "cer")}
    for asked in ("wer", "cer"):
        chosen = Transcribe(FAMILY, TaskSettings(primary=asked))
        assert chosen.score(made, said, resamples=100)[asked].role == "primary"
    assert task().score(made, said, primary="cer", resamples=100)["cer"].role == "primary"


def test_a_score_of_another_task_cannot_decide():
    with pytest.raises(ConfigError, match="accuracy is no score that can decide for the task transcribe; it has wer"):
        Transcribe(FAMILY, TaskSettings(primary="accuracy"))


def test_what_was_cut_and_written_on_silence_is_counted_in_the_score():
    said = spoken("go home", "", "")
    made = [replace(one, cut=one.clip_id == "c0") for one in predictions("go", "thank you", "")]
    score = task().score(made, said, resamples=100)["wer"]
    assert {name: score.detail[name] for name in ("cut", "silent_clips", "silent_words")} == {
        "cut": 1,
        "silent_clips": 2,
        "silent_words": 2,
    }
    assert score.value == pytest.approx(3 / 2)
    assert task().row(made[0], said[0])["cut"] is True
    assert "cut" not in task().row(made[1], said[1])


def test_the_densest_transcripts_are_told(loaded: LoadedModel):
    plain = [replace(clip(number, "seven"), id=f"p{number}") for number in range(3)]
    assert task().prepare(loaded, plain).tokens_per_second == 0  # the margin is room enough
    dense = clip(9, "seven " * 15)  # 89 letters and spaces, and the end, in one second
    assert task().prepare(loaded, [*plain, dense]).tokens_per_second == 90 - TOKENS_MARGIN
    many = [replace(one, id=f"{number}{one.id}") for number in range(40) for one in plain]
    assert task().prepare(loaded, [*many, dense]).tokens_per_second == 0  # one of 121: rather a mistake
    assert task().prepare(loaded, []).tokens_per_second == 0


def test_an_empty_transcript_is_learned_where_it_is_given(loaded: LoadedModel):
    prepared = task().prepare(loaded, [clip(0, ""), clip(1, " ")])
    prompt = task().prepare(loaded, [clip(0, "one")]).targets[0][:4].tolist()
    assert [ids.tolist() for ids in prepared.targets] == [[*prompt, loaded.module.config.eos_token_id]] * 2
    assert not prepared.findings


def test_loops_stand_beside_the_rate_and_are_cut_in_a_rate_of_their_own():
    said = spoken("go home", "fine")
    scores = task().score(predictions("go " * 12 + "home", "fine"), said, resamples=100)
    assert scores["wer"].detail["loops"] == 1
    assert scores["wer"].value == pytest.approx(11 / 3)
    assert scores["wer_loops_cut"].value == 0
    assert scores["wer"].role == "primary"
    fine = task().score(predictions("go home", "fine"), said, resamples=100)
    assert fine["wer"].detail["loops"] == 0
    assert set(fine) == {"wer", "cer"}


def test_texts_that_were_decoded_again_are_counted():
    made = [replace(one, attempts=attempts) for one, attempts in zip(predictions("a", "b"), (1, 3), strict=True)]
    details, _ = task().details(made, spoken("a", "b"))
    assert details["decoding"]["fallbacks"] == 1


# --- numbers as words ----------------------------------------------------------------------------


def spoken_task(*, language: str | None = "en", verbalize: bool | str = "auto") -> Transcribe:
    return Transcribe(FAMILY, TaskSettings(language=language, verbalize_numbers=verbalize))  # type: ignore[arg-type]


@pytest.mark.parametrize("verbalize", ["auto", True, False])
def test_numbers_as_words_that_stood_beside_an_earlier_score_are_kept(verbalize: bool | str):
    clips, written = spoken("three", "four"), predictions("three", "four")
    one = spoken_task(verbalize=verbalize)
    one.keep_scores({"wer", "cer"})
    assert ("wer_numbers_verbalized" in one.score(written, clips, resamples=100)) == (verbalize is True)
    one.keep_scores({"wer", "wer_numbers_verbalized"})
    assert ("wer_numbers_verbalized" in one.score(written, clips, resamples=100)) == (verbalize is not False)


def test_numbers_as_words_stand_beside_the_word_error_rate_and_leave_it_alone():
    clips = [clip(0, "I have three cats"), clip(1, "20 dogs and a mouse")]
    made = predictions("I have 3 cats.", "Twenty dogs and the mouse")
    scores = spoken_task().score(made, clips, resamples=100)
    without = spoken_task(verbalize=False).score(made, clips, resamples=100)
    assert list(scores) == ["wer", "cer", "wer_numbers_verbalized"]
    assert {name: scores[name] for name in without} == without
    assert scores["wer"].value == pytest.approx(3 / 9)
    spoken = scores["wer_numbers_verbalized"]
    assert (spoken.value, spoken.count, spoken.better) == (pytest.approx(1 / 9), 2, "lower")
    assert spoken.low <= spoken.value <= spoken.high
    assert spoken.low < spoken.high


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "verbalize", "shown"),
    [
        ("three", "3", "en", "auto", True),
        ("three", "3", "English", "auto", True),
        ("٣", "ثلاثة", "ar", "auto", True),
        ("3", "4", "en", "auto", False),  # digits on both sides
        ("three", "four", "en", "auto", False),
        ("three", "3", "sw", "auto", False),
        ("three", "3", None, "auto", False),
        ("three", "3", "en", False, False),
        ("three", "four", "en", True, True),
        ("tatu", "3", "sw", True, False),
    ],
)
def test_when_numbers_as_words_are_scored(
    reference: str, hypothesis: str, language: str | None, verbalize: bool | str, shown: bool
):
    one = spoken_task(language=language, verbalize=verbalize)
    scores = one.score(predictions(hypothesis), [clip(0, reference)], resamples=100)
    assert ("wer_numbers_verbalized" in scores) == shown
    _, findings = one.details(predictions(hypothesis), [clip(0, reference)])
    told = [finding for finding in findings if finding.check == "text.numbers"]
    assert len(told) == (verbalize is True and not shown)  # only a language that was asked for and is not known
    assert all("sw" in finding.message for finding in told)


def test_the_language_of_a_clip_decides_how_its_numbers_are_said():
    clips = [clip(0, "drei", language="de"), clip(1, "tatu", language="sw"), clip(2, "three")]
    scores = spoken_task(verbalize=True).score(predictions("3", "3", "3"), clips, resamples=100)
    assert scores["wer_numbers_verbalized"].value == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def lower() -> LoadedModel:
    return CtcFamily().load("assets:ctc-nano")  # its vocabulary is lower-case


def ctc_task(scoring: str) -> Transcribe:
    return Transcribe(CtcFamily(), TaskSettings(scoring_text=get(scoring)))


def test_transcripts_of_another_case_are_learned_and_it_is_said_once(lower: LoadedModel):
    upper, small = spoken("SEVEN TWO", "Nine"), spoken("seven two", "nine")
    learned = ctc_task("basic").prepare(lower, upper)
    assert [ids.tolist() for ids in learned.targets] == [
        ids.tolist() for ids in ctc_task("basic").prepare(lower, small).targets
    ]
    [finding] = learned.findings
    assert (finding.check, finding.severity, finding.clip_ids) == ("text.case", "note", ("c0", "c1"))
    assert finding.message.startswith("2 of 2 transcripts are written in another case")
    assert not ctc_task("basic").prepare(lower, small).findings


@pytest.mark.parametrize("scoring", ["basic", "identity"])
def test_a_vocabulary_of_one_case_is_scored_without_case(lower: LoadedModel, scoring: str):
    one = ctc_task(scoring)
    one.prepare(lower, spoken("SEVEN"))
    clips, found = spoken("SEVEN TWO", "Nine one"), predictions("seven two", "nine two")
    assert one.score(found, clips, resamples=100)["wer"].value == pytest.approx(1 / 4)
    assert one.row(found[0], clips[0])["edits"]["hits"] == 2


def test_a_model_that_writes_both_cases_is_scored_with_case(loaded: LoadedModel):
    one = task(scoring="identity")
    one.prepare(loaded, spoken("seven"))
    assert one.score(predictions("seven"), spoken("SEVEN"), resamples=100)["wer"].value == 1.0


def test_a_missing_library_is_told_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sonotune.data.numbers.installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'sonotune\[numbers\]'"):
        spoken_task(verbalize=True)
    clips = [clip(0, "three"), clip(1, "four")]
    assert "wer_numbers_verbalized" not in spoken_task().score(predictions("3", "four"), clips, resamples=100)
    _, [finding] = spoken_task().details(predictions("3", "four"), clips)
    assert (finding.check, finding.severity, finding.clip_ids) == ("text.numbers", "note", ("c0",))
    assert "pip install 'sonotune[numbers]'" in finding.message


def test_spellings_are_folded_beside_the_rate_where_clips_are_hebrew():
    settings = TaskSettings(scoring_text=get("hebrew"))
    said = [clip(0, "התוכנית של צה״ל"), clip(1, "ספר טוב")]
    made = predictions('התכנית של צה"ל', "סיפור טוב")
    for language in ("he", "iw", None):
        scores = Transcribe(FAMILY, settings).score(
            made, [replace(one, language=language) for one in said], resamples=50
        )
        assert scores["wer"].value == pytest.approx(2 / 5)
        folded = scores["wer_spelling_folded"]
        assert (folded.value, folded.role, folded.title) == (
            pytest.approx(1 / 5),
            "beside",
            "WER with spellings folded",
        )
        assert scores["wer"].role == "primary"
        assert folded.detail["normalizer"] == get("hebrew").folded_digest
    mixed = [replace(said[0], language="yi"), replace(said[1], language="he")]
    assert Transcribe(FAMILY, settings).score(made, mixed, resamples=50)["wer_spelling_folded"].value == pytest.approx(
        2 / 5
    )
    foreign = [replace(one, language="yi") for one in said]
    assert set(Transcribe(FAMILY, settings).score(made, foreign, resamples=50)) == {"wer", "cer"}
    assert set(Transcribe(FAMILY, replace(settings, scoring_text=get("hebrew_folded"))).score(made, said)) == {
        "wer",
        "cer",
    }


@pytest.mark.parametrize("name", ["basic", "identity", "hebrew"])
def test_every_score_names_the_rules_of_its_texts(name: str):
    scores = task(scoring=name).score(predictions("one one one one"), spoken("one 1"), resamples=50)
    for score in scores.values():
        assert str(score.to_json()["detail"]["normalizer"]).startswith(name)
    assert scores["wer"].detail["normalizer"] == scores["cer"].detail["normalizer"] == get(name).digest


def further(*scores: str, primary: str = "auto") -> Transcribe:
    return Transcribe(FAMILY, TaskSettings(language="en", scores=scores, primary=primary))


def test_scores_that_are_asked_for_stand_behind_the_rates():
    one, clips = further("punctuation", "bleu", "wer"), spoken("Yes, it is.", "No, it is not one.")
    scores = one.score(predictions("yes it is.", "No, it is not one."), clips, resamples=50)
    assert list(scores) == ["wer", "cer", "punctuation", "bleu"]
    assert scores["wer"].value == 0.0
    assert scores["punctuation"].value == 1 / 4
    assert [score.role for score in scores.values()] == ["primary", "plain", "plain", "plain"]
    assert all("normalizer" in score.detail for score in scores.values())


def test_a_score_that_decides_is_given_without_being_asked_for():
    one, clips = further(primary="chrf"), spoken("seven", "two")
    assert one.primary_of(clips) == ("chrf", "asked for (evaluation.primary)")
    scores = one.score(predictions("seven", "too"), clips, resamples=50)
    assert next(iter(scores)) == "chrf"
    assert scores["chrf"].role == "primary"
    assert scores["wer"].role == "plain"


def test_a_score_that_clips_have_nothing_of_is_a_note_and_no_number():
    one, clips = further("punctuation"), spoken("seven", "two")
    assert "punctuation" not in one.score(predictions("seven", "two"), clips, resamples=50)
    [found] = [each for each in one.details(predictions("seven", "two"), clips)[1] if "no_score" in each.check]
    assert found.message.startswith("Punctuation error rate is not given: none of the 2 clips")


def test_slices_are_scored_by_what_was_counted_for_the_whole():
    one, clips = further("bleu", "wer_orthographic"), spoken("a b", "c d", "e f")
    heard = predictions("a b", "c x", "E f")
    one.score(heard, clips, resamples=50)
    part = one.score(heard[1:], clips[1:], resamples=50)
    fresh = further("bleu", "wer_orthographic").score(heard[1:], clips[1:], resamples=50)
    assert part == fresh


def test_label_tokens_are_those_of_the_text_and_its_end_with_the_loss_of_training(loaded: LoadedModel):
    one = further("perplexity")
    batch = probe_batch(loaded, clips=2)
    targets = list(one.label_targets(loaded, [replace(each, text="seven two") for each in batch.clips]).values())
    batch = replace(
        batch,
        targets=torch.from_numpy(np.stack(targets)),
        target_lengths=torch.tensor([len(ids) for ids in targets]),
    )
    with torch.no_grad():
        rated = one.rate_labels(loaded, batch)
        losses = one.loss(loaded, batch)
    prompt = len(FAMILY.encode_text(loaded, "", "en")) - 1
    for tokens, ids, loss in zip(rated, targets, losses.sums.tolist(), strict=True):
        assert tokens is not None
        assert tokens.count == len(ids) - prompt
        assert tokens.nll == pytest.approx(loss)
        assert 0 <= tokens.right <= tokens.count


def test_a_ctc_model_has_no_perplexity():
    ctc = CtcFamily()
    model = ctc.load("assets:ctc-nano")
    one = Transcribe(ctc, TaskSettings(scores=("token_accuracy",)))
    batch = probe_batch(model, clips=1)
    with torch.no_grad(), pytest.raises(ConfigError, match=r"token_accuracy cannot be given: .* is a CTC model"):
        one.rate_labels(model, batch)
