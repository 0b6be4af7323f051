"""`make bench`: one table of ratios, measured in turn in one run on this machine. What each row means: README.md here.

A section is a function that yields rows; to add a row, write one (most are ten lines) and put it into SECTIONS.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks import scale
from benchmarks.report import Row, at_least, at_most, machine, markdown, say_row, write_results
from benchmarks.timing import (
    Command,
    FailedError,
    Figure,
    Pairs,
    Sample,
    alternate,
    cpu,
    middle,
    peak,
    ratio,
    repeat,
    run,
    wall,
)

ROOT = Path(__file__).parent.parent
PEER = ROOT / "build" / "mergekit" / "bin" / "python"
SHM = Path("/dev/shm")
R1T = ROOT / "recipes" / "deepseek-r1t.yaml"
RULES = {1.0: ("--take", "r1:routed_experts"), 0.75: ("--mix", "r1:routed_experts=0.75")}
KERNEL_TARGETS = {"BF16 mix": 0.95, "FP8 mix": 0.3}
"""Least ratios to the memory stream."""
WRONG, FAILED = "NOT RIGHT", "FAILED"


class Bench(NamedTuple):
    """What a section is given."""

    work: Path
    """A folder on the disk that is measured."""
    pairs: int
    """Runs in turn that count."""
    peer_pairs: int
    """The same where the other takes a minute."""
    scale: float
    """1 but for trying out: parents shrink with its square."""
    is_quick: bool

    @property
    def log(self) -> Path:
        return self.work / "log"

    @property
    def is_trial(self) -> bool:
        """Whether only the harness is tried, and figures mean nothing."""
        return self.scale < 0.5

    def check(self, child: Path, parents: Path, share: float) -> str:
        """What is right and wrong with a child of ours."""
        is_right, said = self.look_at(child, parents, share)
        return said if is_right else f"{WRONG}: {said}"

    def look_at(self, child: Path, parents: Path, share: float) -> tuple[bool, str]:
        """Whether anybody's child is right, and in words."""
        words = ("benchmarks.check", child, parents / "v3", parents / "r1", share)
        try:
            return True, run(Command([sys.executable, "-m", *map(str, words)]), self.log).log.strip()
        except FailedError:
            return False, self.log.read_text().strip()


def chimerakit(*words: object) -> list[str]:
    return [str(Path(sys.executable).parent / "chimerakit"), *map(str, words)]


def parents_of(folder: Path) -> list[str]:
    return [f"--parent=v3={folder / 'v3'}", f"--parent=r1={folder / 'r1'}"]


def merge(folder: Path, share: float, child: Path) -> Command:
    """Our merge of two parents' routed experts."""
    argv = chimerakit("merge", "-o", child, "--base=v3", *RULES[share], *parents_of(folder), "--quiet")
    return Command(argv, output=child, reads=(folder / "v3", folder / "r1"), memory=nbytes_of(folder / "v3"))


def copy(folder: Path, target: Path) -> Command:
    """cp of one parent, and a sync: the least that anybody could do to have a child on the disk."""
    script = 'cp -r --reflink=never "$0" "$1" && sync -f "$1"'
    memory = nbytes_of(folder / "v3")
    return Command(["sh", "-c", script, folder / "v3", target], output=target, reads=(folder / "v3",), memory=memory)


def write_directly(folder: Path, target: Path) -> Command:
    """As many bytes as one parent has, past the page cache out of memory: what the disk can take."""
    return Command(
        [sys.executable, "-m", "benchmarks.direct", "write", target, str(nbytes_of(folder / "v3"))], output=target
    )


def nbytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@contextmanager
def dense(bench: Bench, kind: str) -> Iterator[Path]:
    """Dense parents on the disk, gone afterwards."""
    with made(bench, kind, "benchmarks.parents", kind, "--scale", str(bench.scale)) as folder:
        yield folder


@contextmanager
def made(bench: Bench, name: str, module: str, *words: str) -> Iterator[Path]:
    folder = bench.work / name
    run(Command([sys.executable, "-m", module, folder, *words]), bench.log)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------ on the disk


