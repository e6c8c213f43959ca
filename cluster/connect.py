"""One way into Ray: the cluster that is there, else one on this machine; and a refusal before anything would wait for ever."""

import math
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.guard import check_open_door, check_version, secure_own_ray
from console import RunError, UserError, say

_PATIENCE_S = 30.0
"""A Ray of our own comes up in 4 s, on a machine with much else to do in 20."""


@contextmanager
def connected(cpus_needed: float, gpus_needed: float = 0, remedy: str = "use a larger cluster", insecure: bool = False) -> Iterator[None]:
    """Connects to the cluster of RAY_ADDRESS (set in every submitted job), else starts Ray on this machine and stops it at the end.

    Inside another `connected` it only checks. CPUs of a local Ray are logical: as many as asked for, so that two cores hold two workers,
    their streams and the exam. RunError when the cluster has less than is needed: Ray itself would wait for ever; and when it has several
    nodes and lets anybody in, unless `insecure`.
    """
    with Connecting(cpus_needed, gpus_needed, remedy, insecure) as ray_comes:
        ray_comes.wait()
        yield


class Connecting:
    """`connected`, begun in a thread: Ray comes up (4 s) while its driver reads, tokenises and plans.

    with Connecting(…) as ray_comes: ray_comes.begin(); …; ray_comes.wait(). Without begin() wait() does all; without either nothing starts.

    Ray must come up in a thread of its own: in the main one it takes the handler of SIGTERM for itself, and what a handler raises in the midst
    of ray.init leaves a half of it behind. So the main thread waits and can be interrupted; the other ends what it has begun.
    """

    def __init__(self, cpus_needed: float, gpus_needed: float = 0, remedy: str = "use a larger cluster", insecure: bool = False) -> None:
        self._needed, self._remedy, self._insecure = {"CPU": cpus_needed, "GPU": gpus_needed}, remedy, insecure
        self._thread: threading.Thread | None = None
        self._answered, self._ended = threading.Event(), threading.Event()
        self._error: BaseException | None = None

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._hold, name="Ray", daemon=True)
            self._thread.start()

    def _hold(self) -> None:
        """Lives as long as Ray is needed: Ray's processes ask Linux to be killed with their parent, and mean the thread that started them."""
        import ray  # seconds to import: not for --help

        try:
            check_version(ray.__version__)
            ours = not ray.is_initialized()
            try:
                if ours:
                    _start(self._needed["CPU"], self._insecure)
                self._check(ray.cluster_resources())
                self._answered.set()
                self._ended.wait()
            finally:
                if ours:
                    ray.shutdown()
        except BaseException as error:  # wait() raises it where it belongs
            self._error = error
        finally:
            self._answered.set()

    def _check(self, have: dict[str, float]) -> None:
        for resource, needed in self._needed.items():
            if have.get(resource, 0) < needed:
                raise RunError(f"the cluster has {have.get(resource, 0):g} {resource}s and this needs {needed:g}; {self._remedy}")

    def wait(self) -> None:
        """Until Ray is there; raises what its start raised."""
        self.begin()
        self._answered.wait()
        if self._error:
            raise self._error

    def __enter__(self) -> "Connecting":
        return self

    def __exit__(self, *_: object) -> None:
        still_coming = not self._answered.is_set()
        self._ended.set()
        if self._thread:  # a cluster that does not answer is not waited for; what Ray has started here ends with this process
            self._thread.join(_PATIENCE_S if still_coming else None)


def _start(cpus_needed: float, insecure: bool) -> None:
    import ray

    # Else the driver's C++ half takes SIGTERM: it dumps the stack, aborts, and leaves daemons and workers behind. Workers keep theirs.
    ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
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
