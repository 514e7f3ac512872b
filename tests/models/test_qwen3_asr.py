"""Qwen3-ASR: its component map, its prompt and labels, its loss, its texts, and checkpoints with the old names."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen3ASRConfig, Qwen3ASRForConditionalGeneration, WhisperFeatureExtractor

from sonotune.errors import ModelError, TextError
from sonotune.features.batching import Batch, pad_targets
from sonotune.models.audio_lm import Answer
from sonotune.models.base import LoadedModel, component_of_parameters, count_parameters, select
from sonotune.models.families import qwen3_asr
from sonotune.models.families.qwen3_asr import Qwen3AsrFamily
from sonotune.models.families.qwen3_asr_old import modern_name
from sonotune.models.families.qwen3_asr_text import language_name, prompt_of, written_text
from sonotune.models.probe import probe_logits
from sonotune.registry import resolve_asset
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.ctc_mix import CtcMix
from sonotune.types import Clip, DecodingSettings

ROOT = Path(__file__).resolve().parents[2]
FAMILY = Qwen3AsrFamily()


def transcripts(*arguments: Any) -> list[str]:
    return [one.text for one in FAMILY.transcribe(*arguments)]


TINY = {
    "audio_config": {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "downsample_hidden_size": 8,
    },
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
    },
}
TEXTS = ["seven", "שבע שתיים", "one two three"]
SECONDS = [0.9, 0.4, 2.3]


def load_recipe() -> Any:
    spec = importlib.util.spec_from_file_location("qwen3_asr_base", ROOT / "recipes" / "nano" / "qwen3_asr_base.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qwen3-asr-tiny")
    load_recipe().build(place, **TINY)
    return place


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return FAMILY.load(str(folder))


def waveforms(seconds: list[float]) -> list[np.ndarray]:
    sizes = [round(16_000 * length) for length in seconds]
    noises = [np.random.default_rng(index).standard_normal(size) for index, size in enumerate(sizes)]
    return [(0.1 * noise * (1 + np.sin(np.arange(noise.size) / 900))).astype(np.float32) for noise in noises]


def make_batch(
    loaded: LoadedModel, *, rows: tuple[int, ...] = (0, 1, 2), language: str | None = "en", texts: list[str] = TEXTS
) -> Batch:
    waves = waveforms(SECONDS)
    inputs, lengths = loaded.frontend([waves[row] for row in rows])
    targets, target_lengths = pad_targets([FAMILY.encode_text(loaded, texts[row], language) for row in rows])
    clips = tuple(
        Clip(id=str(row), path=Path("x.wav"), duration_s=SECONDS[row], text=texts[row], language=language)
        for row in rows
    )
    return Batch(
        inputs=inputs, input_lengths=lengths, targets=targets, target_lengths=target_lengths, clips=clips, context="cut"
    )


def chat(text: str | None = None) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "audio", "audio": "x.wav"}]}]
    if text is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    return turns


# --- the map


def test_every_parameter_belongs_to_exactly_one_component(loaded: LoadedModel):
    assert set(component_of_parameters(loaded).values()) == {"stem", "encoder", "projector", "decoder", "embeddings"}
    total = sum(row["parameters"] for row in count_parameters(loaded).values())
    assert total == sum(parameter.numel() for parameter in loaded.module.parameters())
    assert loaded.tied == (("model.language_model.embed_tokens.weight", "lm_head.weight"),)


def test_selectors(loaded: LoadedModel):
    stem = select(loaded, ["stem"])
    assert {name.split(".")[2] for name in stem} == {"conv2d1", "conv2d2", "conv2d3", "conv_out"}
    assert all(".conv2d" in name for name in select(loaded, ["stem.convolutions"]))
    assert len(select(loaded, ["encoder.norms"])) == 2 * (2 * 2 + 1)
    assert all(".audio_tower.layers.1." in name for name in select(loaded, ["encoder.layers[-1:]"]))
    assert all(".language_model.layers.1." in name for name in select(loaded, ["decoder.layers[1]"]))
    assert len(select(loaded, ["decoder.self_attention"])) == 2 * 6
    assert len(select(loaded, ["decoder.feed_forward"])) == 2 * 3
    assert len(select(loaded, ["projector"])) == 4


def test_linears_are_all_of_encoder_projector_and_decoder(loaded: LoadedModel):
    assert len(loaded.linears) == 2 * 6 + 2 + 2 * 7
    assert "lm_head" not in loaded.linears
    assert not any("conv_out" in name for name in loaded.linears)


def test_an_output_layer_of_its_own_is_the_head(folder: Path, tmp_path: Path):
    config = Qwen3ASRConfig.from_pretrained(folder, tie_word_embeddings=False)
    config.text_config.tie_word_embeddings = False
    config.save_pretrained(tmp_path)
    outlined = FAMILY.outline(str(tmp_path))
    assert outlined.tied == ()
    assert select(outlined, ["head"]) == ("lm_head.weight",)


@pytest.mark.parametrize(
    ("name", "parameters", "costs"),
    [
        ("Qwen/Qwen3-ASR-1.7B-hf", 2_038_052_480, {"encoder": 442_368, "projector": 5_120, "decoder": 1_089_536}),
        ("Qwen/Qwen3-ASR-0.6B-hf", 782_426_112, {"encoder": 290_304, "projector": 3_712, "decoder": 630_784}),
    ],
)
def test_published_sizes(name: str, parameters: int, costs: dict[str, int]):
    outlined = FAMILY.outline(name)
    rows = count_parameters(outlined)
    assert sum(row["parameters"] for row in rows.values()) == parameters
    found = dict.fromkeys(costs, 0)
    for linear in outlined.linears:
        module = outlined.module.get_submodule(linear)
        (owner,) = [component.name for component in outlined.components if component.owns(linear)]
        found[owner] += module.in_features + module.out_features
    assert found == costs
    if "1.7B" in name:
        assert rows["projector"]["parameters"] == 3_148_800
        assert rows["embeddings"]["parameters"] == 311_164_928
        assert rows["decoder"]["parameters"] == 1_409_408_000 + 2048  # the layers and the final norm
    assert outlined.frontend.feature_bins == 128


def test_the_forced_aligner_is_not_a_transcriber(folder: Path, tmp_path: Path):
    assert FAMILY.handles(Qwen3ASRConfig())
    assert not FAMILY.handles(Qwen3ASRConfig(architectures=["Qwen3ASRForTokenClassification"]))
    assert not FAMILY.handles(Qwen3ASRConfig(thinker_config={"classify_num": 5000}))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3ASRForTokenClassification"]}))
    with pytest.raises(ModelError, match="ForTokenClassification"):
        FAMILY.load(str(tmp_path))


# --- text


@pytest.mark.parametrize("language", [None, "English"])
def test_the_prompt_is_the_processors_request(loaded: LoadedModel, language: str | None):
    processor, prompt = loaded.processor, prompt_of(loaded.processor)
    (wanted,) = processor.apply_transcription_request(np.zeros(8000, np.float32), language=language, tokenize=False)
    forced = FAMILY.encode_text(loaded, "", language)[:-1].tolist() if language else []
    found = [*prompt.before, processor.audio_token_id, *prompt.after, *forced]
    assert processor.tokenizer.decode(found) == wanted
    assert found == processor.tokenizer(wanted).input_ids


@pytest.mark.parametrize("text", ["seven", "שבע שתיים", "Don't stop, 42!", "", " two  spaces "])
def test_prompt_and_target_are_the_chat_template(loaded: LoadedModel, text: str):
    processor, prompt = loaded.processor, prompt_of(loaded.processor)
    full = processor.apply_chat_template(chat(f"language Hebrew<asr_text>{text}"), tokenize=False)
    target = FAMILY.encode_text(loaded, text, "he").tolist()
    line_end = processor.tokenizer("\n").input_ids
    assert [*prompt.before, processor.audio_token_id, *prompt.after, *target, *line_end] == processor.tokenizer(
        full
    ).input_ids
    assert FAMILY.decode_text(loaded, target) == text.strip()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("en", "English"),
        ("en-US", "English"),
        ("EN_gb", "English"),
        ("english", "English"),
        ("he", "Hebrew"),
        ("iw", "Hebrew"),
        ("he-IL", "Hebrew"),
        ("Hebrew", "Hebrew"),
        ("yue", "Cantonese"),
        ("zh-CN", "Chinese"),
        ("tl", "Filipino"),
        ("fa", "Persian"),
        ("xx", None),
        ("Englsh", None),
    ],
)
def test_names_of_languages(loaded: LoadedModel, given: str, name: str | None):
    assert language_name(given) == name
    assert FAMILY.knows_language(loaded, given) is (name is not None)


def test_a_misspelt_language_is_refused_with_the_nearest_name(loaded: LoadedModel):
    with pytest.raises(TextError, match=r"'hebrw' has none that is known; did you mean he \(Hebrew\)\? Give a code"):
        FAMILY.encode_text(loaded, "seven", "hebrw")


def test_a_language_it_was_not_trained_on_is_noted(loaded: LoadedModel):
    assert FAMILY.note_on_language(loaded, "en-US") is None
    note = FAMILY.note_on_language(loaded, "iw")
    assert note is not None
    assert note.startswith("Hebrew is not among the 30 languages Qwen3-ASR was trained on")


def test_a_clip_of_unknown_language_is_language_none(loaded: LoadedModel):
    ids = FAMILY.encode_text(loaded, "seven", None).tolist()
    assert loaded.processor.tokenizer.decode(ids) == "language None<asr_text>seven<|im_end|>"


def test_texts_that_cannot_be_targets_are_refused(loaded: LoadedModel):
    for control in ("<asr_text>", "<|im_end|>", "<|audio_pad|>"):
        with pytest.raises(TextError, match="control token"):
            FAMILY.encode_text(loaded, f"seven {control} two", "en")
    with pytest.raises(TextError, match="'klingon' has none that is known"):
        FAMILY.encode_text(loaded, "seven", "klingon")
    with pytest.raises(TextError, match="has 512"):
        FAMILY.encode_text(loaded, "a" * 500, "en")
    assert FAMILY.encode_text(loaded, "a" * 400, "en", duration_s=1.0).size == 418
    with pytest.raises(TextError, match="Cut the clip"):
        FAMILY.encode_text(loaded, "a" * 400, "en", duration_s=10.0)


def test_answers_are_parsed():
    assert written_text("language English<asr_text> seven two ") == "seven two"
    assert written_text("seven two") == "seven two"
    assert written_text("language None<asr_text>") == ""


# --- labels and loss


def test_the_loss_is_that_of_transformers_with_correct_labels(loaded: LoadedModel):
    batch = make_batch(loaded)
    processor = loaded.processor
    texts = [processor.apply_chat_template(chat(f"language English<asr_text>{text}"), tokenize=False) for text in TEXTS]
    made = processor(text=texts, audio=waveforms(SECONDS), sampling_rate=16_000)
    assert made["attention_mask"][1, 0] == 0  # it pads on the left
    made["input_features"] = batch.inputs.transpose(1, 2)  # the extractor's own depend on the rest of the batch
    labels = torch.full_like(made["input_ids"], -100)
    for row, length in enumerate(batch.target_lengths.tolist()):
        labels[row, -length - 1 : -1] = batch.targets[row, :length]  # the line end after the end token is no target
        assert torch.equal(made["input_ids"][row, -length - 1 : -1], batch.targets[row, :length])
    with torch.no_grad():
        wanted = loaded.module(**made, labels=labels)
        losses = FAMILY.forward(loaded, batch).losses()
        logits = FAMILY.logits(loaded, batch)
    assert losses.count == int((labels >= 0).sum())
    torch.testing.assert_close(losses.total / losses.count, wanted.loss, atol=1e-5, rtol=0)
    places = torch.cat([labels[:, 1:] >= 0, torch.zeros(3, 1, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(logits, wanted.logits[places], atol=1e-5, rtol=0)


def test_a_clip_gives_the_same_alone_and_in_any_batch(loaded: LoadedModel):
    with torch.no_grad():
        together = FAMILY.forward(loaded, make_batch(loaded)).losses()
        for row in range(3):
            alone = FAMILY.forward(loaded, make_batch(loaded, rows=(row,))).losses()
            torch.testing.assert_close(alone.sums[0], together.sums[row], atol=1e-5, rtol=1e-6)
            assert alone.counts[0] == together.counts[row]


def test_longer_padding_changes_nothing(loaded: LoadedModel):
    batch = make_batch(loaded)
    longer = torch.nn.functional.pad(batch.inputs, (0, 0, 0, 150), value=7.0)
    padded = Batch(
        inputs=torch.where(torch.arange(longer.shape[1])[:, None] < batch.inputs.shape[1], longer, 0.0),
        input_lengths=batch.input_lengths,
        targets=batch.targets,
        target_lengths=batch.target_lengths,
        clips=batch.clips,
        context="cut",
    )
    projected: list[torch.Tensor] = []
    hook = loaded.module.model.multi_modal_projector.register_forward_hook(
        lambda module, inputs, output: projected.append(output)
    )
    with torch.no_grad():
        before, after = FAMILY.logits(loaded, batch), FAMILY.logits(loaded, padded)
    hook.remove()
    assert [len(audio) for audio in projected] == [12 + 7 + 30] * 2
    torch.testing.assert_close(projected[1], projected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    kinds = next(stream.kinds for stream in FAMILY.streams(loaded, batch) if "audio_tower" in stream.modules)
    assert kinds.bool().sum(dim=1).tolist() == [12, 7, 30]


def test_gradients_reach_every_component(loaded: LoadedModel, folder: Path):
    fresh = FAMILY.load(str(folder))
    FAMILY.forward(fresh, make_batch(fresh)).losses().total.backward()
    without = [name for name, parameter in fresh.module.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert all("k_proj.bias" in name for name in without)  # softmax does not see what is added to every key


def test_probe_logits(loaded: LoadedModel):
    assert probe_logits(loaded).shape == (36, loaded.module.config.text_config.vocab_size)


def test_a_share_of_ctc_is_mixed_in(loaded: LoadedModel):
    batch, task = make_batch(loaded), Transcribe(FAMILY, TaskSettings())
    with torch.no_grad():
        plain, mixed, ctc = (
            CtcMix(task, ObjectiveSettings(ctc_share=share)).losses(loaded, batch).sums for share in (0.0, 0.25, 1.0)
        )
    assert ctc[0] > 0
    assert ctc[1] == 0  # nine letters do not fit into seven positions
    torch.testing.assert_close(mixed, 0.75 * plain + 0.25 * ctc)


def qwen_folder() -> Path | None:
    for candidate in (os.environ.get("SONOTUNE_QWEN3_ASR"), ROOT.parent / "shared" / "data" / "qwen3_asr_tokenizer"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    place = qwen_folder()
    if place is None:
        pytest.skip("the tokenizer of Qwen3-ASR was not found: set SONOTUNE_QWEN3_ASR to its folder")
    folder = tmp_path_factory.mktemp("real") / "model"
    shutil.copytree(place, folder, copy_function=shutil.copyfile)
    audio = {**TINY["audio_config"], "output_dim": 16}
    text = {**TINY["text_config"], "hidden_size": 16, "vocab_size": 151_936}
    Qwen3ASRConfig(audio_config=audio, text_config=text).save_pretrained(folder)
    return FAMILY.load(str(folder), random_weights=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_with_the_real_tokenizer_labels_are_the_target_and_nothing_of_the_prompt(real: LoadedModel, side: str):
    texts = ["seven", "שבע שתיים", "A rather long sentence, with 42 numbers."]
    batch = make_batch(real, texts=texts, language="he")
    outputs = FAMILY.forward(real, batch)
    own = outputs.labels.split(outputs.places.sum(dim=1).tolist())
    targets = [FAMILY.encode_text(real, text, "he").tolist() for text in texts]
    assert [row.tolist() for row in own] == targets
    assert FAMILY.forward(real, batch).losses().counts.tolist() == [len(target) for target in targets]
    decoded = [real.processor.tokenizer.decode(row) for row in own]
    assert decoded == [f"language Hebrew<asr_text>{text}<|im_end|>" for text in texts]
    filled = [
        real.processor.apply_chat_template(chat(f"language Hebrew<asr_text>{text}"), tokenize=False) for text in texts
    ]
    made = real.processor(
        text=filled, audio=waveforms(SECONDS), sampling_rate=16_000, output_labels=True, padding_side=side
    )
    kept = [real.processor.tokenizer.decode(row[row >= 0]) for row in made["labels"]]
    assert all(text.startswith("<|im_start|>system") for text in kept)  # the processor's labels hold the prompt
    for row, text in enumerate(kept):
        assert text.endswith(decoded[row] + "\n")


def test_the_real_tokenizer_encodes_prompt_and_target_as_one_text(real: LoadedModel):
    prompt = prompt_of(real.processor)
    full = real.processor.apply_chat_template(chat("language English<asr_text> Hi there,\nyou."), tokenize=False)
    ids = [*prompt.before, real.processor.audio_token_id, *prompt.after]
    ids += FAMILY.encode_text(real, " Hi there,\nyou.", "en").tolist()
    assert real.processor.tokenizer(full).input_ids == [*ids, 198]
    assert ids[-1] == 151_645


# --- writing


@pytest.mark.parametrize("beam_size", [1, 3])
def test_transcription_is_the_same_alone_and_in_a_batch(loaded: LoadedModel, beam_size: int):
    def write(*rows: int) -> list[str]:
        return transcripts(
            loaded, make_batch(loaded, rows=rows), DecodingSettings(beam_size=beam_size, max_new_tokens=6)
        )

    assert write(0, 1, 2) == [*write(0), *write(1), *write(2)]


def test_transcription_is_that_of_transformers(loaded: LoadedModel):
    batch = make_batch(loaded, rows=(2,))
    made = loaded.processor.apply_transcription_request(waveforms(SECONDS)[2], language="en")
    ids = loaded.module.generate(**made, max_new_tokens=8)[0, made["input_ids"].shape[1] :]
    wanted = loaded.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert transcripts(loaded, batch, DecodingSettings(max_new_tokens=8)) == [wanted]


def test_the_language_is_given_or_written_and_the_limit_is_on_the_text(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    tokenizer = loaded.processor.tokenizer
    answers = ["seven two", "language English<asr_text>seven two", "language Hebrew"]

    def write(module: Any, rows: Any, *, limits: list[int], decoding: DecodingSettings) -> list[Answer]:
        asked.append(limits)
        assert rows.mask[:, -1].all()  # padded on the left
        lengths = rows.mask.sum(dim=1)
        prompt = prompt_of(loaded.processor)
        own = len(prompt.before) + len(prompt.after)
        given = len(tokenizer("language English<asr_text>").input_ids)
        assert lengths.tolist() == [own + 12 + given, own + 7, own + 30]
        return [Answer(tokenizer(answer).input_ids, []) for answer in answers]

    monkeypatch.setattr(qwen3_asr, "generate", write)
    batch = make_batch(loaded)
    clips = (batch.clips[0], *(_without_language(clip) for clip in batch.clips[1:]))
    batch = Batch(
        inputs=batch.inputs,
        input_lengths=batch.input_lengths,
        targets=batch.targets,
        target_lengths=batch.target_lengths,
        clips=clips,
        context="cut",
    )
    assert transcripts(loaded, batch, DecodingSettings(max_new_tokens=5)) == ["seven", "seven", "langu"]
    assert asked == [[5 + len(tokenizer("language Macedonian<asr_text>").input_ids)] * 3]


def _without_language(clip: Clip) -> Clip:
    return Clip(id=clip.id, path=clip.path, duration_s=clip.duration_s, text=clip.text)


def test_a_batch_without_room_is_refused(loaded: LoadedModel, folder: Path):
    narrow = FAMILY.load(str(folder))
    narrow.module.config.text_config.max_position_embeddings = 40
    with pytest.raises(ModelError, match="fills all positions"):
        transcripts(narrow, make_batch(loaded))


# --- checkpoints


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("thinker.audio_tower.proj1.weight", "model.multi_modal_projector.linear_1.weight"),
        ("thinker.audio_tower.proj2", "model.multi_modal_projector.linear_2"),
        ("thinker.audio_tower.ln_post.bias", "model.audio_tower.ln_post.bias"),
        ("thinker.audio_tower.layers.3.fc1", "model.audio_tower.layers.3.fc1"),
        ("thinker.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("thinker.lm_head.weight", "lm_head.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("q_proj", "q_proj"),
    ],
)
def test_old_names_have_modern_ones(old: str, new: str):
    assert modern_name(old) == new


@pytest.fixture(scope="module")
def old_folder(folder: Path, loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as the authors' package would have saved it."""
    place = tmp_path_factory.mktemp("qwen-asr-tiny")
    back = {
        "model.multi_modal_projector.linear_1": "thinker.audio_tower.proj1",
        "model.multi_modal_projector.linear_2": "thinker.audio_tower.proj2",
        "model.audio_tower": "thinker.audio_tower",
        "model.language_model": "thinker.model",
    }
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        prefix = next(prefix for prefix in back if name.startswith(prefix + "."))
        state[back[prefix] + name.removeprefix(prefix)] = tensor
    state["thinker.lm_head.weight"] = state["thinker.model.embed_tokens.weight"].clone()
    save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    text = {key: value for key, value in config["text_config"].items() if key != "rope_parameters"}
    text |= {"rope_theta": 10_000.0, "rope_scaling": {"mrope_section": [24, 20, 20], "rope_type": "default"}}
    audio = {**config["audio_config"], "model_type": "qwen3_asr_audio_encoder", "max_source_positions": 1500}
    audio.pop("max_position_embeddings", None)
    nested = {"audio_config": audio, "text_config": text, "audio_token_id": config["audio_token_id"]}
    (place / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen3_asr",
                "thinker_config": nested,
                "support_languages": ["English"],
                "architectures": ["Qwen3ASRForConditionalGeneration"],
            }
        )
    )
    (place / "generation_config.json").write_text((folder / "generation_config.json").read_text("utf-8"))
    loaded.processor.tokenizer.save_pretrained(place)
    WhisperFeatureExtractor(feature_size=80, return_attention_mask=True).save_pretrained(place)
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        settings = json.loads((place / name).read_text("utf-8"))
        (place / name).write_text(json.dumps({**settings, "processor_class": "Qwen3ASRProcessor"}), "utf-8")
    return place


