"""python -m cluster submit, logs, stop, status: jobs on a cluster, through Ray's job server.

The job runs on the cluster and outlives whoever looks at it: a lost connection loses lines on a screen, nothing else. The checkout is
sent along as the job's working directory; the environment is the nodes' own (docs/cluster.md). No secret's value ever travels in a
runtime environment: Ray stores that in clear text and shows it on the dashboard.
"""

import argparse
import asyncio
import logging
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.guard import check_version, token_file
from console import EXIT_FAILED, Command, RunError, UserError, is_secret_name, out, say, write_result
from experiment import load_experiment

ROOT = Path(__file__).resolve().parent.parent
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_MOST_MIB = 100
"""Of the checkout, packed: a clean one has a tenth of it."""
_STOP_S = 1800
"""How long a stopped job may take to save before Ray kills it; Ray's own limit is 3 s."""
_RECONNECT_S = (1, 2, 5, 10, 30)
_LONGEST_AWAY_S = 600.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

_EXAMPLES = """examples:
  python -m cluster submit experiments/wiki2023_qwen_7b.yaml runs=/shared/runs data.root=/shared/film
  python -m cluster submit experiments/bios_cpu.yaml runs=/shared/runs --detach --env HF_TOKEN_PATH=/run/secrets/hf
  python -m cluster logs bios-cpu-7f3a
  python -m cluster stop bios-cpu-7f3a

The address is --address, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else http://127.0.0.1:8265 (ssh -L 8265:127.0.0.1:8265 HEAD).
exit code of a job that is followed: the job's own; 2: nothing was submitted; 130: you stopped looking, the job goes on"""


def add_jobs(commands: Any) -> None:
    """The four commands."""
    submit = _command(commands, "submit", _submit, "send the checkout and train an experiment there")
    submit.takes_experiment("runs=/shared/runs")
    submit.add_argument("--name", metavar="ID", help="the job's id; default: the experiment's name and four digits")
    submit.add_argument("--detach", action="store_true", help="do not follow the log")
    submit.add_argument("--no-preflight", action="store_true", help="do not check the cluster first (python -m cluster preflight)")
    submit.add_argument("--no-exam", action="store_true", help="train only")
    submit.add_argument("--insecure", action="store_true", help="use a cluster of several nodes that has no token authentication")
    submit.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="an environment variable of the job; never a secret"
    )
    logs = _command(commands, "logs", _logs, "follow a job's log, from its beginning")
    logs.add_argument("id", metavar="ID")
    logs.add_argument("--no-follow", action="store_true", help="print what there is and end")
    stop = _command(commands, "stop", _stop, "ask a job to save and end, and wait until it has")
    stop.add_argument("id", metavar="ID")
    stop.add_argument("--no-wait", action="store_true")
    status = _command(commands, "status", _status, "all jobs, or one")
    status.add_argument("id", metavar="ID", nargs="?")


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], about: str) -> Command:
    parser: Command = commands.add_parser(name, help=about, description=about, epilog=_EXAMPLES)
    parser.add_argument("--address", help="of the job server")
    parser.set_defaults(run=run)
    return parser


def job_client(address: str | None) -> Any:
    """Ray's JobSubmissionClient. RunError, in one line, where nobody answers, the token is wrong, or Ray there is another version."""
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    check_version(ray.__version__)
    logging.disable(logging.INFO)  # Ray tells of every file that it does not pack
    where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or _DEFAULT_ADDRESS
    if "://" not in where:
        raise UserError(f"{where}: the job server's address begins with http://, e.g. {_DEFAULT_ADDRESS}; give it with --address")
    _use_token()
    try:
        client = JobSubmissionClient(where)
        theirs = client._server_ray_version  # get_version() is the job API's
    except AuthenticationError:
        raise RunError(f"{where}: the cluster does not take this token; copy its own to {token_file()} (docs/security.md)") from None
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        text = str(error)
        if "40" in text and re.search(r"\b40[13]\b", text):
            raise RunError(f"{where}: the cluster does not take this token; copy its own to {token_file()} (docs/security.md)") from None
        raise RunError(
            f"{where}: no Ray job server answers there: {text.splitlines()[0]}; is the cluster up, is the port forwarded?"
        ) from None
    if theirs != ray.__version__:
        raise RunError(f"{where} runs Ray {theirs} and this environment {ray.__version__}: install the same requirements lock on both")
    return client


