"""What routers did on texts that all models read: loads expert by expert, choices layer by layer, perplexity."""

from collections.abc import Iterator, Sequence

from chimerakit.evaluate.records import LayerHealth, RouterHealth, Routers
from chimerakit.report.blocks import Block, Chart, Label, Map, Place, Table, make_figure
from chimerakit.report.cells import Cell, Mark
from chimerakit.report.words import say_share, say_text

_MARKS = {Mark.ZERO: "never chosen"}


def show_health(found: Routers) -> Iterator[Block]:
    """A map of loads for each model, one of choices for each pair, a table, perplexities."""
    on = say_text(f"on {found.source}: {found.texts} texts, {found.tokens:,} tokens")
    yield Chart(
        "Routers: load", f"How often each expert is chosen, against the mean of its layer, {on}.", _loads(found)
    )
    yield Chart(
        "Routers: the same choices",
        "The share of chosen experts that another model chooses for the same token; each on its own states, or the same router "
        f"on the other's states: what is missing to 100 % there is due to states that the model makes itself; {on}.",
        _choices(found),
    )
    yield _table(found.health)
    rows = [(say_text(name), f"{p.value:.4g}", f"{p.low:.4g} to {p.high:.4g}") for name, p in found.perplexity.items()]
    says = f"Of the answers in these texts, given their prompts; {on}."
    yield Table("Perplexity", ("model", "perplexity", "95 %"), tuple(rows), says)


def _columns(health: Sequence[RouterHealth]) -> tuple[Label, ...]:
    return tuple(Label(str(layer.layer), f"layer {layer.layer}") for layer in health[0].layers)


def _loads(found: Routers) -> Map:
    """Experts x layers, a figure for each model; all on one scale."""
    experts = max(len(layer.loads) for each in found.health for layer in each.layers)
    shape: Place = experts, len(found.health[0].layers)
    cells = {each.model: _relative(each) for each in found.health}
    most = max((v for own in cells.values() for v in own.values() if isinstance(v, float)), default=1.0)
    figures = [make_figure(say_text(name), own, shape, _MARKS, ends=(0.0, most)) for name, own in cells.items()]
    rows = tuple(Label(str(n), f"expert {n}") for n in range(experts))
    return Map("expert", rows, _columns(found.health), tuple(figures))


def _relative(health: RouterHealth) -> dict[Place, Cell]:
    found: dict[Place, Cell] = {}
    for column, layer in enumerate(health.layers):
        mean = sum(layer.loads) / len(layer.loads)
        for expert, load in enumerate(layer.loads):
            found[expert, column] = load / mean if load else Mark.ZERO
    return found


def _choices(found: Routers) -> Map:
    """Pairs of models x layers."""
    pairs = [(each, other) for each in found.health for other in each.layers[0].overlap]
    shape: Place = len(pairs), len(found.health[0].layers)
    own: dict[Place, Cell] = {}
    swapped: dict[Place, Cell] = {}
    for row, (each, other) in enumerate(pairs):
        for column, layer in enumerate(each.layers):
            own[row, column], swapped[row, column] = layer.overlap[other], layer.steady[other]
    figures = (
        make_figure("each on its own states", own, shape, {}, is_percent=True, ends=(0.0, 1.0)),
        make_figure("the same router on the other's states", swapped, shape, {}, is_percent=True, ends=(0.0, 1.0)),
    )
    rows = tuple(Label(say_text(f"{a.model}, {b}"), say_text(f"{a.model} and {b}")) for a, b in pairs)
    return Map("", rows, _columns(found.health), figures)


def _table(health: Sequence[RouterHealth]) -> Table:
    rows = [_row(each.model, layer) for each in health for layer in each.layers]
    columns = ("model", "layer", "evenness", "dead", "overloaded", "margin")
    says = (
        "Evenness: entropy of the loads, 1 if all experts are chosen equally often. Overloaded: more than twice the mean. Margin: "
        "by how much the last expert chosen is ahead of the first that is not; the median over tokens."
    )
    return Table("Routers: layers", columns, tuple(rows), says, is_folded=True)


def _row(model: str, layer: LayerHealth) -> tuple[str, ...]:
    return (
        say_text(model),
        str(layer.layer),
        say_share(layer.evenness),
        str(layer.dead),
        str(layer.overloaded),
        "" if layer.margin is None else f"{layer.margin:.3g}",
    )
