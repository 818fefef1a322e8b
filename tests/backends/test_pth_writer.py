"""The streaming writer of .pth against torch itself: what torch reads, and how torch would have laid it out."""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import pth_writer
from backends.readers import in_memory
from backends.weights import DTYPES, Tensor

TENSORS = {
    "vector": torch.randn(1, 1, 7),
    "matrix": torch.randn(3, 5).t(),
    "half": torch.randn(4, 6).half(),
    "brain": torch.randn(9).bfloat16(),
    "double": torch.randn(2, 2, 2).double(),
    "nothing": torch.zeros(0, 4),
    "number": torch.tensor(3.5),
    "ünïcode": torch.ones(2),
}


def _written(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    pth_writer.write(path, in_memory(tensors).tensors)
    return path


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        for name in a
    )


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("weights_only", [True, False])
def test_torch_reads_it(tmp_path: Path, mapped: bool, weights_only: bool) -> None:
    path = _written(tmp_path / "m.pth", TENSORS)
    loaded = torch.load(path, weights_only=weights_only, mmap=mapped)
    assert type(loaded) is dict
    assert _same(loaded, TENSORS)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in loaded.values())


def test_every_record_begins_where_torch_would_put_it(tmp_path: Path) -> None:
    reader: Any = torch._C.PyTorchFileReader(str(_written(tmp_path / "m.pth", TENSORS)))
    offsets = {name: reader.get_record_offset(name) for name in reader.get_all_records()}
    assert {offset % pth_writer.ALIGNMENT for offset in offsets.values()} == {0}
    assert {name for name in offsets if name.startswith("data/")} == {f"data/{n}" for n in range(len(TENSORS))}


def test_the_pickle_is_the_one_that_torch_writes(tmp_path: Path) -> None:
    tensors = {name: tensor.clone().contiguous() for name, tensor in TENSORS.items()}
    torch.save(tensors, tmp_path / "theirs.pth")

    def operations(path: Path) -> list[tuple[str, object]]:
        with zipfile.ZipFile(path) as archive:
            data = next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
        return [(code.name, value) for code, value, _ in pickletools.genops(io.BytesIO(data)) if "PUT" not in code.name]

    ours, theirs = operations(_written(tmp_path / "ours.pth", TENSORS)), operations(tmp_path / "theirs.pth")
    assert [row for row in ours if "GET" not in row[0]] == [row for row in theirs if "GET" not in row[0]]


def test_the_archive_is_sound_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = (_written(tmp_path / name, TENSORS) for name in ("a.pth", "b.pth"))
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    assert first.read_bytes() == second.read_bytes()


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """The next tensor is read only after the one before was written."""
    events: list[str] = []

    def reading(name: str) -> Tensor:
        def read(device: str) -> torch.Tensor:
            events.append(f"read {name}")
            return torch.zeros(3, device=device)

        return Tensor((3,), "f32", read)

    pth_writer.write(tmp_path / "m.pth", {n: reading(n) for n in "ab"}, lambda size: events.append(f"wrote {size}"))
    assert events == ["read a", "wrote 12", "read b", "wrote 12"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=5),
    dtype=st.sampled_from(sorted(DTYPES)),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
)
def test_any_shapes_and_names(tmp_path: Path, shapes: list[list[int]], dtype: str, name: str) -> None:
    tensors = {f"{name}{n}": torch.randn(shape).to(DTYPES[dtype]) for n, shape in enumerate(shapes)}
    assert _same(torch.load(_written(tmp_path / "m.pth", tensors), weights_only=True, mmap=True), tensors)
