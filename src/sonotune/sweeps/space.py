"""The space of a sweep: the line that all trials share, the axes, and the words of one trial.

A setting that cannot take effect beside the others of a trial (`adapter.rank` beside `adapter.kind=none`) is left out
of that trial's line, so that combinations which mean the same are one trial. A setting that takes effect in no trial is
refused, as `sonotune train` refuses it.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from sonotune.config.kinds import alternatives
from sonotune.config.load import LoadedConfig, idle_settings, load_run_config, parse_yaml, presets
from sonotune.config.schema import RunConfig
from sonotune.config.setting_list import settings
from sonotune.config.sweep import SweepConfig
from sonotune.errors import ConfigError, problem_list
from sonotune.runs import generator
from sonotune.sweeps.axes import Axis, choice_axis, parse_axis, single_value

REQUIRED: Final = ("data.train",)
SEED: Final = "training.seed"
NOT_SET: Final = "\u2014"
"""Shown for an axis that has no effect in a trial."""
_OURS: Final = ("run.dir", "run.resume", "run.allow_change")
_UNLESS_GIVEN: Final = {"evaluation.zero_shot": "evaluation.zero_shot=false"}  # adapted models are compared
_STAGES: Final = "training.stages"
_CHECKED_COMBINATIONS: Final = 200
_FRUITLESS: Final = 200
"""Draws in a row that bring nothing new, after which a space counts as used up."""
_SEEDS: Final = TypeAdapter(tuple[int, ...])

Point = Mapping[str, str]
"""Axis -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: Folder below `trials`: the beginning of the digest of its settings.
        values: Axis -> value, of the axes that have an effect in it.
        seed: `training.seed`.
        words: Its settings, without a directory.
    """

    name: str
    values: Point
    seed: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a sweep tries.

    Attributes:
        base: Words that all trials share.
        axes: What varies, in order.
        seeds: Values of `training.seed`, each of which every configuration is trained with; empty leaves the seed to
            the line.
        test: `data.test` of the line: the best trial alone is scored on it.
    """

    base: tuple[str, ...]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...] = ()
    test: str | None = None

    @property
    def finite(self) -> bool:
        """Whether every axis is a list of values."""
        return all(axis.values for axis in self.axes)

    @property
    def size(self) -> int:
        """Combinations of a finite space."""
        size = 1
        for axis in self.axes:
            size *= len(axis.values)
        return size

    def trials(self, point: Point) -> list[Trial]:
        """The trials of one configuration, one for each seed.

        Raises:
            ConfigError: The settings do not go together.
        """
        return [self.trial(point, seed) for seed in self.seeds or (None,)]

    def trial(self, point: Point, seed: int | None = None) -> Trial:
        """One trial; see `trials`."""
        given = self._given(point)
        if seed is not None:
            given[SEED] = f"{SEED}={seed}"
        dropped = _drop_idle(given)
        given |= _nested(self.axes, point, given)
        dropped |= _drop_idle(given)
        if load_run_config(list(given.values())).config.data.test is not None:
            given["data.test"] = "data.test=null"  # the clips of the test have no say in a choice
        loaded = load_run_config(list(given.values()), require=REQUIRED)
        values = {axis.name: point[axis.name] for axis in self.axes if _setting_of(axis.name)[0] not in dropped}
        return Trial(
            name=loaded.digest[:10],
            values=values,
            seed=loaded.config.training.seed,
            words=tuple(given.values()),
        )

    def load(self, trial: Trial) -> LoadedConfig:
        """The configuration of a trial."""
        return load_run_config(trial.words, require=REQUIRED)

    def grid(self) -> Iterator[Point]:
        """Every combination of a finite space, the last axis varying fastest."""
        names = [axis.name for axis in self.axes]
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield dict(zip(names, values, strict=True))

    def draws(self, seed: int) -> Iterator[Point]:
        """Independent draws without end; the draw of a number and an axis depends on nothing else."""
        for number in itertools.count():
            yield {axis.name: axis.draw(generator(seed, "sweep", number, axis.name)) for axis in self.axes}

    def _given(self, point: Point) -> dict[str, str]:
        """Setting -> word; words of choices are the strongest."""
        given = {word.partition("=")[0]: word for word in self.base}
        for axis in sorted(self.axes, key=lambda axis: bool(axis.choice)):
            value = point[axis.name]
            if axis.choice:
                given |= {word.partition("=")[0]: word for word in axis.choice[value]}
            elif not _is_nested(axis.name):
                given[axis.name] = f"{axis.name}={value}"
        return given | {name: word for name, word in _UNLESS_GIVEN.items() if name not in given}


