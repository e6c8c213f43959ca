"""A new checkpoint's first answer: python -m benchmarks.reload

The same random Llamas of 10 million parameters as benchmarks.exam: weights put into the running engine against an engine built
anew, each until the first answer (8 tokens) is there, in turns. Goal: at least 20 times faster, and the same answers. Writes benchmarks/results/reload.json.
"""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.exam import EOS, make_llama, own_ray, prompts, versions

from benchmarks.result_file import write_result_file

GOAL, ROUNDS = 20.0, 5


def main() -> None:
    from evaluation.engine import Engine
    from evaluation.engines.options import EngineOptions

    asked = prompts()[:1]
    seconds: dict[str, list[float]] = {"reload": [], "new_engine": []}
    same = True
    with own_ray(), tempfile.TemporaryDirectory() as folder, Engine(EngineOptions(timeout_s=600)) as kept:
        paths = [make_llama(Path(folder), seed) for seed in (0, 1)]
        kept.open(paths[1], paths[1], 1024)
        for n in range(ROUNDS):
            path = paths[n % 2]
            start = time.perf_counter()
            kept.open(path, path, 1024)
            ours = kept.answer(asked, 8, EOS)
            middle = time.perf_counter()
            with Engine(EngineOptions(timeout_s=600)) as new:
                new.open(path, path, 1024)
                theirs = new.answer(asked, 8, EOS)
                seconds["new_engine"].append(time.perf_counter() - middle)
            seconds["reload"].append(middle - start)
            same &= ours[0]["token_ids"] == theirs[0]["token_ids"]
    ratio = statistics.median(seconds["new_engine"]) / statistics.median(seconds["reload"])
    figures = {"seconds": {name: [round(s, 3) for s in of] for name, of in seconds.items()}, "same_answers": same}
    goal = {"ratio": f">= {GOAL:g}", "same_answers": True}
    write_result_file("reload", figures, goal, ratio >= GOAL and same, ratio=round(ratio, 1), versions=versions())


if __name__ == "__main__":
    main()
