"""Receipts as they are kept: a file for each job, in the workspace of the child's folder.

Whoever does a job, in whatever process on whatever machine, writes its receipt when its bytes are on the disk; whoever asks
what is done believes a receipt only if the bytes still are those that it tells of. So a job may run twice, and a machine may die
at any moment.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from chimerakit.errors import ChimerakitError, OutputError
from chimerakit.events import Report
from chimerakit.execute import run_job
from chimerakit.manifest import WORKSPACE
from chimerakit.output import BEGUN, MAX_BEGUN
from chimerakit.records import Job, Receipt
from chimerakit.stores.digest import digest_of, digest_range
from chimerakit.stores.local import PART, Reader, read_file
from chimerakit.stores.part import write_file_too

RECEIPTS = "receipts"
_MAX_RECEIPT = 1 << 30


class _Sealed(Struct, frozen=True):
    """A receipt as it is kept."""

    seal: str
    """xxh3-128 of the digest of plan.json and of the receipt: one that was changed, or made for something else, does not
    fit."""
    receipt: msgspec.Raw


class Receipts(Struct, frozen=True):
    """The receipts of one child."""

    folder: str
    """The child's."""
    begun: str
    """Digest of what the child was begun with."""

    def check_place(self) -> None:
        """Refuse to work in a folder in which this child was not begun, such as a machine's own of the same name."""
        path = Path(self.folder)
        try:
            is_there = digest_of(read_file(path / WORKSPACE / BEGUN, MAX_BEGUN)) == self.begun
        except (ChimerakitError, OSError):
            is_there = False
        if not is_there:
            raise OutputError(
                "is not the folder in which this child was begun",
                where=path,
                do="if several machines work on it, let it lie on a file system that all of them see under this name",
            )

    def save(self, receipt: Receipt) -> None:
        """Keep a receipt; its bytes are on the disk already."""
        text = msgspec.json.encode(receipt)
        write_file_too(self._file(receipt.job), msgspec.json.encode(_Sealed(self._seal(text), msgspec.Raw(text))))

    def has(self, job: Job) -> bool:
        """Whether there is a receipt of a job."""
        return self._file(job.id).is_file()

    def find(self, job: Job, report: Report) -> Receipt | None:
        """The receipt of a job that needs not run again: the bytes are those that it tells of."""
        try:
            kept = msgspec.json.decode(read_file(self._file(job.id), _MAX_RECEIPT), type=_Sealed)
            if kept.seal != self._seal(bytes(kept.receipt)):
                return None
            receipt = msgspec.json.decode(kept.receipt, type=Receipt)
            return receipt if self._holds(job, receipt, report) else None
        except (ChimerakitError, msgspec.DecodeError, OSError):
            return None

    def _file(self, job: int) -> Path:
        return Path(self.folder, WORKSPACE, RECEIPTS, f"{job}.json")

    def _seal(self, receipt: bytes) -> str:
        return digest_of(self.begun.encode() + receipt)

    def _holds(self, job: Job, receipt: Receipt, report: Report) -> bool:
        digests = receipt.headers | {name: d for made in receipt.made for name, d in made.digests.items()}
        for name, file, start, nbytes in job.ranges():
            done = Path(self.folder, file)
            path = done if done.exists() or done.is_symlink() else done.with_name(done.name + PART)
            if path.is_symlink() or not path.is_file() or path.stat().st_size != job.sizes[file]:
                return False
            reader = Reader(path)
            try:
                if digest_range(reader, start, nbytes, report=report).xxh3 != digests.get(name):
                    return False
            finally:
                reader.close()
        return True


def numbers_kept(folder: Path) -> set[int]:
    """The jobs that have a receipt in a child's folder, whatever it says."""
    return {int(file.stem) for file in (folder / WORKSPACE / RECEIPTS).glob("*.json") if file.stem.isdigit()}


def do_job(receipts: Receipts, job: Job, report: Report) -> Receipt:
    """Do a job that nobody else has done meanwhile, and keep its receipt."""
    receipts.check_place()
    if receipts.has(job) and (done := receipts.find(job, lambda _: None)) is not None:
        report(job.nbytes)
        return done
    receipt = run_job(job, report)
    receipts.check_place()
    receipts.save(receipt)
    return receipt
