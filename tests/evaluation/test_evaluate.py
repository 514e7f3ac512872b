"""Evaluation with a model so simple that every right answer is known: it reads the word off the loudness of a clip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.data.text import Normalizer, get
from sonotune.errors import ManifestError, NumericError, ResourceError
from sonotune.evaluation.evaluate import evaluate, predict_clips, write_predictions
from sonotune.features.batching import Batch
from sonotune.features.workers import Crew
from sonotune.progress import Phase
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, DecodingSettings, Prediction

RATE_HZ = 16000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Loudness:
    """One feature: the mean amplitude of each 10 ms."""

    sample_rate_hz = RATE_HZ
    feature_bins = 1
    frames_per_second = 100.0
    max_duration_s: float | None = 30.0

    def __call__(
        self, waveforms: Sequence[NDArray[np.float32]], *, full_context: bool = False
    ) -> tuple[Tensor, Tensor]:
        lengths = [len(waveform) // 160 for waveform in waveforms]
        features = torch.zeros(len(waveforms), 3000 if full_context else max(lengths), 1)
        for row, (waveform, length) in enumerate(zip(waveforms, lengths, strict=True)):
            features[row, :length, 0] = torch.from_numpy(waveform[: length * 160].reshape(-1, 160).mean(axis=1))
        return features, torch.tensor(lengths)

    def state(self) -> dict[str, Any]:
        return {}


@dataclass
class Loaded:
    frontend: Loudness = field(default_factory=Loudness)
    module: nn.Module = field(default_factory=lambda: nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    context: str = "cut"
    trained_contexts: tuple[str, ...] = ()
    checkpoint: str = "loudness"

    def computed_s(self, duration_s: float, context: str | None = None) -> float:
        return duration_s


class AnyLanguage:
    """As much of a family as scoring asks."""

    def knows_language(self, loaded: Loaded, language: str) -> bool:
        return True


class ReadsLoudness(Transcribe):
    """Says the word that the mean loudness of a clip's valid frames stands for, and remembers how it was asked."""

    def __init__(self, answers: dict[str, str] | None = None, scoring: Normalizer | None = None) -> None:
        super().__init__(AnyLanguage(), TaskSettings(scoring_text=scoring or get("basic")))  # type: ignore[arg-type]
        self.calls: list[dict[str, Any]] = []
        self.answers = answers or {}

    def predict(self, loaded: Loaded, batch: Batch, settings: DecodingSettings) -> list[Prediction]:
        self.calls.append(
            {
                "ids": [clip.id for clip in batch.clips],
                "frames": batch.inputs.shape[1],
                "settings": settings,
                "training": loaded.module.training,
                "gradients": torch.is_grad_enabled(),
            }
        )
        predictions = []
        for row, clip in enumerate(batch.clips):
            mean = float(batch.inputs[row, : int(batch.input_lengths[row]), 0].mean())
            text = self.answers.get(clip.id, WORDS[round(mean * 20)])
            predictions.append(Prediction(clip_id=clip.id, text=text))
        return predictions


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Ten clips, lengths in no order, each as loud as its word says."""
    made = []
    for index, word in enumerate(WORDS):
        duration_s = 0.5 + 0.37 * ((index * 7) % 10)
        samples = np.full(round(duration_s * RATE_HZ), index / 20, dtype=np.float32)
        path = tmp_path / f"{word}.wav"
        soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
        made.append(
            Clip(
                id=f"clip-{index}",
                path=path,
                duration_s=len(samples) / RATE_HZ,
                text=word,
                speaker=f"s{index % 5}",
                domain="phone" if index % 2 else "studio",
                language="en",
            )
        )
    return made


def run(clips: Sequence[Clip], task: ReadsLoudness | None = None, **arguments: Any):
    arguments = {"bootstrap": 50, "batch_seconds": 5.0} | arguments
    loaded = arguments.pop("loaded", None) or Loaded()
    return evaluate(task or ReadsLoudness(), loaded, clips, **arguments)


def test_a_perfect_model_has_no_errors_and_keeps_the_order(clips: list[Clip]) -> None:
    result = run(clips)
    assert [prediction.clip_id for prediction in result.predictions] == [clip.id for clip in clips]
    assert [prediction.text for prediction in result.predictions] == list(WORDS)
    assert result.scores["wer"].value == result.scores["cer"].value == 0.0
    assert result.scores["wer"].count == result.clips == 10
    assert result.findings == []
    assert result.audio_seconds == pytest.approx(sum(clip.duration_s for clip in clips))
    assert result.real_time_factor == pytest.approx(result.seconds / result.audio_seconds)


def test_batches_change_nothing_but_their_number(clips: list[Clip]) -> None:
    answers = {"clip-3": "tree", "clip-8": ""}
    results = []
    for batch_seconds, max_clips, workers in ((0.1, 64, 0), (1000.0, 64, 0), (5.0, 3, 0), (5.0, 64, 2)):
        task = ReadsLoudness(answers=answers)
        with Crew(workers) as crew:
            result = run(clips, task, batch_seconds=batch_seconds, max_clips=max_clips, crew=crew)
        results.append((len(task.calls), result.predictions, result.scores, result.slices))
    assert results[0][0] == 10
    assert results[1][0] == 1
    assert all(result[1:] == results[0][1:] for result in results)


def test_errors_are_counted_by_hand(clips: list[Clip]) -> None:
    result = run(clips, ReadsLoudness(answers={"clip-3": "tree", "clip-8": "", "clip-9": "nine nine"}))
    detail = result.scores["wer"].detail
    assert (detail["substitutions"], detail["deletions"], detail["insertions"]) == (1, 1, 1)
    assert result.scores["wer"].value == pytest.approx(0.3)
    assert detail["resampled"] == "speaker"
    by_domain = {part["value"]: part["scores"]["wer"]["value"] for part in result.slices if part["by"] == "domain"}
    assert by_domain == {"phone": pytest.approx(0.4), "studio": pytest.approx(0.2)}
    assert {part["by"] for part in result.slices} == {"domain", "duration", "domain, duration", "speaker", "language"}


def test_clips_that_cannot_be_read_count_as_empty_and_are_found(clips: list[Clip]) -> None:
    clips[2].path.unlink()
    clips[5].path.write_bytes(b"RIFF not audio at all")
    result = run(clips)
    assert [prediction.text for prediction in result.predictions] == [
        "" if index in (2, 5) else word for index, word in enumerate(WORDS)
    ]
    assert result.scores["wer"].detail["deletions"] == 2
    assert result.scores["wer"].count == 10
    assert {clip_id for finding in result.findings for clip_id in finding.clip_ids} == {"clip-2", "clip-5"}
    assert all(finding.check.startswith("audio.") for finding in result.findings)  # the reader's own words


def test_even_when_no_clip_can_be_read(clips: list[Clip]) -> None:
    for clip in clips:
        clip.path.unlink()
    task = ReadsLoudness()
    result = run(clips, task)
    assert task.calls == []
    assert result.scores["wer"].value == 1.0
    assert len({clip_id for finding in result.findings for clip_id in finding.clip_ids}) == 10


def test_clips_longer_than_the_window_are_decoded_in_windows(
    clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded()
    loaded.frontend.max_duration_s = 2.0
    long = {clip.id for clip in clips if clip.duration_s > 2.0}
    progress: list[tuple[int, int | None]] = []
    monkeypatch.setattr(Phase, "advance", lambda phase, done: progress.append((done, phase.total)))
    task = ReadsLoudness()
    result = run(clips, task, loaded=loaded)
    assert [prediction.clip_id for prediction in result.predictions] == [clip.id for clip in clips]
    # A steady tone has no pause, so the windows overlap, and the one word of each is at the border of both texts.
    assert [prediction.text for prediction in result.predictions] == list(WORDS)
    assert result.scores["wer"].count == result.clips == 10
    [finding] = result.findings
    assert (finding.check, finding.severity, set(finding.clip_ids)) == ("evaluation.windows", "note", long)
    windows = sum(len(call["ids"]) for call in task.calls)
    assert windows > 10
    assert progress[-1] == (windows, windows)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})


def test_a_clip_as_long_as_the_window_is_heard_however_its_length_is_rounded(clips: list[Clip]) -> None:
    loaded = Loaded()
    loaded.frontend.max_duration_s = max(clip.duration_s for clip in clips)
    rounded = [replace(clip, duration_s=clip.duration_s + 1e-15) for clip in clips]
    result = run(rounded, loaded=loaded)
    assert result.findings == []
    assert result.scores["wer"].value == 0.0


def test_clips_without_a_transcript_are_decoded_and_not_scored(clips: list[Clip]) -> None:
    result = run([replace(clip, text=None) if clip.id == "clip-4" else clip for clip in clips])
    assert result.predictions[4].text == "four"
    assert result.scores["wer"].count == 9
    assert [(finding.check, finding.clip_ids) for finding in result.findings] == [("evaluation.no_truth", ("clip-4",))]
    nothing = run([replace(clip, text=None) for clip in clips])
    assert nothing.scores == {}
    assert nothing.slices == []
    assert nothing.details == {}


def test_both_texts_are_normalised(clips: list[Clip]) -> None:
    shouted = [replace(clip, text=(clip.text or "").upper()) for clip in clips]
    assert run(shouted, ReadsLoudness(answers={"clip-1": "OnE"})).scores["wer"].value == 0.0
    assert run(shouted, ReadsLoudness(scoring=get("identity"))).scores["wer"].value == 1.0


def test_silence_alone_is_scored_by_what_was_written_on_it(clips: list[Clip]) -> None:
    result = run([replace(clip, text=" ") for clip in clips])
    assert result.scores["wer"].value == 1.0  # ten words on ten clips
    assert result.details["decoding"]["silent_words"] == 10
    [finding] = result.findings
    assert (finding.check, len(finding.clip_ids)) == ("decode.words_on_silence", 10)
    assert "10 clips without words, 10 words written on them" in finding.message


def test_words_on_silence_count_in_the_whole_and_in_their_slice(clips: list[Clip]) -> None:
    some = [replace(clips[0], domain="speech"), replace(clips[1], text="", domain="silence")]
    result = run(some, ReadsLoudness(answers={"clip-1": "thank you"}))
    assert result.scores["wer"].value == 2.0
    silence = next(part for part in result.slices if part["value"] == "silence")
    assert silence["scores"]["wer"]["value"] == 2.0
    assert silence["scores"]["wer"]["title"] == "WER per silent clip"
    assert silence["insertions"] == 2


def test_an_empty_reference_of_speech_counts_what_was_recognised(clips: list[Clip]) -> None:
    result = run([replace(clips[0], text=""), *clips[1:]])
    assert result.scores["wer"].value == pytest.approx(1 / 9)
    assert result.details["decoding"]["silent_clips"] == 1


def test_clips_that_are_not_decoded_have_no_text_and_say_so(clips: list[Clip]) -> None:
    task = ReadsLoudness()
    named = [clips[2].id, clips[7].id]
    result = run(clips, task, no_signal=named)
    assert not set(named) & {name for call in task.calls for name in call["ids"]}
    assert [one.clip_id for one in result.predictions] == [clip.id for clip in clips]
    assert [one.clip_id for one in result.predictions if one.no_signal] == named
    assert [one.text for one in result.predictions if one.no_signal] == ["", ""]
    assert result.scores["wer"].detail["deletions"] == 2
    nothing = run(clips[:1], task, no_signal=[clips[0].id])
    assert [one.text for one in nothing.predictions] == [""]


class Cuts(ReadsLoudness):
    """Reaches the limit of tokens on the clips named, and on each window of them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def predict(self, loaded: Loaded, batch: Batch, settings: DecodingSettings) -> list[Prediction]:
        made = super().predict(loaded, batch, settings)
        return [replace(one, cut=one.clip_id.partition("#")[0] in self.names) for one in made]


