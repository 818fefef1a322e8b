"""The built wheel in an unrelated, empty project on a machine without a compiler."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from harness import skeleton

ROOT = Path(__file__).parents[2]

pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed here")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `pip install` of the wheel unpacks."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    yield folder / "site"
    shutil.rmtree(folder)


def test_what_is_read_at_run_time_is_in_the_wheel(site: Path) -> None:
    for kind in skeleton.KINDS.values():
        for source in kind.values():
            assert (site / "harness" / "skeletons" / source).is_file()
    for room in ("backends", "harness", "reports"):
        assert (site / room / "py.typed").is_file()
    (facts,) = site.glob("*.dist-info")
    points = {(point.group, point.value) for point in PathDistribution(facts).entry_points}
    assert ("pytest11", "harness.pytest_plugin") in points


@pytest.fixture
def project(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """An empty folder; nothing of the repository on the path, and no program but Python's own."""
    bare = tmp_path / "bin"
    bare.mkdir()
    empty = tmp_path / "project"
    empty.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "PYTEST_ADDOPTS")}
        given = {**kept, "PATH": str(bare), "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=empty, env=given, capture_output=True, text=True, check=False)

    return run


def test_the_acceptance_runs_in_an_empty_project_without_a_compiler(
    project: Callable[..., subprocess.CompletedProcess[str]], site: Path, tmp_path: Path
) -> None:
    options = ("--rwkv-backend", "torch-compile", "--rwkv-suite", "generation", "--rwkv-out", "kept")
    done = project("pytest", "-q", *options, "--pyargs", "harness.conformance")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n4 passed" in done.stdout
    assert "runs uncompiled: " in (tmp_path / "project" / "kept" / "record.json").read_text()
    assert "runs uncompiled: " in (tmp_path / "project" / "kept" / "report.md").read_text()


def test_a_skeleton_comes_out_of_the_wheel(
    project: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = project("harness", "new-backend", "my-port")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "project" / "my-port" / "my_port" / "rwkv7.py").is_file()
