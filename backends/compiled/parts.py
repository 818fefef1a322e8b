"""What every version's layer is made of: norms, the token shift, and what layers hand on to each other."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from backends.weights import Weights

LN_EPS = 1e-5
GN_EPS = 64e-5
"""1e-5 times 8²: training divided the input by 8 and used 1e-5. It does not scale with the head size."""


@dataclass(frozen=True)
class Reader:
    """A checkpoint's weights in the number format of a session, on its device.

    Attributes:
        weights: the checkpoint.
        dtype: short name of the number format.
        device: where the tensors shall lie.
        prefix: what stands before every name that is asked for.
    """

    weights: Weights
    dtype: str
    device: str
    prefix: str = ""

    def __call__(self, name: str) -> Tensor:
        """One tensor in canonical shape."""
        return self.weights.get(self.prefix + name, self.dtype, self.device).contiguous()

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.weights

    def under(self, prefix: str) -> "Reader":
        """The same weights by the rest of their names."""
        return replace(self, prefix=self.prefix + prefix)

    def turned(self, name: str) -> Tensor:
        """One of a low-rank pair as a matrix (out, in): stored (in, out), applied from the right."""
        return self(name).mT.contiguous()


class Across(NamedTuple):
    """What a layer sees beside the stream and its own state.

    Attributes:
        ids: (B, T), the tokens.
        emb: (B, T, C), their embeddings behind ln0.
        v_first: (B, T, C) float32, layer 0's values of RWKV-7; None in layer 0 and in other versions.
    """

    ids: Tensor
    emb: Tensor
    v_first: Tensor | None = None


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm over C; the statistics accumulate in float32 whatever the format."""
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, LN_EPS)


def group_norm(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every head by itself: float32 heads (B, T, H, N) -> (B, T, C), then the weight and bias of full width."""
    return functional.layer_norm(y, y.shape[-1:], eps=GN_EPS).flatten(-2) * weight + bias


def shifted(h: Tensor, last: Tensor) -> Tensor:
    """Every token's predecessor: (B, T, C) and the input before the first, (B, C) -> (B, T, C)."""
    return torch.cat([last[:, None], h[:, :-1]], dim=1)


def last_row(h: Tensor) -> Tensor:
    """The last token's row, copied: a view would keep the whole prompt alive.

    The copy asks for plain strides, because for B = 1 it would keep those of the prompt, and the compiled step would be
    compiled again after every new length.
    """
    return h[:, -1].clone(memory_format=torch.contiguous_format)
