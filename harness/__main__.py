"""`python -m harness`: the command line. Loads nothing heavy before a command needs it."""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    from harness.cli import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
