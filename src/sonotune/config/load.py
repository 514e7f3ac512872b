"""Turn command-line words, files and presets into one validated `RunConfig`.

The whole grammar: `group=preset` (`model=whisper_nano`), `section.setting=value` (`training.max_epochs=10`) and
`config=file.yaml`. A file is words, nested: a section of settings, or a preset's name in place of a section.

Layers, weakest first: schema defaults, recipe, presets, config file, words. Every value that is set remembers what set
it, and all problems are reported in one list.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sonotune import registry
from sonotune.config.effects import without_effect
from sonotune.config.hints import meant_by
from sonotune.config.kinds import allowed, alternatives, choices, in_digest, is_text_choice
from sonotune.config.plain_yaml import parse_yaml, read_yaml, write_yaml
from sonotune.config.schema import RunConfig
from sonotune.config.section import Section
from sonotune.config.setting_list import Setting, describe_settings, settings
from sonotune.errors import ConfigError, problem_list, suggest
from sonotune.json_files import OBJECT, read_json
from sonotune.paths import is_folder
from sonotune.wording import counted

__all__ = [
    "LoadedConfig",
    "Setting",
    "checkpoint_of_preset",
    "config_digest",
    "describe_settings",
    "dump_yaml",
    "idle_settings",
    "load_run_config",
    "parse_yaml",
    "presets",
]

COMMAND_LINE = "command line"
MAX_WORD = 65_536
RECIPE = "recipe"
BROUGHT = "with"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A validated configuration and where it came from.

    Attributes:
        config: The settings.
        origin: Dotted setting -> the preset, file or `command line` that set it. Absent settings are defaults.
        digest: SHA-256 over the settings that can change the result.
        explicit: Dotted settings that words or the config file set themselves, rather than a preset.
    """

    config: RunConfig
    origin: Mapping[str, str]
    digest: str
    explicit: frozenset[str]

    def plain(self) -> dict[str, Any]:
        """The settings as nested plain values, for the record."""
        return self.config.model_dump(mode="json")

    def deciding(self) -> dict[str, Any]:
        """The settings that the digest is over, as plain values by dotted name."""
        return _deciding(self.config)

    def run_dir(self, parent: Path = Path("runs")) -> Path:
        """The run's directory.

        Under `run.dir=auto` that is the newest unfinished run of the same settings in `parent`, so that the same line
        goes on after an interruption, or else a new name. Ask once a run: a new name has the time in it.
        """
        if isinstance(self.config.run.dir, Path):
            return self.config.run.dir
        tag = self.digest[:8]
        earlier = sorted(parent.glob(f"*-{tag}/run.json"), reverse=True)
        if self.config.run.resume != "never":
            for record in earlier:
                if _is_unfinished(record, self.digest):
                    return record.parent
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        taken = {record.parent.name for record in earlier}
        names = (f"{stamp}{'' if count == 0 else f'.{count}'}-{tag}" for count in itertools.count())
        return parent / next(name for name in names if name not in taken)


def _is_unfinished(record: Path, digest: str) -> bool:
    try:
        found = read_json(record, OBJECT, error=ConfigError, do="")
    except ConfigError:
        return False
    return found.get("config_digest") == digest and found.get("status") != "finished"


