"""The text side of Qwen3-ASR: names of languages, the prompt, and what the model writes.

The model answers a chat turn that holds nothing but audio with `language English<asr_text>what was said`. Where the
language is known, its part of the answer is given to the model, which writes the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from sonotune.errors import ModelError
from sonotune.models import languages

TEXT_MARKER: Final = "<asr_text>"

# What the authors' template renders for these messages, written anew: a system turn (empty without context), a user
# turn of placeholders, and the assistant's turns as they stand. For folders that have none, and for the nano model.
CHAT_TEMPLATE: Final = (
    "{%- macro words(content) -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- else -%}{%- for part in content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{{- '<|im_start|>system\\n' -}}"
    "{%- for turn in messages if turn.role == 'system' -%}{{- words(turn.content) -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n<|im_start|>user\\n' -}}"
    "{%- for turn in messages if turn.content is not string -%}"
    "{%- for part in turn.content if part.type == 'audio' -%}"
    "{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}"
    "{%- endfor -%}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- for turn in messages if turn.role == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' + words(turn.content) + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Ids around a clip's audio.

    Attributes:
        before: From the start to the last token before the audio.
        after: From the first token after the audio to the end of the assistant's header.
        end: The token that ends the answer.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int


_OWN_TEMPLATE: Final = "Copy chat_template.jinja from the published checkpoint."
_PROMPTS: WeakKeyDictionary[Any, Prompt] = WeakKeyDictionary()


def prompt_of(processor: Any) -> Prompt:
    """The prompt as the processor's own chat template renders it; rendered once for each processor.

    Raises:
        ModelError: The template cannot be rendered, or puts no audio into the prompt.
    """
    if processor not in _PROMPTS:
        from jinja2 import TemplateError  # noqa: PLC0415  (where a template is rendered)

        turn = {"role": "user", "content": [{"type": "audio", "audio": "clip.wav"}]}
        try:
            text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        except (ValueError, TypeError, TemplateError) as error:
            raise ModelError(f"the chat template cannot be rendered: {str(error)[:160]}. {_OWN_TEMPLATE}") from error
        ids = token_ids(processor.tokenizer, text)
        if processor.audio_token_id not in ids:
            raise ModelError(
                f"the chat template makes {text[:80]!r} of a turn with audio, in which {processor.audio_token} does "
                f"not occur: the model would hear nothing. {_OWN_TEMPLATE}"
            )
        place = ids.index(processor.audio_token_id)
        _PROMPTS[processor] = Prompt(
            before=tuple(ids[:place]), after=tuple(ids[place + 1 :]), end=processor.tokenizer.eos_token_id
        )
    return _PROMPTS[processor]


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, with nothing added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def language_prefix(name: str | None) -> str:
    """How an answer begins; a clip of unknown language is `language None`, as in the authors' training data."""
    return f"language {name}{TEXT_MARKER}"


def trained_languages() -> dict[str, str]:
    """Code -> name of the languages that the published models were trained on."""
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME  # noqa: PLC0415

    return dict(LANGUAGE_CODE_TO_NAME)


def language_name(language: str) -> str | None:
    """The name a language has in an answer: that the model was trained with, or else that of Whisper's list.

    None for what is neither a code nor a name in any table.
    """
    return languages.language_name(language, trained=trained_languages())


def nearest_languages(language: str) -> str:
    """Those that were probably meant by what is neither a code nor a name; see `languages.nearest`."""
    return languages.nearest(language, {**languages.whisper_names(), **trained_languages()})


def written_text(answer: str) -> str:
    """What was said, from an answer with or without its language."""
    head, marker, text = answer.partition(TEXT_MARKER)
    return (text if marker else head).strip()
