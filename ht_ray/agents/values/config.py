"""Settings of a value head, and the head that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ht_ray._checks import check_choice, check_fields
from ht_ray.agents.values.categorical import HLGaussValue, TwoHotValue
from ht_ray.agents.values.scalar import ScalarValue
from ht_ray.agents.values.value import Value

__all__ = ["ValueConfig", "make_value"]


@dataclass(frozen=True)
class ValueConfig:
    """How values are represented. The default is DrQ's scalar.

    Raises
    ------
    SettingError
        If a setting is not accepted.
    """

    #: "scalar", "two_hot" or "hl_gauss".
    kind: Literal["scalar", "two_hot", "hl_gauss"] = "scalar"
    #: Size of the support of a categorical value.
    bins: int = 51
    #: The support reaches from -limit to limit; targets outside are clipped to it.
    limit: float = 10.0
    #: Standard deviation of HL-Gauss's targets, in bins. 0.75 is its authors'.
    sigma: float = 0.75

    def __post_init__(self) -> None:
        check_choice("ValueConfig.kind", self.kind, ["scalar", "two_hot", "hl_gauss"])
        check_fields(self, "bins", low=2, integer=True)
        check_fields(self, "limit", "sigma", low=0, low_open=True)


def make_value(config: ValueConfig) -> Value:
    """Make the value that `config` describes.

    Examples
    --------
    >>> make_value(ValueConfig("two_hot")).bins, make_value(ValueConfig()).bins
    (51, 1)
    """
    if config.kind == "two_hot":
        return TwoHotValue(bins=config.bins, limit=config.limit)
    if config.kind == "hl_gauss":
        return HLGaussValue(bins=config.bins, limit=config.limit, sigma=config.sigma)
    return ScalarValue()
