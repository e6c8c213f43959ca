"""A 70B stage loaded by 64 ranks, counted: python -m benchmarks.scale_load [--tiny]

The 723 tensors of Llama 2 70B at a thousandth of its size, left by 64 ranks under ZeRO-3; one rank after the other makes its engine from them (bf16, fp32 masters),
each in a process of its own beside a made-up group of 64 (benchmarks/at_scale/scale_rank.py). Counted: bytes and openings of files, seconds of processor and storage (here the page
cache), host memory above what was there. The build of 06945e2 does the same in the same run, its ranks 0 and 1 alone: all but rank 0 do what rank 1 does, for every rank reads
every parameter whole. Host memory is measured at a hundredth of the size, where the list of 46,272 pieces (2 MB) does not outweigh a rank's weights.
Goal: bytes of a rank at most 1.05 of its share; openings at most the files there are; at least 20 times fewer bytes in all and 10 times less time; host peak at most 1.2 of the
share and one tensor. Takes half an hour, nearly all of it the older build's. Writes benchmarks/results/scale_load.json.
"""

from math import prod
from pathlib import Path
from typing import Any

from benchmarks.scale import LAYERS, OLD, RANKS, ROOT, asked_for_tiny, make_stage, ranks, stage_and_old_build

from benchmarks.result_file import write_result_file
from console import say

LARGER = 832
"""Hidden size of the model at a hundredth."""


def count(build: Path, folder: Path, first: int, last: int, num_ranks: int) -> list[dict[str, Any]]:
    found = ranks(build, "load", folder, first, last, num_ranks)
    for one in found:
        say(f"{build.name}: rank {one['rank']}: {one['bytes'] / 1e6:.2f} MB, {one['openings']} openings, {one['seconds']:.2f} s")
    return found


def compared(new: list[dict[str, Any]], old: list[dict[str, Any]], num_ranks: int) -> dict[str, Any]:
    """Of all ranks; the older build's rank 1 stands for all but rank 0."""
    assert all(a["sum"] == b["sum"] for a, b in zip(new, old, strict=False)), "the builds have loaded other weights"
    in_all = old[0]["bytes"] + (num_ranks - 1) * old[1]["bytes"]
    return {
        "fewer_bytes": round(in_all / (sum(one["bytes"] for one in new) * num_ranks / len(new)), 1),
        "less_time": round(old[0]["seconds"] / max(one["seconds"] for one in new), 1),
        "bytes_in_all": {"ours": sum(one["bytes"] for one in new) * num_ranks // len(new), OLD: in_all},
        "openings_of_a_rank": {"ours": max(one["openings"] for one in new), OLD: old[0]["openings"]},
        "seconds_of_the_slowest": {"ours": round(max(one["seconds"] for one in new), 2), OLD: round(old[0]["seconds"], 1)},
    }


def main() -> None:
    tiny = asked_for_tiny("scale_load", __doc__)
    num_ranks, layers = (8, 3) if tiny else (RANKS, LAYERS)
    with stage_and_old_build(num_ranks, layers) as (folder, shapes, old):
        new = count(ROOT, folder, *((1, 1) if tiny else (0, num_ranks - 1)), num_ranks)
        before = count(old, folder, 0, 1, num_ranks) if old and not tiny else []
        large = folder.with_name("large")
        largest = max(4 * prod(shape) for shape in make_stage(large, LARGER, layers, num_ranks).values()) if not tiny else 0
        memory = ranks(ROOT, "load", large, 1, 1, num_ranks)[0] if not tiny else new[0]
    worst = max(one["bytes"] / one["share"] for one in new)
    figures = {
        "bytes_over_share": round(worst, 4),
        "openings": max(one["openings"] for one in new),
        "host_peak_over_share": round((memory["peak"] - largest) / memory["share"], 3),
        **(compared(new, before, num_ranks) if before else {}),
        "tensors": len(shapes),
        "ranks": num_ranks,
    }
    goal = {
        "bytes_over_share": "<= 1.05",
        "openings": f"<= {num_ranks + 1}",
        "fewer_bytes": ">= 20",
        "less_time": ">= 10",
        "host_peak_over_share": "<= 1.2",
    }
    if tiny:
        print(figures)
        return
    held = worst <= 1.05 and figures["openings"] <= num_ranks + 1 and figures["host_peak_over_share"] <= 1.2
    holds = held and figures["fewer_bytes"] >= 20 and figures["less_time"] >= 10 if before else None
    write_result_file("scale_load", figures, goal, holds)


if __name__ == "__main__":
    main()
