"""Greedy decode with every buffer at a fixed address, so that CUDA can replay a step as one graph."""

import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from backends.base import Ids
from backends.compiled.inductor import first_line
from backends.compiled.net import Net
from backends.compiled.state import LayerState, NetState

_WARM_UP = 3
"""Steps before the capture: libraries allocate their workspaces in the first ones, kernels are compiled."""


class Buffers(Protocol):
    """What a step works on, at fixed addresses.

    Attributes:
        ids: (B, 1) int64.
    """

    ids: Tensor

    def load(self, ids: Tensor, state: NetState) -> None:
        """Begin anew, behind a state that is left as it is."""


Told = Callable[[str], None]
"""Told why there is no graph, in words."""

Made = tuple[Buffers, Callable[[], None]]
"""Buffers, and what takes a step over them."""


class Lease:
    """Buffers that somebody has for as long as the lease is held; then the next one may have them."""

    def __init__(self, made: Made, give_back: Callable[[], None]) -> None:
        self.buffers, self._advance = made
        self.ids = self.buffers.ids
        weakref.finalize(self, give_back)

    def advance(self) -> None:
        """Feed `ids`; afterwards `ids` is the greedy continuation."""
        self._advance()

    def newest(self) -> Ids:
        """A copy of `ids` on the host, (B,)."""
        return np.array(self.ids[:, 0].cpu().numpy())


class Pool:
    """Buffers by batch size, and the graph over them: made once, never used by two at once.

    Attributes:
        idle: batch size -> those that nobody has.
    """

    def __init__(self) -> None:
        self.idle: dict[int, list[Made]] = {}

    def lease(self, ids: Tensor, state: NetState, make: Callable[[], Made]) -> Lease:
        """Buffers that hold a state and the tokens (B, 1) to feed next."""
        idle = self.idle.setdefault(len(ids), [])
        made = idle.pop() if idle else make()
        made[0].load(ids, state)
        return Lease(made, lambda: idle.append(made))


class GreedySteps:
    """Tokens to tokens without leaving the device.

    On CUDA the step is captured once and replayed; elsewhere `advance` computes it directly, on the same buffers.
    `failed` is told why where a capture was wanted and could not be had.

    Attributes:
        ids: (B, 1) int64, the newest tokens; overwritten by `advance`.
        state: the state before `ids`; overwritten by `advance`.
    """

    def __init__(
        self, net: Net, ids: Tensor, state: NetState, graph: bool = True, failed: Told = lambda _: None
    ) -> None:
        self._net = net
        self.ids = ids.clone()
        self.state = tuple(LayerState(*(part.clone() for part in layer)) for layer in state)
        self._advance = replayed(self._step, ids.device, graph, failed)
        self.load(ids, state)  # a warm-up has moved both on

    def load(self, ids: Tensor, state: NetState) -> None:
        """Begin anew, behind a state that is left as it is."""
        self.ids.copy_(ids)
        overwrite(self.state, state)

    def advance(self) -> None:
        """Feed `ids`; afterwards `ids` holds the greedy continuation and `state` what came before it."""
        self._advance()

    @torch.no_grad()
    def _step(self) -> None:
        logits, after = self._net.run(self.ids, self.state, "last")
        assert logits is not None
        self.ids.copy_(logits[:, -1].argmax(dim=-1, keepdim=True))
        overwrite(self.state, after)


def overwrite(mine: NetState, new: NetState) -> None:
    """Copy a state into the buffers of another: a launch for a number format, where layer by layer would be many."""
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for buffers, parts in zip(mine, new, strict=True):
        for buffer, part in zip(buffers, parts, strict=True):
            into, source = pairs.setdefault(buffer.dtype, ([], []))
            into.append(buffer)
            source.append(part)
    for into, source in pairs.values():
        torch._foreach_copy_(into, source)


def replayed(
    step: Callable[[], None], device: torch.device, graph: bool, failed: Told = lambda _: None
) -> Callable[[], None]:
    """A step over fixed buffers as one CUDA graph; the step itself where there are none or none is wanted.

    Buffers are left as a few steps leave them. Where the capture fails, `failed` is told why, and the step itself does.
    """
    if not graph or not capturable(device):
        return step
    try:
        return _captured(step, device)
    except Exception as error:  # a driver, an allocator, a kernel: each fails in its own way
        failed(f"launch by launch: capture failed ({first_line(error)})")
        return step


def capturable(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


def _captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:  # pragma: no cover - needs a GPU
    with torch.cuda.device(device):
        before = torch.cuda.current_stream(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(before)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step()
        before.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except BaseException:
            torch.cuda.set_stream(before)  # torch stays on the stream of a capture whose end fails
            raise
    done: Callable[[], None] = graph.replay
    return done


class Mailbox:
    """Tokens on their way from the device to the host, in order: the next step need not wait for them.

    Args:
        B: rows.
        device: where they come from.
        ahead: how many may be under way while the oldest is waited for.
    """

    def __init__(self, B: int, device: torch.device, ahead: int) -> None:
        self._cuda = device.type == "cuda"
        self._slots = [torch.empty(B, dtype=torch.int64, pin_memory=self._cuda) for _ in range(ahead + 1)]
        self._events = [torch.cuda.Event() for _ in self._slots] if self._cuda else []  # type: ignore[no-untyped-call]
        self._posted = self._taken = 0

    @property
    def waiting(self) -> int:
        """Posted and not taken."""
        return self._posted - self._taken

    @property
    def room(self) -> bool:
        """Whether one more may be posted."""
        return self.waiting < len(self._slots)

    def post(self, ids: Tensor) -> None:
        """Send (B, 1) off; the tensor may be overwritten by what the device does next."""
        assert self.room
        place = self._posted % len(self._slots)
        self._slots[place].copy_(ids[:, 0], non_blocking=self._cuda)
        if self._cuda:
            self._events[place].record(torch.cuda.current_stream(ids.device))
        self._posted += 1

    def take(self) -> Ids:
        """The oldest that was not taken, (B,); waits until it is there."""
        assert self.waiting
        place = self._taken % len(self._slots)
        if self._cuda:
            self._events[place].synchronize()
        self._taken += 1
        return np.array(self._slots[place].numpy())
