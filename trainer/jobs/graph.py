"""The stage graph in lines: what is trained once, for whom, and what is there already."""

from collections.abc import Container

from data.planning.plan_report import stage_name
from trainer.jobs.prepare import Job

MOST_LINES = 40


def graph_lines(jobs: list[Job], keys: dict[str, list[str]], committed: Container[str]) -> list[str]:
    """One line a stage, indented below the stage it starts from, with the arms that end there; a grid of many arms is cut short.

    `keys`: each arm's stages (make_jobs); `committed`: keys of stages that are trained already.
    """
    ends: dict[str, list[str]] = {}
    used: dict[str, int] = {}
    for arm, stages in keys.items():
        if stages:
            ends.setdefault(stages[-1], []).append(arm)
        for key in stages if arm != "base" else []:
            used[key] = used.get(key, 0) + 1
    below: dict[str | None, list[Job]] = {}
    for job in jobs:
        below.setdefault(job.parent, []).append(job)

    def lines(parent: str | None, depth: int) -> list[str]:
        found = []
        for job in below.get(parent, []):
            notes = [f"{job.num_steps:,} steps"]
            if used.get(job.key, 0) > 1:
                notes.append(f"shared by {used[job.key]} arms")
            if job.key in committed:
                notes.append("trained already")
            arms = f" → {', '.join(ends[job.key])}" if job.key in ends else ""
            found.append(f"{'  ' * depth}{stage_name(job.stage)} ({', '.join(notes)}){arms}")
            found += lines(job.key, depth + 1)
        return found

    every = lines(None, 1)
    return every if len(every) <= MOST_LINES else [*every[: MOST_LINES - 1], f"  … and {len(every) - MOST_LINES + 1} more stages"]