@dataclass(slots=True)
class _Draft:
    """Values gathered so far, with the place that set each, and every problem met."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    explicit: set[str] = field(default_factory=set)
    chosen: dict[str, str] = field(default_factory=dict)  # group -> preset
    problems: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)  # groups whose preset could not be read

    def set(self, name: str, value: Any, origin: str, *, explicit: bool) -> None:
        """Let a stronger layer set a value."""
        self.values[name] = value
        self.origin[name] = origin
        if explicit:
            self.explicit.add(name)


def load_run_config(
    words: Sequence[str], *, require: Sequence[str] = (), inherited: Mapping[str, Any] | None = None
) -> LoadedConfig:
    """Build the configuration that command-line words ask for.

    Args:
        words: `group=preset`, `section.setting=value` or `config=file.yaml`, in any order.
        require: Dotted settings that must not be none, such as `data.train`, besides those the schema requires.
        inherited: Dotted setting -> value of a run that is used; weaker than presets, files and words.

    Returns:
        The configuration, where each value came from, and its digest.

    Raises:
        ConfigError: A word, a file, a preset, a name or a value is wrong. All problems are listed at once.
    """
    draft = _gather(words, inherited or {})
    config = _validate(draft, require)
    if config is not None:
        for name, because in _idle(draft, config).items():
            draft.problems.append(
                f"{name} cannot take effect, because {because} (set by {draft.origin[name]}). Leave one of them out"
            )
    config = _sound(draft, config)
    return LoadedConfig(
        config=config, origin=draft.origin, digest=config_digest(config), explicit=frozenset(draft.explicit)
    )


def idle_settings(words: Sequence[str], *, require: Sequence[str] = ()) -> dict[str, str]:
    """Settings that words set themselves and that cannot take effect: dotted name -> because of what.

    `load_run_config` refuses these. Who varies settings asks first, because a setting may be idle in some variants
    alone.

    Args:
        words: As for `load_run_config`.
        require: As for `load_run_config`.

    Raises:
        ConfigError: Something else is wrong.
    """
    draft = _gather(words, {})
    return _idle(draft, _sound(draft, _validate(draft, require)))


def _idle(draft: _Draft, config: RunConfig) -> dict[str, str]:
    return {name: because for name, because in without_effect(config).items() if name in draft.explicit}


def _sound(draft: _Draft, config: RunConfig | None) -> RunConfig:
    if config is None or draft.problems:
        heading = f"{counted(len(draft.problems), 'problem')} in the configuration:"
        raise ConfigError(problem_list(heading, draft.problems))
    return config


def _gather(words: Sequence[str], inherited: Mapping[str, Any]) -> _Draft:
    """Every layer, the weakest first."""
    draft = _Draft()
    file, leaves = _sort_words(words, draft)
    tree = _file_content(file, draft) if file else {}
    for name, value in inherited.items():
        draft.set(name, value, "the run that is used", explicit=False)
    _choose_presets(tree, str(file), draft)
    _apply_presets(draft)
    _apply_layer(tree, str(file), draft, explicit=True)
    for name, text in leaves:
        _apply_word(name, text, draft)
    return draft


# --- words, files, presets -----------------------------------------------------------------------


@functools.cache
def presets() -> dict[str, tuple[str, ...]]:
    """Every preset that comes with the package: group -> names."""
    return {
        group.name: tuple(sorted(path.stem for path in group.glob("*.yaml")))
        for group in sorted(_preset_root().iterdir())
        if group.is_dir() and not group.name.startswith("_")
    }


def checkpoint_of_preset(name: str) -> str:
    """The checkpoint that a model preset names; any other name as it is, and a folder of that name before a preset."""
    if is_folder(name) or name not in presets()["model"]:
        return name
    found = read_yaml(_preset_root() / "model" / f"{name}.yaml")
    return str(found["checkpoint"]) if isinstance(found, dict) and "checkpoint" in found else name


def _preset_root() -> Path:
    return Path(str(resources.files("sonotune.config"))) / "presets"


def _sort_words(words: Sequence[str], draft: _Draft) -> tuple[Path | None, list[tuple[str, str]]]:
    file: Path | None = None
    leaves: list[tuple[str, str]] = []
    seen: set[str] = set()
    for word in words:
        key, equals, text = word.partition("=")
        if not word.isprintable() or not _is_utf8(word):
            draft.problems.append(f"{word!r} has control characters or is not UTF-8 text")
        elif len(word) > MAX_WORD:  # which the file that `--dump-config` makes could not hold
            draft.problems.append(f"{word[:80]!r}... has {len(word):,} characters; at most {MAX_WORD:,} are allowed")
        elif not equals or not key:
            draft.problems.append(f"{word!r} is not of the form setting=value, group=preset or config=file.yaml")
        elif key in seen:
            draft.problems.append(f"{key} is given twice on the command line; keep one of them")
        elif key == "config":
            file = Path(text)
        elif key == "model" and _is_model_place(text):
            draft.chosen[key] = text
            leaves.append(("model.checkpoint", text))
        elif key in presets():
            _choose(key, text, COMMAND_LINE, draft)
        else:
            leaves.append((key, text))
        seen.add(key)
    return file, leaves


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _choose(group: str, name: str, origin: str, draft: _Draft) -> None:
    """Note which preset a group takes; whoever chooses first is the stronger layer."""
    if group in draft.chosen or group in draft.broken:
        return
    known = presets()[group]
    if name in known or (group == "model" and _is_model_place(name)):
        draft.chosen[group] = name
    else:
        draft.broken.add(group)
        other = " A folder with a model, an adapter or a run is allowed as well." if group == "model" else ""
        draft.problems.append(
            f"no {group} preset called {name!r}{suggest(name, known)} ({origin}); known: {', '.join(known)}.{other}"
        )


def _is_model_place(name: str) -> bool:
    return name not in presets()["model"] and (registry.is_asset(name) or is_folder(name))


def _choose_presets(tree: Mapping[str, Any], origin: str, draft: _Draft) -> None:
    for group in presets():
        if isinstance(name := tree.get(group), str):
            _choose(group, name, origin, draft)


def _apply_presets(draft: _Draft) -> None:
    """Apply, weakest first, what presets bring along, the recipe, and each preset's own section.

    A preset sets its own section. Under `with` it may bring settings of other sections that suit it, such as the
    clip lengths a nano model was made for.
    """
    recipe: dict[str, Any] = {}
    origin = f"preset {RECIPE}={draft.chosen.get(RECIPE)}"
    if RECIPE in draft.chosen:
        recipe = _file_content(_preset_root() / RECIPE / f"{draft.chosen[RECIPE]}.yaml", draft)
        _choose_presets(recipe, origin, draft)
    trees = {
        group: _file_content(_preset_root() / group / f"{name}.yaml", draft)
        for group, name in sorted(draft.chosen.items())
        if group != RECIPE and name in presets()[group]
    }
    for group, tree in trees.items():
        _apply_layer(tree.pop(BROUGHT, {}), f"preset {group}={draft.chosen[group]}", draft, explicit=False)
    _apply_layer(recipe, origin, draft, explicit=False)
    for group, tree in trees.items():
        _apply_layer({group: tree}, f"preset {group}={draft.chosen[group]}", draft, explicit=False)


def _file_content(path: Path, draft: _Draft) -> dict[str, Any]:
    try:
        tree = read_yaml(path)
    except ConfigError as error:
        draft.problems.append(str(error))
        return {}
    if tree is None or isinstance(tree, dict):
        return tree or {}
    draft.problems.append(f"{path}: settings are a mapping (name: value), and this is a {type(tree).__name__}")
    return {}


def _apply_layer(tree: Mapping[str, Any], origin: str, draft: _Draft, *, explicit: bool) -> None:
    seen: set[str] = set()
    for name, value in _leaves(tree):
        if name in seen:
            draft.problems.append(f"{name} stands twice in {origin}; keep one of them")
        elif name not in settings():
            draft.problems.append(_unknown(name, origin))
        else:
            draft.set(name, value, origin, explicit=explicit)
        seen.add(name)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings of a file as dotted names; a section given as text names a preset, which was chosen before."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and "." not in key:
            yield from ((f"{key}.{name}", child) for name, child in value.items())
        elif key == "model" and isinstance(value, str) and _is_model_place(value):
            yield "model.checkpoint", value
        elif not (key in presets() and isinstance(value, str)) and value is not None:
            yield key, value


def _apply_word(name: str, text: str, draft: _Draft) -> None:
    if name not in settings():
        draft.problems.append(_unknown(name, COMMAND_LINE))
        return
    try:
        draft.set(name, _word_value(settings()[name], name, text), COMMAND_LINE, explicit=True)
    except ConfigError as error:
        draft.problems.append(str(error))


def _word_value(setting: FieldInfo, name: str, text: str) -> Any:
    """Read a word's value as YAML, but leave text as it stands: a commit `1e10` or a folder `a #2` is no number."""
    kinds = alternatives(setting.annotation)
    lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if type(None) in kinds and text in {"", "~", "null"}:
        return None
    if all(kind in {str, Path, type(None)} or is_text_choice(kind) for kind in kinds):
        return text
    if lists and not text.startswith("[") and text not in choices(kinds):
        if typing.get_args(lists[0])[0] is str:
            return [part.strip() for part in text.split(",")]
        text = f"[{text}]"
    return parse_yaml(text, where=name)


