"""The nodes that pytest sees: a group an acceptance, a subject, one test a criterion and case. One run for all."""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from backends.errors import HarnessError
from backends.registry import parse
from harness import judge, suite
from harness.conformance import Acceptance
from harness.envelope import honest_format
from harness.job import Job
from reports.record import Outcome, Record, RecordError, Verdict

FOLDER = "rwkv-harness"
"""Inside pytest's cache folder: honest runs, and the record that several workers share."""


@dataclass
class Run:
    """The one run of an acceptance, made when the first test needs it.

    Attributes:
        acceptance: what to run.
        folder: keeps honest runs between sessions; None keeps none.
        session: id of the test session that several workers (pytest-xdist) share; empty if there is one.
        done: the record, or why there is none.
    """

    acceptance: Acceptance
    folder: Path | None
    session: str = ""
    done: Record | str | None = None

    def record(self) -> Record:
        """What was measured and judged; fails the test that asks where the run broke, or could not begin."""
        if self.done is None:
            self.done = self._together(self.folder) if self.session and self.folder else self._alone()
        if isinstance(self.done, str):
            pytest.fail(self.done, pytrace=False)
        return self.done

    def _alone(self) -> Record | str:
        from harness.run import run

        job, out = self.acceptance.job(), self.acceptance.out
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # a warning of an engine is no failure, whatever this project's rule
                record = run(job, _silent, _silent, command="pytest", shelf_in=self.folder)
            if out:
                _write(record, Path(out))
        except (HarnessError, RecordError) as error:
            return str(error)
        except Exception as error:  # told once, instead of tried again by every test
            return f"the harness broke: {type(error).__name__}: {' '.join(str(error).split())}"
        return record

    def _together(self, folder: Path) -> Record | str:
        """The first worker runs, the others wait and read."""
        import fcntl  # POSIX, as pytest-xdist's workers on one machine mostly are

        name = sha256(repr(self.acceptance).encode()).hexdigest()[:16]
        kept = folder / f"run-{name}.json"
        with (folder / f"run-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = _read(kept, self.session)
            if known is not None:
                return known
            done = self._alone()
            told = {"error": done} if isinstance(done, str) else {"record": done.to_json()}
            kept.write_text(json.dumps({"session": self.session, **told}), encoding="utf-8")
            return done


def _silent(_: object) -> None:
    """Progress and half-done records have no reader here."""


def _read(path: Path, session: str) -> Record | str | None:
    """What another worker of this session left; None if nobody did."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if told.get("session") != session:
        return None
    return str(told["error"]) if "error" in told else Record.from_json(told["record"])


def _write(record: Record, folder: Path) -> None:
    from reports import output, store

    store.save(record, folder / "records")
    output.write(record, folder)


RUNS = pytest.StashKey[dict[Acceptance, Run]]()


def run_of(config: pytest.Config, acceptance: Acceptance) -> Run:
    """The run of an acceptance; the same one however often it is asked for."""
    runs = config.stash.setdefault(RUNS, {})
    if acceptance not in runs:
        cache: Any = getattr(config, "cache", None)  # None under -p no:cacheprovider
        worker: dict[str, Any] = getattr(config, "workerinput", {})
        folder = Path(cache.mkdir(FOLDER)) if cache is not None else None
        runs[acceptance] = Run(acceptance, folder, worker.get("testrunuid", ""))
    return runs[acceptance]


def asked(config: pytest.Config) -> Acceptance:
    """What the options ask for."""
    names = {name: config.getoption(f"rwkv_{name}") for name in ("model", "profile", "out")}
    return Acceptance(*config.getoption("rwkv_backend"), suites=",".join(config.getoption("rwkv_suite")), **names)


class Conformance(pytest.Module):
    """`harness.conformance`, collected: the subjects that the options name."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """One node a subject."""
        acceptance = asked(self.config)
        if not acceptance.backends:
            raise self.CollectError(
                "harness.conformance judges a backend: add --rwkv-backend NAME "
                "(`python -m harness backends` lists them), and --rwkv-model for your own checkpoint."
            )
        yield from subjects(self, acceptance)


class Group(pytest.Collector):
    """An `Acceptance` of somebody's test file."""

    def __init__(self, *, acceptance: Acceptance, **rest: Any) -> None:
        super().__init__(**rest)
        self.acceptance = acceptance

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """One node a subject."""
        yield from subjects(self, self.acceptance)


def subjects(parent: pytest.Collector, acceptance: Acceptance) -> Iterator["Subject"]:
    """A node for each subject; a request that cannot be met is one sentence instead."""
    try:
        job = acceptance.job()
    except HarnessError as error:
        raise parent.CollectError(str(error)) from None
    run = run_of(parent.config, acceptance)
    for subject in job.subjects:
        name = re.sub(r"(?<=[ :])[^ :]*/", "", subject)  # process:/opt/bin/python /opt/ports/mine.py
        yield Subject.from_parent(parent, name=name, subject=subject, run=run, job=job)


class Subject(pytest.Collector):
    """One backend: its tests in the order of the report."""

    def __init__(self, *, subject: str, run: Run, job: Job, **rest: Any) -> None:
        super().__init__(**rest)
        self.subject, self.run, self.job = subject, run, job

    def collect(self) -> Iterator[pytest.Item]:
        """One test a criterion and case, and one for what no criterion says."""
        planned = list(criteria(self.job, self.subject))
        for suite_name, case, criterion in planned:
            name = f"{criterion.rpartition('/')[2]}[{case}]"
            yield Criterion.from_parent(self, name=name, key=(suite_name, case, criterion))
        yield Judged.from_parent(self, name="run.judged", planned=planned)


Key = tuple[str, str, str]
"""Suite, case, id of a criterion."""


def criteria(job: Job, subject: str) -> Iterator[Key]:
    """What will be judged, before anything is opened; conditions that hang on the checkpoint are left open."""
    spec = parse(subject)
    facts = {"dtype": honest_format(spec.dtype), "device": spec.device.partition(":")[0]}
    for name in job.suites:
        for case in suite.load(name).cases:
            ids = [
                one.id
                for one in judge.load(job.profile).criteria
                if one.suite == name
                and (not one.cases or case.name in one.cases)
                and all(facts[key] in one.when[key] for key in facts if key in one.when)
            ]
            yield from ((name, case.name, found) for found in dict.fromkeys(ids))


class Checked(pytest.Item):
    """What all tests of a subject share."""

    parent: Subject

    def verdicts(self) -> list[Verdict]:
        """All of this subject."""
        return [v for v in self.parent.run.record().verdicts if v.subject == self.parent.subject]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Words of ours as they are, so that the summary begins with the number."""
        told = isinstance(excinfo.value, pytest.fail.Exception)
        return str(excinfo.value) if told else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """No line of any file: what is tested is a criterion."""
        return self.path, None, f"{self.name} of {self.parent.name}"

    def judged(self, found: Sequence[Verdict]) -> None:
        """Fail with the first verdict that is bad."""
        for verdict in found:
            if verdict.outcome in (Outcome.FAIL, Outcome.ERROR):
                pytest.fail("\n".join(self._lines(verdict)), pytrace=False)

    def _lines(self, verdict: Verdict) -> Iterator[str]:
        yield verdict.detail
        yield f"  criterion: {verdict.criterion}, case {verdict.case}, of {verdict.subject}"
        if verdict.why:
            yield f"  why this limit: {verdict.why}"
        for seen in self.parent.run.record().observations:
            if seen.kind == "diagnosis" and seen.subject == verdict.subject:
                yield f"  diagnosis: {' '.join(filter(None, seen.data['sentences']))}"


class Criterion(Checked):
    """One criterion on one case."""

    def __init__(self, *, key: Key, **rest: Any) -> None:
        super().__init__(**rest)
        self.key = key
        self.found: list[Verdict] = []

    def setup(self) -> None:
        """Run, if nobody did; a backend that broke is an error, and what it does not offer is skipped."""
        suite_name, case, criterion = self.key
        own = [v for v in self.verdicts() if (v.suite, v.case) == (suite_name, case)]
        whole = criterion.partition(".")[0]  # says of a case that it has no numbers
        self.found = [v for v in own if v.criterion in (criterion, whole)]
        self.judged([v for v in self.found if v.outcome is Outcome.ERROR])
        if not self.found:
            model = self.parent.run.record().model
            pytest.skip(f"this limit is not for RWKV {model.get('version')}")
        if all(v.outcome in (Outcome.UNSUPPORTED, Outcome.SKIPPED) for v in self.found):
            pytest.skip(f"{self.found[0].outcome.value}: {self.found[0].detail}")

    def runtest(self) -> None:
        """Pass where the criterion did."""
        self.judged(self.found)


class Judged(Checked):
    """The run as a whole: finished, something was judged, and no verdict was left without its test."""

    def __init__(self, *, planned: Sequence[Key], **rest: Any) -> None:
        super().__init__(**rest)
        self.planned = {*planned, *((name, case, one.partition(".")[0]) for name, case, one in planned)}

    def runtest(self) -> None:
        """Fail where a green list of tests would mislead."""
        found, record = self.verdicts(), self.parent.run.record()
        if record.status != "complete":
            pytest.fail(f"the run is {record.status}", pytrace=False)
        if not any(v.outcome in (Outcome.PASS, Outcome.FAIL, Outcome.ERROR) for v in found):
            why = next((f": {v.detail}" for v in found if v.detail), "")
            pytest.fail(f"nothing was judged of {self.parent.subject}{why}", pytrace=False)
        self.judged([v for v in found if (v.suite, v.case, v.criterion) not in self.planned])