def _use_token() -> None:
    """Ray sends a token only where its mode says so; a token that lies ready is meant to be used."""
    if "RAY_AUTH_MODE" not in os.environ and (os.environ.get("RAY_AUTH_TOKEN") or token_file().is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


# ── submit ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _submit(args: argparse.Namespace) -> int:
    experiment = load_experiment(args.file, args.overrides)
    file = _inside_checkout(args.file)
    if not Path(experiment.runs).is_absolute():
        raise UserError(
            f"runs: {experiment.runs} would lie in the job's temporary copy; give storage that every node shares, e.g. runs=/shared/runs"
        )
    root = experiment.data.root
    if root is not None and not Path(root).is_absolute() and not (ROOT / root).is_dir():
        raise UserError(
            f"data.root: {root} is not part of the checkout; give the path that it has on the cluster, e.g. data.root=/shared/film"
        )
    environment = job_environment(args.env)
    _refuse_large_checkout()
    client = job_client(args.address)
    words = [file, *args.overrides]
    flags = [flag for flag, given in (("--no-exam", args.no_exam), ("--insecure", args.insecure)) if given]
    train = shlex.join(["python", "-m", "trainer", *words, *flags])
    check = shlex.join(["python", "-m", "cluster", "preflight", *words, *(["--insecure"] if args.insecure else [])])
    name = args.name or f"{experiment.name}-{os.urandom(2).hex()}"
    try:
        client.submit_job(
            entrypoint=train if args.no_preflight else f"{check} && {train}",
            submission_id=name,
            runtime_env={"working_dir": str(ROOT), "env_vars": environment},
            metadata={"experiment": experiment.name},
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise RunError(f"the job could not be submitted: {last_line(str(error))}") from None
    write_result(name)
    say(f"submitted; python -m cluster logs {name} follows it, status {name} tells how it stands, stop {name} ends it")
    return 0 if args.detach else follow(client, name)


def _inside_checkout(file: str) -> str:
    """The experiment's path within the checkout, which is what is sent."""
    path = Path(file).resolve()
    if not path.is_relative_to(ROOT):
        raise UserError(f"{file}: lies outside the checkout, which is all that is sent; copy it to {ROOT / 'experiments'}")
    return path.relative_to(ROOT).as_posix()


def job_environment(given: list[str]) -> dict[str, str]:
    """The job's environment variables. UserError for one that looks like a secret: give the path to a file with it instead."""
    found = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), "TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1"}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--env {name}: expected NAME=VALUE")
        if is_secret_name(name):
            raise UserError(
                f"--env {name}: looks like a secret, and Ray would store and show it in clear; put it into a file on the cluster "
                f"and give {name}_PATH, or use the platform's secret store"
            )
        found[name] = value
    return found


