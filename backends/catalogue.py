"""Released models by name: where they lie on the hub, how large they are, which of them are here already. No torch.

Names follow the rule of the releases, `rwkv7{variant}-g{generation}{dataset}-{size}`: variant "", "a" (DeepEmbed) or
"b" (DeepEmbed and DEA); dataset "", "a", "a2", "d", ... A name stands for the newest file of that name in its
repositories, so that releases after this table resolve too. Sources: the file lists of the repositories and the loader
of candle's example; sizes are those of the tensors in bf16, which agree with the published sizes of the files.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.sizes import MADE

OFFICIAL, SAFETENSORS = "BlinkDL/rwkv7-g1", "DanielClough/rwkv7-g1-safetensors"
RELEASES = (OFFICIAL, SAFETENSORS)
"""Repositories of the RWKV-7 G line, in the order of asking: the first drops a file when a newer one replaces it."""


@dataclass(frozen=True)
class Entry:
    """One released model.

    Attributes:
        name: what `--model` and `pull` take.
        version: of the architecture.
        layers, width: L and C.
        parameters: of all tensors.
        file: name in its repositories; empty where all of one is the model.
        repositories: where it lies, best first.
    """

    name: str
    version: str
    layers: int
    width: int
    parameters: int
    file: str
    repositories: tuple[str, ...] = RELEASES

    @property
    def place(self) -> str:
        """Hub id of the first place."""
        return f"{self.repositories[0]}/{self.file}".rstrip("/")


_WORLD5, _WORLD6 = ("BlinkDL/rwkv-5-world",), ("BlinkDL/rwkv-6-world",)
_GOOSE = "RWKV/RWKV7-Goose-World3-1.5B-HF"

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("rwkv7-g1d-0.1b", "7", 12, 768, 191_084_544, "rwkv7-g1d-0.1b-20260129-ctx8192.pth"),
        Entry("rwkv7-g1d-0.4b", "7", 24, 1024, 450_834_432, "rwkv7-g1d-0.4b-20260210-ctx8192.pth"),
        Entry("rwkv7-g1d-1.5b", "7", 24, 2048, 1_527_668_736, "rwkv7-g1d-1.5b-20260212-ctx8192.pth"),
        Entry("rwkv7-g1d-2.9b", "7", 32, 2560, 2_948_065_280, "rwkv7-g1d-2.9b-20260131-ctx8192.pth"),
        Entry("rwkv7-g1d-7.2b", "7", 32, 4096, 7_199_932_416, "rwkv7-g1d-7.2b-20260131-ctx8192.pth"),
        Entry("rwkv7-g1d-13.3b", "7", 61, 4096, 13_270_298_624, "rwkv7-g1d-13.3b-20260131-ctx8192.pth"),
        Entry("rwkv7a-g1d-0.1b", "7a", 12, 768, 1_007_339_520, "rwkv7a-g1d-0.1b-20260212-ctx8192.pth"),
        Entry("rwkv7b-g1b-0.1b", "7b", 12, 768, 1_825_471_488, "rwkv7b-g1b-0.1b-20250822-ctx4096.pth"),
        Entry("eagle7b", "5.2", 32, 4096, 7_518_044_160, "RWKV-5-World-7B-v2-20240128-ctx4096.pth", _WORLD5),
        Entry("world1b5", "5.2", 24, 2048, 1_577_754_624, "RWKV-5-World-1B5-v2-20231025-ctx4096.pth", _WORLD5),
        Entry("world3b", "5.2", 32, 2560, 3_062_999_040, "RWKV-5-World-3B-v2-20231113-ctx4096.pth", _WORLD5),
        Entry("world6-1b6", "6", 24, 2048, 1_599_873_024, "RWKV-x060-World-1B6-v2.1-20240328-ctx4096.pth", _WORLD6),
        Entry(_GOOSE, "7", 24, 2048, 1_527_404_544, "", (_GOOSE,)),
    )
}
"""Name -> released model."""

RULE = re.compile(r"rwkv7(?P<variant>[ab]?)-g(?P<generation>\d+)(?P<dataset>[a-z]\d*|)-(?P<size>\d+(?:\.\d+)?b)")
"""How releases of the G line are named."""

_FILE = re.compile(r"(?P<name>.+?)(?:-(?P<date>\d{8}))?(?:-ctx(?P<context>\d+))?\.(?:pth|safetensors)")


def is_name(text: str) -> bool:
    """Whether a string names a release: one of the table, or one that follows the rule."""
    return text in ENTRIES or RULE.fullmatch(text) is not None


def repositories(name: str) -> tuple[str, ...]:
    """Where a release may lie, best first."""
    return ENTRIES[name].repositories if name in ENTRIES else RELEASES


def newest(name: str, files: Iterable[str]) -> str:
    """The file of a repository that a name stands for; empty where it has none.

    Args:
        name: of a release.
        files: names of the repository's files.
    """
    if name in ENTRIES and not RULE.fullmatch(name):
        return ENTRIES[name].file if ENTRIES[name].file in files else ""
    found = [match for match in map(_FILE.fullmatch, files) if match and match["name"] == name]
    return max(found, key=_age)[0] if found else ""


def releases(files: Iterable[str]) -> list[str]:
    """The release names that a repository's files stand for, in order."""
    matches = (_FILE.fullmatch(file) for file in files)
    return sorted({match["name"] for match in matches if match and RULE.fullmatch(match["name"])})


def cached_files(repository: str, cache: Path | None = None) -> dict[str, Path]:
    """The files of a repository that are in the hub's cache, whole; asks nobody.

    Args:
        repository: owner/name.
        cache: folder of the cache; None takes huggingface_hub's own.
    """
    if cache is None:
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    if not snapshots.is_dir():
        return {}
    found: dict[str, Path] = {}
    for snapshot in sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime):
        files = (path for path in snapshot.rglob("*") if path.is_file())
        found |= {path.relative_to(snapshot).as_posix(): path for path in files}
    return found


@dataclass(frozen=True)
class Row:
    """One line of the list of models.

    Attributes:
        name: what `--model` takes.
        what: one line about it.
        entry: where it is a release of the table.
        cached: the file or folder, where it is here already.
    """

    name: str
    what: str
    entry: Entry | None = None
    cached: Path | None = None


def rows(cache: Path | None = None) -> Iterator[Row]:
    """Every model with a name: made by code, released, or cached under the rule. Asks nobody."""
    yield from (Row(name, what) for name, what in MADE.items())
    for entry in ENTRIES.values():
        yield Row(entry.name, _words(entry), entry, _cached(entry.name, cache))
    for repository in RELEASES:
        for name in releases(cached_files(repository, cache)):
            if name not in ENTRIES:
                yield Row(name, f"in the cache, from {repository}", cached=_cached(name, cache))


def _cached(name: str, cache: Path | None) -> Path | None:
    for repository in repositories(name):
        files = cached_files(repository, cache)
        if name in ENTRIES and not ENTRIES[name].file:
            whole = next((path for file, path in files.items() if file.endswith(".safetensors")), None)
            return whole.parent if whole else None
        if file := newest(name, files):
            return files[file]
    return None


def _words(entry: Entry) -> str:
    size = entry.parameters * 2 / 1e9
    return f"RWKV-{entry.version}, {entry.layers} layers of {entry.width}, {size:.2f} GB in bf16, {entry.place}"


def _age(match: re.Match[str]) -> tuple[str, int]:
    return match["date"] or "", int(match["context"] or 0)
