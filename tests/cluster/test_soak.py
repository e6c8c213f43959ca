"""Sixty-four light streams at once, on logical CPUs: what feeds 64 ranks, without the ranks. Minutes, and 64 worker processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, without_ray_settings
from tests.helpers.planned import planned

# Eight processes stand for eight nodes' workers, eight streams each; a Ray of their own with just the CPUs that preflight asks for the streams.
SOAK = """
import json, sys, threading
from pathlib import Path
import numpy as np, ray
from data.rows.flat_rows import STREAM_CPUS
from data.rows.stream import RankShares, StreamSpec, iterate, step_spans

folder, num_steps, root, RANKS, PROCESSES = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
ray.init(
    address="local", num_cpus=int(RANKS * STREAM_CPUS) + 1, include_dashboard=False, object_store_memory=200 * 2**20,
    runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}}, log_to_driver=False,
)
spec = StreamSpec(str(folder / "plan.npz"), str(folder / "tokens"), num_steps, 96, "example")
shares = RankShares({"s": spec}).configure({"s": step_spans(spec)}, RANKS, None, None)

@ray.remote(num_cpus=0)
class Node:
    def take(self, streams):
        told = [None] * len(streams)
        def one(n, stream):
            rows, tokens, last, ordered = 0, 0, (-1, -1), True
            for row in iterate(stream, timeout_s=400):
                place = (row["step"], row["micro_step"])
                ordered &= place > last
                last, rows, tokens = place, rows + 1, tokens + (len(row["input_ids"]) if row["loss_weight"].any() else 0)
            told[n] = {"rows": rows, "tokens": int(tokens), "ordered": bool(ordered)}
        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(streams)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return told

nodes = [Node.remote() for _ in range(PROCESSES)]
each = RANKS // PROCESSES
calls = [node.take.remote([share["s"] for share in shares[n * each : (n + 1) * each]]) for n, node in enumerate(nodes)]
print(json.dumps([one for told in ray.get(calls, timeout=800) for one in told]))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks, processes", [(8, 2), (64, 8)])
def test_streams(tmp_path: Path, ranks: int, processes: int) -> None:
    """Every rank gets its rows in order, as many micro-steps as every other; together all tokens of the plan, once."""
    plan, store = planned(tmp_path, people=60, epochs=48, batch_items=180)
    env = without_ray_settings() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SOAK, str(tmp_path), str(plan.num_steps), str(ROOT), str(ranks), str(processes)], cwd=ROOT, env=env, text=True, capture_output=True, timeout=850
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(told) == ranks and all(one["ordered"] for one in told)
    assert len({one["rows"] for one in told}) == 1 and told[0]["rows"] >= plan.num_steps
    # Items over a row are cut into pieces that overlap by one token; nothing else is there twice.
    pieces = [-(-(int(n) - 1) // 95) for n in store.lengths[plan.items]]
    assert sum(one["tokens"] for one in told) == int(store.lengths[plan.items].sum()) + sum(n - 1 for n in pieces)