@pytest.mark.parametrize("told", [True, False])
def test_texts_that_reach_their_limit_are_a_finding(clips: list[Clip], told: bool) -> None:
    some = clips if told else [replace(clip, text=None) for clip in clips]
    loaded = Loaded()
    loaded.frontend.max_duration_s = 2.0
    result = run(some, Cuts("clip-3", "clip-8"), loaded=loaded)
    [finding] = [finding for finding in result.findings if finding.check == "decode.token_limit"]
    assert (finding.severity, finding.clip_ids) == ("warning", ("clip-3", "clip-8"))
    assert "2 of 10 texts" in finding.message
    assert "evaluation.max_new_tokens=auto" in finding.message
    if told:
        assert result.scores["wer"].detail["cut"] == result.details["decoding"]["cut"] == 2


def test_one_score_decides_in_every_slice(clips: list[Clip]) -> None:
    """What decides is a matter of all clips, not of the few of a slice."""
    chinese = [replace(clip, text="今天天气很好", domain="zh") for clip in clips[:7]]
    english = [replace(clip, domain="en") for clip in clips[7:]]
    result = run([*chinese, *english])
    assert result.scores["cer"].role == "primary"
    assert {part["scores"]["cer"]["role"] for part in result.slices} == {"primary"}
    assert all("role" not in part["scores"]["wer"] for part in result.slices)
    assert run(chinese, primary="wer").scores["wer"].role == "primary"


