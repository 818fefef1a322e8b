"""Checkpoints on a Hugging Face compatible hub: `owner/repo`, `owner/repo/file.pth`, either with `@revision`.

All transfers go through `huggingface_hub`, so its settings apply: `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE`,
`HF_HOME` and `HF_HUB_CACHE`, `HF_TOKEN`. What is in the cache is used when the hub cannot be reached.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.errors import InputError
from backends.readers import READERS, first_line, read_json

_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+?))?(?:@(?P<revision>[\w./-]+))?")
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PATIENCE = 10
"""Seconds until a hub counts as unreachable."""


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


class _Hub:
    """One repository at one revision, online or, if that fails, from the cache."""

    def __init__(self, ident: HubId, endpoint: str | None, cache: Path | None) -> None:
        self.ident, self.endpoint, self.cache = ident, endpoint, cache
        self.revision, self.offline = ident.revision or "main", ""

    def fetch(self) -> Path:
        files = self._listing()
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

    def _listing(self) -> list[str]:
        """Names of the repository's files; empty, with `offline` set, where the hub is out of reach."""
        from huggingface_hub import HfApi, errors

        try:
            info = HfApi(endpoint=self.endpoint).model_info(
                self.ident.repo, revision=self.ident.revision or None, timeout=_PATIENCE
            )
        except errors.GatedRepoError as error:
            raise InputError(
                f"{self.ident.repo} asks for an accepted licence: accept it there and set HF_TOKEN."
            ) from error
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
        try:
            return Path(hf_hub_download(self.ident.repo, name, **options))
        except errors.EntryNotFoundError as error:
            raise InputError(f"{self.ident.repo} has no file {name!r} at revision {self.revision}.") from error
        except Exception as error:  # cut connections, full disks, wrong sizes
            raise InputError(
                f"{self.ident.repo}/{name} could not be downloaded: {first_line(error)}; try again."
            ) from error


def _shards(index: Path) -> set[str]:
    places = read_json(index).get("weight_map")
    return {str(place) for place in places.values()} if isinstance(places, dict) else set()


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
