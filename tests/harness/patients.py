"""Programs to be examined, whose mistakes are known; and line-ups made by hand."""

from dataclasses import replace

from backends.base import Session
from backends.reference.faults import FAULTS as PLANTED
from backends.reference.faults import FaultSession
from backends.reference.rounding import honest
from backends.reference.session import VERSIONS, EquationSession
from backends.weights import Weights
from harness.suspects import Lineup, Suspect
from tests.harness.outside import MISTAKES

SEED = 11


def port(weights: Weights, *names: str, dtype: str = "f32") -> Session:
    """A program with known mistakes that rounds otherwise than the catalogue's own."""
    session = FaultSession(weights, [PLANTED[name] for name in names], dtype, 1, seed=SEED)
    if dtype == "f32":
        session.model.rounding = honest("f32", SEED, VERSIONS["7"].kept_f32)
    return session


def outsider(weights: Weights, name: str) -> Session:
    rounding = honest("f32", SEED, VERSIONS["7"].kept_f32)
    return EquationSession(weights, name, "f32", 1, rounding, "", MISTAKES[name], shown="f32")


def blind(session: Session) -> Session:
    session.info = replace(session.info, abilities=session.info.abilities - {"trace"})
    return session


def lineup(truth: float, *rows: tuple[str, float]) -> Lineup:
    return Lineup(truth, 1.0, tuple(Suspect(tuple(name.split("+")), far) for name, far in rows))