def test_errors_of_the_slices_add_up_to_the_whole(clips: list[Clip]) -> None:
    result = run(clips, ReadsLoudness(answers={"clip-3": "tree", "clip-8": "", "clip-9": "nine nine"}))
    whole = result.scores["wer"].detail
    for by in ("domain", "duration", "domain, duration", "speaker"):
        details = [part["scores"]["wer"]["detail"] for part in result.slices if part["by"] == by]
        assert len(details) > 1
        for name in ("substitutions", "deletions", "insertions", "hits", "reference"):
            assert sum(detail[name] for detail in details) == whole[name]


def test_loops_become_findings(clips: list[Clip]) -> None:
    result = run(clips, ReadsLoudness(answers={"clip-1": "thank you " * 6}))
    assert result.details["decoding"]["loops"] == pytest.approx(0.1)
    assert ("decode.loops", ("clip-1",)) in [(finding.check, finding.clip_ids) for finding in result.findings]


def test_how_the_task_is_asked(clips: list[Clip]) -> None:
    task, entered = ReadsLoudness(), []

    @contextmanager
    def autocast():
        entered.append(True)
        yield

    run(clips, task, decoding=DecodingSettings(beam_size=4), autocast=autocast)
    assert len(entered) == len(task.calls) > 1
    for call in task.calls:
        assert call["settings"] == DecodingSettings(beam_size=4)
        assert not call["training"]
        assert not call["gradients"]


