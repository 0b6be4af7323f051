"""What an inspection finds."""

from typing import Any

from msgspec import Struct

from chimerakit.records import (
    COMPONENTS,
    Component,
    File,
    Finding,
    Outcome,
    ParentRecord,
    Role,
)


class Census(Struct, frozen=True, omit_defaults=True):
    """What the numbers of a unit are, counted. Those of several units add up to one of all."""

    values: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    """Of either sign."""
    largest: float = 0.0
    """The largest finite magnitude."""
    codes: int = 0
    """Values that are stored in FP8 blocks; the rest is about these."""
    nan_codes: int = 0
    saturated: int = 0
    """Codes of +-448, the largest number of FP8."""
    scales: int = 0
    nonfinite_scales: int = 0
    zero_scales: int = 0
    negative_scales: int = 0

    @property
    def nonfinite(self) -> int:
        """Values that are NaN or infinite."""
        return self.nan + self.infinite

    @property
    def saturation(self) -> float:
        """The share of FP8 codes that are saturated."""
        return self.saturated / self.codes if self.codes else 0.0

    @property
    def odd_scales(self) -> int:
        """Scales that are zero, negative, NaN or infinite."""
        return self.nonfinite_scales + self.zero_scales + self.negative_scales

    def __add__(self, other: "Census") -> "Census":
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        return Census(**(sums | {"largest": max(self.largest, other.largest)}))


class UnitCensus(Struct, frozen=True):
    """A unit with its census."""

    unit: str
    role: Role
    census: Census


class Censuses(Struct, frozen=True):
    """One for each unit of a checkpoint."""

    units: tuple[UnitCensus, ...]
    unread: dict[str, str]
    """Units whose values can't be decoded, and why."""

    def worst(self) -> list["Worst"]:
        """The unit of each component that has the largest number, and the one with the most saturated codes."""
        groups: dict[Component, list[UnitCensus]] = {}
        for found in self.units:
            groups.setdefault(found.role.component, []).append(found)
        return [
            Worst(component, max(groups[component], key=_largest), max(groups[component], key=_saturation))
            for component in COMPONENTS
            if component in groups
        ]


class Worst(Struct, frozen=True):
    """Units of a component to look at first."""

    component: Component
    largest: UnitCensus
    most_saturated: UnitCensus


def _largest(found: UnitCensus) -> float:
    return found.census.largest


def _saturation(found: UnitCensus) -> float:
    return found.census.saturation


class Part(Struct, frozen=True):
    """One component of one layer; or of several, rolled up."""

    component: Component
    layers: tuple[int, ...]
    """Empty for what is in no layer."""
    mtp: bool
    """Whether all of it belongs to multi-token-prediction layers."""
    experts: int
    """Routed experts of a layer: the most, where layers differ."""
    units: int
    tensors: int
    nbytes: int
    parameters: int
    """Elements of weights; the scales of FP8 blocks are none."""
    storages: dict[str, int]
    """Bytes in each storage, scales included; most first."""
    census: Census | None = None


class Parameters(Struct, frozen=True):
    """How many weights there are, and how many of them work for one token."""

    total: int
    """Everything that is stored."""
    main: int
    """The total without MTP layers. What follows is about these."""
    mtp: int
    embedding: int
    routed: int | None
    """In routed experts; None if the model's family is unknown."""
    active: int | None
    """All that is not routed, and of each layer's routed experts the part that a token is sent to; None if the config does
    not say how many that are."""
    active_without_embedding: int | None
    """The same less the embedding, of which a token looks up one row; not less where the embedding is the head, too."""


class MadeSummary(Struct, frozen=True):
    """Units of a component that were made alike."""

    component: Component
    outcome: Outcome
    shares: dict[str, tuple[float, float]]
    """The least and the largest share of each parent."""
    units: int


class Provenance(Struct, frozen=True):
    """What a child's manifest says of its making. Whether it still holds is what verifying finds out."""

    chimerakit: str
    """The version that made it."""
    plan: str
    recipe: dict[str, Any]
    """In the recipe language."""
    parents: dict[str, ParentRecord]
    made: tuple[MadeSummary, ...]
    largest_rms_error: float | None
    """Of a unit, relative to the RMS of its values; None if nothing was rounded."""
    nonfinite: int
    """Values that were NaN or infinite and carried along."""


class Inspection(Struct, frozen=True):
    """Everything that is known of one checkpoint."""

    root: str
    """The folder, or the file."""
    model_type: str | None
    family: str
    weight_files: int
    nbytes: int
    """Of all weight files."""
    tensors: int
    units: int
    layers: int
    """Main layers that hold tensors."""
    mtp_layers: int
    experts_per_token: int | None
    quantization: dict[str, Any] | None
    """config.json's quantization_config."""
    parameters: Parameters
    parts: tuple[Part, ...]
    """Every component of every layer, by component and layer."""
    unknown: tuple[str, ...]
    """Tensors that the family's table does not have; for a family without a table that would be all, and there are none."""
    findings: tuple[Finding, ...]
    """What is wrong."""
    notes: tuple[str, ...]
    """What a careful user wants to know, and what is nothing wrong."""
    files: tuple[File, ...]
    left_out: tuple[str, ...]
    """What is no part of the checkpoint."""
    is_unfinished: bool
    """Whether a merge into this folder has begun and not ended."""
    provenance: Provenance | None = None
    values: Censuses | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings
