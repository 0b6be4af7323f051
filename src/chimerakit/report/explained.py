"""An explanation as a section: whose bytes stand where, the recipe, what is mixed how, what nothing explains."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath

from chimerakit.explain import Explained
from chimerakit.recipe import recipe_to_yaml, say_rule
from chimerakit.records import COMPONENTS, Component
from chimerakit.report.axes import Grid, component_grid, expert_grid
from chimerakit.report.blocks import (
    Block,
    Chart,
    Figure,
    Listing,
    Map,
    Place,
    RecipeText,
    Section,
    Series,
    Spread,
    Table,
    bins,
    color_of,
    make_shares,
    pack_texts,
)
from chimerakit.report.cells import Cell, Mark
from chimerakit.report.saved import SavedExplanation
from chimerakit.report.words import (
    MOST_WAYS,
    say_estimate,
    say_lines,
    say_nonfinite,
    say_text,
    say_way,
    say_ways,
    ways_of,
)
from chimerakit.words import say_many, say_nbytes

_MOST_PARENTS = 8
"""Whose shares are drawn."""
_BINS = 50
_MARKS = {Mark.AGREE: "parents agree", Mark.WRONG: "unexplained"}


def show_explanation(found: SavedExplanation, name: str) -> Section:
    """Everything that was found out about a child."""
    blocks = [*_provenance(found), *_recipe(found), *_shares(found), _components(found.units), *_findings(found)]
    return Section("explain", _child(found), name, tuple(_facts(found)), tuple(blocks))


def _child(found: SavedExplanation) -> str:
    return say_text(f"What {PurePath(found.child).name or 'the child'} is made of")


def _facts(found: SavedExplanation) -> Iterator[tuple[str, str]]:
    explained = sum(unit.is_given for unit in found.units)
    yield "child", say_text(PurePath(found.child).name)
    yield "parents", say_text(", ".join(found.parents))
    yield "units", f"{explained:,} of {len(found.units):,} explained"
    yield "bytes", say_nbytes(sum(unit.nbytes for unit in found.units))
    if (sample := found.sample) is not None:
        seen = f"{sample.units:,} of {sample.all_units:,} units, {say_nbytes(sample.nbytes)} of "
        yield "a sample", f"{seen}{say_nbytes(sample.all_nbytes)}, seed {sample.seed}: nothing is proven of the rest"
    recipe = found.parsed_recipe
    rules = "none found" if recipe is None else f"{recipe.base} as the base, {say_many(len(recipe.rules), 'rule')}"
    yield "recipe", say_text(rules)


# ------------------------------------------------------------------------------------------ provenance


def _provenance(found: SavedExplanation) -> Iterator[Block]:
    if not found.units or not found.parents:
        return
    roles = [unit.role for unit in found.units]
    says = "A cell is the mean share over the bytes of"
    grid = component_grid(roles)
    by_component = _grouped(found.units, lambda u: grid.place(u.role.component, u.role.layer))
    yield Chart("Whose bytes: components", f"{says} a component in a layer.", _map(found, grid, by_component, ""))
    experts = expert_grid(roles)
    if experts is not None:
        routed = [unit for unit in found.units if unit.role.expert is not None]
        by_expert = _grouped(routed, lambda u: experts.place(u.role.component, u.role.layer, u.role.expert))
        yield Chart("Whose bytes: experts", f"{says} an expert in a layer.", _map(found, experts, by_expert, "expert"))


Groups = Mapping[Place, Sequence[Explained]]


def _grouped(units: Sequence[Explained], place: Callable[[Explained], Place]) -> Groups:
    groups: dict[Place, list[Explained]] = {}
    for unit in units:
        groups.setdefault(place(unit), []).append(unit)
    return groups


def _map(found: SavedExplanation, grid: Grid, groups: Groups, down: str) -> Map:
    texts, text_of = pack_texts({place: _ways_in_words(units) for place, units in groups.items()}, grid.shape)
    figures = tuple(_figures(found.parents, grid, groups))
    return Map(down, grid.rows, grid.columns, figures, texts, text_of)


def _figures(parents: Sequence[str], grid: Grid, groups: Groups) -> Iterator[Figure]:
    """Of two parents one figure says everything; of others one for each."""
    for parent in parents[1:] if len(parents) == 2 else parents[:_MOST_PARENTS]:
        rest = parents[0] if len(parents) == 2 else f"no {parent}"
        cells = {place: _cell(units, parent) for place, units in groups.items()}
        labels = (say_text(rest), "half", say_text(parent))
        yield make_shares(say_text(f"share of {parent}"), cells, grid.shape, _MARKS, labels)


def _cell(units: Sequence[Explained], parent: str) -> Cell:
    """The mean share of a parent in the bytes of units that can be told apart."""
    if any(unit.verdict == "unexplained" for unit in units):
        return Mark.WRONG
    told = [unit for unit in units if unit.verdict != "equal" or len(unit.shares) == 1]
    if not told:
        return Mark.AGREE
    whole = sum(max(1, unit.nbytes) for unit in told)
    return sum(max(1, unit.nbytes) * unit.shares.get(parent, 0.0) for unit in told) / whole


def _ways_in_words(units: Sequence[Explained]) -> str:
    """`2 units 0.25 v3 + 0.75 r1; 1 unit = v3`, and why the first that is unexplained is."""
    ways = Counter(say_way(unit) for unit in units).most_common()
    says = "; ".join(f"{say_many(number, 'unit')} {way}" for way, number in ways[:MOST_WAYS])
    says += f"; {len(ways) - MOST_WAYS} other ways" if len(ways) > MOST_WAYS else ""
    wrong = next((unit for unit in units if unit.verdict == "unexplained"), None)
    return say_text(says) if wrong is None else f"{say_text(says)}: {say_text(wrong.unit)}: {say_text(wrong.why)}"


# ---------------------------------------------------------------------------------- recipe, shares, table


def _recipe(found: SavedExplanation) -> Iterator[Block]:
    recipe = found.parsed_recipe
    if recipe is not None:
        rest = (
            "the first rule that matches a unit takes it, and the base the rest"
            if recipe.rules
            else "it gives everything"
        )
        says = say_text(f"{recipe.base} is the base: {rest}.")
        yield RecipeText("The recipe", says, say_lines([*map(say_rule, recipe.rules)]), recipe_to_yaml(recipe))


def _shares(found: SavedExplanation) -> Iterator[Block]:
    """How shares are spread, where units are mixed."""
    mixed: dict[Component, list[Explained]] = {}
    for unit in found.units:
        if unit.verdict in ("mixed", "estimated"):
            mixed.setdefault(unit.role.component, []).append(unit)
    if not mixed:
        return
    shares = [share for units in mixed.values() for unit in units for share in unit.shares.values()]
    low, high = min([0.0, *shares]), max([1.0, *shares])
    edges = tuple(low + (high - low) * n / _BINS for n in range(_BINS + 1))
    parents = found.parents[1:_MOST_PARENTS]
    rows = [
        _spread(component, mixed[component], parent, edges, is_only=len(parents) == 1)
        for component in COMPONENTS
        if component in mixed
        for parent in parents
    ]
    of = f"share of {say_text(parents[0])}" if len(parents) == 1 else "share"
    data = Spread(of, "linear", edges, "the component's mixed units", tuple(rows))
    yield Chart("Shares in what is mixed", "Units by their share, of those that are mixed of several parents.", data)


def _spread(
    component: Component, units: Sequence[Explained], parent: str, edges: Sequence[float], *, is_only: bool
) -> Series:
    shares = [unit.shares.get(parent, 0.0) for unit in units]
    values = bins(shares, edges, [1.0] * len(shares), len(shares))
    name = component if is_only else f"{component}: {say_text(parent)}"
    return Series(name, color_of(component), values, say_many(len(shares), "unit"))


def _components(units: Sequence[Explained]) -> Table:
    """One row for each component."""
    rows = []
    for component, ways in ways_of(units).items():
        nbytes = say_nbytes(sum(unit.nbytes for unit in units if unit.role.component == component))
        rows.append((component, f"{sum(ways.values()):,}", nbytes, say_text(say_ways(ways))))
    return Table("Components", ("component", "units", "bytes", "the child is"), tuple(rows), words=(0, 3))


# -------------------------------------------------------------------------------------------- findings


def _findings(found: SavedExplanation) -> Iterator[Block]:
    wrong = [f"{unit.unit}: {unit.why}" for unit in found.units if unit.verdict == "unexplained"]
    if wrong:
        yield Listing("Unexplained", say_lines(wrong), is_wrong=True)
    estimated = [f"{say_estimate(estimate)} ({estimate.encoder})" for estimate in found.estimates]
    missing = [f"{unit}, which {parent} has" for parent, units in found.missing.items() for unit in units]
    for title, lines in (
        ("Estimated: made by another program", estimated),
        ("Units that the child lacks", missing),
        ("To merge the recipe", [say_nonfinite(found.nonfinite)] if found.nonfinite else []),
        ("What the recipe's child would have otherwise", found.unlike),
        ("Undetermined: no byte shows it", found.undetermined),
        *(
            (f"In what else the child differs from {parent}", says)
            for parent, says in [*found.differences.items()][:_MOST_PARENTS]
        ),
    ):
        if lines:
            yield Listing(say_text(title), say_lines(lines))
