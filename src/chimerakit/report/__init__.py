"""Saved results -> one HTML page that needs nothing but itself: no network, no other file, no clock.

saved.py      files -> what explain, compare and inspect found: typed, bounded
explained.py  an explanation -> a section of the page
compared.py   the same for a difference map; routers.py shows its routers
inspected.py  the same for an inspection; census.py shows its values
evaluated.py  the same for models that were measured; health.py shows what their routers did
swept.py      the same for a sweep: its curves, its children's recipes
blocks.py     what sections are made of: tables, lists, maps, bars, spreads
axes.py       layers, components and experts as the axes of maps
cells.py      numbers of a map, packed
words.py      texts and figures in words
page.py       sections -> HTML, by template.html with page.css and page.js

The page depends on the results and their files' names only, so equal ones give equal bytes. No number is computed on
weights here, and no text of a result reaches the page unescaped.
"""

from collections.abc import Sequence
from functools import singledispatch

from chimerakit.compare import DifferenceMap
from chimerakit.errors import ResultError
from chimerakit.evaluate.records import Evaluation
from chimerakit.inspect.records import Inspection
from chimerakit.report.blocks import Section
from chimerakit.report.compared import show_map
from chimerakit.report.evaluated import show_evaluation
from chimerakit.report.explained import show_explanation
from chimerakit.report.inspected import show_inspection
from chimerakit.report.page import render_page
from chimerakit.report.saved import HOW_TO, Named, SavedExplanation, load_result
from chimerakit.report.swept import show_sweep
from chimerakit.report.words import say_text
from chimerakit.sweep.records import Sweep

__all__ = ["HOW_TO", "Named", "SavedExplanation", "load_result", "make_report"]


def make_report(results: Sequence[Named]) -> str:
    """The page for these results, in their order. Raises MissingExtraError without Jinja2, ResultError for too many cells."""
    try:
        return render_page([_show(result.found, say_text(result.name)) for result in results])
    except RecursionError as e:
        raise ResultError("a result is nested too deeply for a page", do=HOW_TO) from e


@singledispatch
def _show(found: object, name: str) -> Section:
    raise TypeError(f"{name}: no page shows {type(found).__name__}")


_show.register(SavedExplanation, show_explanation)
_show.register(DifferenceMap, show_map)
_show.register(Inspection, show_inspection)
_show.register(Evaluation, show_evaluation)
_show.register(Sweep, show_sweep)
