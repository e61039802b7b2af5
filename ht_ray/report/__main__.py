"""Command line that prints tables of studies and writes their reports: ``python -m ht_ray.report DIRECTORY ...``."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from ht_ray._checks import check_number
from ht_ray._storage import StorageError, is_uri
from ht_ray.errors import SettingError
from ht_ray.report.data.files import print_line
from ht_ray.report.data.load import load_study
from ht_ray.report.write import PATIENCE, write_report, write_reports

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, program: str = "python -m ht_ray.report") -> int:
    """Report the studies named on the command line; return 0, 1 on a full disk, 2 if one cannot be read or written."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("directory", nargs="+", help="a study's directory, or its URI, as written by a sweep")
    parser.add_argument(
        "--out",
        help="write here; of several studies, one page of all (default: into each study; needed where one is at a URI)",
    )
    parser.add_argument(
        "--storage-minutes", type=float, default=PATIENCE / 60, help="how long a full disk is waited for (default: 10)"
    )
    chosen = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show "±" shows "?", and the report is written all the same.
        sys.stdout.reconfigure(errors="replace")
    try:
        check_number("--storage-minutes", chosen.storage_minutes, low=0)
        options = {"log": print_line, "patience": 60 * chosen.storage_minutes}
        for location in chosen.directory if chosen.out is None else ():
            if is_uri(location):
                raise SettingError(f"{location} is a study at a URI: name a directory for the report with --out.")
        studies = [load_study(directory) for directory in chosen.directory]
        if chosen.out is not None and len(studies) > 1:
            written = write_reports(studies, chosen.out, **options)
        else:
            written = [path for study in studies for path in write_report(study, out=chosen.out, **options)]
        for path in written:
            print_line(f"wrote {path}")
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (SettingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
