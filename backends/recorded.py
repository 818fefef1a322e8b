"""`recorded:PATH`: what was recorded answers like a backend, but only what was asked then.

Either a recording (`backends.tape`), every call that suites made, or a dump (`backends.dumps`), one prompt.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from backends import dumps, tape
from backends.base import DTYPES, Array, Ids, Info, ModelFacts, Output, Sampler, Session, State, Want
from backends.dumped import DumpSession, fitting
from backends.errors import BackendError, HarnessError, InputError, Unsupported, UsageError
from backends.recorder import forward_call, generate_call, sampling_call
from backends.tape import Json, Needle, Recording

if TYPE_CHECKING:
    from backends.weights import Weights

NAME = "recorded"

SHOWN = 6
"""Tokens of a call that nobody recorded which are quoted."""


class RecordedSession(Session):
    """A recording as a session: the same answers to the same calls, bit by bit.

    Args:
        recording: as read.
        model: of the checkpoint that is open.
    """

    timed = False

    def __init__(self, recording: Recording, model: ModelFacts) -> None:
        self._recording, self._needle = recording, Needle(recording.takes)
        told = recording.facts
        self.info = _info(told, model)
        self.tokenizer = _Tokenizer(self, told["tokenizer"]) if told.get("tokenizer") else None
        self.sampling = _Sampling(self, told["sampling"]) if told.get("sampling") else None

    def answered(self, call: Json) -> Json:
        """What was answered to a call then.

        Raises:
            Unsupported: nobody asked that.
            HarnessError: what the call came to then.
        """
        index, answers = self._recording.calls.get(tape.key_of(call), (-1, ()))
        if not answers:
            raise Unsupported(f"not recorded: {_words(call)}; {_holds(self._recording.facts)}.")
        answer = answers[self._needle.answer(index)]
        if "error" in answer:
            raise _error(answer["error"])
        return answer

    def array(self, value: Json) -> Array:
        """An array of an answer."""
        return self._recording.array(value)

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        answer = self.answered(forward_call(tokens, _number(state), want))
        logits = self.array(answer["logits"]) if "logits" in answer else None
        trace = {name: self.array(value) for name, value in answer.get("trace", {}).items()}
        return Output(logits, _Handle(answer["state"]) if "state" in answer else None, trace)

    def generate(
        self, tokens: npt.ArrayLike, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Sequence[int] = ()
    ) -> Iterator[Ids]:
        """See `Session.generate`; a sampler has to choose what was chosen then."""
        call = generate_call(self._checked(tokens), sampler is not None, max_new_tokens, stop)
        answer = self.answered(call)
        for step in answer["steps"]:
            self._drawn(step.get("drawn", ()), sampler)
            yield np.array(step["ids"], dtype=np.int64)
        self._drawn(answer.get("drawn", ()), sampler)
        if "broke" in answer:
            raise _error(answer["broke"])
        if not answer.get("ended", True):
            raise Unsupported(f"not recorded: more than {len(answer['steps'])} tokens of {_words(call)}.")

    def _drawn(self, drawn: Sequence[Json], sampler: Sampler | None) -> None:
        for shown in drawn:
            assert sampler is not None
            if np.asarray(sampler(self.array(shown["logits"]))).tolist() != shown["ids"]:
                raise Unsupported("not recorded: a generation with these draws; another seed or other parameters were.")

    def export_state(self, state: Any) -> State:
        """See `Session.export_state`."""
        found = self.answered({"verb": "export_state", "state": _number(state)})["parts"]
        parts = {name: self.array(value) for name, value in found.items()}
        att, ffn = parts.pop("att_shift"), parts.pop("ffn_shift")
        wkv = parts.pop("wkv") if "wkv" in parts else np.zeros((*att.shape[:2], 0, 0, 0), dtype=att.dtype)
        return State(att, wkv, ffn, parts)

    def import_state(self, state: State) -> Any:
        """See `Session.import_state`."""
        parts = {name: {"array": tape.hash_of(part)} for name, part in state.parts().items()}
        return _Handle(self.answered({"verb": "import_state", "parts": parts})["state"])

    def close(self) -> None:
        """Give its files back."""
        self._recording.close()


@dataclass(frozen=True)
class _Handle:
    """A state, by its number in the recording."""

    number: int


_ERRORS: Mapping[str, type[HarnessError]] = {"Unsupported": Unsupported, "InputError": InputError}


def _error(said: Sequence[str]) -> HarnessError:
    """What a call came to then; an error of the backend's own counts as the backend's."""
    kind, words = said
    return _ERRORS.get(kind, BackendError)(words)


def _number(state: Any) -> int | None:
    if state is not None and not isinstance(state, _Handle):
        raise BackendError("the state is no handle of this recording.")
    return None if state is None else state.number


def _info(told: Json, model: ModelFacts) -> Info:
    """A session's facts as recorded; what it was is said in a note."""
    known = {field.name for field in fields(Info)} - {"backend", "model"}
    facts = {name: value for name, value in told.get("info", {}).items() if name in known}
    facts["abilities"] = frozenset(facts.get("abilities", ())) - {"replay"}
    when = f", made {told['created']}" if told.get("created") else ""
    notes = [f"a recording of {told['subject']}{when}; its speed was not recorded"]
    if not told.get("fingerprint"):
        notes.append("the recording does not say which checkpoint it was made of")
    facts["notes"] = (*notes, *facts.get("notes", ()))
    return Info(NAME, model, **facts)


