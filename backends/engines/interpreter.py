"""Which Python runs an engine, and whether the engine is installed there. Imports nothing heavy."""

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache

from backends.errors import BackendError

_FIND = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"


def variable(engine: str) -> str:
    """The environment variable that names an engine's Python: RWKV_HARNESS_LLAMA_CPP_PYTHON."""
    return f"RWKV_HARNESS_{engine.upper().replace('-', '_')}_PYTHON"


def python_of(engine: str) -> str:
    """The interpreter that runs an engine: what the environment names, else the running one.

    Raises:
        BackendError: the environment names what is no program.
    """
    named = os.environ.get(variable(engine), "")
    if not named:
        return sys.executable
    found = shutil.which(os.path.expanduser(named))  # noqa: PTH111 - a command, perhaps found on PATH
    if found is None:
        raise BackendError(f"{variable(engine)} names {named!r}, which is no program.")
    return found


def missing(engine: str, modules: tuple[str, ...], install: str) -> str:
    """Why an engine cannot run: modules that its interpreter lacks, and what to do; "" if none.

    Args:
        engine: registry name.
        modules: what it imports.
        install: the command that installs them.
    """
    try:
        python = python_of(engine)
    except BackendError as error:
        return str(error).rstrip(".")
    lacking = _lacking(python, modules)
    if not lacking:
        return ""
    where = "here" if python == sys.executable else f"in {python}"
    return (
        f"the Python package {lacking[0]!r} is not installed {where}: {install}, or name an interpreter that has it "
        f"in {variable(engine)}"
    )


@cache
def _lacking(python: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    if python == sys.executable:
        return tuple(module for module in modules if importlib.util.find_spec(module) is None)
    command = [python, "-c", _FIND, *modules]
    try:
        done = subprocess.run(  # noqa: S603 - the user's own interpreter
            command, capture_output=True, text=True, timeout=60, check=True, cwd=os.sep
        )
    except (OSError, subprocess.SubprocessError):
        return modules
    return tuple(done.stdout.split())
