"""Honest implementations as a backend: low precision as every sound port may do it.

Rows of a batch are rounded independently and written in one public form of the equations after another; in
bf16, one in a few follows the official semantics. Their spread is the envelope that limits hang on.
"""

from dataclasses import dataclass, replace

from backends.errors import UsageError
from backends.reference.forms import varied
from backends.reference.official import entirely, mixed
from backends.reference.quick import QUICK
from backends.reference.rounding import honest
from backends.reference.session import VERSIONS, EquationSession
from backends.weights import Weights

CHOICES = {"form": ("official", "plain"), "state": ("bf16", "f16", "f32")}
"""What may stand behind the seed."""


@dataclass(frozen=True)
class Asked:
    """What stands behind "honest:".

    Attributes:
        seed: of the random rounding, and of which form row 0 takes.
        form: "official" for all rows, "plain" for none, empty for one in a few where the format is bf16.
        state: number format that the WKV state is rounded to at every token; empty is float32.
    """

    seed: int = 0
    form: str = ""
    state: str = ""


def asked(argument: str) -> Asked:
    """An argument taken apart.

    Raises:
        UsageError: it is not SEED[?form=official|plain][&state=bf16|f16|f32].
    """
    seed, _, query = argument.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    sound = all(value in CHOICES.get(key, ()) for key, value in options.items())
    if not sound or (seed and not seed.isdecimal()):
        raise UsageError(
            f"honest:SEED[?form=official|plain][&state=bf16|f16|f32] takes an integer seed, got {argument!r}."
        )
    return Asked(int(seed or 0), **options)


def open_honest(
    weights: Weights, *, device: str = "cpu", dtype: str = "bf16", threads: int = 0, argument: str = ""
) -> EquationSession:
    """An honest implementation in `dtype`, randomly rounded.

    Args:
        weights: the checkpoint.
        device: "cpu".
        threads: of torch; 0 leaves it as it is.
        dtype: the format whose rounding is applied.
        argument: see `asked`.
    """
    del device
    told = asked(argument)
    version = VERSIONS[weights.facts.version]
    kept = version.kept_f32
    state = {} if told.state in ("", "f32") else {"state": told.state}
    rounding = honest(dtype, told.seed, kept, state)
    forms = varied(told.seed, version)
    session = EquationSession(weights, "honest", "f32", threads, rounding, dtype, forms, shown=dtype, arranged=QUICK)
    whole = told.form == "official" and dtype != "f32"
    if whole or (dtype == "bf16" and not told.form):  # official f16 divides by zero where a key vanishes
        model = session.model
        model.overrides = entirely(model, dtype, kept) if whole else mixed(model, dtype, told.seed, kept)
    session.info = replace(session.info, state_dtype=told.state or "f32")
    return session
