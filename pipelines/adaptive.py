"""Settings of an adaptive k, which score and fuse share."""

from typing import Any

from schemas.settings import setting


def top_p() -> Any:
    """Returns the setting of the mass that is kept."""
    return setting(
        None,
        help="keep of the top_k entries of a position as few as sum to this mass, in"
        " (0, 1]; left out: all",
        omit_default=True,
    )


def min_k() -> Any:
    """Returns the setting of how many entries stay whatever their mass."""
    return setting(1, help="entries that top_p keeps in any case", omit_default=True)
