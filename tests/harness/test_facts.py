import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from harness import facts


def git(root: Path, *words: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True)


def test_environment_is_plain_json_and_complete() -> None:
    found = facts.environment()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {*("python", "os", "cpu", "cores", "memory_gib"), *("packages", "commit", "dirty", "machine")}
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert "numpy" in found["packages"]
    assert all(isinstance(value, str | int | float) for value in found["machine"].values())


def test_no_person_and_no_path_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PLACES", "/data/somebody/places")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    text = json.dumps(facts.environment())
    assert "somebody" not in text
    assert str(Path.home()) + "/" not in text
    assert platform.node() not in text or len(platform.node()) < 4
    assert facts.environment()["machine"]["OMP_NUM_THREADS"] == "3"


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert facts.revision(tmp_path) == ("", None)
    git(tmp_path, "init")
    assert facts.revision(tmp_path) == ("", None)  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "one")
    commit, dirty = facts.revision(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "a").write_text("2")
    assert facts.revision(tmp_path) == (commit, True)
    assert facts.environment(tmp_path)["commit"] == commit


def test_a_folder_inside_a_foreign_checkout_is_no_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert facts.revision(inside) == ("", None)


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(facts, "_text", lambda _: "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "")
    found = facts.environment(tmp_path)
    assert (found["commit"], found["dirty"], found["memory_gib"], found["cpu"]) == ("", None, 0, "unknown")
    assert found["cores"] >= 1
    assert "load" not in found["machine"]


def test_status_that_fails_leaves_dirty_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(facts, "_output", lambda *words: "abc" if "rev-parse" in words else None)
    assert facts.revision(tmp_path) == ("abc", None)


def test_a_container_limits_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal:       33554432 kB\nMemFree: 1 kB\n",
        "/sys/fs/cgroup/memory.max": "8589934592\n",
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
        "/proc/cpuinfo": "processor : 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2 avx512f\n",
    }
    monkeypatch.setattr(facts, "_text", lambda path: files.get(path, ""))
    assert facts.memory_gib() == 8.0
    assert facts.cpu_brand() == "Some CPU @ 3 GHz"
    machine = facts.environment()["machine"]
    assert machine["cpu_limit"] == 1.5
    assert machine["simd"] == "avx2 avx512f"
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    files["/sys/fs/cgroup/cpu.max"] = "max 100000\n"
    assert facts.memory_gib() == 32.0
    assert "cpu_limit" not in facts.environment()["machine"]


def test_read_bandwidth_gives_every_pass() -> None:
    rates = facts.read_bandwidth(mib=8, repeats=3, threads=2)
    assert len(rates) == 3
    assert all(0.1 < rate < 10_000 for rate in rates)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from harness import compare, facts; facts.environment(); "
    code += "print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
