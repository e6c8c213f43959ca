"""python -m cluster plan …: which machines an experiment needs, before anybody pays."""

import argparse

from cluster.plan import add_plan
from console import door


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Where experiments run: plan, check, submit, follow, stop.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_plan(commands)
    args, rest = parser.parse_known_args(argv)  # overrides may stand behind options; sub-parsers know no intermixed arguments
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args.run(args)  # type: ignore[no-any-return]


if __name__ == "__main__":
    door(main)
