"""Child + manifest (+ parents) -> Findings: is this child what its manifest says, and is that what its parents make?

Without parents every byte of the child is digested and compared with the manifest. With parents the plan is made again
from the manifest's recipe, every unit is made again into a comparison with the child's bytes, and the whole manifest is
made again from the plan and from what that showed. What a delta decides on is compared again before there is a plan. So a
proof rests on the recipe and the parents only: everything else that the manifest says must follow from them, and the
child's headers and files are those that it names.

    disk.py      the child's files, headers, names and bytes against its manifest
    parents.py   the child and its manifest against what its parents make
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from chimerakit.errors import ChimerakitError
from chimerakit.events import Listener, ignore, one_at_a_time
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import read_manifest
from chimerakit.plan.memory import needs_of_scan
from chimerakit.records import Checkpoint, Finding, Findings, ImatrixFile
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL
from chimerakit.verify.disk import check_digests, check_files, check_headers, check_names, check_padding
from chimerakit.verify.parents import check_parents


def verify_child(
    path: Path | str,
    parents: Mapping[str, Checkpoint] | None = None,
    *,
    imatrix: ImatrixFile | None = None,
    runner: Runner = LOCAL,
    listener: Listener = ignore,
) -> Findings:
    """Check a child against its manifest and, where parents are given, both against them.

    imatrix: the importance matrix that quants were encoded by, where the manifest names one. runner:
    where jobs are done. Raises ManifestError if there is no readable manifest, RecipeError or
    PlanError if its recipe and the parents make no plan, PlanError if one job needs more memory; anything else that is
    wrong is a finding.
    """
    path = Path(path)
    manifest = read_manifest(path)
    findings = list(check_files(path, manifest))
    try:
        child = open_checkpoint(path)
    except ChimerakitError as e:
        findings.append(Finding(False, path.name, str(e)))
        return _sum_up(path, findings, 0)
    findings += check_headers(child, manifest)
    findings += check_names(child, manifest)
    if any(not finding.ok for finding in findings):
        # Headers that are not the manifest's say nothing about where a unit's bytes are.
        return _sum_up(path, findings, 0)
    findings += check_padding(child)
    if parents is None:
        workers = runner.workers(needs_of_scan(len(manifest.units), 0, 1))
        findings += check_digests(child, manifest, workers, one_at_a_time(listener))
    else:
        findings += check_parents(child, manifest, parents, imatrix, runner, one_at_a_time(listener))
    return _sum_up(path, findings, sum(t.nbytes for t in child.tensors.values()))


def _sum_up(path: Path, findings: Iterable[Finding], nbytes: int) -> Findings:
    findings = list(findings)
    passed = Counter(finding.says for finding in findings if finding.ok)
    return Findings(path.name, tuple(f for f in findings if not f.ok), dict(passed), nbytes)
