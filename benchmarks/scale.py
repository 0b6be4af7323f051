"""How long a merge takes, out of what its parts cost: bytes, the bandwidth of where they lie, CPU seconds for each GB.

    python -m benchmarks.run --only scale       measures the parts and whole runs, in one run on this machine
    python -m benchmarks.scale                  writes docs/scale.md out of that

The model is one line: a run takes its start, and then what disks, network and processors take, which overlap as well as several jobs
at a time do. `predict` says how long, and which of them takes most. It is held against whole runs in docs/scale.md, and by a test.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"

COPY, PROVE, WRITE = "copying from the page cache", "proving a copy", "writing past the page cache"
BF16, FP8 = "mixing BF16 of two parents", "mixing FP8 of two parents"
READ, READ_DISK = "reading from the page cache", "reading past the page cache"
"""Of these the difference counts, for parents that are not in the page cache, or are read once for several children."""
START, START_MIXING, JOB = "starting", "starting, with kernels", "handing a job out by Ray"
DISK_READ, DISK_WRITE = "disk, read directly", "disk, written directly"
OVERLAP = 1.5
"""How well things overlap that could go on at the same time: 1 would be not at all, infinity wholly. Chosen by the runs of docs/scale.md."""
JOB_GB = 0.268
"""GB of a job."""


class Work(NamedTuple):
    """What has to be done, in GB; all of it is at most one pass over the bytes."""

    read: float
    """From where parents lie."""
    written: float
    through: Mapping[str, float]
    """GB that go through each part that costs CPU."""
    is_mixing: bool = False
    read_alone: float = 0.0
    """What one machine has to read in the end, while the others wait."""


class Place(NamedTuple):
    """Where it is done: machines that are alike, and where parents and child lie."""

    name: str
    machines: int
    cores: int
    """Of each machine."""
    read: float
    """GB/s of all machines together; infinite for what lies in the page cache."""
    write: float
    link: float = float("inf")
    """GB/s between one machine and where the files lie, each way."""
    is_one_disk: bool = False
    """Whether reading and writing take turns."""
    is_ray: bool = False


class Forecast(NamedTuple):
    """Seconds, and what takes them."""

    seconds: float
    limit: str
    shares: dict[str, float]
    """Seconds of each thing that overlaps with the others."""


def predict(work: Work, place: Place, parts: Mapping[str, float]) -> Forecast:
    """parts: CPU seconds for each GB, and seconds of starting."""
    cpu = sum(gb * parts[part] for part, gb in work.through.items())
    reading = work.read / min(place.read, place.machines * place.link)
    writing = work.written / min(place.write, place.machines * place.link)
    shares = {"processors": cpu / (place.machines * place.cores)}
    if place.is_one_disk:
        shares["disk"] = reading + writing
    else:
        shares |= {_who(place, place.read, "reading"): reading, _who(place, place.write, "writing"): writing}
    if place.is_ray:
        shares["handing jobs out"] = work.written / JOB_GB * parts[JOB]
    limit = max(shares, key=lambda who: shares[who])
    alone = work.read_alone / min(place.read, place.link)
    together = sum(seconds**OVERLAP for seconds in shares.values()) ** (1 / OVERLAP)
    return Forecast(parts[START_MIXING if work.is_mixing else START] + together + alone, limit, shares)


def _who(place: Place, bandwidth: float, what: str) -> str:
    return f"{what}: the machines' links" if place.machines * place.link < bandwidth else f"{what}: the file system"


# --------------------------------------------------------------------------------------------- work


def copied(gb: float, *, read: str = READ) -> Work:
    """A child that is copied."""
    return Work(gb, gb, {COPY: gb, WRITE: gb, **_instead(read, gb)})


def _instead(read: str, gb: float) -> dict[str, float]:
    """Reading in another way than from the page cache."""
    return {} if read == READ else {read: gb, READ: -gb}


def mixed(gb: float, mixed_gb: float, kind: str, *, read: str = READ) -> Work:
    """A child of which some GB are mixed of two parents."""
    taken = gb + mixed_gb
    through = {COPY: gb - mixed_gb, kind: mixed_gb, WRITE: gb, **_instead(read, taken)}
    return Work(taken, gb, through, is_mixing=True)


def proven(gb: float, *, read: str = READ) -> Work:
    """`verify --parent` of a child that was copied: parents and child are read and compared."""
    return Work(2 * gb, 0, {PROVE: gb, **_instead(read, 2 * gb)})


def swept(count: int, selected: float, unselected: float, kind: str, *, read: str = READ) -> Work:
    """Children made together: what rules take for each of them, the rest once; parents are read once."""
    written, taken = count * selected + unselected, 2 * selected + unselected
    other = _instead(read, taken)
    again = {READ: other.get(READ, 0.0) - 2 * (count - 1) * selected}  # as each child alone would read its parents
    through = {COPY: unselected, kind: count * selected, WRITE: written, **other, **again}
    return Work(taken, written, through, is_mixing=True)


# --------------------------------------------------------------------------------------------- page


def results() -> tuple[str, dict[str, Any]]:
    """The newest measured parts and runs."""
    file = max((ROOT / "benchmarks" / "results").glob("*-scale.json"))
    return file.name, json.loads(file.read_text())


def parts_of(found: dict[str, Any]) -> dict[str, float]:
    """Parts by name."""
    rows = {row["what"]: row["figure"]["value"] for row in found["rows"] if row["figure"] is not None}
    return {name.removeprefix("part: "): value for name, value in rows.items() if name.startswith("part: ")}


class Run(NamedTuple):
    """A whole run that was measured, beside what the model says of it."""

    name: str
    measured: float
    forecast: Forecast

    @property
    def error(self) -> float:
        """Of the model, relative."""
        return self.forecast.seconds / self.measured - 1


def runs_of(found: dict[str, Any]) -> Iterator[Run]:
    """The measured runs; each row's note holds the GB that the model is given."""
    parts = parts_of(found)
    cores = int(found["facts"]["processor"].split(", ")[-1].split()[0])
    for row in found["rows"]:
        if row["what"].startswith("run: "):
            given = json.loads(row["note"])
            work = WORKS[given.pop("work")]
            is_cold, is_ray, write = given.pop("cold", False), given.pop("ray", False), given.pop("write")
            place = Place(
                "here",
                1,
                cores,
                parts[DISK_READ] if is_cold else float("inf"),
                write,
                is_one_disk=is_cold,
                is_ray=is_ray,
            )
            yield Run(row["what"].removeprefix("run: "), row["figure"]["value"], predict(work(**given), place, parts))


