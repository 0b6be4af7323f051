"""`python -m chimerakit` is the command line."""

from chimerakit.cli import main

if __name__ == "__main__":
    main()