def copy_merge(bench: Bench) -> Iterator[Row]:
    """The R1T recipe on BF16 parents against cp + sync, and its proof against an allclose loop."""
    with dense(bench, "bf16") as parents:
        child, copied = bench.work / "child", bench.work / "copied"
        roof = alternate(write_directly(parents, child), copy(parents, copied), bench.pairs, bench.log)
        pairs = alternate(merge(parents, 1.0, child), copy(parents, copied), bench.pairs, bench.log)
        shutil.rmtree(copied)
        said = bench.check(child, parents, 1.0)
        yield Row("disk alone, as many bytes: wall / (cp + sync)", ratio(roof, wall), note=medians(roof))
        name = "copy-merge, disk"
        yield Row(f"{name}: wall / (cp + sync)", ratio(pairs, wall), "x", at_most(0.65), f"{medians(pairs)}; {said}")
        yield Row(f"{name}: CPU / CPU", ratio(pairs, cpu), "x", at_most(0.7))
        yield Row(f"{name}: peak memory", middle([ours for ours, _ in pairs], peak), "MB", at_most(130))
        yield from proof(bench, parents, child)


def zoo(bench: Bench) -> Iterator[Row]:
    """Nine children that mix a tenth of the bytes, against one of them merged alone; and what they take on the disk."""
    with dense(bench, "bf16") as parents:
        recipes = {count: bench.work / f"{count}.yaml" for count in (1, 9)}
        shares = [round(n / 10, 1) for n in range(1, 10)]
        for count, file in recipes.items():
            share = f"{{sweep: {shares}}}" if count == 9 else "0.5"
            rule = f"{{mix: {{r1: {share}}}, components: routed_experts, experts: 0-3}}"
            file.write_text(f"parents: {{v3: , r1: }}\nbase: v3\nrules: [{rule}]\noutput: {{shards: by-rule}}\n")
        reads, memory = (parents / "v3", parents / "r1"), 3 * nbytes_of(parents / "v3")
        nine, alone = bench.work / "nine", bench.work / "alone"
        many = chimerakit("sweep", recipes[9], "-o", nine, *parents_of(parents), "--quiet")
        one_child = chimerakit("merge", recipes[1], "-o", alone, *parents_of(parents), "--quiet")
        pairs = alternate(
            Command(many, output=nine, reads=reads, memory=memory),
            Command(one_child, output=alone, reads=reads, memory=memory),
            bench.pairs,
            bench.log,
        )
        plan = json.loads(run(Command(chimerakit("plan", recipes[9], *parents_of(parents), "--json")), bench.log).log)
        same = run(Command(["cmp", *map(str, weights_of(nine / "children" / "r1-0.5", alone))]), bench.log).log
        files = {file.stat().st_ino: file.stat().st_size for file in (nine / "children").rglob("*.safetensors")}
        disk, new = plan["disk"], sum(files.values())
        stated = 9 * disk["selected_of_a_child"] + disk["unselected_once"]
        for folder in (nine, alone):
            shutil.rmtree(folder)
    selected = disk["selected_of_a_child"] / (disk["selected_of_a_child"] + disk["unselected_once"])
    note = f"{medians(pairs)}; {selected:.0%} of a child selected; a shard compared: {same or 'equal'}"
    yield Row("nine children / one: wall", ratio(pairs, wall), "x", at_most(3), note)
    name = "nine children: new bytes / (9 x selected + unselected)"
    yield Row(name, one(new / stated), "x", at_most(1.05), f"{new / 1e9:.2f} GB")


def weights_of(*children: Path) -> list[Path]:
    """The last weight file of each child, in which there is what rules take."""
    return [max(child.glob("*.safetensors")) for child in children]


def many_machines(bench: Bench) -> Iterator[Row]:
    """The same merge by Ray on this machine and by threads: what handing jobs out costs, Ray having started."""
    for kind, flag, name in (
        ("bf16", "--take=r1:routed_experts", "copy-merge"),
        ("fp8", "--mix=r1:routed_experts=0.75", "FP8 mix"),
    ):
        with dense(bench, kind) as parents:
            child = bench.work / "child"
            words = ("benchmarks.runners", parents, child, bench.pairs, flag)
            said = run(
                Command([sys.executable, "-m", *map(str, words)], memory=nbytes_of(parents / "v3")), bench.log
            ).log
            found = json.loads(said.splitlines()[-1])
            shutil.rmtree(child)
        ratios = [ray / threads for ray, threads in zip(found["ray"], found["threads"], strict=True)]
        middles = [statistics.median(found[who]) for who in ("ray", "threads")]
        figure = Figure(statistics.median(ratios), min(ratios), max(ratios))
        note = f"{middles[0]:.1f} s against {middles[1]:.1f} s"
        yield Row(f"{name}, disk, by Ray / by threads: wall", figure, "x", at_most(1.15), note)