@pytest.mark.parametrize("limit", [7, None])
def test_a_limit_of_ones_own(clips: list[Clip], limit: int | None) -> None:
    task = ReadsLoudness()
    run(clips, task, decoding=DecodingSettings(max_new_tokens=limit))
    assert {call["settings"].max_new_tokens for call in task.calls} == {limit}


@pytest.mark.parametrize(
    ("context", "asked", "full"), [("full", None, True), ("cut", "full", True), ("full", "thinned", False)]
)
def test_full_context(clips: list[Clip], context: str, asked: str | None, full: bool) -> None:
    task = ReadsLoudness()
    result = run(clips, task, loaded=Loaded(context=context), context=asked)
    assert ({call["frames"] for call in task.calls} == {3000}) is full
    assert result.scores["wer"].value == 0.0


@pytest.mark.parametrize(
    ("trained", "context", "warned"),
    [
        (("full", "thinned"), "cut", True),
        (("full", "thinned"), "thinned", False),
        (("cut",), "full", True),
        ((), "cut", False),
    ],
)
def test_a_context_that_the_weights_were_not_trained_for_is_a_warning(
    clips: list[Clip], trained: tuple[str, ...], context: str, warned: bool
) -> None:
    result = run(clips, loaded=Loaded(context=context, trained_contexts=trained))
    found = [finding for finding in result.findings if finding.check == "model.context"]
    assert [finding.severity for finding in found] == ["warning"] * warned
    if warned:
        said, advice = "trained for cut", "Compare with model.context=cut."
        if "thinned" in trained:  # nobody trained published weights on the thinned window
            said, advice = "pretrained over the whole window", "Compare with model.context=thinned."
        assert said in found[0].message
        assert found[0].message.endswith(advice)
        assert ("other tools compute the whole window" in found[0].message) is (context != "full")


