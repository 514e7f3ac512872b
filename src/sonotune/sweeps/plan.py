"""What an ablation will do, and whether it can: asked before the first run, for none has to be made to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sonotune.config.data import DataConfig
from sonotune.config.load import load_run_config
from sonotune.errors import ConfigError, SonotuneError
from sonotune.optimizers import usual_rates
from sonotune.paths import exists
from sonotune.registry import is_asset, split_source
from sonotune.sweeps.arms import ARMS, BASELINES, Arm, base_words, trial_words
from sonotune.sweeps.schedule import STEP, Schedule, Trial
from sonotune.sweeps.trials import REQUIRED
from sonotune.sweeps.verdict import EQUAL_SHARE

_OURS = ("run.dir", "training.seed", "run.resume")
_UNLESS_GIVEN = (
    "evaluation.zero_shot=false",  # adapted models are compared
    "training.eval_steps=never",  # all after the same steps: one that prunes until late has fewer to pick the best of
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides an ablation.

    Attributes:
        base: Words that all runs share.
        arms: What is compared.
        baseline: Name of the arm that the others are measured against.
        schedule: Learning rates and seeds.
        folder: Directory of the ablation.
        budgets: Arm -> adapter parameters it must spend, where that follows from another arm.
    """

    base: tuple[str, ...]
    arms: tuple[Arm, ...]
    baseline: str
    schedule: Schedule
    folder: Path
    budgets: Mapping[str, int] = field(default_factory=dict)

    def place(self, trial: Trial) -> Path:
        """The run directory of a trial."""
        return self.folder / "trials" / trial.name

    def words(self, trial: Trial) -> list[str]:
        """The settings of a trial."""
        arm = next(arm for arm in self.arms if arm.name == trial.arm)
        return trial_words(
            self.base,
            arm,
            rate=trial.rate,
            seed=trial.seed,
            folder=self.place(trial),
            budget=self.budgets.get(arm.name),
        )


def plan_ablation(
    words: Sequence[str],
    arms: Sequence[Arm],
    *,
    baseline: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    final_seeds: Sequence[int] = (),
    finalists: int = 2,
    points: int = 3,
    folder: Path | None = None,
    parameters_of: Callable[[Sequence[str]], Mapping[str, int]] | None = None,
) -> Plan:
    """Check the settings of every arm before anything runs.

    Args:
        words: Settings that all runs share; `training.learning_rate` is the middle of the grids.
        arms: What is compared, in order.
        baseline: Name of an arm; None takes `uniform` or `uniform_share`, or the first where neither is among them.
        seeds: The first chooses learning rates.
        final_seeds: Further seeds of the baseline and of the finalists.
        finalists: How many arms beside the baseline get them.
        points: Learning rates of each grid; 1 tries the middle alone.
        folder: Directory; None makes one under `runs` whose name follows from the settings.
        parameters_of: What a model has (`total`), what some settings train of it (`trainable`) and how much of that in
            adapters (`adapter`), asked where the budget of an arm follows from another, or a rate from the size.

    Raises:
        ConfigError: A word, an arm's setting, a seed or a number of rates is wrong.
    """
    names = tuple(arm.name for arm in arms)
    chosen = baseline or next((name for name in BASELINES if name in names), names[0])
    if chosen not in names:
        raise ConfigError(f"--baseline: {chosen!r} is not among the arms; they are {', '.join(names)}.")
    every = (*seeds, *final_seeds)
    if not seeds or len(set(every)) != len(every) or min(every) < 0 or not 1 <= points <= 15 or finalists < 1:
        raise ConfigError(
            "an ablation needs seeds from 0 on, each once, 1 to 15 learning rates and 1 finalist or more; found seeds "
            f"{list(seeds)}, final seeds {list(final_seeds)}, {points} rates and {finalists} finalists."
        )
    if ours := [word for word in words if word.partition("=")[0] in _OURS]:
        raise ConfigError(f"{ours[0]}: an ablation sets this itself for every run; use --dir and --seeds.")
    given = {word.partition("=")[0] for word in words}
    base = (*words, *(word for word in _UNLESS_GIVEN if word.partition("=")[0] not in given))
    shared = load_run_config(base, require=REQUIRED)
    _check_sources(shared.config.data)
    usual = _CENTRE
    if shared.config.training.learning_rate == "auto" and parameters_of is not None:
        usual = usual_rates(parameters_of(base)["total"]).adapters
    centres = _centres(base, arms, usual)
    budgets: dict[str, int] = {}
    models = {"baseline": next(arm for arm in arms if arm.name == chosen), "everything": ARMS["everything"]}
    for spends, model in models.items():
        asking = [arm.name for arm in arms if arm.spends == spends]
        if asking and parameters_of is not None:
            counts = parameters_of([*base_words(base, model), *model.words])
            budgets |= dict.fromkeys(asking, counts["adapter" if spends == "baseline" else "trainable"])
    if parameters_of is not None:
        _check_budgets(base, arms, budgets, shared.config.adapter.budget, parameters_of)
    return Plan(
        base=base,
        arms=tuple(arms),
        baseline=chosen,
        schedule=Schedule(
            arms=(chosen, *(name for name in names if name != chosen)),
            centres=centres,
            seeds=tuple(seeds),
            final_seeds=tuple(final_seeds),
            finalists=finalists,
            out_of_final=tuple(arm.name for arm in arms if arm.ceiling),
            points=points,
            extensions=2 if points > 1 else 0,
        ),
        folder=folder or Path("runs") / f"ablation-{shared.digest[:8]}",
        budgets=budgets,
    )


