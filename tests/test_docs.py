"""The documents say what is true: their code runs, their flags and files exist, their numbers are the code's."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from ht_ray import doctor
from ht_ray.__main__ import COMMANDS
from ht_ray.agents.bbf.config import BBF_VARIANTS
from ht_ray.agents.drq.config import VARIANTS
from ht_ray.agents.registry import AGENT_VARIANTS
from ht_ray.agents.training import train
from ht_ray.diagnostics import INDICATOR_GROUPS, INDICATORS, SIGNS, IndicatorConfig
from ht_ray.errors import SettingWarning
from ht_ray.methods import METHODS, MethodConfig, Tortoise, display_name, flat_names, half_life, method_parts, registry
from ht_ray.reproduce.__main__ import make_parser
from ht_ray.sweep import SweepConfig
from tune_configs import ablation, atari100k, command_line, continual, continual_rl, leaderboard, warm_start
from tune_configs.settings import PRESETS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = {
    "tune_configs/ablation.py": (ablation, ablation.AblationSettings),
    "tune_configs/atari100k.py": (atari100k, atari100k.AtariSettings),
    "tune_configs/continual.py": (continual, continual.ContinualSettings),
    "tune_configs/continual_rl.py": (continual_rl, continual_rl.ContinualRLSettings),
    "tune_configs/warm_start.py": (warm_start, warm_start.WarmStartSettings),
}
# Flags in running text that are not a study's: of ray, and --help.
FOREIGN_FLAGS = {
    "--help",
    "--help-all",
    "--slow",
    "--head",
    "--working-dir",
    "--no-wait",
    "--submission-id",
    "--logdir",
    "--out",
    "--labels",
    "--num-cpus",
}


@dataclass(frozen=True)
class Block:
    """A fenced block, the line of its first line of code, and the comment before it (``data``, ``no-run``)."""

    document: Path
    line: int
    language: str
    mark: str
    code: str

    def compiled(self) -> Any:
        # As many empty lines before it as the document has, so that tracebacks name the right one.
        return compile("\n" * (self.line - 1) + self.code, str(self.document), "exec", dont_inherit=True)


def blocks(language: str, documents: Sequence[Path] = DOCUMENTS) -> list[Block]:
    found = []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(r"^(?:<!-- ([\w-]+) -->\n)?```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            mark, named, code = match[1] or "", match[2], match[3]
            assert mark in ("", "data", "no-run"), f"{document.name}: the comment {mark!r} means nothing"
            if named == language:
                found.append(Block(document, text.count("\n", 0, match.start(3)) + 1, named, mark, code))
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every command of the bash blocks with its place; ``a && b`` is two, ``uv run`` and ``> file`` go."""
    for block in blocks("bash"):
        for offset, line in enumerate(block.code.splitlines()):
            for part in line.split("&&"):
                # A name to fill in is written <so>.
                words = shlex.split(re.sub(r"<(\w+)>", r"\1", part), comments=True)
                words = words[: words.index(">")] if ">" in words else words
                words = words[2:] if words[:2] == ["uv", "run"] else words
                if words:
                    yield f"{block.document.name}:{block.line + offset}", words


def study_commands() -> list[Any]:
    found = []
    for place, words in commands():
        if "--" in words:
            words = words[words.index("--") + 1 :]
        if words[:2] == ["python", "-m"] and words[2].startswith("tune_configs."):
            words = ["python", words[2].replace(".", "/") + ".py", *words[3:]]
        if words[0] == "ht-ray" and (script := f"tune_configs/{words[1].replace('-', '_')}.py") in STUDIES:
            words = ["python", script, *words[2:]]
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{place}: there is no {words[1]}"
            if not words[1].startswith(("benchmarks/", "tests/")):
                found.append(pytest.param(words[1], words[2:], id=place))
    return found


