"""Hub ids against a local server that speaks the hub's protocol, and without any server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from backends import hub
from backends.checkpoint import assemble
from backends.errors import InputError
from backends.readers import read
from tests.backends.hub_server import Hub, serving
from tests.backends.random_model import random_rwkv7

UNREACHABLE = "http://127.0.0.1:9"  # the discard port, on which nothing listens


def _repos() -> dict[str, dict[str, bytes]]:
    tensors = random_rwkv7(C=64, N=32, L=2, V=300)
    names = sorted(tensors)
    shards = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    sharded = {shard: save({name: tensors[name] for name in held}) for shard, held in shards.items()}
    return {
        "lab/whole": {"config.json": b"{}", "model.safetensors": save(tensors), "unrelated.bin": b"no"},
        "lab/sharded": {"model.safetensors.index.json": json.dumps(index).encode(), **sharded},
        "lab/files": {"sub/one.safetensors": save(tensors), "two.safetensors": b"bytes of two" * 1000},
        "lab/single": {"README.md": b"", "only.safetensors": save(tensors)},
        "lab/text": {"README.md": b"nothing here"},
        "lab/gated": {"model.safetensors": b""},
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serving(_repos()) as running:
        running.gated.add("lab/gated")
        yield running


def _fetch(text: str, address: str, cache: Path) -> Path:
    ident = hub.parse(text)
    assert ident is not None
    return hub.fetch(ident, endpoint=address, cache=cache)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("RWKV/RWKV7-Goose-World3-1.5B-HF", ("RWKV/RWKV7-Goose-World3-1.5B-HF", "", "")),
        ("owner/repo/file.pth", ("owner/repo", "file.pth", "")),
        ("owner/repo/sub/file.pth@refs/pr/1", ("owner/repo", "sub/file.pth", "refs/pr/1")),
        ("owner/repo@v1.0", ("owner/repo", "", "v1.0")),
    ],
)
def test_parse(text: str, parts: tuple[str, str, str]) -> None:
    ident = hub.parse(text)
    assert ident == hub.HubId(*parts)
    assert str(ident) == text


@pytest.mark.parametrize("text", ["", "word", "a b/c", "/abs/path", "https://x/y", "a/b@", "a//b"])
def test_what_is_no_hub_id(text: str) -> None:
    assert hub.parse(text) is None


def test_a_whole_repository(server: Hub, tmp_path: Path) -> None:
    folder = _fetch("lab/whole", server.address, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert assemble("lab/whole", read(folder)).facts.n_layer == 2


def test_all_shards_and_only_what_is_needed(server: Hub, tmp_path: Path) -> None:
    weights = assemble("lab/sharded", read(_fetch("lab/sharded", server.address, tmp_path)))
    expected = random_rwkv7(C=64, N=32, L=2, V=300)
    assert all(torch.equal(weights.get(name), expected[name].reshape(weights.tensors[name].shape)) for name in weights)
    assert len(weights.tensors) == len(expected)


def test_a_named_file_and_the_only_file(server: Hub, tmp_path: Path) -> None:
    assert _fetch("lab/files/sub/one.safetensors@v1", server.address, tmp_path).name == "one.safetensors"
    assert _fetch("lab/single", server.address, tmp_path).name == "only.safetensors"
    assert not any("two.safetensors" in line for line in server.asked)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lab/files", r"name a file of lab/files.*sub/one\.safetensors, two\.safetensors"),
        ("lab/files/three.pth", r"has no file 'three\.pth'; its checkpoints are sub/one"),
        ("lab/text", "it holds no checkpoint"),
        ("lab/absent", "neither a path nor a hub repository lab/absent"),
        ("lab/whole@v9", "has no revision 'v9'"),
        ("lab/gated", "licence.*HF_TOKEN"),
        ("lab/-bad-", "is no hub id"),
    ],
)
def test_what_is_not_there(server: Hub, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        _fetch(text, server.address, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_listed_and_lost(server: Hub, tmp_path: Path) -> None:
    server.lost.add("two.safetensors")
    with pytest.raises(InputError, match=r"has no file 'two\.safetensors' at revision main"):
        _fetch("lab/files/two.safetensors", server.address, tmp_path)


def test_a_cut_connection_is_resumed(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    server.cut.add("two.safetensors")
    assert _fetch("lab/files/two.safetensors", server.address, tmp_path).read_bytes() == b"bytes of two" * 1000
    assert any("bytes=" in line for line in server.asked)


def test_a_download_that_fails_for_good(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(InputError, match=r"could not be downloaded.*No space left on device; try again"):
        _fetch("lab/single", server.address, tmp_path)


def test_the_cache_serves_when_the_hub_is_out_of_reach(server: Hub, tmp_path: Path) -> None:
    wanted = ["lab/whole", "lab/sharded", "lab/files/sub/one.safetensors", "lab/whole@v1"]
    online = [_fetch(text, server.address, tmp_path) for text in wanted]
    assert [_fetch(text, UNREACHABLE, tmp_path) for text in wanted] == online


@pytest.mark.parametrize("text", ["lab/whole", "lab/files/two.safetensors"])
def test_out_of_reach_and_nothing_cached(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        _fetch(text, UNREACHABLE, tmp_path)
    words = str(caught.value)
    assert words.startswith(f"no path {text} exists here")
    assert all(hint in words for hint in ("by hand", "HF_HUB_OFFLINE=1", "HF_ENDPOINT"))
    assert "\n" not in words


def test_the_settings_of_the_environment(server: Hub, tmp_path: Path) -> None:
    """`HF_ENDPOINT`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` are read once per process, hence a process each."""
    code = (
        "import sys; from backends.checkpoint import open_checkpoint; from backends.errors import InputError\n"
        "try: print(open_checkpoint(sys.argv[1]).facts.n_layer)\n"
        "except InputError as error: print(error)"
    )

    def opened(model: str, **settings: str) -> str:
        env = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **settings}
        done = subprocess.run([sys.executable, "-c", code, model], env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert opened("lab/whole", HF_ENDPOINT=server.address) == "2"
    asked = len(server.asked)
    assert opened("lab/whole", HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1") == "2"
    assert "could not be asked for lab/single" in opened("lab/single", HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    assert len(server.asked) == asked


def _file(server: Hub, text: str, cache: Path) -> Path:
    return _fetch(text, server.address, cache)


def test_a_file_that_is_not_what_the_hub_says(server: Hub, tmp_path: Path) -> None:
    server.forged.add("two.safetensors")
    with pytest.raises(InputError, match=r"two\.safetensors is not what the hub says it is: another hash"):
        _file(server, "lab/files/two.safetensors", tmp_path)
    assert not list(tmp_path.rglob("two.safetensors"))
    server.forged.clear()
    assert _file(server, "lab/files/two.safetensors", tmp_path).read_bytes() == b"bytes of two" * 1000


def test_a_file_that_rots_in_the_cache_is_found_when_asked(server: Hub, tmp_path: Path) -> None:
    path = _file(server, "lab/files/two.safetensors", tmp_path)
    assert hub.verify(path)
    path.resolve().write_bytes(b"bytes of two" * 999 + b"bytes of 2!!")
    assert _file(server, "lab/files/two.safetensors", tmp_path) == path  # opening trusts the cache
    with pytest.raises(InputError, match=r"another hash\. It was removed"):
        hub.verify(path)
    assert hub.verify(_file(server, "lab/files/two.safetensors", tmp_path))


def test_what_the_cache_says_nothing_about(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    assert not hub.verify(tmp_path / "plain")


def test_the_hash_of_small_files_is_gits(tmp_path: Path) -> None:
    blob = tmp_path / "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"  # `printf hello | git hash-object --stdin`
    blob.write_bytes(b"hello")
    (tmp_path / "config.json").symlink_to(blob)
    assert hub.verify(tmp_path / "config.json")


def test_a_licence_asked_for_one_file(server: Hub, tmp_path: Path) -> None:
    server.barred.add("two.safetensors")
    with pytest.raises(InputError, match=r"lab/files asks for an accepted licence"):
        _file(server, "lab/files/two.safetensors", tmp_path)


def test_a_connection_that_keeps_breaking_leaves_nothing_half(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.dying.add("two.safetensors")
    with pytest.raises(InputError, match=r"could not be downloaded.*try again"):
        _file(server, "lab/files/two.safetensors", tmp_path)
    server.dying.clear()
    assert _file(server, "lab/files/two.safetensors", tmp_path).read_bytes() == b"bytes of two" * 1000


RELEASES = {
    "BlinkDL/rwkv7-g1": ["README.md", "rwkv7-g1d-0.1b-20260129-ctx8192.pth", "rwkv7-g1j-1.5b-20260831-ctx16384.pth"],
    "DanielClough/rwkv7-g1-safetensors": [
        "rwkv7-g1d-1.5b-20260212-ctx8192.safetensors",
        "rwkv7-g1d-1.5b-20260301-ctx8192.safetensors",
    ],
}


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serving({repo: {file: file.encode() for file in files} for repo, files in RELEASES.items()}) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "ident"),
    [
        ("rwkv7-g1d-0.1b", "BlinkDL/rwkv7-g1/rwkv7-g1d-0.1b-20260129-ctx8192.pth"),
        ("rwkv7-g1j-1.5b", "BlinkDL/rwkv7-g1/rwkv7-g1j-1.5b-20260831-ctx16384.pth"),
        ("rwkv7-g1d-1.5b", "DanielClough/rwkv7-g1-safetensors/rwkv7-g1d-1.5b-20260301-ctx8192.safetensors"),
    ],
)
def test_a_release_is_the_newest_file_of_its_name(releases: Hub, tmp_path: Path, name: str, ident: str) -> None:
    assert str(hub.resolve(name, endpoint=releases.address, cache=tmp_path)) == ident


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rwkv7-g1d-0.2b", r"no release is called 'rwkv7-g1d-0\.2b'\. Did you mean rwkv7-g1d-0\.1b"),
        ("eagle7b", r"eagle7b is not in the cache, and the hub could not be asked \(there is neither a path"),
        ("rwkv7-g9z-77b", r"no release is called.* There are: rwkv7-g1d-0\.1b, rwkv7-g1d-1\.5b, rwkv7-g1j-1\.5b"),
    ],
)
def test_a_release_that_is_not_there(releases: Hub, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        hub.resolve(name, endpoint=releases.address, cache=tmp_path)


def test_a_release_out_of_reach_is_found_in_the_cache(releases: Hub, tmp_path: Path) -> None:
    ident = hub.resolve("rwkv7-g1d-1.5b", endpoint=releases.address, cache=tmp_path)
    path = hub.fetch(ident, endpoint=releases.address, cache=tmp_path)
    assert hub.resolve("rwkv7-g1d-1.5b", endpoint=UNREACHABLE, cache=tmp_path) == ident
    assert hub.fetch(ident, endpoint=UNREACHABLE, cache=tmp_path) == path
    with pytest.raises(InputError, match=r"rwkv7-g1d-0\.1b is not in the cache, and the hub could not be asked"):
        hub.resolve("rwkv7-g1d-0.1b", endpoint=UNREACHABLE, cache=tmp_path / "empty")


def test_a_release_that_is_a_whole_repository(tmp_path: Path) -> None:
    name = "RWKV/RWKV7-Goose-World3-1.5B-HF"
    assert str(hub.resolve(name, endpoint=UNREACHABLE, cache=tmp_path)) == name
