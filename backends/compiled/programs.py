"""What computes a session: the C program where it serves, else the stack of layers in torch."""

from typing import Protocol

import torch
from torch import Tensor

from backends.base import Ids, ModelFacts, State
from backends.compiled import kernels, triton_ops
from backends.compiled.graph import GreedySteps, Made, Pool
from backends.compiled.inductor import Stepper
from backends.compiled.net import attention, load
from backends.compiled.state import LayerState, NetState
from backends.compiled.switches import Switches
from backends.native import ops
from backends.native.build import NoProgramError
from backends.native.model import NativeNet, NativeSteps, obstacle
from backends.weights import Weights


class Steps(Protocol):
    """Greedy decode: `advance` feeds `ids`, (B, 1), and puts the continuation there."""

    ids: Tensor

    def advance(self) -> None:
        """One step."""

    def newest(self) -> Ids:
        """A copy of `ids` on the host, (B,)."""


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

    @property
    def skipped_bytes(self) -> int:
        """Bytes of weights left unread so far."""

    @property
    def skipped_operations(self) -> int:
        """Operations left out so far."""

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

    skipped_bytes = skipped_operations = 0

    def __init__(self, weights: Weights, dtype: str, device: torch.device, why: str, switches: Switches) -> None:
        net = load(weights, dtype, str(device), host_table=switches.embedding and device.type == "cuda")
        self._stepper, self._switches, self._pool = Stepper(net, device), switches, Pool()
        scans = device.type == "cpu" and ops.ready()
        instead = (
            "only the recurrence is in C" if scans else "no C program" if device.type == "cpu" else "no Triton step"
        )
        self._why: tuple[str, ...] = (f"{instead}: {why}",) if why else ()
        self._why_no_graph = ""
        chunks, comma, more = attention(weights.facts.version).partition(",")
        if scans:
            chunks = f"WKV-{weights.facts.version[0]} token by token in C"
        elif _in_triton(weights.facts, device, switches):
            chunks = "WKV-7 in Triton (chunks of 32)"
        self.attention = chunks + comma + more
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
        table = self._switches.embedding  # whose rows the host looks up
        graph = self._switches.graph and not table and not self._why_no_graph

        def made() -> Made:
            steps = GreedySteps(self._stepper.net_for(ids, state), ids, state, graph, self._no_graph)
            return steps, steps.advance

        return self._pool.lease(ids, state, made)

    def _no_graph(self, why: str) -> None:
        self._why_no_graph = why
        self._why += (f"decode {why}",)


def _in_triton(facts: ModelFacts, device: torch.device, switches: Switches) -> bool:
    """Whether the layers hand their recurrence to Triton."""
    known = facts.version in ("7", "7a", "7b") and facts.head_size in triton_ops.HEADS
    return known and not triton_ops.obstacle(device, switches)


def opened(weights: Weights, dtype: str, device: torch.device, switches: Switches) -> Program:
    """The program for a checkpoint.

    Raises:
        UsageError: `RWKV_NATIVE` asks for what does not exist here.
    """
    why = kernels.obstacle(weights.facts, device, switches)
    if not why:
        return kernels.Kernels(weights, dtype, device, switches)
    if device.type == "cpu":
        why = obstacle(weights.facts, dtype)
        try:
            if not why:
                return Native(weights, dtype, torch.get_num_threads(), switches.sparse)
        except NoProgramError as error:
            why = str(error)
    return Layers(weights, dtype, device, why, switches)