def scaling(bench: Bench) -> Iterator[Row]:
    """What the parts of a merge cost, and whole runs beside the disk that they write to: scale.py puts the one together to give
    the other."""
    family = ROOT / "examples" / "tiny-family"
    with dense(bench, "bf16") as plain, dense(bench, "fp8") as blocks:
        child, other = bench.work / "child", bench.work / "written"
        parts = json.loads(run(Command([sys.executable, "-m", "benchmarks.parts", plain, blocks]), bench.log).log)
        parts[scale.JOB] = json.loads(
            run(Command([sys.executable, "-m", "benchmarks.runners", "jobs", "2000"]), bench.log).log.splitlines()[-1]
        )
        tiny = [f"--parent={n}={family / f'{n}-like'}" for n in ("v3", "r1")]
        for name, share in ((scale.START, 1.0), (scale.START_MIXING, 0.75)):
            command = Command(
                chimerakit("merge", "-o", child, "--base=v3", *RULES[share], *tiny, "--quiet"), output=child
            )
            parts[name] = middle(repeat(command, bench.pairs, bench.log), wall).value
        reading = Command(
            [sys.executable, "-m", "benchmarks.direct", "read", plain / "v3"], reads=(plain / "v3",), is_cold=True
        )
        parts[scale.DISK_READ] = (
            nbytes_of(plain / "v3") / 1e9 / middle(repeat(reading, bench.pairs, bench.log), wall).value
        )
        rows = []
        for name, command, given in _whole_runs(bench, plain, blocks, child):
            pairs = alternate(command, write_directly(plain, other), bench.pairs, bench.log)
            written = nbytes_of(plain / "v3") / 1e9 / middle([roof for _, roof in pairs], wall).value
            note = json.dumps(given | {"write": round(written, 3)})
            rows.append(Row(f"run: {name}", middle([ours for ours, _ in pairs], wall), "s", note=note))
            parts[scale.DISK_WRITE] = written
            shutil.rmtree(other)
            if name != "copy-merge":  # which is proven next
                shutil.rmtree(child, ignore_errors=True)
    yield from (Row(f"part: {name}", one(value), "") for name, value in parts.items())
    yield from rows


def _whole_runs(
    bench: Bench, plain: Path, blocks: Path, child: Path
) -> Iterator[tuple[str, Command, dict[str, object]]]:
    """Commands, and what the model is told of each."""
    gb = nbytes_of(plain / "v3") / 1e9
    yield "copy-merge", merge(plain, 1.0, child), {"work": "copied", "gb": gb}
    reads = (child, plain / "v3", plain / "r1")
    verify = Command(chimerakit("verify", child, *parents_of(plain), "--quiet"), reads=reads)
    yield "verify --parent of a copied child", verify, {"work": "proven", "gb": gb}
    yield "BF16 mix", merge(plain, 0.75, child), {"work": "mixed", "kind": scale.BF16, **_sizes(bench, plain)}
    yield "FP8 mix", merge(blocks, 0.75, child), {"work": "mixed", "kind": scale.FP8, **_sizes(bench, blocks)}
    cold = merge(plain, 1.0, child)._replace(is_cold=True)
    yield (
        "copy-merge, parents not in the page cache",
        cold,
        {"work": "copied", "gb": gb, "read": scale.READ_DISK, "cold": True},
    )
    rule = "{mix: {r1: {sweep: [0.1, 0.3, 0.5, 0.7, 0.9]}}, components: routed_experts, experts: 0-3}"
    recipe = bench.work / "five.yaml"
    recipe.write_text(f"parents: {{v3: , r1: }}\nbase: v3\nrules: [{rule}]\n")
    disk = json.loads(run(Command(chimerakit("plan", recipe, *parents_of(plain), "--json")), bench.log).log)["disk"]
    sizes = {"selected": disk["selected_of_a_child"] / 1e9, "unselected": disk["unselected_once"] / 1e9}
    sweep = Command(
        chimerakit("sweep", recipe, "-o", child, *parents_of(plain), "--quiet"), output=child, reads=reads[1:]
    )
    yield "sweep of five children", sweep, {"work": "swept", "count": 5, "kind": scale.BF16, **sizes}


