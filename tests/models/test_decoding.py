"""Decoding that does not run away: limits, loops, fallback, and rows that do not know each other."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sonotune.metrics.runaway import loops
from sonotune.models import decoding
from sonotune.models.decoding import (
    Candidate,
    EndOfRow,
    fall_back,
    is_cut,
    loops_at_end,
    text_rate,
    token_limit,
    token_limits,
    tokens_per_second,
    without_half_character,
)
from sonotune.types import NOT_FINITE, DecodingSettings, Hypothesis

END, VOCABULARY = 0, 12


class Table:
    """A decoder whose logits are a function of the row's last token and of the row, and which counts its work."""

    def __init__(self, logits_BVV: Tensor) -> None:
        self._logits = logits_BVV
        self.rows: list[int] = []

    def next(self, tokens_RU: Tensor) -> Tensor:
        self.rows.append(len(tokens_RU))
        return self._logits[torch.arange(len(tokens_RU)), tokens_RU[:, -1]].clone()

    def keep(self, rows_R: Tensor) -> None:
        self._logits = self._logits[rows_R]


def table(rows: int = 3) -> Tensor:
    return torch.randn(rows, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))


def write(logits_BVV: Tensor, limits: Sequence[int], **options: object) -> list[decoding.Written]:
    prompt = torch.full((len(logits_BVV), 2), 5)
    return decoding.write(Table(logits_BVV), prompt, end=END, limits=limits, **options)  # type: ignore[arg-type]


def test_the_limit_grows_with_the_audio() -> None:
    assert token_limit(0.0) == 16
    assert token_limit(2.0) == 166
    assert token_limit(1.01, tokens_per_second=10, margin=0) == 11
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            token_limit(bad)


def test_limits_are_of_each_clip() -> None:
    assert token_limits(DecodingSettings(), [0.0, 2.0], otherwise=7) == [16, 166]
    assert token_limits(DecodingSettings(max_new_tokens=3), [0.0, 2.0], otherwise=7) == [3, 3]
    assert token_limits(DecodingSettings(max_new_tokens=None), [0.0, 2.0], otherwise=7) == [7, 7]


