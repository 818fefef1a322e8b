"""How long and how much a program may answer."""

import os
from dataclasses import dataclass, fields

from backends.errors import UsageError

VARIABLE = "RWKV_PROCESS_LIMITS"
"""Environment variable: "hello=5,load=60,call=20,line=1000000"; a name left out keeps its own limit."""


@dataclass(frozen=True)
class Limits:
    """Limits of one program.

    Attributes:
        hello: seconds until it has answered `hello`, its start included.
        load: seconds for `load`.
        call: seconds for every other method.
        line: bytes of one answer.
    """

    hello: float = 30.0
    load: float = 600.0
    call: float = 300.0
    line: float = 256 << 20

    def seconds(self, method: str) -> float:
        """The limit of a method."""
        return {"hello": self.hello, "load": self.load}.get(method, self.call)


def from_environment() -> Limits:
    """The limits that the environment asks for.

    Raises:
        UsageError: an unknown name, or no positive number.
    """
    text = os.environ.get(VARIABLE, "")
    known = [field.name for field in fields(Limits)]
    given = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            given[name] = 0.0
        if name not in known or not 0 < given[name] < float("inf"):
            raise UsageError(f"{VARIABLE} holds {part!r}; it takes NAME=NUMBER with {', '.join(known)}, all above 0.")
    return Limits(**given)