def test_a_checkpoint_with_old_names_is_the_same_model(loaded: LoadedModel, old_folder: Path, tmp_path: Path):
    old = FAMILY.load(str(old_folder), dropout=0.1)
    assert old.module.config.text_config.attention_dropout == 0.1
    torch.testing.assert_close(probe_logits(old), probe_logits(loaded), atol=0, rtol=0)
    batch, again = make_batch(loaded), make_batch(old)
    assert torch.equal(batch.targets, again.targets)
    assert transcripts(old, again, DecodingSettings(max_new_tokens=5)) == transcripts(
        loaded, batch, DecodingSettings(max_new_tokens=5)
    )
    old.module.save_pretrained(tmp_path)
    old.processor.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names
    assert not any(name.startswith("thinker") for name in names)
    reloaded = FAMILY.load(str(tmp_path))
    torch.testing.assert_close(probe_logits(reloaded), probe_logits(loaded), atol=0, rtol=0)


def test_an_old_checkpoint_is_outlined_and_built_from_nothing(loaded: LoadedModel, old_folder: Path):
    shapes = {name: parameter.shape for name, parameter in loaded.module.named_parameters()}
    for found in (FAMILY.outline(str(old_folder)), FAMILY.load(str(old_folder), random_weights=True)):
        assert {name: parameter.shape for name, parameter in found.module.named_parameters()} == shapes


