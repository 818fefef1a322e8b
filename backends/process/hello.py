"""What a program says of itself, checked."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from backends.base import DTYPES, ModelFacts
from backends.errors import BackendError

PROTOCOL = 1

ABILITIES = ("logits-all", "state", "trace", "batch", "generate", "tokenizer")
"""What a port may be able to do beyond hello, load and forward."""

DEVICES = ("cpu", "cuda", "mps")

SIZES = ("vocab_size", "n_embd", "n_layer", "n_head", "head_size", "n_ffn")
"""What the answer to `load` may state."""


@dataclass(frozen=True)
class Hello:
    """The answer to `hello`; see docs/protocol.md."""

    name: str
    version: str = ""
    abilities: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("f32",)
    devices: tuple[str, ...] = ("cpu",)
    versions: tuple[str, ...] = ("7",)
    state_dtype: str = "f32"
    attention: str = "not stated"
    trace: tuple[str, ...] = ()
    arrays: str = "inline"
    notes: tuple[str, ...] = ()

    def serves(self, dtype: str, device: str, version: str) -> None:
        """Refuse what the port does not serve, in words."""
        asked = (("number format", dtype, self.dtypes), ("device", device, self.devices))
        for kind, value, served in asked:
            if value.partition(":")[0] not in served:
                raise BackendError(
                    f"{self.name} serves {kind} {', '.join(served)}, not {value}; write 'process:...@{served[0]}'."
                )
        if version not in self.versions:
            raise BackendError(f"{self.name} serves RWKV {', '.join(self.versions)}, not {version}.")

    def traceable(self, patterns: tuple[str, ...], layers: int) -> list[str]:
        """Full names that the port can record and somebody asked for, in the port's order."""
        names = (
            name.replace("*", str(layer))
            for name in self.trace
            for layer in (range(layers) if "*" in name else range(1))
        )
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def greeted(told: dict[str, Any]) -> Hello:
    """The answer to `hello`.

    Raises:
        BackendError: another protocol, no name, or a word that nobody knows.
    """
    if told.get("protocol") != PROTOCOL or isinstance(told.get("protocol"), bool):
        raise BackendError(f"speaks protocol {told.get('protocol')!r}; this is {PROTOCOL}, see docs/protocol.md")
    given: dict[str, Any] = {key: _read(key, told[key]) for key in _KEYS if key in told}
    if not given.get("name"):
        raise BackendError("states no name")
    hello = Hello(**given)
    known = (
        ("ability", hello.abilities, ABILITIES),
        ("dtype", hello.dtypes, DTYPES),
        ("state_dtype", (hello.state_dtype,), DTYPES),
        ("device", hello.devices, DEVICES),
        ("way of arrays", (hello.arrays,), ("inline", "file")),
    )
    for kind, values, allowed in known:
        for value in values:
            if value not in allowed:
                raise BackendError(f"states the {kind} {value!r}; known are {', '.join(allowed)}")
    if not hello.dtypes or not hello.devices:
        raise BackendError("states no number format, or no device")
    return hello


def agrees(told: dict[str, Any], facts: ModelFacts) -> None:
    """Refuse a port that understood the file otherwise than we did."""
    for key in SIZES:
        if key in told and told[key] != getattr(facts, key):
            raise BackendError(f"read {key} {told[key]!r} from the checkpoint, which has {getattr(facts, key)}")


def _word(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BackendError(f"states {key} {value!r}, where a string is due")
    return value


def _words(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BackendError(f"states {key} {str(value)[:60]!r}, where a list of strings is due")
    return tuple(value)


_KEYS: dict[str, Callable[[str, Any], Any]] = {
    name: _words if name in ("abilities", "dtypes", "devices", "versions", "trace", "notes") else _word
    for name in Hello.__dataclass_fields__
}


def _read(key: str, value: Any) -> Any:
    return _KEYS[key](key, value)
