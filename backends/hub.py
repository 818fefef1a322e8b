"""Checkpoints on a Hugging Face compatible hub: `owner/repo`, `owner/repo/file.pth`, either with `@revision`.

All transfers go through `huggingface_hub`, so its settings apply: `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE`,
`HF_HOME` and `HF_HUB_CACHE`, `HF_TOKEN`. What is in the cache is used when the hub cannot be reached. A downloaded file
is hashed and compared with what the hub says it is; one that differs is not kept.
"""

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import catalogue
from backends.errors import InputError
from backends.readers import READERS, first_line, read_json

_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+?))?(?:@(?P<revision>[\w./-]+))?")
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PATIENCE = 10
"""Seconds until a hub counts as unreachable."""

_PIECE = 16 << 20
_GATED = "{} asks for an accepted licence: accept it there and set HF_TOKEN."


@dataclass(frozen=True)
class HubId:
    """A hub id, taken apart; `file` and `revision` are empty where not written."""

    repo: str
    file: str = ""
    revision: str = ""

    def __str__(self) -> str:
        return self.repo + (f"/{self.file}" if self.file else "") + (f"@{self.revision}" if self.revision else "")


def parse(text: str) -> HubId | None:
    """The parts of a hub id, or None where the text has not that form."""
    match = _ID.fullmatch(text)
    return HubId(match["repo"], match["file"] or "", match["revision"] or "") if match else None


