"""Memory that a mapped file occupies, given back: what a streamed model needs to stay small."""

import ctypes
import mmap
import sys
from functools import cache
from pathlib import Path

_DONT_NEED = getattr(mmap, "MADV_DONTNEED", 4)


def give_back(path: Path) -> None:
    """Let go of every page of a mapped file; a later access reads it again.

    Mapped pages count as resident memory until the system wants them back, which on an idle machine it never does.
    Only for mappings that nobody writes to: a private page that was written to would be lost. Does nothing where
    there is no /proc.
    """
    advise, name = _madvise(), str(path.resolve())
    if advise is None:
        return
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == name:
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONT_NEED)


@cache
def _madvise() -> "ctypes._NamedFuncPointer | None":
    if not sys.platform.startswith("linux") or not Path("/proc/self/maps").exists():
        return None
    return ctypes.CDLL(None).madvise