WORKS: dict[str, Any] = {"copied": copied, "mixed": mixed, "proven": proven, "swept": swept}

FULL, EXPERTS = 688.6, 657.0
"""GB of DeepSeek-V3 in FP8, and of its routed experts."""
NVME = Place("one machine, 16 cores, NVMe", 1, 16, 6.0, 4.0)
NODES = Place("8 machines, 16 cores each, parallel file system", 8, 16, 40.0, 20.0, link=10.0)


def forecasts() -> Iterator[tuple[str, Place, Work]]:
    """What people would like to know."""
    for name, scale in (("689 GB", 1.0), ("2 TB", 2000 / FULL), ("10 TB", 10000 / FULL)):
        for place in (NVME, NODES):
            yield f"R1T of {name}", place, copied(scale * FULL, read=READ_DISK)
            yield f"FP8 mix of {name}", place, mixed(scale * FULL, scale * EXPERTS, FP8, read=READ_DISK)
    for place in (NVME, NODES):
        yield "thirty children, all experts of 689 GB", place, swept(30, EXPERTS, FULL - EXPERTS, FP8, read=READ_DISK)
        tenth = EXPERTS / 10
        yield "thirty children, a tenth of 689 GB", place, swept(30, tenth, FULL - tenth, FP8, read=READ_DISK)