def fetch(ident: HubId, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """Download what is not cached yet.

    Args:
        ident: what to fetch.
        endpoint: address of the hub; None takes `HF_ENDPOINT` or the public hub.
        cache: folder of the cache; None takes huggingface_hub's own.

    Returns:
        The file, or the folder with config.json and all safetensors shards.

    Raises:
        InputError: no such repository, revision or file, no access, or a hub out of reach and nothing cached.
    """
    return _Hub(ident, endpoint, cache).fetch()


def resolve(name: str, *, endpoint: str | None = None, cache: Path | None = None) -> HubId:
    """The hub id that a release's name stands for: the newest file of that name, by the repositories' own lists.

    Args:
        name: of the catalogue, or by its rule.
        endpoint: as for `fetch`.
        cache: as for `fetch`.

    Raises:
        InputError: no repository has such a file, or none can be asked and nothing is cached.
    """
    offered: list[str] = []
    silent: list[str] = []
    for repository in catalogue.repositories(name):
        hub = _Hub(HubId(repository), endpoint, cache)
        try:
            files = hub.listing()
        except InputError as error:
            silent.append(str(error))
            continue
        if hub.offline:
            silent.append(hub.offline)
            files = list(catalogue.cached_files(repository, cache))
        if name in catalogue.ENTRIES and not catalogue.ENTRIES[name].file:
            return HubId(repository)
        if file := catalogue.newest(name, files):
            return HubId(repository, file)
        offered += catalogue.releases(files)
    raise InputError(_no_release(name, offered, silent))


def verify(path: Path) -> bool:
    """Hash a file of the cache and compare it with the hash that the hub names it by.

    Args:
        path: what `fetch` returned for one file.

    Returns:
        True; False where the cache does not tell what the file should be (a system without links).

    Raises:
        InputError: it differs; the file is removed from the cache.
    """
    blob = path.resolve()
    made = _HASHES.get(len(blob.name))
    if blob == path.absolute() or made is None:
        return False
    found = made(blob.stat().st_size)
    with blob.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    if found.hexdigest() == blob.name:
        return True
    path.unlink()
    blob.unlink()
    raise InputError(f"{path.name} is not what the hub says it is: another hash. It was removed; download it again.")


def _git(size: int) -> "hashlib._Hash":
    """Git's hash of a file, by which the hub names small ones."""
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


_HASHES: "dict[int, Callable[[int], hashlib._Hash]]" = {64: lambda _: hashlib.sha256(), 40: _git}
"""Length of a name in the cache -> what makes the hash that it must be, given the file's size."""


class _Hub:
    """One repository at one revision, online or, if that fails, from the cache."""

    def __init__(self, ident: HubId, endpoint: str | None, cache: Path | None) -> None:
        self.ident, self.endpoint, self.cache = ident, endpoint, cache
        self.revision, self.offline = ident.revision or "main", ""

    def fetch(self) -> Path:
        files = self.listing()
        if self.ident.file:
            if files and self.ident.file not in files:
                raise InputError(f"{self.ident.repo} has no file {self.ident.file!r}; {_offer(files)}.")
            return self._file(self.ident.file)
        if not files or _INDEX in files or _SINGLE in files:
            return self._folder(files)
        found = [name for name in files if Path(name).suffix in READERS]
        if len(found) != 1:
            raise InputError(f"name a file of {self.ident.repo}, as in {self.ident.repo}/FILE; {_offer(files)}.")
        return self._file(found[0])

    def listing(self) -> list[str]:
        """Names of the repository's files; empty, with `offline` set, where the hub is out of reach."""
        from huggingface_hub import HfApi, errors

        try:
            info = HfApi(endpoint=self.endpoint).model_info(
                self.ident.repo, revision=self.ident.revision or None, timeout=_PATIENCE
            )
        except errors.GatedRepoError as error:
            raise InputError(_GATED.format(self.ident.repo)) from error
        except errors.RevisionNotFoundError as error:
            raise InputError(f"{self.ident.repo} has no revision {self.revision!r}.") from error
        except errors.RepositoryNotFoundError as error:
            raise InputError(
                f"there is neither a path nor a hub repository {self.ident.repo} (or it is private: set HF_TOKEN)."
            ) from error
        except errors.HFValidationError as error:
            raise InputError(f"{str(self.ident)!r} is no hub id: {first_line(error)}.") from error
        except Exception as error:  # the HTTP client's own errors have no common root across its versions
            self.offline = first_line(error)
            return []
        return [entry.rfilename for entry in info.siblings or ()]

    def _folder(self, files: list[str]) -> Path:
        """The HF layout: config, index where there is one, all shards; they land in one folder."""
        names = self._weight_files(files)
        if not self.offline and "config.json" in files:
            names.append("config.json")
        paths = [self._file(name) for name in names]
        return paths[0].parent

    def _weight_files(self, files: list[str]) -> list[str]:
        if self.offline:
            index = self._cached(_INDEX)
            return sorted(_shards(index)) if index else [_SINGLE]
        return sorted(_shards(self._file(_INDEX))) if _INDEX in files else [_SINGLE]

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self.ident.repo, name, cache_dir=self.cache, revision=self.ident.revision or None
        )
        return Path(found) if isinstance(found, str) else None

    def _file(self, name: str) -> Path:
        """One file: from the cache, else from the hub."""
        if self.offline:
            found = self._cached(name)
            if found is None:
                raise InputError(_unreachable(self.ident, name, self.offline))
            return found
        from huggingface_hub import errors, hf_hub_download

        # The revision as written and not its commit: only then does the cache note what it stands for, for offline use.
        options: dict[str, Any] = {"revision": self.revision, "endpoint": self.endpoint, "cache_dir": self.cache}
        known = self._cached(name)
        try:
            path = Path(hf_hub_download(self.ident.repo, name, **options))
        except errors.GatedRepoError as error:
            raise InputError(_GATED.format(self.ident.repo)) from error
        except errors.EntryNotFoundError as error:
            raise InputError(f"{self.ident.repo} has no file {name!r} at revision {self.revision}.") from error
        except Exception as error:  # cut connections, full disks, wrong sizes
            raise InputError(
                f"{self.ident.repo}/{name} could not be downloaded: {first_line(error)}; try again."
            ) from error
        if known is None or known.resolve() != path.resolve():
            verify(path)
        return path


def _shards(index: Path) -> set[str]:
    places = read_json(index).get("weight_map")
    return {str(place) for place in places.values()} if isinstance(places, dict) else set()


def _no_release(name: str, offered: list[str], silent: list[str]) -> str:
    if not offered and silent:
        return f"{name} is not in the cache, and the hub could not be asked ({silent[0]}): run once with a connection."
    near = difflib.get_close_matches(name, offered, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"no release is called {name!r}.{hint} There are: {', '.join(sorted(set(offered))) or 'none'}."


def _unreachable(ident: HubId, name: str, reason: str) -> str:
    return (
        f"no path {ident} exists here, and the hub could not be asked for {ident.repo} ({reason}): {name} is not in "
        "the cache either. To work offline, download the file by hand and pass its path, or run once with a connection "
        "and then set HF_HUB_OFFLINE=1; for a mirror set HF_ENDPOINT."
    )


def _offer(files: list[str]) -> str:
    """The checkpoint files of a repository, in words."""
    found = sorted(name for name in files if Path(name).suffix in READERS)
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"its checkpoints are {', '.join(found[:8])}{more}" if found else "it holds no checkpoint"
