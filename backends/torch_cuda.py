"""Backend `torch-cuda-bf16`: RWKV-7 as plain PyTorch on a GPU, written to be read.

Every projection sees the whole prompt; the recurrence walks token by token over a state in place, and hands longer
prompts to the operator of `compiled.recurrence`, whose chunks a GPU works on together. Weights and activations are in
the format asked for; the decay, the learning rate, the keys' norm, the group norm and the state are float32 in every
case.
Shapes: x, h (B, T, C); heads (B, T, H, N); S (B, H, N, N) with rows = value channels.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import embedding, group_norm, layer_norm, normalize

from backends.base import Ids, Info, Output, Session, State, Want
from backends.compiled import recurrence
from backends.compiled.host import checked_device, device_name
from backends.compiled.state import LayerState, NetState, check_rows, exported, imported, zero_state
from backends.compiled.wkv import Inputs
from backends.errors import BackendError
from backends.weights import DTYPES, Weights

LONG = 64
"""Tokens beyond which a prompt is no longer walked in Python, at some ten launches a token."""

_ABILITIES = frozenset({"logits-all", "state", "batch", "generate"})


def open_torch_cuda(weights: Weights, *, device: str, dtype: str, threads: int) -> Session:
    """Open an RWKV-7 checkpoint.

    Args:
        weights: the checkpoint; read now, not needed afterwards.
        device: "cuda" or "cuda:N"; "cpu" computes the same, slowly.
        dtype: "bf16", "f32" or "f16", of weights and activations.
        threads: CPU threads; 0 leaves torch's own choice.

    Raises:
        BackendError: the device cannot be used, or the number format is not served.
        InputError: the checkpoint lacks a tensor.
    """
    if dtype not in ("bf16", "f32", "f16"):
        raise BackendError(f"torch-cuda-bf16 serves dtype bf16, f32, f16, not {dtype!r}.")
    where = checked_device(device)
    if threads > 0:
        torch.set_num_threads(threads)
    return _Eager(weights, where, dtype)


class _Eager(Session):
    def __init__(self, weights: Weights, device: torch.device, dtype: str) -> None:
        from backends.tokenizer import for_model

        facts = weights.facts
        self._z = {name: weights.get(name, dtype, str(device)) for name in weights}
        self._blocks = [_block(self._z, i) for i in range(facts.n_layer)]
        self._device, self._dtype = device, DTYPES[dtype]
        self.tokenizer = for_model(facts)
        self.info = Info(
            backend="torch-cuda-bf16",
            model=facts,
            device=str(device),
            device_name=device_name(device),
            dtype=dtype,
            threads=torch.get_num_threads(),
            attention=f"token by token; in chunks beyond {LONG}",
            packages={"torch": torch.__version__},
            abilities=_ABILITIES | ({"tokenizer"} if self.tokenizer else set()),
        )

    @torch.no_grad()
    def _forward(self, tokens: Ids, state: NetState | None, want: Want) -> Output:
        if not self._z:
            raise BackendError("this torch-cuda-bf16 session is closed; open the checkpoint again.")
        state = state or zero_state(self.info.model, len(tokens), self._dtype, self._device)
        check_rows(state, len(tokens))
        x, after = self._stream(torch.from_numpy(tokens).to(self._device), state)
        if want.logits == "none":
            return Output(state=after if want.state else None)
        logits = self._norm(x if want.logits == "all" else x[:, -1:], "ln_out") @ self._z["head.weight"].T
        return Output(
            logits=logits.float().cpu().numpy() if want.fetch else None,
            state=after if want.state else None,
        )

    def _stream(self, ids: Tensor, state: NetState) -> tuple[Tensor, NetState]:
        x = self._norm(embedding(ids, self._z["emb.weight"]), "blocks.0.ln0")
        v_first, after = None, []
        for i, (z, before) in enumerate(zip(self._blocks, state, strict=True)):
            h = self._norm(x, f"blocks.{i}.ln1")
            mixed, S, v_first = time_mix(h, _previous(h, before.att), before.wkv, v_first, z)
            x = x + mixed
            h2 = self._norm(x, f"blocks.{i}.ln2")
            x = x + channel_mix(h2, _previous(h2, before.ffn), z)
            after.append(LayerState(h[:, -1].clone(), S, h2[:, -1].clone()))
        return x, tuple(after)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], self._z[f"{name}.weight"], self._z[f"{name}.bias"], eps=1e-5)

    def export_state(self, state: NetState) -> State:
        """Copies as float32, stacked over layers."""
        return exported(state)

    def import_state(self, state: State) -> NetState:
        """Inverse of `export_state`; shapes are checked first."""
        return imported(state, self.info.model, self._dtype, self._device)

    def sync(self) -> None:
        """Wait for the GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """Let go of the weights."""
        self._z, self._blocks = {}, []


