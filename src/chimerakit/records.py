"""The records that everything passes along, in the order in which data moves: frozen, checked, to and from JSON.

    Recipe + Checkpoints -> Plan (Rows) -> Jobs -> Receipts -> Manifest -> Findings

All bytes and offsets are absolute numbers of bytes; digests are lower-case hexadecimal. `msgspec.json` writes and reads
every record here. Those of which a plan has a hundred thousand are made with `gc=False`: frozen, of texts, numbers and
tuples, they can be in no cycle, and the collector would walk through all of them again and again.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Component = Literal[
    "embedding", "head", "norm", "attention", "dense_mlp", "router", "routed_experts", "shared_experts", "other"
]
COMPONENTS: tuple[Component, ...] = (
    "embedding",
    "head",
    "norm",
    "attention",
    "dense_mlp",
    "router",
    "routed_experts",
    "shared_experts",
    "other",
)

_NBYTES = attrgetter("nbytes")
IMATRIX = "(imatrix)"
"""What an importance matrix file is called where parents have names; no parent can be called so."""

# ------------------------------------------------------------------------------------------ checkpoint


Format = Literal["safetensors", "gguf"]


class Tensor(Struct, frozen=True, gc=False):
    """One named array as it is stored."""

    name: str
    dtype: str
    """A name of `dtypes.STORAGE_TYPES` or, in GGUF, of `dtypes.GGML_TYPES`."""
    shape: tuple[int, ...]
    file: str
    """The shard, relative to the checkpoint's folder."""
    start: int
    """Where its bytes begin in that file."""
    nbytes: int


class Shard(Struct, frozen=True):
    """One weight file of a checkpoint."""

    name: str
    nbytes: int
    header_nbytes: int
    """Everything before the first weight byte, the length field included."""
    header_digest: str
    """xxh3-128 of those bytes."""
    mtime_ns: int
    metadata: dict[str, str] | None
    """The header's `__metadata__`."""


class Field(Struct, frozen=True):
    """One key of a GGUF header, with its value as it stands there."""

    key: str
    kind: str
    """u32, f32, string, ...; in brackets if it is a list of these."""
    start: int
    """Where it begins in the first shard, its key included."""
    nbytes: int


class File(Struct, frozen=True):
    """A file of a checkpoint that holds no weights."""

    name: str
    nbytes: int
    mtime_ns: int


class Checkpoint(Struct, frozen=True):
    """A model's weights and config as stored; made from headers only."""

    root: str
    shards: tuple[Shard, ...]
    tensors: dict[str, Tensor]
    """By name, in the order of the shards and of the bytes in them. A GGUF tensor that stacks the weights of all experts is
    here as one of each: NAME[0], NAME[1], ..."""
    config: dict[str, Any]
    """config.json, empty if there is none; of GGUF the keys of its header, long lists by their digests."""
    files: tuple[File, ...]
    """Everything that is neither weights nor hidden."""
    left_out: tuple[str, ...]
    """What is no part of the checkpoint and not copied: weight files in other formats, shards that no index names,
    linked folders."""
    index: File | None
    """The index file, None for a single weight file."""
    is_folder: bool = True
    """False for a single file, whose neighbours have nothing to do with it."""
    format: Format = "safetensors"
    fields: tuple[Field, ...] = ()
    """Of GGUF: where each key of its config lies."""
    texts: dict[str, str] = {}
    """Small files that a plan may have to edit: tokenizer_config.json, chat_template.jinja."""

    @property
    def place(self) -> str:
        """What it is: its folder, or its only or first file."""
        return self.root if self.is_folder else f"{self.root}/{self.shards[0].name}"

    @property
    def config_place(self) -> str:
        """What holds its config, in words."""
        return "the header" if self.format == "gguf" else "config.json"

    @property
    def model_type(self) -> str | None:
        """What its config calls the model's architecture."""
        found = self.config.get("general.architecture" if self.format == "gguf" else "model_type")
        return None if found is None else str(found)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(s.nbytes for s in self.shards)

    @property
    def signatures(self) -> dict[str, tuple[int, int]]:
        """Size and mtime_ns of every file, so that a changed one is noticed."""
        index = () if self.index is None else (self.index,)
        return {f.name: (f.nbytes, f.mtime_ns) for f in (*self.shards, *self.files, *index)}


class Role(Struct, frozen=True, gc=False):
    """What a tensor is in its model."""

    component: Component
    layer: int | None = None
    expert: int | None = None
    projection: str | None = None
    mtp: bool = False
    """Whether it belongs to a multi-token-prediction layer."""
    known: bool = True
    """False if the family's table has no such name."""
    convertible: bool = False
    """Whether `output.dtype` may store it otherwise."""
    fp8: bool = False
    """Whether the family stores it in FP8 blocks."""


