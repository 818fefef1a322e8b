"""Version and sizes from names and shapes; every tensor that is missing, strange or wrongly shaped is named."""

import math
from dataclasses import replace

import pytest

from backends import detect
from backends.base import ModelFacts
from backends.errors import InputError
from tests.backends import files
from tests.backends.files import C, F, H, L, N, Shapes, V, unread


def _facts(shapes: Shapes) -> ModelFacts:
    return detect.detect("m", unread(shapes))


@pytest.mark.parametrize("version", files.ALL)
def test_every_version_and_its_sizes(version: str) -> None:
    shapes = files.ALL[version]()
    facts = _facts(shapes)
    assert facts.version == version
    assert (facts.vocab_size, facts.n_embd, facts.n_layer, facts.n_ffn) == (V, C, L, F)
    assert (facts.n_head, facts.head_size) == ((0, 0) if version == "4" else (H, N))
    ranks = {"6": {"m": 12, "d": 20}, "7": {"w": 24, "a": 20, "v": 16, "g": 48}}
    assert dict(facts.ranks) == ranks.get(version[0], {})
    assert facts.parameters == sum(math.prod(shape) for shape in shapes.values())
    assert facts.evidence.startswith(f"RWKV-{version}: ")


@pytest.mark.parametrize("version", files.ALL)
def test_canonical_shapes(version: str) -> None:
    tensors = unread(files.ALL[version]())
    facts = detect.detect("m", tensors)
    canonical = detect.canonical(facts, tensors)
    assert canonical.keys() == tensors.keys()
    assert all(tuple(tensor.read("cpu").shape) == tensor.shape for tensor in canonical.values())
    assert all(tensor.shape[:2] != (1, 1) for tensor in canonical.values())
    assert detect.detect("m", canonical) == replace(facts, evidence=detect.detect("m", canonical).evidence)


def test_file_shapes_invert_canonical_shapes() -> None:
    tensors = unread(files.v7b())
    facts = detect.detect("m", tensors)
    assert detect.file_shapes(facts, detect.canonical(facts, tensors)) == files.v7b()


@pytest.mark.parametrize("version", files.ALL)
def test_one_wrong_shape_is_named_alone(version: str) -> None:
    for name, good in files.ALL[version]().items():
        for axis in range(len(good)):
            wrong = (*good[:axis], good[axis] + 3, *good[axis + 1 :])
            with pytest.raises(InputError) as caught:
                _facts({**files.ALL[version](), name: wrong})
            words = str(caught.value)
            # Only two tensors state the vocabulary, and layer 0's unused pair its own rank: the first is believed.
            twin = {"emb.weight": "head.weight", "blocks.0.att.v1": "blocks.0.att.v2"}.get(name, name)
            assert f"{name} is " in words or f"{twin} is " in words, (name, axis, words)
            assert words.count("expected") == 1, (name, axis, words)
            assert "\n" not in words


@pytest.mark.parametrize("version", files.ALL)
def test_one_missing_tensor_is_named(version: str) -> None:
    complete = files.ALL[version]()
    for name in complete.keys() - {f"blocks.0.att.v{part}" for part in "012"}:
        with pytest.raises(InputError) as caught:
            _facts({key: shape for key, shape in complete.items() if key != name})
        assert name in str(caught.value)


def test_wrong_shape_in_words() -> None:
    shapes = files.v7() | {"blocks.1.att.w1": (24, C), "blocks.1.ffn.x_k": (1, 1, C + 1)}
    with pytest.raises(InputError) as caught:
        _facts(shapes)
    assert str(caught.value) == (
        "m (RWKV-7) has wrongly shaped tensors: blocks.1.att.w1 is 24x64, expected 64x24 (transposed); "
        "blocks.1.ffn.x_k is 1x1x65, expected 64."
    )


def test_missing_and_unexpected_in_words() -> None:
    shapes = files.v7()
    for name in ("a0", "a1", "a2", "g1", "w2", "k_k"):
        del shapes[f"blocks.1.att.{name}"]
    with pytest.raises(InputError, match=r"^m \(RWKV-7, 3 layers\) lacks .*and 2 more\.$"):
        _facts(shapes)
    with pytest.raises(InputError, match=r"does not know: 'bad\\nname', extra\.$"):
        _facts(files.v7() | {"bad\nname": (1,), "extra": (2,)})


