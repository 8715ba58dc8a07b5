"""How many bytes a token's distribution takes in the encodings of other projects.

Written anew from their sources: fixed layouts as formulas, the others by encoding the
rows as they do. Token ids and what else a row has come on top, in all of them.
"""

import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

MEGATRON_SIZE = 1 << 17
"""Ids that Megatron-LM's 17 bits can tell."""


def dense(size: int) -> int:
    """All logits in float32."""
    return 4 * size


def fusellm(k: int) -> int:
    """FuseLLM: lists of lists, int64 ids and float16 logits, an offset a position."""
    return k * (8 + 2) + 8


def raw(k: int) -> int:
    """The plain arrays: int32 ids, float16 logprobs."""
    return k * (4 + 2)


def distillkit(k: int, size: int, *, exact: int | None = None, terms: int = 0) -> int:
    """DistillKit: ids of ceil(log2 V) bits; bfloat16 values, or a fit of the others.

    Args:
      k: entries.
      size: ids of the vocabulary.
      exact: entries whose value is stored as it is; None = all.
      terms: coefficients of the fit, float32 each.
    """
    id_bytes = math.ceil(k * math.ceil(math.log2(size)) / 8)
    return 2 * (k if exact is None else exact) + 4 * terms + id_bytes


def megatron(ids: np.ndarray, logprobs: np.ndarray) -> float:
    """Megatron-LM: uint16, a 17th bit in a byte, float16; zstandard level 3.

    Args:
      ids: (t, k), below `MEGATRON_SIZE`.
      logprobs: (t, k).

    Returns:
      Bytes a position.

    Raises:
      ValueError: if an id has more than 17 bits.
    """
    if ids.max() >= MEGATRON_SIZE:
        raise ValueError(f"ids must be below {MEGATRON_SIZE}, got {ids.max()}")
    low, high = (ids & 0xFFFF).astype("<u2"), ids >> 16 > 0
    parts = (logprobs.astype("<f2"), low, high)
    packed = zstandard.ZstdCompressor(level=3).compress(
        b"".join(part.tobytes() for part in parts)
    )
    return len(packed) / len(ids)


def nested_lists(ids: np.ndarray, logprobs: np.ndarray) -> float:
    """Parquet with a list of int32 ids and one of float32 logprobs a position, zstd.

    Args:
      ids: (t, k).
      logprobs: (t, k), stored with float16's precision.

    Returns:
      Bytes a position.
    """
    t, k = ids.shape
    values = {"ids": ids, "logprobs": logprobs.astype(np.float16).astype(np.float32)}
    ends = pa.array(np.arange(t + 1, dtype=np.int32) * k)
    window = pa.array(np.array([0, t], np.int32))
    columns = {
        name: pa.ListArray.from_arrays(
            window, pa.ListArray.from_arrays(ends, pa.array(array.ravel()))
        )
        for name, array in values.items()
    }
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        sink,
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
    )
    return sink.tell() / t


def json_lines(ids: np.ndarray, logprobs: np.ndarray) -> float:
    """NeMo-Aligner: floats and ids as text, a line a window.

    Args:
      ids: (t, k).
      logprobs: (t, k).

    Returns:
      Bytes a position.
    """
    record = {"logits": logprobs.astype(np.float64).tolist(), "ids": ids.tolist()}
    return len(json.dumps(record)) / len(ids)


def varints(ids: np.ndarray) -> float:
    """MaxText: a tf.Example's variable-length ids, and float32 logits beside.

    Args:
      ids: (t, k).

    Returns:
      Bytes a position.
    """
    more = sum(int((ids >= 1 << bits).sum()) for bits in (7, 14, 21))
    return (ids.size + more) / len(ids) + 4 * ids.shape[1]
