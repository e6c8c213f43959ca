"""The exam: which questions and documents are asked, and in which tokens; evaluation/sitting.py asks them.

All test questions, alone and in the other modes of evaluation/asking/prompts.py; a sample of train questions (memorised?), of replay
questions and of a retention file (forgotten?); the loss of test documents (read?). Greedy decoding, the same for every arm and
mode, in the wording that the arm was trained in (PIT, arXiv 2402.12847, §2.3). An answer ends where the model ends it or with its first line.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from console import UserError
from data.ground.contents import MEMORY, contents
from data.ground.words import holds, normalise
from data.records import Corpus, Document, Question
from data.wording.templates import document_text, question_prompt, question_text
from evaluation.asking.choices import open_questions
from evaluation.asking.prompts import Found, Look, Prompt, Reading, Tokens, make_looks, make_prompt
from evaluation.config import ExamConfig, RetrievalConfig
from evaluation.scoring.scores import Numbers, exact_match

SetName = Literal["test", "train", "replay", "retention", "wordings"]
SETS: tuple[SetName, ...] = ("test", "train", "replay", "retention", "wordings")
DEPTHS = (1, 3, 5, 10)

DOCUMENT_WINDOW = 4096
"""Longest context of a document's loss; longer documents are scored in windows, each token once."""

T = TypeVar("T", Document, Question)