class Arrangement(Struct, frozen=True, gc=False):
    """How a unit is made of what another layout stores: rows of each head of one matrix, or that of two tensors of them."""

    part: Literal["first", "second", "whole"]
    """What the unit is: the first or second rows of each head of the tensor that is there, or the whole of two that are."""
    heads: int
    rows: tuple[int, int]
    """Of the first and of the second, for each head."""
    is_transposed: bool
    """Whether the first is stored transposed, head by head."""


class Unit(Struct, frozen=True, gc=False):
    """A tensor with the companions that it can't be read without."""

    role: Role
    storage: str
    """A storage that numerics can decode (`dtypes.MIXABLE`), or the plain dtype of the first tensor."""
    tensors: tuple[Tensor, ...]
    """The weight first; with an arrangement, what it is made of."""
    arrangement: Arrangement | None = None

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.tensors[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.tensors[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(map(_NBYTES, self.tensors))


# ---------------------------------------------------------------------------------------------- recipe


class Gradient(Struct, frozen=True):
    """A share that changes linearly over all main layers; MTP layers take the last value."""

    start: float
    stop: float

    def at(self, layer: int, num_layers: int) -> float:
        """The share in one layer, counted from 0."""
        if num_layers < 2:
            return self.start
        part = min(layer, num_layers - 1) / (num_layers - 1)
        return self.stop if part == 1 else self.start + (self.stop - self.start) * part


class Span(Struct, frozen=True):
    """Numbers from `first` to `last`, both included; negative ones count from the end, as in Python."""

    first: int
    last: int

    def within(self, count: int) -> range:
        """The numbers meant among `count` of them."""
        first, last = (n + count if n < 0 else n for n in (self.first, self.last))
        return range(first, last + 1)

    def __str__(self) -> str:
        if self.first < 0:
            return f"last {-self.first}"
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Rule(Struct, frozen=True):
    """One statement of a recipe: which units, and what becomes of them."""

    take: str | None = None
    """The parent that units are taken whole from; None for a mix."""
    mix: dict[str, float | Gradient] | None = None
    """Shares as written; the base may be left out."""
    normalize: bool | None = None
    """True: shares are divided by their sum. False: they are used as written, whatever they sum to."""
    delta: float | None = None
    """A unit is mixed where the values of some parent differ from the base's by more than this (RMS); elsewhere it is the
    base's. None: every unit is mixed."""
    components: tuple[Component, ...] | None = None
    layers: tuple[Span, ...] | None = None
    experts: tuple[Span, ...] | None = None
    tensors: tuple[str, ...] | None = None
    """Globs over the names of units."""
    mtp: bool | None = None


class Output(Struct, frozen=True):
    """What the child's files look like; None means as the base has it."""

    dtype: Literal[
        "keep", "bf16", "f16", "f32", "fp8-block", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k",
        "q6_k", "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_s", "iq1_m", "tq1_0", "tq2_0",
        "mxfp4",
    ] = "keep"  # fmt: skip
    shards: Literal["base", "by-rule"] = "base"
    split_max_size: int | None = None
    """GGUF: bytes of tensors in one file at most; None keeps the base's files."""
    tokenizer: str | None = None
    chat_template: str | None = None


class Recipe(Struct, frozen=True):
    """What the user wants."""

    parents: dict[str, str | None]
    """Where each parent lies, None if the command line says."""
    base: str
    rules: tuple[Rule, ...] = ()
    output: Output = Output()


# ------------------------------------------------------------------------------------------------ plan

Kind = Literal["copy", "convert", "mix"]
"""copy: one parent's bytes. convert: one parent, decoded and encoded. mix: a weighted sum, encoded."""


class Input(Struct, frozen=True, gc=False):
    """One parent's part in a row."""

    parent: str
    share: float
    """lambda; 1 for a unit that is taken whole."""
    storage: str
    tensors: tuple[Tensor, ...]
    arrangement: Arrangement | None = None


class Importance(Struct, frozen=True, gc=False):
    """How much each column of a unit matters when it is encoded: where that stands in an importance matrix file."""

    rows: int
    """Matrices that the unit's rows are cut into, each with a line of its own."""
    sums: int
    """Where the sums of squares begin: rows x columns, float32."""
    counts: int
    """Where begin how many activations each line is the sum of: rows, float32."""


class ImatrixFile(Struct, frozen=True):
    """An importance matrix file that quants are encoded by."""

    root: str
    name: str
    nbytes: int
    mtime_ns: int
    digest: str
    """xxh3-128 of the file."""
    entries: dict[str, tuple[Importance, int]]
    """By tensor, with the number of columns."""
    datasets: tuple[str, ...]
    chunk_count: int


class Row(Struct, frozen=True, gc=False):
    """Every decision about one unit of the child."""

    unit: str
    role: Role
    rule: int | None
    """Which rule took it, counted from 0; None if the base did."""
    kind: Kind
    inputs: tuple[Input, ...]
    """Base first, then as the rule names them; parents with a share of 0 are not here."""
    storage: str
    """How the child stores it."""
    outputs: tuple[Tensor, ...]
    """Where its tensors go: files and offsets of the child."""
    if_equal: Literal["copy", "convert"] | None = None
    """What a mix comes down to if its parents turn out to be byte-equal; None if that can't be or would change values."""
    importance: Importance | None = None
    """What its quants are encoded by, besides its values."""

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(map(_NBYTES, self.outputs))


class HeaderPart(Struct, frozen=True):
    """Some bytes of a header: a range of a parent's, so that a plan holds no vocabulary, or new ones."""

    nbytes: int
    parent: str | None = None
    shard: str | None = None
    start: int = 0
    """With `parent` and `shard`: where the range begins."""
    data: bytes = b""
    """Otherwise: the bytes."""


class Header(Struct, frozen=True, omit_defaults=True):
    """The bytes before the first weight of an output file: a parent's own, or new ones."""

    file: str
    nbytes: int
    parent: str | None = None
    shard: str | None = None
    """With `parent`: the file whose first `nbytes` are taken."""
    text: str | None = None
    """Otherwise, of safetensors: the JSON text with its padding, without the length field."""
    parts: tuple[HeaderPart, ...] = ()
    """Otherwise, of GGUF: what follows each other."""


class OutputShard(Struct, frozen=True):
    """One weight file of the child."""

    name: str
    nbytes: int
    header: Header


class FileRow(Struct, frozen=True):
    """One file of the child that holds no weights: a parent's bytes, or a new text."""

    name: str
    nbytes: int
    parent: str | None = None
    source: str | None = None
    """With `parent`: the name of the file there."""
    text: str | None = None
    edit: str | None = None
    """What was changed, in words; None for a plain copy."""


class Amount(Struct, frozen=True):
    """Some units of the child, counted."""

    units: int
    tensors: int
    nbytes: int
    """As the child stores them."""


class DeltaSummary(Struct, frozen=True):
    """What of a rule with a delta is mixed, and what is not."""

    delta: float
    mixed: Amount
    """What a parent that has a share differs in by more."""
    left: Amount
    """What stays the base's."""


class RuleSummary(Struct, frozen=True):
    """What one rule took."""

    rule: int | None
    says: str
    units: int
    tensors: int
    nbytes: int
    """As the child stores them."""
    mtp_tensors: int
    mtp_nbytes: int
    kinds: dict[str, int]
    """Units for each kind of row."""
    delta: DeltaSummary | None = None
    """What the rule's delta makes of them."""


class Plan(Struct, frozen=True):
    """Every decision, and nothing read yet but headers."""

    recipe: Recipe
    parents: dict[str, Checkpoint]
    family: str
    rows: tuple[Row, ...]
    """In the order of the child's files."""
    shards: tuple[OutputShard, ...]
    files: tuple[FileRow, ...]
    """In the order in which they are written: index and config last."""
    segments: tuple[tuple[int, int], ...]
    """Rows of each job, from and to."""
    summaries: tuple[RuleSummary, ...]
    reads: dict[str, int]
    """Weight bytes read from each parent."""
    notes: tuple[str, ...]
    """What a careful user wants to know, and what is no reason to refuse."""
    digest: str
    """xxh3-128 over everything that decides the child's bytes; not over where parents lie."""
    imatrix: ImatrixFile | None = None
    """What quants are encoded by."""

    @property
    def roots(self) -> dict[str, str]:
        """Where each parent lies, and the importance matrix, if there is one."""
        more = {} if self.imatrix is None else {IMATRIX: self.imatrix.root}
        return {name: checkpoint.root for name, checkpoint in self.parents.items()} | more

    @property
    def signatures(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Size and mtime_ns of every file of these."""
        matrix = self.imatrix
        more = {} if matrix is None else {IMATRIX: {matrix.name: (matrix.nbytes, matrix.mtime_ns)}}
        return {name: checkpoint.signatures for name, checkpoint in self.parents.items()} | more

    @property
    def output_nbytes(self) -> int:
        """Bytes of all files of the child but the manifest."""
        return sum(s.nbytes for s in self.shards) + sum(f.nbytes for f in self.files)


class Job(Struct, frozen=True):
    """What one worker does: paths, byte ranges and numbers, no open handles."""

    id: int
    roots: dict[str, str]
    """Where each parent lies."""
    signatures: dict[str, dict[str, tuple[int, int]]]
    """Size and mtime_ns of each parent's shards that are read, so that a changed file is noticed."""
    output: str
    sizes: dict[str, int]
    """Full sizes of the output files that are touched."""
    headers: tuple[Header, ...]
    rows: tuple[Row, ...]
    linked: tuple[str, ...] = ()
    """Output files that are hard links to a parent's: digested, never written."""
    allow_nonfinite: bool = False
    sha256: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(h.nbytes for h in self.headers) + sum(r.nbytes for r in self.rows)

    def ranges(self) -> Iterator[tuple[str, str, int, int]]:
        """(name, file, start, bytes) of everything that is written; a header's name is its file's."""
        for header in self.headers:
            yield header.file, header.file, 0, header.nbytes
        for row in self.rows:
            for tensor in row.outputs:
                yield tensor.name, tensor.file, tensor.start, tensor.nbytes


# --------------------------------------------------------------------------------- receipts, manifests

Outcome = Literal["copied", "converted", "mixed", "equal"]
"""`equal`: the parents of a mix had the same bytes, so they were copied or converted, not mixed."""


class Made(Struct, frozen=True, omit_defaults=True):
    """What became of one unit."""

    unit: str
    outcome: Outcome
    digests: dict[str, str]
    """xxh3-128 of each of its stored tensors."""
    sha256: dict[str, str] | None = None
    rms_error: float | None = None
    """RMS rounding error relative to the RMS of the float32 values; None where nothing was rounded."""
    nonfinite: int = 0
    """Values that were NaN or infinite; always 0 unless they were allowed."""


class Receipt(Struct, frozen=True):
    """What one job did."""

    job: int
    nbytes: int
    headers: dict[str, str]
    """xxh3-128 of each file's header that was written."""
    made: tuple[Made, ...]


class ParentRecord(Struct, frozen=True):
    """A parent, by what its headers say."""

    shards: dict[str, tuple[int, str]]
    """Bytes and header digest of each weight file."""
    config: str
    """xxh3-128 of the parsed config."""


class WeightFile(Struct, frozen=True, omit_defaults=True):
    """One weight file of the child; its weights stand under the units."""

    nbytes: int
    header_nbytes: int
    header: str
    """xxh3-128 of the header."""
    sha256: str | None = None


class OtherFile(Struct, frozen=True, omit_defaults=True):
    """One other file of the child."""

    nbytes: int
    digest: str
    sha256: str | None = None


class MadeRow(Struct, frozen=True, omit_defaults=True):
    """One unit of the child: who it is from, and what its bytes are."""

    unit: str
    rule: int | None
    parents: dict[str, float]
    """Parents and shares."""
    outcome: Outcome
    tensors: dict[str, str]
    """xxh3-128 of each stored tensor."""
    sha256: dict[str, str] | None = None
    rms_error: float | None = None
    nonfinite: int = 0


class Manifest(Struct, frozen=True, kw_only=True):
    """All receipts with recipe, parents and plan; holds no times, hosts or paths."""

    format: int
    chimerakit: str
    """The version that wrote it."""
    numerics: int
    """The version of the number rules."""
    recipe: dict[str, Any]
    """In the recipe language."""
    plan: str
    family: str
    parents: dict[str, ParentRecord]
    allow_nonfinite: bool = False
    imatrix: str | UnsetType = UNSET
    """xxh3-128 of the importance matrix file that quants were encoded by."""
    weights: dict[str, WeightFile]
    files: dict[str, OtherFile]
    units: tuple[MadeRow, ...]


# -------------------------------------------------------------------------------------------- findings


class Finding(Struct, frozen=True):
    """One checked statement with its evidence."""

    ok: bool
    subject: str
    """What it is about: a file, a tensor, a unit."""
    says: str
    evidence: dict[str, Any] = {}


class Findings(Struct, frozen=True):
    """The outcome of a check."""

    subject: str
    failed: tuple[Finding, ...]
    """Every statement that does not hold."""
    passed: dict[str, int]
    """How many statements of each kind hold."""
    nbytes: int
    """Weight bytes that were read."""

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.failed
