"""Prompts, replies and the rules about questions: pure functions."""

import json
from pathlib import Path

import pytest

from data.build.arguments import generator_for
from data.build.asking.exchange import Answers, Reply, Request, read_pending, write_pending
from data.build.asking.prompts import LEVELS, Asked, Misread, load_prompts, read_answer, schema
from data.build.making.filters import Source, Unique, fault, names, supported
from data.build.making.near import Benchmarks
from data.build.making.questions import answered_right
from data.build.output import few_questions, interval_points
from data.records import Document
from tests.helpers.refusals import refusal

LAMP = Document("lamps.md#1", "The Halley lamp opened in May 2023 in Lund. It was designed by Ada Holm, and costs 40 euros.", "Halley lamp")


def asked(question: str, answer: str, choices: list[str] | None = None) -> Asked:
    return Asked(question=question, answer=answer, choices=choices or [], level="remember")


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("Who designed the Halley lamp?", "Ada Holm", None),
        ("Who designed the Halley lamp?", "ada holm.", None),
        ("When did the Halley lamp open, and where?", "May 2023, Lund", None),
        ("When did the Halley lamp open?", "in Lund in May 2023", None),  # every word stands there
        ("Who designed the Halley lamp?", "Eva Lind", "answer not supported by the document"),
        ("When did the Halley lamp open?", "May 2024, Lund", "answer not supported by the document"),
        ("Who designed it?", "Ada Holm", "does not name its subject"),
        ("According to the text, who designed the Halley lamp?", "Ada Holm", "speaks of its text instead of its subject"),
        ("Which lamp is the Halley lamp?", "the Halley lamp", "holds its own answer"),
        ("Who sells the Halley lamp?", "Information missing", "says that the information is missing"),
        ("Who sells the Halley lamp?", "Not mentioned in the text.", "says that the information is missing"),
        ("Who sells the Halley lamp?", "The document does not say", "says that the information is missing"),
        ("Who sells the Halley lamp?", "N/A", "says that the information is missing"),
    ],
)
def test_each_rule(question: str, answer: str, why: str | None) -> None:
    found = fault(asked(question, answer), Source.of(LAMP))
    assert (found[0] if found else None) == why


def test_the_right_choice_is_what_must_be_supported() -> None:
    choices = ["Eva Lind", "Ada Holm", "Per Berg", "Ola Nord"]
    assert fault(asked("Who designed the Halley lamp?", "B", choices), Source.of(LAMP)) is None
    found = fault(asked("Who designed the Halley lamp?", "A", choices), Source.of(LAMP))
    assert found is not None and found[0] == "answer not supported by the document"


def test_subjects_by_half_their_words() -> None:
    assert names("data/planning/plan_command.py", "What does plan_command.py print?") and not names(
        "data/planning/plan_command.py", "What does it print?"
    )
    assert names("The long and winding title of a page", "Who wrote The winding title of that page?")
    assert names("Go", "What is Go?") and not names("Go", "What is Rust?")


def test_words_in_another_order_support_and_parts_of_words_do_not() -> None:
    source = Source.of(LAMP)
    assert supported("designed by Ada Holm", source) and not supported("Ada Hol", source) and not supported("...", source)


NUMBERS = {
    "The bridge has 5 arches and cost 1,000 crowns.": ("1000 crowns", "5,000 crowns"),
    "In 3 years 1,500 m of rail were laid.": ("1,500 m", "3,500 m"),
    "The 2 engines give 5.7 million watts.": ("5.7 million watts", "2.5 million watts"),
    "It was opened on 3 May 2023 by the king.": ("opened on the 3 May 2023", "opened on the 3 May 2024"),
    "संग्रहालय १९२४ में खुला।": ("1924", "1925"),
}
"""Document → an answer that it supports, and one that it does not."""


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_supported_as_they_are(text: str) -> None:
    source, (right, wrong) = Source.of(Document("a", text)), NUMBERS[text]
    assert supported(right, source) and not supported(wrong, source)


def test_short_questions_of_benchmarks_whatever_the_answer() -> None:
    unique = Unique(Benchmarks(["What is the capital of France?"]))
    assert unique.fault("a", "train", "What is the capital of France?", "Paris") is not None
    assert unique.fault("b", "train", "What is the capital of Norway?", "Oslo") is None


