"""What a stage held, when the next is built in the same process: python -m benchmarks.stage_memory [--tiny]

Two stages of a tiny Llama, one step each, by the worker's own loop (load, train, save, export), under ZeRO 0 to 3, bf16 with fp32 masters but for ZeRO 0. A weak reference to
every tensor that came with the first engine; counted are those that answer when the second engine is about to be made. The build of 06945e2 beside it.
Goal: none. Writes benchmarks/results/stage_memory.json.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.scale import OLD, ROOT, forget, old_build, ranks

from benchmarks.result_file import write_result_file
from console import say


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stage_memory", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="ZeRO-3 alone; no result is written")
    tiny = parser.parse_args().tiny
    figures: dict[str, dict[str, list[int]]] = {}
    with tempfile.TemporaryDirectory() as place:
        old = None if tiny else old_build(Path(place))
        try:
            for name, build in (("ours", ROOT), (OLD, old)):
                for zero_stage in (3,) if tiny else (0, 1, 2, 3):
                    if build:
                        folder = Path(place) / f"{name}-{zero_stage}"
                        folder.mkdir()
                        found = ranks(build, "stages", folder, 0, 0, 1, zero_stage)[0]
                        figures.setdefault(name, {})[f"zero{zero_stage}"] = [found["alive"], found["held"]]
                        say(f"{name}, ZeRO-{zero_stage}: {found['alive']} of {found['held']} tensors alive")
        finally:
            forget(old)
    alive = max(alive for alive, _ in figures["ours"].values())
    if tiny:
        print({"alive": alive, "of": figures})
    else:
        write_result_file("stage_memory", {"alive": alive, "alive_of_held": figures}, {"alive": "= 0"}, alive == 0)


if __name__ == "__main__":
    main()
