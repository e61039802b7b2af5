"""Leaves a Ray cluster in order when AWS takes this spot instance back.

Asks the instance's own metadata (version 2) every few seconds for an interruption notice, which comes two minutes
before the end (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html), and then
runs ``python -m ht_ray.sweep.leave``. Standard library only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence


def noticed(metadata: str) -> bool:
    """Return whether the metadata service at the URL `metadata` announces the end of this instance.

    Raises
    ------
    OSError
        If the service does not answer as it should.
    """
    ask = urllib.request.Request(f"{metadata}/latest/api/token", method="PUT")
    ask.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
    with urllib.request.urlopen(ask, timeout=2) as answer:
        token = answer.read().decode()
    look = urllib.request.Request(f"{metadata}/latest/meta-data/spot/instance-action")
    look.add_header("X-aws-ec2-metadata-token", token)
    try:
        with urllib.request.urlopen(look, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing is planned
            return False
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grace", type=int, default=100, help="seconds that the trials have to leave")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--metadata", default="http://169.254.169.254", help="where the metadata service is")
    options = parser.parse_args(arguments)
    while True:
        try:
            if noticed(options.metadata):
                break
        except OSError as error:  # it may answer again at the next look
            print(f"spot_watch: {error}", file=sys.stderr, flush=True)
        time.sleep(options.every)
    print("spot_watch: this instance will be taken back: leaving the cluster", file=sys.stderr, flush=True)
    return subprocess.run(
        [sys.executable, "-m", "ht_ray.sweep.leave", "--grace", str(options.grace)], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
