"""`llama-cpp`: llama.cpp, through llama-cpp-python, on a GGUF made of the official tensors or on the user's own."""

from collections.abc import Mapping
from pathlib import Path

from backends import gguf
from backends.base import ModelFacts
from backends.engines.session import EngineSession, Setup
from backends.errors import InputError
from backends.gguf_writer import save_gguf
from backends.weights import Weights

WRITTEN = "the GGUF was written by this project from the official tensors"

OWN = "it computes from a GGUF of its own, in whatever formats that holds"

STEP = 64
"""Channels that llama.cpp's WKV kernels take at once, at most; they expect heads of a multiple."""


def open_llama_cpp(
    weights: Weights, *, device: str = "cpu", dtype: str = "f32", threads: int = 0, argument: str = ""
) -> EngineSession:
    """llama.cpp on a checkpoint.

    Args:
        weights: the checkpoint; written as GGUF in `dtype`, unless there is an `argument`.
        device: "cpu", "cuda".
        dtype: of the matrices in the file.
        threads: of llama.cpp; 0 leaves it its default.
        argument: path of a GGUF of the same model.

    Raises:
        InputError: the given file is no GGUF of this model.
        BackendError: llama.cpp refuses it.
    """
    facts = weights.facts
    notes = [f"head size {facts.head_size}: llama.cpp computes with heads of {STEP}"] if facts.head_size % STEP else []
    if argument:
        header = gguf.read_header(Path(argument))
        check(header, argument, facts)
        notes.append(described(header, argument))
    else:
        notes.append(f"{WRITTEN}, matrices in {dtype}")

    def provide(weights: Weights, folder: Path) -> Path:
        path = folder / "model.gguf"
        if not argument:
            return save_gguf(weights, path, dtype)
        path.symlink_to(Path(argument).resolve())
        return path

    settings = {"version": facts.version, "dtype": dtype, "tokenizer": facts.tokenizer, "layers": facts.n_layer}
    setup = Setup("llama-cpp", "llama_cpp", settings, provide, tuple(notes))
    session = EngineSession(weights, setup, dtype, device, threads)
    session.own_file = OWN if argument else ""
    return session


def check(header: gguf.Header, path: str, facts: ModelFacts) -> None:
    """Refuse a GGUF of another model, naming everything that differs."""
    arch = header.metadata.get("general.architecture", "nothing")
    if arch != f"rwkv{facts.version}":
        raise InputError(f"{path} holds {arch}, --model is rwkv{facts.version}.")
    due = {
        "embedding_length": facts.n_embd,
        "block_count": facts.n_layer,
        "wkv.head_size": facts.head_size,
        "feed_forward_length": facts.n_ffn,
    }
    found = {key: header.metadata.get(f"{arch}.{key}") for key in due}
    vocab = header.tensors.get("token_embd.weight", ((0,), ""))[0][0]
    wrong = [f"{key} {found[key]} instead of {due[key]}" for key in due if found[key] != due[key]]
    wrong += [f"vocabulary {vocab} instead of {facts.vocab_size}"] if vocab != facts.vocab_size else []
    if wrong:
        raise InputError(f"{path} is another model than --model {facts.name}: {', '.join(wrong)}.")


def described(header: gguf.Header, path: str) -> str:
    """What a file says of its number formats, in a sentence."""
    types: Mapping[str, int] = header.types()
    total = sum(types.values())
    shares = ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in types.items())
    plain = {"F32", "F16", "BF16"} >= set(types)
    judged = "" if plain else "; quantised weights are another model: its limits are those of f16"
    return f"{Path(path).name}, its parameters are stored as {shares}{judged}"
