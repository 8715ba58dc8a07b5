"""Heads that are one matrix with the embedding: which they are, by key and shape.

Both have a row for each token and are of no layer::

    model.decoder.embed_tokens.weight    (vocab_size, hidden)    the embedding
    lm_head.weight                       (vocab_size, hidden)    its head
    layers.0.mlp.up.weight               (vocab_size, hidden)    of a layer: neither
    transformer.wpe.weight               (vocab_size, hidden)    of positions: neither
"""

import re
from collections.abc import Iterable, Mapping

from schemas.weights import Place
from train.merge import layers

_EMBEDDINGS = re.compile(r"embed_tokens|wte|word_embeddings|embed_in")
_HEADS = re.compile(r"lm_head|embed_out")
_LIKE_HEADS = re.compile(r"head|out|decoder")
_POSITIONS = re.compile(r"wpe|pos")
"""What the last two words of keys hold; in front stand the names of modules around."""


def twin_of(places: Mapping[str, Place], rows: int | None, key: str) -> str | None:
    """Returns the tensor of a model that another can be one matrix with.

    Args:
      places: the model's tensors.
      rows: that it has for tokens.
      key: of the other, of its shape where the model has it.

    Returns:
      The only one that fits; of several the one that is named as an embedding.
    """
    own = places.get(key)
    candidates = [other for other in places if _is_of_tokens(places, rows, other)]
    if own is not None and key not in candidates:
        return None
    others = [
        other
        for other in candidates
        if other != key and (own is None or places[other].shape == own.shape)
    ]
    if len(others) > 1:
        others = [other for other in others if _EMBEDDINGS.search(_last(other))]
    return others[0] if len(others) == 1 else None


def named(keys: Iterable[str]) -> list[str]:
    """Returns the keys that are named as heads, surely if there are such."""
    keys = [key for key in keys if not _EMBEDDINGS.search(_last(key))]
    sure = [key for key in keys if _HEADS.search(_last(key))]
    return sure or [key for key in keys if _LIKE_HEADS.search(_last(key))]


def _is_of_tokens(places: Mapping[str, Place], rows: int | None, key: str) -> bool:
    """Says whether a tensor can be an embedding or a head."""
    shape = places[key].shape
    if len(shape) != 2 or shape[0] != rows or _POSITIONS.search(_last(key)):
        return False
    return layers.layers_of([key])[key] is None


def _last(key: str) -> str:
    """Returns the last two words of a key: that of a module, and its parameter's."""
    return ".".join(key.split(".")[-2:])
