"""The paper's tables as a ledger: which of its cells have been run with this package, and what came out.

`ht-ray reproduce` runs the next missing cells on the plain loop and writes one JSON file for each run, and a page of
all of them next to the numbers of arXiv 2406.02596.
"""

from ht_ray.reproduce.cells import AtariCell, Cell, Run, all_cells, plan
from ht_ray.reproduce.page import ledger_page
from ht_ray.reproduce.records import read_records, write_record
from ht_ray.reproduce.run import Clock, run_once

__all__ = [
    "AtariCell",
    "Cell",
    "Clock",
    "Run",
    "all_cells",
    "ledger_page",
    "plan",
    "read_records",
    "run_once",
    "write_record",
]