def test_each_part_of_the_model_gets_back_its_mode_even_after_an_error(clips: list[Clip]) -> None:
    loaded = Loaded()
    loaded.module.train()
    loaded.module[1].eval()
    run(clips, loaded=loaded)
    assert [part.training for part in loaded.module.modules()] == [True, True, False]

    class Fails(ReadsLoudness):
        def predict(self, *arguments: Any, **options: Any) -> list[Prediction]:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        run(clips, Fails(), loaded=loaded)
    assert [part.training for part in loaded.module.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


class FitsTwo(ReadsLoudness):
    """Runs out of memory on more than two clips, or on the clips named."""

    def __init__(self, *never: str) -> None:
        super().__init__()
        self.never = never

    def predict(self, loaded: Loaded, batch: Batch, **options: Any) -> list[Prediction]:
        if len(batch.clips) > 2 or any(clip.id in self.never for clip in batch.clips):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB.")
        return super().predict(loaded, batch, **options)


def test_a_batch_that_does_not_fit_is_decoded_in_parts(clips: list[Clip]) -> None:
    task = FitsTwo()
    result = run(clips, task, batch_seconds=1000.0)
    whole = run(clips, batch_seconds=1000.0)
    assert result.predictions == whole.predictions
    assert result.scores == whole.scores
    assert max(len(call["ids"]) for call in task.calls) == 2
    [finding] = [found for found in result.findings if found.check == "evaluation.memory"]
    assert finding.message.startswith("1 of 1 batches did not fit into memory")
    assert not any(found.check == "evaluation.memory" for found in whole.findings)


def test_a_clip_that_does_not_fit_alone_ends_an_evaluation_with_advice(clips: list[Clip]) -> None:
    with pytest.raises(ResourceError, match=r"(?s)decoding clip-3 alone.*9 TiB.*evaluation\.beam_size") as caught:
        run(clips, FitsTwo("clip-3"))
    assert caught.value.exit_code == 5


class GivesNoNumbers(ReadsLoudness):
    """The model computes NaN for some clips."""

    def __init__(self, *ids: str) -> None:
        super().__init__()
        self.ids = ids

    def predict(self, *arguments: Any, **options: Any) -> list[Prediction]:
        return [
            replace(one, text="", finite=False) if one.clip_id in self.ids else one
            for one in super().predict(*arguments, **options)
        ]


def test_a_clip_without_numbers_is_found_and_counts_as_empty(clips: list[Clip]) -> None:
    result = run(clips, GivesNoNumbers("clip-3"))
    assert [prediction.text for prediction in result.predictions] == [*WORDS[:3], "", *WORDS[4:]]
    [finding] = [finding for finding in result.findings if finding.check == "evaluation.not_finite"]
    assert (finding.severity, finding.clip_ids, finding.measured) == ("error", ("clip-3",), 1.0)
    assert "for 1 of 10 clips, which count as empty: clip-3." in finding.message
    assert result.scores["wer"].value == pytest.approx(0.1)


def test_a_window_without_numbers_names_its_clip(clips: list[Clip]) -> None:
    loaded = Loaded()
    loaded.frontend.max_duration_s = 1.0
    long = max(clips, key=lambda clip: clip.duration_s)
    [merged], findings = predict_clips(GivesNoNumbers(f"{long.id}#0"), loaded, [long])
    assert not merged.finite
    assert merged.text == long.text  # of the other windows
    assert [one.clip_ids for one in findings if one.check == "evaluation.not_finite"] == [(long.id,)]


def test_a_model_without_numbers_is_not_scored(clips: list[Clip]) -> None:
    with pytest.raises(NumericError, match=r"loudness gives NaN .* for each of the 10 clips, such as clip-") as caught:
        run(clips, GivesNoNumbers(*(clip.id for clip in clips)))
    assert caught.value.exit_code == 4


def test_a_task_that_mixes_up_its_clips_is_caught(clips: list[Clip]) -> None:
    class Reversed(ReadsLoudness):
        def predict(self, *arguments: Any, **options: Any) -> list[Prediction]:
            return super().predict(*arguments, **options)[::-1]

    with pytest.raises(ValueError, match="order of the batch"):
        run(clips, Reversed())


def test_sets_that_cannot_be_evaluated(clips: list[Clip]) -> None:
    with pytest.raises(ManifestError, match="evaluation set is empty"):
        run([])
    with pytest.raises(ManifestError, match="found twice: clip-1"):
        run([*clips, clips[1]])


def test_predictions_without_scores(clips: list[Clip]) -> None:
    predictions, findings = predict_clips(ReadsLoudness(), Loaded(), [replace(clip, text=None) for clip in clips])
    assert [prediction.text for prediction in predictions] == list(WORDS)
    assert findings == []


def test_the_result_is_ready_for_json(clips: list[Clip]) -> None:
    found = json.loads(json.dumps(run(clips).to_json(), allow_nan=False))
    assert {"scores", "slices", "clips", "seconds", "audio_seconds"} <= found.keys()
    assert {"value", "low", "high", "count", "unit"} <= found["scores"]["wer"].keys()
    assert {"by", "value", "scores"} <= found["slices"][0].keys()


def test_the_prediction_of_a_file_whose_name_is_no_utf8_keeps_its_id(clips: list[Clip], tmp_path: Path) -> None:
    clip, path = replace(clips[0], id="bad\udcff"), tmp_path / "after.jsonl"
    write_predictions(path, ReadsLoudness(), [Prediction(clip_id=clip.id, text="zero")], [clip])
    assert json.loads(path.read_text("utf-8"))["id"] == clip.id


def test_predictions_on_disk(clips: list[Clip], tmp_path: Path) -> None:
    some = [clips[0], replace(clips[1], text="אחת, שתיים", language="he"), replace(clips[2], text=None)]
    predictions = [
        Prediction(clip_id="clip-0", text="Zero"),
        Prediction(clip_id="clip-1", text="אחת \ud800"),  # half a surrogate pair
        Prediction(clip_id="clip-2", text="two"),
    ]
    path = tmp_path / "after.jsonl"
    write_predictions(path, ReadsLoudness(), predictions, some)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert rows[0] == {
        "id": "clip-0",
        "reference": "zero",
        "hypothesis": "Zero",
        "scored_reference": "zero",
        "scored_hypothesis": "zero",
        "edits": {"substitutions": 0, "deletions": 0, "insertions": 0, "hits": 1, "reference": 1},
        "duration_s": clips[0].duration_s,
        "domain": "studio",
        "speaker": "s0",
        "language": "en",
    }
    assert rows[1]["reference"] == "אחת, שתיים"
    assert rows[1]["hypothesis"] == "אחת ?"
    assert rows[1]["edits"]["substitutions"] == 1
    assert "אחת" in path.read_text("utf-8")
    assert rows[2]["edits"] is None
    with pytest.raises(ValueError, match="one prediction per clip"):
        write_predictions(path, ReadsLoudness(), predictions[:2], some)
    assert len(path.read_text("utf-8").splitlines()) == 3
