"""What a family without an output layer of its own says to settings that ask for one."""

from __future__ import annotations

from sonotune.errors import ConfigError


def refuse_new_outputs(family: str, *, renew_outputs: bool, tokenizer: str | None) -> None:
    """Refuse what cannot take effect: such a family writes with the tokens of its checkpoint.

    Args:
        family: Registry name.
        renew_outputs: `model.outputs=data`.
        tokenizer: `model.tokenizer`.

    Raises:
        ConfigError: One of them is asked for.
    """
    asked = [
        *(["model.outputs=data"] if renew_outputs else []),
        *([f"model.tokenizer={tokenizer}"] if tokenizer is not None else []),
    ]
    if asked:
        raise ConfigError(
            f"{' and '.join(asked)} cannot take effect: the family {family} writes with the tokens of its checkpoint, "
            "and only family ctc learns those of another tokenizer. Leave it out, or take a CTC model."
        )
