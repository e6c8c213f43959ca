"""One way into Ray: the cluster that is there, else one on this machine; and a refusal before anything would wait for ever."""

import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.guard import check_open_door, check_version, secure_own_ray
from console import RunError, UserError, say


@contextmanager
def connected(cpus_needed: float, gpus_needed: float = 0, remedy: str = "use a larger cluster", insecure: bool = False) -> Iterator[None]:
    """Connects to the cluster of RAY_ADDRESS (set in every submitted job), else starts Ray on this machine and stops it at the end.

    Inside another `connected` it only checks. CPUs of a local Ray are logical: as many as asked for, so that two cores hold two workers,
    their streams and the exam. RunError when the cluster has less than is needed: Ray itself would wait for ever; and when it has several
    nodes and lets anybody in, unless `insecure`.
    """
    import ray  # seconds to import: not for --help

    check_version(ray.__version__)
    ours = not ray.is_initialized()
    if ours:
        handler = signal.getsignal(signal.SIGTERM)
        _start(cpus_needed, insecure)
        _handle_sigterm(handler)
    try:
        have = ray.cluster_resources()
        for resource, needed in (("CPU", cpus_needed), ("GPU", gpus_needed)):
            if have.get(resource, 0) < needed:
                raise RunError(f"the cluster has {have.get(resource, 0):g} {resource}s and this needs {needed:g}; {remedy}")
        yield
    finally:
        if ours:
            ray.shutdown()


def _handle_sigterm(handler: Any) -> None:
    """Ours again: Ray's own handler dumps the stack and aborts the process, which leaves its daemons and workers behind."""
    if threading.current_thread() is threading.main_thread() and callable(handler):
        signal.signal(signal.SIGTERM, handler)


class Connecting:
    """`connected`, begun in a thread: Ray comes up (4 s) while its driver reads, tokenises and plans.

    with Connecting(…) as ray_comes: ray_comes.begin(); …; ray_comes.wait(). Without begin() wait() does all; without either nothing starts.
    """

    def __init__(self, cpus_needed: float, gpus_needed: float = 0, remedy: str = "use a larger cluster") -> None:
        self._arguments = (cpus_needed, gpus_needed, remedy)
        self._thread: threading.Thread | None = None
        self._answered, self._ended = threading.Event(), threading.Event()
        self._error: BaseException | None = None

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._hold, name="Ray", daemon=True)
            self._thread.start()

    def _hold(self) -> None:
        """Lives as long as Ray is needed: Ray's processes ask Linux to be killed with their parent, and mean the thread that started them."""
        try:
            with connected(*self._arguments):
                self._answered.set()
                self._ended.wait()
        except BaseException as error:  # wait() raises it where it belongs
            self._error = error
        finally:
            self._answered.set()

    def wait(self) -> None:
        """Until Ray is there; raises what `connected` raises."""
        self.begin()
        self._answered.wait()
        if self._error:
            raise self._error
        _handle_sigterm(signal.getsignal(signal.SIGTERM))  # the thread that started Ray cannot

    def __enter__(self) -> "Connecting":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()


def _start(cpus_needed: float, insecure: bool) -> None:
    import ray

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    if address := os.environ.get("RAY_ADDRESS"):
        _knock(address)
        try:
            context = ray.init(log_to_driver=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = "where it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (docs/security.md)"
            raise RunError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {str(error).splitlines()[0]}; {hint}") from None
        try:
            check_open_door(sum(node["Alive"] for node in ray.nodes()), context.dashboard_url or "", insecure)
        except RunError:
            ray.shutdown()
            raise
        return
    secure_own_ray()
    # Workers import the rooms from this checkout, whatever their working directory; in a submitted job it is the job's own copy.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env_vars = {"PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(cpus_needed)),
            include_dashboard=False,
            object_store_memory=_object_store_mb() * 2**20,
            runtime_env={"env_vars": env_vars},
            log_to_driver=True,
        )
    except Exception as error:  # Ray has no class for "did not come up"
        reason = (str(error).strip().splitlines() or [""])[0]
        raise RunError(
            f"Ray did not come up on this machine: {type(error).__name__}: {reason}; its own logs: /tmp/ray/session_latest/logs; it needs space in "
            "/tmp and /dev/shm (STUDYHALL_OBJECT_STORE_MB=100 needs less), or train without it: --no-ray"
        ) from None


def _object_store_mb() -> int:
    """Rows are small; Ray's default is 30 % of the memory."""
    text = os.environ.get("STUDYHALL_OBJECT_STORE_MB", "400")
    if not text.isdecimal() or int(text) < 75:
        raise UserError(f"STUDYHALL_OBJECT_STORE_MB={text}: expected a number of megabytes, 75 or more")
    return int(text)


def _knock(address: str) -> None:
    """RunError where nobody listens at `host:port`: Ray itself would try for minutes without a word."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():  # "auto", "ray://…": Ray knows them
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {error.strerror or error}") from None


def gpus_here() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def gpu_gib_here() -> float:
    """Memory of one of the connected cluster's GPUs in GiB; 0 without. RunError where the GPUs are taken for five minutes."""
    import ray

    if not gpus_here():
        return 0.0

    @ray.remote(num_gpus=1, max_retries=1)
    def memory() -> float:
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory / 2**30)

    try:
        return ray.get(memory.remote(), timeout=300)  # type: ignore[no-any-return]
    except ray.exceptions.GetTimeoutError:
        raise RunError("no GPU of the cluster came free in 300 s; stop what uses them, or name a model and --gpus 0") from None


def announce_cluster() -> None:
    """One line on what was connected to."""
    import ray

    have = ray.cluster_resources()
    say(f"Ray {ray.__version__}: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs, {len(ray.nodes())} node(s)")
