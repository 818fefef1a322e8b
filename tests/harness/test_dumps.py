import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from backends.dumps import Dump
from backends.errors import InputError
from harness.dumps import read
from reports.record import Record
from tests.harness.saved_things import candle_mi, write

SHARED = Path(__file__).resolve().parents[3] / "shared"
LOGITS = np.array([0.5, -1.25, 3.0, 2.0], dtype=np.float32)


def dump(path: Path) -> Dump:
    found = read(path)
    assert isinstance(found, Dump)
    return found


def test_candle_mi_json(tmp_path: Path) -> None:
    found = dump(write(tmp_path / "rwkv7_reference.json", candle_mi()))
    assert list(found.top.items())[:2] == [(1, 8.0), (2, 7.0)]
    assert found.top_probs[2] == 0.25
    assert found.pieces == {7: "a", 8: " b", **{i: f"t{i}" for i in range(1, 11) if i not in {7, 8}}} | {
        7: "t7",
        8: "t8",
    }
    assert (found.tokens, found.generated, found.model, found.prompt) == ((7, 8), (1, 2), "m", "a b")
    assert found.logits is None


def test_published_candle_mi_files() -> None:
    path = SHARED / "golden" / "candle-mi-rwkv7-1.5b.json"
    if not path.is_file():
        pytest.skip("the published reference of candle-mi is not on this machine")
    found = dump(path)
    assert found.tokens == (7334, 21676, 41943, 41, 111, 501, 28352)
    assert list(found.top)[:5] == [1942, 98, 5170, 36, 42178]
    assert len(found.generated) == 20


def test_candle_rwkv7_files(tmp_path: Path) -> None:
    LOGITS.astype("<f4").tofile(tmp_path / "rust_final_logits.bin")
    alone = dump(tmp_path / "rust_final_logits.bin")
    assert alone.probs is None
    assert alone.tokens == ()
    LOGITS.astype("<f4").tofile(tmp_path / "rust_final_probs.bin")
    facts = {"logits": [9, 9, 9, 9], "probs": [], "context": "x", "tokens": [3], "num_tokens": 1, "vocab_size": 4}
    write(tmp_path / "rust_final_logits.json", facts)
    found = dump(tmp_path / "rust_final_logits.bin")
    assert found.logits is not None
    np.testing.assert_array_equal(found.logits, LOGITS)  # of the named file, not of its sibling
    np.testing.assert_array_equal(found.probs, LOGITS)
    assert (found.tokens, found.prompt) == ((3,), "x")
    assert dump(tmp_path).tokens == (3,)  # the three files are one dump
    told = dump(tmp_path / "rust_final_logits.json")
    assert told.probs is None
    np.testing.assert_array_equal(told.logits, [9.0] * 4)
    only = dump(tmp_path / "rust_final_probs.bin")
    assert only.logits is None
    assert only.probs is not None


def test_null_in_json_is_nan_and_not_nothing(tmp_path: Path) -> None:
    found = dump(write(tmp_path / "x.json", {"logits": [1.0, None], "probs": [0.5, 0.5]}))
    assert found.logits is not None
    assert np.isnan(found.logits[1])
    rows = candle_mi()["top_predictions"]
    rows[3]["logit"] = None
    assert np.isnan(dump(write(tmp_path / "y.json", candle_mi(top_predictions=rows))).top[4])


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LOGITS[None, None])
    found = dump(tmp_path / "a.npy")
    assert found.logits is not None
    assert found.logits.shape == (1, 4)


def test_safetensors(tmp_path: Path) -> None:
    state = np.arange(6, dtype=np.float16).reshape(1, 2, 3)
    parts = {
        "logits": np.stack([LOGITS, LOGITS]),
        "tokens": np.array([1, 2]),
        "state.wkv": state,
        "blocks.0.att.w": LOGITS,
    }
    save_file(parts, tmp_path / "a.safetensors")
    found = dump(tmp_path / "a.safetensors")
    assert found.logits is not None
    assert found.logits.shape == (2, 4)
    np.testing.assert_array_equal(found.state["wkv"], state)
    assert (found.tokens, found.ignored, list(found.tensors)) == ((1, 2), (), ["blocks.0.att.w"])


def test_bfloat16_is_read(tmp_path: Path) -> None:
    raw = (LOGITS.view(np.uint32) >> 16).astype("<u2").tobytes()  # these values are exact in bfloat16
    header = json.dumps({"logits": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw)
    np.testing.assert_array_equal(dump(tmp_path / "a.safetensors").logits, LOGITS)


def test_record(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(Record(id="r", created="now").to_json())
    assert isinstance(read(tmp_path / "run.json"), Record)


def st_file(path: Path, **arrays: Any) -> None:
    save_file(arrays, path)


BROKEN: dict[str, Callable[[Path], Any]] = {
    "no such file": lambda _: None,
    "cannot read .txt": lambda d: (d / "x.txt").write_text("1"),
    "cannot read a file without extension": lambda d: (d / "x").write_text("1"),
    "JSONDecodeError": lambda d: (d / "x.json").write_text("{"),
    "UnicodeDecodeError": lambda d: (d / "x.json").write_bytes(b"\xff\xfe{"),
    "a list where an object": lambda d: write(d / "x.json", [1]),
    "the keys a, b": lambda d: write(d / "x.json", {"b": 1, "a": 2}),
    "format 99": lambda d: write(d / "x.json", {"format": 99, "measurements": []}),
    "names a token twice": lambda d: write(d / "x.json", candle_mi(top_predictions=candle_mi()["top_predictions"] * 2)),
    "is no token id": lambda d: write(d / "x.json", candle_mi(token_ids=["seven"])),
    "KeyError": lambda d: write(d / "x.json", candle_mi(top_predictions=[{"logit": 1}])),
    "vocab_size says 5": lambda d: write(d / "x.json", {"logits": [1, 2], "vocab_size": 5}),
    "0 bytes are no float32": lambda d: (d / "x.bin").write_bytes(b""),
    "5 bytes are no float32": lambda d: (d / "x.bin").write_bytes(b"12345"),
    "allow_pickle": lambda d: np.save(d / "x.npy", np.array([{}], dtype=object), allow_pickle=True),
    "not int64": lambda d: np.save(d / "x.npy", np.arange(3)),
    "(2, 2, 2)": lambda d: np.save(d / "x.npy", np.zeros((2, 2, 2))),
    "SafetensorError": lambda d: (d / "x.safetensors").write_bytes(b"\xff" * 20),
    "no tensor named logits": lambda d: st_file(d / "x.safetensors", weight=LOGITS),
    "number format BOOL": lambda d: st_file(d / "x.safetensors", logits=np.array([True])),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_file_is_one_clear_line(message: str, tmp_path: Path) -> None:
    BROKEN[message](tmp_path)
    path = next(iter(tmp_path.iterdir()), tmp_path / "gone.npy")
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert message in text
    assert text.startswith(str(path))
    assert "\n" not in text


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        read(tmp_path / "x.npy")
    assert not (tmp_path / "exploded").exists()


def test_folders_must_hold_one_thing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to compare; readable are"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    np.save(tmp_path / "a.npy", LOGITS)
    assert dump(tmp_path).format == "npy"
    np.save(tmp_path / "b.npy", LOGITS)
    with pytest.raises(InputError, match=r"several things to compare \(a\.npy, b\.npy\); name one\."):
        read(tmp_path)
