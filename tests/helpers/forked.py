"""A server that starts groups of processes in a second: it has imported everything, and forks. Without Ray.

python -m tests.helpers.forked; one JSON request a line on stdin, one JSON answer a line on stdout: {"codes": [0, 0]}; negative codes are signals.
{"experiment": PATH, "overrides": [], "world_size": 2, "env": {}, "limit_s": 60} trains as the driver and its workers would; a process's output
goes to <experiment>.<rank>.log. {"module": NAME, "out": FOLDER, "arguments": [], …} calls NAME.main(out, world_size, rank, *arguments) in each
process of a gloo group; output goes to <out>/<rank>.log. {"command": [ROOM, …], "env": {all of it}, "stdin": PATH, "stdout": PATH, "stderr": PATH, "limit_s": 60} is
`python -m ROOM …`, for commands that a test does not time and that ask no library, when it is imported, for what `env` sets.
"""

import atexit
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from console import UserError
from data.ground.imports import importing
from experiment import Experiment, load_experiment
from tests.helpers import late_storage
from tests.helpers.places import THREADS

with importing():  # and left out of collections: one in a child would go through half a million objects, and copy their pages
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  asks for torch's compiler, whose imports would cost every group two seconds
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    from trainer import drive, run
    from trainer.jobs.worker_settings import WorkerSettings
    from trainer.step.engine import DeepSpeedEngine  # noqa: F401
    from trainer.store.stages import StageStore
    from trainer.watch.supervise import resume_points
    from trainer.worker import CorruptFile, train_jobs

EXIT_CORRUPT = 3


def prepared_for(experiment: Experiment) -> run.Prepared:
    """As the driver does it."""
    arms = {"base": experiment.stages("base"), **{arm: experiment.stages(arm) for arm in experiment.arms}}
    return run.prepare(experiment.folder, experiment.data, experiment.model, experiment.trainer, arms, experiment.seed, False)


def _train(experiment: Experiment) -> None:
    prepared = prepared_for(experiment)  # reads what the driver's turn has made
    todo = run.pending(experiment.folder, prepared)
    settings = WorkerSettings(
        str(experiment.folder.resolve()), prepared.model_folder, experiment.trainer, prepared.precision, experiment.seed, False
    )
    train_jobs(
        settings,
        todo,
        drive.rows_without_ray(prepared, experiment.seed),
        resume_points(StageStore(experiment.folder), todo),
    )


def _child(work: Callable[[], object], log: Path) -> None:
    """Runs `work` in a forked process and never returns."""
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except CorruptFile:
        traceback.print_exc()
        code = EXIT_CORRUPT
    except UserError:
        traceback.print_exc()
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork(work: Callable[[], object], log: Path) -> int:
    pid = os.fork()
    if pid == 0:
        _child(work, log)
    return pid


def _group(world_size: int, work: Callable[[int], object], log: Callable[[int], Path], env: dict[str, str], limit_s: float) -> list[int]:
    """Exit codes of `work(rank)` in the processes of a gloo group."""
    listener = socket.create_server(("127.0.0.1", 0))  # rank 0 serves on it: a port that were only asked for could be another's by then
    port = listener.getsockname()[1]

    def in_group(rank: int) -> None:
        os.environ.update(env)
        if "TESTS_STORAGE_LATE_S" in env:
            late_storage.install(float(env["TESTS_STORAGE_LATE_S"]))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
        torch.set_num_threads(int(THREADS))
        listens = listener.detach()
        if rank:
            os.close(listens)
        limit = timedelta(seconds=300)
        store = torch.distributed.TCPStore("127.0.0.1", port, world_size, not rank, limit, master_listen_fd=None if rank else listens)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        work(rank)
        torch.distributed.destroy_process_group()

    pids = [_fork(lambda rank=rank: in_group(rank), log(rank)) for rank in range(world_size)]  # type: ignore[misc]
    listener.close()
    codes: dict[int, int] = {}
    deadline = time.monotonic() + limit_s
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
                if codes[pid] != 0:  # as Ray does: the others of a group go with the first that fails
                    deadline = min(deadline, time.monotonic() + 4.0)  # they end by themselves, when a connection is gone
        if time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def _command(request: dict[str, Any]) -> dict[str, Any]:
    """Its exit code, and whether its time was up."""
    pid = os.fork()
    if pid == 0:
        _become(request)
    deadline, late = time.monotonic() + request["limit_s"], False
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if not late and time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            late = True
        time.sleep(0.01)
    return {"codes": [os.waitstatus_to_exitcode(ended[1])], "late": late}


def _become(request: dict[str, Any]) -> None:
    """The command, to its end, in this process."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a command whose server is ended ends with it
    for number, path, how in (
        (0, request["stdin"], os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_APPEND),
        (2, request["stderr"], os.O_WRONLY | os.O_APPEND),
    ):
        os.dup2(os.open(path, how), number)
    os.environ.clear()
    os.environ.update(request["env"])
    room, *arguments = request["command"]
    sys.argv[1:] = arguments
    sys.stdin = os.fdopen(0)  # the server's own has what was read ahead of it
    code: object = 1
    try:
        runpy.run_module(room, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what a process does at its end: threads, then what is registered
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "command" in request:
        return _command(request)
    world_size, env, limit_s = request["world_size"], request["env"], request["limit_s"]
    if module := request.get("module"):
        out, arguments = Path(request["out"]), request["arguments"]

        def call(rank: int) -> None:
            importlib.import_module(module).main(out, world_size, rank, *arguments)

        return {"codes": _group(world_size, call, lambda rank: out / f"{rank}.log", env, limit_s)}
    path = request["experiment"]
    experiment = load_experiment(path, request["overrides"])
    experiment.folder.mkdir(parents=True, exist_ok=True)
    (experiment.folder / "logs").mkdir(exist_ok=True)
    # Nothing that starts threads may run in the server: a forked child would wait for locks that nobody holds any more.
    driver = _fork(lambda: prepared_for(experiment), Path(f"{path}.driver.log"))
    if code := os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]):
        return {"codes": [code], "error": Path(f"{path}.driver.log").read_text()}
    return {"codes": _group(world_size, lambda rank: _train(experiment), lambda rank: Path(f"{path}.{rank}.log"), env, limit_s)}


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except UserError as error:
            answer = {"error": str(error), "codes": [2]}
        except Exception as error:
            answer = {"error": repr(error), "codes": [1]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