def say_time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def page() -> str:
    """docs/scale.md."""
    name, found = results()
    parts, facts = parts_of(found), found["facts"]
    measured = "\n".join(
        f"| {run.name} | {run.measured:.1f} s | {run.forecast.seconds:.1f} s | {run.error:+.0%} | {run.forecast.limit} |"
        for run in runs_of(found)
    )
    costs = "\n".join(
        f"| {part} | {value:.3f} | {'GB/s' if part in (DISK_READ, DISK_WRITE) else 's' if part in (START, START_MIXING, JOB) else 'CPU seconds / GB'} |"
        for part, value in parts.items()
    )
    fp8, copy = (
        sum(gb * parts[part] for part, gb in work.through.items())
        for work in (mixed(1, 1, FP8, read=READ_DISK), copied(1, read=READ_DISK))
    )
    tenth = swept(30, EXPERTS / 10, FULL - EXPERTS / 10, FP8, read=READ_DISK)
    thirty, one = swept(30, EXPERTS, FULL - EXPERTS, FP8, read=READ_DISK), mixed(FULL, EXPERTS, FP8, read=READ_DISK)
    of_tenth, of_thirty, of_mix, of_one = (
        predict(work, NVME, parts).seconds for work in (tenth, thirty, one, copied(FULL, read=READ_DISK))
    )
    ahead = []
    for what, place, work in forecasts():
        forecast = predict(work, place, parts)
        second = sorted(forecast.shares.values())[-2] / max(forecast.shares.values())
        ahead.append(
            f"| {what} | {place.name} | {work.written / 1000:.1f} TB | {say_time(forecast.seconds)} | {forecast.limit} | {second:.0%} |"
        )
    return TEMPLATE.format(
        date=facts["date"][:10],
        name=name.removesuffix(".json"),
        processor=facts["processor"],
        costs=costs,
        measured=measured,
        ahead="\n".join(ahead),
        nvme=NVME,
        nodes=NODES,
        finish=f"{say_time(FULL / NODES.link)} for 689 GB over a link of {NODES.link:g} GB/s",
        job=f"{1000 * parts[JOB]:.1f} ms",
        jobs=f"{JOB_GB / parts[JOB]:.0f}",
        fp8=fp8,
        copy=copy,
        times=fp8 / copy,
        core=1 / fp8,
        tenth=of_tenth / of_one,
        saved=1 - of_thirty / (30 * of_mix),
        overlap=OVERLAP,
        twice=2 ** (1 / OVERLAP),
    )


TEMPLATE = """# Scale

What limits a merge, and what more machines are good for. This page is written by `python -m benchmarks.scale`, out of a model in
[code](../benchmarks/scale.py) and of what was measured on one machine ({processor}), {date}
([rows](../benchmarks/results/{name}.md)).

## The model

Jobs are independent and more of them run than there are cores, so reading, computing and writing overlap, though not wholly: a job
does one after the other, and the last jobs have nothing beside them. What takes longest counts most:

    seconds = start + ((CPU seconds / cores)^p + (GB read / GB/s)^p + (GB written / GB/s)^p)^(1/p),    p = {overlap:g}

so that two things that take as long as each other take {twice:.1f} times that, neither once nor twice. The exponent is not derived: it was
chosen by the runs below, and is the one number that was. Where one disk reads and writes, it does one after the other. CPU seconds
are added up of parts, each measured alone, on one thread:

| part | measured | |
|---|---|---|
{costs}

## Is it right?

Whole runs, measured in the same hour on the same machine, beside what the model says of them. A test holds every line within 20 %.

| run | measured | model | off by | limit |
|---|---|---|---|---|
{measured}

Parents of 3.7 GB lie in the page cache, children are written to the disk, whose speed is measured between the runs.

## What to expect

Of the machines below nothing was measured but their parts: the model with the figures of a data sheet, and the CPU costs of above.
*The next* says how much of that time the second limit would take alone: near 100 % two things would have to get faster.

| what | where | written | time | limit | the next |
|---|---|---|---|---|---|
{ahead}

- *{nvme.name}*: {nvme.read:g} GB/s read and {nvme.write:g} GB/s written at the same time.
- *{nodes.name}*: {nodes.read:g} GB/s read and {nodes.write:g} GB/s written by all together, {nodes.link:g} GB/s from each machine.

What follows from it:

- **Copying is bound by where the bytes lie.** A few cores keep up with a disk. More machines help as long as the file system gives
  more in all than one machine's link carries; then they wait for it together.
- **Mixing FP8 needs processors:** {fp8:.1f} CPU seconds for each GB of a child, {times:.0f} times as much as copying, which takes
  {copy:.2f}. A core keeps up with {core:.1f} GB/s of child.
- **A reflink beats all of it.** On XFS or btrfs whoever copies shares blocks with the parents, and writes only what is mixed.
- **Thirty children** of all routed experts are 20 TB that have to be written, whoever does it. As parents are read once for all of
  them, that takes {saved:.0%} less time on one machine than thirty merges. `--keep best:3 --batch 4` bounds the disk, and reads
  parents once for every four. Where rules take a tenth, thirty children take {tenth:.1f} times as long as one copied whole.
- **Shards** (`merge --shard`) end with one machine reading the whole child (`--finish`):
  {finish}. With Ray the machines have said what they wrote.
- **Ray** takes {job} to hand a job of 268 MB out and hear of its end, on one machine that does jobs, too; that would limit a cluster
  of more than {jobs} GB/s.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