def distinct(space: Space, points: Iterable[Point], limit: int | None) -> tuple[list[list[Trial]], list[str]]:
    """The configurations of some points without repetition, and what is wrong with those that are none.

    Args:
        space: Where the points are of.
        points: In order; may be without end where there is a limit.
        limit: Configurations at most; None takes all.

    Returns:
        For each configuration its trials, and a sentence for each combination that is no valid configuration.
    """
    found: dict[str, list[Trial]] = {}
    wrong: dict[str, str] = {}
    fruitless = 0
    for point in points:
        if (limit is not None and len(found) >= limit) or fruitless >= _FRUITLESS:
            break
        before = len(found)
        try:
            trials = space.trials(point)
            found.setdefault(trials[0].name, trials)
        except ConfigError as error:
            wrong[show_point(point)] = f"{show_point(point)}: {_one_line(error)}"
        fruitless = 0 if limit is None or len(found) > before else fruitless + 1
    return list(found.values()), list(wrong.values())


def show_point(point: Point) -> str:
    """Values of axes as a person writes them."""
    return " ".join(f"{name}={value}" for name, value in point.items()) or "the line as it stands"


def read_space(words: Sequence[str]) -> tuple[SweepConfig, Space]:
    """Settings of a sweep and what it tries, from the words of `sonotune sweep`.

    Args:
        words: Settings; commas and ranges make axes.

    Raises:
        ConfigError: A word is wrong, nothing varies, or no trial can be made of a value.
    """
    fixed, axes, problems = sort_words(words)
    if problems:
        raise ConfigError(problem_list(f"{len(problems)} problem{'s'[: len(problems) > 1]} in the sweep:", problems))
    config = _any_config(Space(base=tuple(fixed.values()), axes=tuple(axes.values())))
    base = tuple(word for name, word in fixed.items() if name.partition(".")[0] != "sweep")
    own = {name.removeprefix("data."): word for name, word in fixed.items() if name == "data.test"}
    space = Space(
        base=tuple(word for word in base if word not in own.values()),
        axes=_all_axes(config.sweep, fixed, axes),
        seeds=_seeds(axes.get(SEED)),
        test=config.data.test,
    )
    if not space.axes:
        raise ConfigError(
            "nothing varies. Give a setting several values, such as adapter.rank=4,8,16 or "
            f"training.learning_rate=1e-5:1e-3:log, or take a preset: sweep={'|'.join(presets()['sweep'])}."
        )
    if space.seeds and config.data.eval is None and not config.data.eval_speakers:
        raise ConfigError(
            f"{SEED} varies and data.eval is null: each seed would hold out other clips. Name data.eval, or "
            "data.eval_speakers."
        )
    _check_values(space)
    return config.sweep, space


def _any_config(space: Space) -> RunConfig:
    """The configuration of the first combination that is one; its section `sweep` is that of all.

    Raises:
        ConfigError: None is.
    """
    problem: ConfigError | None = None
    for point in itertools.islice(_combinations(space), _CHECKED_COMBINATIONS):
        given = space._given(point)
        try:
            _drop_idle(given)
            return load_run_config(list(given.values()), require=REQUIRED).config
        except ConfigError as error:
            problem = problem or error
    hint = "\nIn a sweep commas part values; a list is one value in brackets: [a,b]." if space.axes else ""
    raise ConfigError(f"{problem}{hint}")


