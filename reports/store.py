"""One file per run, `<folder>/<id>.json`: written whole or not at all, never overwritten once complete."""

import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reports.record import FORMAT, Record, RecordError
from reports.schema import problems

Migration = Callable[[dict[str, Any]], dict[str, Any]]

MIGRATIONS: dict[int, Migration] = {}
"""Format number -> what turns a file of that format into the next one. Format 1 is the first."""

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,120}")


@dataclass(frozen=True)
class Damaged:
    """A file that is in the way: named, skipped, left where it is."""

    path: Path
    reason: str


@dataclass(frozen=True)
class History:
    """Every run of a folder, oldest first."""

    records: tuple[Record, ...]
    damaged: tuple[Damaged, ...]


def new_id(now: datetime | None = None) -> str:
    """An id that sorts by time and does not repeat: "20260131T120000Z-1f2e3d4c"."""
    return f"{(now or datetime.now(UTC)).astimezone(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


def save(record: Record, folder: Path) -> Path:
    """Write a run; called again and again while it goes on, each time the whole file at once.

    Args:
        record: the run; its id is the name of the file.
        folder: made if it is missing.

    Returns:
        The file.

    Raises:
        RecordError: the id is no file name, or the run on disk is complete and differs.
        OSError: the folder cannot be written.
    """
    if not _ID.fullmatch(record.id):
        raise RecordError(f"the id {record.id!r} is no file name: letters, digits and . _ + - are, up to 121 of them")
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / f"{record.id}.json", record.to_json()
    if path.exists() and not _make_way(path, text):
        return path
    write_atomically(path, text)
    return path


def _make_way(path: Path, text: str) -> bool:
    """Whether `path` is to be written: not if it says the same; a complete run is refused, a damaged file moved."""
    try:
        old = load(path)
    except RecordError:
        path.rename(_free_name(path))
        return True
    if path.read_text(encoding="utf-8") == text:
        return False
    if old.status == "complete":
        raise RecordError(f"{path} holds a complete run, which is never overwritten; save under another id or folder")
    return True


def _free_name(path: Path) -> Path:
    """`<id>.damaged-N.json`, the first that is free."""
    number = 1
    while (name := path.with_suffix(f".damaged-{number}.json")).exists():
        number += 1
    return name


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one, also after a crash."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The permissions that new files lack; a temporary file would have none for others."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: Path) -> Record:
    """Read a run, brought to the current format.

    Raises:
        RecordError: missing, unreadable, no record, damaged, too old or too new; says which and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such file; name the .json file of a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from None
    try:
        return parse(text)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None


def parse(text: str) -> Record:
    """A record from its text, of any known format.

    Raises:
        RecordError: as `load`.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON, or cut off: {error}") from None
    if not isinstance(data, dict) or "format" not in data or "measurements" not in data:
        raise RecordError("JSON, but no record: the keys 'format' and 'measurements' are missing")
    data = migrate(data)
    wrong = problems(data)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise RecordError(f"a damaged record: {wrong[0]}{more}")
    return Record.from_data(data)


def migrate(data: dict[str, Any]) -> dict[str, Any]:
    """Bring the data of a file to the current format, one step a format.

    Raises:
        RecordError: the format is none, too new, or too old.
    """
    number = data["format"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise RecordError(f"the format is {number!r}, which is no number")
    if number > FORMAT:
        raise RecordError(
            f"format {number} is newer than this program, which reads up to {FORMAT}: update rwkv-harness"
        )
    while number < FORMAT:
        if number not in MIGRATIONS:
            raise RecordError(
                f"format {number} is older than any that this program reads ({FORMAT}): run the job again"
            )
        data = MIGRATIONS[number](data) | {"format": number + 1}
        number += 1
    return data


def history(folder: Path) -> History:
    """Every run of a folder, oldest first; what cannot be read is listed apart and left alone."""
    records, damaged = [], []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            records.append(load(path))
        except RecordError as error:
            damaged.append(Damaged(path, str(error)))
    records.sort(key=lambda record: record.id)
    return History(tuple(records), tuple(damaged))


def latest(folder: Path, job_key: str = "", status: str = "") -> Record | None:
    """The newest run of a folder, or of those with a job key or a status; None if there is none.

    Args:
        folder: where the runs are.
        job_key: only runs of this job; empty means any.
        status: only runs with this status ("interrupted"); empty means any.
    """
    fitting = [r for r in history(folder).records if job_key in ("", r.job_key) and status in ("", r.status)]
    return fitting[-1] if fitting else None
