"""A program that speaks the protocol, behind the contract of a backend."""

import base64
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.base import Array, Ids, Info, Output, Sampler, Session, State, Want, greedy
from backends.errors import BackendError, UsageError
from backends.process import wire
from backends.process.client import Ask, Client
from backends.process.handles import Handle, Handles
from backends.process.hello import PROTOCOL, Hello, agrees, greeted
from backends.process.limits import from_environment
from backends.process.model import provide
from backends.process.program import ProgramError
from backends.weights import Weights

ROW_BY_ROW = "the rows of a batch are fed one after another: the program has no ability 'batch'"
ONCE_MORE = "generation feeds everything again for every token: the program has no ability 'state'"


class ProcessSession(Session):
    """A program as a backend.

    Args:
        weights: the checkpoint.
        command: the program and its arguments.
        dtype, device: what it shall compute in, and on.
        threads: 0 leaves the number to the program.
        provided: puts what the program opens into a folder and returns its path; an engine's own kind of file.

    Raises:
        BackendError: it cannot be started, does not serve this, or breaks the protocol.
    """

    def __init__(
        self,
        weights: Weights,
        command: Sequence[str],
        dtype: str,
        device: str,
        threads: int,
        provided: Callable[[Weights, Path], Path] = provide,
    ) -> None:
        self._hello: Hello | None = None
        self._facts, self._wanted = weights.facts, {"dtype": dtype, "device": device, "threads": threads}
        self._client = Client(command, from_environment(), self._greet)
        self._handles = Handles()
        self._folder = tempfile.TemporaryDirectory(prefix="rwkv-process-")
        self._files = wire.Files(Path(self._folder.name))
        try:
            self._path = provided(weights, self._files.folder)
            self._client.start()
        except BaseException:
            self.close()
            raise
        self.info = self._described(dtype, device, threads)
        self.tokenizer = PortTokenizer(self) if "tokenizer" in self.hello.abilities else None

    @property
    def hello(self) -> Hello:
        """What the program said of itself."""
        assert self._hello is not None
        return self._hello

    @property
    def shares_batch(self) -> bool:  # type: ignore[override]
        """Whether the program takes batches; else rows are fed one after another."""
        return "batch" in self.hello.abilities

    def _greet(self, ask: Ask) -> None:
        """Bring a fresh program to the point where it takes calls."""
        with self.blamed("hello"):
            hello = greeted(ask("hello", {"protocol": PROTOCOL}))
            if self._hello is not None and hello != self._hello:
                raise BackendError("it states other things than at its first start")
            self._hello = hello
            hello.serves(str(self._wanted["dtype"]), str(self._wanted["device"]), self._facts.version)
        params = {"path": str(self._path), **self._wanted, "scratch": str(self._files.folder)}
        with self.blamed("load"):
            agrees(ask("load", params), self._facts)

    def _described(self, dtype: str, device: str, threads: int) -> Info:
        hello, notes = self.hello, [*self.hello.notes]
        if "batch" not in hello.abilities:
            notes.append(ROW_BY_ROW)
        if "state" not in hello.abilities:
            notes.append(ONCE_MORE)
        return Info(
            backend="process",
            model=self._facts,
            device=device,
            dtype=dtype,
            state_dtype=hello.state_dtype,
            threads=threads,
            attention=hello.attention,
            packages={hello.name: hello.version or "version not stated"},
            abilities=frozenset({*hello.abilities, "batch", "generate"}),
            notes=tuple(notes),
        )

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """One request; states that nobody refers to any more are released first."""
        for number in self._handles.dropped(self._client.life) if self._client.running else ():
            self._client.ask("release", {"state": number})
        return self._client.ask(method, params)

    @contextmanager
    def blamed(self, method: str) -> Iterator[None]:
        """Say whose answer it was that is wrong; what it exchanged in files is deleted."""
        try:
            yield
        except ProgramError:
            raise
        except BackendError as error:
            name = self._hello.name if self._hello else self._client.command[0]
            raise BackendError(f"{name}, {method}: {error}") from None
        finally:
            self._files.clear()

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        numbers = self._handles.numbers(state, self._client.life, len(tokens))
        if "batch" in self.hello.abilities:
            out = self._called(tokens, numbers[0], want)
            kept = self._handles.new([out.state], self._client.life, len(tokens)) if want.state else None
            return replace(out, state=kept)
        rows = [self._called(row, number, want) for row, number in zip(tokens, numbers, strict=False)]
        return self._stacked(rows, want)

    def _called(self, tokens: Ids, number: int | None, want: Want) -> Output:
        """One `forward` of the protocol, with rows or without; `state` is the bare number."""
        names = self.hello.traceable(want.trace, self._facts.n_layer)
        params = {"tokens": tokens.tolist(), "state": number, "logits": want.logits, "keep": want.state}
        logits, shape = None, tokens.shape
        with self.blamed("forward"):
            told = self.ask("forward", {**params, "trace": names, "fetch": want.fetch})
            if want.logits != "none" and want.fetch:
                due = (*shape[:-1], shape[-1] if want.logits == "all" else 1, self._facts.vocab_size)
                logits = self._files.array(told.get("logits"), due, "logits")
            trace = self._traced(told.get("trace") or {}, names, shape)
            kept = wire.whole(told.get("state"), "the state's handle", 1) if want.state else None
        return Output(logits, kept, trace)

    def _traced(self, told: Any, names: list[str], shape: tuple[int, ...]) -> Mapping[str, Array]:
        if not isinstance(told, dict) or not set(told) <= set(names):
            raise BackendError("the trace holds what nobody asked for")
        arrays = {name: self._files.array(told[name], None, name) for name in names if name in told}
        for name, array in arrays.items():
            if array.shape[: len(shape)] != shape:
                raise BackendError(f"{name} has shape {array.shape}, which has to begin with {shape}")
        return arrays

    def _stacked(self, rows: Sequence[Output], want: Want) -> Output:
        """Outputs of single rows as one of a batch."""
        names = rows[0].trace
        if any(row.trace.keys() != names.keys() for row in rows):
            raise BackendError(f"{self.hello.name}, forward: rows of a batch came with different tensors")
        logits = [row.logits for row in rows if row.logits is not None]
        kept = self._handles.new([row.state for row in rows], self._client.life, len(rows)) if want.state else None
        trace = {name: np.stack([row.trace[name] for row in rows]) for name in names}
        return Output(np.stack(logits) if logits else None, kept, trace)

    def generate(
        self, tokens: npt.ArrayLike, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Sequence[int] = ()
    ) -> Iterator[Ids]:
        """See `Session.generate`; greedy continuation of one row is the program's own, where it has the ability."""
        ids = self._checked(tokens)
        if sampler is None and len(ids) == 1 and "generate" in self.hello.abilities:
            yield from self._generated(ids[0].tolist(), max_new_tokens, [int(one) for one in stop])
        elif "state" in self.hello.abilities:
            yield from super().generate(ids, sampler, max_new_tokens, stop)
        else:
            yield from self._from_the_start(ids, sampler or greedy, max_new_tokens, stop)

    def _generated(self, prompt: list[int], count: int, stop: list[int]) -> Iterator[Ids]:
        """The first token alone, the others in one call: who times those times what is computed for them."""
        for number in (min(count, 1), count - 1):
            if number < 1:
                return
            with self.blamed("generate"):
                told = self.ask("generate", {"tokens": prompt, "max_new_tokens": number, "stop": stop})
                found = wire.ids(told.get("tokens"), "the tokens", self._facts.vocab_size)
                if len(found) > number or (len(found) < number and not stop):
                    raise BackendError(f"{len(found)} tokens, where {number} are due")
            yield from (np.array([one], dtype=np.int64) for one in found)
            if len(found) < number:
                return
            prompt = prompt + found

    def _from_the_start(self, ids: Ids, sampler: Sampler, count: int, stop: Sequence[int]) -> Iterator[Ids]:
        """Generation with a program that keeps no state."""
        stopped = np.zeros(len(ids), dtype=bool)
        for _ in range(count):
            logits = self.forward(ids).logits
            assert logits is not None
            new = sampler(logits[:, -1])
            stopped |= np.isin(new, stop)
            if stopped.all():
                return
            yield new
            ids = np.concatenate([ids, new[:, None]], axis=1)

    def export_state(self, state: Handle) -> State:
        """A handle as numpy arrays in the agreed layout."""
        self._handles.numbers(state, self._client.life, state.rows)
        rows = "batch" in self.hello.abilities
        exported = [self._exported(number, state.rows if rows else 0) for number in state.numbers]
        parts = exported[0] if rows else [np.stack(part, axis=1) for part in zip(*exported, strict=True)]
        return State(parts[0], parts[1], parts[2])

    def _exported(self, number: int, rows: int) -> list[Array]:
        facts, B = self._facts, (rows,) if rows else ()
        shift = (facts.n_layer, *B, facts.n_embd)
        due = {"att_shift": shift, "wkv": (facts.n_layer, *B, facts.n_head, facts.head_size, facts.head_size)}
        with self.blamed("export_state"):
            told = self.ask("export_state", {"state": number})
            return [self._files.array(told.get(n), s, n) for n, s in {**due, "ffn_shift": shift}.items()]

    def import_state(self, state: State) -> Handle:
        """A handle that continues from `state`."""
        parts, rows = state.parts(), state.att_shift.shape[1]
        if "batch" in self.hello.abilities:
            return self._handles.new([self._imported(parts)], self._client.life, rows)
        single = ({name: part[:, row] for name, part in parts.items()} for row in range(rows))
        return self._handles.new([self._imported(one) for one in single], self._client.life, rows)

    def _imported(self, parts: Mapping[str, Array]) -> int:
        put = self._files.put if self.hello.arrays == "file" else wire.encoded
        with self.blamed("import_state"):
            told = self.ask("import_state", {name: put(part) for name, part in parts.items()})
            return wire.whole(told.get("state"), "the state's handle", 1)

    def round_trip(self) -> float | None:
        """Seconds of the cheapest of five calls that only let go of a state; None where the program keeps none."""
        if "state" not in self.hello.abilities:
            return None
        token = np.zeros((1, 1) if "batch" in self.hello.abilities else 1, dtype=np.int64)
        taken = []
        for _ in range(5):
            number = self._called(token, None, Want(logits="none", state=True)).state
            start = time.perf_counter()
            self._client.ask("release", {"state": number})
            taken.append(time.perf_counter() - start)
        return min(taken)

    def close(self) -> None:
        """End the program and delete what was written for it."""
        self._client.close()
        self._folder.cleanup()


