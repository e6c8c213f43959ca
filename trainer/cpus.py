"""Logical CPUs of a worker group; light, so that a driver can ask before it imports Ray and torch."""

from data.rows.flat_rows import STREAM_CPUS

WORKER_CPUS = 1


def cpus_for(num_workers: int) -> float:
    """Logical CPUs of a group: its workers and the data streams that feed them. Without the latter ranks would wait for rows for ever."""
    return num_workers * (WORKER_CPUS + STREAM_CPUS) + 1  # Ray Train's controller and Ray Data's bookkeeping
