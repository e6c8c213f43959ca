"""The house: imports follow the arrows of docs/architecture.md, none runs in a circle, no file is too long, nothing names a machine."""

import ast
import re
import socket
import subprocess
from collections import Counter
from functools import cache
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
DOORS = {"experiment", "experiment_files", "cluster"}  # a __main__ may use these as well
SETTINGS = re.compile(
    r"console|experiment_yaml|(data|trainer|evaluation|tune)\.config|data\.(ground\.(adapters|strict)|curriculum\.(arm_config|presets)|corpus\.changes)"
)
"""What experiment.py stands on: it is read before anything heavy, and looks at no file but its own."""
MOST_LINES = 350


# Rooms within rooms, from top to bottom: a folder ("rows/") or files of the room itself. What stands lower imports nothing of what stands higher;
# files of one line do not import each other. What each folder is for: docs/architecture.md.
FLOORS = {
    "data": [
        "__main__",
        "build/",
        "planning/",
        "rows/",
        "curriculum/",
        "tokens",
        "load",
        "corpus/",
        "readers",
        "sources/",
        "wording/",
        "records",
        "config",
        "ground/",
    ],
    "data.build": [
        "command wordings_command",
        "show sheet crews estimate",
        "output arguments",
        "making/",
        "parquet_file",
        "asking/",
        "pages",
        "walk confined",
        "documents/",
    ],
    "trainer": [
        "__main__",
        "dry_run convert residual_command",
        "drive",
        "run ray_group",
        "worker",
        "cpus",
        "teaching/",
        "step/",
        "schedule",
        "export/",
        "watch/",
        "jobs/",
        "adapter/",
        "merging/",
        "network/",
        "store/",
        "kernels/",
        "config",
    ],
    "evaluation": [
        "__main__",
        "examining/",
        "harness lm_eval_job",
        "report/",
        "score_files",
        "engine",
        "examiner",
        "generate",
        "sitting",
        "exam",
        "asking/",
        "engines/",
        "scoring/",
        "config",
        "benchmarks_config",
    ],
    "tune": [
        "__main__",
        "finish dry_run",
        "search",
        "trial exam_desk keeping",
        "training planner",
        "report/",
        "deciding/",
        "config",
    ],
    "cluster": [
        "__main__",
        "jobs preflight fallback",
        "plan",
        "checks connect local measure plan_text",
        "setups",
        "workload",
        "guard probe",
        "cost/",
    ],
}
MOST_FILES = 15


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Name → file of everything below the rooms and tests, and of the files beside them."""
    tops = sorted(ROOMS | {"tests"})
    found = [*root.glob("*.py"), *(path for top in tops for path in (root / top).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in found}
    return {re.sub(r"^benchmarks\.\w+\.", "benchmarks.", name): path for path, name in names.items()}  # its sections are in no name


def imported_by(path: Path, known: frozenset[str] = frozenset()) -> set[str]:
    """The modules that a file imports, at its head or within functions, for types only too; of `from package import module` the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= below & known or {node.module}
    return names


def graph_of(root: Path) -> dict[str, set[str]]:
    """Module → ours that it imports."""
    known = frozenset(modules(root))
    return {name: imported_by(path, known) & known for name, path in modules(root).items()}


@cache
def graph() -> dict[str, set[str]]:
    return graph_of(ROOT)


