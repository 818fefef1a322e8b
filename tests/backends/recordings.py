"""Recordings of a tiny model: making one, opening it, and what is asked of both."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.base import Array, Ids, Info, Output, Session, State, Want
from backends.errors import InputError
from backends.fingerprint import fingerprint
from backends.recorder import Recorder
from backends.tape import Tape
from backends.weights import Weights

V = 61


def facts(weights: Weights, **more: Any) -> dict[str, Any]:
    info = {"dtype": "f32", "abilities": ["logits-all", "state", "trace", "batch", "replay"], "notes": ["as it was"]}
    known = {"subject": "torch-cpu-f32", "suites": ["logits"], "fingerprint": fingerprint(weights), "info": info}
    return {**known, "created": "2026-01-01", "model": {"name": "M", "vocab_size": V}, **more}


def recorded(folder: Path, weights: Weights, session: Session, asked: Callable[[Session], Any], **more: Any) -> Any:
    """What `asked` returns while it is recorded into a folder."""
    on = Tape(folder)
    found = asked(Recorder(session, on))
    on.finish(facts(weights, **more))
    return found


def played(folder: Path, weights: Weights) -> Session:
    return registry.open_session(registry.parse(f"recorded:{folder}"), weights)


def logits(out: Output) -> Array:
    assert out.logits is not None
    return out.logits


def everything(session: Session) -> list[Array]:
    """One call of every kind."""
    out = session.forward([1, 2, 3], want=Want("all", state=True, trace=("blocks.1.att.w", "head")))
    saved = session.export_state(out.state)
    on = session.forward([4], session.import_state(saved))
    rows = session.forward([[1, 2], [3, 4]], want=Want("last", state=True))
    free = list(session.generate([5, 6], max_new_tokens=3, stop=[60]))
    drawn = list(session.generate([5, 6], lambda z: z.argmin(axis=-1).astype(np.int64), 2))
    silent = session.forward([1, 2, 3], want=Want("all", fetch=False))
    assert silent.logits is None
    both = session.forward_together([([7], None, None), ([8, 9], out.state, Want("none", state=True))])
    after = session.export_state(both[1].state).parts().values()
    session.sync()
    parts = [logits(out), *out.trace.values(), *saved.parts().values(), logits(on), logits(rows)]
    return [*parts, *free, *drawn, logits(both[0]), *after]


def same(a: Sequence[Array], b: Sequence[Array]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
    )


class Chance(Session):
    """Answers every call otherwise, as one that rounds at random does."""

    def __init__(self, weights: Weights) -> None:
        self.info = Info("chance", weights.facts, abilities=frozenset({"state", "logits-all"}))
        self.count = 0

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        self.count += 1
        drawn = np.full((len(tokens), 1, V), self.count, dtype=np.float32)
        return Output(drawn if want.logits != "none" else None, state=self.count)

    def export_state(self, state: Any) -> State:
        part = np.full((1, 1, 1), state, dtype=np.float64)
        return State(part, np.zeros((1, 1, 0, 0, 0)), part, {"memory": part})

    def import_state(self, state: State) -> Any:
        return 0


def refused(folder: Path, weights: Weights, words: str) -> None:
    with pytest.raises(InputError, match=words) as seen:
        played(folder, weights)
    assert "\n" not in str(seen.value)
    assert seen.value.exit_code == 3