def test_layer_0_needs_no_value_residual_and_its_rank_is_never_read() -> None:
    bare = {name: shape for name, shape in files.v7().items() if not name.startswith("blocks.0.att.v0")}
    for part in "12":
        del bare[f"blocks.0.att.v{part}"]
    assert _facts(bare).ranks["v"] == 16
    odd = files.v7() | {"blocks.0.att.v1": (C, 99), "blocks.0.att.v2": (99, C)}
    assert _facts(odd).ranks["v"] == 16
    half = bare | {"blocks.0.att.v2": (7, C)}
    assert _facts(half).ranks["v"] == 16
    with pytest.raises(InputError, match=r"blocks\.0\.att\.v2 is 98x64, expected 99x64"):
        _facts(odd | {"blocks.0.att.v2": (98, C)})


def test_one_layer_has_no_value_rank() -> None:
    shapes = {name: shape for name, shape in files.v7().items() if not name.startswith(("blocks.1.", "blocks.2."))}
    facts = _facts(shapes)
    assert facts.n_layer == 1
    assert "v" not in facts.ranks


def test_one_head_and_rank_one_survive() -> None:
    shapes = files.v7()
    for layer in range(L):
        shapes |= {
            f"blocks.{layer}.att.r_k": (1, C),
            f"blocks.{layer}.att.w1": (C, 1),
            f"blocks.{layer}.att.w2": (1, C),
        }
    tensors = unread(shapes)
    facts = detect.detect("m", tensors)
    canonical = detect.canonical(facts, tensors)
    assert (facts.n_head, facts.head_size, facts.ranks["w"]) == (1, C, 1)
    assert [canonical[f"blocks.0.att.{name}"].shape for name in ("r_k", "w1", "w2")] == [(1, C), (C, 1), (1, C)]


def test_matrices_get_no_squeeze() -> None:
    with pytest.raises(InputError, match="1x64x64, expected 64x64"):
        _facts(files.v7() | {"blocks.0.att.key.weight": (1, C, C)})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "is no RWKV checkpoint: it holds no tensors"),
        ({"transformer.wte": (2, 2)}, "is no RWKV checkpoint: it holds transformer.wte"),
        (files.v7() | {"blocks.0.ffn.enn.weight": (1, 1)}, r'"RWKV-8 rc" experiment'),
        (files.v52() | {"blocks.0.att.time_mix_w1": (1, 1)}, "web-rwkv's names"),
        (files.v7() | {"blocks.7.att.w0": (1, 1, C)}, "tensors of block 7 but none of block 3"),
        (
            files.v50() | {"blocks.1.att.time_faaaa": (H,)},
            r"one of blocks\.1\.att\.time_first or blocks\.1\.att\.time_faaaa",
        ),
        ({"blocks.0.att.w0": (1,), "emb.weight": (2, 2)}, r"no usable tensor blocks\.\*\.ln1\.weight, from which C"),
        ({"blocks.0.att.w0": (1,), "blocks.0.ln1.weight": ()}, r"no usable tensor blocks\.\*\.ln1\.weight"),
        (files.v7() | {"blocks.0.ln1.bias": ()}, r"blocks\.0\.ln1\.bias is scalar, expected 64"),
    ],
)
def test_what_is_refused(shapes: Shapes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        _facts(shapes)


@pytest.mark.parametrize(
    ("vocab", "name"), [(65536, "world"), (65530, "world"), (50277, ""), (997, "bytes"), (256, "bytes"), (255, "")]
)
def test_tokenizer_by_vocabulary(vocab: int, name: str) -> None:
    assert detect.tokenizer_for(vocab) == name


def test_stored_format_names_the_larger_part_first() -> None:
    tensors = unread(files.v7(), "bf16")
    tensors["ln_out.bias"] = replace(tensors["ln_out.bias"], dtype="f32")
    assert detect.detect("m", tensors).stored == "bf16+f32"