def _refuse_large_checkout() -> None:
    """Ray packs what .gitignore does not name; a forgotten model or data set would go over the wire with every job."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return  # not a git checkout: Ray has a limit of its own
    sizes = {name: path.stat().st_size for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()}
    total = sum(sizes.values()) / 2**20
    if total > _MOST_MIB:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"the checkout holds {total:,.0f} MiB that would be sent ({largest}: {sizes[largest] / 2**20:,.0f} MiB); "
            "put data and models on the shared storage, or into .gitignore below /runs/"
        )


# ── logs, stop, status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _logs(args: argparse.Namespace) -> int:
    client = job_client(args.address)
    _info(client, args.id)
    if args.no_follow:
        out.file.write(client.get_job_logs(args.id))
        return 0
    return follow(client, args.id)


def follow(client: Any, job: str) -> int:
    """Prints a job's log until it ends; comes back after lost connections, without repeating lines. The job's exit code."""
    shown = Shown()
    away_since: float | None = None
    failures = 0
    while True:
        try:
            asyncio.run(_tail(client, job, shown))
            info = client.get_job_info(job)
            if str(info.status) in _ENDED:
                return _ended(info, job)
            away_since, failures = None, 0
            time.sleep(1)
        except KeyboardInterrupt:
            say(f"no longer looking; the job goes on: python -m cluster logs {job}")
            raise SystemExit(130) from None
        except BrokenPipeError:  # whoever reads the output has gone, not the job server
            raise
        except Exception as error:  # aiohttp, requests and Ray each have their own
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > _LONGEST_AWAY_S:
                raise RunError(
                    f"lost the job server for {_LONGEST_AWAY_S / 60:.0f} minutes ({last_line(str(error))}); the job may go on"
                ) from None
            wait_s = _RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)]
            if failures == 0:
                say(f"lost the connection ({last_line(str(error))}); the job goes on, trying again")
            failures += 1
            time.sleep(wait_s)


@dataclass
class Shown:
    characters: int = 0


async def _tail(client: Any, job: str, shown: Shown) -> None:
    """Prints what comes after what is `shown`, and counts it there: a new connection starts from the log's beginning, however the one before ended."""
    seen = 0
    async for text in client.tail_job_logs(job):
        new = text[max(0, shown.characters - seen) :]
        seen += len(text)
        if new:
            out.file.write(new)
            out.file.flush()
            shown.characters = seen


def _ended(info: Any, job: str) -> int:
    if str(info.status) == "SUCCEEDED":
        return 0
    code = info.driver_exit_code
    if str(info.status) == "STOPPED":
        say(f"{job} was stopped; what is committed stays, and submitting the experiment again goes on from there")
        return code or 75
    say(f"error: {job} failed: {last_line(str(info.message or 'no message'))}" + (f" (exit code {code})" if code else ""))
    return code or EXIT_FAILED


def _stop(args: argparse.Namespace) -> int:
    client = job_client(args.address)
    if str(_info(client, args.id).status) in _ENDED:
        say(f"{args.id} has ended already ({client.get_job_info(args.id).status})")
        return 0
    client.stop_job(args.id)
    say(f"{args.id}: asked to save and stop (at most {_STOP_S // 60} minutes)")
    while not args.no_wait and str(client.get_job_info(args.id).status) not in _ENDED:
        time.sleep(1)
    if not args.no_wait:
        say(f"{args.id}: {client.get_job_info(args.id).status}")
    return 0


def _status(args: argparse.Namespace) -> int:
    client = job_client(args.address)
    jobs = [_info(client, args.id)] if args.id else sorted(client.list_jobs(), key=lambda job: job.start_time or 0)
    for line in status_lines(jobs, time.time()):
        write_result(line)
    return 0


def status_lines(jobs: Iterable[Any], now_s: float) -> list[str]:
    """One line a job: id, status, how long, what."""
    lines = []
    for job in jobs:
        if not job.submission_id:  # drivers that connected by themselves
            continue
        end_s = job.end_time / 1000 if job.end_time else now_s
        minutes = (end_s - job.start_time / 1000) / 60 if job.start_time else 0
        why = f"  {last_line(job.message)}" if str(job.status) == "FAILED" and job.message else ""
        lines.append(f"{job.submission_id:28}  {job.status!s:9}  {minutes:7.1f} min  {job.entrypoint.rpartition('&& ')[2]}{why}")
    return lines or ["no jobs"]


def _info(client: Any, job: str) -> Any:
    try:
        return client.get_job_info(job)
    except RuntimeError:
        raise UserError(f"{job}: the cluster knows no such job; python -m cluster status lists them") from None


def last_line(text: str) -> str:
    """The line that says what happened, of an error with a traceback in it."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