def _sizes(bench: Bench, parents: Path) -> dict[str, object]:
    """GB of a child, and of it what the mixing rule takes."""
    words = chimerakit("plan", "--base=v3", *RULES[0.75], *parents_of(parents), "--json")
    rules = json.loads(run(Command(words), bench.log).log)["rules"]
    taken = sum(rule["nbytes"] for rule in rules if rule["rule"] is not None)
    return {"gb": sum(rule["nbytes"] for rule in rules) / 1e9, "mixed_gb": taken / 1e9}


def gguf_pick(bench: Bench) -> Iterator[Row]:
    """The R1T recipe on GGUF parents with stacked experts in Q4_K, against cp + sync."""
    words = ("--scale", str(bench.scale))
    with made(bench, "gguf", "benchmarks.gguf_parents", *words) as parents:
        child, copied = bench.work / "child", bench.work / "copied"
        pairs = alternate(merge(parents, 1.0, child), copy(parents, copied), bench.pairs, bench.log)
        shutil.rmtree(copied)
        run(Command(chimerakit("verify", child, *parents_of(parents), "--quiet")), bench.log)
        shutil.rmtree(child)
    name = "GGUF pick, disk"
    said = f"{medians(pairs)}; proven against its parents"
    yield Row(f"{name}: wall / (cp + sync)", ratio(pairs, wall), "x", at_most(1.11), said)
    yield Row(f"{name}: CPU / CPU", ratio(pairs, cpu))
    yield Row(f"{name}: peak memory", middle([ours for ours, _ in pairs], peak), "MB", at_most(130))


def proof(bench: Bench, parents: Path, child: Path) -> Iterator[Row]:
    """verify --parent of the child against the loop that people wrote."""
    reads = (child, parents / "v3", parents / "r1")
    ours = Command(chimerakit("verify", child, *parents_of(parents), "--quiet"), reads=reads)
    loop = Command([sys.executable, "-m", "benchmarks.allclose", child, parents / "v3", parents / "r1"], reads=reads)
    pairs = alternate(ours, loop, bench.peer_pairs, bench.log, warm_up=not bench.is_quick)
    said = f"{medians(pairs)}; both: nothing wrong (the loop: {pairs[-1][1].log.strip()})"
    yield Row("allclose loop / verify --parent, warm: wall", ratio(pairs, wall, inverse=True), "x", at_least(10), said)
    yield Row("verify --parent: peak memory", middle([one for one, _ in pairs], peak), "MB")
    shutil.rmtree(child)


def fp8_mix(bench: Bench) -> Iterator[Row]:
    """Routed experts mixed at 0.75, FP8 to FP8, against cp + sync."""
    with dense(bench, "fp8") as parents:
        child, copied = bench.work / "child", bench.work / "copied"
        pairs = alternate(merge(parents, 0.75, child), copy(parents, copied), bench.pairs, bench.log)
        shutil.rmtree(copied)
        said = bench.check(child, parents, 0.75)
        shutil.rmtree(child)
    name = "FP8 0.75 mix, disk"
    yield Row(f"{name}: wall / (cp + sync)", ratio(pairs, wall), "x", at_most(0.6), f"{medians(pairs)}; {said}")
    yield Row(f"{name}: CPU / CPU", ratio(pairs, cpu))
    yield Row(f"{name}: peak memory", middle([ours for ours, _ in pairs], peak), "MB", at_most(450))


def explaining(bench: Bench) -> Iterator[Row]:
    """Reading two merges back out of their FP8 weights, against reading child and parents once past the page cache."""
    with dense(bench, "fp8") as parents:
        for share, name in ((1.0, "R1T"), (0.75, "0.75 mix")):
            yield from _explain(bench, parents, share, name)
    with made(bench, "counts", "benchmarks.counts", *([] if bench.is_trial else ["--large"])) as parents:
        yield from _explain_counts(bench, parents)