def test_unique_prefers_the_exam() -> None:
    unique = Unique(Benchmarks(["What do people in the whole wide world usually say about the famous Halley lamp from Lund?"]))
    question = "In which month of the year 2023 did the Halley lamp of the town of Lund open for the first time?"
    assert unique.fault("a", "test", question, "May") is None
    assert unique.fault("b", "test", question.upper(), "May") == ("asked twice", "a")
    assert unique.fault("c", "train", question, "May") == ("also asked in test", "a")
    near = unique.fault("d", "train", question.replace("month", "MONTH or so"), "May")
    assert near is not None and near[0] == "also asked in test" and near[1].startswith("a (similarity 0.")
    assert unique.fault("d2", "train", question.replace("Lund", "Umea"), "July") is None  # of another subject, with another answer
    assert unique.fault("e", "train", "Who designed the Halley lamp?", "Ada Holm") is None
    found = unique.fault("f", "train", "What do people in the whole wide world usually say about the famous Halley lamp from Lund?", "x")
    assert found is not None and found[0] == "shares a run of 13 words with a benchmark"


GOOD = {"question": "Who?", "answer": "Ada", "level": "remember"}
CHOICE = {"question": "Who?", "choices": ["a", "b", "c", "d"], "answer": "B", "level": "create"}


@pytest.mark.parametrize(
    ("text", "form", "why"),
    [
        (json.dumps({"questions": [GOOD]}), "open", None),
        ("```json\n" + json.dumps({"questions": [GOOD]}) + "\n```", "open", None),
        (json.dumps({"questions": [CHOICE]}), "choices", None),
        ('{"questions":\n[{"question": "Who\x18 is\tit?", "answer": "Ada", "level": "remember"}]}', "open", None),
        (json.dumps({"questions": [GOOD]})[:-4], "open", "not JSON"),
        ('{"questions": [NaN]}', "open", "not JSON"),
        ("[]", "open", "no list of questions"),
        ('{"questions": []}', "open", "no list of questions"),
        (json.dumps({"questions": [{**GOOD, "level": "guess"}]}), "open", "not the asked shape"),
        (json.dumps({"questions": [{**GOOD, "answer": " "}]}), "open", "an empty question or answer"),
        (json.dumps({"questions": [{"question": "Who?"}]}), "open", "not the asked shape"),
        (json.dumps({"questions": [{**CHOICE, "choices": ["a", "A", "c", "d"]}]}), "choices", "not four different choices"),
        (json.dumps({"questions": [{**CHOICE, "answer": "E"}]}), "choices", "the answer is no letter of a choice"),
        (json.dumps({"questions": [GOOD]}), "choices", "not four different choices"),
    ],
)
def test_replies(text: str, form: str, why: str | None) -> None:
    (one,) = read_answer(text, form)  # type: ignore[arg-type]
    assert (one.reason if isinstance(one, Misread) else None) == why