def test_an_old_checkpoint_that_lacks_weights_is_refused(old_folder: Path, tmp_path: Path):
    for file in old_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["thinker.audio_tower.proj1.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .* model\.multi_modal_projector\.linear_1\.weight"):
        FAMILY.load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="could not be loaded"):
        FAMILY.load(str(tmp_path))


def test_dropout_is_that_of_the_attention(folder: Path):
    dropped = FAMILY.load(str(folder), dropout=0.25)
    assert dropped.module.model.language_model.layers[0].self_attn.attention_dropout == 0.25
    assert FAMILY.load(str(folder)).module.config.text_config.attention_dropout == 0.0


# --- the nano model


def test_the_untrained_nano_model_is_small_and_plain_transformers(tmp_path: Path):
    load_recipe().build(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    model = Qwen3ASRForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert 2_000_000 < sum(weight.numel() for weight in model.parameters()) < 2_500_000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5_500_000
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert len(processor.tokenizer("seven שבע").input_ids) == 9
    made = processor.apply_transcription_request(waveforms([1.0])[0], language="en")
    ids = model.generate(**made, max_new_tokens=4)
    assert ids.shape[1] == made["input_ids"].shape[1] + 4
    nano = FAMILY.load(str(tmp_path))
    assert nano.frontend.feature_bins == 80
    assert FAMILY.load(str(tmp_path), random_weights=True).revision.startswith("random-")


def test_it_learns_two_clips(tmp_path: Path):
    torch.manual_seed(0)
    load_recipe().build(tmp_path)
    nano = FAMILY.load(str(tmp_path))
    batch = make_batch(nano, rows=(0, 1))
    optimizer = torch.optim.AdamW(nano.module.parameters(), lr=1e-3)
    for _ in range(40):
        losses = FAMILY.forward(nano, batch).losses()
        (losses.total / losses.count).backward()
        torch.nn.utils.clip_grad_norm_(nano.module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert transcripts(nano, batch) == TEXTS[:2]


@pytest.mark.parametrize(
    ("template", "said"),
    [("hello", "makes 'hello' of a turn with audio"), ("{{ nothing.at.all }}", "cannot be rendered")],
)
def test_a_chat_template_without_audio_is_refused_when_the_model_is_loaded(tmp_path: Path, template: str, said: str):
    folder = shutil.copytree(resolve_asset("assets:qwen3-asr-nano"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    with pytest.raises(ModelError, match=said):
        Qwen3AsrFamily().load(str(folder))
