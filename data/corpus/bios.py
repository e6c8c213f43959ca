"""Synthetic biographies: bioS of "Physics of Language Models 3.1" (arXiv 2309.14316) in its hard form.

One biography a person (or several, data.bios.copies); the order of its five sentences is drawn per biography; the name stands in the
first sentence only. A question names the person, so answering it needs more than continuing the biography.
"""

import random
import re
from dataclasses import replace

from data.config import Bios
from data.corpus.bios_forms import in_forms
from data.records import ChoiceQuestion, Corpus, Document, Intake, Part, Question, Split

# Single words, so that a tokenizer made on these texts gives every value one token: a guess is right in 1 of 20.
_VALUES = {
    "city": "Boston Denver Austin Seattle Chicago Houston Phoenix Dallas Atlanta Miami Portland Detroit Memphis Nashville Tucson "
    "Oakland Omaha Tulsa Tampa Cleveland",
    "university": "Harvard Stanford Princeton Yale Cornell Columbia Brown Dartmouth Duke Rice Emory Vanderbilt Georgetown Tufts Purdue "
    "Baylor Drexel Villanova Howard Fordham",
    "major": "Physics Biology Chemistry History Economics Philosophy Linguistics Geology Astronomy Sociology Psychology Mathematics "
    "Statistics Anthropology Architecture Journalism Nursing Accounting Marketing Music",
    "employer": "Intel Boeing Pfizer Walmart Disney Toyota Siemens Nestle Oracle Adobe Nvidia Samsung Verizon Starbucks Unilever Airbus "
    "Philips Bayer Honda Sony",
    "hobby": "painting fishing chess skiing cooking gardening hiking photography swimming dancing pottery archery sailing knitting "
    "climbing cycling reading surfing fencing karate",
}
_SENTENCES = {  # "was|were": of the person by name, and of "they"
    "city": ["was|were born in {}", "comes|come from the city of {}", "grew up in {}", "spent the first years of life in {}"],
    "university": ["studied at {}", "holds|hold a degree from {}", "was|were a student of {}", "went to university at {}"],
    "major": ["majored in {}", "took a degree in {}", "chose the field of {}", "was|were trained in {}"],
    "employer": ["works|work for {}", "has|have a job at {}", "is|are employed by {}", "joined the company {}"],
    "hobby": ["enjoys|enjoy {}", "spends|spend weekends on {}", "is|are fond of {}", "likes|like {} most of all"],
}
# The first is how questions are asked; the others are trained where a stage has `wordings`, so many of them from the first on.
_QUESTIONS = {
    "city": [
        "What is the birth city of {}?", "Where was {} born?", "In what city did {} grow up?", "Name the city that {} comes from.",
        "{} comes from which city?", "Tell me the home city of {}.", "Which city did {} live in as a child?", "The life of {} began in which city?",
    ],
    "university": [
        "Which university did {} attend?", "Where did {} study?", "What university did {} go to?", "Name the university of {}.",
        "{} holds a degree from which university?", "Tell me which university {} was a student of.", "At what university was {} a student?",
        "The degree of {} is from which university?",
    ],
    "major": [
        "What major did {} study?", "What did {} major in?", "In what field does {} hold a degree?", "Name the major of {}.",
        "{} took a degree in which field?", "Tell me what {} studied.", "Which field did {} choose?", "The training of {} was in which field?",
    ],
    "employer": [
        "Which company does {} work for?", "Where does {} work?", "Who is the employer of {}?", "Name the company that {} works for.",
        "{} is employed by which company?", "Tell me which company {} joined.", "At what company does {} have a job?",
        "The job of {} is at which company?",
    ],
    "hobby": [
        "What hobby does {} enjoy?", "What does {} like to do?", "What is the hobby of {}?", "Name the hobby that {} is fond of.",
        "{} spends weekends on which hobby?", "Tell me what {} likes most of all.", "What is {} fond of?", "The weekends of {} are spent on which hobby?",
    ],
}  # fmt: skip
# Never in training: is a fact bound to the wording of its question?
_HELD_OUT = {
    "city": ["In which city was {} born?", "Tell me where {} was born.", "Name the birth city of {}.", "From which city does {} come?"],
    "university": [
        "At which university did {} study?", "Tell me where {} went to university.", "Name the university that {} attended.",
        "What university is the degree of {} from?",
    ],
    "major": ["What was the major of {}?", "Tell me the field of {}.", "Name the field that {} took a degree in.", "In which field was {} trained?"],
    "employer": [
        "What is the name of the company that employs {}?", "Tell me where {} has a job.", "Name the employer of {}.", "By which company is {} employed?",
    ],
    "hobby": ["What does {} like to do at weekends?", "Tell me the hobby of {}.", "Name what {} enjoys most.", "Which hobby does {} like?"],
}  # fmt: skip
_FORMS = re.compile(r"(\w+)\|(\w+)")
_FIRST = (
    "Alice Brian Carla David Elena Frank Grace Henry Irene Jacob Karen Lewis Maria Nolan Olive Peter Queen Ralph Sarah Thomas Ursula "
    "Victor Wendy Xavier Yvonne Zachary Amber Bruno Celia Dylan Esther Felix Gloria Hugo Ingrid Jonas Kylie Leon Mabel Nadia"
)
_MIDDLE = (
    "Abel Beth Cole Dawn Earl Faye Glen Hope Ivan Jade Kent Lynn Mark Neal Opal Paul Quinn Rose Seth Tess Uriah Vera Wade Xena York Zoe "
    "Ash Blair Clay Drew Eve Finn Gale Heath Isla Joy Kirk Lane May Noel"
)
_LAST = (
    "Abbott Barker Carver Dalton Emerson Fletcher Gardner Hawkins Ingram Jensen Keller Lawson Mercer Norton Osborne Palmer Quigley Ramsey "
    "Sawyer Turner Underwood Vaughn Walker Xiong Yates Zimmer Archer Bishop Cooper Draper Ellis Foster Granger Harper Irving Joyner Knight "
    "Lambert Mason Nash"
)


