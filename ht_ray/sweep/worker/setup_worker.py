"""Script with which a Ray that a study starts begins its workers.

Ray's own imports Ray for this, which takes a second of each worker, and becomes a process that imports it again.
Where a worker is to have a runtime environment, Ray's own takes over.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main(arguments: list[str]) -> list[str]:
    """Return the command that a worker becomes."""
    context = next((one.removeprefix(_CONTEXT) for one in arguments if one.startswith(_CONTEXT)), "{}")
    language = next((one.removeprefix(_LANGUAGE) for one in arguments if one.startswith(_LANGUAGE)), "PYTHON")
    if context == "{}" and language == "PYTHON":
        return [sys.executable, *(one for one in arguments if not one.startswith((_CONTEXT, _LANGUAGE)))]
    package = find_spec("ray")
    assert package is not None and package.origin is not None
    own = Path(package.origin).parent / "_private" / "workers" / "setup_worker.py"
    return [sys.executable, str(own), *arguments]


if __name__ == "__main__":
    command = main(sys.argv[1:])
    os.execv(command[0], command)
