"""What a run folder holds that nothing needs any more: python -m trainer gc X.yaml lists and deletes it."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console import UserError, say, write_result
from data.config import Stage
from trainer.jobs.old_stages import SET_ASIDE
from trainer.store.stages import StageStore


@dataclass(frozen=True)
class Waste:
    path: Path
    why: str

    def bytes(self) -> int:
        return (
            sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file()) if self.path.is_dir() else self.path.stat().st_size
        )


Curricula = Mapping[str, list[Stage]]


def find_waste(run_folder: Path, keep_best: int | None, unfinished: bool, curricula: Curricula | None = None) -> list[Waste]:
    """Damaged leftovers and stages that no arm of arms.json or of the given file (`curricula`) uses; with `unfinished` also stages under
    way; with `keep_best` the weights of all arms but those with the best test EM in report.json (a stage that a kept arm needs stays;
    scores and the report stay).
    """
    store = StageStore(run_folder)
    arms = _read(run_folder / "arms.json").get("arms", {})
    used = trained_keys(run_folder) | _used_by(curricula or {}, store)
    waste = []
    for stage in sorted(store.root.glob("*")):
        damaged = [*stage.glob("corrupt-*"), *stage.glob("checkpoints/corrupt-*"), *stage.glob("manifest.corrupt.json")]
        waste += [Waste(path, "damaged, set aside") for path in damaged]
        if store.manifest(stage.name) is None:
            waste += [Waste(stage, "unfinished")] if unfinished else []
        elif stage.name not in used:
            waste.append(Waste(stage, "no arm uses it"))
    waste += [Waste(stage, "rounded, set aside") for stage in sorted((run_folder / SET_ASIDE).glob("*"))]
    waste += _served(run_folder, store, unfinished)
    waste += _unused_sums(run_folder, arms)
    if keep_best is not None:
        kept = best_arms(run_folder, keep_best) | {"base"}
        needed = {key for name, arm in arms.items() if name in kept for key in arm["stages"]}
        waste += [
            Waste(store.folder(key), f"not among the best {keep_best}") for key in sorted(used - needed) if store.manifest(key) is not None
        ]
        sums = {run_folder / arm["hf"]: name for name, arm in arms.items() if "merged" in arm}
        waste += [Waste(hf.parent, f"not among the best {keep_best}") for hf, name in sums.items() if name not in kept and hf.is_dir()]
    return waste


def trained_keys(run_folder: Path) -> set[str]:
    """The stages of arms.json's arms. UserError where it is torn."""
    return {key for arm in _read(run_folder / "arms.json").get("arms", {}).values() for key in arm["stages"]}


_BESIDE = {
    "lessons": ("teachers/*", "the stages that it taught are trained"),
    "important": ("importance/*", "the stages that it held are trained"),
    "passages": ("plans/passages-*", "the stages that read them are trained"),
}
"""Of a job's own fields: what lies in a run folder for its stage alone. What a teacher said, and what stood before questions, is in the weights by then."""


def _served(run_folder: Path, store: StageStore, unfinished: bool) -> list[Waste]:
    """Teacher stores and passages whose stages are trained; another stage that needs the same makes them again."""
    jobs = [manifest.get("job", {}) for folder in store.root.glob("*") if (manifest := store.manifest(folder.name))]
    found = []
    for field, (places, why) in _BESIDE.items():
        served = {Path(told["folder"]).name for job in jobs if (told := job.get(field))}
        for folder in sorted(run_folder.glob(places)):
            if folder.name in served or unfinished:
                found.append(Waste(folder, why if folder.name in served else "unfinished"))
    return found


def _used_by(curricula: Curricula, store: StageStore) -> set[str]:
    """Stages that an arm of the file may go through, whatever its data were: arms.json lists what was trained last, which may be another file's."""
    manifests = {path.name: manifest for path in store.root.glob("*") if (manifest := store.manifest(path.name)) is not None}
    found = set()
    for key in manifests:
        chain: list[Stage] = []
        at: str | None = key
        while at in manifests and "job" in manifests[at]:
            chain.insert(0, Stage.model_validate(manifests[at]["job"]["stage"]))
            at = manifests[at]["job"]["parent"]
        if chain and any(stages[: len(chain)] == chain for stages in curricula.values()):
            found.add(key)
    return found


def _unused_sums(run_folder: Path, arms: dict[str, Any]) -> list[Waste]:
    """Merged models that are no arm any more; residuals that no merged arm was made with."""
    merges = {Path(arm["hf"]).parts[1] for arm in arms.values() if "merged" in arm}
    made = [_read(run_folder / "merges" / key / "manifest.json") for key in merges]
    residuals = {manifest["residual"]["weights_sha256"] for manifest in made if "residual" in manifest}
    found = [Waste(folder, "no arm uses it") for folder in sorted((run_folder / "merges").glob("[!.]*")) if folder.name not in merges]
    for folder in sorted((run_folder / "residuals").glob("[!.]*")):
        if _read(folder / "manifest.json").get("weights_sha256") not in residuals:
            found.append(Waste(folder, "no arm uses it"))
    return found


def best_arms(run_folder: Path, count: int) -> set[str]:
    """By test EM in report.json. Raises UserError where there is none."""
    report = _read(run_folder / "report.json")
    scored = {name: arm["sets"]["test"]["em"]["mean"] for name, arm in report.get("arms", {}).items() if arm.get("sets", {}).get("test")}
    if not scored:
        raise UserError(f"{run_folder / 'report.json'}: no scores to choose the best arms by; run python -m evaluation X.yaml first")
    return set(sorted(scored, key=lambda name: -scored[name])[:count])


def _read(path: Path) -> dict[str, Any]:
    """{} where it is not there. UserError where it is torn: what is needed is then not known, and nothing may be deleted."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("arms", {}), dict):
        raise UserError(f"{path}: torn (a full disk?), or another program's; run the command that writes it again")
    return values


def collect(
    run_folder: Path,
    keep_best: int | None,
    unfinished: bool,
    delete: bool,
    curricula: Curricula,
    drop: Callable[[str], None] = lambda name: None,
) -> None:
    """Lists the waste on stdout with its sizes; deletes it if told to. `drop` gets the name of each that is deleted: a mirror's copy goes too."""
    waste = find_waste(run_folder, keep_best, unfinished, curricula)
    for item in waste:
        write_result(f"{item.bytes() / 1e6:10.1f} MB  {item.path}  ({item.why})")
        if delete:
            if item.path.is_dir():
                (item.path / "manifest.json").unlink(missing_ok=True)  # first: a half-removed stage must not look committed
                shutil.rmtree(item.path)
            else:
                item.path.unlink()
            drop(item.path.relative_to(run_folder).as_posix())
    say(f"{len(waste)} {'deleted' if delete else 'to delete (--delete does it)'}" if waste else "nothing to delete")
