"""The commands about listening: listen and preference; `data correct` is in `data_correct`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.compare import Moment
from sonotune.cli.data import Outside, Root
from sonotune.cli.shared import Json, app, check_page, print_result, tell
from sonotune.paths import exists

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from sonotune.listening.choices import Session
    from sonotune.listening.preference import Preference
    from sonotune.listening.trials import Trial
    from sonotune.listening.utterances import Form, Systems
    from sonotune.types import Clip

System = Annotated[Path, typer.Argument(metavar="A", help="A run, or a file of predictions.")]
Other = Annotated[
    Path | None, typer.Argument(metavar="[B]", help="The same of the other system; without it, the errors of A.")
]
Manifest = Annotated[
    str | None, typer.Option(help="Source of the clips, for their audio; default what the run of A names.")
]
FormName = Annotated[str, typer.Option("--form", help="Texts as the models wrote them (written), or as scored.")]


@app.command()
def listen(
    first: System,
    second: Other = None,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("listen.html"),
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve the page on this machine, with any number of clips, and keep choices."),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Of the server; 0 takes a free one.")] = 0,
    choices: Annotated[
        Path, typer.Option(help="Where the server keeps choices and corrections, and goes on with them.")
    ] = Path("choices.jsonl"),
    clips: Annotated[
        int | None, typer.Option(min=1, help="Clips to compare; 200 in a page, every clip that differs on a server.")
    ] = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Of them drawn at random, which alone enter statistics; half.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw, the order and the sides.")] = 0,
    form: FormName = "written",
    manifest: Manifest = None,
    moment: Moment = None,
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Listen to what two systems wrote, without knowing which is which; or to the errors of one.

    sonotune listen runs/round1 runs/round2

    Choices and corrections of transcripts are saved as JSON lines: `sonotune preference` counts the choices, and
    `sonotune data correct` brings the corrections into the manifest. Half of the clips are drawn at random and count;
    the others are those with the largest disagreements.
    """
    from sonotune.errors import ConfigError
    from sonotune.listening.choices import Session
    from sonotune.listening.page import MAX_EMBEDDED
    from sonotune.listening.utterances import read_systems

    if clips is not None and clips > MAX_EMBEDDED and not serve:
        raise ConfigError(
            f"--clips {clips} are too many for a page, which has at most {MAX_EMBEDDED}. Ask for fewer, or serve them "
            "with --serve."
        )
    places = [first] if second is None else [first, second]
    systems = read_systems(places, manifest=manifest, moment=moment, root=root, allow_outside_root=allow_outside_root)
    session = Session(
        mode="errors" if second is None else "blind",
        seed=seed,
        form=_form(form),
        clips=clips if serve or second is None else clips or MAX_EMBEDDED,
        random=random,
        files=systems.digests,
    )
    if serve:
        _serve(systems, session, choices, port, as_json=as_json)
    else:
        _write(systems, session, out, as_json=as_json)


def _form(name: str) -> Form:
    from sonotune.errors import ConfigError, suggest
    from sonotune.listening.utterances import FORMS

    found = next((form for form in FORMS if form == name), None)
    if found is None:
        raise ConfigError(f"--form {name} is not known{suggest(name, FORMS)}; allowed are {', '.join(FORMS)}.")
    return found


def _trials(systems: Systems, session: Session) -> list[Trial]:
    from sonotune.listening.trials import make_trials

    return make_trials(
        systems.utterances, seed=session.seed, form=session.form, clips=session.clips, random=session.random
    )


def _write(systems: Systems, session: Session, out: Path, *, as_json: bool) -> None:
    from sonotune.listening.page import comparison_page, embedded_sound, errors_page
    from sonotune.reports.browser import build_browser_html
    from sonotune.runs import atomic_write_text
    from sonotune.wording import counted, memory_size

    check_page(out, instead="listen.html")
    if session.mode == "blind":
        page = comparison_page(systems, _trials(systems, session), session, sound=embedded_sound)
    else:
        page = errors_page(systems, session, sound=embedded_sound)
    atomic_write_text(out, build_browser_html(page))
    heard = sum(bool(view.sound) for view in page.views)
    random = sum(view.part == "random" for view in page.views)
    without = [view for view in page.views if not view.sound and not view.silence.startswith("only the first")]
    if without:
        tell(f"sonotune: WARNING: {counted(len(without), 'clip')} without sound, the first: {without[0].silence}")
    size = out.stat().st_size
    body = {
        "page": str(out),
        "mode": session.mode,
        "clips": len(page.views),
        "random": random,
        "with_sound": heard,
        "bytes": size,
        "session": session.to_json(),
    }
    lines = [f"{out}: {counted(len(page.views), 'clip')}, {heard} with sound, {memory_size(size)}"]
    if session.mode == "blind":
        names = " ".join(systems.names)
        lines.append(f"{random} drawn at random; save the choices from the page, then:")
        lines.append(f"  sonotune preference choices-{session.to_json()['id']}.jsonl {names}")
    print_result(body, as_json=as_json, lines=lines)


