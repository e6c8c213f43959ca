"""Instruction residuals, `instruct − base` (arXiv 2410.10739): made, saved, and added to descendants of the base.

    DIR/                            a residual, made by `make`
      weights/model*.safetensors    instruct − base in fp32, in the instruct model's rows; rows that the base lacks as the instruct model has them
      instruct/, base/              config, tokenizer, chat template, generation config of both models
      manifest.json                 models, fingerprints, SHA-256 of every file; put in place last
    DIR/                            a model, made by `add`
      hf/                           weights, the descendant's config, the instruct model's tokenizer, chat template and generation config
      manifest.json                 what was added to what, and everything that was resolved on the way

Arithmetic is fp32, whatever the models' dtype, and goes through a MiB at a time. The difference of two bf16 numbers, and its sum with a
third, are exact in fp32 as long as they lie within a factor of 2¹⁵ of one another; so for bf16 models the order of operations does not show,
and the result is that of mergekit's `task_arithmetic` to the last bit (tests/trainer/merging/test_residual.py).
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from console import UserError, progress
from trainer.merging.residual.describe import copy_description, describe_result
from trainer.merging.residual.kept import ALL, Kept
from trainer.merging.residual.models import (
    LazyWeights,
    Model,
    Vocabulary,
    check_settings,
    check_tensors,
    chunks,
)
from trainer.merging.residual.saved import KIND, RESIDUAL_FORMAT, Residual, identity_of, ranges
from trainer.merging.residual.vocabulary import NewTokens, RowMap, match_rows, rows_of_base
from trainer.network.text_config import text_settings
from trainer.store.fragment_file import sha256_of
from trainer.store.shard_writer import DTYPES, SHARD_BYTES, TensorSpec, write_sharded
from trainer.store.stages import write_json

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass
class _Norms:
    """Sums of squares of the residual and of the base."""

    difference: float = 0.0
    base: float = 0.0

    def ratio(self) -> float:
        return math.sqrt(self.difference / self.base) if self.base else 0.0


def make_residual(instruct: Model, base: Model, out: Path, shard_bytes: int = SHARD_BYTES) -> Residual:
    """Saves `instruct − base` in `out`. UserError, before anything is written, for models that do not fit one another."""
    notes = check_settings(instruct.config, base.config, instruct.name, base.name)
    kinds = {name: instruct.spec(name) for name in instruct.names}
    by_row = instruct.vocabulary_tensors & base.vocabulary_tensors
    _check_same(kinds, {name: base.spec(name) for name in base.names}, by_row, instruct.name, base.name)
    partners, told = rows_of_base(instruct.vocabulary, base.vocabulary)
    plain = len(partners) == base.vocabulary.rows and bool((partners == np.arange(len(partners))).all())
    _refuse_unknown_rows(plain, by_row, instruct)
    notes += told + _left_out(instruct) + _left_out(base)
    norms = _Norms()

    def pieces(spec: TensorSpec) -> Iterator[Tensor]:
        if not _is_floating(spec.dtype):
            yield from _copied(spec, instruct, base)
            return
        for start, end in chunks(spec.shape):
            ours = _whole_or_rows(instruct.weights, spec, start, end)
            if plain or spec.name not in by_row:
                theirs = _whole_or_rows(base.weights, spec, start, end)
            else:
                theirs = base.weights.take(spec.name, partners[start:end])
            difference = ours - theirs
            _refuse_infinite(difference, spec.name, instruct.name, base.name)
            norms.difference += _squares(difference)
            norms.base += _squares(theirs)
            yield difference

    with _in_place(out) as draft:
        specs = [TensorSpec(name, "F32" if _is_floating(dtype) else dtype, shape) for name, (dtype, shape) in kinds.items()]
        with _shown("instruct − base", len(specs)) as one_more:
            sha256, files = write_sharded(draft / "weights", specs, pieces, shard_bytes, one_more)
        for side, model in (("instruct", instruct), ("base", base)):
            copy_description(model.folder, draft / side)
        manifest = {
            "format": RESIDUAL_FORMAT,
            "kind": KIND,
            "instruct": identity_of(instruct),
            "base": identity_of(base),
            "dtype": "float32",
            "tensors": len(specs),
            "parameters": sum(math.prod(spec.shape) for spec in specs),
            "relative_norm": norms.ratio(),
            "vocabulary": {
                "rows": len(partners),
                "tensors": sorted(by_row),
                "instruct_rows": ranges(partners < 0),
                "base_rows": base.vocabulary.rows,
            },
            "notes": notes,
            "weights_sha256": sha256,
            "files": _files(draft, {f"weights/{name}": facts for name, facts in files.items()}),
        }
        write_json(draft / "manifest.json", manifest)
    return Residual(out, manifest, LazyWeights(out / "weights"))


def add_residual(
    residual: Residual,
    descendant: Model,
    out: Path,
    scale: float = 1.0,
    new_tokens: NewTokens = "instruct",
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    keep: Kept = ALL,
) -> dict[str, Any]:
    """Writes `descendant + scale × residual` as a model to `out`/hf; returns its manifest. UserError as make_residual.

    `keep`: which values of each tensor of the residual are added; rows of tokens that the base lacks are the instruct model's all the same.
    `dtype`: float32, bfloat16 or float16; by default each tensor keeps the descendant's, and always what is no parameter.
    """
    base_name = f"{residual.manifest['base']['model']} (the residual's base)"
    notes = check_settings(descendant.config, text_settings(residual.folder / "base"), descendant.name, base_name)
    by_row = set(residual.manifest["vocabulary"]["tensors"]) & descendant.vocabulary_tensors
    kinds = {name: (residual.weights.dtype(name), tuple(residual.weights.shape(name))) for name in sorted(residual.weights.names())}
    theirs = {name: descendant.spec(name) for name in descendant.names}
    _check_same(theirs, kinds, by_row, descendant.name, "the residual")
    instruct = Vocabulary.of(residual.folder / "instruct", residual.manifest["vocabulary"]["rows"])
    rows = match_rows(instruct, residual.has_base, descendant.vocabulary, new_tokens, descendant.name)
    _refuse_unknown_rows(rows.is_plain, by_row, descendant)
    notes += rows.notes + _left_out(descendant)

    def pieces(spec: TensorSpec) -> Iterator[Tensor]:
        by_rows = spec.name in by_row and not rows.is_plain
        added = _masked(residual, spec.name, keep)
        if not _is_floating(spec.dtype):
            yield from _copied(spec, descendant, residual)
            return
        for start, end in chunks(spec.shape):
            if spec.name in descendant.constants:
                summed = descendant.weights.chunk(spec.name, start, end)
            elif by_rows:
                summed = _summed_rows(descendant.weights, residual.weights, spec.name, rows, slice(start, end), scale, added)
            else:
                ours = _whole_or_rows(descendant.weights, spec, start, end)
                summed = ours + scale * added(_whole_or_rows(residual.weights, spec, start, end))
            result = summed.to(DTYPES[spec.dtype])
            _refuse_infinite(result, spec.name, descendant.name, residual.name)
            yield result

    with _in_place(out) as draft:
        kept = descendant.buffers | descendant.constants
        specs = [
            _result_spec(name, *theirs[name], None if name in kept else dtype, len(rows.descendant) if name in by_row else None)
            for name in theirs
        ]
        with _shown(f"{descendant.name} + {scale:g} × residual", len(specs)) as one_more:
            sha256, files = write_sharded(draft / "hf", specs, pieces, shard_bytes, one_more)
        size = len(rows.descendant)
        describe_result(draft / "hf", descendant.folder, residual.folder / "instruct", rows.tokenizer_of, size, DTYPES[_commonest(specs)])
        manifest = {
            "format": RESIDUAL_FORMAT,
            "descendant": identity_of(descendant),
            "residual": {key: residual.manifest[key] for key in ("instruct", "base", "weights_sha256", "relative_norm")},
            "scale": scale,
            **({} if keep.is_all else {"density": keep.density, "mask": keep.mask}),
            "new_tokens": new_tokens,
            "notes": [*residual.manifest["notes"], *notes],
            "weights_sha256": sha256,
            "files": _files(draft, {f"hf/{name}": facts for name, facts in files.items()}),
        }
        write_json(draft / "manifest.json", manifest)
    return manifest


def _masked(residual: Residual, name: str, kept: Kept) -> Callable[[Tensor], Tensor]:
    """What of the differences of one tensor is added; rows of tokens that the base lacks are none."""
    weights = residual.weights
    shape = tuple(weights.shape(name))
    if kept.is_all or not _is_floating(weights.dtype(name)):
        return lambda difference: difference
    rows = (
        np.asarray(residual.has_base, dtype=bool)
        if name in residual.manifest["vocabulary"]["tensors"]
        else np.ones(shape[0] if shape else 1, dtype=bool)
    )

    def differences() -> Iterator[Tensor]:
        for start, end in chunks(shape):
            part = weights.chunk(name, start, end).float()
            yield part[torch.from_numpy(rows[start:end])] if shape else part

    bounds = kept.bounds(differences, int(rows.sum()) * math.prod(shape[1:]))
    return lambda difference: kept.of(difference, bounds)


def _summed_rows(
    ours: LazyWeights, residual: LazyWeights, name: str, rows: RowMap, part: slice, scale: float, masked: Callable[[Tensor], Tensor]
) -> Tensor:
    """Rows of a vocabulary tensor of the result, in fp32."""
    summed = ours.take(name, rows.descendant[part])
    added = residual.take(name, rows.residual[part])
    is_sum, is_instruct = (torch.from_numpy(np.ascontiguousarray(chosen[part])) for chosen in (rows.is_sum, rows.is_instruct))
    summed[is_sum] += scale * masked(added[is_sum])
    summed[is_instruct] = added[is_instruct]
    return summed


def _whole_or_rows(weights: LazyWeights, spec: TensorSpec, start: int, end: int) -> Tensor:
    return weights.chunk(spec.name, start, end).float()


def _files(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """{file: {bytes, sha256}} of everything in the folder; `known`: those that were hashed when they were written."""
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: known.get(name) or {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in there.items()}


def _squares(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _copied(spec: TensorSpec, ours: Any, theirs: Any) -> Iterator[Tensor]:
    """A tensor of whole numbers: no sum makes sense of it, so it must be the same in both."""
    for start, end in chunks(spec.shape):
        mine, other = ours.weights.chunk(spec.name, start, end), theirs.weights.chunk(spec.name, start, end)
        if not torch.equal(mine, other):
            raise UserError(f"{ours.name}: {spec.name} holds whole numbers that differ from those of {theirs.name}: they cannot be added")
        yield mine


def _check_same(
    ours: dict[str, tuple[str, tuple[int, ...]]],
    theirs: dict[str, tuple[str, tuple[int, ...]]],
    by_row: set[str],
    our_name: str,
    their_name: str,
) -> None:
    shapes = [{name: shape for name, (_, shape) in of.items()} for of in (ours, theirs)]
    check_tensors(shapes[0], shapes[1], by_row, our_name, their_name)
    for name, (dtype, _) in ours.items():
        if _is_floating(dtype) != _is_floating(theirs[name][0]):
            raise UserError(f"{our_name}: {name} is {dtype} here and {theirs[name][0]} in {their_name}; is it the same architecture?")


def _refuse_unknown_rows(plain: bool, by_row: set[str], model: Model) -> None:
    if not plain and not by_row:
        raise UserError(
            f"{model.name}: its vocabulary is another one, and its architecture does not say which tensors have a row a token; "
            "give models with the same vocabulary"
        )


def _refuse_infinite(values: Tensor, name: str, our_name: str, their_name: str) -> None:
    if not torch.isfinite(values).all():
        raise UserError(
            f"{name}: {our_name} and {their_name} make numbers that are not finite; are both whole, and is the dtype wide enough?"
        )


def _result_spec(name: str, dtype: str, shape: tuple[int, ...], wanted: str | None, rows: int | None) -> TensorSpec:
    shape = shape if rows is None else (rows, *shape[1:])
    return TensorSpec(name, _NAMES[wanted] if wanted and _is_floating(dtype) else dtype, shape)


def _commonest(specs: list[TensorSpec]) -> str:
    sizes: dict[str, int] = {}
    for spec in specs:
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.bytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _is_floating(dtype: str) -> bool:
    return DTYPES[dtype].is_floating_point


def _left_out(model: Model) -> list[str]:
    left = model.left_out
    return [f"{model.name}: left out {', '.join(left[:3])}{', …' if len(left) > 3 else ''} (tied, or computed anyway)"] if left else []


@contextmanager
def _shown(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar over the tensors; what is yielded moves it by one."""
    with progress() as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def _in_place(out: Path) -> Iterator[Path]:
    """A folder that is `out` when the block ends well, and is gone otherwise. UserError where `out` holds anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; give another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
