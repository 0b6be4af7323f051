"""Layers, components and experts as the axes of maps: of those that are there, however they are numbered."""

from collections.abc import Sequence

from chimerakit.errors import ResultError
from chimerakit.inspect.records import Part
from chimerakit.records import COMPONENTS, Component, Role
from chimerakit.report.blocks import Label, Place

_MOST_CELLS = 1 << 18
"""Of a map: DeepSeek-V3 has 16 thousand."""
_OUTSIDE = -1


class Grid:
    """Places of roles in a map of rows x layers."""

    def __init__(self, rows: Sequence[tuple[int, Label]], roles: Sequence[Role]):
        in_mtp = {_layer(role) for role in roles if role.mtp}
        layers = sorted({_layer(role) for role in roles})
        self._columns = {layer: column for column, layer in enumerate(layers)}
        self._rows = {key: row for row, (key, _) in enumerate(rows)}
        self.rows = tuple(label for _, label in rows)
        self.columns = tuple(_label(layer, is_mtp=layer in in_mtp) for layer in layers)
        self.shape: Place = len(self.rows), len(self.columns)
        if len(self.rows) * len(self.columns) > _MOST_CELLS:
            raise ResultError(
                "can't be drawn",
                expected=f"a map of at most {_MOST_CELLS:,} cells",
                found=f"{len(self.rows):,} rows x {len(self.columns):,} layers",
            )

    def column(self, layer: int | None) -> int:
        """Where a layer stands."""
        return self._columns[_OUTSIDE if layer is None else layer]

    def place(self, component: Component, layer: int | None, expert: int | None = None) -> Place:
        """Where a component of a layer stands, or one of its experts."""
        return self._rows[COMPONENTS.index(component) if expert is None else expert], self.column(layer)


def component_grid(roles: Sequence[Role]) -> Grid:
    """Components x layers."""
    there = {role.component for role in roles}
    return Grid([(n, Label(c, c)) for n, c in enumerate(COMPONENTS) if c in there], roles)


def expert_grid(roles: Sequence[Role]) -> Grid | None:
    """Experts x all layers, so that its columns stand under those of the components; None without experts."""
    experts = sorted({role.expert for role in roles if role.expert is not None})
    return Grid([(e, Label(str(e), f"expert {e}")) for e in experts], roles) if experts else None


def roles_of(parts: Sequence[Part]) -> list[Role]:
    """What parts of a checkpoint are."""
    return [Role(part.component, part.layers[0] if part.layers else None, mtp=part.mtp) for part in parts]


def _layer(role: Role) -> int:
    return _OUTSIDE if role.layer is None else role.layer


def _label(layer: int, *, is_mtp: bool) -> Label:
    if layer == _OUTSIDE:
        return Label("out", "outside layers")
    return Label("MTP", f"layer {layer} (MTP)") if is_mtp else Label(str(layer), f"layer {layer}")
