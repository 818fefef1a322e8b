"""Token ids as a session is given them: checked, and in one shape."""

import numpy as np
import numpy.typing as npt

from backends.errors import BackendError


def checked(tokens: npt.ArrayLike, vocab_size: int) -> npt.NDArray[np.int64]:
    """Ids, (T,) or (B, T), as int64 (B, T).

    Raises:
        BackendError: they are not integers, out of range, or of a wrong shape.
    """
    ids = np.asarray(tokens)
    if ids.ndim == 1:
        ids = ids[None, :]
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise BackendError(f"tokens must be integers of shape (B, T) with T >= 1, got {ids.dtype} {ids.shape}.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise BackendError(f"token ids must lie in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}.")
    return ids.astype(np.int64)