def _explain_counts(bench: Bench, parents: Path) -> Iterator[Row]:
    """DeepSeek-V3's names and counts: what units cost, however large they are."""
    child = bench.work / "child"
    run(merge(parents, 0.75, child), bench.log)
    folders = child, parents / "v3", parents / "r1"
    ours = Command(chimerakit("explain", child, *parents_of(parents), "--quiet"), reads=folders, is_cold=True)
    sample = run(ours, bench.log)
    shutil.rmtree(child)
    what = f"explain 0.75 mix of 46,183 small units, FP8, {sum(map(nbytes_of, folders[1:])) / 1e9 * 1.5:.1f} GB"
    yield Row(f"{what}: wall", one(sample.wall), "s", None, say_recipe(sample.log, 0.75))
    yield Row(f"{what}: peak memory", one(sample.peak), "MB", at_most(500))


def _explain(bench: Bench, parents: Path, share: float, name: str) -> Iterator[Row]:
    child = bench.work / "child"
    run(merge(parents, share, child), bench.log)
    folders = child, parents / "v3", parents / "r1"
    ours = Command(chimerakit("explain", child, *parents_of(parents), "--quiet"), reads=folders, is_cold=True)
    read = Command([sys.executable, "-m", "benchmarks.direct", "read", *folders])
    found = alternate(ours, read, bench.pairs, bench.log, warm_up=not bench.is_quick)
    nbytes = sum(map(nbytes_of, folders))
    rate = nbytes / middle([one for one, _ in found], wall).value
    hours = f"{rate / 1e9:.2f} GB/s, at which 2.07 TB take {2.07e12 / rate / 3600:.1f} hours"
    said = f"{medians(found)}; {hours}; {say_recipe(found[-1][0].log, share)}"
    what = f"explain {name}, FP8, {nbytes / 1e9:.1f} GB, none in the page cache"
    yield Row(f"{what}: wall / O_DIRECT reading", ratio(found, wall), "x", at_most(1.3), said)
    yield Row(f"{what}: peak memory", middle([one for one, _ in found], peak), "MB", at_most(500))
    shutil.rmtree(child)


def say_recipe(explained: str, share: float) -> str:
    """Whether the recipe was found."""
    return "its recipe found" if read_share(explained) == share else f"{WRONG}: {explained[:200]}"


def read_share(explained: str) -> float | None:
    """The share of r1 in the routed experts that an explanation's recipe says, if that is all that it says."""
    rules = json.loads(explained)["recipe"]["rules"]
    if len(rules) != 1 or rules[0].get("components") != "routed_experts":
        return None
    return 1.0 if rules[0].get("take") == "r1" else float(rules[0].get("mix", {}).get("r1", 0))


# ----------------------------------------------------------------------- in memory, against mergekit


def against_mergekit(bench: Bench) -> Iterator[Row]:
    """The same two merges on tmpfs, by mergekit 0.1.5 with raw names; and what it does without."""
    if not PEER.exists():
        yield Row("against mergekit", None, note=f"not run: {PEER.relative_to(ROOT)} is missing; `make bench` makes it")
        return
    needed = 16e9 * bench.scale**2
    if not SHM.is_dir() or shutil.disk_usage(SHM).free < needed or available_memory() < needed:
        yield Row("against mergekit", None, note=f"not run: needs {needed / 1e9:.0f} GB of free memory as {SHM}")
        return
    with tempfile.TemporaryDirectory(prefix="chimerakit-bench-", dir=SHM) as name:
        fast = bench._replace(work=Path(name))
        with dense(fast, "bf16") as parents:
            yield from _against(fast, parents, 1.0, "copy-merge", wall_target=15, memory_target=20)
            yield from _against(fast, parents, 0.75, "0.75 mix", wall_target=6)
            plain, _ = mergekit(parents, 1.0, fast.work / "theirs")
            sample = run(plain, fast.log)
            _, said = fast.look_at(fast.work / "theirs", parents, 1.0)
            yield Row("mergekit 0.1.5 without the work-around", None, note=f"{sample.wall:.0f} s, exit code 0; {said}")


