"""The jaxtyping names by which tensors are annotated, where jaxtyping is installed.

Shapes are checked under pytest only. A script that runs from a bare checkout, without
an installation, may lack jaxtyping; there the names stand for plain tensors.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or importlib.util.find_spec("jaxtyping"):
    from jaxtyping import BFloat16 as BFloat16
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Float32 as Float32
    from jaxtyping import Float64 as Float64
    from jaxtyping import Int as Int
    from jaxtyping import Int32 as Int32
    from jaxtyping import Int64 as Int64
else:

    class _Unchecked:
        """Takes a type and its axes, and forgets the axes."""

        def __class_getitem__(cls, item: tuple[type, str]) -> Any:
            return item[0]

    BFloat16 = Bool = Float = Float32 = Float64 = Int = Int32 = Int64 = _Unchecked
