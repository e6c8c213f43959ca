"""python -m cluster plan, preflight, submit, logs, stop, status: from a laptop to a cluster."""

import argparse

from cluster.jobs import add_jobs
from cluster.plan import add_plan
from cluster.preflight import add_preflight
from console import door


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Where experiments run: plan, check, submit, follow, stop.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_plan(commands)
    add_preflight(commands)
    add_jobs(commands)
    args, rest = parser.parse_known_args(argv)  # overrides may stand behind options; sub-parsers know no intermixed arguments
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args.run(args)  # type: ignore[no-any-return]


if __name__ == "__main__":
    door(main)