def execute(block: Block, namespace: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A page's settings are an example to follow: they must not be ones that hardly work.
        warnings.simplefilter("error", SettingWarning)
        exec(block.compiled(), namespace)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["example"])
    assert METHODS  # all are found by now: what a page registers goes
    with (
        torch.random.fork_rng(devices=[]),
        patch.dict(INDICATORS),
        patch.dict(INDICATOR_GROUPS),
        patch.dict(registry._classes),
    ):
        yield tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_of_a_page_runs_in_one_go(document: Path, in_tmp: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks("python", [document]):
        if block.mark:
            block.compiled()
        else:
            execute(block, namespace)


@pytest.mark.data
@pytest.mark.parametrize(
    "block",
    [block for block in blocks("python") if block.mark == "data"],
    ids=lambda block: f"{block.document.name}:{block.line}",
)
def test_scripts_run_on_real_data(block: Block, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(block, {"__name__": "script"})
    if block.document.name == "streams.md":
        told = ast.literal_eval(capsys.readouterr().out)
        assert told.keys() == {"stream_accuracy", "task_forgetting", "backward_transfer", "forward_transfer"}
        assert told["stream_accuracy"] > 0.15
        return
    values = dict(re.findall(r"^(\w+): (-?[\d.]+)$", capsys.readouterr().out, re.MULTILINE))
    assert values.keys() == {"Top1_Acc_Stream", "StreamForgetting", "StreamBWT", "StreamForwardTransfer"}
    assert float(values["Top1_Acc_Stream"]) > 0.6
    assert float(values["StreamForgetting"]) == pytest.approx(-float(values["StreamBWT"]), abs=2e-3)


@pytest.mark.parametrize(("script", "arguments"), study_commands())
def test_study_commands_are_accepted(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, settings = STUDIES[script]
    seen = []

    def accept(name: str, *parsed: Any) -> int:
        seen.append(name)
        return 0

    monkeypatch.setattr(command_line, "_run", accept)
    written = json.loads(json.dumps(asdict(settings().resolved())))
    monkeypatch.setattr(command_line, "load_study_settings", lambda directory: written)
    monkeypatch.setattr("ht_ray.sweep.study.config._installed", lambda extra: True)
    assert module.main(arguments) == 0
    assert seen == [Path(script).stem]


def test_ray_commands_exist() -> None:
    from ray.scripts.scripts import cli

    checked = set()
    for place, words in commands():
        if words[0] != "ray":
            continue
        command, rest = cli, words[1:]
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, f"{place}: ray has no {rest[0]!r}"
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[1], rest)  # refuses options that it does not know
        checked.add(words[1])
    assert {"start", "job", "get-auth-token"} <= checked


def test_other_commands_exist() -> None:
    known = {
        "ht-ray",
        "pip",
        "chmod",
        "pytest",
        "tensorboard",
        "export",
        "ray",
        "python",
        "cp",
        "docker",
        "helm",
        "kubectl",
    }
    for place, words in commands():
        assert words[0] in known, f"{place}: {words[0]!r}"
        for word in words:
            assert not word.startswith("deploy/") or (ROOT / word).exists(), f"{place}: there is no {word}"
        if words[0] == "ht-ray":
            assert words[1] in COMMANDS, f"{place}: ht-ray has no {words[1]!r}"
        if words[:2] == ["ht-ray", "reproduce"]:
            make_parser().parse_args(words[2:])
        if words[:2] == ["ht-ray", "leaderboard"]:
            leaderboard.make_parser().parse_args(words[2:])
        if words[:2] == ["ht-ray", "doctor"]:
            doctor.make_parser().parse_args(words[2:])
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), f"{place}: no module {words[2]}"


def test_table_of_commands() -> None:
    _, *rows = table("cluster.md", "| command | what it does")
    assert [row[0].strip("`").removeprefix("ht-ray ") for row in rows] == list(COMMANDS)


def test_flags_in_the_text_are_flags() -> None:
    names = {field.name for _, settings in STUDIES.values() for field in (*fields(settings), *fields(SweepConfig))}
    flags = {f"--{negation}{name.replace('_', '-')}" for name in names for negation in ("", "no-")} | FOREIGN_FLAGS
    for parser in (make_parser(), train.make_parser(), doctor.make_parser(), leaderboard.make_parser()):
        flags |= set(re.findall(r"--[a-z][a-z0-9-]*", parser.format_help()))
    for document in DOCUMENTS:
        prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`]+)`", prose):
            for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code):
                assert flag in flags, f"{document.name}: {flag}"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            linked = document.parent / path if path else document
            assert linked.exists(), f"{document.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in anchors, f"{document.name}: {target}"


