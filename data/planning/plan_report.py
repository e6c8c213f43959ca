"""A plan as plain values, for people and for JSON: stages, steps, coverage, tokens by kind, packing fill, single steps, differences."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.config import DataConfig, Stage
from data.corpus.changes import changes_since, fit_stages, read_earlier
from data.curriculum.arms import Arms, Node, find_step, first_difference
from data.curriculum.catalogue import Catalogue, catalogue_of, declared_catalogue
from data.curriculum.mixing import pools
from data.curriculum.orders import Items
from data.curriculum.plan import Plan, coverage
from data.load import load_corpus
from data.planning.lengths import Lengths
from data.records import Corpus, Document
from data.rows.packing import num_pieces, pack
from data.rows.static_rows import padded
from data.sources.raw_rows import excerpt

_SAMPLED_STEPS = 40


def read_records(data: DataConfig, seed: int) -> tuple[Catalogue, Corpus | None, str]:
    """(items, records, where they come from). Without data.root the declared counts stand in, and there are no records."""
    if data.sources and data.root is None and data.counts:
        return declared_catalogue(_declared(data), data.tokens_each), None, "declared counts (no data.root given, nothing read)"
    corpus = load_corpus(data, seed)
    origins = [f"records read from {data.root}"] * bool(data.sources) + ["made biographies"] * bool(data.bios)
    return catalogue_of(corpus), corpus, " and ".join(origins)


def _declared(data: DataConfig) -> dict[str, int]:
    """data.counts of what data.sample leaves: questions in proportion to their documents."""
    counts = dict(data.counts)
    for split, number in data.sample.items():
        documents = counts.get(f"{split}_documents", 0)
        if number < documents:
            counts |= {kind: round(n * number / documents) for kind, n in counts.items() if kind.startswith(f"{split}_")}
    return counts


def read_what_is_new(data: DataConfig, seed: int, arms: Arms, since: Path | None) -> tuple[Arms, Catalogue, Corpus | None, str]:
    """read_records for arms that start from another run: its records (`since`) say what is new, and the arms are fitted to that."""
    catalogue, corpus, origin = read_records(data, seed)
    if since is None or corpus is None:
        return arms, catalogue, corpus, origin
    changes, moved = changes_since(corpus, read_earlier(since))
    fitted = {arm: fit_stages(stages, corpus, moved) for arm, stages in arms.items()}
    return fitted, catalogue_of(moved), moved, f"{origin}; since {since.parent}: {changes.in_words()}"


def arms_report(arms: Arms, plans: dict[str, list[Plan]], catalogue: Catalogue, lengths: Lengths) -> dict[str, list[dict[str, Any]]]:
    """Every stage of every arm."""
    return {
        arm: [stage_report(s, p, catalogue, lengths.of(s)) for s, p in zip(stages, plans[arm], strict=True)] for arm, stages in arms.items()
    }


def stage_report(stage: Stage, plan: Plan, catalogue: Catalogue, lengths: Items | None) -> dict[str, Any]:
    counted = coverage(plan, catalogue)
    return {
        "mix": list(stage.mix.kinds()),
        "order": stage.order,
        "epochs": stage.epochs,
        "rate": stage.rate,
        "schedule": stage.schedule,
        "steps": plan.num_steps,
        "items": len(plan.items),
        "tokens": int(lengths[plan.items].sum()) if lengths is not None else None,
        "tokens_by_kind": tokens_by_kind(plan, catalogue, lengths) if lengths is not None else None,
        "coverage": counted,
        **({"sources": by_name(stage, plan, catalogue)} if stage.sources else {}),
        "in_words": in_words(counted),
        "settings": stage.model_dump(mode="json", exclude_defaults=True, exclude={"mix", "order", "epochs", "rate", "schedule"}),
        "plan_hash": plan.sha256,
    }


def by_name(stage: Stage, plan: Plan, catalogue: Catalogue) -> dict[str, dict[str, int]]:
    """Of each named source how many items the stage trains, of how many different ones, in its first tenth of steps and in its last."""
    tenth = max(1, plan.num_steps // 10)
    ends = plan.items[: plan.starts[tenth]], plan.items[plan.starts[-1 - tenth] :]
    return {
        name: {
            "items": int(np.isin(plan.items, pool).sum()),
            "different": len(np.intersect1d(plan.items, pool)),
            "of": len(pool),
            "first_tenth": int(np.isin(ends[0], pool).sum()),
            "last_tenth": int(np.isin(ends[1], pool).sum()),
        }
        for name, pool in pools(stage, catalogue).items()
    }


def tokens_by_kind(plan: Plan, catalogue: Catalogue, lengths: Items) -> dict[str, int]:
    """Tokens trained in a stage, of each kind that occurs."""
    tokens = np.bincount(plan.items, minlength=len(catalogue)) * lengths
    sums = {kind: int(tokens[numbers.start : numbers.stop].sum()) for kind, numbers in catalogue.ranges.items()}
    return {kind: total for kind, total in sums.items() if total}


def in_words(counted: dict[str, dict[str, int]]) -> str:
    """For people: "each train document 3×, each train QA 4×, no test question"."""
    parts = []
    for kind, c in counted.items():
        times = f"{c['least']}×" if c["least"] == c["most"] else f"{c['least']} to {c['most']}×"
        split, _, what = kind.partition("_")
        thing = f"{split} {'document' if what == 'documents' else 'QA'}"
        whole = c["items"] == c["of"]
        parts.append(
            f"each {thing} {times}" if whole else f"{c['items']:,} of {c['of']:,} {thing}{'s' if what == 'documents' else ''} {times}"
        )
    return ", ".join([*parts, "no test question"])


def sampled_steps(plan: Plan, most: int) -> list[int]:
    """Numbers of at most so many steps, at equal distances."""
    return [int(n) for n in np.unique(np.linspace(0, plan.num_steps - 1, min(plan.num_steps, most)).astype(int))]


def packing_fill(
    plan: Plan, lengths: Items, world_size: int, capacity: int, sampled: int = _SAMPLED_STEPS, one_item: bool = False
) -> dict[str, float]:
    """How full rows are and how even ranks, over at most `sampled` steps, taken at equal distances.

    fill: tokens in rows of `capacity`, filler not counted; padded_fill: in rows padded to a ladder of lengths, as on GPUs;
    tokens_per_rank: of a step, on average; busiest: the fullest rank over the mean; padded_busiest: its padded tokens, filler
    too, over the mean of real ones. `one_item`: rows hold one item each (data/rows/packing.py).
    """
    chosen = sampled_steps(plan, sampled)
    tokens, rows, busiest = 0, 0, []
    sizes: list[npt.NDArray[np.int64]] = []
    means: list[float] = []
    for number in chosen:
        # Beyond a rank for every piece more ranks hold filler alone: packed for fewer, and counted for all.
        step = np.sort(lengths[plan.step(number)]).astype(np.int64, copy=False)  # what stands where does not depend on the order of items
        ranks, sizes_of_step = _packed(step.tobytes(), min(world_size, num_pieces(step, capacity)), capacity, one_item)
        sizes.append(np.array(sizes_of_step).reshape(-1, len(ranks)))  # (micro-steps, ranks)
        means.append(sum(ranks) / world_size)
        tokens += sum(ranks)
        rows += len(sizes[-1]) * world_size
        busiest.append(max(ranks) / means[-1])
    lengthened = np.split(padded(np.concatenate([one.ravel() for one in sizes]), one_item), np.cumsum([one.size for one in sizes])[:-1])
    fullest = [int(one.reshape(own.shape).sum(axis=0).max()) for one, own in zip(lengthened, sizes, strict=True)]
    return {
        "world_size": world_size,
        "row_tokens": capacity,
        "fill": round(tokens / (rows * capacity), 4),
        "padded_fill": round(sum(int(one.sum()) for one in sizes) / sum(int(one.sum()) for one in lengthened), 4),
        "tokens_per_rank": round(tokens / len(chosen) / world_size),
        "micro_steps": round(rows / world_size / len(chosen), 2),
        "busiest": round(float(np.mean(busiest)), 3),
        "padded_busiest": round(float(np.mean(np.divide(fullest, means))), 3),
    }


@lru_cache(maxsize=4096)  # steps of declared lengths are alike in all stages; a plan for many GPUs asks for each some hundred times
def _packed(lengths: bytes, world_size: int, capacity: int, one_item: bool) -> tuple[list[int], list[int]]:
    """(tokens of each rank, tokens of each row with its filler) of one step; `lengths`: of int64."""
    grid = pack(np.frombuffer(lengths, dtype=np.int64), world_size, capacity, one_item=one_item)
    ranks = [sum(len(p) for row in rows_of_rank for p in row if p.counts) for rows_of_rank in zip(*grid, strict=True)]
    return ranks, [sum(map(len, row)) for rows_of_step in grid for row in rows_of_step]


def step_report(plans: list[Plan], number: int, catalogue: Catalogue) -> dict[str, Any]:
    """The items of one step of an arm, in order. UserError where there is no such step."""
    place = find_step(plans, number)
    return {"step": number, "stage": place.stage + 1, "step_of_stage": place.step, "items": [_item(int(n), catalogue) for n in place.items]}


def _item(number: int, catalogue: Catalogue) -> dict[str, Any]:
    kind = catalogue.kind_of(number)
    document = int(catalogue.document_of[number])
    split = kind.partition("_")[0]
    if kind.endswith("documents"):
        named = f"{_of_split(split)}document {number - catalogue.ranges[kind].start}"
    elif document >= 0:
        named = f"{_of_split(split)}QA of document {document - catalogue.ranges[catalogue.kind_of(document)].start}"
    else:
        named = f"{_of_split(split)}QA {number - catalogue.ranges[kind].start} of no document"
    text = None
    rows = catalogue.records.get(kind)
    if isinstance(rows, list):  # the texts of a streamed corpus are not held
        record = rows[number - catalogue.ranges[kind].start]
        text = excerpt(record.text if isinstance(record, Document) else f"{record.question} → {record.answers[0]}")
    return {"item": catalogue.ids[number], "is": named, "text": text}


def _of_split(split: str) -> str:
    return "" if split == "train" else f"{split} "


def difference(a: list[Plan], of_a: Catalogue, b: list[Plan], of_b: Catalogue) -> dict[str, Any]:
    """Two arms, maybe over two catalogues: hashes, steps, the first step that differs, and what is trained how often in only one of them."""
    times_a, times_b = _times(a, of_a), _times(b, of_b)
    by_kind: dict[str, dict[str, int]] = {}
    for item in times_a.keys() | times_b.keys():
        if times_a.get(item, 0) != times_b.get(item, 0):
            counts = by_kind.setdefault(item.partition("/")[0], {"items": 0, "a": 0, "b": 0})
            counts["items"] += 1
            counts["a"] += times_a.get(item, 0)
            counts["b"] += times_b.get(item, 0)
    return {
        "steps": [sum(p.num_steps for p in a), sum(p.num_steps for p in b)],
        "plan_hashes": [[p.sha256 for p in a], [p.sha256 for p in b]],
        "first_differing_step": first_difference(a, of_a.digests, b, of_b.digests),
        "trained_unequally_often": dict(sorted(by_kind.items())),
    }


def _times(plans: list[Plan], catalogue: Catalogue) -> dict[str, int]:
    """Item id → how often an arm trains it."""
    total = np.zeros(len(catalogue), dtype=np.int64)
    for plan in plans:
        total += np.bincount(plan.items, minlength=len(catalogue))
    return {catalogue.ids[n]: int(total[n]) for n in np.flatnonzero(total)}


def graph_report(node: Node) -> list[dict[str, Any]]:
    """The stages below a node: what each trains, for how many steps, which arms end there, and what follows."""
    return [
        {
            "stage": stage_name(child.stage),
            "steps": child.plan.num_steps,
            "plan_hash": child.plan.sha256,
            "arms": child.arms,
            "after": graph_report(child),
        }
        for child in node.after.values()
        if child.stage and child.plan
    ]


def stage_name(stage: Stage) -> str:
    """For people: "train_questions + train_documents, questions_first, 3 epochs, rate 3e-05"."""
    length = f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''}" if stage.epochs else f"{stage.steps} steps"
    named = {"mix", "order", "epochs", "steps", "rate", "batch_items", "sample_questions", "warmup_steps"}
    rest = "".join(f", {key} {value}" for key, value in stage.model_dump(exclude_defaults=True, exclude=named).items())
    return f"{' + '.join(stage.mix.kinds())}, {stage.order}, {length}, rate {stage.rate:g}{rest}"
