"""RWKV in C for processors: one call from tokens to logits, built on first use with the system's compiler.

`build` finds the compiler and keeps what it made, `packing` lays weights out for it, `model` is what a session runs.
The C files read from `vec.h` upwards: vectors, `matmul.h`, `pool.h`, `wkv7.h`, `rwkv7.c`.
"""
