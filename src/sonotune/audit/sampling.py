"""Which clips of a corpus an audit looks at: strata, how many of each, and a draw that only a seed decides.

Each clip has a number that is a function of the seed and its id, and a stratum's sample is its clips with the smallest
numbers. So the sample of a later look contains that of an earlier one, clips that join the corpus displace a few and
reshuffle none, and the order of the manifest does not matter. No audio is opened.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sonotune.errors import ConfigError, ManifestError, suggest
from sonotune.patterns import Try, ends_in_time, problem_of
from sonotune.runs import generator
from sonotune.types import Clip

OTHER: Final = "other"
"""Stratum of the clips that no rule takes."""
LONG_S: Final = 20.0
"""Above this, clips are the seed's `long_tail`."""
SHORT_S: Final = 8.0
"""Clips that the seed's names do not tell go to `whatsapp_noisy` up to this length, as messages are short, else to
`kan_clean`. Strata only say how the sample is spread; the estimate weighs each by its part of the corpus."""
AUTO_EDGES_S: Final = (5.0, 10.0, 20.0)
"""Borders of the durations of `auto`, in seconds."""
MAX_AUTO: Final = 8
"""Strata of `auto` at most."""
_FEW: Final = 20  # a smaller stratum of `auto` joins the rest of its domain
PATTERN_SECONDS: Final = 5.0
"""In which the regular expressions of all rules have to be matched with all clips."""
_REPEATS: Final = re.compile(r"[*+?{]")  # without these, matching takes no more steps than text times pattern
_FIELDS: Final = ("id", "path", "domain", "language", "speaker", "text", "label")

