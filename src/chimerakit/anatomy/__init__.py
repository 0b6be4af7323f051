"""What a tensor's name says: component, layer, expert, projection, MTP mark; and which tensors belong together.

Knowledge of a model family is a table, a TOML file in `families/`; the code here knows no name. To add a family, add a
file. A name that no line of the table fits is `other` and marked unknown: it is shown, never dropped.
"""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, Literal, NamedTuple

from msgspec import Struct, convert

from chimerakit.anatomy.routing import Routing, RoutingTable
from chimerakit.dtypes import BLOCK, FP8_BLOCK, FP8_BLOCK_UE8M0, FP8_BLOCKS, blocks_of
from chimerakit.errors import CheckpointError
from chimerakit.records import Arrangement, Checkpoint, Component, Role, Tensor, Unit

_Part = Literal["first", "second", "whole"]
_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,8})(?=\.)|(?<=\[)(?:0|[1-9][0-9]{0,8})(?=\]$)")
"""As a model writes it. Other digits, or zeros before it, would make two names of one."""


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a family's table: names, and what tensors of these names are."""

    component: Component
    names: list[str]
    """With {layer}, {expert} and {projection} in place of what varies."""
    projections: list[str] = []
    convertible: bool = True
    """Whether `output.dtype` may store them otherwise."""
    fp8: bool = False
    """Whether the family stores them in FP8 blocks when it uses FP8."""


class Layout(Struct, frozen=True, forbid_unknown_fields=True):
    """Tensors that some files have in one matrix and others in two, by their names with {layer}, and {expert}."""

    whole: str
    first: str
    second: str
    is_transposed: bool = False
    """Whether the first of the two is stored transposed, head by head."""
    is_of_heads: bool = False
    """Whether the two take turns in the whole's rows, head by head; the second tells the number of heads."""