class PortTokenizer:
    """The tokenizer of a program."""

    def __init__(self, session: ProcessSession) -> None:
        self._session, self.name = session, session.hello.name

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, as the program finds them."""
        with self._session.blamed("encode"):
            told = self._session.ask("encode", {"bytes": base64.b64encode(text.encode()).decode()})
            return wire.ids(told.get("tokens"), "the tokens", self._session.info.model.vocab_size)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of `ids`, as the program finds them."""
        with self._session.blamed("decode"):
            told = self._session.ask("decode", {"tokens": [int(one) for one in ids]})
            return wire.text(told.get("bytes"), "the text")


def open_process(
    weights: Weights, *, device: str = "cpu", dtype: str = "f32", threads: int = 0, argument: str = ""
) -> ProcessSession:
    """A program as a backend.

    Args:
        weights: the checkpoint.
        device: one of the program's devices.
        dtype: one of its number formats.
        threads: 0 leaves the number to it.
        argument: the command line, split as a shell would; no shell is involved.

    Raises:
        UsageError: no command.
        BackendError: it cannot be started, does not serve this, or breaks the protocol.
    """
    try:
        command = shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"the command {argument!r} cannot be split: {error}.") from None
    if not command:
        raise UsageError("backend process takes a command: 'process:./my-port -v'; docs/protocol.md says what of.")
    return ProcessSession(weights, command, dtype, device, threads)
