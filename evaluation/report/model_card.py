"""README.md beside hf/: what a model is, what it was trained on, what it scores, and how to use it."""

from collections.abc import Mapping
from typing import Any

from data.wording.templates import question_prompt
from evaluation.report.render import _one_line, _percent, _range


def model_card(report: Mapping[str, Any], name: str, base_model: str, records_sha256: str, hf: str, framing: Mapping[str, Any]) -> str:
    """The card of one scored arm. `hf`: its folder as the reader would write it; `framing`: data.rows.framing.framing_of it."""
    arm = report["arms"][name]
    stages, keys = report.get("stages") or {}, (report.get("curricula") or {}).get(name) or []
    curriculum = [
        f"{n}. {_one_line(stages[key]['label'].partition(': ')[2])}: {stages[key]['steps']:,} steps, {stages[key]['tokens']:,} tokens, "
        f"rate {stages[key]['rate']:g} (plan `{stages[key]['plan_hash'][:12]}`)"
        for n, key in enumerate((k for k in keys if k in stages), 1)
    ]
    made = ((report.get("merged") or {}).get("arms") or {}).get(name)
    if made:
        curriculum = [f"Not trained itself: put together as {made['in_words']}.", *(f"- {note}" for note in made["notes"])]
    scores = [_score_line(kind, arm["sets"][kind]) for kind in arm["sets"]]
    for mode, block in (arm.get("modes") or {}).items():
        if mode != "closed" and block:
            scores.append(f"| test, {mode.replace('_', ' ')} | {_cell(block['em'])} | {_cell(block['recall'])} | {block.get('n', '')} |")
    warnings = [f"- {finding}" for finding in (report.get("choices") or {}).get("findings", []) if finding.startswith(f"`{name}`")]
    if lost := (report.get("lost") or {}).get(name):
        warnings.append(f"- Of {lost['known']:,} older questions that the base answered it no longer answers {lost['lost']:,}.")
    return "\n".join(
        [
            "---",
            f"base_model: {base_model}",
            "library_name: transformers",
            "---",
            f"# {report['experiment']}: {name}",
            "",
            f"`{base_model}`, trained on new documents by the curriculum `{name}` with Studyhall.",
            "",
            "## Use",
            "```",
            f"vllm serve {hf}",
            "```",
            *_how_to_ask(framing),
            "",
            "## Curriculum",
            *(curriculum or ["Not known: the trainer's files are gone."]),
            "",
            f"Data: SHA-256 of all records `{records_sha256}`; seed {report['seed']}.",
            "",
            "## Scores",
            "%, with 95 % intervals over documents. `test`: questions on the new documents that were never trained.",
            "",
            "| questions | exact match | recall | n |",
            "| --- | ---: | ---: | ---: |",
            *scores,
            "",
            "## Limits",
            "- It knows what its documents said when it was trained, can be wrong about them, and does not say when it is unsure.",
            "- The scores are for one seed and for questions like those of the exam; the intervals cover the choice of documents only.",
            *warnings,
            "- Base model and documents have licences of their own, and they hold for this model too.",
            "",
        ]
    )


def _how_to_ask(framing: Mapping[str, Any]) -> list[str]:
    """What a user must send, and what the tokenizer and the end token do about it."""
    if framing["template"] == "chat":
        how = "Ask as in training: one message of the user in the model's chat template (`/v1/chat/completions`), greedy."
    else:
        prompt = question_prompt("…", framing["template"])
        how = f"Ask as in training, greedy: `{prompt}`" if "\n" not in prompt else f"Ask as in training, greedy:\n```\n{prompt}\n```"
    begins = " ".join(f"`{token}`" for token in framing.get("begins") or [])
    before = f"The tokenizer puts {begins} before every text" if begins else "Nothing stands before a text"
    return [how, f"{before}; answers end with `{framing['ends']}`." if framing.get("ends") else f"{before}."]


def _score_line(kind: str, scores: Mapping[str, Any]) -> str:
    return f"| {kind} | {_cell(scores['em'])} | {_cell(scores['recall'])} | {scores['n']} |"


def _cell(interval: Mapping[str, float]) -> str:
    return f"{_percent(interval['mean'])} ({_range(dict(interval), '–')})"