def _against(
    bench: Bench, parents: Path, share: float, name: str, *, wall_target: float, memory_target: float | None = None
) -> Iterator[Row]:
    ours = bench.work / "ours"
    _, theirs = mergekit(parents, share, bench.work / "theirs")
    mine = merge(parents, share, ours)
    pairs: list[tuple[Sample, Sample]] = []
    notes: list[str] = []
    for number in range(bench.peer_pairs + (not bench.is_quick)):  # not alternate(): two children would not fit
        sample = run(mine, bench.log)
        if number == 0:
            notes.append(bench.check(ours, parents, share))
        shutil.rmtree(ours)
        pairs.append((sample, run(theirs, bench.log)))
        if number == 0:
            notes.append("mergekit: " + bench.look_at(bench.work / "theirs", parents, share)[1])
        shutil.rmtree(bench.work / "theirs")
    pairs = pairs[not bench.is_quick :]
    speed, memory = ratio(pairs, wall, inverse=True), ratio(pairs, peak, inverse=True)
    note = f"{medians(pairs)}; {'; '.join(notes)}"
    yield Row(f"mergekit / {name}, tmpfs: wall", speed, "x", at_least(wall_target), note)
    target = None if memory_target is None else at_least(memory_target)
    note = " against ".join(f"{middle([p[i] for p in pairs], peak).value:.0f} MB" for i in (0, 1))
    yield Row(f"mergekit / {name}, tmpfs: peak memory", memory, "x", target, note)


def mergekit(folder: Path, share: float, output: Path) -> tuple[Command, Command]:
    """mergekit's merge of two parents' routed experts, as it comes and with raw names."""
    models = [
        {"model": str(folder / parent), "parameters": {"weight": [{"filter": ".mlp.experts.", "value": own}, rest]}}
        for parent, own, rest in (("v3", 1 - share, {"value": 1.0}), ("r1", share, {"value": 0.0}))
    ]
    config = folder / f"mergekit-{share}.yaml"
    content = {"merge_method": "linear", "dtype": "bfloat16", "parameters": {"normalize": False}, "models": models}
    config.write_text(json.dumps(content))  # JSON is YAML
    words = (config, output, "--no-copy-tokenizer", "--quiet")
    reads, env = (folder / "v3", folder / "r1"), {"HF_HUB_OFFLINE": "1"}
    # -P: or a kernels.py beside the script would hide a package of that name from it
    memory = 2 * nbytes_of(folder / "v3")  # it holds more than a child while it writes one
    plain = Command([PEER, "-P", ROOT / "benchmarks" / "peer.py", *words], output, reads, env, memory)
    return plain, plain._replace(argv=[*plain.argv, "--raw-names"])


# --------------------------------------------------------------------------------------- other rows


def kernels(bench: Bench) -> Iterator[Row]:
    """The rows of kernels.py, in a process of their own."""
    script = (
        "import json, benchmarks.kernels as k\n"
        f"rows = k.measure(quick={bench.is_quick})\n"
        "print(json.dumps([[r.what, r.figure, r.unit, r.ratio, r.against] for r in rows]))"
    )
    command = Command([sys.executable, "-c", script])
    for what, figure, unit, share, against in json.loads(run(command, bench.log).log.splitlines()[-1]):
        if what == against or share is None:
            yield Row(f"kernel: {what}", one(figure), unit)
        else:
            target = next((at_least(limit) for said, limit in KERNEL_TARGETS.items() if said in what), None)
            yield Row(f"kernel: {what} / {against}", one(share), "x", target, f"{figure:.2f} {unit}")