def _serve(systems: Systems, session: Session, choices: Path, port: int, *, as_json: bool) -> None:
    from sonotune.listening.choices import ChoiceLog
    from sonotune.listening.page import comparison_page, errors_page, served_sound, worst_utterances
    from sonotune.listening.server import Served, address_of, make_server
    from sonotune.wording import counted

    log = ChoiceLog(path=choices, session=session)
    if session.mode == "blind":
        trials = _trials(systems, session)
        page = comparison_page(systems, trials, session, sound=served_sound, served=True)
        clips: list[Clip] = [trial.utterance.clip for trial in trials]
    else:
        page = errors_page(systems, session, sound=served_sound, served=True, most=session.clips)
        clips = [one.clip for one in worst_utterances(systems.utterances)[: session.clips]]
    served = Served(page=page, clips=clips, log=log)
    before = len(log.entries)
    with make_server(served, port=port) as server:
        address = address_of(server, served)
        body = {"url": address, "choices": str(choices), "clips": len(clips), "entries": before}
        known = f", {counted(before, 'line')} so far" if before else ""
        print_result(
            body,
            as_json=as_json,
            lines=[address, f"{counted(len(clips), 'clip')}; choices are kept in {choices}{known}; Ctrl-C ends"],
        )
        _until_stopped(server)
    tell(f"sonotune: {counted(len(log.entries) - before, 'new line')} in {choices}")


def _until_stopped(server: ThreadingHTTPServer) -> None:
    from sonotune.signals import Stopped

    with suppress(Stopped, KeyboardInterrupt):  # which is how a server ends
        server.serve_forever(poll_interval=0.2)


@app.command()
def preference(
    choices: Annotated[
        str, typer.Argument(metavar="CHOICES", help="What listeners saved; several files: C1.jsonl,C2.jsonl.")
    ],
    first: System,
    second: Annotated[Path, typer.Argument(metavar="B", help="The same of the other system.")],
    moment: Moment = None,
    as_json: Json = False,
) -> None:
    """Say which of two systems listeners prefer, and how sure that is.

    Only clips that were drawn at random count. Ties are counted, and enter neither the share nor the sign test. Several
    listeners have one vote a clip together.
    """
    from sonotune.listening.preference import count_votes, majority, tally
    from sonotune.listening.utterances import read_systems
    from sonotune.wording import counted

    session, entries = _read_all(choice_files(choices))
    systems = read_systems([first, second], moment=moment, audio=False)
    _refuse_others(session, systems, choices)
    trials = _trials(systems, session)
    votes = count_votes(trials, entries, where=choices)
    together = tally(majority(list(votes.random.values())))
    apart = tally(majority(list(votes.disagreement.values())))
    same, pairs = votes.agreement
    body: dict[str, Any] = {
        **together.to_json(),
        "listeners": {name: tally(found).to_json() for name, found in votes.random.items()},
        "disagreements": apart.to_json(),
        "agreement": {"pairs": pairs, "same": same},
        "unblinded": votes.unblinded,
        "asked": {"random": sum(trial.part == "random" for trial in trials), "clips": len(trials)},
    }
    lines = [f"A is {systems.names[0]}", f"B is {systems.names[1]}", _line("B is preferred", together)]
    if len(votes.random) > 1:
        lines += [_line(f"  {name}", tally(found)) for name, found in votes.random.items()]
        if pairs:
            lines.append(f"two listeners say the same of a clip in {same} of {pairs} cases")
    lines.append(
        f"largest disagreements, which do not count: A {apart.first}, B {apart.second}, no difference {apart.same}"
    )
    if votes.unblinded:
        lines.append(f"left out: {counted(votes.unblinded, 'choice')} made after the names were shown")
    print_result(body, as_json=as_json, lines=lines)


def choice_files(text: str) -> list[Path]:
    """Paths with commas between, or one path that has commas in it."""
    return [Path(text)] if exists(text) else [Path(part.strip()) for part in text.split(",")]


def _read_all(files: Sequence[Path]) -> tuple[Session, list[Any]]:
    """All lines of several files of one comparison."""
    from sonotune.errors import ManifestError
    from sonotune.listening.choices import read_choices

    session, entries = read_choices(files[0])
    for file in files[1:]:
        other, more = read_choices(file)
        if other != session:
            raise ManifestError(f"{file} is of another comparison than {files[0]}. Count each by itself.")
        entries += more
    return session, entries


def _refuse_others(session: Session, systems: Systems, choices: str) -> None:
    from sonotune.errors import ManifestError

    if session.files == systems.digests:
        return
    if session.files == systems.digests[::-1]:
        raise ManifestError(f"{choices} compared these systems in the other order. Name B before A.")
    raise ManifestError(
        f"{choices} is about other predictions than those of {' and '.join(systems.names)}, or they have changed "
        "since. Name the two that were compared."
    )


def _line(what: str, found: Preference) -> str:
    score = found.score
    counts = f"A {found.first}, B {found.second}, no difference {found.same}"
    if score is None:
        return f"{what}: unknown, for no choice was made between them ({counts})"
    low, value, high = (100 * one for one in (score.low, score.value, score.high))
    return f"{what}: {value:.1f} % [{low:.1f}, {high:.1f}]  p = {found.p:.4f}  ({counts})"
