"""A stage in whose slices something goes wrong, as a command of its own.

python -m tests.deadly_slices fuse ROAD OUTPUT kill|hang SLICE
"""

import dataclasses
import os
import signal
import sys
import time
from typing import Any, Literal

import pyarrow as pa

from pipelines import fuse, stage
from schemas import fused, parquet, plan
from schemas.manifest import Manifest
from schemas.plan import Slice
from tests.pipelines.conftest import fuse_config
from transforms import rows, slices
from transforms.attempts import Guards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadly:
    """Does the work of another, but one slice kills or hangs its process."""

    work: Any
    harm: Literal["kill", "hang", "none"]
    slice: int

    @property
    def output(self) -> str:
        return self.work.output

    @property
    def identity(self) -> str:
        return self.work.identity

    @property
    def overwrite(self) -> bool:
        return self.work.overwrite

    @property
    def schema(self) -> pa.Schema:
        return self.work.schema

    @property
    def options(self) -> dict[str, Any]:
        return self.work.options

    def fingerprint(self, piece: Slice) -> str:
        return self.work.fingerprint(piece)

    def give_up(self, piece: Slice, tables: parquet.TableWriter, reason: str) -> None:
        self.work.give_up(piece, tables, reason)

    def release(self) -> None:
        self.work.release()

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        if piece.index == self.slice and self.harm == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if piece.index == self.slice and self.harm == "hang":
            time.sleep(3600)
        self.work.fill(piece, tables)


def fuse_deadly(
    road: str, out: str, harm: Literal["kill", "hang", "none"], piece: int
) -> Manifest:
    """Fuses as `pipelines.fuse` does, but for what happens in one slice."""
    config = fuse_config(road, out)
    inputs, own = fuse.inputs_of(config), fuse.tokenizers_of(config)
    fuse.write_maps(config, own)
    work = Deadly(work=fuse.work_of(config, inputs, own), harm=harm, slice=piece)
    guards = Guards(
        max_slice_attempts=2, element_timeout=40.0 if harm == "hang" else None
    )
    for one in plan.read(config.windows):
        slices.do_slice(work, one, guards)
    return stage.finish(
        out,
        fused.STAGE,
        settings=fuse.shaping(config),
        inputs=inputs,
        origins=fuse._origins(config),
        names=[one.output for one in plan.read(config.windows)],
        count=lambda footers: {
            **stage.total(footers, *fuse._TOTALS),
            **rows.taught_by(footers),
        },
    )


if __name__ == "__main__":
    _, _, road, out, harm, piece = sys.argv
    fuse_deadly(road, out, harm, int(piece))  # type: ignore[arg-type]
