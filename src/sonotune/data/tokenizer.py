"""Subword tokenizers trained on the transcripts of a corpus.

For a recogniser whose own tokenizer spells a language letter by letter or byte by byte, or for a new CTC head. The
result is a folder that `transformers.AutoTokenizer.from_pretrained` loads as a `PreTrainedTokenizerFast`, offline and
without remote code. It is written without transformers, because the import of transformers may import torch.

Pieces are as in SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226): a word begins with `▁`, so text and
pieces can be turned into each other without loss. Text is only brought to NFC, with runs of space made one; case,
niqqud and punctuation are the business of `data.text`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sonotune.errors import ConfigError, RunDirectoryError, TextError
from sonotune.runs.files import atomic_write_text, write_error
from sonotune.runs.folders import adding

Kind = Literal["unigram", "bpe", "characters"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

PAD, BOS, EOS, UNK = SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
"""Ids 0 to 3. CTC models use the padding as their blank, which must then be id 0."""

METASPACE: Final = "▁"
_BYTES: Final = tuple(f"<0x{value:02X}>" for value in range(256))
_FORBIDDEN: Final = re.compile("[\0\ud800-\udfff]")
_SCORE_DIGITS: Final = 2
_MIN_PAIRS: Final = 2  # a pair seen once says nothing about the language


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerReport:
    """What a tokenizer makes of the texts it was trained on. `runs.files.to_plain` turns it into JSON.

    Attributes:
        folder: Where it lies.
        kind: `unigram`, `bpe` or `characters`.
        vocab_size: Tokens reached, with the special ones. Below `vocab_size_asked` where the texts have fewer pieces
            that are worth a token.
        vocab_size_asked: Tokens asked for.
        texts: Transcripts that were not blank.
        words: Words in them, parted by spaces.
        characters: Different characters, all of which have a token.
        tokens_per_word: Tokens without BOS and EOS, by words.
        tokens_per_character: The same by characters, with the spaces between words.
        whole_words: Share of the words that are one token.
        held_out_characters: Characters without spaces of the held-out texts; None where none were given.
        unknown_characters: Held-out character without a token -> how often it occurs; spelt as bytes with byte
            fallback, otherwise `<unk>`.
    """

    folder: Path
    kind: str
    vocab_size: int
    vocab_size_asked: int
    texts: int
    words: int
    characters: int
    tokens_per_word: float
    tokens_per_character: float
    whole_words: float
    held_out_characters: int | None = None
    unknown_characters: dict[str, int] = field(default_factory=dict)


def train_tokenizer(
    texts: Sequence[str],
    *,
    kind: str,
    vocab_size: int,
    folder: Path,
    bos: bool = True,
    eos: bool = True,
    byte_fallback: bool = False,
    separator: str = "|",
    held_out: Sequence[str] | None = None,
    overwrite: bool = False,
) -> TokenizerReport:
    """Train a tokenizer and write `tokenizer.json` and `tokenizer_config.json`.

    The same texts in any order give the same bytes.

    Args:
        texts: Transcripts, normalised as the model will see them.
        kind: `unigram`, `bpe`, or `characters` for one symbol per character.
        vocab_size: Tokens at most, with the four special ones.
        folder: Where the files go; created where missing.
        bos: Put `<s>` before every encoded text.
        eos: Put `</s>` behind it.
        byte_fallback: Spell unknown characters as UTF-8 bytes, which takes 256 tokens. For `bpe` only.
        separator: What stands for a space in `characters`: `|` as in wav2vec 2.0, or `▁`.
        held_out: Transcripts to look for unknown characters in.
        overwrite: Replace the files of a folder that is not empty. Other files there stay.

    Raises:
        ConfigError: The kind, separator or byte fallback is not allowed, or the vocabulary is too small.
        TextError: There is no text, or it holds what no tokenizer can give back.
        RunDirectoryError: The folder is not empty, or cannot be written.
        ResourceError: The disk is full.
    """
    _check_settings(kind, separator, byte_fallback=byte_fallback)
    _check_folder(folder, overwrite=overwrite)
    mark = separator if kind == "characters" else METASPACE
    normalizer = _normalizer()
    clean = sorted(filter(None, map(normalizer.normalize_str, _checked(texts, mark, "transcript"))))
    unseen = list(map(normalizer.normalize_str, _checked(held_out or (), mark, "held-out transcript")))
    if not clean:
        raise TextError(
            f"a tokenizer cannot be trained on nothing: found {len(texts)} transcripts, none with a word. "
            "At least one is needed. Give a corpus that has transcripts."
        )
    words = Counter(word for text in clean for word in text.split(" "))
    _check_size(vocab_size, _alphabet(words) | {mark}, len(_BYTES) if byte_fallback else 0)
    tokenizer = _train(kind, words, vocab_size, mark, byte_fallback=byte_fallback)
    _template(tokenizer, bos=bos, eos=eos)
    report = TokenizerReport(
        folder=folder,
        kind=kind,
        vocab_size=tokenizer.get_vocab_size(),
        vocab_size_asked=vocab_size,
        **_measure(tokenizer, clean, words),
        held_out_characters=None if held_out is None else sum(len(text.replace(" ", "")) for text in unseen),
        unknown_characters=_unknown(unseen, _alphabet(words)),
    )
    files = {"tokenizer_config.json": json.dumps(_config(), indent=2), "tokenizer.json": tokenizer.to_str(pretty=True)}
    try:
        with adding(folder, files) as place:
            for name, text in files.items():
                atomic_write_text(place / name, text + "\n")
    except OSError as error:
        raise write_error(error, folder, sum(map(len, files.values())), choose="another FOLDER") from error
    return report


# --- checks --------------------------------------------------------------------------------------


def _check_settings(kind: str, separator: str, *, byte_fallback: bool) -> None:
    if kind not in KINDS:
        raise ConfigError(
            f"the kind of a tokenizer is unknown: found {kind!r}; allowed are {', '.join(KINDS)}. Choose one of them."
        )
    if byte_fallback and kind != "bpe":
        raise ConfigError(
            f"byte fallback cannot be used here: found it with a tokenizer of kind {kind!r}; allowed is it with "
            "'bpe'. Choose that kind, or leave byte fallback out."
        )
    if separator not in ("|", METASPACE):
        raise ConfigError(
            f"the word separator of a tokenizer cannot be used: found {separator!r}; allowed are '|' and "
            f"{METASPACE!r}. Choose one of them."
        )


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(
            f"the folder of a tokenizer cannot be written: found a file at {folder}; allowed is a folder, or a name "
            "that is free. Give another one."
        )
    if folder.is_dir() and not overwrite and (found := sorted(path.name for path in folder.iterdir())):
        raise RunDirectoryError(
            f"the folder {folder} is not empty: found {', '.join(found[:3])}{', …' if len(found) > 3 else ''}; allowed "
            "is a new or empty folder. Give another one, or allow that it is overwritten."
        )


def _checked(texts: Sequence[str], mark: str, name: str) -> Iterator[str]:
    for number, text in enumerate(texts, 1):
        for bad in (*_FORBIDDEN.findall(text)[:1], *(special for special in (mark, *SPECIALS) if special in text)):
            raise TextError(
                f"{name} {number} cannot be used for a tokenizer: found {bad!a} in {text[:60]!a}; allowed is "
                f"text without NUL, lone surrogates, {mark!a} and {', '.join(SPECIALS)}, which mean something "
                "else to it. Mend the transcript, or choose a normaliser that removes it."
            )
        yield text


def _check_size(vocab_size: int, symbols: set[str], num_bytes: int) -> None:
    needed = len(SPECIALS) + num_bytes + len(symbols)
    if vocab_size < needed:
        parts = f"{len(symbols)} characters, {len(SPECIALS)} special tokens" + f" and {num_bytes} bytes" * bool(
            num_bytes
        )
        raise ConfigError(
            f"the vocabulary of the tokenizer is too small: found a size of {vocab_size}; allowed is {needed} or more, "
            f"because the texts have {parts}. Ask for more tokens, or remove rare characters from the texts."
        )


# --- parts of a tokenizer ------------------------------------------------------------------------


def _alphabet(words: Counter[str]) -> set[str]:
    return set().union(*words)


def _normalizer() -> normalizers.Normalizer:
    space = normalizers.Replace(Regex(r"\s+"), " ")
    return normalizers.Sequence([normalizers.NFC(), space, normalizers.Strip()])


def _train(kind: str, words: Counter[str], vocab_size: int, mark: str, *, byte_fallback: bool) -> Tokenizer:
    if kind == "characters":
        return _characters(sorted(_alphabet(words) | {mark}), mark)
    if kind == "unigram":
        tokenizer = Tokenizer(_unigram(words, vocab_size))
    else:
        tokenizer = Tokenizer(_bpe(words, vocab_size, byte_fallback=byte_fallback))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=mark)
    tokenizer.decoder = decoders.Metaspace(replacement=mark)
    if byte_fallback:
        spaced = decoders.Replace(mark, " ")
        parts = [spaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _bpe(words: Counter[str], vocab_size: int, *, byte_fallback: bool) -> models.BPE:
    """Byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909); the bytes stand behind the special tokens."""
    fallback = _BYTES if byte_fallback else ()
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=METASPACE)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(fallback),
        min_frequency=_MIN_PAIRS,
        special_tokens=list(SPECIALS),
        show_progress=False,
    )
    learner.train_from_iterator((word for word in sorted(words) for _ in range(words[word])), trainer)
    learnt = json.loads(learner.to_str())["model"]
    found = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)[len(SPECIALS) :]
    vocabulary = {token: number for number, token in enumerate((*SPECIALS, *fallback, *found))}
    merges = [(left, right) for left, right in learnt["merges"]]
    return models.BPE(vocabulary, merges, unk_token=UNK, byte_fallback=byte_fallback)


def _unigram(words: Counter[str], vocab_size: int) -> models.Unigram:
    """Unigram language model over pieces (Kudo 2018, arXiv:1804.10959).

    The library finds the same pieces every time, with scores that differ in the third decimal; they are rounded.
    """
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=METASPACE)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(SPECIALS), initial_alphabet=sorted(_alphabet(words)), show_progress=False
    )
    learner.train_from_iterator((word for word in sorted(words) for _ in range(words[word])), trainer)
    found = [(piece, round(score, _SCORE_DIGITS)) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    found.sort(key=lambda pair: (-pair[1], pair[0]))
    return models.Unigram([*((special, 0.0) for special in SPECIALS), *found], SPECIALS.index(UNK), False)


def _characters(alphabet: Sequence[str], mark: str) -> Tokenizer:
    vocabulary = {symbol: number for number, symbol in enumerate((*SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([_normalizer(), normalizers.Replace(" ", mark)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(mark, " "), decoders.Fuse()])
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _template(tokenizer: Tokenizer, *, bos: bool, eos: bool) -> None:
    if not bos and not eos:
        return
    start, end = [BOS] * bos, [EOS] * eos
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*start, "$A", *end],
        pair=[*start, "$A", *end, *(f"{token}:1" for token in start), "$B:1", *(f"{token}:1" for token in end)],
        special_tokens=[(token, SPECIALS.index(token)) for token in (*start, *end)],
    )


def _config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,  # would move the spaces before punctuation
    }


# --- what it does to the texts -------------------------------------------------------------------


def _measure(tokenizer: Tokenizer, clean: Sequence[str], words: Counter[str]) -> dict[str, Any]:
    num_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in clean)
    whole = sum(count for word, count in words.items() if len(tokenizer.encode(word, add_special_tokens=False)) == 1)
    return {
        "texts": len(clean),
        "words": words.total(),
        "characters": len(_alphabet(words)),
        "tokens_per_word": num_tokens / words.total(),
        "tokens_per_character": num_tokens / sum(map(len, clean)),
        "whole_words": whole / words.total(),
    }


def _unknown(texts: Sequence[str], known: set[str]) -> dict[str, int]:
    counts = Counter(character for text in texts for character in text if character != " " and character not in known)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