def _combinations(space: Space) -> Iterator[Point]:
    """Every combination of values that are checked."""
    names = [axis.name for axis in space.axes]
    for values in itertools.product(*(axis.ends for axis in space.axes)):
        yield dict(zip(names, values, strict=True))


def sort_words(words: Sequence[str]) -> tuple[dict[str, str], dict[str, Axis], list[str]]:
    """Words of one value by setting, the axes of the others, and what is wrong."""
    fixed: dict[str, str] = {}
    axes: dict[str, Axis] = {}
    problems: list[str] = []
    for word in words:
        name, equals, text = word.partition("=")
        if name in _OURS:
            problems.append(f"{name}: a sweep sets this itself for every trial; use sweep.dir")
        elif name in fixed or name in axes:
            problems.append(f"{name} is given twice on the command line; keep one of them")
        elif not equals or name == "config" or name.partition(".")[0] == "sweep":
            fixed[name] = word
        else:
            try:
                axis = parse_axis(name, text, **_numbers(name))
                if axis is None and _is_nested(name):
                    axes[name] = Axis(name=name, text=text, values=(single_value(text),))
                elif axis is None:
                    fixed[name] = f"{name}={single_value(text)}"
                else:
                    axes[name] = axis
            except ConfigError as error:
                problems.append(str(error).rstrip("."))
    return fixed, axes, problems


def _all_axes(config: SweepConfig, fixed: Mapping[str, str], own: Mapping[str, Axis]) -> tuple[Axis, ...]:
    """Axes of the preset or file that the line does not set itself, then those of the line."""
    found: dict[str, Axis] = {name: choice_axis(name, labels) for name, labels in config.choices.items()}
    for name, text in config.axes.items():
        if name not in fixed and name not in own:
            axis = parse_axis(name, text, **_numbers(name))
            if axis is None:
                raise ConfigError(f"sweep.axes: {name} has the one value {text!r}; an axis has several, as 4,8 or 1:9.")
            found[name] = axis
    for choice, labels in config.choices.items():
        taken = {word.partition("=")[0] for words in labels.values() for word in words}
        if twice := sorted(taken & {*own, SEED}):
            raise ConfigError(
                f"{twice[0]} varies already: the choices of {choice!r} set it. Leave it out, or the preset or file "
                "that has these choices."
            )
    return (*found.values(), *(axis for name, axis in own.items() if name != SEED))


def _seeds(axis: Axis | None) -> tuple[int, ...]:
    if axis is None:
        return ()
    try:
        seeds = _SEEDS.validate_python(tuple(int(value) for value in axis.values))
    except ValueError as error:
        raise ConfigError(f"{SEED}={axis.text}: seeds are whole numbers, such as 0,1,2.") from error
    if not seeds:
        raise ConfigError(f"{SEED}={axis.text}: every configuration is trained with every seed; list a few: 0,1,2.")
    return seeds


def _check_values(space: Space) -> None:
    """Refuse a value of which no combination is a valid configuration; the others are left out when their turn comes.

    Raises:
        ConfigError: Names every such value.
    """
    first = {axis.name: axis.ends[0] for axis in space.axes}
    combinations = list(itertools.islice(_combinations(space), _CHECKED_COMBINATIONS))
    combinations += [{**first, axis.name: value} for axis in space.axes for value in axis.ends]
    good: set[tuple[str, str]] = set()
    idle = {word.partition("=")[0] for word in space.base} | {
        _setting_of(axis.name)[0] for axis in space.axes if not axis.choice
    }
    problems: dict[tuple[str, str], str] = {}
    covered = []
    for point in combinations:
        pairs = set(point.items())
        if pairs <= good:
            covered.append(point)
            continue
        try:
            idle -= {word.partition("=")[0] for word in space.trial(point).words}
            good |= pairs
        except ConfigError as error:
            problems |= {pair: _one_line(error) for pair in pairs if pair not in problems}
    if bad := {f"{name}={value}": problem for (name, value), problem in problems.items() if (name, value) not in good}:
        listed = [f"{value}: {problem}" for value, problem in bad.items()]
        heading = "no trial can be made of these values (a list is one value in brackets: [a,b]):"
        raise ConfigError(problem_list(heading, listed)).listed(listed)
    for point in covered:  # a setting may have an effect in one combination alone
        if not idle:
            return
        with suppress(ConfigError):
            idle -= {word.partition("=")[0] for word in space.trial(point).words}
    if idle:
        raise ConfigError(
            f"{', '.join(sorted(idle))}: no effect in any trial, beside the other settings. Leave it out."
        )


