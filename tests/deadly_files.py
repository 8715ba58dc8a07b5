"""Work that makes small files, or kills its process; loads as little as may be."""

import dataclasses
import os
import signal

from schemas import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Makes a file of each line; of lines in `deadly` its process does not survive."""

    output: str
    deadly: tuple[str, ...] = ()

    def name(self, line: str) -> str:
        return f"below/{line}.txt"

    def done(self, line: str) -> bool:
        return files.exists(files.join(self.output, self.name(line)))

    def make(self, line: str) -> None:
        if line in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        files.write_bytes(files.join(self.output, self.name(line)), line.encode())
