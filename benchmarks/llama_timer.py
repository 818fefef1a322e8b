"""Times llama.cpp inside its own process, for benchmarks/native.py: run by a Python that has llama_cpp.

    python benchmarks/llama_timer.py MODEL.gguf THREADS

Reads `decode ROWS STEPS` or `prompt TOKENS`, a line each, and answers with seconds. Every row is a sequence of its own;
logits are computed where torch-compile computes them: after every decoded token, after the last of a prompt.
"""

import sys
import time
from typing import Any

import llama_cpp as lib

PROMPT = 512
ROWS = 64


def opened(path: str, threads: int) -> Any:
    """A context with room for every cell."""
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(path.encode(), parameters)
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 1 << 15, PROMPT, PROMPT, ROWS
    settings.n_threads = settings.n_threads_batch = threads
    settings.no_perf = True
    context = lib.llama_init_from_model(model, settings)
    if not model or not context:
        raise SystemExit(f"llama.cpp refuses {path}")
    return context


def fed(context: Any, batch: Any, places: list[tuple[int, int]], wanted: int) -> None:
    """Decode one batch of (sequence, position); logits of its last `wanted` tokens."""
    batch.n_tokens = len(places)
    for i, (row, position) in enumerate(places):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = 1 + position % 97, position, 1
        batch.seq_id[i][0] = row
        batch.logits[i] = i >= len(places) - wanted
    if lib.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")
    lib.llama_synchronize(context)


def main() -> None:
    """Answer until the input ends."""
    context = opened(sys.argv[1], int(sys.argv[2]))
    batch = lib.llama_batch_init(PROMPT, 0, 1)
    for line in sys.stdin:
        what, *numbers = line.split()
        first, *rest = map(int, numbers)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        if what == "decode":
            fed(context, batch, [(row, 0) for row in range(first)], first)
            start = time.perf_counter()
            for step in range(rest[0]):
                fed(context, batch, [(row, step + 1) for row in range(first)], first)
        else:
            start = time.perf_counter()
            for begin in range(0, first, PROMPT):
                some = range(begin, min(first, begin + PROMPT))
                fed(context, batch, [(0, position) for position in some], int(some.stop == first))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
