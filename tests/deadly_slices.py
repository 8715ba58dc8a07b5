"""A stage in one of whose slices something goes wrong."""

from pipelines import fuse, stage
from schemas import fused, plan
from schemas.manifest import Manifest
from tests.deadly_work import Deadly, Harm
from tests.pipelines.conftest import fuse_config
from transforms import attempts, rows
from transforms.attempts import Guards


def fuse_deadly(road: str, out: str, harm: Harm, piece: int) -> Manifest:
    """Fuses as `pipelines.fuse` does, but for what happens in one slice."""
    config = fuse_config(road, out)
    inputs, own = fuse.inputs_of(config), fuse.tokenizers_of(config)
    fuse.write_maps(config, own)
    work = Deadly(work=fuse.work_of(config, inputs, own), harm=harm, slice=piece)
    guards = Guards(
        max_slice_attempts=2, element_timeout=1.0 if harm == "hang" else None
    )
    attempts._PAUSE_S = 0.0  # nobody waits for memory here
    pieces = plan.read(config.windows)
    stage.do_slices(
        fused.STAGE,
        work,
        config.windows,
        f"0-{len(pieces) - 1}",
        [],
        describe=lambda: None,
        guards=guards,
    )
    return stage.finish(
        out,
        fused.STAGE,
        settings=fuse.shaping(config),
        inputs=inputs,
        origins=fuse._origins(config),
        names=[one.output for one in pieces],
        count=lambda footers: {
            **stage.total(footers, *fuse._TOTALS),
            **rows.taught_by(footers),
        },
    )
