"""A conversation as a safetensors file: the state in the agreed layout, the settings, and which model it belongs to."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.base import Array, ModelFacts, State
from backends.errors import InputError, Unsupported
from backends.sampling import Params
from harness.conversation import Conversation, Point, Settings

if TYPE_CHECKING:
    from backends.weights import Weights

FORMAT = 1
KEY = "rwkv_harness_conversation"
"""Key of the file's metadata that holds everything but the tensors, as JSON."""

SIZES = ("version", "n_layer", "n_embd", "n_head", "head_size", "n_ffn", "vocab_size")
"""Facts that a state's shapes and meaning hang on."""

PARTS = ("att_shift", "wkv", "ffn_shift")


@dataclass(frozen=True)
class Identity:
    """Which model a conversation is with.

    Attributes:
        name: what the user asked for; may change when a file moves.
        sizes: see SIZES.
        fingerprint: of the weights.
    """

    name: str
    sizes: dict[str, Any]
    fingerprint: str

    def words(self) -> str:
        """For error messages."""
        sizes = self.sizes
        return (
            f"{self.name} (RWKV-{sizes['version']}, {sizes['n_layer']} layers of {sizes['n_embd']}, "
            f"fingerprint {self.fingerprint})"
        )


def identity(weights: "Weights") -> Identity:
    """Of an opened checkpoint; reads its values."""
    from backends.fingerprint import fingerprint

    return Identity(weights.facts.name, _sizes(weights.facts), fingerprint(weights))


def _sizes(facts: ModelFacts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in SIZES}


def save(conversation: Conversation, model: Identity, path: Path) -> None:
    """Write a conversation; never leaves half a file.

    Raises:
        Unsupported: the backend has no state to save.
        InputError: the file cannot be written.
    """
    from safetensors.numpy import save as packed

    info = conversation.session.info
    if not conversation.feed.keeps:
        raise Unsupported(f"{info.backend} has no ability 'state', so there is no state to save.")
    point, tensors = conversation.point, dict[str, Array]()
    if point.place is not None:
        parts = conversation.session.export_state(point.place).parts()
        tensors = {f"state.{name}": np.ascontiguousarray(value) for name, value in parts.items()}
    if conversation.last is not None and conversation.last.logits is not None:
        tensors["logits"] = np.ascontiguousarray(conversation.last.logits)
    facts = {
        "format": FORMAT,
        "model": asdict(model),
        "backend": info.backend,
        "dtype": info.dtype,
        "settings": asdict(conversation.settings),
        "draws": conversation.sampler.draws,
        "rest": point.rest,
        "rounds": point.rounds,
        "seen": {str(token): count for token, count in conversation.sampler.counts.seen.items()},
    }
    _write(path, packed(tensors, {KEY: json.dumps(facts)}))


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None


def load(conversation: Conversation, model: Identity, path: Path) -> None:
    """Go on with a saved conversation, its settings included.

    Raises:
        Unsupported: the backend has no states.
        InputError: unreadable, no conversation, or one with another model.
    """
    if not conversation.feed.keeps:
        raise Unsupported(f"{conversation.session.info.backend} has no ability 'state', so it cannot go on from one.")
    facts, tensors = _read(path)
    try:
        theirs = Identity(**facts["model"])
        settings = _settings(facts["settings"])
        seen = {int(token): float(count) for token, count in facts["seen"].items()}
        rounds = tuple((str(question), str(answer)) for question, answer in facts["rounds"])
        rest, draws = str(facts["rest"]), int(facts["draws"])
        words = theirs.words()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: a conversation whose description is damaged ({error}).") from None
    if theirs.fingerprint != model.fingerprint or theirs.sizes != model.sizes:
        raise InputError(
            f"{path} is a conversation with {words}; this is {model.words()}. "
            "A state means nothing to another model: open that one, or /reset."
        )
    place = _place(conversation, tensors, path)
    conversation.resume(Point(place, rest, rounds, seen), settings, draws)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(facts, dict):
        raise InputError(f"{path} is no saved conversation; /save writes one.")
    if facts.get("format") != FORMAT:
        raise InputError(f"{path} has format {facts.get('format')} of conversations; this program reads {FORMAT}.")
    return facts, tensors


def _settings(data: dict[str, Any]) -> Settings:
    stops = data.pop("stops")
    return Settings(**{**data, "params": Params(**data["params"]), "stops": None if stops is None else tuple(stops)})


def _place(conversation: Conversation, tensors: dict[str, Array], path: Path) -> Any:
    parts = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    if not parts:
        return None
    if not set(PARTS) <= set(parts):
        raise InputError(f"{path}: the state lacks {', '.join(sorted(set(PARTS) - set(parts)))}.")
    extra = {name: value for name, value in parts.items() if name not in PARTS}
    return conversation.session.import_state(State(**{name: parts[name] for name in PARTS}, extra=extra))
