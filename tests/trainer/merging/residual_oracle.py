"""mergekit's own results on the tiny trios, recorded: python -m tests.trainer.merging.residual_oracle (needs make mergekit). Writes residual_oracle.json."""

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.trainer.merging.residual_models import CASES, mergekit_config, write_trio
from trainer.merging.mergekit import mergekit_command, mergekit_environment

RECORDED = ROOT / "tests/trainer/merging/residual_oracle.json"


def digest(tensor: torch.Tensor) -> str:
    """Of dtype, shape and bits."""
    bits = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode() + bits).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    return {name: digest(tensor) for path in sorted(folder.glob("*.safetensors")) for name, tensor in sorted(load_file(path).items())}


def merged_by_mergekit(folder: Path, case: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Runs mergekit on the trio of a case; the folder of its result."""
    trio = write_trio(folder / "models", case, dtype)
    (folder / "config.yaml").write_text(yaml.safe_dump(mergekit_config(trio, case)))
    command = mergekit_command()
    assert command, "mergekit is not installed here: make mergekit"
    arguments = [command, str(folder / "config.yaml"), str(folder / "out")]
    subprocess.run(arguments, env=mergekit_environment(), cwd=folder, check=True, timeout=300)
    return folder / "out"


def main() -> None:
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            found[case] = digests(merged_by_mergekit(Path(place), case))
        print(case, len(found[case]), "tensors")
    version = subprocess.run(
        [str(Path(mergekit_command() or "").parent / "python"), "-c", "from importlib.metadata import version; print(version('mergekit'))"],
        env=mergekit_environment(), text=True, capture_output=True, check=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    RECORDED.write_text(json.dumps({"mergekit": version, "sha256": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
