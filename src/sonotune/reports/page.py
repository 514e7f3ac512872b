"""HTML pages from this package's templates: one style, nothing that cannot be printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

_UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def render_page(template: str, *, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Fill a template of this package; everything is escaped unless it is `Markup`.

    Args:
        template: File name.
        filters: Name in the template -> function.
        **values: What it shows.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # noqa: PLC0415  (60 ms, only for a report)

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: files("sonotune.reports").joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters |= dict(filters)
    html = environment.get_template(template).render(**values)
    # Control codes and lone surrogates from damaged transcripts have no place in HTML, or cannot even be written.
    return html.translate(_UNPRINTABLE).encode("utf-8", "replace").decode("utf-8")
