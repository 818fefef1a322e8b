"""What can go wrong, as one small tree; the exit code of the command line hangs on the branch.

    HarnessError
    |-- UsageError     2   an option, a backend or a suite that does not exist
    |-- InputError     3   a checkpoint, a record or a hub that is missing or unreadable
    |-- BackendError   4   a backend broke while it was asked something legal
    `-- Unsupported    -   asked for an ability that the backend does not claim: an outcome, not a crash

Every message is one line that says what was asked, what exists and what to do.
"""

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """Root of every error that is reported in one line, without a traceback."""

    exit_code = 4


class UsageError(HarnessError):
    """The request itself is wrong: unknown option, backend, suite, profile."""

    exit_code = 2


class InputError(HarnessError):
    """Something the run reads is missing, damaged or not what it claims to be."""

    exit_code = 3


class BackendError(HarnessError):
    """A backend broke its contract or died."""

    exit_code = 4


class Unsupported(HarnessError):  # noqa: N818 - an outcome, not an error
    """A legal request that this backend does not serve; never counted as a pass."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is in no table, with near matches first.

    Args:
        kind: what was looked up, in words ("backend", "suite").
        name: what was asked for.
        known: what exists.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UsageError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
