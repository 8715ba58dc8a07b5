"""Windows to score, small models to score them with, and ways to make these fail."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose, assert_array_equal

from schemas.scores import Score
from schemas.windows import Window
from tests import causal_models
from transforms.scorer import Scorer

TEXTS = (
    "The quick brown fox isn't lazy",
    "it jumps 1,234 times",
    "Häuser größer als Straßen",
    "何もない",
    "a",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2\n",
    "it jumps 1,234 times",
    "Whereas some cannot, won't, or shouldn't; others do it anyway",
)


def window(text: str, name: object = 0, **more: Any) -> Window:
    fields = {"byte_start": 0, "ends_document": False, **more}
    return Window(window_id=f"w{name}", doc_id="d", text=text, **fields)


WINDOWS = [window(t, i, ends_document=i % 3 == 0) for i, t in enumerate(TEXTS)]


def make(
    name: str = "llama", padding: int = 0, kind: str = "unigram", **more: Any
) -> tuple[Any, Scorer]:
    made = causal_models.tokenizer_of(kind)
    model = causal_models.make(name, made.size + padding)
    return model, Scorer(model, made, **more)


def errors(found: Sequence[Score]) -> list[int]:
    return [place for place, one in enumerate(found) if one.error is not None]


def dense_logprobs(model: Any, score: Score) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        ids = torch.tensor(score.token_ids[None, :-1].astype(np.int64))
        logits = model(input_ids=ids).logits[0].double()
    return logits.numpy(), logits.log_softmax(-1).numpy()


def assert_close(left: Score, right: Score) -> None:
    assert_array_equal(left.token_ids, right.token_ids)
    assert_array_equal(left.byte_ends, right.byte_ends)
    for name in ("logsumexp", "gold_logprob", "top_logprobs"):
        assert_allclose(getattr(left, name), getattr(right, name), rtol=0, atol=1e-4)


def limit_tokens(model: Any, tokens: int, fail: Callable[[], object]) -> None:
    """Makes the model's body fail where a batch has more tokens."""

    def check(_: object, __: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].numel() > tokens:
            fail()

    model.base_model.register_forward_pre_hook(check, with_kwargs=True)


def gpu_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def host_is_full() -> None:
    torch.empty(2**60, dtype=torch.uint8)