class Feed(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the inputs of a tensor come from, by names with {layer} and {expert}."""

    to: list[str]
    by: list[str]
    """Those of them that a model has."""


class Meaning(Struct, frozen=True, forbid_unknown_fields=True):
    """A config value that changes what the tensors mean, so that parents must agree on it."""

    default: Any = None
    """What an absent value means."""
    also: str | None = None
    """Another place for the same value, as a path of keys with dots."""


class Family(Struct, frozen=True, forbid_unknown_fields=True):
    """One model family's table."""

    name: str
    model_types: list[str]
    """Values of config.json's model_type that are of this family."""
    layers: str
    """The config key with the number of main layers; those from it on are MTP layers."""
    experts: str
    """The config key with the number of routed experts."""
    companion: str
    """What is added to a weight's name to get its scale's; nothing where no weight has one."""
    tensors: list[Line]
    config: dict[str, Meaning]
    layouts: list[Layout] = []
    """Of tensors that are not always cut in the same way."""
    feeds: list[Feed] = []
    """Whose outputs are whose inputs, for those of which it matters."""
    experts_per_token: str = ""
    """The config key with the number of routed experts that a token is sent to."""
    mtp_layers: str = ""
    """The config key with the number of MTP layers."""
    layers_hold_mtp: bool = False
    """Whether the number of main layers counts these, too."""
    routing: RoutingTable | None = None
    """How routers choose experts; None where that is not known."""

    def patterns(self) -> dict[str, tuple[Line, tuple[str, ...], str | None]]:
        """Every name with numbers as '#', its line, what the numbers are, and the projection."""
        found = {}
        for line in self.tensors:
            for name, projection in product(line.names, line.projections or [""]):
                filled = name.replace("{projection}", projection)
                numbers = tuple(re.findall(r"\{(layer|expert)\}", filled))
                found[re.sub(r"\{(layer|expert)\}", "#", filled)] = (line, numbers, projection or None)
        return found


_GGUF = "gguf"
_ARCHITECTURE = "general.architecture"
GENERIC = "generic"
"""The family of models that no table describes: every tensor is `other`; names and globs still work."""
_GENERIC = Family(name=GENERIC, model_types=[], layers="", experts="", companion="_scale_inv", tensors=[], config={})


def load_family(text: str) -> Family:
    """A family from its TOML text."""
    return convert(tomllib.loads(text), Family)


@cache
def families() -> Mapping[str, Family]:
    """Every family that has a table, by model_type."""
    tables = [
        load_family(f.read_text("utf-8"))
        for f in files(__package__).joinpath("families").iterdir()
        if f.name != "README"
    ]
    return {model_type: family for family in tables for model_type in family.model_types}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config. All models of GGUF are one, as their tensors have the same names."""
    model_type = _GGUF if _ARCHITECTURE in config else str(config.get("model_type", ""))
    return families().get(model_type, _GENERIC)


class _Parsed(NamedTuple):
    """What a name without its first number says."""

    line: Line
    projection: str | None
    kinds: tuple[str, ...]
    """What its numbers are, the first one included."""
    later: tuple[int, ...]
    """The numbers after the first."""


class Anatomy:
    """One checkpoint seen with its family's table."""

    def __init__(self, checkpoint: Checkpoint, family: Family | None = None):
        self.checkpoint = checkpoint
        self.family = family_of(checkpoint.config) if family is None else family
        said = checkpoint.config.get("quantization_config")
        self._quantization: dict[str, Any] = said if isinstance(said, dict) else {}
        num_mtp = self._count(self.family.mtp_layers) if self.family.layers_hold_mtp else 0
        self.num_layers = max(0, self._count(self.family.layers) - num_mtp)
        self.num_experts = self._count(self.family.experts)
        self._patterns = self.family.patterns()
        self._parsed: dict[str, _Parsed | None] = {}
        heads = {pattern.split("#")[0] for pattern, (_, kinds, _) in self._patterns.items() if kinds[:1] == ("layer",)}
        self._layer = re.compile(f"(?:{'|'.join(map(re.escape, sorted(heads)))})(\\d{{1,9}})\\.") if heads else None

    def key(self, key: str) -> str:
        """A config key of the family's table as this checkpoint writes it."""
        return _filled(key, self.checkpoint.config)

    def number(self, key: str) -> int | None:
        """The positive whole number that the config says under a key of the family's table; None if it says none."""
        found = self.checkpoint.config.get(self.key(key))
        return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None

    def _count(self, key: str) -> int:
        key = self.key(key)
        found = config_meaning(self.family, self.checkpoint.config).get(key, 0)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 20:
            raise CheckpointError(
                f"{self.checkpoint.config_place}: {key} must be a whole number",
                where=self.checkpoint.place,
                found=repr(found),
            )
        return found

    def meaning(self) -> dict[str, Any]:
        """The config values that parents must agree on. MTP layers are none of them: where the number of layers counts these
        it is that of the main ones here, as some files of a model have them and others don't."""
        found = config_meaning(self.family, self.checkpoint.config)
        if self.family.layers_hold_mtp:
            del found[self.key(self.family.mtp_layers)]
            found[self.key(self.family.layers)] = self.num_layers
        return found

    def routing(self) -> Routing | str:
        """How its routers choose experts, or why that is unknown."""
        if self.family.routing is None:
            return f"how routers of the family {self.family.name!r} choose is not known"
        return self.family.routing.decide(config_meaning(self.family, self.checkpoint.config), self.num_experts)

    def role(self, name: str) -> Role:
        """What the tensor of this name is."""
        if "#" in name:
            return self._unknown(name)
        # Layers are alike: without its first number a name is one of a thousand, and each of these is parsed once.
        first = _NUMBER.search(name)
        rest = name if first is None else f"{name[: first.start()]}#{name[first.end() :]}"
        if rest not in self._parsed:
            self._parsed[rest] = self._parse(rest)
        parsed = self._parsed[rest]
        if parsed is None:
            return self._unknown(name)
        line, projection, kinds, later = parsed
        numbers = dict(zip(kinds, later if first is None else (int(first[0]), *later), strict=True))
        layer, expert = numbers.get("layer"), numbers.get("expert")
        if expert is not None and expert >= self.num_experts:
            return self._unknown(name)
        return Role(
            line.component,
            layer=layer,
            expert=expert,
            projection=projection,
            mtp=layer is not None and layer >= self.num_layers,
            convertible=line.convertible,
            fp8=line.fp8,
        )

    def _parse(self, rest: str) -> _Parsed | None:
        pattern = self._patterns.get(_NUMBER.sub("#", rest))
        if pattern is None:
            return None
        line, kinds, projection = pattern
        return _Parsed(line, projection, kinds, tuple(map(int, _NUMBER.findall(rest))))

    def _unknown(self, name: str) -> Role:
        """A name that the table does not have is `other`; a layer's prefix still says which layer it is in."""
        found = self._layer.match(name) if self._layer is not None else None
        layer = None if found is None else int(found[1])
        return Role("other", layer=layer, mtp=layer is not None and layer >= self.num_layers, known=False)

    def units(self) -> dict[str, Unit]:
        """Every tensor of the checkpoint, each in one unit, by the name of the unit's weight."""
        return {name: unit for name in self.checkpoint.tensors if (unit := self.unit(name)) is not None}

    def unit(self, name: str, role: Role | None = None) -> Unit | None:
        """The unit of a weight; None if there is no such weight. `role` where it is known already."""
        tensors, suffix = self.checkpoint.tensors, self.family.companion
        weight = tensors.get(name)
        if weight is None or (suffix and name.endswith(suffix) and self._is_companion(name)):
            return None
        scale = tensors.get(name + suffix) if suffix else None
        return Unit(
            self.role(name) if role is None else role,
            weight.dtype if scale is None else self._scaled_storage(weight, scale),
            (weight,) if scale is None else (weight, scale),
        )

    def rearranged(self, like: Unit) -> Unit | None:
        """A unit that this checkpoint stores in another layout, put together as `like` is; None if it can't be."""
        for layout in self.family.layouts:
            names: dict[_Part, str] = {"whole": layout.whole, "first": layout.first, "second": layout.second}
            names = {part: _numbered(name, like) for part, name in names.items()}
            part = next((part for part, name in names.items() if name == like.name), None)
            if part is None:
                continue
            others: tuple[_Part, ...] = ("first", "second") if part == "whole" else ("whole",)
            there = {n: self.checkpoint.tensors[names[n]] for n in others if names[n] in self.checkpoint.tensors}
            if len(there) < len(others):
                continue
            arrangement = _arrange(layout, part, {part: like.shape} | {n: tensor.shape for n, tensor in there.items()})
            if arrangement is not None:
                storages = dict.fromkeys(tensor.dtype for tensor in there.values())
                return Unit(like.role, " and ".join(storages), tuple(there.values()), arrangement)
        return None

    def _is_companion(self, name: str) -> bool:
        """Whether a tensor belongs to a weight; the scale of a scale does not, or it would be in no unit."""
        suffix, is_companion = self.family.companion, False
        while name.endswith(suffix) and (name := name.removesuffix(suffix)) in self.checkpoint.tensors:
            is_companion = not is_companion
        return is_companion

    def _scaled_storage(self, weight: Tensor, scale: Tensor) -> str:
        if weight.dtype != "F8_E4M3" or scale.dtype not in ("F32", "F8_E8M0"):
            return f"{weight.dtype} with {scale.dtype} scales"
        if scale.dtype == "F8_E8M0" or self._quantization.get("scale_fmt") == "ue8m0":
            return FP8_BLOCK_UE8M0
        return FP8_BLOCK

    def objection(self, unit: Unit) -> str | None:
        """What is wrong with a unit as it is stored, or None."""
        weight = unit.tensors[0]
        if self.family is _GENERIC:
            return None
        if weight.dtype == "F8_E4M3" and unit.role.fp8 and len(unit.tensors) == 1:
            return f"{unit.name} is FP8 without its scale: there is no {unit.name}{self.family.companion}"
        if unit.storage in FP8_BLOCKS:
            expected = blocks_of(weight.shape)
            scale = unit.tensors[1]
            if len(weight.shape) != 2 or scale.shape != expected:
                return f"{scale.name} has the wrong shape: expected {list(expected)}, found {list(scale.shape)}"
            if (size := self._quantization.get("weight_block_size", [BLOCK, BLOCK])) != [BLOCK, BLOCK]:
                return f"{unit.name} has blocks of {size}; only [{BLOCK}, {BLOCK}] is known"
        return None


def _numbered(name: str, like: Unit) -> str:
    return name.replace("{layer}", str(like.role.layer)).replace("{expert}", str(like.role.expert))


def _arrange(layout: Layout, part: _Part, shapes: Mapping[_Part, tuple[int, ...]]) -> Arrangement | None:
    """How a unit that is some part is made of the others; None if their shapes, or its own, don't allow it."""
    whole, cut = shapes["whole"], shapes["second"] if "second" in shapes else shapes["first"]
    if len(whole) != 2 or len(cut) != 2 + layout.is_of_heads:
        return None
    heads = cut[0] if layout.is_of_heads else 1
    if not heads or whole[0] % heads:
        return None
    own = cut[-1] if layout.is_transposed and "second" not in shapes else cut[-2]
    rest = whole[0] // heads - own
    rows = (rest, own) if "second" in shapes else (own, rest)
    of_heads = (heads,) * layout.is_of_heads
    expected: dict[_Part, tuple[int, ...]] = {
        "whole": whole,
        "first": (*of_heads, *((whole[1], rows[0]) if layout.is_transposed else (rows[0], whole[1]))),
        "second": (*of_heads, rows[1], whole[1]),
    }
    fits = min(rows) > 0 and all(expected[each] == shape for each, shape in shapes.items())
    return Arrangement(part, heads, rows, layout.is_transposed) if fits else None


def config_meaning(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config values that change what tensors mean, with the family's defaults for absent ones."""
    found = {}
    for key, meaning in ((_filled(key, config), meaning) for key, meaning in family.config.items()):
        value: Any = config.get(key)
        if value is None and meaning.also is not None:
            value = config
            for part in meaning.also.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        value = _plain(value)
        found[key] = meaning.default if value is None else value
    return found


def _filled(key: str, config: Mapping[str, Any]) -> str:
    """A config key of a table with the architecture's name in it, as GGUF writes them."""
    return key.replace("{architecture}", str(config.get(_ARCHITECTURE, "")))


def _plain(value: Any) -> Any:
    """A value in the form in which two spellings of it are equal.

    transformers 5 keeps rope_theta and rope_scaling in one dictionary and calls `type` `rope_type`.
    """
    if not isinstance(value, Mapping):
        return value
    renamed = {("rope_type" if key == "type" else key): v for key, v in value.items() if key != "rope_theta"}
    return None if renamed.get("rope_type") == "default" else renamed
