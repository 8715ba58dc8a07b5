"""A stage in one of whose slices something goes wrong."""

from pipelines import fuse, stage
from schemas import fused, plan
from schemas.manifest import Manifest
from tests.deadly_work import Deadly, Harm
from tests.pipelines.conftest import fuse_config
from transforms import rows, slices
from transforms.attempts import Guards


def fuse_deadly(road: str, out: str, harm: Harm, piece: int) -> Manifest:
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
