"""A session that answers what a test wrote down: so that stop texts, characters and states can be placed exactly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backends.base import Ids, Info, ModelFacts, Output, Session, State, Want
from backends.errors import InputError

FACTS = ModelFacts("scripted", "7", "made by a test", 256, 4, 1, 1, 4, 16, 1, tokenizer="bytes")


class Pieces:
    """A vocabulary of a few tokens of several bytes above the 256 single ones."""

    name = "pieces"

    def __init__(self, *more: bytes) -> None:
        self.table = [bytes([value]) for value in range(256)] + list(more)

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        if max(ids, default=0) >= len(self.table):
            raise InputError("no such id")
        return b"".join(self.table[ident] for ident in ids)


class Scripted(Session):
    """Greedy answers come from a script: after each fed text that ends as a key does, its tokens follow.

    Args:
        script: end of the fed text -> ids of the answer.
        tokenizer: of the ids.
        abilities: of the session.
    """

    def __init__(
        self,
        script: Mapping[str, Sequence[int]],
        tokenizer: Any = None,
        abilities: frozenset[str] = frozenset({"state", "logits-all"}),
    ) -> None:
        self.script = script
        self.tokenizer: Any = tokenizer or Pieces()
        self.info = Info("scripted", FACTS, abilities=abilities)
        self.fed: list[list[int]] = []

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        ids = [*(state or ()), *tokens[0].tolist()]
        self.fed.append(tokens[0].tolist())
        logits = np.full((1, 1, self.tokenizer.vocab_size), -5.0, dtype=np.float32)
        logits[0, 0, self._next(ids)] = 5.0
        return Output(logits, tuple(ids) if want.state else None)

    def _next(self, ids: list[int]) -> int:
        raw = self.tokenizer.decode_bytes(ids)
        for end, answer in self.script.items():
            for count in range(len(answer)):
                if raw.endswith(end.encode() + self.tokenizer.decode_bytes(answer[:count])):
                    return int(answer[count])
        return ord(".")

    def text(self, state: Any) -> str:
        return str(self.tokenizer.decode_bytes(state).decode())

    def _checked(self, tokens: Any) -> Ids:
        return np.atleast_2d(np.asarray(tokens, dtype=np.int64))

    def export_state(self, state: Any) -> State:
        ids = np.array(state, dtype=np.float32)
        return State(ids, ids[:1], ids[:1], {"more": ids})

    def import_state(self, state: State) -> Any:
        assert np.array_equal(state.extra["more"], state.att_shift)
        return tuple(int(ident) for ident in state.att_shift)
