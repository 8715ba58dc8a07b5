"""The first pass of VaRM over whole layers or models: sums over several tensors.

Each file of the plan gets a small one of sums, below `sums/`: of every tensor in it and
every model the squared differences from the base, added up. Of these the second pass
takes the weights of a layer or a model; they are added in the order of the plan, so
that they are the same whoever made them.
"""

import dataclasses
import functools
from collections.abc import Sequence

from schemas import files
from schemas.errors import SchemaError
from train.merge import plan, varm
from train.merge.plan import Shard, Tensor
from train.merge.reading import Reading

FOLDER = "sums"
STAGE = "merge sums"

_WIDE = ("model", "layer")


def needs(tensor: Tensor) -> bool:
    """Says whether a tensor's weights are of more than itself."""
    return tensor.method == "varm" and tensor.settings["granularity"] in _WIDE


def part_of(tensor: Tensor) -> str:
    """Names what a tensor's weights are of: the model, or a layer.

    A tensor that is of no layer is one by itself.
    """
    if tensor.settings["granularity"] == "model":
        return "model"
    return f"layer {tensor.layer}" if tensor.layer else f"tensor {tensor.key}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureShards:
    """Writes the sums of the tensors of each file of the plan.

    Attributes:
      reading: the models.
      overwrite: whether sums of other settings are written anew.
    """

    reading: Reading
    overwrite: bool = False

    @property
    def output(self) -> str:
        """Folder of the merged model."""
        return self.reading.output

    def name(self, line: str) -> str:
        """Returns the name of the sums of a line of the plan."""
        return name_of(plan.from_line(line))

    def done(self, line: str) -> bool:
        """Says whether they are there, made by this very work."""
        shard = plan.from_line(line)
        path = files.join(self.output, name_of(shard))
        if not files.exists(path):
            return False
        told = fingerprint(self.reading.identity, shard)
        if files.read_json(path).get("fingerprint") == told:
            return True
        if self.overwrite:
            return False
        raise SchemaError(
            f"{path} was made with other settings or inputs; choose another folder, or"
            " pass --overwrite to make it anew"
        )

    def make(self, line: str) -> None:
        """Adds up the squares of the tensors of a line."""
        shard = plan.from_line(line)
        found = {}
        with self.reading.open() as opened:
            for tensor in filter(needs, shard.tensors):
                read = opened.aligned(tensor)
                assert read.base is not None
                found[tensor.key] = varm.squares(read.models, read.base)[0]
        files.write_json(
            files.join(self.output, name_of(shard)),
            {"fingerprint": fingerprint(self.reading.identity, shard), "sums": found},
        )


def name_of(shard: Shard) -> str:
    """Returns the name of the sums of a file, below the folder of the model."""
    return f"{FOLDER}/{shard.index:06d}.json"


def fingerprint(identity: str, shard: Shard) -> str:
    """Digests all that shapes the sums of a file."""
    return files.digest([STAGE, identity, shard.digest])


@functools.lru_cache(maxsize=4)
def weights(folder: str, identity: str) -> dict[str, list[float]]:
    """Returns the weights of each layer or model whose tensors were all measured.

    Args:
      folder: of the merged model.
      identity: digest of all that shapes its bytes.

    Raises:
      SchemaError: if sums are not of this work.
    """
    totals: dict[str, list[float]] = {}
    for shard in plan.read(folder):
        path = files.join(folder, name_of(shard))
        told = files.read_json(path)
        if told.get("fingerprint") != fingerprint(identity, shard):
            raise SchemaError(
                f"{path} must be of this command's settings while it works, but another"
                " command wrote it anew; give each its own folder, and repeat this one"
            )
        for tensor in filter(needs, shard.tensors):
            _add(totals.setdefault(part_of(tensor), []), told["sums"][tensor.key])
    return {part: varm.ratios(sums) for part, sums in totals.items()}


def _add(total: list[float], more: Sequence[float]) -> None:
    if not total:
        total.extend(more)
        return
    for j, one in enumerate(more):
        total[j] += one
