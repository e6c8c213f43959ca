"""python -m cluster plan, preflight, submit, logs, stop, status: from a laptop to a cluster."""

from cluster.jobs import add_jobs
from cluster.plan import add_plan
from cluster.preflight import add_preflight
from console import Command, door


def main(argv: list[str] | None = None) -> int | None:
    parser = Command("python -m cluster", description="Where experiments run: plan, check, submit, follow, stop.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_plan(commands)
    add_preflight(commands)
    add_jobs(commands)
    return parser.run(argv)


if __name__ == "__main__":
    door(main)
