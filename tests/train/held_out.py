"""Windows folders of a few pieces of Python's manual, to evaluate on."""

from pathlib import Path

from schemas import files, manifest, parquet, plan, windows
from schemas.manifest import Manifest
from schemas.plan import Slice
from schemas.windows import Window
from tests import tiny


def window(number: int, domain: str | None) -> Window:
    return Window(
        window_id=f"{number:032x}",
        doc_id=str(number),
        text=tiny.texts()[number + 20][:60],
        byte_start=0,
        ends_document=number % 2 == 0,
        domain=domain,
    )


def write(folder: Path, made: list[Window]) -> str:
    """Writes a windows folder of one file with a row group for each two windows."""
    groups = [made[at : at + 2] for at in range(0, len(made), 2)]
    path = files.join(str(folder), "part-0.parquet")
    with parquet.writer(path, windows.SCHEMA, {}) as tables:
        for group in groups:
            tables.write(windows.to_table(group))
    digests = [windows.ids_digest(w.window_id for w in group) for group in groups]
    piece = Slice(
        index=0,
        file="part-0.parquet",
        row_group_start=0,
        row_group_stop=len(groups),
        windows=len(made),
        text_bytes=sum(len(w.text.encode()) for w in made),
        digest=windows.slice_digest(digests),
    )
    plan.write(str(folder), [piece])
    assert tables.entry is not None
    written = Manifest(
        stage=windows.STAGE,
        fingerprint="w" * 32,
        settings={},
        inputs={},
        origins={},
        counts={},
        files=[tables.entry],
        code_version="0",
    )
    manifest.write(str(folder), written)
    return str(folder)
