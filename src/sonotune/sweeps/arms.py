"""The arms of an ablation as data: what each changes in the settings of the run that all share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from sonotune.errors import ConfigError, suggest

BASELINES = ("uniform", "uniform_share")
"""What the others are measured against where nothing else is said: the first of these that is among the arms."""

_ADAPTER_SECTIONS = ("adapter", "adapter.", "allocation.", "regularization.", "reallocation.", "quantization.")


Spends = Literal["own", "baseline", "everything"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to spend the budget.

    Attributes:
        name: In tables, folders and `--arms`.
        words: Settings of this arm; they replace those of the base.
        about: What it is for.
        without: Beginnings of base words that mean nothing here and are left out.
        equal: Whether it must train as many parameters as the other arms that must.
        spends: Adapter parameters it gets, wherever they go: what its `own` settings say, as many as the `baseline`
            has, or as many as the arm `everything` trains in all.
        ceiling: Whether it shows what could be reached, and does not compete.
        rate_shift: Steps of a factor of the square root of ten from the base's learning rate to its own first guess.
    """

    name: str
    words: tuple[str, ...]
    about: str
    without: tuple[str, ...] = ()
    equal: bool = True
    spends: Spends = "own"
    ceiling: bool = False
    rate_shift: int = 0


def _ranks(name: str, about: str, *words: str, allocator: str | None = None) -> Arm:
    """An arm that moves ranks and nothing else."""
    return Arm(name=name, words=(f"adapter.allocator={allocator or name}", *words), about=about)


def _split(name: str, about: str, *words: str, spends: Spends = "own") -> Arm:
    """An arm that moves what trains between components, with equal ranks inside each."""
    return Arm(
        name=name,
        words=("adapter.allocator=uniform", *words),
        about=about,
        without=(
            "adapter.budget=",
            *(["adapter.rank="] if "adapter.rank=1" in words else []),
            *(["adapter.stem=", "allocation.group_weights="] if "adapter.split=measured" in words else []),
        ),
        equal=False,
        spends=spends,
    )


_ALL = (
    _ranks("uniform", "one rank for all modules"),
    _ranks(
        "entropy_half", "ranks by the square root of the effective rank", "allocation.gamma=0.5", allocator="entropy"
    ),
    _ranks("entropy_full", "ranks in proportion to the effective rank", "allocation.gamma=1.0", allocator="entropy"),
    _ranks("inverse", "negative control: the less effective rank, the more rank", "allocation.gamma=0.5"),
    _ranks("shuffled", "negative control: the entropies permuted within each type of module", "allocation.gamma=0.5"),
    *(
        _ranks(
            f"random_{draw}",
            "control: the ranks of entropy_half dealt out by chance",
            "allocation.gamma=0.5",
            f"allocation.draw={draw}",
            allocator="random",
        )
        for draw in (1, 2, 3)
    ),
    _ranks("eva", "ranks and first directions by explained variance"),
    _ranks("eva_ranks", "the ranks of eva without its first directions"),
    _ranks("uniform_eva", "one rank for all modules with eva's first directions"),
    _ranks("gradient", "ranks by the sum of what the loss would gain"),
    _ranks("gradient_eva", "ranks and first directions by what the loss would gain"),
    _ranks("adalora", "ranks pruned while they train, by sensitivity, from half as many again"),
    Arm(
        name="full",
        words=("adapter.kind=none", "quantization.bits=16"),
        about="ceiling: every weight trains",
        without=_ADAPTER_SECTIONS,
        equal=False,
        ceiling=True,
        rate_shift=-1,
    ),
    _split(
        "stem_encoder",
        "stem in full, adapters on the encoder",
        "adapter.stem=train",
        "adapter.targets=encoder",
        spends="baseline",
    ),
    _split(
        "stem_norms",
        "stem and norms of the encoder in full, adapters of rank 1",
        "adapter.stem=train",
        "adapter.unfreeze=encoder.norms",
        "adapter.rank=1",
    ),
    _split(
        "encoder_only", "adapters on the encoder", "adapter.stem=frozen", "adapter.targets=encoder", spends="baseline"
    ),
    _split("uniform_share", "adapters on all linears", "adapter.stem=frozen", "adapter.targets=all_linear"),
    _split(
        "decoder_only", "adapters on the decoder", "adapter.stem=frozen", "adapter.targets=decoder", spends="baseline"
    ),
    _split(
        "projector_full",
        "projector in full, adapters on all other linears",
        "adapter.stem=frozen",
        "adapter.targets=all_linear",
        "adapter.unfreeze=projector",
    ),
    _split(
        "measured",
        "what trains and how it shares the budget found by the gradients of two halves of the clips",
        "adapter.split=measured",
        "adapter.targets=all_linear",
    ),
    _split(
        "uniform_large",
        "as many parameters as everything, all in adapters",
        "adapter.stem=frozen",
        "adapter.targets=all_linear",
        spends="everything",
    ),
    _split(
        "everything",
        "stem and norms in full, adapters on all linears",
        "adapter.stem=train",
        "adapter.targets=all_linear",
        "adapter.unfreeze=encoder.norms",
    ),
)

