"""docs/cli.md out of the verbs' help texts, so that it can't be wrong: `python -m chimerakit.cli.reference`."""

from typer.main import get_command
from typer.testing import CliRunner

from chimerakit.cli.app import app

_HEAD = """# Command line

Made by `make docs` from the help texts. Exit status: 0 done, 1 a finding says no, 2 the request was wrong.
"""


def verbs() -> list[str]:
    """The names of all verbs, in the order of the help text."""
    return list(getattr(get_command(app), "commands", {}))


def reference() -> str:
    """The whole page."""
    runner = CliRunner()
    pages = [_HEAD]
    for arguments in ([], *([verb] for verb in verbs())):
        shown = runner.invoke(app, [*arguments, "--help"], prog_name="chimerakit", env={"COLUMNS": "100"})
        title = " ".join(["chimerakit", *arguments])
        pages.append(f"## {title}\n\n```text\n{shown.output.strip()}\n```\n")
    return "\n".join(pages)


if __name__ == "__main__":
    print(reference(), end="")
