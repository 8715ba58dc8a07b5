"""How fast `fusebeam fuse` goes through scores that are there, to choose anew.

All the work of a slice is in it: reading, aligning, projecting, weighing, mixing,
packing, encoding, writing.
"""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas import files, parquet, plan, scores, windows
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from tests.bench import rows, spans_windows
from tests.bench.spans_windows import Data, Rows
from transforms import fuse, slices
from transforms.functional import vocabulary
from transforms.functional.vocabulary import VocabularyMap
from transforms.fuse import FuseSlices
from transforms.mixing import Mixing
from transforms.sources import Source

K = 10
PASSES = 5
AIM = 20.0
SEQ_LENGTH = 2048
DOCUMENT_WINDOWS = 4
WAYS = (("mince", "window"), ("mince", "document"), ("avgce", "position"))


def run() -> list[dict[str, Any]]:
    """Measures seconds for a million target tokens of three sources, on one core."""
    data = spans_windows.load(K)
    measured = []
    with tempfile.TemporaryDirectory() as root:
        piece = _write(root, data)
        for fusion, granularity in WAYS:
            work = _work(root, data, fusion, granularity)
            measured.append(
                rows.at_most(
                    AIM,
                    f"fuse again, {fusion} by {granularity}, k = {K}, 3 sources,"
                    f" {data.label}",
                    _seconds_a_token(work, piece) * 1e6,
                    "s for 1,000,000 target tokens",
                )
            )
    return measured


def _seconds_a_token(work: FuseSlices, piece: Slice) -> float:
    path, taken = files.join(work.output, piece.output), []
    for _ in range(PASSES + 1):
        files.remove_tree(path)
        start = time.perf_counter()
        slices.do_slice(work, piece)
        taken.append(time.perf_counter() - start)
    # the first pass compiles
    return float(np.median(taken[1:])) / int(parquet.footer(path)["tokens"])


def _write(root: str, data: Data) -> Slice:
    """Writes the windows and all scores, of one slice; returns it."""
    made = [
        Window(
            window_id=f"{at:032x}",
            doc_id=str(at // DOCUMENT_WINDOWS),
            text=text,
            byte_start=at % DOCUMENT_WINDOWS * spans_windows.WINDOW_BYTES,
            ends_document=at % DOCUMENT_WINDOWS == DOCUMENT_WINDOWS - 1,
        )
        for at, text in enumerate(data.texts)
    ]
    piece = Slice(
        index=0,
        file="part-000000.parquet",
        row_group_start=0,
        row_group_stop=1,
        windows=len(made),
        text_bytes=sum(len(text.encode()) for text in data.texts),
        digest=windows.slice_digest([windows.ids_digest(w.window_id for w in made)]),
    )
    plan.write(f"{root}/windows", [piece])
    footer = {"digest": piece.digest, "k": K}
    with parquet.writer(
        f"{root}/windows/{piece.file}", windows.SCHEMA, footer
    ) as tables:
        tables.write(windows.to_table(made))
    for name, said in _said(data).items():
        found = [_score(*pair) for pair in zip(made, said, strict=True)]
        path = f"{root}/scores/{name}/{piece.output}"
        with parquet.writer(
            path, scores.SCHEMA, footer, **scores.WRITER_OPTIONS
        ) as tables:
            tables.write(scores.to_table(found))
    return piece


def _said(data: Data) -> dict[str, Sequence[Rows]]:
    """Returns the rows of the target, which is no candidate, and of each source."""
    silent = [
        Rows(
            token_ids=one.token_ids,
            byte_ends=one.byte_ends,
            top_ids=np.zeros((one.token_ids.size - 1, K), np.int32),
            top_logprobs=np.zeros((one.token_ids.size - 1, K), np.float32),
            gold_logprob=np.zeros(one.token_ids.size - 1, np.float32),
        )
        for one in data.targets
    ]
    return {"target": silent, **{f"{s}": said for s, said in enumerate(data.sources)}}


def _score(window: Window, said: Rows) -> Score:
    return Score(
        window_id=window.window_id,
        token_ids=said.token_ids,
        byte_ends=said.byte_ends,
        top_ids=said.top_ids,
        top_logprobs=said.top_logprobs,
        logsumexp=np.zeros_like(said.gold_logprob),
        gold_logprob=said.gold_logprob,
        nll_nats=float(-said.gold_logprob.sum(dtype=np.float64)),
        n_bytes=len(window.text.encode()),
    )


def _work(root: str, data: Data, fusion: Any, granularity: Any) -> FuseSlices:
    """Saves the maps, and returns what is to be done with the slice."""
    output, models = f"{root}/fused/{fusion}-{granularity}", []
    for name, pairs in zip(_said(data), (data.own, *data.maps), strict=True):
        with files.publish(f"{output}/{fuse.MAPS}/{name}.parquet") as sink:
            vocabulary.save_map(pairs, sink)
        models.append(_source(root, name, pairs))
    target, *sources = models
    return FuseSlices(
        windows=f"{root}/windows",
        target=target,
        sources=tuple(sources),
        output=output,
        strategy="spans",
        mixing=Mixing(
            fusion=fusion,
            granularity=granularity,
            reference=False,
            temperature=1.0,
            top_k=K,
        ),
        seq_length=SEQ_LENGTH,
        vocabulary_size=data.own.target_size,
        identity=f"{fusion}-{granularity}",
    )


def _source(root: str, name: str, pairs: VocabularyMap) -> Source:
    return Source(
        name=name,
        scores=f"{root}/scores/{name}",
        tokenizer=pairs.source_fingerprint,
        eos_id=None,
    )