ARMS: Mapping[str, Arm] = MappingProxyType({arm.name: arm for arm in _ALL})
"""Every arm that has a name."""

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ranks": tuple(arm.name for arm in _ALL if arm.equal),
        "split": (
            "uniform_share",
            "encoder_only",
            "decoder_only",
            "projector_full",
            "stem_encoder",
            "stem_norms",
            "everything",
            "uniform_large",
            "measured",
        ),
        "standard": (
            "uniform",
            "entropy_half",
            "entropy_full",
            "inverse",
            "shuffled",
            "random_1",
            "random_2",
            "random_3",
            "eva",
            "eva_ranks",
            "uniform_eva",
            "gradient_eva",
            "adalora",
            "full",
        ),
    }
)
"""Names for several arms at once; `standard` is what runs when nothing is said."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def choose_arms(names: str, own: Sequence[str] = ()) -> tuple[Arm, ...]:
    """The arms that a user asks for, in order, once each.

    Args:
        names: Arms and groups of them, with commas between.
        own: Further arms as `NAME: SETTING=VALUE ...`.

    Raises:
        ConfigError: A name is not known or taken, or nothing is left.
    """
    found: dict[str, Arm] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in GROUPS and name not in ARMS:
            raise ConfigError(
                f"--arms: there is no arm {name!r}{suggest(name, [*ARMS, *GROUPS], '.')} Arms: {', '.join(ARMS)}. "
                f"Groups: {', '.join(GROUPS)}."
            )
        found |= {member: ARMS[member] for member in GROUPS.get(name, (name,))}
    for text in own:
        arm = _own_arm(text)
        if arm.name in found or arm.name in ARMS:
            raise ConfigError(f"--arm: {arm.name!r} is the name of an arm already; choose another.")
        found[arm.name] = arm
    if not found:
        raise ConfigError(f"an ablation needs an arm; none is named. Arms: {', '.join(ARMS)}.")
    return tuple(found.values())


def _own_arm(text: str) -> Arm:
    name, colon, rest = text.partition(":")
    try:
        words = tuple(shlex.split(rest))
    except ValueError as error:
        raise ConfigError(f"--arm {text!r}: {error}.") from error
    if not colon or not _NAME.fullmatch(name.strip()) or not words or not all("=" in word for word in words):
        raise ConfigError(
            f"--arm {text!r} is not of the form NAME: SETTING=VALUE ..., with a name of small letters, digits and _; "
            'such as --arm "small: adapter.rank=2".'
        )
    return Arm(name=name.strip(), words=words, about="of the command line", equal=False)


def trial_words(
    base: Sequence[str], arm: Arm, *, rate: float, seed: int, folder: Path, budget: int | None = None
) -> list[str]:
    """The settings of one run, as `sonotune train` takes them.

    Args:
        base: Words that all runs share.
        arm: What this one changes.
        rate: Learning rate.
        seed: Decides the order of the data, the augmentation and the first weights of the adapters.
        folder: The run's directory.
        budget: Adapter parameters it may spend; None leaves them to the settings.
    """
    rate_setting = "training.learning_rate="
    own = [
        *(word for word in arm.words if not word.startswith(rate_setting)),
        # Equal ranks leave a rest of the budget; in steps of 1 it goes to single modules.
        *([f"adapter.budget={budget}", "allocation.rank_step=1"] if arm.spends != "own" and budget is not None else []),
        f"{rate_setting}{rate:g}",
        f"training.seed={seed}",
        f"run.dir={folder}",
    ]
    return [*(word for word in base_words(base, arm) if not word.startswith(rate_setting)), *own]


def base_words(base: Sequence[str], arm: Arm) -> list[str]:
    """The words of the base that stand beside an arm's own."""
    replaced = {word.partition("=")[0] for word in arm.words}
    if arm.spends != "own":
        replaced.add("adapter.budget")
    return [
        word
        for word in base
        if word.partition("=")[0] not in replaced
        and not any(word.startswith(prefix if prefix.endswith((".", "=")) else f"{prefix}=") for prefix in arm.without)
    ]
