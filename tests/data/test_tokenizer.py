"""Trained tokenizers are reproducible, load in transformers and give the text back."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sonotune.data.tokenizer import KINDS, SPECIALS, train_tokenizer
from sonotune.errors import ConfigError, RunDirectoryError, SonotuneError, TextError
from sonotune.runs.files import to_plain

TEXTS = [
    unicodedata.normalize("NFC", text)
    for text in (
        "שָׁלוֹם עוֹלָם",
        "בית־ספר גדול, צה״ל",
        "مرحبا بالعالم",
        "hello world it's 1,234.5",
        "שלום hello مرحبا 12",
        "x\u0301 q\u0307\u0323 café",
        "hello hello world",
        "שלום שלום עולם",
        "wait ( what ) ? n't !",
    )
]
FILES = ("tokenizer.json", "tokenizer_config.json")


def train(folder: Path, texts=TEXTS, *, kind: str = "unigram", vocab_size: int = 120, **options):
    return train_tokenizer(texts, kind=kind, vocab_size=vocab_size, folder=folder, **options)


def load(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


VARIANTS = [
    pytest.param({"kind": "unigram"}, id="unigram"),
    pytest.param({"kind": "bpe"}, id="bpe"),
    pytest.param({"kind": "bpe", "byte_fallback": True, "vocab_size": 400}, id="bpe-bytes"),
    pytest.param({"kind": "characters"}, id="characters"),
    pytest.param({"kind": "characters", "separator": "▁"}, id="characters-metaspace"),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_comes_back_in_transformers(tmp_path: Path, variant) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    report = train(tmp_path, **variant)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == report.vocab_size <= report.vocab_size_asked
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    for text in (*TEXTS, "עולם שָׁלוֹם world", " ".join(TEXTS)):
        ids = tokenizer(text).input_ids
        assert ids[0] == 1
        assert ids[-1] == 2
        assert 3 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids == load(tmp_path).encode(text).ids
    again = tmp_path / "again"
    tokenizer.save_pretrained(again)
    assert AutoTokenizer.from_pretrained(again)(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids


@pytest.mark.parametrize("variant", VARIANTS)
def test_spaces_become_one_and_marks_are_composed(tmp_path: Path, variant) -> None:
    train(tmp_path, bos=False, eos=False, **variant)
    tokenizer = load(tmp_path)
    messy = "  hello \u00a0\t world\n cafe\u0301 "
    assert tokenizer.encode(messy).ids == tokenizer.encode("hello world café").ids
    assert tokenizer.decode(tokenizer.encode(messy).ids) == "hello world café"
    assert tokenizer.encode("").ids == []
    assert tokenizer.encode("  ").ids == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_never_seen_is_reported(tmp_path: Path, variant) -> None:
    report = train(tmp_path, held_out=["hello 😀 😀", "world ж"], **variant)
    assert report.unknown_characters == {"😀": 2, "ж": 1}
    assert report.held_out_characters == 13
    ids = load(tmp_path).encode("hello 😀").ids
    if variant.get("byte_fallback"):
        assert SPECIALS.index("<unk>") not in ids
        assert load(tmp_path).decode(ids) == "hello 😀"
    else:
        assert SPECIALS.index("<unk>") in ids
        assert load(tmp_path).decode(ids).strip() == "hello"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_texts_give_the_same_bytes(tmp_path: Path, variant) -> None:
    pick = random.Random(0)  # noqa: S311
    words = ["".join(pick.choices("אבגדהוabcde", k=pick.randint(1, 7))) for _ in range(200)]
    texts = [" ".join(pick.choices(words, k=6)) for _ in range(300)]
    found = set()
    for number in range(3):
        pick.shuffle(texts)
        train(tmp_path / str(number), texts, **variant)
        found.add(tuple((tmp_path / str(number) / name).read_bytes() for name in FILES))
    assert len(found) == 1


def test_the_report_counts(tmp_path: Path) -> None:
    report = train(tmp_path, ["ab ab", "a c", " "], kind="characters", vocab_size=50)
    assert to_plain(report) == {
        "folder": str(tmp_path),
        "kind": "characters",
        "vocab_size": 8,
        "vocab_size_asked": 50,
        "texts": 2,
        "words": 4,
        "characters": 3,
        "tokens_per_word": 2.0,
        "tokens_per_character": 1.0,
        "whole_words": 0.5,
        "held_out_characters": None,
        "unknown_characters": {},
    }
    json.dumps(to_plain(report), allow_nan=False)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_more_tokens_mean_shorter_texts(tmp_path: Path, kind: str) -> None:
    texts = TEXTS * 3
    small, large = (train(tmp_path / str(size), texts, kind=kind, vocab_size=size) for size in (65, 120))
    assert small.vocab_size <= 65
    assert large.tokens_per_word < small.tokens_per_word
    assert large.whole_words >= small.whole_words
    assert large.tokens_per_word < small.tokens_per_word
    assert large.tokens_per_character < 1


def test_ends_are_optional(tmp_path: Path) -> None:
    train(tmp_path / "bos", eos=False)
    train(tmp_path / "eos", bos=False)
    train(tmp_path / "none", bos=False, eos=False)
    bare = load(tmp_path / "none").encode("hello").ids
    assert load(tmp_path / "bos").encode("hello").ids == [1, *bare]
    assert load(tmp_path / "eos").encode("hello").ids == [*bare, 2]


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ([], {}, TextError, "found 0 transcripts"),
        ([" ", "\t"], {}, TextError, "found 2 transcripts"),
        (["abc"], {"vocab_size": 7}, ConfigError, "found a size of 7; allowed is 8 or more"),
        (["abc"], {"kind": "bpe", "byte_fallback": True}, ConfigError, "found a size of 120; allowed is 264"),
        (["a"], {"kind": "wordpiece"}, ConfigError, "found 'wordpiece'; allowed are unigram, bpe, characters"),
        (["a"], {"byte_fallback": True}, ConfigError, "byte fallback"),
        (["a"], {"kind": "characters", "separator": "-"}, ConfigError, "word separator"),
        (["a", "b\0"], {}, TextError, r"transcript 2 .* found '\\x00'"),
        (["a\ud800"], {}, TextError, r"transcript 1 .* found '\\ud800'"),
        (["a▁b"], {}, TextError, r"found '\\u2581'"),
        (["a|b"], {"kind": "characters"}, TextError, r"found '\|'"),
        (["a <unk> b"], {}, TextError, "found '<unk>'"),
        (["a"], {"held_out": ["\0"]}, TextError, "held-out transcript 1"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, texts, options, error: type[SonotuneError], message: str) -> None:
    with pytest.raises(error, match=message):
        train(tmp_path / "new", texts, **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_files_is_kept(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"found tokenizer\.json, tokenizer_config\.json"):
        train(tmp_path, kind="bpe")
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    train(tmp_path, kind="bpe", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert (tmp_path / "tokenizer.json").read_bytes() != before
    with pytest.raises(RunDirectoryError, match="found a file"):
        train(tmp_path / "tokenizer.json", overwrite=True)


def test_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sonotune.data.tokenizer import train_tokenizer as train\n"
        f"for kind in {KINDS!r}: train(['a b'], kind=kind, vocab_size=9, folder=Path({str(tmp_path)!r}, kind))\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
