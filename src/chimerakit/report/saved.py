"""What the verbs save -> records: a difference map as .npz, an explanation or an inspection as JSON.

JSON is read as typed records, and no more of it than the largest models make; whoever wrote the file, it is what it says
or it is refused.
"""

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from chimerakit.compare import DifferenceMap, load_map
from chimerakit.compare.arrays import DamageError
from chimerakit.errors import RecipeError, ResultError
from chimerakit.evaluate.records import Evaluation
from chimerakit.explain import Estimate, Explained
from chimerakit.explain.sample import Sampled
from chimerakit.inspect.records import Inspection
from chimerakit.recipe import recipe_from_data
from chimerakit.records import Recipe
from chimerakit.stores.local import read_file
from chimerakit.sweep.records import Sweep

FORMAT = 1
"""Of the JSON of explain and inspect."""
HOW_TO = """\
chimerakit compare A B -o map.npz
chimerakit explain CHILD --parent NAME=PATH --json --detail > explanation.json
chimerakit inspect CHECKPOINT --json --detail > inspection.json
chimerakit evaluate MODEL ... -o FOLDER   (FOLDER/evaluation.json)
chimerakit sweep RECIPE.yaml -o FOLDER    (FOLDER/sweep.json)"""
"""How results are saved."""

_MAX_NBYTES = 256 << 20
"""An explanation takes some 600 bytes for each unit, of which DeepSeek-V3 has 46 thousand."""
_ZIP = b"PK"


class SavedExplanation(Struct, frozen=True):
    """What `explain --json --detail` says."""

    child: str
    """Its folder or file."""
    parents: tuple[str, ...]
    is_explained: bool
    recipe: dict[str, Any] | None
    """In the recipe language."""
    units: tuple[Explained, ...]
    missing: dict[str, tuple[str, ...]]
    unlike: tuple[str, ...]
    undetermined: tuple[str, ...]
    differences: dict[str, tuple[str, ...]]
    estimates: tuple[Estimate, ...] = ()
    nonfinite: int = 0
    """Units that the recipe makes of numbers and that hold NaN or infinity."""
    sample: Sampled | None = None
    """What was looked at, if not everything."""

    @property
    def parsed_recipe(self) -> Recipe | None:
        """The recipe as a record."""
        return None if self.recipe is None else recipe_from_data(self.recipe)


class Named(Struct, frozen=True):
    """A result, and the name of the file that it was saved in."""

    name: str
    found: SavedExplanation | DifferenceMap | Inspection | Evaluation | Sweep


class _Head(Struct, frozen=True):
    """What tells saved results apart; `detail` says whether all units are in it."""

    what: Literal["explanation", "inspection", "evaluation", "sweep"]
    format: int
    chimerakit: str = ""
    detail: bool = True


def head_of(what: Literal["explanation", "inspection"], version: str, *, detail: bool) -> dict[str, Any]:
    """The first fields of a result's JSON."""
    return msgspec.structs.asdict(_Head(what, FORMAT, version, detail))


def load_result(path: Path | str) -> Named:
    """Read a saved result. Raises ResultError for a file that is none, or a damaged one; CheckpointError if it can't be read."""
    path = Path(path)
    if not path.is_file():
        raise ResultError("there is no such result", where=path, do=HOW_TO)
    data = read_file(path, _MAX_NBYTES)
    if data.startswith(_ZIP):
        return Named(path.name, load_map(path))
    try:
        return Named(path.name, _decode(data))
    except (DamageError, RecipeError, ValueError, OverflowError, RecursionError) as e:
        raise ResultError(f"this is no saved result, or a damaged one: {e}", where=path, do=HOW_TO) from e


_KINDS: dict[str, type[SavedExplanation] | type[Inspection] | type[Evaluation] | type[Sweep]] = {
    "explanation": SavedExplanation,
    "inspection": Inspection,
    "evaluation": Evaluation,
    "sweep": Sweep,
}


def _decode(data: bytes) -> SavedExplanation | Inspection | Evaluation | Sweep:
    head = msgspec.json.decode(data, type=_Head)
    if head.format != FORMAT:
        raise DamageError(f"it is of format {head.format}, by chimerakit {head.chimerakit}")
    if not head.detail:
        raise DamageError("it was saved without --detail")
    found = msgspec.json.decode(data, type=_KINDS[head.what])
    msgspec.msgpack.encode(found)  # refuses numbers of more than 64 bits, which nobody counted
    if isinstance(found, SavedExplanation) and found.recipe is not None:
        recipe_from_data(found.recipe)
    if isinstance(found, Inspection) and found.provenance is not None:
        recipe_from_data(found.provenance.recipe)
    if isinstance(found, SavedExplanation) and len({unit.unit for unit in found.units}) != len(found.units):
        raise DamageError("a unit is in it twice")
    return found
