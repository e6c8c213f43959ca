"""A 70B stage's hf/ written by 64 ranks, counted: python -m benchmarks.scale_export [--tiny]

The stage of benchmarks.scale_load at its end: fp32 weights in 64 pieces, to bf16 safetensors with their hashes. One rank after the other writes its shards beside a made-up
group of 64 (what others would send has no values, and its size is what counts); the build of 06945e2 does all of it on rank 0.
Goal: the busiest rank writes at most 1.1 of a 64th and the index; nothing is read. Writes benchmarks/results/scale_export.json.
"""

from math import prod
from typing import Any

from benchmarks.scale import LAYERS, OLD, RANKS, ROOT, asked_for_tiny, ranks, stage_and_old_build

from benchmarks.result_file import write_result_file
from console import say


def main() -> None:
    tiny = asked_for_tiny("scale_export", __doc__)
    num_ranks, layers = (8, 3) if tiny else (RANKS, LAYERS)
    with stage_and_old_build(num_ranks, layers) as (folder, shapes, old):
        new = ranks(ROOT, "leave", folder, 0, 1 if tiny else num_ranks - 1, num_ranks)
        for one in new:
            say(f"rank {one['rank']}: {one['written'] / 1e6:.2f} MB written, {one['read']} bytes read, {one['seconds']:.2f} s")
        before = ranks(old, "leave", folder, 0, 0, num_ranks)[0] if old and not tiny else None
    total = 2 * sum(prod(shape) for shape in shapes.values())
    index = max(one["index"] for one in new)
    figures: dict[str, Any] = {
        "busiest_over_share": round(max(one["written"] - one["index"] for one in new) * num_ranks / total, 4),
        "index_bytes": index,
        "read_bytes": max(one["read"] for one in new),
        "seconds_of_the_slowest": {"ours": round(max(one["seconds"] for one in new), 2)},
        "tensors": len(shapes),
        "ranks": num_ranks,
    }
    if tiny:
        print(figures)
        return
    if before:
        figures["written_by_one_rank"] = {"ours": max(one["written"] for one in new), OLD: before["written"]}
        figures["read_by_one_rank"] = {"ours": figures["read_bytes"], OLD: before["read"]}
        figures["seconds_of_the_slowest"][OLD] = round(before["seconds"], 1)
    holds = figures["busiest_over_share"] <= 1.1 and figures["read_bytes"] == 0
    write_result_file("scale_export", figures, {"busiest_over_share": "<= 1.1", "read_bytes": "= 0"}, holds)


if __name__ == "__main__":
    main()