def time_mix(
    h: Tensor, previous: Tensor, S: Tensor, v_first: Tensor | None, z: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The RWKV-7 attention of one layer.

    Args:
        h: (B, T, C), normed inputs.
        previous: (B, T, C), the same one token earlier.
        S: (B, H, N, N), the state before; not written to.
        v_first: layer 0's values; None in layer 0.
        z: the layer's weights, named as in the file behind "blocks.N.".

    Returns:
        Output (B, T, C), the state after the last token, and `v_first`.
    """
    H, N = z["att.r_k"].shape
    heads = (*h.shape[:2], H, N)
    xr, xw, xk, xv, xa, xg = (h + (previous - h) * z[f"att.x_{name}"] for name in "rwkvag")

    r = (xr @ z["att.receptance.weight"].T).float()
    k = (xk @ z["att.key.weight"].T).float()
    v = (xv @ z["att.value.weight"].T).float()
    s = z["att.w0"].float() + (torch.tanh(xw @ z["att.w1"]) @ z["att.w2"]).float()
    log_w = -math.exp(-0.5) * torch.sigmoid(s)
    a = torch.sigmoid(z["att.a0"].float() + (xa @ z["att.a1"] @ z["att.a2"]).float())
    g = torch.sigmoid(xg @ z["att.g1"]) @ z["att.g2"]

    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * torch.sigmoid(z["att.v0"].float() + (xv @ z["att.v1"] @ z["att.v2"]).float())
    kk = normalize((k * z["att.k_k"].float()).view(heads), dim=-1, eps=1e-12)  # the key before a changes it
    k = k * (1 + (a - 1) * z["att.k_a"].float())

    r, log_w, k, v_heads, a = (x.view(heads) for x in (r, log_w, k, v, a))
    inputs = Inputs(r, log_w, k, v_heads, kk, a)
    y, S = wkv(inputs, S) if h.shape[1] <= LONG else recurrence.seven(inputs, S, exact=h.dtype == torch.float32)
    y = group_norm(y.flatten(0, 1).flatten(1), H, z["att.ln_x.weight"].float(), z["att.ln_x.bias"].float(), eps=64e-5)
    y = y.view(heads) + (r * k * z["att.r_k"].float()).sum(dim=-1, keepdim=True) * v_heads
    return (y.view(h.shape).to(h.dtype) * g) @ z["att.output.weight"].T, S, v_first


def wkv(x: Inputs, S: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token: inputs (B, T, H, N) and S (B, H, N, N) -> y (B, T, H, N) and the new S."""
    w_all, b_all = x.log_w.exp(), x.kk * x.a
    S, y = S.clone(), []  # a handle is never written to; what follows writes in place
    for t in range(x.r.shape[1]):
        r, w, k, kk, b = (z[:, t, :, None, :] for z in (x.r, w_all, x.k, x.kk, b_all))  # rows over the keys
        removed = (S * kk).sum(dim=-1, keepdim=True)  # (B, H, N, 1), what S holds at the key
        S.mul_(w).addcmul_(removed, b, value=-1).addcmul_(x.v[:, t, :, :, None], k)
        y.append((S * r).sum(dim=-1))
    return torch.stack(y, dim=1), S


def channel_mix(h: Tensor, previous: Tensor, z: Mapping[str, Tensor]) -> Tensor:
    """The feed-forward half of one layer: normed inputs (B, T, C) and their predecessors -> (B, T, C)."""
    k = (h + (previous - h) * z["ffn.x_k"]) @ z["ffn.key.weight"].T
    return torch.relu(k) ** 2 @ z["ffn.value.weight"].T


def _previous(h: Tensor, last: Tensor) -> Tensor:
    return torch.cat([last[:, None], h[:, :-1]], dim=1)


def _block(z: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    prefix = f"blocks.{i}."
    return {name.removeprefix(prefix): tensor for name, tensor in z.items() if name.startswith(prefix)}
