"""The grammar of settings: layers, origins, errors, digests, presets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sonotune.config import load
from sonotune.config.effects import without_effect
from sonotune.config.load import dump_yaml, load_run_config
from sonotune.config.plain_yaml import parse_yaml
from sonotune.config.schema import RunConfig
from sonotune.errors import ConfigError
from sonotune.types import DecodingSettings
from sonotune.wording import counted

NANO = "model=whisper_nano"
PRESETS = Path(load.__file__).parent / "presets"


def problems(*words, require=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run_config(words, require=require)
    heading, *lines = str(caught.value).split("\n")
    assert heading == f"{counted(len(lines), 'problem')} in the configuration:"
    assert caught.value.exit_code == 2
    return [line.removeprefix("  - ") for line in lines]


def test_the_seeds_line():
    loaded = load_run_config([NANO, "data=fsdd", "training.max_epochs=10"], require=("data.train",))
    assert loaded.config.model.checkpoint == "assets:whisper-nano"
    assert loaded.config.data.train == "fsdd:"
    assert loaded.config.data.eval_speakers == ("theo",)
    assert loaded.config.training.max_epochs == 10
    assert loaded.origin["training.max_epochs"] == "command line"
    assert loaded.origin["data.train"] == "preset data=fsdd"
    assert "training.seed" not in loaded.origin
    assert loaded.explicit == {"training.max_epochs"}


def test_layers_from_weakest_to_strongest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  max_steps: 70\n  seed: 7\n")
    loaded = load_run_config(
        ["training.seed=9", f"config={file}", "training=quick", "recipe=quickstart"]  # order does not matter
    )
    training = loaded.config.training
    of_the_recipe = load_run_config(["recipe=quickstart"]).config.training.learning_rate
    assert of_the_recipe != load_run_config([NANO]).config.training.learning_rate
    assert training.learning_rate == of_the_recipe
    assert (training.max_epochs, training.max_steps, training.seed) == (1, 70, 9)
    assert loaded.origin["training.learning_rate"] == "preset recipe=quickstart"
    assert loaded.origin["training.max_epochs"] == "preset training=quick"
    assert loaded.origin["training.max_steps"] == str(file)
    assert loaded.origin["training.seed"] == "command line"
    assert loaded.explicit == {"training.max_steps", "training.seed"}


def test_a_file_is_words_nested(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: whisper_tiny\ndata.train: a.jsonl\ntraining: {learning_rates: {encoder.norms: 0.5, stem: 2}}\n"
    )
    loaded = load_run_config([f"config={file}"])
    assert loaded.config.model.checkpoint == "openai/whisper-tiny"
    assert loaded.config.data.train == "a.jsonl"
    assert list(loaded.config.training.learning_rates.items()) == [("encoder.norms", 0.5), ("stem", 2.0)]
    assert load_run_config([f"config={file}", NANO]).config.model.checkpoint == "assets:whisper-nano"


def test_a_recipe_brings_its_presets_and_words_choose_others():
    assert load_run_config(["recipe=quickstart"]).config.data.train == "assets:quickstart/train.jsonl"
    assert load_run_config(["recipe=quickstart", "data=fsdd"]).config.data.train == "fsdd:"


def test_a_folder_stands_for_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/x").mkdir(parents=True)
    loaded = load_run_config(["model=runs/x"])
    assert loaded.config.model.checkpoint == "runs/x"
    assert loaded.origin["model.checkpoint"] == "command line"
    assert load_run_config(["model=assets:whisper-nano"]).config.model.checkpoint == "assets:whisper-nano"
    (found,) = problems("model=runs/y")
    assert "no model preset called 'runs/y'" in found
    assert "A folder" in found


def test_all_problems_at_once_with_suggestions():
    found = problems(
        "model=whisper_nan", "data=tiny", "training.max_epochs=ten", "adapter.rnk=4", "adapter.rank=0", "bogus"
    )
    assert found == [
        "no model preset called 'whisper_nan'; did you mean 'whisper_nano'? (command line); known: "
        f"{', '.join(load.presets()['model'])}. A folder with a model, an adapter or a run is allowed as well.",
        "no data preset called 'tiny' (command line); known: fsdd, quickstart, rudiments_tiny.",
        "'bogus' is not of the form setting=value, group=preset or config=file.yaml",
        "adapter.rnk: no such setting; did you mean 'adapter.rank'? (set by command line)",
        "adapter.rank: 0 is not allowed (set by command line); allowed: a whole number from 1 to 4096",
        "training.max_epochs: 'ten' is not allowed (set by command line); allowed: a whole number from 1 to 1000000",
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.max_epochs=1.5", "1.5 is not allowed .*allowed: a whole number"),
        ("training.max_epochs=true", "True is not allowed"),
        ("training.max_epochs=010", "'010' is not allowed"),
        ("training.max_epochs=", "None is not allowed"),
        ("training.learning_rate=.nan", "nan is not allowed .*a number above 0 to 1"),
        ("training.clip_norm=.inf", "inf is not allowed"),
        ("training.gradient_checkpointing=yes", "'yes' is not allowed .*true or false"),
        ("evaluation.keep=[nonspeech,nonspeech]", "'nonspeech' stands twice"),
        ('evaluation.keep=["http://host/a.jsonl"]', "an address is not read over the network"),
        ('evaluation.keep=["language:http://host/a.jsonl"]', "an address is not read over the network"),
        ('evaluation.keep=["nonspeach:x"]', "no importer called 'nonspeach'"),
        ("evaluation.adapter_scales=[1,0]", r"adapter_scales must rise, and is \[1.0, 0.0\]"),
        ("evaluation.adapter_scales=[0,1.5]", r"\[0, 1.5\] is not allowed .*a list of a number from 0 to 1"),
        ("evaluation.speech_check=vad", "'vad' is not allowed .*allowed: off, energy, silero"),
        ("quantization.bits=5", "5 is not allowed .*allowed: auto, 4, 8, 16"),
        (
            "adapter.kind=full",
            "no such name; known: .*gated_lora.*none",
        ),
        ("adapter.targets=[]", r"\[\] is not allowed .*all_linear, attention, q_v or a list of text"),
        ("adapter.targets=fc1,fc1", "'fc1' stands twice"),
        ("adapter.allocator=unform", "shuffled, uniform"),
        ("data.text_scoring=hebrw", "known: arabic, basic, cjk, english, hebrew, hebrew_folded, hindi"),
        ("data.train=foldr:x", "no importer called 'foldr'; did you mean 'folder'"),
        ("data.train=https://x/y.jsonl", "not read over the network"),
        ("data.train=", "required"),
        ("model.checkpoint=https://x", "OWNER/NAME"),
        ("training={a: 1}", "no training preset called"),
        ("evaluation=3", "evaluation: a section, not a setting .*evaluation.beam_size"),
        ("training.learning_rates.stem=1", "did you mean 'training.learning_rates'"),
        ("training.learning_rates=[1]", "allowed: a mapping of text to a number"),
        ("=3", "not of the form"),
        ("training.betas=0.9", "a list of 2"),
        ("augmentation.speed_low=2", "speed_low is 2.0 and speed_high is 1.1; speed_low must be at most speed_high"),
        ("data.max_duration_s=0.05", "min_duration_s is 0.1 and max_duration_s is 0.05"),
        ("evaluation.duration_edges_s=5,2", "duration_edges_s must rise"),
        ("evaluation.temperatures=0.2,0.4", "temperatures must begin with 0 and rise"),
        ("evaluation.temperatures=0,0.4,0.2", "temperatures must begin with 0 and rise"),
        ("evaluation.logprob_threshold=0.5", "evaluation.logprob_threshold"),
        ("training.seed=[1", "training.seed, line 1"),
        ("training.seed=!!python/object:x 1", "the tag .* not allowed"),
        ("training.seed=1\n2", "control characters"),
        ("data.train=" + os.fsdecode(b"\xff.jsonl"), "not UTF-8"),
    ],
)
def test_a_bad_word_is_one_clear_problem(word, message):
    require = ("data.train",) if word == "data.train=" else ()
    (found,) = problems(NANO, word, require=require)
    assert re.search(message, found)


def test_a_section_problem_does_not_hide_another():
    assert len(problems(NANO, "augmentation.speed_low=2", "training.seed=-1")) == 2


def test_words_given_twice():
    assert problems(NANO, "training.seed=1", "training.seed=2") == [
        "training.seed is given twice on the command line; keep one of them"
    ]


def test_missing_settings_say_how_to_set_them():
    (found,) = problems("data=fsdd")
    assert found.startswith("model.checkpoint: required, but nothing sets it; write model=PRESET (ast_base, ")
    (found,) = problems(NANO, "data.test=x.jsonl", require=("data.train",))
    assert found == (
        "data.train: required, but nothing sets it; write data=PRESET (fsdd, quickstart, rudiments_tiny) or "
        "data.train=VALUE"
    )


def test_a_preset_that_is_not_there_is_not_reported_as_missing_settings_too():
    assert len(problems("model=nope", "data=nope", require=("data.train",))) == 2


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("model.revision=1e10", "revision", "1e10"),
        ("model.revision=123456", "revision", "123456"),
        ("model.language=no", "language", "no"),
        ("model.language=null", "language", None),
    ],
)
def test_text_settings_take_the_word_as_it_stands(word, name, value):
    assert getattr(load_run_config([NANO, word]).config.model, name) == value


def test_paths_with_signs_of_yaml_in_them():
    config = load_run_config([NANO, "data.train=my clips #2.jsonl", "run.dir=a: b", "data.root=x"]).config
    assert config.data.train == "my clips #2.jsonl"
    assert config.run.dir == Path("a: b")
    assert config.data.root == Path("x")
    assert load_run_config([NANO, "run.dir=auto"]).config.run.dir == "auto"


def test_lists_may_be_written_plainly():
    config = load_run_config(
        [NANO, "adapter.targets=encoder.layers[-2:], fc1", "data.eval_speakers=theo", "training.betas=0.9,0.98"]
    ).config
    assert config.adapter.targets == ("encoder.layers[-2:]", "fc1")
    assert config.data.eval_speakers == ("theo",)
    assert config.training.betas == (0.9, 0.98)
    assert load_run_config([NANO, "adapter.targets=q_v"]).config.adapter.targets == "q_v"
    assert load_run_config([NANO, "adapter.targets=[fc1, fc2]"]).config.adapter.targets == ("fc1", "fc2")


# --- config files ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {max_epoch: 3}", "training.max_epoch: no such setting; did you mean 'training.max_epochs'"),
        ("trainin: {max_epochs: 3}", "trainin.max_epochs: no such setting; did you mean 'training.max_epochs'"),
        ("training: {seed: 1}\ntraining.seed: 2", "training.seed stands twice in "),
        ("training: {seed: 1, seed: 2}", "line 1, column 21: the name 'seed' stands twice"),
        ("training: {max_epochs: ten}", r"'ten' is not allowed \(set by .*run\.yaml\)"),
        ("[1, 2]", "settings are a mapping"),
        ("training:\n\tseed: 1", r"run\.yaml, line 2"),
        ("model: {revision: 12}", "12 is not allowed .*allowed: text or null"),
        ("training: 3", "training: a section"),
        ("model: whispr", "no model preset called 'whispr'"),
    ],
)
def test_problems_in_a_file_name_it(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    (found,) = problems(*([] if text.startswith("model: w") else [NANO]), f"config={file}")
    assert re.search(message, found)
    assert "run.yaml" in found


def test_an_empty_file_and_an_empty_section_set_nothing(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training:\n")
    assert load_run_config([NANO, f"config={file}"]).digest == load_run_config([NANO]).digest


# --- settings that cannot take effect ---


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["adapter.kind=none", "adapter.rank=4"], "adapter.rank"),
        (["adapter=full", "adapter.stem=frozen"], "adapter.stem"),
        (["quantization.bits=16", "quantization.double=true"], "quantization.double"),
        (["quantization.bits=8", "quantization.double=true"], "quantization.double"),
        (["augmentation.noise_probability=0", "augmentation.snr_low_db=1"], "augmentation.snr_low_db"),
        (["augmentation.time_masks=0", "augmentation.time_mask_frames=10"], "augmentation.time_mask_frames"),
        (["data.eval=a.jsonl", "data.eval_speakers=x"], "data.eval_speakers"),
        (["evaluation.keep_clips=40"], "evaluation.keep_clips"),
        (["model.task=classify", "evaluation.speech_check=off"], "evaluation.speech_check"),
        (["data.eval_speakers=x", "data.eval_fraction=0.2"], "data.eval_fraction"),
        (["model.context=full", "model.full_context_share=0.1"], "model.full_context_share"),
        (["model.task=transcribe", "model.num_labels=5"], "model.num_labels"),
        (["training.schedule=constant", "training.min_learning_rate_ratio=0"], "training.min_learning_rate_ratio"),
        (["training.eval_steps=never", "training.patience=2"], "training.patience"),
    ],
)
def test_a_setting_without_effect_is_an_error(words, name):
    (found,) = problems(NANO, *words)
    assert found.startswith(f"{name} cannot take effect, because ")
    assert "(set by command line)" in found


def test_a_preset_may_hold_what_the_user_switches_off():
    config = load_run_config(["recipe=quickstart", "adapter.kind=none", "quantization.bits=16"]).config
    assert "adapter.rank" in without_effect(config)


def test_rows_of_settings_without_effect_name_settings():
    everything = RunConfig.model_validate(
        {
            "model": {"checkpoint": "a", "context": "full"},
            "adapter": {"kind": "none"},
            "data": {"eval": "a"},
            "training": {"schedule": "constant", "eval_steps": "never"},
        }
    )
    known = {setting.name for setting in load.describe_settings()}
    assert len(without_effect(everything)) > 20
    assert without_effect(everything).keys() <= known


def test_quantised_weights_cannot_train():
    (found,) = problems(NANO, "adapter=full", "quantization.bits=4")
    assert "quantised weights cannot train" in found


# --- digest and dump ---


def digest(*words: str) -> str:
    return load_run_config([NANO, *words]).digest


def test_the_digest_covers_what_can_change_the_result():
    base = digest()
    assert len(base) == 64
    assert digest("training.schedule=cosine") == base  # the default, spelled out
    assert digest("training.seed=1") != base
    assert digest("training.learning_rates={a: 1, b: 2}") != digest("training.learning_rates={b: 2, a: 1}")
    for word in (
        "run.dir=x",
        "run.resume=must",
        "run.progress=false",
        "data.loader_workers=4",
        "training.save_steps=7",
        "training.keep_checkpoints=9",
    ):
        assert digest(word) == base, word


def test_settings_that_came_later_are_in_the_digest_only_where_they_are_changed():
    later = ("augmentation.packet_loss_probability", "augmentation.chains", "evaluation.augment")
    plain = load_run_config([NANO])
    assert not set(later) & set(plain.deciding())
    chosen = load_run_config([NANO, "augmentation.chains=[voip]", "evaluation.augment=hall"])
    assert chosen.deciding()["augmentation.chains"] == ["voip"]
    assert chosen.deciding()["evaluation.augment"] == "hall"
    assert chosen.digest != plain.digest


def test_the_digest_is_the_same_in_every_process():
    code = f"from sonotune.config.load import load_run_config as l; print(l(['{NANO}']).digest)"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert output.stdout.strip() == digest()


@pytest.mark.parametrize(
    "words",
    [
        [NANO],
        [NANO, "data=fsdd", "run.dir=runs/שלום", "model.revision=1e10", "training.learning_rates={stem: 0.5}"],
        ["recipe=quickstart", "adapter.targets=fc1,encoder", "model.language=no"],
        ["recipe=nano_whisper", "model.checkpoint=x", "training.learning_rate=3e-5"],
        ["recipe=quickstart", "adapter=full", "quantization.bits=16"],
    ],
)
def test_a_dump_reproduces_the_run(tmp_path, words):
    first = load_run_config(words)
    file = tmp_path / "dump.yaml"
    file.write_text(dump_yaml(first.config), "utf-8")
    second = load_run_config([f"config={file}"])
    assert second.digest == first.digest
    assert dump_yaml(second.config) == dump_yaml(first.config)
    idle = without_effect(first.config)
    for name in (setting.name for setting in load.describe_settings()):
        section, _, setting = name.partition(".")
        if name not in idle:
            before, after = (getattr(getattr(c, section), setting) for c in (first.config, second.config))
            assert before == after, name


def test_plain_is_json():
    loaded = load_run_config([NANO, "run.dir=x", "data.root=y"])
    assert json.loads(json.dumps(loaded.plain()))["run"]["dir"] == "x"


# --- the run's directory ---


def test_run_dir_auto_goes_on_with_an_unfinished_run_of_the_same_settings(tmp_path):
    loaded = load_run_config([NANO])
    first = loaded.run_dir(tmp_path)
    assert re.fullmatch(r"\d{8}T\d{6}Z-" + loaded.digest[:8], first.name)
    first.mkdir()
    record = first / "run.json"
    record.write_text(json.dumps({"config_digest": loaded.digest, "status": "interrupted"}))
    assert loaded.run_dir(tmp_path) == first
    assert load_run_config([NANO, "training.seed=1"]).run_dir(tmp_path) != first
    assert load_run_config([NANO, "run.resume=never"]).run_dir(tmp_path) != first
    record.write_text(json.dumps({"config_digest": loaded.digest, "status": "finished"}))
    assert loaded.run_dir(tmp_path) != first
    record.write_text("{")
    assert loaded.run_dir(tmp_path) != first
    assert load_run_config([NANO, f"run.dir={tmp_path / 'mine'}"]).run_dir() == tmp_path / "mine"


# --- presets ---


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in load.presets().items() for name in names]
)
def test_every_preset_is_valid_and_says_how_to_use_it(group, name):
    tree = parse_yaml((PRESETS / group / f"{name}.yaml").read_text("utf-8"))
    brings_a_model = group == "model" or ("model" in tree and isinstance(tree["model"], str))
    loaded = load_run_config([f"{group}={name}", *([] if brings_a_model else ["model.checkpoint=x"])])
    idle = without_effect(loaded.config)
    assert [setting for setting in loaded.origin if setting in idle] == []
    lines = (PRESETS / group / f"{name}.yaml").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any(f"{group}={name}" in line for line in lines if line.startswith("#   sonotune "))
    if group != "recipe":
        assert all(f"{group}.{setting}" in loaded.origin for setting in tree if setting != load.BROUGHT)


def test_what_a_preset_brings_along_is_weaker_than_a_recipe_a_preset_and_a_word():
    assert load_run_config(["model=whisper_nano"]).config.data.min_duration_s == 0.1
    assert load_run_config(["model=whisper_nano"]).origin["data.min_duration_s"] == "preset model=whisper_nano"
    assert load_run_config(["model=whisper_nano", "data.min_duration_s=0.3"]).config.data.min_duration_s == 0.3
    assert load_run_config(["model.checkpoint=x"]).config.data.min_duration_s == 0.5


def test_the_presets_promised_are_there():
    assert set(load.presets()["model"]) == {
        "whisper_nano",
        "whisper_tiny",
        "whisper_base",
        "whisper_small",
        "whisper_large_v3",
        "qwen3_asr_nano",
        "qwen3_asr_0_6b",
        "qwen3_asr_1_7b",
        "ctc_nano",
        "wav2vec2_base",
        "wav2vec2_large",
        "wav2vec2_conformer_large",
        "ast_nano",
        "ast_base",
        "speech_llm_nano",
        "whisper_base_classifier",
    }
    assert set(load.presets()) == {"adapter", "data", "model", "recipe", "sweep", "training"}


# --- the schema as a whole ---


def test_no_setting_could_hold_a_secret():
    for setting in load.describe_settings():
        words = set(re.split(r"[._]", setting.name))
        assert not words & {"key", "token", "secret", "password", "credentials", "auth"}, setting.name


def test_every_setting_is_described_bounded_and_has_a_default():
    settings = load.describe_settings()
    names = [name for name, *_ in settings]
    assert len(names) == len(set(names)) > 80
    for name, kind, default, doc in settings:
        assert doc.endswith("."), name
        if "number" in kind:
            assert re.search(r"(from|above) \S+ (to|below) \S+", kind), (name, kind)
        assert name == "model.checkpoint" or default != "required"
        assert default != ""


def test_a_default_reads_back_as_itself():
    for name, _, default, _ in load.describe_settings():
        if default == "required":
            continue
        section, _, setting = name.partition(".")
        expected = RunConfig.model_fields[section].annotation.model_fields[setting].default
        inherited = load_run_config(["model.checkpoint=x"], inherited={name: parse_yaml(default)}).config
        assert getattr(getattr(inherited, section), setting) == expected, name
        try:
            config = load_run_config(["model.checkpoint=x", f"{name}={default}"]).config
        except ConfigError as error:  # a word that is understood and would change nothing
            [_, problem] = str(error).splitlines()
            assert problem.startswith(f"  - {name} cannot take effect"), name
        else:
            assert getattr(getattr(config, section), setting) == expected, name


def test_names_used_from_outside_are_kept():
    names = {setting.name for setting in load.describe_settings()}
    promised = """data.train data.eval data.test model.checkpoint adapter.kind quantization.bits adapter.rank
    adapter.targets adapter.stem adapter.allocator adapter.budget training.max_epochs training.max_steps
    training.learning_rate training.seed training.save_steps training.eval_steps run.dir model.num_labels"""
    assert set(promised.split()) <= names


def test_settings_are_frozen():
    config = load_run_config([NANO]).config
    with pytest.raises(ValueError, match="frozen"):
        config.training.seed = 1


def test_loading_is_quick_and_free_of_torch():
    code = f"""if True:
        import sys, time
        started = time.process_time()
        from sonotune.config.load import load_run_config
        load_run_config(["{NANO}"])
        print(time.process_time() - started, *{{"torch", "transformers", "numpy", "peft"}} & set(sys.modules))
    """
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took, *heavy = done.stdout.split()
        assert heavy == []
        seconds.append(float(took))
    assert min(seconds) < 0.5


def test_a_bomb_in_a_config_file_is_refused_quickly(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("a: &a [x,x,x,x,x,x,x,x,x]\n" + "b: [*a,*a]\n")
    started = time.process_time()
    assert "aliases" in problems(NANO, f"config={file}")[0]
    assert time.process_time() - started < 1


def test_an_entry_of_a_list_of_mappings_is_named_with_what_it_may_hold():
    stages = "training.stages=[{name: a, max_steps: 0}, {learning_rate: 5, max_steps: 2, dipp: 1}]"
    with pytest.raises(ConfigError) as caught:
        load_run_config(["model=whisper_nano", stages])
    said = str(caught.value)
    assert "entry 1 has max_steps=0, which is not allowed (set by command line); allowed: a whole number from 1" in said
    assert "entry 2 has learning_rate=5, which is not allowed (set by command line); allowed: a number above" in said
    assert "entry 2 has no 'name'" in said
    assert re.search(r"entry 2 has 'dipp', which is not known .* allowed: a list of a mapping with name, weights", said)


def test_what_decodes_is_one_object():
    found = load_run_config(["model=whisper_nano"]).config.evaluation.decoding()
    assert found == DecodingSettings()
    words = ["evaluation.temperatures=[0]", "evaluation.logprob_threshold=null", "evaluation.beam_size=5"]
    found = load_run_config(["model=whisper_nano", *words]).config.evaluation.decoding()
    assert found == DecodingSettings(temperatures=(0.0,), logprob_threshold=None, beam_size=5)


def test_a_word_that_no_file_could_hold_is_refused():
    with pytest.raises(ConfigError, match=r"'data.train=xxx.* has 100,011 characters; at most 65,536 are allowed"):
        load_run_config(["model=whisper_nano", f"data.train={'x' * 100_000}"])
    long = "x" * 60_000
    assert load_run_config(["model=whisper_nano", f"data.train={long}"]).config.data.train == long
