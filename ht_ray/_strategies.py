"""The package `strategies` that lies next to `ht_ray`, under a name that no other package has.

Importing this module gives that package. If it is what ``import strategies`` finds, it is the same module, so that its
classes exist once; otherwise it is loaded from its path under this module's name.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

_FILE = Path(__file__).resolve().parents[1] / "strategies" / "__init__.py"


def _is_found_by_name() -> bool:
    try:
        spec = find_spec("strategies")  # which imports nothing
    except ValueError:  # a module of that name that somebody made by hand
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == _FILE


if _is_found_by_name():
    # Its modules, too: what another process has pickled under this name is made of the same classes.
    sys.modules[__name__] = import_module("strategies")
    for _name in [name for name in sys.modules if name.startswith("strategies.")]:
        sys.modules[__name__ + _name.removeprefix("strategies")] = sys.modules[_name]
elif not _FILE.is_file():
    raise ImportError(f"{_FILE} is missing: ht-ray is not installed completely. Install it again.", name=__name__)
else:
    _spec = spec_from_file_location(__name__, _FILE, submodule_search_locations=[str(_FILE.parent)])
    assert _spec is not None and _spec.loader is not None
    _package = module_from_spec(_spec)
    sys.modules[__name__] = _package  # which the import system returns in place of this module
    _spec.loader.exec_module(_package)