def full_size(bench: Bench) -> Iterator[Row]:
    """Plan, copy-merge and proof of DeepSeek-V3's true size, weights as holes."""
    folder, child = bench.work / "full", bench.work / "child"
    size, few = "full-size", []
    if bench.is_trial:
        size, few = "NOT full-size", ["--layers", "5", "--experts", "4"]
    run(Command([sys.executable, ROOT / "examples" / "full-size" / "make.py", folder, *few]), bench.log)
    try:
        said = parents_of(folder)
        plans = repeat(Command(chimerakit("plan", R1T, *said, "-o", child)), bench.pairs, bench.log)
        yield Row(f"plan of both {size} parents, a cold process: wall", middle(plans, wall), "s", at_most(1.5))
        yield Row(f"plan of both {size} parents: peak memory", middle(plans, peak), "MB", at_most(250))
        if not has_holes(next((folder / "v3").glob("*.safetensors"))):
            yield Row(f"{size} copy-merge", None, note="not run: this file system does not tell of holes")
            return
        merged = run(Command(chimerakit("merge", R1T, *said, "-o", child, "--quiet"), output=child), bench.log)
        sizes = [file.stat() for file in child.rglob("*")]
        note = (
            f"peak memory {merged.peak:.0f} MB; child of {sum(s.st_size for s in sizes) / 1e9:.1f} GB takes "
            f"{sum(512 * s.st_blocks for s in sizes) / 1e6:.0f} MB of disk"
        )
        yield Row(f"{size} copy-merge, weights as holes: wall", one(merged.wall), "s", None, note)
        for name, words in (("verify", ()), ("verify --parent", said)):
            proven = run(Command(chimerakit("verify", child, *words, "--quiet")), bench.log)
            note = f"peak memory {proven.peak:.0f} MB"
            yield Row(f"{size} {name}, weights as holes: wall", one(proven.wall), "s", None, note)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(child, ignore_errors=True)


def start_up(bench: Bench) -> Iterator[Row]:
    """How long a command takes that does nothing."""
    samples = repeat(Command(chimerakit("--help")), 4 * bench.pairs, bench.log)
    yield Row("chimerakit --help: wall", middle(samples, wall), "s", at_most(0.3))


def medians(pairs: Pairs) -> str:
    ours, theirs = (middle([pair[i] for pair in pairs], wall).value for i in (0, 1))
    return f"{ours:.1f} s against {theirs:.1f} s"


def one(value: float) -> Figure:
    return Figure(value, value, value)


def has_holes(path: Path) -> bool:
    """Whether the file system says where a sparse file has no data."""
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < path.stat().st_size


def available_memory() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


# ---------------------------------------------------------------------------------------- the run

Section = Callable[[Bench], Iterator[Row]]
SECTIONS: dict[str, Section] = {
    "start": start_up,
    "full": full_size,
    "kernels": kernels,
    "copy": copy_merge,
    "zoo": zoo,
    "machines": many_machines,
    "scale": scaling,
    "gguf": gguf_pick,
    "fp8": fp8_mix,
    "explain": explaining,
    "mergekit": against_mergekit,
}


def measure(bench: Bench, sections: Sequence[str]) -> Iterator[Row]:
    """All rows; a section that fails says so in one."""
    for name in sections:
        try:
            yield from SECTIONS[name](bench)
        except FailedError as e:
            yield Row(name, None, note=f"{FAILED}: {e}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs: under ten minutes in place of 45")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build", help="where temporary data goes: the disk measured"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where the table goes")
    parser.add_argument("--scale", type=float, help="parents' size, which grows with its square (1; 0.7 if quick)")
    given = parser.parse_args()
    scale = given.scale or (0.7 if given.quick else 1.0)
    needed = 20e9 * scale**2
    given.work.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(given.work).free) < needed:
        sys.exit(f"{given.work} has {free / 1e9:.0f} GB free; {needed / 1e9:.0f} GB are needed: give another --work")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.work) as work:
        pairs, peer_pairs = (3, 1) if given.quick else (7, 3)
        bench = Bench(Path(work).resolve(), pairs, peer_pairs, scale, given.quick)
        rows = []
        for row in measure(bench, given.only):
            rows.append(row)
            print(f"{row.what}: {say_row(row)[2] or row.note}", file=sys.stderr, flush=True)
        facts = machine(bench.work) | {
            "parents": f"3.7 GB each{f', scaled by {scale}' * (scale != 1)}, in the page cache",
            "figures": f"medians of {pairs} runs in turn, of {peer_pairs} against mergekit and allclose; range of the runs",
        }
    name = datetime.now(UTC).strftime("%Y-%m-%d") + "-quick" * given.quick
    command = shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]])
    path = write_results(given.results, name, rows, facts, command)
    print(f"{markdown(rows)}\n{path}")
    return 1 if any(word in row.note for row in rows for word in (WRONG, FAILED)) else 0


if __name__ == "__main__":
    sys.exit(main())
