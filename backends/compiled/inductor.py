"""The stack of layers in torch: what of it is compiled, when, and what happens where it cannot be.

Only the decode step of one row is compiled on a CPU, when the first single token arrives: one layer, its
variant for layer 0, and the head. A layer compiles in seconds where the whole stack takes a minute, and on two
cores the compiled step decodes about twice as many tokens. Prompts and batches stay uncompiled there: they live in
matrix products, which a compiler does not speed up, and every new length would be compiled again.
"""

import importlib.util
import logging
import os
import shutil
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.compiled.net import Block, Net
from backends.compiled.parts import Across
from backends.compiled.state import NetState


def obstacle(device: torch.device) -> str:
    """Why nothing can be compiled here, in words; empty when nothing known stands against it."""
    for switch in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        if os.environ.get(switch, "0") == "1":
            return f"switched off by {switch}=1"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "the Python headers (Python.h) are not installed"
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "the Python package 'triton' is not installed"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"no C++ compiler ({compiler} not found)"


class Stepper:
    """Chooses the program for one forward: compiled for a single token, plain for everything else.

    With `prompts` it is the other way round: prompts are compiled, once for all lengths, and single tokens have another
    program. That needs a recurrence that the compiler can pass through as a call.

    Attributes:
        net: the plain program.
        note: how single tokens are computed, for `Info.notes`.
    """

    def __init__(self, net: Net, device: torch.device, prompts: bool = False) -> None:
        self.net = net
        self._prompts = prompts
        self._any_batch = device.type == "cuda"
        self._compiled: dict[int, Net] = {}
        reason = "the state of this version grows with every token" if net.grows else obstacle(device)
        self._enabled = not reason
        what = "prompts" if prompts else "decode step"
        self.note = f"runs uncompiled: {reason}" if reason else f"{what} compiled by inductor at first use"

    def net_for(self, ids: Tensor, state: NetState) -> Net:
        """The program for tokens (B, T), compiled now if this is the first time."""
        B, T = ids.shape
        if not self._enabled or (T > 1) != self._prompts or (B > 1 and not self._any_batch):
            return self.net
        if B not in self._compiled:
            self._compiled[B] = self._compile(ids, state)
        return self._compiled[B]

    def _compile(self, ids: Tensor, state: NetState) -> Net:
        block = _for_any_length(self.net.block) if self._prompts else _compiled(self.net.block)
        net = replace(
            self.net, block=block, read_out=self.net.read_out if self._prompts else _compiled(self.net.read_out)
        )
        try:
            with _quiet():
                net.run(ids, state, "last")
        except Exception as error:  # a compiler fails in its own ways; the plain program is always there
            self._enabled = False
            self.note = f"runs uncompiled: torch.compile failed ({first_line(error)})"
            return self.net
        return replace(net, block=self._while_it_lasts(block))

    def _while_it_lasts(self, block: Block) -> Block:
        """A compiled layer that gives way to the plain one once the compiler has had enough sets of shapes."""

        def layer(x: Tensor, across: Across, state: Any, p: Any) -> tuple[Tensor, Across, Any]:
            if self._enabled:
                try:
                    return block(x, across, state, p)
                except torch._dynamo.exc.FailOnRecompileLimitHit:
                    self._enabled = False
                    self.note = "runs uncompiled by now: torch.compile gives up after so many sets of shapes"
            return self.net.block(x, across, state, p)

        return layer


def _for_any_length(block: Block) -> Block:
    """A layer compiled once for prompts of every length."""
    done = _compiled(block, dynamic=None)

    def marked(x: Tensor, across: Across, state: Any, p: Any) -> tuple[Tensor, Across, Any]:
        for z in (x, *across):
            if z is not None:
                torch._dynamo.maybe_mark_dynamic(z, 1)
        after: tuple[Tensor, Across, Any] = done(x, across, state, p)
        return after

    return marked


def _compiled(function: Callable[..., Any], dynamic: bool | None = False) -> Callable[..., Any]:
    """The function compiled for exactly the shapes it is called with, or with `dynamic` None for those it is told.

    The compiler keeps its results per code object and gives up after eight sets of shapes. Each session
    therefore compiles a copy, so that many sessions in one process do not count against one another.
    """
    copy = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__
    )
    done: Callable[..., Any] = torch.compile(copy, dynamic=dynamic, fullgraph=True)
    return done


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's own warnings and log lines from the user; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: Exception) -> str:
    """An error in words that fit into a note."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]