_CENTRE = 1e-3
"""Middle of the grid of learning rates where none is given and the size of the model is not known."""


def _centres(base: Sequence[str], arms: Sequence[Arm], usual: float) -> dict[str, float]:
    """Arm -> learning rate of its settings, or the usual one, moved as the arm says; all wrong settings at once."""
    centres, problems = {}, []
    for arm in arms:
        try:
            config = load_run_config([*base_words(base, arm), *arm.words], require=REQUIRED).config
        except ConfigError as error:
            problems.append(f"arm {arm.name}: {error}")
        else:
            rate = config.training.learning_rate
            centres[arm.name] = (usual if rate == "auto" else rate) * STEP**arm.rate_shift
    if problems:
        raise ConfigError("\n".join(problems))
    return centres


def _check_sources(data: DataConfig) -> None:
    """Refuse sources of clips that are not there."""
    for name in ("train", "eval", "test"):
        importer, place = split_source(getattr(data, name))
        if importer == "auto" and not is_asset(place) and not exists(place):
            raise ConfigError(f"data.{name} is {place}, and there is nothing. Check the name.")


def _check_budgets(
    base: Sequence[str],
    arms: Sequence[Arm],
    budgets: Mapping[str, int],
    budget: int | None,
    parameters_of: Callable[[Sequence[str]], Mapping[str, int]],
) -> None:
    """Refuse what no run has to be made for: targets that match nothing, budgets that cannot be kept or spent."""
    problems = []
    for arm in arms:
        words = trial_words(base, arm, rate=1e-3, seed=0, folder=Path("runs"), budget=budgets.get(arm.name))
        try:
            adapter = parameters_of(words)["adapter"]
        except SonotuneError as error:
            problems.append(f"arm {arm.name}: {error}")
            continue
        if arm.equal and budget is not None and arm.name == "uniform" and adapter < (1 - EQUAL_SHARE) * budget:
            problems.append(
                f"arm uniform: equal ranks spend {adapter:,} of adapter.budget={budget:,}, and the others nearly all: "
                "arms that only move ranks must spend alike. Set adapter.rank instead of adapter.budget."
            )
    if problems:
        raise ConfigError("\n".join(problems))
