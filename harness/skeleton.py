"""Command new-backend: a working backend of somebody's own, with three equations left to write, and its test."""

import argparse
import importlib.util
import json
import keyword
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from backends.errors import InputError, UsageError
from backends.registry import table

KINDS: Mapping[str, Mapping[str, str]] = {
    "python": {
        "README.md": "python/README.md.in",
        "pyproject.toml": "python/pyproject.toml.in",
        "$module/__init__.py": "python/init.py.in",
        "$module/session.py": "python/session.py.in",
        "$module/rwkv7.py": "rwkv7.py.in",
        "tests/test_acceptance.py": "python/test_acceptance.py.in",
    },
    "process": {
        "README.md": "process/README.md.in",
        "port.py": "process/port.py.in",
        "rwkv7.py": "rwkv7.py.in",
        "test_acceptance.py": "process/test_acceptance.py.in",
    },
}
"""Kind -> file of the skeleton -> its template in skeletons/."""

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_backend(options: argparse.Namespace) -> int:
    """Write a skeleton and say what to do with it."""
    folder = make(options.name, options.kind, Path(options.dest))
    written = [str(folder / file) for file in _names(options.name, options.kind)]
    if options.json:
        print(json.dumps({"folder": str(folder), "files": written}, indent=1))
        return 0
    for file in written:
        print(f"wrote {file}")
    print(f"three equations in rwkv7.py are left to write; {folder / 'README.md'} says how to go on")
    return 0


def make(name: str, kind: str, dest: Path) -> Path:
    """Write the skeleton of a backend, whole or not at all.

    Args:
        name: of the backend and of its folder, such as "my-port".
        kind: "python", a package that this program imports, or "process", a program that speaks the protocol.
        dest: an existing folder, in which the new one is made.

    Returns:
        The new folder.

    Raises:
        UsageError: a name that cannot be used, or is taken.
        InputError: `dest` cannot be written.
    """
    check(name, kind)
    folder = dest / name
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists already; choose another name or another --dest.")
    if not dest.is_dir():
        raise InputError(f"--dest {dest} is no folder.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=dest) as beside:
            whole = Path(beside) / name
            for file, text in _contents(name, kind).items():
                (whole / file).parent.mkdir(parents=True, exist_ok=True)
                (whole / file).write_text(text, encoding="utf-8")
            shutil.move(whole, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}.") from None
    return folder


def check(name: str, kind: str) -> None:
    """Refuse a name that Python, the list of backends or an installed package has no room for."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a backend: small letters and digits in words joined by '-', such as my-port."
        )
    if name in table():
        raise UsageError(f"there is a backend {name} already; `python -m harness backends` lists them.")
    module = _module(name)
    if keyword.iskeyword(module):
        raise UsageError(f"{name!r} is a keyword of Python, which no package can be called; choose another name.")
    if kind == "python" and importlib.util.find_spec(module) is not None:
        raise UsageError(f"a Python package {module!r} is installed here, which a new one would hide; choose another.")


def _module(name: str) -> str:
    return name.replace("-", "_")


def _names(name: str, kind: str) -> list[str]:
    return [Template(file).substitute(module=_module(name)) for file in KINDS[kind]]


def _contents(name: str, kind: str) -> dict[str, str]:
    """File -> text."""
    room = files("harness") / "skeletons"
    words = {"name": name, "module": _module(name)}
    texts = [Template((room / source).read_text(encoding="utf-8")).substitute(words) for source in KINDS[kind].values()]
    return dict(zip(_names(name, kind), texts, strict=True))


def add_options(p: argparse.ArgumentParser) -> None:
    """What can be typed."""
    p.add_argument("name", metavar="NAME", help="of the backend and its folder: my-port")
    p.add_argument(
        "--kind",
        default="python",
        choices=tuple(KINDS),
        help="python: a package that is imported (default); process: a program that speaks docs/protocol.md",
    )
    p.add_argument("--dest", default=".", metavar="DIR", help="where the folder is made (default: here)")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of text")
