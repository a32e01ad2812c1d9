"""What is looked for in the graph of a forward, the largest first."""

from ..region import Region
from . import aspp, decoder, norm, separable

_PATTERNS = (aspp.replace_in, decoder.replace_in, separable.replace_in, norm.replace_in)


def replace_in(region: Region) -> None:
    """Replace every pattern."""
    for replace in _PATTERNS:
        replace(region)
