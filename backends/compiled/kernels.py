"""RWKV-7 on CUDA: prompts by the layers in torch around Triton's recurrence, single tokens by Triton alone."""

import torch
from torch import Tensor

from backends.base import ModelFacts
from backends.compiled import triton_ops
from backends.compiled.block import Layer
from backends.compiled.graph import Lease, Made, Pool, capturable, replayed
from backends.compiled.inductor import Stepper
from backends.compiled.net import load
from backends.compiled.packed import PackedLayer, packed, packed_ends
from backends.compiled.state import NetState
from backends.compiled.step import Model, Step
from backends.compiled.switches import Switches
from backends.weights import DTYPES, Weights


def obstacle(facts: ModelFacts, device: torch.device, switches: Switches) -> str:
    """Why this program does not serve a model on a device, in words; empty if it does."""
    if why := triton_ops.obstacle(device, switches):
        return why
    if facts.version != "7":
        return f"the decode step in Triton knows RWKV-7, not {facts.version}"
    if facts.head_size not in triton_ops.HEADS:
        return f"the kernels in Triton know head sizes {triton_ops.HEADS}, not {facts.head_size}"
    if facts.n_ffn % 16:
        return f"the kernels in Triton know inner widths that are multiples of 16, not {facts.n_ffn}"
    return ""


class Kernels:
    """The program; see `programs.Program`."""

    grows = False

    def __init__(self, weights: Weights, dtype: str, device: torch.device, switches: Switches) -> None:
        self._switches, self._device = switches, device
        layers: list[PackedLayer] = []

        def kept(p: Layer) -> Layer:
            step_layer, same = packed(p, switches.sparse)
            layers.append(step_layer)
            return same

        net = load(weights, dtype, str(device), kept, switches.embedding)
        ends = packed_ends(net.ends)
        net = net.with_ends(ends.ends)
        zeros = torch.zeros(1, dtype=torch.int64, device=device)
        self._model = Model(weights.facts, DTYPES[dtype], device, layers, ends, zeros)
        self._stepper = Stepper(net, device, prompts=True)
        self._pool, self._why_no_graph = Pool(), ""
        self.start, self.resume = net.start, net.resume

    @property
    def attention(self) -> str:
        """How the recurrence is evaluated, in words."""
        return "WKV-7 in Triton: chunks of 32, single tokens in place"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of it."""
        graph = self._why_no_graph or ("one CUDA graph a batch size" if self._switches.graph else "launch by launch")
        found = [
            self._stepper.note,
            f"single tokens: Triton, {graph if capturable(self._device) else 'interpreted'}",
        ]
        found += ["embedding table in the host's memory"] if self._switches.embedding else []
        found += ["rows of the channel mix that meet zeros are not read (one row)"] if self._switches.sparse else []
        return tuple(found)

    skipped_operations = 0

    @property
    def skipped_bytes(self) -> int:
        """Bytes of weights left unread so far, where the squared ReLU left zeros for a token of one row."""
        return self._model.spared()

    def run(self, ids: Tensor, state: NetState, logits: str) -> tuple[Tensor | None, NetState]:
        """Feed tokens (B, T); see `Net.run`."""
        if ids.shape[1] > 1:
            return self._stepper.net_for(ids, state).run(ids, state, logits)
        lease = self.steps(ids, state)
        lease.advance()
        step = lease.buffers
        assert isinstance(step, Step)
        return (None if logits == "none" else step.logits[:, None].clone()), step.kept()

    def steps(self, ids: Tensor, state: NetState) -> Lease:
        """Begin to decode; buffers, and the graph over them, are kept by batch size."""

        def made() -> Made:
            step, zeros = Step(self._model, len(ids)), self._model.zeros
            counted = zeros.clone()
            graph = self._switches.graph and not self._why_no_graph
            advance = replayed(step.advance, self._device, graph, self._no_graph)
            zeros.copy_(counted)  # steps before a capture are nobody's tokens
            return step, advance

        return self._pool.lease(ids, state, made)

    def _no_graph(self, why: str) -> None:
        self._why_no_graph = why