@dataclass(frozen=True)
class Exam:
    questions: list[tuple[SetName, Question]]
    documents: list[Document]
    answer_tokens: int
    dtype: str
    modes: tuple[str, ...] = ("closed",)
    """In which the test questions are asked; `closed` all others too."""
    exemplars: tuple[Question, ...] = ()
    sources: Mapping[str, Document] = field(default_factory=dict)
    """The test documents by id."""
    side_effects: tuple[tuple[Question, Question], ...] = ()
    """(a question from elsewhere, a test question whose answer has nothing to do with it)."""
    retrieval: str = ""
    """Names the knowledge base and how it is searched."""
    k: int = 3
    long_context: Literal["cut", "refuse"] = "cut"
    numbers: Numbers = "squad"
    reading: Reading | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """exam.test_questions and its kin; in the fingerprint is what was chosen."""

    def fingerprint(self, template: str = "pit") -> str:
        """A hash of everything that decides what is asked and how; `template`: the wording that the arm was trained in."""
        asked = [[name, q.id, q.doc_id, question_prompt(q.question), q.answers] for name, q in self.questions]
        read = [[d.id, document_text(d)] for d in self.documents]
        facts: list[Any] = [asked, read, self.answer_tokens, self.dtype, DOCUMENT_WINDOW]
        others = [mode for mode in self.modes if mode != "closed"]
        if others or self.side_effects:
            sources = [[d.id, document_text(d)] for d in self.sources.values()] if {"open", "conflict"} & set(others) else []
            solved = [question_text(q) for q in self.exemplars] if "few_shot" in others else []
            base = [self.retrieval, self.k] if self.needs_retrieval() else []
            pairs = [[a.id, b.id] for a, b in self.side_effects]
            facts.append([others, sources, solved, base, pairs, self.long_context])
        if template != "pit":
            facts.append(f"{template}, asked to the end of its line" if template == "alpaca" else template)
        if self.reading and {"open", "conflict", "retrieval"} & {mode.partition("_")[0] for mode in others}:
            facts.append({"reading": [self.reading.lead, [[text, question_text(q)] for text, q in self.reading.solved]]})
        if self.numbers != "squad":
            facts.append({"numbers": self.numbers})
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What scores have in common that are taken together: `asked` within a run, all else over seeds as well."""
        alone = replace(self.closed(), documents=[]).fingerprint()
        return {"asked": alone, "answer_tokens": self.answer_tokens, "numbers": self.numbers, **self.limits}

    def needs_retrieval(self) -> bool:
        return any(mode.startswith("retrieval") for mode in self.modes)

    def closed(self) -> "Exam":
        """The same questions without any help, in their own words: for stages within an arm."""
        questions: list[tuple[SetName, Question]] = [(name, question) for name, question in self.questions if name != "wordings"]
        return replace(self, questions=questions, modes=("closed",), side_effects=())

    def __len__(self) -> int:
        """Steps of a progress bar; a question that a mode leaves out still counts."""
        test = sum(name == "test" for name, _ in self.questions)
        return len(self.questions) + test * (len(self.modes) - 1) + len(self.documents)


def build_exam(
    corpus: Corpus,
    config: ExamConfig,
    seed: int,
    modes: Sequence[str] = ("closed",),
    retention: Sequence[Question] = (),
    run_folder: Path | None = None,
) -> Exam:
    """Chooses what is asked, the test questions in these modes. Raises UserError where there is nothing to ask.

    `run_folder`: where the contents of an embedder's folder are remembered (data/ground/contents.py).
    """
    test = corpus.part("test")
    if test.choices and not test.questions:  # multiple choice alone: the same questions are asked openly as well
        test = replace(test, questions=open_questions(test.choices))
    if not test.questions:
        raise UserError("the data hold no test questions, so there is no exam; give a source with split: test and holds: questions")
    train = corpus.part("train").questions
    if "few_shot" in modes and not train:
        modes = [mode for mode in modes if mode != "few_shot"]  # nothing to show
    chosen: dict[SetName, list[Question]] = {
        "test": sample(test.questions, config.test_questions, seed),
        "train": sample(train, config.train_questions, seed),
        "replay": sample(corpus.part("replay").questions, config.replay_questions, seed),
        "retention": sample(retention, config.retention_questions, seed),
    }
    chosen["wordings"] = in_other_words(chosen["test"]) if "wordings" in config.looks else []
    if "wordings" in config.looks and not chosen["wordings"]:
        raise UserError("exam.looks: wordings: no test question has another wording; write some with python -m data wordings --split test")
    if "depths" in config.looks and "retrieval" in modes:
        modes = [*modes, *(f"retrieval_{depth}" for depth in DEPTHS if depth != config.retrieval.k)]
    return Exam(
        [(name, question) for name in SETS for question in chosen[name]],
        sample(test.documents, config.documents, seed),
        config.answer_tokens,
        config.dtype,
        tuple(dict.fromkeys(modes)),
        tuple(sample(train, config.few_shot, seed)),
        {document.id: document for document in test.documents},
        _unrelated(corpus, chosen["test"], seed) if "side_effects" in config.looks else (),
        _knowledge_base(corpus, config, run_folder),
        config.retrieval.k,
        config.long_context,
        config.numbers,
        Reading(config.reading.lead, _solved_readings(corpus, config.reading.shots, seed)),
        config.model_dump(include={"test_questions", "train_questions", "replay_questions"}),
    )


def _solved_readings(corpus: Corpus, count: int, seed: int) -> tuple[tuple[str, Question], ...]:
    """Train questions whose answer stands in their document, of as many documents."""
    texts = {document.id: document_text(document) for document in corpus.part("train").documents}
    if count and corpus.part("train").streamed is not None:
        raise UserError(
            "exam.reading.shots: the train documents are streamed, so none can be shown; set it to 0, or take stream out of their source"
        )
    shown: dict[str, Question] = {}
    for question in corpus.part("train").questions if count else []:
        text = texts.get(question.doc_id or "")
        if text is not None and holds(normalise(text), normalise(question.answers[0])):
            shown.setdefault(question.doc_id or "", question)
    return tuple((texts[question.doc_id or ""], question) for question in sample(list(shown.values()), count, seed + 3))


def in_other_words(questions: Sequence[Question]) -> list[Question]:
    """Each question once in every other wording, under its own id: the n-th row of an id is its n-th wording."""
    return [replace(question, question=wording, wordings=()) for question in questions for wording in question.wordings]


def _unrelated(corpus: Corpus, test: list[Question], seed: int) -> tuple[tuple[Question, Question], ...]:
    """Each test question's answer beside a question of another population (replay, else train) that it does not answer."""
    elsewhere = corpus.part("replay").questions or corpus.part("train").questions
    drawn = sample(elsewhere, len(test), seed + 2)
    return tuple((a, b) for a, b in zip(drawn, test, strict=False) if not exact_match(b.answers[0], a.answers))


def embedder_contents(config: RetrievalConfig, run_folder: Path | None) -> str | None:
    """What is in the embedder's folder, wherever it lies; None for a name of the hub or the packaged one, which stand for their contents."""
    folder = Path(config.embedder)
    if not folder.is_dir():
        return None
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    hashes = contents(files, run_folder / MEMORY if run_folder else None)
    told = [[str(file.relative_to(folder)), digest] for file, digest in zip(files, hashes, strict=True)]
    return f"contents:{hashlib.sha256(json.dumps(told).encode()).hexdigest()}"


