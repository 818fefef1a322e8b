"""The list of releases: its numbers against the layouts, its rule, and what it finds in a cache."""

from math import prod
from pathlib import Path

import pytest

from backends import catalogue, layouts
from backends.sizes import MADE, SIZES

RANKS_13B = (192, 192, 128, 384)  # together what the published size of the file leaves for them


def _letters(entry: catalogue.Entry) -> dict[str, int]:
    C = entry.width
    sizes = {"V": 65536, "C": C, "H": C // 64, "N": 64, "F": 4 * C, "5Rm": 160, "Rm": 32, "Rd": 64, "Rv0": 0}
    if entry.version[0] in "56":
        return sizes | {"F": C * 7 // 2 // 32 * 32}
    size = next(s for s in SIZES.values() if (entry.layers, C) == (s.L, s.C) and len(s.ranks) == 4)
    ranks = RANKS_13B if entry.layers == 61 else size.ranks
    return sizes | dict(zip(("Rw", "Ra", "Rv", "Rg"), ranks, strict=True)) | {"Rv0": ranks[2]}


@pytest.mark.parametrize("entry", catalogue.ENTRIES.values(), ids=lambda entry: entry.name)
def test_parameters_are_those_of_the_shapes(entry: catalogue.Entry) -> None:
    letters, whole = _letters(entry), entry.file != ""
    shapes = {
        name: layouts.resolve(text, letters)
        for name, text, required in layouts.shapes(entry.version, entry.layers)
        if required or (whole and ".att.v" in name) or name.endswith("time_faaaa")
    }
    assert sum(map(prod, shapes.values())) == entry.parameters


def test_the_names_that_people_use() -> None:
    base = {f"rwkv7-g1d-{size}" for size in ("0.1b", "0.4b", "1.5b", "2.9b", "7.2b", "13.3b")}
    more = {"rwkv7a-g1d-0.1b", "rwkv7b-g1b-0.1b", "eagle7b", "world1b5", "world3b", "world6-1b6"}
    assert set(catalogue.ENTRIES) == base | more | {"RWKV/RWKV7-Goose-World3-1.5B-HF"}
    for name in base | {"rwkv7a-g1d-0.1b", "rwkv7b-g1b-0.1b"}:
        assert catalogue.newest(name, [catalogue.ENTRIES[name].file]) == catalogue.ENTRIES[name].file


@pytest.mark.parametrize("name", ["rwkv7-g1-0.1b", "rwkv7-g1a2-1.5b", "rwkv7b-g2c-13.3b", "rwkv7-g0-7.2b"])
def test_the_rule_knows_releases_that_the_table_does_not(name: str) -> None:
    assert catalogue.is_name(name)
    assert catalogue.repositories(name) == catalogue.RELEASES
    assert catalogue.newest(name, [f"{name}-20270101-ctx8192.pth"]) == f"{name}-20270101-ctx8192.pth"


@pytest.mark.parametrize(
    "name", ["rwkv7c-g1-0.1b", "rwkv8-g1-0.1b", "rwkv7-0.1b", "rwkv7-g1d", "rwkv7-g1d-0.1b.pth", ""]
)
def test_what_is_no_release(name: str) -> None:
    assert not catalogue.is_name(name)


def test_the_newest_file_of_a_name() -> None:
    files = [
        "rwkv7-g1d-1.5b-20260212-ctx8192.pth",
        "rwkv7-g1d-1.5b-20260312-ctx8192.pth",
        "rwkv7-g1d-1.5b-20260312-ctx16384.pth",
        "rwkv7-g1d-1.5b-roleplay-20270312-ctx16384.pth",
        "rwkv7-g1d-1.5b-20280101-ctx16384.gguf",
        "rwkv7-g1-1.5b-20290101-ctx16384.pth",
        "old/rwkv7-g1d-1.5b-20300101-ctx16384.pth",
    ]
    assert catalogue.newest("rwkv7-g1d-1.5b", files) == "rwkv7-g1d-1.5b-20260312-ctx16384.pth"
    assert catalogue.newest("rwkv7-g1d-1.5b", ["rwkv7-g1d-1.5b.safetensors"]) == "rwkv7-g1d-1.5b.safetensors"
    assert catalogue.newest("rwkv7-g1d-7.2b", files) == ""
    assert catalogue.newest("eagle7b", files) == ""


def _cached(cache: Path, repository: str, commit: str, file: str) -> Path:
    path = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_what_is_here_already(tmp_path: Path) -> None:
    goose = "RWKV/RWKV7-Goose-World3-1.5B-HF"
    eagle = _cached(tmp_path, "BlinkDL/rwkv-5-world", "c1", catalogue.ENTRIES["eagle7b"].file)
    mirrored = _cached(tmp_path, catalogue.SAFETENSORS, "c1", "rwkv7-g1d-0.1b-20260129-ctx8192.safetensors")
    later = _cached(tmp_path, catalogue.OFFICIAL, "c2", "rwkv7-g1j-1.5b-20260831-ctx16384.pth")
    folder = _cached(tmp_path, goose, "c3", "model.safetensors").parent
    found = {row.name: row.cached for row in catalogue.rows(tmp_path) if row.cached}
    assert found == {"eagle7b": eagle, "rwkv7-g1d-0.1b": mirrored, "rwkv7-g1j-1.5b": later, goose: folder}


def test_an_empty_cache_lists_every_name(tmp_path: Path) -> None:
    rows = list(catalogue.rows(tmp_path))
    assert [row.name for row in rows] == [*MADE, *catalogue.ENTRIES]
    assert not any(row.cached for row in rows)
    words = {row.name: row.what for row in rows}["rwkv7-g1d-13.3b"]
    assert words.startswith("RWKV-7, 61 layers of 4096, 26.54 GB in bf16, BlinkDL/rwkv7-g1/rwkv7-g1d-13.3b-")