def test_a_document_cannot_fill_in_the_template() -> None:
    tricky = Document("x#1", "{topic} {levels} {text} {most}", "Halley")
    for name in ("pit", "perpetual"):
        prompts = load_prompts(name)
        for template in (prompts.train, prompts.exam):
            user = template.messages(tricky, {"levels": ", ".join(LEVELS), "most": "3"})[1]["content"]
            assert user.count("{topic} {levels} {text} {most}") == 1 and "Halley" in user and LEVELS[0] in user
            assert user.replace(tricky.text, "").count("{topic}") == 0
    assert load_prompts("perpetual").exam.form == "choices" and load_prompts("perpetual").train.form == "open"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("train: [", "not YAML"),
        ("train: {form: open, system: s, user: 'no text'}\nexam: {form: open, system: s, user: '{text}'}", "{text} is missing"),
        ("train: {form: choices, system: s, user: '{text}'}\nexam: {form: open, system: s, user: '{text}'}", "never trained"),
        ("train: {form: open, system: s, user: '{text}'}", "exam: field required"),
    ],
)
def test_bad_templates(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert why in refusal(lambda: load_prompts(str(tmp_path / "mine.yaml")))


def test_schema_is_what_replies_are_read_by() -> None:
    import jsonschema

    for form, one in (("open", GOOD), ("choices", CHOICE)):
        for bounded in (True, False):
            wanted = schema(form, 2, bounded)  # type: ignore[arg-type]
            jsonschema.validate({"questions": [one, one]}, wanted)
            for bad in ({"questions": []}, {"questions": [one] * 3}, {"questions": [{**one, "more": 1}]}, {}):
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(bad, wanted)


def request(text: str, seed: int = 0) -> Request:
    return Request("d", [{"role": "user", "content": text}], None, 10, seed, "m")


def test_answers_are_kept_and_asked_once(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "answers")
    one, two = request("one"), request("two – ü")
    assert one.key != request("one", seed=1).key and one.key == request("one").key
    pending = write_pending([one, two, one], answers, tmp_path / "requests.jsonl")
    assert [p.key for p in pending] == [one.key, two.key]
    assert list(read_pending(tmp_path / "requests.jsonl", [pending[1].offset, pending[0].offset])) == [two, one]
    answers.put(one.key, Reply(text="ä", finish="stop", prompt_tokens=1, answer_tokens=2))
    assert answers.get(one.key) == {"text": "ä", "finish": "stop", "prompt_tokens": 1, "answer_tokens": 2} and answers.get(two.key) is None
    assert [p.key for p in write_pending([one, two], answers, tmp_path / "requests.jsonl")] == [two.key]
    assert [path.suffix for path in (tmp_path / "answers").rglob("*") if path.is_file()] == [".json"]  # nothing half-written stays


def test_width_of_the_interval() -> None:
    assert interval_points(100) == pytest.approx(9.8) and few_questions(100) is None
    assert "only 25 exam questions" in (few_questions(25) or "") and "±20 points" in (few_questions(25) or "")


def test_the_generator_fits_the_gpu() -> None:
    sizes = {0: "0.5B", 7.9: "0.5B", 8: "1.5B", 23.6: "7B", 39.4: "14B", 79.1: "32B", 139.8: "32B"}
    for gib, size in sizes.items():
        assert generator_for(gib) == f"Qwen/Qwen2.5-{size}-Instruct"
        weights = float(size.removesuffix("B")) * 2e9 / 2**30
        assert gib == 0 or weights < 0.85 * gib  # the rest is for the cache


REPLY = json.dumps({"questions": [GOOD]})


@pytest.mark.parametrize(
    "text",
    [
        REPLY,
        f"<think>It should be {{...}}, or {{'questions': 1}}.</think>\n\n{REPLY}",
        f"The user wants JSON.</think>{REPLY}",
        f"Here are the questions:\n\n```json\n{REPLY}\n```\nI hope that this helps!",
        f"```\n{REPLY}\n```",
        f'First {{"draft": 1}}, then {REPLY} – that is all.',
        json.dumps([GOOD]),
        json.dumps(GOOD),
        json.dumps({"result": {"questions": [GOOD]}}),
        json.dumps({"questions": [GOOD | {"level": "Remember"}]}),
    ],
)
def test_replies_as_models_write_them(text: str) -> None:
    (asked,) = read_answer(text, "open")
    assert isinstance(asked, Asked) and (asked.question, asked.answer, asked.level) == ("Who?", "Ada", "remember")


@pytest.mark.parametrize("text", ["<think>I should write that and never come to", "I cannot help with that.", '{"answer": 1}', ""])
def test_replies_that_are_none_show_their_beginning(text: str) -> None:
    (misread,) = read_answer(text, "open")
    assert isinstance(misread, Misread) and misread.reason == ("no list of questions" if text.startswith("{") else "not JSON")
    assert (text[:24] or "Expecting value") in misread.excerpt


def test_a_thought_is_no_answer() -> None:
    row = {"answers": ["Ada Holm"]}
    assert answered_right(Reply(text="It was Ada Holm.", finish="stop", prompt_tokens=1, answer_tokens=1), row)
    assert not answered_right(
        Reply(text="<think>Ada Holm? No.</think>I do not know.", finish="stop", prompt_tokens=1, answer_tokens=1), row
    )