def _words(call: Json) -> str:
    """A call in words."""
    verb = str(call["verb"])
    if verb not in ("forward", "generate", "decode"):
        return {"import_state": "a state to go on from", "encode": f"encode {call.get('text', '')[:24]!r}"}.get(
            verb, verb
        )
    ids = np.asarray(call["tokens"])
    row = ids.reshape(-1, ids.shape[-1])[0].tolist()
    quoted = ", ".join(map(str, row[:SHOWN])) + (", ..." if len(row) > SHOWN else "")
    rows = f" in {len(ids)} rows" if ids.ndim > 1 and len(ids) > 1 else ""
    shown = f"{verb} of {len(row)} tokens [{quoted}]{rows}"
    if verb == "generate":
        return f"{shown}, {call['max_new_tokens']} new ones"
    start = "the zero state" if call.get("state") is None else "a kept state"
    return shown if verb == "decode" else f"{shown} from {start}, logits {call['logits']}"


def _holds(told: Json) -> str:
    suites = ", ".join(told.get("suites", ())) or "no whole suite"
    return (
        f"the recording of {told['subject']} holds what {suites} asked; `record --suite NAME` keeps what another asks"
    )


class _Tokenizer:
    """A tokenizer that was recorded."""

    def __init__(self, session: RecordedSession, told: Json) -> None:
        self._session, self.name = session, str(told["name"])
        if "vocab_size" in told:
            self.vocab_size = int(told["vocab_size"])

    def encode(self, text: str) -> list[int]:
        return list(self._session.answered({"verb": "encode", "text": text})["tokens"])

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        call = {"verb": "decode", "tokens": [int(one) for one in ids]}
        return base64.b64decode(self._session.answered(call)["base64"])


class _Sampling:
    """A sampler that was recorded."""

    def __init__(self, session: RecordedSession, semantics: str) -> None:
        self._session, self.semantics = session, semantics

    def probabilities(
        self, logits: Array, prompt: Sequence[int], generated: Sequence[int], parameters: Mapping[str, float]
    ) -> Array:
        call = sampling_call({"array": tape.hash_of(logits)}, prompt, generated, parameters)
        return self._session.array(self._session.answered(call)["p"])

    def render(self, template: str, prompt: str, system: str, suffix: str) -> list[int]:
        call = {"verb": "render", "template": template, "prompt": prompt, "system": system, "suffix": suffix}
        return list(self._session.answered(call)["tokens"])


def open_recorded(
    weights: "Weights", *, device: str = "cpu", dtype: str = "f32", threads: int = 0, argument: str = ""
) -> Session:
    """What was recorded as a backend.

    Args:
        weights: the checkpoint that it was recorded of.
        device: what the recording says counts, here and for `dtype` and `threads`.
        dtype: see `device`.
        threads: see `device`.
        argument: folder of a recording, or a dump.

    Raises:
        UsageError: no path.
        InputError: missing, damaged, or of another checkpoint.
    """
    del device, dtype, threads
    if not argument:
        raise UsageError("backend recorded takes a path: recorded:DIR, which `python -m harness record` writes.")
    path = Path(argument).expanduser()
    if tape.is_recording(path):
        recording = tape.load(path)
        _same_model(path, recording.facts, weights)
        return RecordedSession(recording, weights.facts)
    if (path / "bands.safetensors").is_file():
        raise InputError(f"{path} is a kit: what is expected, not what somebody computed. See docs/kit.md.")
    dump = dumps.read(path)
    _same_model(path, {"fingerprint": _told(dumps.located(path)).get("fingerprint", "")}, weights)
    return DumpSession(fitting(path, dump, weights.facts), np.array(dump.tokens), weights.facts, NAME)


def _same_model(path: Path, told: Json, weights: "Weights") -> None:
    """Refuse a recording of another checkpoint; one that does not say is checked by its sizes alone."""
    from backends.fingerprint import fingerprint

    was = told.get("fingerprint", "")
    if was and was != (now := fingerprint(weights)):
        name = told.get("model", {}).get("name", "another checkpoint")
        raise InputError(f"{path} was recorded of {name} (fingerprint {was}), not of {weights.facts.name} ({now}).")
    for key in ("vocab_size", "n_layer", "n_embd", "n_head"):
        then, here = told.get("model", {}).get(key), getattr(weights.facts, key)
        if then is not None and then != here:
            raise InputError(f"{path} was recorded of a model with {key} {then}; {weights.facts.name} has {here}.")


def says(argument: str) -> Mapping[str, str]:
    """Device and number format that a recording or a dump was made in; what is missing is told when it is opened."""
    try:
        file = dumps.located(Path(argument).expanduser())
        stamp = file.stat()
        return _said(file, stamp.st_mtime_ns, stamp.st_size)
    except (InputError, OSError):
        return {}


@lru_cache(maxsize=8)
def _said(file: Path, _changed: int, _size: int) -> Mapping[str, str]:
    told = _told(file)
    info = told.get("info", told)
    device, dtype = (str(info.get(key, "")) for key in ("device", "dtype"))
    known = {"device": device if device.partition(":")[0] in ("cpu", "cuda", "mps") else "cpu"}
    return known | ({"dtype": dtype.lower()} if dtype.lower() in DTYPES else {"dtype": "f32"})


def _told(file: Path) -> Json:
    """What a file says of itself; nothing where it cannot be read, for that is told elsewhere."""
    try:
        told = json.loads(dumps.header(file))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
