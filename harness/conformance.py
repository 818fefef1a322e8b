"""What other people's tests import, and what `pytest --rwkv-backend NAME --pyargs harness.conformance` collects.

In a test file of your own:

    from harness.conformance import Acceptance

    test_acceptance = Acceptance("my-port", model="conformance")

Either way there is one test a criterion and case, `logits.rms_median[fibonacci]`, and one run for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.job import Job


@dataclass(frozen=True, init=False)
class Acceptance:
    """One run, to be judged test by test. Light to make: nothing is opened before the first test.

    Args:
        backends: subjects as `--backend` takes them; none is every one that a plain `validate` would take.
        model: as `--model` takes it.
        profile: whose criteria.
        suites: names, or one text with commas between them; empty takes all that a criterion looks at.
        out: folder for record and report; empty writes none.
    """

    backends: tuple[str, ...]
    model: str
    profile: str
    suites: tuple[str, ...]
    out: str

    def __init__(
        self,
        *backends: str,
        model: str = "conformance",
        profile: str = "strict",
        suites: str | Sequence[str] = (),
        out: str = "",
    ) -> None:
        names = tuple(name for name in (suites.split(",") if isinstance(suites, str) else suites) if name)
        values = {"backends": backends, "model": model, "profile": profile, "suites": names, "out": out}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def job(self) -> "Job":
        """What to run.

        Raises:
            UsageError: an unknown backend, suite or profile, or a backend that cannot run here.
        """
        from backends.errors import UsageError
        from harness import judge, suite
        from harness.job import make_job, unavailable

        judged = {criterion.suite for criterion in judge.load(self.profile).criteria}
        suites = self.suites or tuple(name for name in suite.DEFAULT if name in judged)
        job = make_job(self.model, self.backends, suites, profile=self.profile, diagnosis=True)
        for name, reason in unavailable(job).items():
            raise UsageError(f"{name} cannot run here: {reason}. `python -m harness backends` lists what can.")
        return job
