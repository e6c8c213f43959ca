"""The table of the last `make faults`, printed and put into docs/reliability.md: python -m benchmarks.faults_table"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.result_file import FOLDER

DOC = Path(__file__).parent.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def table(result: dict[str, Any]) -> str:
    """Markdown: id, promise, held, seconds to recover, the commit that was tried."""
    lines = ["| id | promise | tests | held | seconds to recover | run at |", "|---|---|---|---|---|---|"]
    for row in result["figures"]:
        seconds = ", ".join(f"{s:g}" for s in row["recovered_s"]) or "–"
        lines.append(
            f"| {row['id']} | {row['promise']} | {row['tests']} | {'yes' if row['held'] else '**no**'} | {seconds} | {row['commit']} |"
        )
    about = result["environment"]
    whole = len({row["commit"] for row in result["figures"]}) == 1
    took = f" The whole matrix took {about['minutes']} minutes." if whole else ""
    return "\n".join([*lines, "", f"`make faults`, last on {about['date']}, {about['cpus']} cores.{took}"])


def main() -> None:
    text = table(json.loads((FOLDER / "faults.json").read_text()))
    print(text)
    page = DOC.read_text()
    DOC.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{text}\n{END}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