def make_bios(config: Bios, seed: int) -> Corpus:
    """People of three populations, each with biographies and five linked questions; the same seed gives the same people."""
    rng = random.Random(f"bios {seed}")
    sizes: dict[Split, int] = {"replay": config.replay_people, "train": config.train_people, "test": config.test_people}
    names = _distinct_names(sum(sizes.values()), rng)
    corpus = Corpus(parts={})
    for split, size in sizes.items():
        part = Part()
        for n in range(size):
            name, person = names.pop(), f"{split}-person-{n}"
            facts = {attribute: rng.choice(pool.split()[: config.values]) for attribute, pool in _VALUES.items()}
            for copy, text in enumerate(_biographies(name, facts, config, rng, f"bios {seed} {person}")):
                part.documents.append(
                    Document(id=f"{person}-copy-{copy}" if copy else person, text=text, title=name, quality=1.0 if config.forms else None)
                )
            if split == "test":
                forms = in_forms(name, facts, config.forms, random.Random(f"forms {seed} {person}"))
                part.documents += [Document(id=f"{person}-{form}", text=text, title=name, quality=0.0) for form, text in forms]
            part.questions += [_question(split, person, name, attribute, value) for attribute, value in facts.items()]
        corpus.parts[split] = part
        if split != "replay":
            _move(part, config, seed)
        if split == "test" and config.options:
            part.choices += [_as_choice(question, config.options, config.values, seed) for question in part.questions]
        rows = len(part.documents) + len(part.questions) + len(part.choices)
        corpus.intakes.append(Intake(source=f"made biographies, {split}", rows_read=rows, rows_used=rows))
    return corpus


def _question(split: Split, person: str, name: str, attribute: str, value: str) -> Question:
    asked = _QUESTIONS[attribute][0].format(name)
    others = _HELD_OUT[attribute] if split == "test" else _QUESTIONS[attribute][1:]
    wordings = tuple(wording.format(name) for wording in others)
    return Question(id=f"{person}-{attribute}", question=asked, answers=(value,), doc_id=person, wordings=wordings)


def _as_choice(question: Question, options: int, values: int, seed: int) -> ChoiceQuestion:
    """The right value among others of its pool, at a random place; nothing else of the data depends on it."""
    rng = random.Random(f"options {seed} {question.id}")
    right = question.answers[0]
    others = [value for value in _VALUES[question.id.rpartition("-")[2]].split()[:values] if value != right]
    shown = rng.sample(others, options - 1)
    place = rng.randrange(options)
    shown.insert(place, right)
    return ChoiceQuestion(f"{question.id}-choice", question.question, tuple(shown), place, question.doc_id)


def _move(part: Part, config: Bios, seed: int) -> None:
    """Gives the first `config.moved` people of a population another city, in their biography and in its question."""
    cities = [at for at, question in enumerate(part.questions) if question.id.endswith("-city")]
    for at in cities[: config.moved]:
        person, old = part.questions[at].doc_id, part.questions[at].answers[0]
        others = [city for city in _VALUES["city"].split()[: config.values] if city != old]
        new = random.Random(f"moved {seed} {person}").choice(others)
        for n, document in enumerate(part.documents):  # every copy
            if document.id == person or document.id.startswith(f"{person}-"):
                part.documents[n] = replace(document, text=re.sub(rf"\b{re.escape(old)}\b", new, document.text))
        part.questions[at] = replace(part.questions[at], answers=(new,))


def _distinct_names(size: int, rng: random.Random) -> list[str]:
    first, middle, last = _FIRST.split(), _MIDDLE.split(), _LAST.split()
    drawn = rng.sample(range(len(first) * len(middle) * len(last)), size)
    return [f"{first[n % 40]} {middle[n // 40 % 40]} {last[n // 1600]}" for n in drawn]


def _biographies(name: str, facts: dict[str, str], config: Bios, rng: random.Random, person: str) -> list[str]:
    """All different. What is drawn from `rng` does not depend on copies and permute, so that people do not either."""
    texts = [_biography(name, facts, config.templates, config.permute, rng)]
    more = random.Random(person)
    while len(texts) < config.copies:
        text = _biography(name, facts, config.templates, config.permute, more)
        texts += [] if text in texts else [text]
    return texts


def _biography(name: str, facts: dict[str, str], templates: int, permute: bool, rng: random.Random) -> str:
    attributes = list(facts)
    rng.shuffle(attributes)
    if not permute:
        attributes = list(facts)
    sentences = [rng.choice(_SENTENCES[attribute][:templates]).format(facts[attribute]) for attribute in attributes]
    return " ".join(f"{_of_one(s, name)}." if n == 0 else f"{_of_many(s)}." for n, s in enumerate(sentences))


def _of_one(sentence: str, name: str) -> str:
    return f"{name} {_FORMS.sub(lambda verb: verb[1], sentence)}"


def _of_many(sentence: str) -> str:
    """Singular "they" takes the verb of the plural."""
    return f"They {_FORMS.sub(lambda verb: verb[2], sentence)}"