def table(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first line holds `heading`, without the line of dashes."""
    lines = (ROOT / "docs" / document).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and heading in line)
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_table_of_half_lives() -> None:
    momenta, lives = table("settings.md", "| momentum | 0.9 ")
    for momentum, life in zip(momenta[1:], lives[1:], strict=True):
        assert float(life) == pytest.approx(half_life(float(momentum)), abs=0.5 if "." not in life else 0.05)


def test_table_of_what_is_kept_of_the_hares_speed() -> None:
    """Measured on a hare that moves evenly."""
    ratios, shares = table("settings.md", "| interval / half-life")
    for ratio, share in zip(ratios[1:], shares[1:], strict=True):
        top, _, bottom = ratio.partition("/")
        interval = round(float(top) / float(bottom or 1) * half_life(0.999))
        hare = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.zeros_(hare.weight)
        tortoise = Tortoise(hare, momentum=0.999, reset_interval=interval, reset_unit="steps")
        with torch.no_grad():
            for _ in range(interval):
                hare.weight += 1
                tortoise.step()
        assert hare.weight.item() / interval == pytest.approx(float(share.strip(" %")) / 100, abs=0.006)


def test_table_of_data_sets() -> None:
    shown = {"MLP, 2 x 100": "mlp", "ResNet-18": "resnet18", "ViT-Tiny, patch 4": "vit_tiny", "VGG-16": "vgg16"}
    _, *rows = table("settings.md", "| `--data`")
    assert [row[0].strip("`") for row in rows] == list(PRESETS)
    for name, network, rate, decay, batch, augment in rows:
        preset = PRESETS[name.strip("`")]
        assert shown[network] == preset["model"]
        assert (float(rate), float(decay), int(batch)) == (
            preset["learning_rate"],
            preset["weight_decay"],
            preset["batch_size"],
        )
        assert augment.replace(" and ", "_") == preset["augment"]


def test_table_of_methods() -> None:
    _, *rows = table("methods.md", "| name | method")
    assert sorted(row[0].strip("`") for row in rows) == list(METHODS)
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    for row in rows:
        title = display_name(row[0].strip("`"))
        assert re.match(r"\[(.+?)\]", row[1])[1] == title  # type: ignore[index]
        assert title in headings


def test_methods_plugins_are_named_as_they_are() -> None:
    import strategies

    _, *rows = table("methods.md", "| name | method")
    for row in rows:
        for plugin in re.findall(r"`(\w+Plugin)`", row[4]):
            assert hasattr(strategies, plugin), f"{row[0]}: {plugin}"
    shown = re.findall(r"`(\w+Plugin)`", " ".join(cell for row in table("avalanche.md", "| plugin") for cell in row))
    assert set(shown) == {name for name in strategies.__all__ if name.endswith("Plugin")} - {"MeasurePlugin"}


def settings_tables() -> dict[str, list[list[str]]]:
    """Return the rows of the settings in each method's section of docs/methods.md, by the method's name."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    titles = {cls.title: name for name, cls in METHODS.items()}
    rows: dict[str, list[list[str]]] = {}
    for title, section in zip(sections[1::2], sections[2::2], strict=True):
        found = re.search(r"^\| setting \| field \| default \| whose \|\n.*\n((?:\|.*\n)+)", section, re.MULTILINE)
        if title in titles:
            lines = found[1].splitlines() if found else []
            rows[titles[title]] = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return rows


def test_settings_of_methods_are_those_of_the_code() -> None:
    shown = settings_tables()
    known = registry.all_settings()
    assert {row[0] for rows in shown.values() for row in rows} == known.keys()
    # Where a setting is shared, MethodConfig has the default of the methods that are named.
    for method, rows in shown.items():
        config = MethodConfig(method)
        for name, _, default, _ in rows:
            assert ast.literal_eval(default) == known[name].default == getattr(config, name), name


def test_settings_of_methods_are_called_so_by_their_classes() -> None:
    shown = settings_tables()
    assert sorted(shown) == list(METHODS)
    optional = {"toward", "reinitialize_tortoise", "recalibrate_batchnorm", "average_buffers"}
    for method, rows in shown.items():
        fields_by_name = flat_names(METHODS[method])
        named = {name: field for name, field, *_ in rows}
        assert named.items() <= fields_by_name.items(), method
        # A setting that several methods share has its row in one of them.
        assert fields_by_name.keys() - named.keys() <= optional, method


def test_old_names_of_settings_are_in_no_document() -> None:
    # Those of one word ("noise") are words of other things, too.
    old_names = "|".join(old for old in registry.old_names() if "_" in old)
    for document in DOCUMENTS:
        assert not re.findall(rf"(?<!\w)(?:{old_names})(?!\w)", document.read_text(encoding="utf-8")), document.name


def test_names_of_methods_in_the_text_are_names() -> None:
    for document in DOCUMENTS:
        prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for name in re.findall(r"`([a-z_0-9]+(?:\+[a-z_0-9]+)+)`", prose):
            if name not in AGENT_VARIANTS:  # agents on Atari-100k
                method_parts(name.removeprefix("fresh+"))  # which is of the warm-start study alone


def indicator_table(names: tuple[str, ...]) -> str:
    """Return a group's table as it stands in docs/indicators.md: a row for those that differ in their number alone."""
    rows = ["| indicator | is | plastic | source |", "| --- | --- | --- | --- |"]
    records = (INDICATORS[name] for name in names)
    for said, alike in groupby(records, key=lambda record: (record.definition, record.plastic, record.source)):
        first, *others = [record.name for record in alike]
        rows.append(f"| `{first}`{f' … `{others[-1]}`' if others else ''} | {' | '.join(said)} |")
    return "\n".join(rows) + "\n"


def test_table_of_indicators() -> None:
    _, *rows = table("indicators.md", "| group | indicators")
    shown = {row[0].strip("`"): tuple(re.findall(r"`(\w+)`", row[1])) for row in rows}
    assert shown == INDICATOR_GROUPS
    text = (ROOT / "docs" / "indicators.md").read_text(encoding="utf-8")
    for names in INDICATOR_GROUPS.values():
        assert indicator_table(names) in text


def test_table_of_signs() -> None:
    _, *rows = table("indicators.md", "| sign | indicator")
    assert len(rows) == len(SIGNS)
    for sign, (name, indicator, _, limits, methods) in zip(SIGNS, rows, strict=True):
        assert (name, indicator.split("`")[1]) == (sign.name, sign.indicator)
        assert tuple(map(float, limits.split(", "))) == sign.limits
        assert tuple(re.findall(r"`(\w+)`", methods)) == sign.methods


def test_settings_of_indicators_are_those_of_the_code() -> None:
    defaults = {field.name: field.default for field in fields(IndicatorConfig)}
    _, *rows = table("indicators.md", "| field | default")
    assert {row[0].strip("`"): ast.literal_eval(row[1].strip("`")) for row in rows} == defaults


def test_functions_of_diagnostics_are_named_as_they_are() -> None:
    import ht_ray.diagnostics

    _, *rows = table("indicators.md", "| function | gives")
    for row in rows:
        for name in re.findall(r"`(\w+)", row[0]):
            assert name in ht_ray.diagnostics.__all__, name


def test_table_of_bbf_variants() -> None:
    _, *rows = table("atari.md", "| BBF's variant | settings")
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert names == list(BBF_VARIANTS)
    for row in rows[:3]:
        for key, value in re.findall(r"`(\w+)=([\d._]+)`", row[1]):
            assert getattr(BBF_VARIANTS[row[0].strip("`")], key) == ast.literal_eval(value), row


def test_table_of_drq_variants() -> None:
    _, *rows = table("atari.md", "| variant | settings")
    assert [row[0].strip("`") for row in rows] == list(VARIANTS)
    for name, said in (row[:2] for row in rows):
        changed = {key: value for key, value in asdict(VARIANTS[name.strip("`")]).items() if value is not None}
        for key, value in re.findall(r"`(\w+)=([\d._]+)`", said):
            assert changed[key] == ast.literal_eval(value), name
