"""How much each source weighs in the mixture."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from schemas import windows
from transforms.functional import weigh
from transforms.functional.nucleus import Nucleus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the aligned rows of several sources become one.

    Attributes:
      fusion: "mince", all weight to the cheapest source; "avgce",
        softmax(-cost / temperature); or "static", by `shares`.
      granularity: what a cost is measured over: "window", "document", "position", or
        "packed_row", which is the authors' alone.
      reference: whether costs and weights are the authors' own.
      temperature: of avgce, in bits per byte.
      top_k: entries kept for each position.
      chosen: which of them stay; None = all.
      tail_samples: entries drawn for each position from what else the sources say;
        0 = none, all that is not kept is tail.
      shares: of "static", the weight of each source, in the sources' order.
      domain_shares: the same for the domains that have their own.
      target_first: under `reference`, whether the first source is the target itself.
    """

    fusion: Literal["mince", "avgce", "static"]
    granularity: Literal["window", "document", "position", "packed_row"]
    reference: bool
    temperature: float
    top_k: int
    chosen: Nucleus | None = None
    tail_samples: int = 0
    shares: tuple[float, ...] = ()
    domain_shares: Mapping[str, tuple[float, ...]] = dataclasses.field(
        default_factory=dict
    )
    target_first: bool = True

    def weigh(self, costs: np.ndarray, domain: str | None) -> np.ndarray:
        """Returns the weights of the sources, in the shape of their costs.

        Args:
          costs: (s,) of a window or (t, s) of its positions; in bits per byte, under
            `reference` in nats per own token. NaN for a source that has none.
          domain: the window's label.
        """
        if self.fusion == "static":
            shares = self.domain_shares.get(
                domain or windows.DEFAULT_DOMAIN, self.shares
            )
            return weigh.static_weights(costs, np.array(shares))
        if self.reference:
            return self._reference_weights(costs)
        if self.fusion == "mince":
            return weigh.min_ce_weights(costs)
        return weigh.avg_ce_weights(costs, temperature=self.temperature)

    def _reference_weights(self, metrics: np.ndarray) -> np.ndarray:
        if self.fusion == "mince":
            ties: Literal["first", "last"] = "first" if self.target_first else "last"
            return weigh.reference_min_ce_weights(metrics, ties=ties)
        # NaN for every source where one failed: then the authors drop the row.
        return np.nan_to_num(weigh.reference_avg_ce_weights(metrics))