# --- checking ------------------------------------------------------------------------------------


def _validate(draft: _Draft, require: Sequence[str]) -> RunConfig | None:
    tree: dict[str, dict[str, Any]] = {"model": {}}
    for name, value in draft.values.items():
        section, _, setting = name.partition(".")
        tree.setdefault(section, {})[setting] = value
    for name in require:
        section = name.partition(".")[0]
        if draft.values.get(name) is None and name != "model.checkpoint" and section not in draft.broken:
            draft.problems.append(_missing(name))
    try:
        # JSON mode and strict: a list may become a tuple and a string a path, but `true` is not 1.
        config = RunConfig.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        draft.problems += _explain(error, draft)
        return None
    return config


def _explain(error: ValidationError, draft: _Draft) -> list[str]:
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"][:2])
        if item["type"] == "missing" and len(item["loc"]) == 2:
            if item["loc"][0] not in draft.broken:
                problems[place] = _missing(place)
            continue
        cause = item.get("ctx", {}).get("error")
        origin = f" (set by {draft.origin[place]})" if place in draft.origin else ""
        if len(item["loc"]) > 3 and isinstance(item["loc"][2], int):  # within one entry of a list of mappings
            within, name = f"{place}: entry {item['loc'][2] + 1}", str(item["loc"][3])
            said = {"extra_forbidden": f"has {name!r}, which is not known", "missing": f"has no {name!r}"}
            problem = said.get(item["type"], f"has {name}={_show(item['input'])}, which is not allowed")
            what = allowed(_fields_of_entries(place).get(name, settings()[place]))
            problems[f"{within}.{name}"] = f"{within} {problem}{origin}; allowed: {what}"
        elif place not in settings():  # several settings do not go together
            problems[place] = f"{place}: {cause}" if place else str(cause or item["msg"])
        elif cause is not None:
            problems[place] = f"{place}: {cause}; found {_show(draft.values[place])}{origin}"
        else:
            # A choice between kinds reports one error for each; the first stands for all.
            problems.setdefault(
                place,
                f"{place}: {_show(draft.values[place])} is not allowed{origin}; allowed: {allowed(settings()[place])}",
            )
    return list(problems.values())


