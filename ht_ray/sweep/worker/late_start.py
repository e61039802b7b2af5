"""Script that runs a command some seconds late: ``python late_start.py SECONDS COMMAND ...``.

With it a Ray that a study starts begins its agents when the trials train already. It must import little.
"""

import os
import sys
import time


def main() -> None:
    """Wait, and become the command; end where the parent, for which it would have run, ends first."""
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    parent, end = os.getppid(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if os.getppid() != parent:
            return
        time.sleep(min(left, 0.25))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
