"""Which layer of its model a tensor is of, told by its state-dict key alone.

    model.layers.3.mlp.up_proj.weight    layer 3 of the stack model.layers
    gpt_neox.layers.0.attention.bias     layer 0 of the stack gpt_neox.layers
    model.layers.3.mlp.experts.7.w1      layer 3: the first number counts
    model.embed_tokens.weight            of no layer

So any architecture has layers, several stacks of them too.
"""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of a model.

    Attributes:
      stack: what stands in front of the number, in all layers of the stack.
      index: its number, from 0.
      count: the layers of the stack.
    """

    stack: str
    index: int
    count: int

    @property
    def depth(self) -> float:
        """Where it stands: 0 the first layer, 1 the last; 0 where there is but one."""
        return self.index / (self.count - 1) if self.count > 1 else 0.0

    @property
    def name(self) -> str:
        """The layer as keys begin with it."""
        return f"{self.stack}.{self.index}" if self.stack else str(self.index)


def layers_of(keys: Iterable[str]) -> dict[str, Layer | None]:
    """Returns the layer of each tensor of a model; None of those that are of none.

    Example:
      >>> found = layers_of(["h.0.w", "h.1.w", "h.1.experts.7.w", "norm.w"])
      >>> [layer and (layer.name, layer.count) for layer in found.values()]
      [('h.0', 2), ('h.1', 2), ('h.1', 2), None]
    """
    places = {key: _place(key) for key in keys}
    counts: dict[str, int] = {}
    for place in places.values():
        if place is not None:
            counts[place[0]] = max(counts.get(place[0], 0), place[1] + 1)
    return {
        key: place and Layer(stack=place[0], index=place[1], count=counts[place[0]])
        for key, place in places.items()
    }


def _place(key: str) -> tuple[str, int] | None:
    """Returns what stands in front of the first number of a key, and the number."""
    words = key.split(".")
    for at, word in enumerate(words):
        if word.isascii() and word.isdigit():
            return ".".join(words[:at]), int(word)
    return None
