"""Several models in one command: `model=[a,b,c]` of `evaluate`, `transcribe` and `classify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonotune.arguments import (
    corpus_to_score,
    leaks_into,
    open_recognizer,
    recognition_settings,
    scoring_settings,
    settings_of_use,
)
from sonotune.metrics.scores import score_title, show_change, show_score, show_signed
from sonotune.progress import phase

if TYPE_CHECKING:
    from sonotune.config.schema import RunConfig
    from sonotune.data.corpus import Corpus
    from sonotune.evaluation.combination import CombinationSettings
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.serving.ensemble import EnsembleResult, Member
    from sonotune.serving.recognizer import Recognizer
    from sonotune.tasks.base import Task
    from sonotune.types import Finding

_NAMED_BY = ("model", "model.checkpoint")
_AGREED = (
    ("data", "text_scoring"),
    ("data", "multi_label"),
    ("data", "silence_db"),
    ("evaluation", "primary"),
    ("evaluation", "scores"),
)
"""Settings that a member brings along from its training, and that an ensemble has once."""
_OF_ONE = (("evaluation", "keep"), ("evaluation", "adapter_scales"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The models that words name, each with its settings.

    Attributes:
        names: As they were named.
        configs: The settings of each: those of the words, and what it brings along from its training.
    """

    names: tuple[str, ...]
    configs: tuple[RunConfig, ...]

    @property
    def config(self) -> RunConfig:
        """What holds for all of them."""
        return self.configs[0]

    def to_open(self) -> list[Member]:
        """The members as `serving.ensemble` takes them."""
        from sonotune.serving.ensemble import Member

        return [
            Member(
                name=name,
                checkpoint=config.model.checkpoint,
                open=partial(open_recognizer, config),
                task=config.model.task,
                family=config.model.family,
                revision=config.model.revision,
            )
            for name, config in zip(self.names, self.configs, strict=True)
        ]


def named_members(words: Sequence[str], *, require: Sequence[str] = ()) -> Members | None:
    """The members that `model=[a,b,c]` or `model.checkpoint=[a,b,c]` names among words; None where there is one model.

    Raises:
        ConfigError: A setting is wrong, is of one model, or members bring different ones along; or settings of
            ensembles stand beside one model.
    """
    from sonotune.errors import ConfigError, problem_list

    found = [word for word in words if word.partition("=")[0] in _NAMED_BY and word.partition("=")[2].startswith("[")]
    if not found:
        if idle := [word for word in words if word.startswith("ensemble.")]:
            raise ConfigError(
                f"{idle[0]} cannot take effect, because one model is named. Name several, model=[a,b,c], or leave "
                "it out."
            )
        return None
    key, _, text = found[0].partition("=")
    names = [name.strip() for name in text.removeprefix("[").removesuffix("]").split(",")]
    if len(found) > 1 or not text.endswith("]") or "" in names:
        raise ConfigError(
            f"{found[-1][:200]} names no ensemble: write the members once, between brackets and with commas, as in "
            f"'{key}=[runs/a,runs/b,runs/c]'."
        )
    others = [word for word in words if word not in found]
    configs = [settings_of_use([*others, f"{key}={name}"], require=require).config for name in names]
    for section, name in _OF_ONE:
        if getattr(getattr(configs[0], section), name):
            raise ConfigError(
                f"{section}.{name} is of one model and its base. Evaluate the members one by one with it."
            )
    if problems := [told for section, name in _AGREED if (told := _disagreement(section, name, names, configs))]:
        raise ConfigError(
            problem_list("the members were made with different settings, and an ensemble has one:", problems)
        )
    return Members(names=tuple(names), configs=tuple(configs))


def _disagreement(section: str, name: str, members: Sequence[str], configs: Sequence[RunConfig]) -> str | None:
    values = [getattr(getattr(config, section), name) for config in configs]
    if all(value == values[0] for value in values):
        return None
    told = ", ".join(f"{_shown(value)} of {member}" for member, value in zip(members, values, strict=True))
    return f"{section}.{name} is {told}; write {section}.{name}=VALUE to say which holds"


