"""Short names of all tensors of a version, as its equations have them."""

from backends.reference.session import VERSIONS
from backends.reference.walk import sublayers


def short_names(version: str) -> list[str]:
    """In the order of evaluation, those of a block behind the first; which has all."""
    parts = (part for part in sublayers(VERSIONS[version], 2) if not part.prefix.startswith("blocks.0."))
    return [(part.prefix + name).removeprefix("blocks.1.") for part in parts for name in part.table]
