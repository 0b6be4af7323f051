"""Sections -> one HTML page. What Jinja2 puts in is escaped, in data for the script as well."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

import msgspec

from chimerakit._version import __version__
from chimerakit.errors import MissingExtraError
from chimerakit.report.blocks import Chart, Section

_IN_JSON = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What must not stand in a script element, in which nothing is escaped by HTML's rules."""


def render_page(sections: Sequence[Section]) -> str:
    """The page. Raises MissingExtraError without Jinja2."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as e:
        raise MissingExtraError("jinja2", "report") from e
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data"] = lambda chart: Markup(_data_of(chart))
    script = _text("page.js")
    return environment.from_string(_text("template.html")).render(
        sections=sections,
        version=__version__,
        style=Markup(_text("page.css")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _data_of(chart: Chart) -> str:
    """A chart as JSON for a script element."""
    text = msgspec.json.encode(chart.data).decode()
    return "".join(_IN_JSON.get(character, character) for character in text)


def _text(name: str) -> str:
    return files("chimerakit.report").joinpath(name).read_text(encoding="utf-8")
