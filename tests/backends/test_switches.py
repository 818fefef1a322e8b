"""Switches: read from the environment and behind the backend's name; what they do on any device."""

import numpy as np
import pytest
import torch

from backends.compiled import net, triton_ops
from backends.compiled.switches import Switches
from backends.errors import UsageError
from backends.torch_compiled import open_torch_compiled
from tests.backends.feeding import ids_for, logits_of, small_model
from tests.backends.random_model import as_weights


def test_the_environment_then_the_argument() -> None:
    assert Switches.of("", {}) == Switches("cuda", graph=True, embedding=False, sparse=True)
    variables = {"RWKV_TRITON": "0", "RWKV_CUDA_GRAPH": "0", "RWKV_EMBEDDING": "host", "RWKV_SPARSE_FFN": "0"}
    assert Switches.of("", variables) == Switches("", graph=False, embedding=True, sparse=False)
    assert Switches.of("graph=1,embedding=device", variables) == Switches("", True, False, False)
    assert Switches.of("", {"RWKV_TRITON": "interpret"}).triton == "interpret"


@pytest.mark.parametrize(
    ("argument", "variables", "words"),
    [
        ("grpah=0", {}, "no switch 'grpah'; it has graph, embedding, sparse"),
        ("triton=0", {}, "no switch 'triton'"),
        ("graph", {}, "graph= is not known; it takes 1, 0"),
        ("", {"RWKV_EMBEDDING": "disk"}, "RWKV_EMBEDDING=disk is not known; it takes device, host"),
    ],
)
def test_what_is_unknown_is_named(argument: str, variables: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Switches.of(argument, variables)


def test_opening_reads_both(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = as_weights(small_model())
    with pytest.raises(UsageError, match="no switch 'x'"):
        open_torch_compiled(weights, device="cpu", dtype="f32", threads=0, argument="x=1")
    monkeypatch.setenv("RWKV_CUDA_GRAPH", "2")
    with pytest.raises(UsageError, match="RWKV_CUDA_GRAPH=2"):
        open_torch_compiled(weights, device="cpu", dtype="f32", threads=0)


def test_a_table_on_the_host_gives_the_same_rows() -> None:
    ids = torch.from_numpy(ids_for(7)).view(1, 7)
    plain, hosted = (net.load(as_weights(small_model()), "f32", "cpu", host_table=host) for host in (False, True))
    assert torch.equal(net.embed(ids, plain.ends), net.embed(ids, hosted.ends))


def test_a_change_sees_every_layer_once() -> None:
    seen: list[object] = []
    loaded = net.load(as_weights(small_model()), "f32", "cpu", lambda p: seen.append(p) or p)  # type: ignore[func-returns-value]
    assert list(loaded.layers) == seen
    assert len(seen) == 3


def test_triton_is_left_alone_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert "RWKV_TRITON=0" in triton_ops.obstacle(cuda, Switches(""))
    assert "run on CUDA" in triton_ops.obstacle(cpu, Switches())
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in triton_ops.obstacle(cpu, Switches("interpret"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "'triton' is not installed" in triton_ops.obstacle(cuda, Switches())


def test_a_first_launch_that_fails_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def scan(*_: object) -> None:
            raise RuntimeError("no compiler found\nat length")

    class Wrong:
        @staticmethod
        def scan(x: tuple[torch.Tensor, ...], S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[0] + 1, S

        @staticmethod
        def chunks(x: tuple[torch.Tensor, ...], S: torch.Tensor, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
            return x[0], S

    for kernels, words in ((Broken, "do not run here (RuntimeError: no compiler found)"), (Wrong, "something else")):
        monkeypatch.setattr(triton_ops, "module", lambda _, kernels=kernels: kernels)
        assert words in triton_ops.tried.__wrapped__("cpu")


def test_switches_change_nothing_on_a_cpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_NATIVE", "off")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    ids, weights = ids_for(9), as_weights(small_model())
    found = [
        logits_of(open_torch_compiled(weights, device="cpu", dtype="f32", threads=0, argument=argument).forward(ids))
        for argument in ("", "graph=0,embedding=host,sparse=0")
    ]
    assert np.array_equal(found[0], found[1])
