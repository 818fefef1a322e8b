"""Everything that can be run, for people and for CI. Bare `nox` = lint, types, tests, docs."""

import os
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "virtualenv"

CONSTRAINTS = "constraints.txt"
OUT = Path("reports") / "out"


def install(session: nox.Session, *extras: str) -> None:
    """The project itself, editable, with the pinned torch in the same command."""
    target = f".[{','.join(extras)}]" if extras else "."
    session.install("-c", CONSTRAINTS, "-e", target)


def harness(session: nox.Session, *arguments: str) -> None:
    session.run("python", "-m", "harness", *arguments)


@nox.session
def validate(session: nox.Session) -> None:
    """Judge every backend that can run here on the embedded checkpoint; writes reports/out/report.html."""
    install(session)
    harness(session, "validate", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Draw the documents of the latest run (or of `--record FILE`)."""
    install(session)
    harness(session, "report", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Tokens/s of the backends, and pytest-benchmark for the parts of the harness itself."""
    install(session, "test")
    if not session.posargs:
        compare = ["--benchmark-compare"] if any(Path(".benchmarks").rglob("*.json")) else []  # with the latest
        session.run("pytest", "tests/bench", "--benchmark-only", "--benchmark-autosave", *compare, "-q")
    harness(session, "bench", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite with branch coverage."""
    install(session, "test")
    whole = ["-n", "2", "--benchmark-disable", "--cov", "--cov-report=term:skip-covered", "--cov-fail-under=90"]
    session.run("pytest", *(session.posargs or whole), env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("ruff>=0.12")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    install(session, "test", "types", "nox")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Documents against the code: every command, suite, backend and file is mentioned; every link leads somewhere."""
    install(session, "test")
    session.run("pytest", "tests/test_docs.py", "-q", "--no-cov")


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and source archive into dist/."""
    session.install("build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", env={"PIP_CONSTRAINT": os.fspath(Path(CONSTRAINTS).resolve())})


@nox.session
def cuda(session: nox.Session) -> None:
    """Everything that needs an NVIDIA GPU, in one run: its tests, a judged run, and speed of real shapes."""
    install(session, "test")
    session.run("python", "benchmarks/cuda.py", *session.posargs)


@nox.session
def engines(session: nox.Session) -> None:
    """The engines that people run: installs them (llama.cpp is built), their tests, one report on one file. Minutes."""
    install(session, "test", "official", "llama-cpp", "hf")
    session.install("gguf")  # a second reader of what is written here
    tests = ["tests/engines", "tests/backends/test_gguf.py", "tests/backends/test_gguf_writer.py"]
    session.run("pytest", *tests, "-q", "--no-cov", env={"OMP_NUM_THREADS": "1"})
    out = OUT / "engines"
    harness(session, "convert", "conformance", str(out / "model.pth"))
    subjects = ["torch-cpu-f32", "official", "llama-cpp", "hf", *session.posargs]
    chosen = [part for name in subjects for part in ("--backend", name)]
    harness(session, "validate", "--model", str(out / "model.pth"), *chosen, "--out", str(out))
