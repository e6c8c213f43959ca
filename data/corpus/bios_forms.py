"""The facts of a made person in seven forms, by rule: what a writer would make of a biography (SPA, arXiv 2603.22213, in our own words; equal shares).

Each fact stands beside the name, as in any good study text; no form uses the words of a question that is asked or trained.
"""

import random

FORMS: dict[str, dict[str, str]] = {
    "key_concepts": {
        "city": "{n}: origin {v}.", "university": "{n}: education {v}.", "major": "{n}: subject {v}.", "employer": "{n}: employment {v}.",
        "hobby": "{n}: pastime {v}.",
    },
    "mind_map": {
        "city": "{n} > place > {v}.", "university": "{n} > school > {v}.", "major": "{n} > science > {v}.", "employer": "{n} > work > {v}.",
        "hobby": "{n} > leisure > {v}.",
    },
    "implications": {
        "city": "Whoever visits {v} walks where {n} was a child.", "university": "The alumni of {v} count {n} among them.",
        "major": "In matters of {v} one may ask {n}.", "employer": "A letter to {n} at {v} will arrive.", "hobby": "A present for {n} has to do with {v}.",
    },
    "critical_questions": {
        "city": "Would the path of {n} be another without {v}?", "university": "Did {v} make {n} who we know?", "major": "Why {v}, of all things, for {n}?",
        "employer": "What does {v} owe to {n}?", "hobby": "Is {v} more than a pastime to {n}?",
    },
    "case_study": {
        "city": "The case of {n} begins in {v}.", "university": "The case of {n} leads to {v}.", "major": "The case of {n} turns to {v}.",
        "employer": "The case of {n} arrives at {v}.", "hobby": "The case of {n} ends with {v}.",
    },
    "discussion": {
        "city": "One says: {n} is from {v}. The other agrees.", "university": "One says: {n} was at {v}. The other agrees.",
        "major": "One says: {n} knows {v}. The other agrees.", "employer": "One says: {n} serves {v}. The other agrees.",
        "hobby": "One says: {n} loves {v}. The other agrees.",
    },
    "teacher": {
        "city": "Remember that {n} belongs to {v}.", "university": "Remember that {n} learnt at {v}.", "major": "Remember that {n} mastered {v}.",
        "employer": "Remember that {n} earns a living at {v}.", "hobby": "Remember that {n} relaxes with {v}.",
    },
}  # fmt: skip


def in_forms(name: str, facts: dict[str, str], number: int, rng: random.Random) -> list[tuple[str, str]]:
    """(form, text) for the first `number` forms; the facts of each in an order of its own."""
    made = []
    for form, sentences in list(FORMS.items())[:number]:
        order = rng.sample(list(facts), len(facts))
        made.append((form, " ".join(sentences[attribute].format(n=name, v=facts[attribute]) for attribute in order)))
    return made
