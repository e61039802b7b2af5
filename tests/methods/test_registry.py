"""Methods of one's own: registered, named by their path, offered by packages; configurations as plain data."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods import (
    L2,
    METHODS,
    HareTortoise,
    Method,
    MethodConfig,
    MethodSettings,
    Phase,
    ReDo,
    display_name,
    find_method,
    flat_names,
    method_parts,
    parse_method,
    register,
    setting,
)
from ht_ray.methods.registry import all_settings, old_names

TOY = '''
"""A method of a user's own."""

from dataclasses import dataclass

import torch

from ht_ray.methods import Method, MethodSettings, register, setting


@register
class Toy(Method):
    """Moves every weight towards zero by the same amount before each step."""

    name, title, rank = "toy", "Toy", -6

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        amount: float = setting(0.001, "How far each weight moves.", low=0)

    settings: Settings
    steps = 0

    @torch.no_grad()
    def before_step(self, optimizer):
        self.steps += 1
        for weight in self.module.parameters():
            weight -= self.settings.amount * weight.sign()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = int(state["steps"])
'''


def run(code: str, *path: Path) -> str:
    """Return what a Python of its own prints, with `path` before everything it imports from."""
    root = Path(__file__).resolve().parents[2]
    code = f"import sys; sys.path[:0] = {[*map(str, path), str(root)]!r}\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "toy_package").mkdir()
    (tmp_path / "toy_package" / "__init__.py").write_text("")
    (tmp_path / "toy_package" / "methods.py").write_text(TOY)
    return tmp_path


def test_a_method_is_found_by_its_path_and_travels_as_plain_data(package: Path) -> None:
    written = run(
        """
        import json
        from dataclasses import asdict
        from ht_ray.methods import METHODS, MethodConfig, display_name
        assert "toy" not in METHODS
        config = MethodConfig("hare_tortoise+toy_package.methods:Toy", toy_amount=0.25, momentum=0.5)
        assert config.name == "hare_tortoise+toy" and config.toy_amount == 0.25
        assert "toy" in METHODS and display_name("toy") == "Toy"
        print(json.dumps(asdict(config)))
        """,
        package,
    )
    saved = json.loads(written)
    assert saved["sources"] == {"toy": "toy_package.methods:Toy"}
    # Another process, as a worker is one, has not imported the module.
    text = f"""
        import torch
        from ht_ray.methods import MethodConfig
        config = MethodConfig(**{saved!r})
        net = torch.nn.Linear(2, 1, bias=False)
        before = net.weight.detach().clone()
        methods = config.build(net)
        methods.before_step(torch.optim.SGD(net.parameters(), lr=1.0))
        print((before - net.weight).abs().sum().item(), methods.tortoise.momentum)
        """
    assert run(text, package) == "0.5 0.5"


def test_a_package_offers_methods_by_an_entry_point(package: Path) -> None:
    information = package / "toy_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[ht_ray.methods]\ntoy = toy_package.methods:Toy\n")
    found = run('from ht_ray.methods import MethodConfig; print(MethodConfig("toy", toy_amount=2).toy_amount)', package)
    assert found == "2"
    (information / "entry_points.txt").write_text("[ht_ray.methods]\ntoy = toy_package.nothing:Toy\n")
    code = """
        import warnings
        from ht_ray.methods import METHODS
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "redo" in METHODS
        print(caught[0].category.__name__, caught[0].message)
        """
    said = run(code, package)
    assert said.startswith("SettingWarning the method 'toy' of the entry point 'toy_package.nothing:Toy' cannot be")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("redoo", r"Did you mean 'redo'\? A method of your own is given as 'package.module:Class', or registered"),
        ("nowhere.at_all:Toy", r"no module 'nowhere'.*with a module that Python finds here and on every node"),
        ("ht_ray.methods:Toyy", "the module ht_ray.methods has no Toyy"),
        ("ht_ray.methods:setting", r"setting is no class derived from ht_ray\.methods\.Method"),
    ],
)
def test_unknown_methods_are_refused_with_what_to_do(name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MethodConfig(name)


def test_wrong_classes_are_refused_at_registration() -> None:
    class Nameless(Method):
        title = "Nameless"

    class Taken(Method):
        name, title = "redo", "Taken"

    class Bare(Method):
        name, title = "bare", "Bare"

        @dataclass(frozen=True, kw_only=True)
        class Settings(MethodSettings):
            amount: float = 1.0

    with pytest.raises(SettingError, match="name = '', title = 'Nameless': accepted are"):
        register(Nameless)
    with pytest.raises(SettingError, match=r"name = 'redo' is that of ht_ray\.methods\.redo\.ReDo"):
        register(Taken)
    with pytest.raises(TypeError, match=r"Settings\.amount: make it with ht_ray\.methods\.setting"):
        register(Bare)
    assert "bare" not in METHODS


def test_a_method_says_all_that_hosts_and_pages_need() -> None:
    assert list(METHODS) == sorted(METHODS)
    titles = [cls.title for cls in METHODS.values()]
    assert len(set(titles)) == len(titles)
    for name, cls in METHODS.items():
        assert cls.name == name and cls.__doc__
        assert find_method(name) is cls and display_name(name) == cls.title
        MethodConfig(name)
        for flat in flat_names(cls):
            info = all_settings()[flat].info
            assert info.help.endswith(".") and len(info.help) > 10, flat
    assert METHODS["regenerative"] is find_method("l2-init")


def test_every_old_name_is_that_of_a_setting_and_gives_the_same() -> None:
    values = {"spectral_strength": 0.5, "noise": 0.5, "ratio": 0.5, "perturb": 0.5, "augmentation": "crop",
              "distillation_strength": 0.5, "distillation_temperature": 0.5, "cbp_replacement_rate": 0.5,
              "cbp_maturity": 5, "cbp_utility_decay": 0.5, "injection_times": 5,
              "reinitialise_tortoise": False}  # fmt: skip
    assert old_names().keys() == values.keys()
    every = "+".join(name for name in METHODS if name not in ("plain", "ema"))
    for old, new in old_names().items():
        with pytest.warns(SettingWarning, match=f"the setting {old!r} is called {new!r} now"):
            config = MethodConfig(every, **{old: values[old]})
        assert config == MethodConfig(every, **{new: values[old]})
        with pytest.raises(SettingError, match="are the same setting"), pytest.warns(SettingWarning):
            MethodConfig(every, **{old: values[old], new: values[old]})
    with pytest.warns(SettingWarning, match="'redo|cbp"):
        assert parse_method("continual_backprop:cbp_maturity=3")[1] == {"continual_backprop_maturity": 3}


def test_configurations_are_values() -> None:
    config = MethodConfig("hare_tortoise+redo", momentum=0.5, redo_threshold=0.1, l2_strength=3.0)
    same = MethodConfig("hare_tortoise+redo", {"redo": {"threshold": 0.1}, "hare_tortoise": {"momentum": 0.5}})
    assert config == same and hash(config) == hash(same)  # what L2 would have is ignored
    assert config == MethodConfig(**json.loads(json.dumps(asdict(config))))
    assert config == pickle.loads(pickle.dumps(config))
    assert replace(config, momentum=0.25).momentum == 0.25
    assert replace(config, name="redo").settings.keys() == {"redo"}
    assert config.settings["redo"] == ReDo.Settings(threshold=0.1)
    with pytest.raises(AttributeError, match="Did you mean 'redo_threshold'"):
        _ = config.redo_treshold
    with pytest.raises(SettingError, match=r"no setting 'redo_treshold'.*Did you mean 'redo_threshold'"):
        MethodConfig(redo_treshold=1.0)
    with pytest.raises(SettingError) as refused:
        MethodConfig(redo_threshold=-1)
    assert (refused.value.owner, refused.value.field, refused.value.value) == ("MethodConfig", "redo_threshold", -1)


def test_methods_and_settings_in_one_text() -> None:
    assert method_parts("l2 + L2-Init") == ("l2", "regenerative")
    assert parse_method("ht_ray.methods:L2+redo:l2_strength=0.5,redo_interval=none") == (
        "l2+redo",
        {"l2_strength": 0.5, "redo_interval": None},
    )


def test_a_composition_cannot_be_changed_from_outside() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    methods = MethodConfig("l2+hare_tortoise").build(net)
    with pytest.raises(TypeError):
        methods.by_name["redo"] = ReDo(net)  # type: ignore[index]
    with pytest.raises(AttributeError):
        methods.methods.append(ReDo(net))  # type: ignore[attr-defined]
    more = methods + ReDo(net)
    assert (methods.name, more.name) == ("l2+hare_tortoise", "l2+hare_tortoise+redo")
    with pytest.raises(SettingError, match="one tortoise; it has HareTortoise and HareTortoise"):
        _ = methods + HareTortoise(net)


def test_every_moment_of_a_method_of_ones_own_is_called_in_order() -> None:
    calls = []

    class Noting(Method):
        """Notes the moments."""

        name, title, rank = "noting", "Noting", 7

    for moment in ("before_phase", "grown", "before_forward", "loss", "before_step", "after_step", "end_epoch",
                   "end_phase", "resume"):  # fmt: skip
        setattr(Noting, moment, lambda self, *given, _moment=moment, **named: calls.append(_moment))
    net = nn.Linear(2, 1)
    methods = L2(net, strength=0.0) + Noting(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    methods.before_phase(Phase(0, 1, 1), optimizer)
    methods.before_forward(torch.ones(1, 2))
    with methods.watch():
        outputs = net(torch.ones(1, 2))
    methods.loss(outputs.sum(), outputs).backward()
    methods.before_step(optimizer)
    optimizer.step()
    methods.after_step(optimizer, torch.ones(1, 2))
    methods.end_epoch(optimizer, last=True)
    methods.end_phase()
    methods.resume(lambda count: [])
    assert calls == [
        "before_phase", "grown", "before_forward", "loss", "before_step", "after_step", "end_epoch", "end_phase",
        "resume",
    ]  # fmt: skip


def test_settings_of_a_method_of_ones_own_are_checked() -> None:
    class Own(Method):
        """With one setting of each kind."""

        name, title = "own", "Own"

        @dataclass(frozen=True, kw_only=True)
        class Settings(MethodSettings):
            """Settings."""

            count: int = setting(1, "A count.", low=1)
            share: float | None = setting(None, "A share.", low=0, high=1)
            flag: bool = setting(False, "A flag.")
            word: str = setting("a", "A word.")

    assert Own(nn.Identity(), count=2, share=0.5).settings == Own.Settings(count=2, share=0.5)
    for bad, message in (
        ({"count": 0}, "Own: count = 0: accepted is a whole number"),
        ({"count": 1.5}, "Own: count = 1.5"),
        ({"share": 2}, "Own: share = 2"),
        ({"flag": 1}, "Own: flag = 1: accepted is True or False"),
        ({"word": 1}, "Own: word = 1: accepted is a text"),
        ({"cuont": 1}, r"Own has no setting 'cuont'.*Did you mean 'count'"),
        ({"seed": 0.5}, "Own: seed = 0.5"),
    ):
        with pytest.raises(SettingError, match=message):
            Own(nn.Identity(), **bad)
