"""A dump as a session: its prompt, the beginnings of it, and nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.base import Session, Want
from backends.dumped import DumpSession
from backends.errors import Unsupported
from backends.weights import Weights
from tests.backends.recordings import V, logits, played, refused

PROMPT = [3, 1, 4, 1, 5]


def dump(folder: Path, **arrays: Any) -> Path:
    told: dict[str, Any] = {key: arrays.pop(key) for key in ("dtype", "tokens", "fingerprint") if key in arrays}
    rows = []
    for name, value in arrays.items():
        value.astype("<f4").tofile(folder / f"{name}.bin")
        rows.append({"name": name, "dtype": "f32", "shape": list(value.shape), "file": f"{name}.bin"})
    told = {"dump": 1, "program": "a port", "tokens": PROMPT, **told, "tensors": rows}
    (folder / "manifest.json").write_text(json.dumps(told))
    return folder


def test_a_dump_answers_its_prompt_and_its_beginnings(tmp_path: Path, weights: Weights, live: Session) -> None:
    out = live.forward(PROMPT, want=Want("all", trace=("blocks.0.att.kk", "blocks.0.att.state")))
    kk, state = out.trace["blocks.0.att.kk"], out.trace["blocks.0.att.state"]
    heads = kk.reshape(1, 5, 2, 16)
    dump(tmp_path, dtype="bf16", logits=logits(out)[0], **{"blocks.0.att.kk": heads, "blocks.0.att.state": state[0]})
    with played(tmp_path, weights) as session:
        assert isinstance(session, DumpSession)
        assert session.info.dtype == "bf16"
        assert session.info.abilities == {"trace", "logits-all"}
        for T in (1, 3, 5):
            got = session.forward(PROMPT[:T], want=Want("all", trace=("blocks.0.*",)))
            np.testing.assert_array_equal(logits(got), logits(out)[:, :T])
            np.testing.assert_array_equal(got.trace["blocks.0.att.kk"], kk[:, :T])
            np.testing.assert_array_equal(got.trace["blocks.0.att.state"], state[:, :T])
            np.testing.assert_array_equal(logits(session.forward(PROMPT[:T])), logits(out)[:, T - 1 : T])
        assert session.forward(PROMPT, want=Want("none")).logits is None
        for wrong in ([3, 1, 5], [*PROMPT, 9], [[3, 1], [3, 1]]):
            with pytest.raises(Unsupported, match="is a recording of"):
                session.forward(wrong) if np.ndim(wrong) == 1 else session._forward(np.array(wrong), None, Want())
        with pytest.raises(Unsupported, match="no ability 'state'"):
            next(session.generate(PROMPT))


def test_the_last_position_alone_is_not_all_positions(tmp_path: Path, weights: Weights) -> None:
    dump(tmp_path, logits=np.arange(V))
    with played(tmp_path, weights) as session:
        assert session.info.abilities == frozenset()
        np.testing.assert_array_equal(logits(session.forward(PROMPT))[0, 0], np.arange(V))
        with pytest.raises(
            Unsupported, match=r"after the last token only: its one prompt has 5 tokens, \[3, 1, 4, 1, 5"
        ):
            session.forward(PROMPT[:2])
        with pytest.raises(Unsupported, match="no ability 'logits-all'"):
            session.forward(PROMPT, want=Want("all"))


def test_a_dump_without_logits(tmp_path: Path, weights: Weights) -> None:
    dump(tmp_path, **{"blocks.0.att.w": np.ones((5, 32))})
    with played(tmp_path, weights) as session:
        with pytest.raises(Unsupported, match="holds no logits"):
            session.forward(PROMPT)
        assert session.forward(PROMPT, want=Want("none", trace=("*",))).trace["blocks.0.att.w"].shape == (1, 5, 32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"tokens": [], "logits": np.ones((5, V))}, "does not say which tokens"),
        ({"state.wkv": np.ones((2, 2, 16, 16))}, "holds neither logits nor named tensors"),
        ({"logits": np.ones((4, V))}, r"logits of shape \(4, 61\), where \(5, 61\) or \(61,\) is due"),
        ({"tokens": [1, 99, 1, 1, 1], "logits": np.ones((5, V))}, "do not lie in the vocabulary of 61"),
        ({"blocks.0.att.w": np.ones((4, 32))}, r"shape \(4, 32\), which has to begin with 5 tokens"),
        ({"logits": np.ones((5, V)), "fingerprint": "ab"}, "was recorded of another checkpoint"),
    ],
)
def test_a_dump_that_cannot_answer_is_refused(
    tmp_path: Path, weights: Weights, arrays: dict[str, Any], words: str
) -> None:
    refused(dump(tmp_path, **arrays), weights, words)


def test_a_kit_is_no_answer(tmp_path: Path, weights: Weights) -> None:
    dump(tmp_path, logits=np.ones((5, V)))
    (tmp_path / "bands.safetensors").touch()
    refused(tmp_path, weights, "is a kit: what is expected")
