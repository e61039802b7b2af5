"""Postponed imports: nothing is executed before it is needed, and then all is as if it had been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRAIN = """
import json, sys
if {postponed}:
    from ht_ray._postponed import postpone_dynamo
    postpone_dynamo()
import torch
from torch import nn

torch.manual_seed(0)
network = nn.Linear(8, 2)
optimizer = torch.optim.AdamW(network.parameters(), fused=True)

def step():
    optimizer.zero_grad()
    network(torch.ones(4, 8)).square().sum().backward()
    optimizer.step()

for _ in range(3):
    step()
found = {{"imported": "torch._dynamo.utils" in sys.modules, "weights": network.weight.tolist()}}
if {compiled}:
    found["compiled"] = torch.compile(network, backend="eager")(torch.ones(1, 8)).tolist()
    found["plain"] = network(torch.ones(1, 8)).tolist()
    step()
    import torch._dynamo.config
    found["after"] = network.weight.tolist(), type(sys.modules["torch._dynamo"]).__name__
    found["disabled"] = "disable" in repr(type(optimizer).zero_grad.__wrapped__.__dict__)
print(json.dumps(found))
"""


def run(code: str, cwd: Path | None = None) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_optimizer_trains_the_same_without_the_compiler() -> None:
    usual = run(TRAIN.format(postponed=False, compiled=False))
    postponed = run(TRAIN.format(postponed=True, compiled=False))
    assert postponed["weights"] == usual["weights"]
    assert not postponed["imported"]


@pytest.mark.slow
def test_what_is_compiled_has_the_compiler() -> None:
    usual = run(TRAIN.format(postponed=False, compiled=True))
    postponed = run(TRAIN.format(postponed=True, compiled=True))
    assert not postponed["imported"]
    assert postponed["compiled"] == postponed["plain"] == usual["plain"]
    assert postponed["after"] == usual["after"]
    assert postponed["disabled"] == usual["disabled"] is True


def test_a_module_is_executed_when_something_of_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "__init__.py").write_text("from late.part import PART\nseen = [PART]\n")
    (tmp_path / "late" / "part.py").write_text("PART = 7\n")
    code = """
import json, sys
from ht_ray._postponed import postpone
postpone("late", stand_in=1)
postpone("late")
import late
found = [late.stand_in, "late.part" in sys.modules]
{ask}
found += ["late.part" in sys.modules, late.seen, hasattr(late, "stand_in"), late.__spec__.loader.__class__.__name__]
print(json.dumps(found))
"""
    whole = [1, False, True, [7], False, "SourceFileLoader"]
    for ask in ("late.seen", "from late import seen", "import late.part", "from late.part import PART"):
        assert run(code.format(ask=ask), tmp_path) == whole, ask


def test_a_module_that_fails_fails_where_it_is_needed_each_time(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import missing_module\n")
    code = """
import json
from ht_ray._postponed import postpone
postpone("broken")
found = []
for _ in range(2):
    import broken
    try:
        broken.name
    except ImportError as error:
        found.append(str(error))
print(json.dumps(found))
"""
    assert run(code, tmp_path) == ["No module named 'missing_module'"] * 2


def test_a_module_that_is_not_there_is_missed_at_once(tmp_path: Path) -> None:
    code = """
import json
from ht_ray._postponed import postpone
postpone("not_there")
try:
    import not_there
except ImportError as error:
    print(json.dumps(str(error)))
"""
    assert run(code, tmp_path) == "No module named 'not_there'"
