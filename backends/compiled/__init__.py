"""RWKV-7, written apart from the reference: parallel over the sequence, one compiled step for decode.

`wkv` evaluates the recurrence, `block` is the layer around it, `net` the stack of layers, `inductor`
decides what is compiled, `graph` replays the decode step on CUDA. Nothing here imports
`backends.reference`: two programs that share a formula would agree by construction.
"""