def _drop_idle(given: dict[str, str]) -> set[str]:
    """Take out words of settings that cannot take effect beside the others; returns their names."""
    dropped: set[str] = set()
    while idle := [name for name in idle_settings(list(given.values())) if name in given]:
        for name in idle:
            del given[name]
        dropped |= set(idle)
    return dropped


def _one_line(error: ConfigError) -> str:
    lines = str(error).splitlines()
    return "; ".join(line.strip().removeprefix("- ") for line in (lines[1:] or lines))


# --- settings within settings --------------------------------------------------------------------------


def _setting_of(name: str) -> tuple[str, str]:
    """The setting that an axis changes, and what within it; see `_nested`."""
    if name in settings() or name in presets():
        return name, ""
    section, _, rest = name.partition(".")
    setting, _, key = rest.partition(".")
    return (f"{section}.{setting}", key) if key and f"{section}.{setting}" in settings() else (name, "")


def _is_nested(name: str) -> bool:
    return bool(_setting_of(name)[1])


def _nested(axes: Sequence[Axis], point: Point, given: Mapping[str, str]) -> dict[str, str]:
    """Words of settings of which parts vary: `training.learning_rates.stem`, `training.stages.B.learning_rate`.

    The other parts are those of the line, its presets and its recipe.
    """
    parts = [(axis.name, *_setting_of(axis.name)) for axis in axes if _is_nested(axis.name)]
    if not parts:
        return {}
    plain = load_run_config(list(given.values())).plain()
    changed: dict[str, Any] = {}
    for axis, setting, key in parts:
        section, _, name = setting.partition(".")
        value = changed.setdefault(setting, copy.deepcopy(plain[section][name]))
        _put(value, key, parse_yaml(point[axis], where=axis), axis)
    return {setting: f"{setting}={json.dumps(value, ensure_ascii=False)}" for setting, value in changed.items()}


def _put(value: Any, key: str, new: Any, axis: str) -> None:
    """Set a part of a mapping, or of one of a list of stages."""
    if isinstance(value, dict):
        value[key] = new
        return
    name, _, rest = key.partition(".")
    field, _, inner = rest.partition(".")
    stage = next((one for one in value or () if isinstance(one, dict) and one.get("name") == name), None)
    if stage is None or not field:
        known = ", ".join(str(one["name"]) for one in value or () if isinstance(one, dict) and "name" in one)
        raise ConfigError(
            f"{axis}: there is no such part to vary. Write {_STAGES}.STAGE.SETTING; the stages "
            f"of this line: {known or 'none'}."
        )
    if inner:
        stage[field] = {**(stage.get(field) or {}), inner: new}
    else:
        stage[field] = new


@functools.cache
def _numbers(name: str) -> dict[str, bool]:
    """Whether a setting takes numbers, and whether whole ones alone."""
    setting, part = _setting_of(name)
    if part:
        return {"numbers": True, "integer": part.endswith(("max_epochs", "max_steps", "patience", "warmup_steps"))}
    if setting not in settings():
        return {"numbers": False, "integer": False}
    kinds = alternatives(settings()[setting].annotation)
    return {"numbers": int in kinds or float in kinds, "integer": float not in kinds}