def _knowledge_base(corpus: Corpus, config: ExamConfig, run_folder: Path | None) -> str:
    """What decides which passages are found for a question."""
    embedder = embedder_contents(config.retrieval, run_folder) or config.retrieval.embedder
    settings = {**config.retrieval.model_dump(), "k": None, "embedder": embedder}  # ten are looked up, whatever k
    if config.retrieval.passage_tokens is None:
        del settings["passage_tokens"]
    texts = [[split, d.id, d.title, document_text(d)] for split in config.retrieval.splits for d in corpus.part(split).documents]
    return hashlib.sha256(json.dumps([settings, texts]).encode()).hexdigest()


def sample(records: Sequence[T], count: int | None, seed: int) -> list[T]:
    """`count` records (None: all) in their own order.

    Chosen by a hash of seed and id: a smaller sample is part of a larger one, and a new record displaces one at most.
    """
    if count is None or count >= len(records):
        return list(records)
    ranked = sorted(range(len(records)), key=lambda i: hashlib.sha256(f"{seed}:{records[i].id}".encode()).digest())
    return [records[i] for i in sorted(ranked[:count])]


@dataclass(frozen=True)
class Paper:
    """The exam in one checkpoint's tokens."""

    looks: list[Look]
    prompts: list[Prompt]
    """One for each look."""
    texts: list[str]
    """The questions as they are worded, for people."""
    golds: list[list[int]]
    """The gold answer's tokens of each look; empty where its probability is not asked for, or does not fit."""
    side_effects: list[tuple[str, list[int], int]]
    """Of each pair the test question's document or id, the sequence, and where the answer begins."""
    windows: list[list[list[int]]]
    """Of each document."""
    max_model_len: int
    short: int | None = None
    """evaluation.engines.network.Network.short: what is asked of one engine and what of another."""


def tokenise(
    exam: Exam, tokens: Tokens, positions: int | None, found: Mapping[str, Sequence[Found]] | None = None, short: int | None = None
) -> Paper:
    """Prompts and document windows that fit a model with this many positions (None: no limit); `found`: passages by question id.

    Raises UserError for a prompt that leaves no room for an answer.
    """
    others = [mode for mode in exam.modes if mode != "closed"]
    looks = make_looks(exam.questions, others, exam.exemplars, exam.sources, found or {}, exam.k, exam.reading)
    room = None if positions is None else positions - exam.answer_tokens
    prompts = [make_prompt(look, tokens, room, exam.long_context) for look in looks]
    limit = min(DOCUMENT_WINDOW, (positions or DOCUMENT_WINDOW + 1) - 1)  # vLLM always decodes one token more
    windows = [split_windows(tokens.document(document), limit) for document in exam.documents]

    def fits(ids: list[int]) -> bool:
        return positions is None or len(ids) < positions

    golds = [tokens.gold(look.question) if look.set == "test" else [] for look in looks]
    golds = [gold if fits(prompt.ids + gold) else [] for prompt, gold in zip(prompts, golds, strict=True)]
    beside = [(b.doc_id or b.id, tokens.prompt(a.question), tokens.gold(b)) for a, b in exam.side_effects]
    side_effects = [(owner, prompt + gold, len(prompt)) for owner, prompt, gold in beside if fits(prompt + gold)]
    sequences = [
        *(p.ids + g for p, g in zip(prompts, golds, strict=True)),
        *(s for _, s, _ in side_effects),
        *(w for d in windows for w in d),
    ]
    answered = max(len(prompt.ids) for prompt in prompts) + exam.answer_tokens
    longest = max(map(len, sequences)) + 1
    texts = [tokens.prompt_text(look.question.question) for look in looks]
    return Paper(looks, prompts, texts, golds, side_effects, windows, max(answered, longest, min(64, positions or 64)), short)


def split_windows(ids: list[int], limit: int) -> list[list[int]]:
    """Windows of at most `limit` ≥ 2 tokens that share one token with the one before: every token but the first is scored once."""
    return [ids[start : start + limit] for start in range(0, len(ids) - 1, limit - 1)]
