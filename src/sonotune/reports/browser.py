"""A page of many utterances that a person goes through: coloured edits, a filter, keys, and sound where it is given.

The utterances are data in the page, and its script makes elements of them, fifty at a time; every text is set as text
and never as HTML. The script is allowed by its hash, so nothing that a transcript holds can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final, Literal

from sonotune.metrics.error_rate import word_edits
from sonotune.reports.edits import Token, direction, edit_tokens
from sonotune.reports.page import render_page
from sonotune.reports.predictions import facts_of

ERRORS_FILE: Final = "errors.html"
MAX_UTTERANCES: Final = 5_000
"""Of a page that is a file; those with the most errors."""

Mode = Literal["blind", "errors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a page shows of an utterance.

    Attributes:
        id: Of the clip.
        facts: What is known of it, in words.
        texts: One text with its edits, or two texts with the words in which they differ.
        right_to_left: Whether they are written so.
        errors: Wrong words; None where nothing says what is right.
        transcript: As the manifest has it; None where there is none.
        part: Of a comparison: `random` or `disagreement`.
        sound: Address of its audio; empty where there is none.
        silence: Why there is none.
    """

    id: str
    facts: str
    texts: Sequence[Sequence[Token]]
    right_to_left: bool
    errors: int | None = None
    transcript: str | None = None
    part: str = ""
    sound: str = ""
    silence: str = ""

    def to_json(self) -> dict[str, Any]:
        """The short keys that the page's script reads."""
        return {
            "id": self.id,
            "facts": self.facts,
            "texts": self.texts,
            "rtl": self.right_to_left,
            "errors": self.errors,
            "transcript": self.transcript,
            "part": self.part,
            "sound": self.sound,
            "silence": self.silence,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """A page of utterances.

    Attributes:
        title: Of the page.
        note: A paragraph on what is shown.
        mode: `blind` asks which of two texts is better, `errors` shows one with its edits.
        views: The utterances, in their order.
        session: What the file of choices begins with; None where nothing can be chosen or corrected.
        served: Whether a server takes choices; else the page keeps them, to be saved as a file.
        entries: Choices and corrections that were made before.
        names: Which system is which, revealed on demand: `names` and `swapped` (a flag an utterance).
    """

    title: str
    note: str
    mode: Mode
    views: Sequence[View]
    session: Mapping[str, Any] | None = None
    served: bool = False
    entries: Sequence[Mapping[str, Any]] = ()
    names: Mapping[str, Any] = field(default_factory=dict)


def build_browser_html(page: Browser) -> str:
    """Make the page.

    Returns:
        A whole HTML document with inline style and script, and no link to the network but to its own server.
    """
    from markupsafe import Markup  # noqa: PLC0415

    script = files("sonotune.reports").joinpath("browser.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    sources = "media-src 'self'; connect-src 'self'" if page.served else "media-src data:"
    body = {
        "mode": page.mode,
        "items": [view.to_json() for view in page.views],
        "session": page.session,
        "served": page.served,
        "entries": list(page.entries),
        # Encoded so that a look at the source does not tell; it is no secret from one who wants to know.
        "names": base64.b64encode(_json(page.names).encode()).decode("ascii") if page.names else "",
    }
    return render_page(
        "browser.html",
        filters={},
        title=page.title,
        note=page.note,
        mode=page.mode,
        writable=page.session is not None,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        f"{sources}; base-uri 'none'; form-action 'none'",
        script=Markup(script),  # noqa: S704  (our own file)
        data=Markup(_json(body)),  # noqa: S704  (nothing in it can end the element)
    )


def _json(value: Any) -> str:
    """JSON without halves of characters, and without a character that HTML has a meaning for."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def errors_view(
    row: Mapping[str, Any], *, transcript: str | None = None, sound: str = "", silence: str = ""
) -> View | None:
    """A prediction with its edits; None where nothing says what is right.

    Args:
        row: A line of `predictions/*.jsonl`.
        transcript: As the manifest has it.
        sound: Address of the audio.
        silence: Why there is none.
    """
    reference = row.get("scored_reference", row.get("reference"))
    if reference is None:
        return None
    scored = row.get("scored_hypothesis")
    reference, hypothesis = str(reference), str(row.get("hypothesis") or "" if scored is None else scored)
    edits = word_edits(reference, hypothesis)
    counted = [
        f"{count} {what}"
        for count, what in (
            (edits.substitutions, "substituted"),
            (edits.deletions, "deleted"),
            (edits.insertions, "inserted"),
        )
        if count
    ]
    return View(
        id=str(row.get("id", "")),
        facts=" · ".join([", ".join(counted) or "no errors", *facts_of(row)]),
        texts=[edit_tokens(reference, hypothesis)],
        right_to_left=direction(reference, hypothesis) == "rtl",
        errors=edits.errors,
        transcript=transcript,
        sound=sound,
        silence=silence,
    )


def build_errors_html(name: str, predictions: Sequence[Mapping[str, Any]]) -> str | None:
    """The error browser of a run, without sound; None where there are no texts with a reference.

    Args:
        name: Of the run.
        predictions: Of one file of `predictions/`.
    """
    views = [view for row in predictions if "labels" not in row and (view := errors_view(row)) is not None]
    if not views:
        return None
    return build_browser_html(
        Browser(title=f"Errors of {name}", note=errors_note(views), mode="errors", views=worst_first(views))
    )


def worst_first(views: Sequence[View], most: int = MAX_UTTERANCES) -> list[View]:
    """Those with the most wrong words first, as many as a page has."""
    return sorted(views, key=lambda view: -(view.errors or 0))[:most]


def errors_note(views: Sequence[View], most: int = MAX_UTTERANCES) -> str:
    """What the page shows, in words."""
    wrong = sum(bool(view.errors) for view in views)
    left_out = f" The {most:,} with the most errors are shown." if len(views) > most else ""
    return f"{wrong:,} of {len(views):,} texts have errors, in the form that was scored.{left_out}"
