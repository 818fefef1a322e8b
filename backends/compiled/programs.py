"""What computes a session: the C program where it serves, else the stack of layers in torch."""

from typing import Protocol

import torch
from torch import Tensor

from backends.base import ModelFacts, State
from backends.compiled.graph import GreedySteps
from backends.compiled.inductor import Stepper
from backends.compiled.net import attention, load
from backends.compiled.state import LayerState, NetState
from backends.native import ops
from backends.native.build import NoProgramError
from backends.native.model import NativeNet, NativeSteps, obstacle
from backends.weights import Weights


class Steps(Protocol):
    """Greedy decode: `advance` feeds `ids`, (B, 1), and puts the continuation there."""

    ids: Tensor

    def advance(self) -> None:
        """One step."""


class Program(Protocol):
    """Tokens to logits and states."""

    @property
    def grows(self) -> bool:
        """Whether a state is larger after every token."""

    @property
    def attention(self) -> str:
        """How the recurrence is evaluated, in words."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of it; may change while it runs."""

    def start(self, facts: ModelFacts, B: int) -> NetState:
        """The state before the first token."""

    def resume(self, plain: tuple[LayerState, ...], state: State) -> NetState:
        """The state that continues from one in the agreed layout."""

    def run(self, ids: Tensor, state: NetState, logits: str) -> tuple[Tensor | None, NetState]:
        """Feed tokens (B, T); see `Net.run`."""

    def steps(self, ids: Tensor, state: NetState) -> Steps:
        """Begin to decode."""


class Native(NativeNet):
    """The C program, described."""

    @property
    def attention(self) -> str:
        """How the recurrence is evaluated, in words."""
        return f"WKV-7 token by token in C ({self.instructions})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of it."""
        return (f"one C program for prompts, batches and single tokens ({self.instructions})",)

    def steps(self, ids: Tensor, state: NetState) -> Steps:
        """Begin to decode."""
        return NativeSteps(self, ids, state)


class Layers:
    """The layers in torch, single tokens compiled."""

    def __init__(self, weights: Weights, dtype: str, device: torch.device, why: str) -> None:
        self._stepper = Stepper(load(weights, dtype, str(device)), device)
        scans = device.type == "cpu" and ops.ready()
        self._why = (f"{'only the recurrence is in C' if scans else 'no C program'}: {why}",) if why else ()
        chunks, comma, more = attention(weights.facts.version).partition(",")
        self.attention = (f"WKV-{weights.facts.version[0]} token by token in C" if scans else chunks) + comma + more
        self.start, self.resume = self._stepper.net.start, self._stepper.net.resume

    @property
    def grows(self) -> bool:
        """Whether a state is larger after every token."""
        return self._stepper.net.grows

    @property
    def notes(self) -> tuple[str, ...]:
        """What is compiled, and why torch computes."""
        return (self._stepper.note, *self._why)

    def run(self, ids: Tensor, state: NetState, logits: str) -> tuple[Tensor | None, NetState]:
        """Feed tokens (B, T); see `Net.run`."""
        return self._stepper.net_for(ids, state).run(ids, state, logits)

    def steps(self, ids: Tensor, state: NetState) -> Steps:
        """Begin to decode."""
        return GreedySteps(self._stepper.net_for(ids, state), ids, state)


def opened(weights: Weights, dtype: str, device: torch.device) -> Program:
    """The program for a checkpoint.

    Raises:
        UsageError: `RWKV_NATIVE` asks for what does not exist here.
    """
    why = obstacle(weights.facts, dtype) if device.type == "cpu" else ""
    if device.type == "cpu" and not why:
        try:
            return Native(weights, dtype, torch.get_num_threads())
        except NoProgramError as error:
            why = str(error)
    return Layers(weights, dtype, device, why)
