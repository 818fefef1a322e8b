"""Backend `torch-compile`: RWKV-5, 6, 7 and 7a over the whole prompt at once, on a CPU or on CUDA.

Written from the papers' formulas, apart from the reference. On a CPU, RWKV-7 in f32 and bf16 is one C program
(`native`); on CUDA its recurrence and its single tokens are kernels in Triton (`compiled.kernels`). Elsewhere torch
computes: token shift and projections see every token of the prompt together, the recurrence runs in chunks of matrix
products (`compiled.wkv`, `compiled.wkv_diagonal`), and a single token goes through a compiled step
(`compiled.inductor`). CUDA replays a step as one graph (`compiled.graph`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.base import Ids, Info, Output, Sampler, Session, State, Want, greedy
from backends.compiled.graph import Mailbox
from backends.compiled.host import checked_device, device_name
from backends.compiled.programs import Program, Steps, opened
from backends.compiled.state import NetState, check_rows, exported, imported
from backends.compiled.switches import Switches
from backends.errors import BackendError
from backends.weights import DTYPES, Weights

_DTYPES = ("f32", "bf16", "f16")
_ABILITIES = frozenset({"logits-all", "state", "batch", "generate"})


AHEAD = {"cuda": 2, "cpu": 0}
"""Tokens that a device computes while the host still waits for the oldest: a stop costs as many steps for nothing."""


def open_torch_compiled(weights: Weights, *, device: str, dtype: str, threads: int, argument: str = "") -> Session:
    """Open a checkpoint of RWKV-5, 6, 7 or 7a.

    Args:
        weights: the checkpoint; read now, not needed afterwards.
        device: "cpu", "cuda" or "cuda:N".
        dtype: "f32", "bf16" or "f16", of weights and activations; the state is float32.
        threads: CPU threads; 0 leaves torch's own choice.
        argument: switches, see `compiled.switches`.

    Raises:
        BackendError: the device cannot be used, or the number format is not served.
        InputError: the checkpoint lacks a tensor.
        UsageError: `RWKV_NATIVE` asks for what does not exist here, or a switch is unknown.
    """
    if dtype not in _DTYPES:
        raise BackendError(f"torch-compile serves dtype {', '.join(_DTYPES)}, not {dtype!r}.")
    where = checked_device(device)
    if threads > 0:
        torch.set_num_threads(threads)
    return _Compiled(weights, where, dtype, Switches.of(argument))


class _Compiled(Session):
    """The state handle is a tuple of `LayerState`; nothing writes to one that was handed out."""

    def __init__(self, weights: Weights, device: torch.device, dtype: str, switches: Switches) -> None:
        from backends.tokenizer import for_model

        self._device = device
        program = opened(weights, dtype, device, switches)
        self._program: Program | None = program
        self.tokenizer = for_model(weights.facts)
        self.info = Info(
            backend="torch-compile",
            model=weights.facts,
            device=str(device),
            device_name=device_name(device),
            dtype=dtype,
            state_dtype="f32",
            threads=torch.get_num_threads(),
            attention=program.attention,
            packages={"torch": torch.__version__},
            abilities=_ABILITIES | ({"tokenizer"} if self.tokenizer else set()),
            notes=program.notes,
        )

    @torch.no_grad()
    def _forward(self, tokens: Ids, state: NetState | None, want: Want) -> Output:
        logits, after = self._run(torch.from_numpy(tokens).to(self._device), state, want.logits)
        fetched = logits.float().cpu().numpy() if logits is not None and want.fetch else None
        return Output(logits=fetched, state=after if want.state else None)

    def _run(self, ids: Tensor, state: NetState | None, logits: str) -> tuple[Tensor | None, NetState]:
        program = self._opened
        if state is None:
            state = program.start(self.info.model, len(ids))
        check_rows(state, len(ids))
        found = program.run(ids, state, logits)
        self._take_notes()
        return found

    @property
    def _opened(self) -> Program:
        if self._program is None:
            raise BackendError("this torch-compile session is closed; open the checkpoint again.")
        return self._program

    def _take_notes(self) -> None:
        if self._opened.notes != self.info.notes:  # a compiler has failed since
            self.info = replace(self.info, notes=self._opened.notes)

    def generate(
        self, tokens: npt.ArrayLike, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Sequence[int] = ()
    ) -> Iterator[Ids]:
        """As the base class; greedy sampling stays on the device."""
        if sampler not in (None, greedy) or self._opened.grows:
            yield from super().generate(tokens, sampler, max_new_tokens, stop)
            return
        ids = self._checked(tokens)
        stopped = np.zeros(len(ids), dtype=bool)
        for new in self._greedy(ids, max_new_tokens):
            if stop:
                stopped |= np.isin(new, stop)
                if stopped.all():
                    return
            yield new

    def _greedy(self, tokens: Ids, most: int) -> Iterator[Ids]:
        if most < 1:
            return
        with torch.no_grad():
            logits, state = self._run(torch.from_numpy(tokens).to(self._device), None, "last")
            assert logits is not None
            ids = logits[:, -1].argmax(dim=-1, keepdim=True)
            first, ahead = ids[:, 0].cpu().numpy(), AHEAD[self._device.type]
            if most > 1:  # before the first token is given away: what is set up once is no part of decoding
                steps = self._opened.steps(ids, state)
                box = Mailbox(len(ids), self._device, ahead)
                self._take_notes()
        yield first
        if most > 1 and ahead:
            yield from delivered(steps, box, most - 1)
            return
        for _ in range(most - 1):
            steps.advance()
            yield steps.newest()

    @property
    def skipped_bytes(self) -> int:  # type: ignore[override]
        """What calls have left unread so far; 0 once closed."""
        return self._program.skipped_bytes if self._program else 0

    @property
    def skipped_operations(self) -> int:  # type: ignore[override]
        """What calls have left out so far; 0 once closed."""
        return self._program.skipped_operations if self._program else 0

    def export_state(self, state: NetState) -> State:
        """Copies as float32, stacked over layers."""
        return exported(state)

    def import_state(self, state: State) -> NetState:
        """Inverse of `export_state`; shapes are checked first."""
        plain = imported(state, self.info.model, DTYPES[self.info.dtype], self._device)
        return self._opened.resume(plain, state)

    def sync(self) -> None:
        """Wait for the GPU; a CPU has finished when a call returns."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """Let go of the weights."""
        self._program = None


def delivered(steps: Steps, box: Mailbox, count: int) -> Iterator[Ids]:
    """So many tokens; the device is told to go on before the oldest has arrived."""
    while count or box.waiting:
        while count and box.room:
            steps.advance()
            box.post(steps.ids)
            count -= 1
        yield box.take()
