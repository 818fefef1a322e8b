"""What every port under examples/ports has to show; a test module says how its own is started."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import join
from typing import Any

import numpy as np
import pytest

from backends.base import Array, Session, Want
from backends.checkpoint import open_checkpoint
from backends.convert import save
from backends.process.session import ProcessSession, open_process
from backends.registry import open_session, parse
from harness.compare import compare
from reports.record import Record

ROOT = Path(__file__).parents[2]
PORTS = ROOT / "examples" / "ports"
PROMPT = np.frombuffer(b"The river bends twice before it reaches the mill.", dtype=np.uint8).astype(np.int64)


def near(got: Array | None, due: Array | None, what: str = "", rtol: float = 0, atol: float = 5e-6) -> None:
    """Logits of the designed checkpoint in float32 are of order 1; their own rounding stays below 1e-6."""
    assert got is not None
    assert due is not None
    np.testing.assert_allclose(got, due, rtol=rtol, atol=atol, err_msg=what)


def started(command: Sequence[str | Path], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a port to its end."""
    line = [str(part) for part in (*command, *arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def dumped(command: Sequence[str | Path], kit: Path, dump: Path, bug: str = "") -> Path:
    """What the port writes for a kit."""
    done = started(command, "--kit", kit, "--dump", dump, *(("--bug", bug) if bug else ()))
    assert done.returncode == 0, done.stderr
    return dump


def outcomes(record: Record) -> dict[str, str]:
    return {f"{v.case}.{v.criterion.rpartition('.')[2]}": v.outcome.value for v in record.verdicts}


def cause(kit: Path, dump: Path) -> tuple[str, str]:
    """The tensor that is wrong by itself, and the known mistake in it.

    Logits are taken out of the dump first: a trace alone tells both, and the search through all mistakes by logits,
    which takes ten times as long, has its own tests.
    """
    path = dump / "manifest.json"
    told = json.loads(path.read_text())
    told["tensors"] = [row for row in told["tensors"] if row["name"] != "logits"]
    path.write_text(json.dumps(told))
    record = compare(kit, dump)
    assert outcomes(record)["replay.out_of_band"] == "fail"
    (seen,) = (one.data for one in record.observations if one.kind == "diagnosis")
    return seen["tensor"], seen["cause"]


@pytest.mark.usefixtures("one_thread")
class Port:
    """Tests of one port; the subclass has a fixture `command`."""

    @pytest.fixture(scope="class")
    @staticmethod
    def session(command: Sequence[str]) -> Iterator[ProcessSession]:
        with open_checkpoint("conformance") as weights, open_process(weights, argument=join(command)) as session:
            yield session

    @pytest.fixture(scope="class")
    @staticmethod
    def truth() -> Iterator[Session]:
        with open_checkpoint("conformance") as weights, open_session(parse("reference-f64"), weights) as session:
            yield session

    def test_its_dump_of_the_kit_passes(self, command: list[str], kit: Path, tmp_path: Path) -> None:
        record = compare(kit, dumped(command, kit, tmp_path / "dump"))
        found = outcomes(record)
        assert set(found.values()) == {"pass"}
        assert {"logits.worst_ratio", "state.worst_ratio", "replay.out_of_band"} <= set(found)
        assert not any("untested" in note for note in record.notes)

    def test_logits_state_and_every_named_tensor_are_the_references(
        self, session: ProcessSession, truth: Session
    ) -> None:
        mine, due = (one.forward(PROMPT, want=Want("all", state=True, trace=("*",))) for one in (session, truth))
        assert set(mine.trace) == set(due.trace)
        for name, value in due.trace.items():
            near(mine.trace[name], value, name, rtol=3e-5, atol=3e-5)
        near(mine.logits, due.logits)
        for name, part in truth.export_state(due.state).parts().items():
            near(session.export_state(mine.state).parts()[name], part, name, rtol=3e-6)  # states reach 15

    def test_a_state_goes_out_and_in_bit_by_bit_and_is_never_written_to(self, session: ProcessSession) -> None:
        state = session.forward(PROMPT, want=Want("none", state=True)).state
        before = session.export_state(state).parts()
        again = session.import_state(session.export_state(state))
        on = [session.forward(PROMPT[:5], handle).logits for handle in (state, again, state)]
        assert on[0] is not None
        assert np.isfinite(on[0]).all()
        np.testing.assert_array_equal(on[0], on[1])
        np.testing.assert_array_equal(on[0], on[2])
        for name, part in session.export_state(state).parts().items():
            np.testing.assert_array_equal(part, before[name])

    def test_pieces_give_what_the_whole_gives(self, session: ProcessSession) -> None:
        whole = session.forward(PROMPT, want=Want("last")).logits
        state = None
        for piece in np.split(PROMPT, [1, 2, 7]):
            out = session.forward(piece, state, Want("last", state=True))
            state = out.state
        near(out.logits, whole)

    def test_it_generates_what_its_own_logits_say_and_stops_before_a_stop(self, session: ProcessSession) -> None:
        due: list[int] = []
        ids = PROMPT
        for _ in range(6):
            logits = session.forward(ids).logits
            assert logits is not None
            due.append(int(np.argmax(logits)))
            ids = np.append(PROMPT, due)
        assert [int(new[0]) for new in session.generate(PROMPT, max_new_tokens=6)] == due
        stop = due[-1]
        short_of = due[: due.index(stop)]
        assert [int(new[0]) for new in session.generate(PROMPT, max_new_tokens=6, stop=[stop])] == short_of

    def test_text_is_bytes_and_comes_back(self, session: ProcessSession) -> None:
        assert session.tokenizer is not None
        for text in ("", "plain", 'quo"te \\ back\r\n\0\t', "смелый 埃菲尔 👍🏽"):
            ids = session.tokenizer.encode(text)
            assert ids == list(text.encode())
            assert session.tokenizer.decode_bytes(ids) == text.encode()
        assert session.tokenizer.decode_bytes([0xE5, 0x9F]) == b"\xe5\x9f"

    @pytest.mark.parametrize("dtype", ["bf16", "f16"])
    def test_it_reads_narrow_numbers(self, command: list[str], dtype: str, tmp_path: Path) -> None:
        with open_checkpoint("conformance") as weights:
            path = save(weights, tmp_path / "narrow.safetensors", "safetensors", dtype)
        with (
            open_checkpoint(str(path)) as narrow,
            open_process(narrow, argument=join(command)) as mine,
            open_session(parse("reference-f64"), narrow) as truth,
        ):
            got, due = (one.forward(PROMPT, want=Want("all")).logits for one in (mine, truth))
        near(got, due)

    def test_large_arrays_go_through_files_that_are_gone_afterwards(self, session: ProcessSession) -> None:
        out = session.forward(np.tile(PROMPT, 30), want=Want("all", trace=("blocks.0.att.w",)))
        assert out.logits is not None
        assert out.logits.nbytes > 1 << 20
        assert np.isfinite(out.logits).all()
        assert not list(session._files.folder.glob("*.bin"))

    def test_a_refusal_is_an_answer_and_the_port_lives_on(self, command: list[str]) -> None:
        asked: list[tuple[str, dict[str, Any]]] = [
            ("forward", {"tokens": [1], "state": None, "logits": "last", "keep": False, "trace": [], "fetch": True}),
            ("load", {"path": "/nowhere/x", "dtype": "bf16", "device": "cpu", "threads": 1, "scratch": "/nowhere"}),
            ("load", {"path": "/nowhere/x", "dtype": "f32", "device": "cpu", "threads": 1, "scratch": "/nowhere"}),
            ("dance", {}),
            ("shutdown", {}),
        ]
        told = spoken(command, asked)
        assert [one.get("error", {}).get("code") for one in told] == [-32000, -32602, -32000, -32601, None]
        assert [one["id"] for one in told] == [1, 2, 3, 4, 5]
        assert "/nowhere/x" in told[2]["error"]["message"]

    def test_it_ends_when_its_input_ends(self, command: list[str]) -> None:
        assert spoken(command, [("hello", {"protocol": 1})])[0]["result"]["protocol"] == 1

    def test_wrong_arguments_are_refused_in_one_line(self, command: list[str], kit: Path) -> None:
        for arguments in (["--bug", "none-such"], ["--kit", str(kit)], ["--none-such", "1"], ["--bug"]):
            done = started(command, *arguments)
            assert done.returncode == 2
            assert len(done.stderr.strip().splitlines()) == 1


def spoken(command: Sequence[str], requests: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Everything that a port answers to these requests, after which its input ends."""
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}, separators=(",", ":"))
        for number, (method, params) in enumerate(requests, 1)
    ]
    text = "\r\n".join(lines) + "\n"
    done = subprocess.run(list(command), input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
