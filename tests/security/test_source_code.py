"""Our own code: nothing is unpickled, no remote code, no shell, YAML safely; read from the syntax tree of every file."""

import ast
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not {".venv", ".venv-mergekit", "tests", "runs", ".hypothesis"} & set(path.relative_to(ROOT).parts) and not path.name.startswith(".")
)
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "os.system": "is a shell",
    "os.popen": "is a shell",
    "subprocess.getoutput": "is a shell",
    "torch.load": "unpickles",
    "pickle.load": "unpickles",
    "pickle.loads": "unpickles",
    "cloudpickle.load": "unpickles",
    "cloudpickle.loads": "unpickles",
    "joblib.load": "unpickles",
    "marshal.loads": "runs what it reads",
    "yaml.load": "builds any object; use yaml.safe_load",
    "yaml.unsafe_load": "builds any object",
    "yaml.full_load": "builds any object",
}


def faults(tree: ast.AST, name: str = "") -> list[str]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        arguments = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        at = f"{name}:{node.lineno}: {called}"
        if called in FORBIDDEN_CALLS:
            found.append(f"{at} {FORBIDDEN_CALLS[called]}")
        if (shell := arguments.get("shell")) is not None and not _is(shell, False):
            found.append(f"{at} with a shell")
        if (allowed := arguments.get("allow_pickle")) is not None and not _is(allowed, False):
            found.append(f"{at} unpickles")
        if (trusted := arguments.get("trust_remote_code")) is not None and not _is(trusted, False):
            found.append(f"{at} may run remote code")
        asks = called.endswith(".from_pretrained") and called.startswith("Auto")
        if (asks or called == "LLM") and "trust_remote_code" not in arguments:
            found.append(f"{at} without trust_remote_code=False: transformers would ask on stdin")
        if called == "yaml.compose" and ast.unparse(arguments.get("Loader", ast.Constant(None))) != "yaml.SafeLoader":
            found.append(f"{at} without SafeLoader")
    return found


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_file_does_any_of_it() -> None:
    assert len(OURS) > 40
    assert [fault for path in OURS for fault in faults(ast.parse(path.read_text()), str(path.relative_to(ROOT)))] == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)",
        "torch.load(p, weights_only=True)",
        "subprocess.run(c, shell=True)",
        "np.load(p, allow_pickle=allowed)",
        "AutoConfig.from_pretrained(p)",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=flag)",
        "LLM(model=p)",
        "yaml.load(t, Loader=yaml.SafeLoader)",
        "yaml.compose(t)",
    ],
)
def test_the_check_sees_it(code: str) -> None:
    assert len(faults(ast.parse(code))) == 1


def test_no_setting_can_switch_remote_code_on() -> None:
    """Neither experiments nor commands know the words."""
    for path in [*ROOT.glob("experiments/*.yaml"), *ROOT.glob("*/config.py"), ROOT / "experiment.py", *ROOT.glob("*/__main__.py")]:
        assert "trust_remote_code" not in path.read_text(), path


def test_nothing_prints_the_environment() -> None:
    """os.environ is read by name, set by name or handed to a child; never formatted or written."""
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "say",
                "json.dumps",
                "write_result",
                "str",
                "repr",
                "log.info",
            ):
                assert not any(ast.unparse(argument) in ("os.environ", "dict(os.environ)") for argument in node.args), path


def test_shell_scripts_take_nothing_from_experiments() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.sh", ".ci/run"], cwd=ROOT, text=True, capture_output=True, timeout=30).stdout.split()
    for name in tracked:
        text = Path(ROOT / name).read_text()
        assert "eval " not in text and "set -euo pipefail" in text, name
