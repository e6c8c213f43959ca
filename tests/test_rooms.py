"""Imports follow the arrows of docs/architecture.md."""

import ast
from pathlib import Path

from tests.conftest import ROOT

ROOMS = {"data", "trainer", "evaluation", "tune", "cluster", "benchmarks"}
ALLOWED = {
    "data": set(),
    "trainer": {"data"},
    "evaluation": {"data"},
    "tune": {"data", "trainer", "evaluation", "cluster", "experiment"},
    "cluster": {"data", "trainer", "experiment"},
}
DOORS = {"experiment", "cluster"}  # a __main__ may use these as well


def imported_by(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_rooms_import_along_the_arrows() -> None:
    wrong = []
    for room, allowed in ALLOWED.items():
        for path in (ROOT / room).rglob("*.py"):
            extra = DOORS if path.name == "__main__.py" else set()
            forbidden = (imported_by(path) & (ROOMS | {"experiment"})) - allowed - extra - {room}
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in forbidden]
    assert not wrong


def test_arrow_check_sees_an_import(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    from trainer.run import train\n")
    assert imported_by(tmp_path / "x.py") == {"trainer"}


def test_settings_import_nothing_heavy() -> None:
    for path in [ROOT / "experiment.py", ROOT / "experiment_yaml.py", *ROOT.glob("*/config.py")]:
        assert not imported_by(path) & {"torch", "ray", "vllm", "transformers", "deepspeed"}, path


def test_package_inits_are_empty() -> None:
    for room in ALLOWED:
        init = ROOT / room / "__init__.py"
        assert not init.exists() or init.read_text() == ""
