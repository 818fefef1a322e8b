"""Greedy decode with every buffer at a fixed address, so that CUDA can replay a step as one graph."""

import torch
from torch import Tensor

from backends.compiled.net import Net
from backends.compiled.state import LayerState, NetState

_WARM_UP = 3
"""Steps before the capture: libraries allocate their workspaces in the first ones."""


class GreedySteps:
    """Tokens to tokens without leaving the device.

    On CUDA the step is captured once and replayed; elsewhere `advance` computes it directly, on the same buffers.

    Attributes:
        ids: (B, 1) int64, the newest tokens; overwritten by `advance`.
        state: the state before `ids`; overwritten by `advance`.
    """

    def __init__(self, net: Net, ids: Tensor, state: NetState) -> None:
        self._net = net
        self.ids = ids.clone()
        self.state = tuple(LayerState(*(part.clone() for part in layer)) for layer in state)
        self._graph = self._captured(ids, state) if ids.is_cuda else None

    def advance(self) -> None:
        """Feed `ids`; afterwards `ids` holds the greedy continuation and `state` what came before it."""
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    @torch.no_grad()
    def _step(self) -> None:
        logits, after = self._net.run(self.ids, self.state, "last")
        assert logits is not None
        self.ids.copy_(logits[:, -1].argmax(dim=-1, keepdim=True))
        self._write(after)

    def _write(self, state: NetState) -> None:
        for mine, new in zip(self.state, state, strict=True):
            for buffer, part in zip(mine, new, strict=True):
                buffer.copy_(part)

    def _captured(self, ids: Tensor, state: NetState) -> torch.cuda.CUDAGraph:  # pragma: no cover - needs a GPU
        side = torch.cuda.Stream(ids.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(ids.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._step()
        torch.cuda.current_stream(ids.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.ids.copy_(ids)  # the warm-up has moved both on
        self._write(state)
        return graph