def _shown(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def combination_of(config: RunConfig) -> CombinationSettings:
    """How predictions are combined, as the settings say."""
    from sonotune.evaluation.combination import CombinationSettings

    by_confidence = config.ensemble.votes == "confidence"
    return CombinationSettings(
        method=config.ensemble.method,
        deletion_confidence=config.ensemble.deletion_confidence if by_confidence else None,
    )


def evaluate_members(
    members: Members,
) -> tuple[Task, Corpus, EnsembleResult]:
    """Score every member on `data.test`, and the ensemble.

    Returns:
        The task, the corpus with what was found in it, and what was found.

    Raises:
        ConfigError: The members cannot be combined, or a score asks one model about the label tokens.
    """
    from dataclasses import replace

    with phase("starting"):
        from sonotune.data.text import get
        from sonotune.features.workers import Crew
        from sonotune.serving.ensemble import check_members, combine_results, run_members

    config = members.config
    opened, settings = members.to_open(), combination_of(config)
    twice = check_members(opened, settings)
    corpora: list[Corpus] = []
    leaks: list[Finding] = []

    def use(place: int, recognizer: Recognizer) -> EvaluationResult:
        own = members.configs[place]
        _refuse_label_scores(recognizer)
        if not corpora:
            corpora.append(corpus_to_score(own, recognizer))
        else:
            leaks.extend(leaks_into(own, corpora[0].splits["test"]))
        return recognizer.evaluate(corpora[0].splits["test"], crew=crew, **scoring_settings(own))

    with Crew(config.data.loader_workers) as crew:
        task, results = run_members(opened, use)
    corpus = replace(corpora[0], findings=(*twice, *corpora[0].findings, *leaks))
    scoring = scoring_settings(config)
    found = combine_results(
        members.names,
        task,
        results,
        get(config.data.text_scoring).scoring,
        settings,
        clips=corpus.splits["test"],
        bootstrap=scoring["bootstrap"],
        duration_edges_s=scoring["duration_edges_s"],
    )
    return task, corpus, found


def recognize_members(members: Members, files: Sequence[Path]) -> tuple[Task, EnsembleResult]:
    """What the ensemble writes on audio files, or which classes it gives them.

    Raises:
        ConfigError: The members cannot be combined.
        ManifestError: No audio file is there, or none can be read.
    """
    from dataclasses import replace

    with phase("starting"):
        from sonotune.data.text import get
        from sonotune.serving.ensemble import check_members, combine_results, run_members

    opened, settings = members.to_open(), combination_of(members.config)
    twice = check_members(opened, settings)

    def use(place: int, recognizer: Recognizer) -> EvaluationResult:
        return recognizer.recognize(files, **recognition_settings(members.configs[place]))

    task, results = run_members(opened, use)
    scoring = get(members.config.data.text_scoring).scoring
    found = combine_results(members.names, task, results, scoring, settings)
    told = replace(found.combined, findings=[*twice, *found.combined.findings])
    return task, replace(found, combined=told)


def _refuse_label_scores(recognizer: Recognizer) -> None:
    from sonotune.errors import ConfigError

    if getattr(recognizer.task, "rates_labels", False):
        raise ConfigError(
            "perplexity and token_accuracy (evaluation.scores, evaluation.primary) are of one model's label tokens, "
            "and an ensemble has none. Leave them out, or evaluate the members one by one."
        )


def ensemble_lines(found: EnsembleResult, method: str) -> list[str]:
    """The members with their score that decides, the difference from the best, and the cost."""
    body = found.to_json()
    best = "" if body["best"] is None else f"; the best by itself is {body['best']}"
    lines = [f"ensemble of {len(found.names)} members ({method}){best}"]
    decides = next((name for name, one in found.combined.scores.items() if one.role == "primary"), None)
    for row in body["members"]:
        one = row["scores"][decides] if decides else {}
        score = f"{score_title(decides, one)} {show_score(one)}, " if decides else ""
        lines.append(f"  {row['model']}: {score}{row['seconds']:.1f} s")
    if found.difference is not None:
        lines.append(gain_line(found.difference, str(found.verdict), found.names[found.best]))
    elif decides is not None:
        lines.append("too few clips to say whether that is a gain")
    best = found.names[found.best]
    against = f"the best, {best}" if decides else f"{best}, which is named first"
    lines.append(f"cost: {found.cost_factor:.1f} times the seconds of {against}")
    return lines


def gain_line(difference: Mapping[str, Any], verdict: str, best: str) -> str:
    """What a paired difference from the best member says."""
    title = score_title(str(difference["score"]), difference)
    low, high = (show_signed(difference, difference[end]) for end in ("low", "high"))
    shown = f"{title} {show_change(difference, difference['value'])} [{low}, {high}] against {best}"
    if verdict == "gain":
        return f"gain: {shown}"
    why = "the interval includes zero" if verdict == "no gain was shown" else "the ensemble is worse"
    return f"no gain was shown: {shown}; {why}"