StratumPreset = Literal["seed", "auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumRule:
    """A rule that takes clips into a stratum. All its conditions must hold; the first rule that takes a clip has it.

    Attributes:
        name: Of the stratum; several rules may share one.
        match: Field -> regular expression, searched without regard to case. A field is a column of the manifest,
            known or not; `domain|source|path` looks into each of them. A clip without the field does not match.
        min_duration_s: Clips are longer than this.
        max_duration_s: Clips are at most so long.
        share: Part of the sample; None takes what the others leave, by the clips of the stratum.
    """

    name: str
    match: Mapping[str, str] = field(default_factory=dict)
    min_duration_s: float = 0.0
    max_duration_s: float = math.inf
    share: float | None = None


_PLACE: Final = "domain|source|path"
SEED_RULES: Final = (
    StratumRule(name="whatsapp_noisy", match={_PLACE: "whatsapp"}, share=0.4),
    StratumRule(name="kan_clean", match={_PLACE: r"(?<![a-z])kan(?![a-z])|saspeech|broadcast"}, share=0.4),
    StratumRule(name="long_tail", min_duration_s=LONG_S, share=0.2),
    StratumRule(name="whatsapp_noisy", max_duration_s=SHORT_S, share=0.4),
    StratumRule(name="kan_clean", share=0.4),
)
"""The three strata of the project's first design, in its order; see `SHORT_S` for the last two rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How many clips are drawn.

    Attributes:
        strata: `seed`, `auto` (by domain and duration), or rules in order.
        fraction: Part of the corpus in the first look.
        n_per_stratum: Clips of each stratum instead of a part of the corpus.
        min_clips: Clips of the first look at least, over all strata; a smaller corpus is looked at as a whole.
        max_clips: Clips of any look at most, over all strata.
        seed: Of the draw.
    """

    strata: StratumPreset | tuple[StratumRule, ...] = "auto"
    fraction: float = 0.1
    n_per_stratum: int | None = None
    min_clips: int = 200
    max_clips: int = 2800
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.fraction <= 1:
            problems.append(f"audit.fraction is {self.fraction}; allowed is above 0 and at most 1")
        if self.n_per_stratum is not None and self.n_per_stratum < 1:
            problems.append(f"audit.n_per_stratum is {self.n_per_stratum}; allowed is at least 1")
        if not 1 <= self.min_clips <= self.max_clips:
            problems.append(
                f"audit.min_clips is {self.min_clips} and audit.max_clips is {self.max_clips}; allowed is "
                "1 <= min_clips <= max_clips"
            )
        if isinstance(self.strata, str):
            if self.strata not in ("seed", "auto"):
                hint = suggest(self.strata, ("seed", "auto"))
                problems.append(f"audit.strata is {self.strata!r}; allowed are seed, auto or a list of rules{hint}")
        else:
            problems += _rule_problems(self.strata)
        if problems:
            raise ConfigError("; ".join(problems) + ". Mend the settings.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledStratum:
    """A stratum and its sample.

    Attributes:
        name: Of the stratum.
        population: Clips of the corpus in it.
        population_s: Their duration in seconds.
        share: Part of the sample that was asked for.
        clips: The sample, in the order of the draw.
    """

    name: str
    population: int
    population_s: float
    share: float
    clips: tuple[Clip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The clips of one look.

    Attributes:
        strata: None of them empty.
        look: From 1 on.
        exhausted: No later look has more clips.
    """

    strata: tuple[SampledStratum, ...]
    look: int
    exhausted: bool

    @property
    def clips(self) -> tuple[Clip, ...]:
        """All clips, stratum by stratum."""
        return tuple(clip for stratum in self.strata for clip in stratum.clips)


def stratify(
    clips: Sequence[Clip], strata: StratumPreset | Sequence[StratumRule] = "auto"
) -> dict[str, tuple[Clip, ...]]:
    """Put each clip into one stratum.

    Args:
        clips: A corpus.
        strata: The rules; clips that none takes are the stratum `other`.

    Returns:
        Stratum -> its clips, without empty ones, in the order of the rules.
    """
    if strata == "auto":
        return _auto(clips)
    rules = SEED_RULES if strata == "seed" else _given(strata)
    tests = [(rule.name, _test_of(rule)) for rule in rules]
    found: dict[str, list[Clip]] = {rule.name: [] for rule in rules}
    for clip in clips:
        name = next((name for name, takes in tests if takes(clip)), OTHER)
        found.setdefault(name, []).append(clip)
    return {name: tuple(members) for name, members in found.items() if members}


def draw(clips: Sequence[Clip], settings: SamplingSettings, *, look: int = 1) -> Sample:
    """Draw the sample of a look. Each look has twice the clips of the one before, up to `max_clips`.

    Args:
        clips: The corpus; ids are unique.
        settings: Strata and numbers.
        look: From 1 on.

    Raises:
        ManifestError: The corpus has no clips.
        ValueError: The look is below 1.
    """
    if look < 1:
        raise ValueError(f"looks are counted from 1; found {look}.")
    if not clips:
        raise ManifestError("an audit needs at least one clip; found none. Check the manifest.")
    strata = stratify(clips, settings.strata)
    shares = _shares(strata, settings.strata, len(clips))
    sizes = {name: len(members) for name, members in strata.items()}
    numbers, following = (_numbers(sizes, shares, settings, one) for one in (look, look + 1))
    return Sample(
        strata=tuple(
            SampledStratum(
                name=name,
                population=len(members),
                population_s=sum(clip.duration_s for clip in members),
                share=shares[name],
                clips=tuple(_ordered(members, settings.seed)[: numbers[name]]),
            )
            for name, members in strata.items()
        ),
        look=look,
        exhausted=following == numbers,
    )


def _ordered(clips: Sequence[Clip], seed: int) -> list[Clip]:
    return sorted(clips, key=lambda clip: (float(generator(seed, "audit", clip.id).random()), clip.id))


# --- how many ------------------------------------------------------------------------------------


def _shares(
    strata: Mapping[str, Sequence[Clip]], rules: StratumPreset | Sequence[StratumRule], total: int
) -> dict[str, float]:
    """Part of the sample of each stratum; they add up to 1. Strata without one share what is left by their clips."""
    listed = SEED_RULES if rules == "seed" else _given(rules)
    given = {rule.name: rule.share for rule in listed if rule.share is not None}
    given = {name: share for name, share in given.items() if name in strata}
    open_clips = {name: len(members) for name, members in strata.items() if name not in given}
    if not open_clips:
        whole = sum(given.values())
        return {name: given[name] / whole for name in strata}
    left = 1.0 - sum(given.values())
    if left < 1e-9:  # nothing is left; the others still get what their part of the corpus is
        left = sum(open_clips.values()) / total
    scale = (1.0 - left) / sum(given.values()) if given else 0.0
    spread = sum(open_clips.values())
    return {name: given[name] * scale if name in given else left * open_clips[name] / spread for name in strata}


def _numbers(
    sizes: Mapping[str, int], shares: Mapping[str, float], settings: SamplingSettings, look: int
) -> dict[str, int]:
    """Clips of each stratum in a look; never fewer than in the look before."""
    growth = 2 ** (look - 1)
    total = sum(sizes.values())
    if settings.n_per_stratum is not None:
        wanted = {name: min(size, settings.n_per_stratum * growth) for name, size in sizes.items()}
        if sum(wanted.values()) <= settings.max_clips or look == 1:
            return wanted
        before = _numbers(sizes, shares, settings, look - 1)
        return _with_more(before, sizes, dict.fromkeys(sizes, 1.0), max(settings.max_clips, sum(before.values())))
    first = min(max(math.ceil(settings.fraction * total), settings.min_clips), settings.max_clips)
    count = min(first * growth, settings.max_clips, total)
    before = dict.fromkeys(sizes, 0) if look == 1 else _numbers(sizes, shares, settings, look - 1)
    return _with_more(before, sizes, shares, max(count, min(len(sizes), total)))


def _with_more(
    before: Mapping[str, int], sizes: Mapping[str, int], shares: Mapping[str, float], count: int
) -> dict[str, int]:
    """Numbers of clips that add up to a count, by shares, within the strata, none below what it was."""
    floor = {name: max(before[name], 1) for name in sizes}
    if count <= sum(floor.values()):
        return floor
    low, high = 0.0, max(size / shares[name] for name, size in sizes.items()) + 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(_at(middle, floor, sizes, shares).values()) >= count else (middle, high)
    numbers, next_one = _at(low, floor, sizes, shares), _at(high, floor, sizes, shares)
    for name in sorted(sizes, key=lambda name: (-shares[name], name)):  # those that rise at the same level
        numbers[name] += min(next_one[name] - numbers[name], count - sum(numbers.values()))
    return numbers


def _at(
    level: float, floor: Mapping[str, int], sizes: Mapping[str, int], shares: Mapping[str, float]
) -> dict[str, int]:
    return {name: min(size, max(floor[name], math.floor(level * shares[name]))) for name, size in sizes.items()}


def _given(strata: StratumPreset | Sequence[StratumRule]) -> tuple[StratumRule, ...]:
    return () if isinstance(strata, str) else tuple(strata)


# --- strata --------------------------------------------------------------------------------------


def _rule_problems(rules: Sequence[StratumRule]) -> list[str]:
    problems = [] if rules else ["audit.strata has no rule; allowed are seed, auto or a list of rules"]
    shares: dict[str, float] = {}
    for number, rule in enumerate(rules, start=1):
        where = f"rule {number} of audit.strata ({rule.name!r})"
        if not rule.name:
            problems.append(f"{where} has no name")
        if not 0 <= rule.min_duration_s < rule.max_duration_s:
            problems.append(
                f"{where} takes durations from {rule.min_duration_s} to {rule.max_duration_s} s; allowed is "
                "0 <= min_duration_s < max_duration_s"
            )
        if rule.share is not None and not 0 < rule.share <= 1:
            problems.append(f"{where} has the share {rule.share}; allowed is above 0 and at most 1")
        elif rule.share is not None and shares.setdefault(rule.name, rule.share) != rule.share:
            problems.append(f"{where} has the share {rule.share}, an earlier rule of it {shares[rule.name]}")
        for name, pattern in rule.match.items():
            if fault := problem_of(pattern):
                problems.append(f"{where} has for {name!r} no regular expression: {pattern[:80]!r} ({fault})")
    if sum(shares.values()) > 1 + 1e-9:
        problems.append(f"the shares of audit.strata add up to {sum(shares.values()):g}; allowed is at most 1")
    return problems


def check_patterns(clips: Sequence[Clip], strata: StratumPreset | Sequence[StratumRule]) -> None:
    """Try the regular expressions of rules on the clips where they can be stopped; one that repeats nothing ends.

    Args:
        clips: A corpus, before it is drawn from.
        strata: The rules.

    Raises:
        ConfigError: They do not come to an end within `PATTERN_SECONDS`.
    """
    tried: dict[str, list[Try]] = {}
    for rule in _given(strata):
        for name, pattern in rule.match.items():
            if _REPEATS.search(pattern):
                tried.setdefault(name, []).append(Try("search", pattern, re.IGNORECASE))
    groups = []
    for name, tries in tried.items():
        values = dict.fromkeys(value for clip in clips for one in name.split("|") for value in _values(clip, one))
        groups.append((tries, list(values)))
    if groups and not ends_in_time(groups, seconds=PATTERN_SECONDS):
        shown = groups[0][0][0].pattern[:80]
        raise ConfigError(
            f"the regular expressions of audit.strata, such as {shown!r}, are not matched with the clips within "
            f"{PATTERN_SECONDS:g} s. Write them without a repetition inside of a repetition."
        )


def _test_of(rule: StratumRule) -> Callable[[Clip], bool]:
    patterns = [(name.split("|"), re.compile(pattern, re.IGNORECASE)) for name, pattern in rule.match.items()]

    def takes(clip: Clip) -> bool:
        return rule.min_duration_s < max(clip.duration_s, 1e-9) <= rule.max_duration_s and all(
            any(pattern.search(value) for name in names for value in _values(clip, name)) for names, pattern in patterns
        )

    return takes


def _values(clip: Clip, name: str) -> Sequence[str]:
    if name == "label":
        return clip.label
    value = getattr(clip, name) if name in _FIELDS else clip.extra.get(name)
    return () if value is None else (str(value),)


def _auto(clips: Sequence[Clip]) -> dict[str, tuple[Clip, ...]]:
    """Strata by domain and duration, `MAX_AUTO` at most; small ones join a neighbour."""
    domains = [
        name
        for name, _ in sorted(
            Counter(clip.domain or "" for clip in clips).items(), key=lambda item: (-item[1], item[0])
        )
    ]
    own = set(domains if len(domains) <= MAX_AUTO else domains[: MAX_AUTO - 1])
    per_domain = max(1, MAX_AUTO // min(len(domains), MAX_AUTO))
    edges = AUTO_EDGES_S if per_domain > len(AUTO_EDGES_S) else AUTO_EDGES_S[1:2] if per_domain > 1 else ()
    found: dict[tuple[str, int], list[Clip]] = {}
    for clip in clips:
        domain = (clip.domain or "") if (clip.domain or "") in own else OTHER
        found.setdefault((domain, sum(clip.duration_s > edge for edge in edges)), []).append(clip)
    named: dict[str, list[Clip]] = {}
    for domain in (*domains, OTHER):
        buckets = _joined([found.pop((domain, bucket), []) for bucket in range(len(edges) + 1)])
        for first, last, members in buckets:
            label = _duration_label(edges, first, last)
            parts = [part for part in (domain, label) if part]
            named.setdefault(", ".join(parts) or "all", []).extend(members)
    return {name: tuple(members) for name, members in named.items()}


def _joined(buckets: Sequence[list[Clip]]) -> list[tuple[int, int, list[Clip]]]:
    """Runs of buckets (first, last, clips); one with few clips joins its neighbour."""
    runs: list[tuple[int, int, list[Clip]]] = []
    first, held = 0, list[Clip]()
    for index, members in enumerate(buckets):
        held = held + members
        if len(held) >= _FEW:
            runs.append((first, index, held))
            first, held = index + 1, []
    if runs and first < len(buckets):
        begin, _, members = runs.pop()
        runs.append((begin, len(buckets) - 1, members + held))
    elif held:
        runs.append((first, len(buckets) - 1, held))
    return runs


def _duration_label(edges: Sequence[float], first: int, last: int) -> str:
    low, high = (0.0, *edges)[first], (*edges, math.inf)[last]
    if math.isinf(high):
        return f"over {low:g} s" if low else ""
    return f"{low:g}-{high:g} s"
