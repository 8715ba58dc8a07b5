"""Work that kills or hangs its process; loads as little as may be."""

import dataclasses
import os
import signal
import time
from typing import Any, Literal

import pyarrow as pa

from schemas import parquet
from schemas.plan import Slice

Harm = Literal["kill", "hang", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadly:
    """Does the work of another, but one slice kills or hangs its process."""

    work: Any
    harm: Harm
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

    def load(self) -> None:
        self.work.load()

    def release(self) -> None:
        self.work.release()

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        if piece.index == self.slice and self.harm == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if piece.index == self.slice and self.harm == "hang":
            time.sleep(3600)
        self.work.fill(piece, tables)
