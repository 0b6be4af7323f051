"""The command line: a short function for each verb, tables, progress, exit codes. The only room that prints or exits.

app.py        the verbs and their flags
show.py       records -> tables
progress.py   events -> a progress bar, or lines where nobody watches
reference.py  docs/cli.md out of the help texts
"""

import sys


def main() -> None:
    """Run the command line. Exit 0: done. 1: a finding says no. 2: the request was wrong."""
    from chimerakit.cli.app import app
    from chimerakit.errors import ChimerakitError

    try:
        app()
    except ChimerakitError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
