"""The command ``python -m ht_ray.agents.train``, and the function ``ht_ray.agents.train``: one name for both.

The module can be called, so that the name means the same whichever was imported first. See
`ht_ray.agents.training.train`.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from ht_ray.agents.training.train import main, train

__all__ = ["main", "train"]


__signature__ = inspect.signature(train)


class _Train(ModuleType):
    def __call__(self, *args: Any, **given: Any) -> Any:
        return train(*args, **given)


sys.modules[__name__].__class__ = _Train

if __name__ == "__main__":
    sys.exit(main())
