"""What somebody sees who runs our acceptance in a project of their own."""

import json
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Output
from backends.errors import InputError
from harness import conformance, judge, suite
from harness import run as run_module
from harness.job import Job
from reports.record import Observation, Outcome, Record, Subject, Verdict
from tests.harness import fakes
from tests.plugin.conftest import ARGUMENTS, Session

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[2]
HERE = ("--pyargs", "harness.conformance")

Runs = list[Job]


def verdicts(job: Job, outcome: Callable[[str], Outcome], dtype: str = "f32") -> Iterator[Verdict]:
    """What `judge` would say, without numbers."""
    for subject in job.subjects:
        for found in map(suite.load, job.suites):
            for case in found.cases:
                for one in judge.load(job.profile).criteria:
                    fits = one.suite == found.name and dtype in one.when.get("dtype", (dtype,))
                    fits &= "7" in one.when.get("version", ("7",)) and (not one.cases or case.name in one.cases)
                    if fits:
                        said = outcome(f"{one.suite}.{one.measure}[{case.name}]")
                        detail = f"{one.measure} is 7; allowed is <= 1" if said is Outcome.FAIL else "in words"
                        yield Verdict(found.name, case.name, subject, one.id, said, detail=detail, why=one.why)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runs]:
    """Puts a run in place that measures nothing and judges as told."""

    def stub(outcome: Callable[[str], Outcome], change: Callable[[Record], Record] = lambda record: record) -> Runs:
        seen: Runs = []

        def run(job: Job, *_: Any, **__: Any) -> Record:
            seen.append(job)
            subjects = tuple(Subject(name, "candidate", {"dtype": "f32"}) for name in job.subjects)
            record = Record(id="a", created="now", status="complete", model={"version": "7"}, subjects=subjects)
            return change(replace(record, verdicts=tuple(verdicts(job, outcome))))

        monkeypatch.setattr(run_module, "run", run)
        return seen

    return stub


def passed(_: str) -> Outcome:
    return Outcome.PASS


