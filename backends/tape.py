"""A recording: what a session was asked and what it answered, call by call, as a folder. docs/recorded.md is its page.

manifest.json               what it is of; every call with its answers
arrays-1.safetensors, ...   arrays, each named by the hash of its content, so that none is there twice

A call is JSON, and so is an answer. An array stands in either as {"array": HASH}, a state as a number given to it here.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Array
from backends.dumps import MANIFEST, one_line
from backends.errors import InputError

FORMAT = 1

PORTION = 256 << 20
"""Bytes of arrays that may wait in memory for a file of their own."""

Json = dict[str, Any]

DEFAULTS: Mapping[str, Json] = {
    "forward": {"state": None, "logits": "last", "keep": False, "trace": [], "fetch": True},
    "generate": {"max_new_tokens": 1, "stop": [], "sampled": False},
    "export_state": {},
    "import_state": {},
    "encode": {},
    "decode": {},
    "probabilities": {},
    "render": {"system": "", "suffix": ""},
}
"""What can be asked -> what a call that leaves something out means."""

ORDERED = ("forward", "generate", "export_state", "import_state")
"""Calls whose order is kept: a session that rounds at random answers the same call otherwise the next time."""

Take = list[tuple[int, int] | None]
"""What one session was asked, in order: number of the call, number of its answer; None while it goes on."""


def key_of(call: Mapping[str, Any]) -> str:
    """What two calls share that ask the same."""
    return json.dumps({**DEFAULTS[call["verb"]], **call}, sort_keys=True)


def hash_of(array: Array) -> str:
    """Name of an array: 32 hexadecimal digits of its number format, shape and bytes."""
    digest = hashlib.blake2b(f"{array.dtype.str} {array.shape}\n".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Tape:
    """A recording under way.

    Args:
        folder: an empty one; arrays are written there whenever enough have come together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: dict[str, tuple[int, Json, list[Json]]] = {}
        self.takes: list[Take] = []
        self.files: list[str] = []
        self._states = 0
        self._names: set[str] = set()
        self._waiting: dict[str, Array] = {}
        self._size = 0

    def take(self) -> Take:
        """The order of calls of one more session."""
        self.takes.append([])
        return self.takes[-1]

    def put(self, array: Array) -> Json:
        """An array as it stands in a call or an answer."""
        name = hash_of(array)
        if name not in self._names:
            self._names.add(name)
            self._waiting[name] = np.array(array, order="C")  # a copy: the owner may write into its own again
            self._size += array.nbytes
            if self._size > PORTION:
                self._flush()
        return {"array": name}

    def keep(self, call: Json, answer: Json, take: Take, slot: int | None = None) -> int | None:
        """Keep a call and its answer; an answer that was given before is not kept again.

        Args:
            call: "verb" and what it was asked.
            answer: without the number of a state.
            take: of the session.
            slot: where in its order, if a place was held for it; None is the end.

        Returns:
            Number of the state that came out, if one did: the same for equal answers to equal calls.
        """
        index, _, answers = self.calls.setdefault(key_of(call), (len(self.calls), call, []))
        bare = [{name: value for name, value in known.items() if name != "state"} for known in answers]
        if answer not in bare:
            bare.append(answer)
            answers.append({**answer, **self._born(call, answer)})
        number = bare.index(answer)
        if call["verb"] in ORDERED:
            _place(take, slot, (index, number))
        state: int | None = answers[number].get("state")
        return state

    def _born(self, call: Json, answer: Json) -> Json:
        if "error" in answer or not (call["verb"] == "import_state" or call.get("keep")):
            return {}
        self._states += 1
        return {"state": self._states}

    def finish(self, facts: Mapping[str, Any]) -> int:
        """Write what is left and the manifest, which makes the folder a recording.

        Returns:
            Bytes of all files.
        """
        self._flush()
        rows = [{**call, "answers": answers} for _, call, answers in self.calls.values()]
        varied = any(len(answers) > 1 for _, _, answers in self.calls.values())
        told = {"recording": FORMAT, **facts, "files": self.files, "calls": rows}
        if varied:  # where equal calls have equal answers, their order says nothing
            told["takes"] = [[place for place in take if place is not None] for take in self.takes]
        (self.folder / MANIFEST).write_text(_dumped(told), encoding="utf-8")
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        if self._waiting:
            path = self.folder / f"arrays-{len(self.files) + 1}.safetensors"
            save_file(self._waiting, path)
            path.chmod(0o644)  # the library makes files that nobody else may read
            self.files.append(path.name)
            self._waiting, self._size = {}, 0


def _place(take: Take, slot: int | None, what: tuple[int, int]) -> None:
    if slot is None:
        take.append(what)
    else:
        take[slot] = what