def circles(of: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, by whatever way round (Tarjan's strongly connected components, without the single ones)."""
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> int:
        number = low[name] = len(low)
        stack.append(name)
        for other in of[name]:
            if other not in low:
                low[name] = min(low[name], visit(other))
            elif other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == number:
            group = {*stack[stack.index(name) :]}
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(group)
        return low[name]

    for name in of:
        if name not in low:
            visit(name)
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


def test_rooms_import_along_the_arrows() -> None:
    wrong = []
    for name, others in graph().items():
        if top(name) in ALLOWED:
            allowed = (
                ALLOWED[top(name)]
                | (DOORS if name.endswith("__main__") else set())
                | {top(name), "console", "failpoints", "experiment_yaml"}
            )
            wrong += [f"{name} imports {other}" for other in others if top(other) not in allowed]
    assert not wrong


def test_arrow_check_sees_an_import(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    from trainer.run import train\n")
    assert imported_by(tmp_path / "x.py") == {"trainer.run"}


def test_no_circles() -> None:
    assert circles(graph()) == []


def test_the_check_sees_circles_within_functions_and_for_types(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.py").write_text("def f():\n    from data import b\n")
    (tmp_path / "data/b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from data.c import C\n")
    (tmp_path / "data/c.py").write_text("import data.a\n")
    (tmp_path / "data/d.py").write_text("import data.a\n")
    assert circles(graph_of(tmp_path)) == [{"data.a", "data.b", "data.c"}]


def test_experiments_stand_on_settings_alone() -> None:
    assert [name for name in graph()["experiment"] if not SETTINGS.fullmatch(name)] == []
    for name, others in graph().items():
        if re.fullmatch(r"\w+\.config", name):
            assert [other for other in others if not re.search(r"config$|^data\.", other)] == [], name


def test_settings_import_nothing_heavy() -> None:
    for path in [ROOT / "experiment.py", ROOT / "experiment_yaml.py", *ROOT.glob("*/config.py")]:
        assert not {top(name) for name in imported_by(path)} & {"torch", "ray", "vllm", "transformers", "deepspeed"}, path


def test_package_inits_are_empty() -> None:
    for room in ALLOWED:
        for init in (ROOT / room).rglob("__init__.py"):
            assert init.read_text() == "", init


def test_files_can_be_read_at_a_sitting() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_nothing_names_a_machine() -> None:
    """No path of somebody's machine, and not the name of this one."""
    host = socket.gethostname()
    places = re.compile(r"(?<![\w.])/((work|root|Users|mnt)/|home/(?!ray\b))\w" + (rf"|\b{re.escape(host)}\b" if len(host) > 8 else ""))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True).stdout.splitlines()
    texts = [
        name
        for name in tracked
        if not name.endswith((".png", ".svg", ".lock")) and name != "tests/test_rooms.py" and (ROOT / name).is_file()
    ]
    found = [f"{name}: {match[0]}" for name in texts if (match := places.search((ROOT / name).read_text(errors="replace")))]
    assert not found


def test_every_finding_has_its_line() -> None:
    page = (ROOT / "findings/README.md").read_text()
    assert [path.name for path in (ROOT / "findings").glob("*.sh") if f"| `{path.name}` |" not in page] == []


def floor_of(name: str, room: str) -> tuple[int, str] | None:
    """(number from the top, folder or file) of a module in its room."""
    for number, entries in enumerate(FLOORS[room]):
        for entry in entries.split():
            whole = f"{room}.{entry.rstrip('/')}"
            if name == whole or (entry.endswith("/") and name.startswith(f"{whole}.")):
                return number, whole
    return None


def upward(of: dict[str, set[str]]) -> list[str]:
    """Imports within a room that do not go down, and modules that have no floor."""
    wrong = []
    for room in FLOORS:
        inside = {name: floor_of(name, room) for name in of if name.startswith(f"{room}.")}
        wrong += [f"{name} has no floor" for name, floor in inside.items() if floor is None]
        for name, floor in inside.items():
            for other in of[name] & inside.keys():
                below = inside[other]
                if floor and below and floor[1] != below[1] and floor[0] >= below[0]:
                    wrong.append(f"{name} imports {other}")
    return wrong


def test_floors_import_downward_only() -> None:
    assert upward(graph()) == []


def test_the_check_sees_an_import_upward_and_a_module_without_a_floor() -> None:
    of = {"tune.search": set(), "tune.deciding.space": {"tune.search"}, "tune.attic.box": set()}
    assert upward(of) == ["tune.attic.box has no floor", "tune.deciding.space imports tune.search"]


def test_no_folder_is_a_hall() -> None:
    number = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): files for folder, files in number.items() if files > MOST_FILES} == {}


def test_every_folder_has_its_line() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    folders = [entry for floors in FLOORS.values() for line in floors for entry in line.split() if entry.endswith("/")]
    assert [folder for folder in folders if f"\n  {folder} " not in page] == []
