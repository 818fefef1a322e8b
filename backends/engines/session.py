"""An engine behind the contract: a child process that speaks the protocol and opens its own kind of file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.engines.interpreter import python_of
from backends.process.session import ProcessSession
from backends.weights import Weights

START = Path(__file__).with_name("start.py")


@dataclass(frozen=True)
class Setup:
    """What makes one engine's session.

    Attributes:
        backend: registry name.
        module: `serve_MODULE.py` is its server.
        settings: for the server, JSON values.
        provide: puts what the engine opens into a folder and returns its path.
        notes: sentences for the reader of the report.
    """

    backend: str
    module: str
    settings: Mapping[str, Any]
    provide: Callable[[Weights, Path], Path]
    notes: tuple[str, ...] = field(default=())


class EngineSession(ProcessSession):
    """An engine as a backend.

    Args:
        weights: the checkpoint; of which the facts are taken, and the file that the engine opens.
        setup: which engine.
        dtype, device: what it computes in, and on.
        threads: 0 leaves the number to the engine.

    Raises:
        BackendError: it cannot be started or refuses the file.
    """

    def __init__(self, weights: Weights, setup: Setup, dtype: str, device: str, threads: int) -> None:
        command = [python_of(setup.backend), str(START), setup.module, json.dumps(dict(setup.settings))]
        super().__init__(weights, command, dtype, device, threads, setup.provide)
        self.info = replace(self.info, backend=setup.backend, notes=(*setup.notes, *self.info.notes))