def test_one_test_a_criterion_and_case_from_one_run(session: Session, judged: Callable[..., Runs]) -> None:
    runs = judged(passed)
    done = session("-v", "--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "logits,state", *HERE)
    names = set(re.findall(r"^(\S+) PASSED", done.stdout.str(), re.MULTILINE))
    assert "conformance::torch-cpu-f32::logits.rms_median[fibonacci]" in names
    assert "conformance::torch-cpu-f32::run.judged" in names
    assert len(names) == 1 + 18 * 5 + 7
    done.assert_outcomes(passed=len(names))
    assert [(job.suites, job.profile, job.diagnosis) for job in runs] == [(("logits", "state"), "strict", True)]


def test_without_suites_everything_that_a_criterion_looks_at(session: Session, judged: Callable[..., Runs]) -> None:
    runs = judged(passed)
    options = ("--rwkv-backend", "torch-cpu-f32", "--rwkv-backend", "torch-compile", "--rwkv-profile", "seed")
    done = session("--rwkv-model", "mine.pth", *options, *HERE)
    (job,) = runs
    assert (job.model, job.subjects, job.profile) == ("mine.pth", ("torch-cpu-f32", "torch-compile"), "seed")
    assert job.suites == tuple(name for name in suite.DEFAULT if name in {c.suite for c in judge.load("seed").criteria})
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*one run judges all criteria*"])


def test_a_failure_says_value_limit_reason_and_diagnosis(session: Session, judged: Callable[..., Runs]) -> None:
    told = Observation("logits", "x", "torch-cpu-f32", "diagnosis", {"sentences": ["It is the decay.", "", "See v6."]})
    judged(
        lambda name: Outcome.FAIL if name == "logits.rms[code]" else Outcome.PASS,
        lambda record: replace(record, observations=(told,)),
    )
    done = session("-rf", "--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "logits", *HERE)
    done.assert_outcomes(passed=90, failed=1)
    done.stdout.fnmatch_lines(
        [
            "rms is 7; allowed is <= 1",
            "  criterion: strict/logits.rms, case code, of torch-cpu-f32",
            "  why this limit: Over all positions, *",
            "  diagnosis: It is the decay. See v6.",
            "FAILED conformance::torch-cpu-f32::logits.rms?code? - rms is 7; allowed is *",
        ]
    )
    assert "Traceback" not in done.stdout.str()
    assert "acceptance.py" not in done.stdout.str()


def test_unsupported_is_skipped_with_its_words_and_an_error_is_an_error(
    session: Session, judged: Callable[..., Runs]
) -> None:
    outcomes = {"state.growth[long]": Outcome.UNSUPPORTED, "state.wkv_bits[long]": Outcome.ERROR}
    judged(lambda name: outcomes.get(name, Outcome.PASS))
    done = session("-rs", "--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "state", *HERE)
    done.assert_outcomes(passed=6, skipped=1, errors=1)
    done.stdout.fnmatch_lines(["*unsupported: in words*"])


def test_nothing_judged_is_no_green_session(session: Session, judged: Callable[..., Runs]) -> None:
    judged(lambda _: Outcome.UNSUPPORTED)
    done = session("--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "state", *HERE)
    done.assert_outcomes(skipped=7, failed=1)
    done.stdout.fnmatch_lines(["nothing was judged of torch-cpu-f32: in words"])


def test_a_run_that_did_not_finish_is_no_green_session(session: Session, judged: Callable[..., Runs]) -> None:
    judged(passed, lambda record: replace(record, status="crashed"))
    done = session("--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "state", *HERE)
    done.assert_outcomes(passed=7, failed=1)
    done.stdout.fnmatch_lines(["the run is crashed"])


def test_a_verdict_without_a_test_of_its_own_still_counts(session: Session, judged: Callable[..., Runs]) -> None:
    """A subject that computes in another number format than it was asked for meets other criteria."""
    stray = Verdict("state", "long", "torch-cpu-f32", "strict/state.other", Outcome.FAIL, detail="other is 3")
    judged(passed, lambda record: replace(record, verdicts=(*record.verdicts, stray)))
    done = session("--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "state", *HERE)
    done.assert_outcomes(passed=7, failed=1)
    done.stdout.fnmatch_lines(["other is 3"])


def test_a_case_without_numbers_breaks_every_test_of_it(session: Session, judged: Callable[..., Runs]) -> None:
    whole = Verdict("state", "long", "torch-cpu-f32", "strict/state", Outcome.ERROR, detail="the device fell off")
    judged(passed, lambda record: replace(record, verdicts=(whole,)))
    done = session("--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "state", *HERE)
    done.assert_outcomes(errors=7, passed=1)
    done.stdout.fnmatch_lines(["the device fell off"])


def test_a_limit_of_another_version_is_skipped(session: Session, judged: Callable[..., Runs]) -> None:
    def other(record: Record) -> Record:
        kept = tuple(v for v in record.verdicts if not v.criterion.endswith("growth"))
        return replace(record, model={"version": "7b"}, verdicts=kept)

    judged(passed, other)
    done = session("-rs", "--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "state", *HERE)
    done.assert_outcomes(passed=7, skipped=1)
    done.stdout.fnmatch_lines(["*this limit is not for RWKV 7b"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("there is no file or folder 'mine.pth'."), "there is no file or folder 'mine.pth'."),
        (ZeroDivisionError("our\nfault"), "the harness broke: ZeroDivisionError: our fault"),
    ],
)
def test_a_run_that_breaks_is_tried_once(
    session: Session, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    tried: Runs = []

    def broken(job: Job, *_: Any, **__: Any) -> Record:
        tried.append(job)
        raise error

    monkeypatch.setattr(run_module, "run", broken)
    done = session("--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "state", *HERE)
    done.assert_outcomes(errors=7, failed=1)
    done.stdout.fnmatch_lines([words])
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "harness.conformance judges a backend: add --rwkv-backend NAME"),
        (["--rwkv-backend", "torch-cpu-f3"], "unknown backend 'torch-cpu-f3'. Did you mean torch-cpu-f32*"),
        (["--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "logit"], "unknown suite 'logit'. Did you mean logits*"),
        (["--rwkv-backend", "torch-cpu-f32", "--rwkv-profile", "stric"], "unknown profile 'stric'. Did you mean*"),
        (["--rwkv-backend", "lost"], "lost cannot run here: it is elsewhere. `python -m harness backends`*"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    session: Session, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    from backends import registry

    lost = registry.Backend("lost", "for tests", "nowhere:nothing", probe=lambda: "it is elsewhere")
    monkeypatch.setattr(registry, "_TABLE", (*registry._TABLE, lost))
    registry.table.cache_clear()
    try:
        done = session(*options, *HERE)
    finally:
        registry.table.cache_clear()
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines([f"{words}*"])
    assert "Traceback" not in done.stdout.str()


def test_options_without_the_tests_are_told_about(session: Session, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_own(): pass")
    done = session("--rwkv-backend", "torch-cpu-f32")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["rwkv: --rwkv-backend judges nothing by itself; add --pyargs harness.conformance"])
    assert "rwkv: " not in session().stdout.str()


def test_an_acceptance_in_a_test_file(
    session: Session, pytester: pytest.Pytester, judged: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = judged(passed)
    pytester.makepyfile(
        test_mine="""
        from harness.conformance import Acceptance
        test_acceptance = Acceptance("process:/opt/x/python /opt/ports/port.py -v", suites="state", out="kept")
        test_again = Acceptance("process:/opt/x/python /opt/ports/port.py -v", suites=("state",), out="kept")
        """
    )
    done = session("-v")
    done.assert_outcomes(passed=16)
    done.stdout.fnmatch_lines(["*test_mine.py::test_acceptance::process:python port.py -v::state.growth?long? PASSED*"])
    assert len(runs) == 1
    assert (pytester.path / "kept" / "report.html").exists()
    assert len(list((pytester.path / "kept" / "records").glob("*.json"))) == 1


def test_a_file_of_that_name_in_another_project_is_its_own(session: Session, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(conformance="def test_own(): pass")
    session("conformance.py").assert_outcomes(passed=1)


def test_numbers_of_a_real_run(session: Session, pytester: pytest.Pytester) -> None:
    done = session("--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "tokenization", "-p", "no:cacheprovider", *HERE)
    done.assert_outcomes(passed=51)


def warning(out: Output) -> Output:
    warnings.warn("an engine of long ago", DeprecationWarning, stacklevel=1)
    return out


def test_a_backend_that_breaks_is_an_error_and_one_that_warns_is_not(session: Session) -> None:
    with fakes.registered(warns=lambda weights: fakes.Broken(weights, warning)):
        options = ("--rwkv-backend", "dying", "--rwkv-backend", "warns", "--rwkv-suite", "consistency")
        done = session("-W", "error", *options, *HERE)
    criteria = sum(one.suite == "consistency" for one in judge.load("strict").criteria)
    done.assert_outcomes(errors=criteria, passed=criteria + 2)
    done.stdout.fnmatch_lines(["RuntimeError: the device fell off the bus"])
    done.stdout.fnmatch_lines(["*an engine of long ago*"])


def test_workers_share_one_run(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makeini("[pytest]\n")
    options = ("--rwkv-backend", "torch-cpu-f32", "--rwkv-suite", "tokenization", "--rwkv-out", "kept", *HERE)
    done = pytester.runpytest_subprocess(*ARGUMENTS, "-n", "2", *options)
    done.assert_outcomes(passed=51)
    assert len(list((pytester.path / "kept" / "records").glob("*.json"))) == 1


def test_a_worker_reads_what_another_found_out(judged: Callable[..., Runs], tmp_path: Path) -> None:
    from harness.acceptance import Run
    from harness.conformance import Acceptance

    runs, wanted = judged(passed), Acceptance("torch-cpu-f32", suites=("state",))
    first, second = (Run(wanted, tmp_path, "session 1").record() for _ in range(2))
    assert first.to_json() == second.to_json()
    assert len(runs) == 1
    Run(wanted, tmp_path, "session 2").record()
    assert len(runs) == 2


def test_a_worker_does_not_try_again_what_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from harness.acceptance import Run
    from harness.conformance import Acceptance

    def broken(*_: Any, **__: Any) -> Record:
        raise InputError("no such checkpoint")

    monkeypatch.setattr(run_module, "run", broken)
    wanted = Acceptance("torch-cpu-f32", suites=("state",))
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="no such checkpoint"):
            Run(wanted, tmp_path, "session").record()
        monkeypatch.delattr(run_module, "run", raising=False)


def test_what_pyargs_names_is_what_the_plugin_waits_for() -> None:
    assert runpy.run_path(str(ROOT / "harness" / "pytest_plugin.py"))["TESTS"] == Path(conformance.__file__)


def test_the_plugin_costs_nothing_where_nobody_asks(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(): pass")
    code = f"""
import sys, json, pytest
code = pytest.main([*{ARGUMENTS!r}, "-q", {str(tmp_path)!r}, "--rootdir", {str(tmp_path)!r}])
heavy = {{"torch", "numpy", "pandas", "backends", "harness.acceptance", "harness.judge"}} & set(sys.modules)
print(json.dumps([int(code), "harness.pytest_plugin" in sys.modules, sorted(heavy)]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, True, []]
