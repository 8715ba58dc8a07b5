"""Random numbers for draws: a pure function of purpose, window, position and draw.

So the batch, the slice, the job and the machine do not matter to what is drawn, and a
repeated job draws the same. Sources share the chances of a window: that correlates
their noise a little where they are alike, and biases nothing.
"""

import hashlib

import numpy as np

from schemas.arrays import Chances


def derive(purpose: str, window_id: str, positions: int, draws: int) -> Chances:
    """Returns the chance of each draw at each position.

    That of draw d at position t is number t * r + d, its 53 high bits, of the stream of
    Philox4x64-10 (Salmon et al. 2011) whose key is blake2b of purpose and window.
    Different purposes must have independent chances, or a draw among drawn entries
    would be biased.

    Example:
      >>> derive("score", "a window", 2, 3).round(3).tolist()
      [[0.91, 0.093, 0.461], [0.571, 0.298, 0.14]]
    """
    if not draws:  # a stream costs as much as all else of a short window
        return np.empty((positions, 0))
    key = hashlib.blake2b(f"{purpose} {window_id}".encode(), digest_size=16).digest()
    stream = np.random.Philox(key=int.from_bytes(key, "little"))
    bits = stream.random_raw(positions * draws)
    return (bits >> np.uint64(11)).reshape(positions, draws) * 2.0**-53