def _fields_of_entries(place: str) -> Mapping[str, FieldInfo]:
    """The fields of the mappings that a setting is a list of."""
    kind = typing.get_args(settings()[place].annotation)[0]
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _missing(name: str) -> str:
    section = name.partition(".")[0]
    example = f"{section}=PRESET ({', '.join(presets()[section])}) or " if section in presets() else ""
    return f"{name}: required, but nothing sets it; write {example}{name}=VALUE"


def _unknown(name: str, origin: str) -> str:
    section, dot, _ = name.partition(".")
    known = list(settings())
    if not dot and section in RunConfig.model_fields:
        inside = ", ".join(setting for setting in known if setting.startswith(section + "."))
        return f"{section}: a section, not a setting (set by {origin}); its settings: {inside}"
    if meant := meant_by(name, known):
        return f"{name}: no such setting; did you mean {meant!r}? (set by {origin})"
    return f"{name}: no such setting{suggest(name, [*known, *presets(), 'config'])} (set by {origin})"


# --- what comes out ------------------------------------------------------------------------------


def config_digest(config: RunConfig) -> str:
    """SHA-256 over the settings that can change the result, as they stand in the schema's order."""
    return hashlib.sha256(json.dumps(_deciding(config), separators=(",", ":")).encode()).hexdigest()


def dump_yaml(config: RunConfig) -> str:
    """YAML that reproduces the run as `config=FILE`; settings that cannot take effect are left out."""
    tree: dict[str, dict[str, Any]] = {}
    for name, value in _effective(config).items():
        section, _, setting = name.partition(".")
        tree.setdefault(section, {})[setting] = value
    return write_yaml(tree)


def _deciding(config: RunConfig) -> dict[str, Any]:
    return {name: value for name, value in _effective(config).items() if in_digest(settings()[name], value)}


def _effective(config: RunConfig) -> dict[str, Any]:
    idle = without_effect(config)
    return {
        f"{section}.{name}": value
        for section, values in config.model_dump(mode="json").items()
        for name, value in values.items()
        if f"{section}.{name}" not in idle
    }
