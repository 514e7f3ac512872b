"""What an export says of decoding is what plain `generate` goes by."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sonotune.models.base import LoadedModel
from sonotune.models.decoding_defaults import set_decoding_defaults
from sonotune.models.families.ctc import CtcFamily
from sonotune.models.families.qwen3_asr import Qwen3AsrFamily
from sonotune.models.families.whisper import WhisperFamily


@pytest.fixture
def whisper() -> LoadedModel:
    return WhisperFamily().load("assets:whisper-nano", context="full")


def prompts(loaded: LoadedModel) -> list[list[int]]:
    """The first tokens that plain `generate` gives the decoder when it is told nothing."""
    seen: list[list[int]] = []
    decoder, honest = loaded.module.model.decoder, loaded.module.model.decoder.forward

    def listen(*args: Any, **named: Any) -> Any:
        seen.append(named["input_ids"][0].tolist())
        return honest(*args, **named)

    decoder.forward = listen
    features = torch.randn(1, 80, 1500, generator=torch.Generator().manual_seed(0))
    loaded.module.generate(features, max_new_tokens=1)
    decoder.forward = honest
    return seen


def tell(loaded: LoadedModel, language: str | None, **changes: Any) -> dict[str, Any]:
    return set_decoding_defaults(
        loaded.module,
        getattr(loaded.processor, "tokenizer", None),
        family=loaded.family.name,
        language=language,
        **changes,
    )


@pytest.mark.parametrize("language", ["he", "Hebrew", "iw-IL"])
def test_plain_generate_is_prompted_in_the_language_of_the_run(whisper: LoadedModel, language: str):
    assert tell(whisper, language)["language"] == "he"
    assert prompts(whisper)[-1] == WhisperFamily().prompt_tokens(whisper, "he")


def test_where_the_language_is_detected_the_task_is_in_the_prompt(whisper: LoadedModel):
    """`generate` that is told neither writes no `<|transcribe|>`, a prompt the model was never trained with."""
    transcribe = whisper.processor.tokenizer.convert_tokens_to_ids("<|transcribe|>")
    assert transcribe not in prompts(whisper)[-1]
    assert "language" not in tell(whisper, None)
    found = prompts(whisper)[-1]
    assert found in [WhisperFamily().prompt_tokens(whisper, code) for code in ("en", "he")]


def test_ids_that_an_old_checkpoint_lacks_are_found_in_its_tokenizer(whisper: LoadedModel):
    wanted = copy.deepcopy(whisper.module.generation_config)
    settings = whisper.module.generation_config
    del settings.task_to_id, settings.no_timestamps_token_id
    settings.forced_decoder_ids = [[1, 285], [2, 385]]  # English, translated
    whisper.module.config.forced_decoder_ids = [[1, 285], [2, 385]]
    tell(whisper, "en")
    assert settings.task_to_id == wanted.task_to_id
    assert settings.no_timestamps_token_id == wanted.no_timestamps_token_id
    assert settings.forced_decoder_ids is None
    assert whisper.module.config.forced_decoder_ids is None
    assert prompts(whisper)[-1] == WhisperFamily().prompt_tokens(whisper, "en")


def test_a_model_of_english_alone_is_told_nothing(whisper: LoadedModel):
    del whisper.module.generation_config.lang_to_id
    assert not {"language", "task"} & tell(whisper, "en").keys()


def test_a_language_that_the_model_does_not_know_is_left_to_detection(whisper: LoadedModel):
    assert "language" not in tell(whisper, "sw")


def test_beams_are_those_that_the_run_is_scored_with(whisper: LoadedModel):
    assert "num_beams" not in tell(whisper, "en", beam_size=1)
    assert "length_penalty" not in tell(whisper, "en", beam_size=1, length_penalty=-2.0)
    assert tell(whisper, "en", beam_size=4, length_penalty=-2.0)["length_penalty"] == -2.0
    assert tell(whisper, "en", beam_size=4)["num_beams"] == whisper.module.generation_config.num_beams == 4


def test_qwen3_asr_is_not_stopped_after_twenty_tokens():
    loaded = Qwen3AsrFamily().load("assets:qwen3-asr-nano")
    assert tell(loaded, "en") == {}
    loaded.module.generation_config.max_new_tokens = None
    assert tell(loaded, "en") == {"max_new_tokens": 512}


def test_what_does_not_generate_is_left_alone():
    assert tell(CtcFamily().load("assets:ctc-nano"), "en") == {}
