"""A recipe with ranges -> children -> measurements -> the curve.

records.py   everything that is passed along
sharing.py   which files of several children are equal, and what of them is new on the disk (pure)
build.py     plans -> children: what they have in common is made once
bisect.py    where a figure crosses a value (pure)
keep.py      whose weights stay (pure)
run.py       all of it, one step after the other, to be gone on with at any of them
"""

from chimerakit.sweep.keep import Keep, parse_keep
from chimerakit.sweep.records import Goal, Sweep
from chimerakit.sweep.run import Wish, plan_children, sweep_children
from chimerakit.sweep.sharing import disk_of

__all__ = ["Goal", "Keep", "Sweep", "Wish", "disk_of", "parse_keep", "plan_children", "sweep_children"]