def _dumped(told: Mapping[str, Any]) -> str:
    """JSON with one key, or one call, a line."""
    lines = []
    for key, value in told.items():
        rows = ",\n  ".join(json.dumps(row) for row in value) if key in ("calls", "takes") else ""
        lines.append(f' "{key}": ' + (f"[\n  {rows}\n ]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(lines) + "\n}\n"


@dataclass
class Recording:
    """A recording, read.

    Attributes:
        facts: of the manifest, all but the calls.
        calls: what was asked, by `key_of` -> number of the call, its answers.
        takes: order of the calls of every session; empty where equal calls have equal answers.
    """

    path: Path
    facts: Json
    calls: dict[str, tuple[int, list[Json]]]
    takes: list[list[tuple[int, int]]] = field(default_factory=list)
    _found: dict[str, Any] = field(default_factory=dict)

    def array(self, value: Mapping[str, str]) -> Array:
        """An array that stands in a call or an answer; the caller's own."""
        name = value["array"]
        found: Array = self._found[name].get_tensor(name)
        return found

    def close(self) -> None:
        """Give its files back."""
        self._found.clear()


def is_recording(path: Path) -> bool:
    """Whether a folder is one, of whatever format."""
    try:
        told = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and "recording" in told


def load(path: Path) -> Recording:
    """Read a recording and check every array of it.

    Raises:
        InputError: missing, damaged, or of another format.
    """
    try:
        told = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if told["recording"] != FORMAT:
            raise InputError(
                f"{path} is a recording of format {told['recording']}; this version reads {FORMAT}: record it again."
            )
        return _parsed(path, told)
    except InputError:
        raise
    except Exception as error:  # a file that somebody else wrote, or half copied, fails in many ways
        raise InputError(f"{path}: the recording is damaged ({type(error).__name__}: {one_line(error)}).") from None


def _parsed(path: Path, told: Json) -> Recording:
    rows = told.pop("calls")
    calls: dict[str, tuple[int, list[Json]]] = {}
    for row in rows:
        answers = row.pop("answers")
        if not answers or not all(isinstance(answer, dict) for answer in answers):
            raise ValueError(f"a call of {row['verb']} has no answer")
        calls[key_of(row)] = (len(calls), answers)
    takes = [[(int(call), int(answer)) for call, answer in take] for take in told.pop("takes", [])]
    counts = [len(answers) for _, answers in calls.values()]
    if len(counts) != len(rows) or not all(0 <= n < counts[call] for take in takes for call, n in take):
        raise ValueError("a call is there twice, or an order of calls names one that is not there")
    recording = Recording(path, told, calls, takes)
    for name in told["files"]:
        recording._found |= _opened(path, str(name))
    wanted = {name for row in rows for name in _arrays(row)}
    wanted |= {name for _, answers in calls.values() for name in _arrays(answers)}
    missing = sorted(wanted - set(recording._found))
    if missing:
        raise InputError(f"{path}: the recording is damaged: {len(missing)} arrays are missing, {missing[0]} first.")
    return recording


def _opened(path: Path, name: str) -> dict[str, Any]:
    """Array -> the open file that holds it; each is what its name says."""
    from safetensors import safe_open

    if Path(name).name != name or not (path / name).is_file():
        raise InputError(f"{path}: the recording is damaged: its file {name} is missing.")
    file: Any = safe_open(path / name, framework="numpy")
    found = dict.fromkeys(file.keys(), file)
    for array in found:
        if hash_of(file.get_tensor(array)) != array:
            raise InputError(f"{path}: the recording is damaged: array {array} in {name} is not what it was.")
    return found


def _arrays(value: Any) -> Iterator[str]:
    """Names of all arrays inside a call or an answer."""
    if isinstance(value, dict):
        if isinstance(value.get("array"), str):
            yield value["array"]
        for part in value.values():
            yield from _arrays(part)
    elif isinstance(value, list):
        for part in value:
            yield from _arrays(part)


class Needle:
    """Which of several answers to a call comes next.

    A session that asks what was asked then, in that order, hears what was answered then. One that begins elsewhere, as
    a single suite does, hears it from there on.

    Args:
        takes: of the recording.
    """

    def __init__(self, takes: Sequence[Sequence[tuple[int, int]]]) -> None:
        self._takes = takes
        self._spots: dict[int, list[tuple[int, int]]] = {}
        for number, take in enumerate(takes):
            for at, (call, _) in enumerate(take):
                self._spots.setdefault(call, []).append((number, at))
        self._take, self._at = -1, -1

    def answer(self, call: int) -> int:
        """Number of the answer to a call, and go there."""
        spots = self._spots.get(call)
        if not spots:
            return 0
        self._take, self._at = min(spots, key=self._far)
        return self._takes[self._take][self._at][1]

    def _far(self, spot: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """The very next first, then what comes later in the same take, then the earliest."""
        take, at = spot
        same = take == self._take or self._take < 0
        if same and at == self._at + 1:
            return 0, spot
        return (1 if take == self._take and at > self._at else 2), spot