class Letters:
    """A tokenizer that writes so many tokens for each UTF-8 byte of a letter beyond ASCII."""

    def __init__(self, tokens_per_byte: int) -> None:
        self.tokens_per_byte = tokens_per_byte

    def __call__(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        sizes = [len(sign.encode()) for sign in text]
        return SimpleNamespace(input_ids=[0] * sum(1 if size == 1 else self.tokens_per_byte * size for size in sizes))


@pytest.mark.parametrize(("per_byte", "trained", "rate"), [(0, 0.0, 75), (1, 0.0, 100), (1, 140.0, 140), (2, 0.0, 200)])
def test_the_rate_follows_the_tokenizer_and_the_transcripts(per_byte: int, trained: float, rate: float) -> None:
    """A letter of Adlam has four bytes; a tokenizer that knows every letter keeps what marks on letters need."""
    assert tokens_per_second(Letters(per_byte), trained) == rate
    assert token_limits(DecodingSettings(), [2.0], otherwise=7, tokens_per_second=rate) == [2 * rate + 16]


def test_the_rate_of_a_text_is_the_least_that_leaves_room_for_it() -> None:
    assert text_rate(16, 1.0) == text_rate(40, 0.0) == 0
    for tokens, duration_s in ((40, 0.3), (90, 1.7), (441, 2.9)):
        rate = text_rate(tokens, duration_s)
        assert token_limit(duration_s, tokens_per_second=rate) >= tokens
        assert token_limit(duration_s, tokens_per_second=0.95 * rate) < tokens


def test_a_text_is_cut_where_only_the_limit_ended_it() -> None:
    assert is_cut([1, 2, 3], 3)
    assert not is_cut([1, 2], 3)  # the end token was the third
    assert not is_cut([4] * 40, 40)  # a loop
    assert without_half_character("აბ\ufffd", cut=True) == "აბ"
    assert without_half_character("\ufffd\ufffd", cut=True) == "\ufffd"  # what was written wrong stays an error
    assert without_half_character("აბ\ufffd", cut=False) == "აბ\ufffd"


def test_the_text_that_is_kept_says_whether_it_was_cut() -> None:
    settings = DecodingSettings(temperatures=(0.0, 0.5, 1.0))
    answers = {0.5: [Candidate("half", -1.5, cut=True)], 1.0: [Candidate("one", -4.0)]}
    [made] = fall_back([Candidate(LOOP, -0.1)], [0.0], settings, lambda _, heat: answers[heat])
    assert (made.text, made.cut) == ("half", True)
    [passed] = fall_back([Candidate("fine", -0.1, cut=True)], [0.0], settings, lambda _, heat: answers[heat])
    assert passed.cut


@pytest.mark.parametrize(
    ("period", "needed"),
    [(1, 30), (2, 30), (3, 30), (4, 40), (7, 70), (8, 80), (9, 80), (13, 80), (14, 84), (40, 240), (64, 384)],
)
def test_a_cycle_is_a_loop_once_it_is_long(period: int, needed: int) -> None:
    cycle = torch.arange(9, 9 + period).repeat(30)
    row = torch.cat([torch.tensor([1, 2, 3]), cycle[:needed]])
    assert loops_at_end(row[None]).tolist() == [True]
    assert loops_at_end(row[None, 4:]).tolist() == [False]


def test_what_is_no_loop() -> None:
    assert loops_at_end(torch.arange(65).repeat(20)[None]).tolist() == [False]  # 65 tokens are no short cycle
    assert loops_at_end(torch.arange(12).repeat(6)[None]).tolist() == [False]  # a number that is said six times
    assert loops_at_end(torch.zeros(2, 0, dtype=torch.long)).tolist() == [False, False]
    broken = torch.tensor([4] * 40 + [5])
    assert loops_at_end(torch.stack([broken, torch.full((41,), 4)])).tolist() == [False, True]


@pytest.mark.parametrize("size", range(1, 13))
def test_a_text_that_is_ended_as_a_loop_counts_as_one(size: int) -> None:
    """Wherever in a word the loop begins, and however many tokens a word has."""
    for tokens, lead in ((1, 0), (2, 1), (5, 3)):
        cycle = [100 + place for place in range(size * tokens)]
        written = [1, 2, *(cycle * 60)[lead:]]
        end = next(place for place in range(len(written)) if loops_at_end(torch.tensor([written[:place]]))[0])
        pieces = [f" w{one}" if (one - 100) % tokens == 0 else f"_{one}" for one in written[:end]]
        assert end <= 2 + max(80, 6 * size * tokens)
        assert loops("".join(pieces))


def test_rows_of_beams_end_by_themselves() -> None:
    rows = torch.stack([torch.full((33,), 4), torch.arange(33), torch.arange(33), torch.arange(33)])
    assert EndOfRow([40, 33])(rows, None).tolist() == [True, False, True, True]
    assert EndOfRow([40, 33], prompt=2)(rows, None).tolist() == [True, False, False, False]
    assert EndOfRow([40, 33], prompt=4)(rows, None).tolist() == [False, False, False, False]


def test_greedy_text_and_its_log_probability() -> None:
    logits = table(1)
    [made] = write(logits, [20])
    token, total, wanted = 5, 0.0, []
    for _ in range(20):
        logprobs = logits[0, token].log_softmax(dim=-1)
        token = int(logprobs.argmax())
        total += float(logprobs[token])
        wanted.append(token)
        if token == END:
            break
    assert made.ids == [one for one in wanted if one != END]
    assert made.mean_logprob == pytest.approx(total / len(wanted), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_does_not_know_the_others(temperature: float) -> None:
    logits, limits, keys = table(), [4, 25, 60], ["a", "b", "c"]
    together = write(logits, limits, temperature=temperature, draw_keys=keys)
    backward = write(logits.flip(0), limits[::-1], temperature=temperature, draw_keys=keys[::-1])
    assert together == backward[::-1]
    for row in range(3):
        alone = write(logits[row : row + 1], limits[row : row + 1], temperature=temperature, draw_keys=[keys[row]])
        assert alone == [together[row]]


def test_draws_follow_the_distribution_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    logits = torch.full((1, VOCABULARY, VOCABULARY), -torch.inf)
    logits[..., 3:5] = torch.tensor([1.0, 1.0])
    logits = logits.expand(400, -1, -1)
    made = write(logits, [1] * 400, temperature=1.0, draw_keys=[str(index) for index in range(400)])
    drawn = [one.ids[0] for one in made]
    assert set(drawn) == {3, 4}
    assert 150 < drawn.count(3) < 250
    assert torch.equal(before, torch.get_rng_state())


def test_a_loop_ends_early_and_done_rows_cost_nothing() -> None:
    logits = torch.zeros(4, VOCABULARY, VOCABULARY)
    logits[:, :, END] = 5.0
    logits[3, :, 7] = 9.0  # the last row says the same token for ever
    decoder = Table(logits)
    made = decoding.write(decoder, torch.full((4, 1), 5), end=END, limits=[400] * 4)
    assert [len(one.ids) for one in made] == [0, 0, 0, 30]
    assert decoder.rows == [4] + [1] * 29


def test_what_hinders_repetition() -> None:
    logits = torch.zeros(1, VOCABULARY, VOCABULARY)
    logits[..., 7], logits[..., 8] = 2.0, 1.9
    assert write(logits, [4])[0].ids == [7, 7, 7, 7]
    assert write(logits, [3], settings=DecodingSettings(repetition_penalty=1.5))[0].ids == [7, 8, 7]
    assert write(logits, [3], settings=DecodingSettings(no_repeat_ngram_size=1))[0].ids == [7, 8]  # and the end


LOOP = "thank you " * 30


def test_texts_that_pass_are_not_decoded_again() -> None:
    def never(rows: Sequence[int], temperature: float) -> list[Candidate]:
        raise AssertionError

    first = [Candidate("fine", -0.2), Candidate("", -0.9), Candidate("silence", -3.0)]
    made = fall_back(first, [0.1, 0.1, 0.7], DecodingSettings(), never)
    assert made == [Hypothesis(text="fine"), Hypothesis(text=""), Hypothesis(text="")]  # silence has no text
    wrong = [Candidate(LOOP, -0.1), Candidate("x", -9.0)]
    assert len(fall_back(wrong, [0.0, 0.0], DecodingSettings(temperatures=(0.0,)), never)) == 2
    off = DecodingSettings(compression_ratio_threshold=None, logprob_threshold=None)
    assert fall_back(wrong, [0.0, 0.0], off, never)[0].text == LOOP


def test_each_text_climbs_until_it_passes() -> None:
    asked: list[tuple[list[int], float]] = []

    def again(rows: Sequence[int], temperature: float) -> list[Candidate]:
        asked.append((list(rows), temperature))
        return [Candidate(f"{row} at {temperature}", -0.5 if row == 0 or temperature > 0.3 else -2.0) for row in rows]

    made = fall_back(
        [Candidate(LOOP, -0.1), Candidate("fine", -0.1), Candidate("x", -2.0)], [0.0] * 3, DecodingSettings(), again
    )
    assert asked == [([0, 2], 0.2), ([2], 0.4)]
    assert made == [
        Hypothesis(text="0 at 0.2", temperature=0.2, attempts=2),
        Hypothesis(text="fine"),
        Hypothesis(text="2 at 0.4", temperature=0.4, attempts=3),
    ]


def test_where_none_passes_the_most_probable_text_that_does_not_loop_is_kept() -> None:
    settings = DecodingSettings(temperatures=(0.0, 0.5, 1.0))
    answers = {
        0.5: [Candidate("half", -1.5), Candidate(LOOP, -0.2)],
        1.0: [Candidate("one", -4.0), Candidate(LOOP, -3.0)],
    }
    made = fall_back([Candidate(LOOP, -0.1)] * 2, [0.0, 0.0], settings, lambda _, heat: answers[heat])
    assert made[0] == Hypothesis(text="half", temperature=0.5, attempts=3)
    assert made[1] == Hypothesis(text=LOOP, temperature=0.0, attempts=3)


def test_random_words_do_not_hide_a_loop() -> None:
    settings = DecodingSettings(temperatures=(0.0, 1.0))
    [made] = fall_back([Candidate(LOOP, -0.1)], [0.0], settings, lambda _, heat: [Candidate("qx zv wj", -5.0)])
    assert made == Hypothesis(text=LOOP, temperature=0.0, attempts=2)


def test_a_loop_on_silence_becomes_no_text() -> None:
    settings = DecodingSettings(temperatures=(0.0, 1.0))
    [made] = fall_back([Candidate(LOOP, -0.1)], [0.9], settings, lambda _, heat: [Candidate("qx zv wj", -3.0)])
    assert made.text == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_without_numbers_ends_there_and_the_others_go_on(value: float) -> None:
    logits = torch.zeros(3, VOCABULARY, VOCABULARY)
    for token in range(1, VOCABULARY):  # counts up from the last of the prompt, 5, then ends
        logits[:, token, (token + 1) % VOCABULARY] = 9.0
    plain = write(logits, [11, 11, 11])
    logits[1, 8, 2] = value
    made = write(logits, [11, 11, 11])
    assert [one.finite for one in made] == [True, False, True]
    assert len(made[1].ids) < len(plain[1].ids)
    assert (made[0], made[2]) == (plain[0], plain[2])


def test_tokens_that_are_never_written_are_no_lack_of_numbers() -> None:
    logits = torch.zeros(1, VOCABULARY, VOCABULARY)
    logits[..., 3:] = -torch.inf
    assert write(logits, [4])[0].finite
    assert decoding.finite_rows(torch.full((1, 3), -torch.inf)).tolist() == [False]


def test_what_has_no_numbers_has_no_text_and_no_draw_is_taken_for_one() -> None:
    settings = DecodingSettings(temperatures=(0.0, 0.5, 1.0))
    lost = Candidate("x", float("nan"), finite=False)
    answers = {0.5: [lost], 1.0: [Candidate(LOOP, -0.2)]}
    made = fall_back([lost, Candidate(LOOP, -0.1)], [0.0, 0.0], settings, lambda _, heat: answers[heat])
    assert made == [NOT_FINITE, Hypothesis(text=LOOP, temperature=0.0, attempts=3)]


def test_generate_tells_the_log_probability_of_every_token_that_it_takes():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=17,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        eos_token_id=0,
        pad_token_id=0,
    )
    module, prompt = Qwen2ForCausalLM(config).eval(), torch.tensor([[3, 4], [5, 6], [7, 8]])
    limits = [4, 6, 2]
    watching, watched = decoding.watched_rows(limits, prompt=2, rated=True)
    written = module.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=6, **watching
    )
    found = watched.logprobs
    with torch.no_grad():
        for row, limit in enumerate(limits):
            logprobs = module(written[row : row + 1, : 2 + limit]).logits[0, 1:-1].float().log_softmax(dim=-1)
            expected = logprobs.gather(1, written[row, 2 : 2 + limit, None])[:, 0]
            assert found[row][:limit] == pytest.approx(expected.tolist(), abs=1e-4)
    silent, unrated = decoding.watched_rows(limits, prompt=2)
    module.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, **silent)
    assert unrated.logprobs == [[], [], []]


def test_a_length_penalty_reaches_beam_search_and_that_of_the_model_stays_where_none_is_given():
    from transformers import GenerationConfig

    own = GenerationConfig(length_penalty=1.7)
    assert decoding.generation_settings(own, [3], DecodingSettings(beam_size=2)).length_penalty == 1.7
    asked = DecodingSettings(beam_size=2, length_penalty=-0.5)
    assert decoding.generation_settings(own, [3], asked).length_penalty == -0.5
    assert own.length_penalty == 1.7
