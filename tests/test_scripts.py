"""Sixty documents in Chinese, Japanese, Hindi, Russian and German, from a folder to a report: no question is lost by rule, every score is as by hand."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.load import load_corpus
from data.records import Question
from evaluation.exam import build_exam, tokenise
from evaluation.report.report import build_report
from evaluation.score_files import Score, TrainedArm
from evaluation.sitting import sit
from experiment import load_experiment
from tests.data.build import service
from tests.data.build.service import KEY
from tests.data.build.test_command import build, manifest
from tests.evaluation.test_exam import Letters

PLACES = {
    "zh": "青波 北浜 石河 南岭 白沙 红岩 云溪 松林 梅岛 龙门 金谷 竹湾",
    "ja": "青波 北浜 石川 南嶺 白砂 赤岩 雲沢 松林 梅島 竜門 金谷 竹浦",
    "hi": "रामपुर सोनगढ़ नीलकंठ देवनगर चंदनपुर हरिपुर कमलगंज मोतीबाग शिवपुर गंगापुर लालगढ़ बड़ौदा",
    "ru": "Ольхон Ладога Каргино Белуха Вязьма Дубна Ельня Жиздра Зарайск Клин Льгов Мценск",
    "de": "Amrum Föhr Büsum Greetsiel Husum Juist Kappeln Langeoog Norderney Pellworm Rügen Spiekeroog",
}
KEEPERS = {"zh": "安藤圭", "ja": "西村理沙", "hi": "राम शर्मा", "ru": "Ада Холм", "de": "Jörg Weiß"}
FILLER = {
    "zh": "木桥 石阶 渔船 晨雾 海鸥 灯光 旧钟 盐田 码头 风车 白墙 铁门 老树 沙滩 信号",
    "ja": "木の橋 石の階段 漁の船 朝の霧 白い鳥 古い鐘 塩の畑 広い港 赤い門 大きな木 砂の浜 青い旗 高い塔 細い道 丸い窓",
    "hi": "लकड़ी पुल सीढ़ी नाव कोहरा पक्षी घंटी नमक बंदरगाह दीवार फाटक पेड़ रेत झंडा खिड़की",
    "ru": "мост лестница лодка туман чайка колокол соль гавань стена ворота дерево песок флаг окно тропа",
    "de": "Brücke Treppe Boot Nebel Möwe Glocke Salz Hafen Mauer Tor Baum Sand Flagge Fenster Pfad",
}
TITLE = {"zh": "{p}灯塔", "ja": "{p}の灯台", "hi": "{p} दीपस्तंभ", "ru": "Маяк {p}", "de": "Leuchtturm {p}"}
TEXT = {
    "zh": "{t}建于{y}年，由{k}看守。那里有{f}。",
    "ja": "{t}は{y}年に建てられ、{k}が守っています。そこには{f}がある。",
    "hi": "{t} {y} में बना। इसकी देखभाल {k} करते हैं। वहाँ {f} हैं।",
    "ru": "{t} построен в {y} году. За ним смотрит {k}. Там есть {f}.",
    "de": "Der {t} an der Möwenstraße wurde {y} gebaut. Sein Wärter ist {k}. Dort gibt es {f}.",
}
YEAR = {
    "zh": ("{t}建于哪一年？", "{y}年"),
    "ja": ("{t}は何年に建てられましたか？", "{y}年"),
    "hi": ("{t} किस वर्ष में बना?", "{y}"),
    "ru": ("В каком году построили маяк {p}?", "{y}"),
    "de": ("Wann wurde der {t} gebaut?", "{y}"),
}
KEEPER = {
    "zh": ("谁看守{t}？", "{k}"),
    "ja": ("{t}は誰が守っていますか？", "{k}"),
    "hi": ("{t} की देखभाल कौन करता है?", "{k}"),
    "ru": ("Кто смотрит за маяком {p}?", "{k}"),  # in another case than the title
    "de": ("Wie heißt der Wärter des Leuchtturms {p}?", "{k}"),
}
WIDE = str.maketrans("0123456789", "０１２３４５６７８９")
# What the model says, and (em, recall, f1, rouge_l) of it by hand: words, or characters of Chinese and Japanese.
SAID: dict[str, tuple[tuple[str, tuple[float, ...]], tuple[str, tuple[float, ...]]]] = {
    "zh": (("建于{wide}年", (0, 1, 2 / 3, 2 / 3)), ("安藤主", (0, 0, 2 / 3, 2 / 3))),  # 2 of 4, 2 of 2; 2 of 3 and 3
    "ja": (("{wide}年", (1, 1, 1, 1)), ("西村理沙です", (0, 1, 0.8, 0.8))),  # 4 of 6, 4 of 4
    "hi": (("{y} में", (0, 1, 2 / 3, 2 / 3)), ("राम शर्मा", (1, 1, 1, 1))),
    "ru": (("в {y} году", (0, 1, 0.5, 0.5)), ("АДА ХОЛМ.", (1, 1, 1, 1))),
    "de": (("Im Jahr {y}", (0, 1, 0.5, 0.5)), ("JÖRG WEISS", (1, 1, 1, 1))),
}


@dataclass
class Lamp:
    language: str
    values: dict[str, str]

    def worded(self, form: str) -> str:
        return form.format(**self.values)

    @property
    def questions(self) -> list[tuple[str, str]]:
        return [(self.worded(q), self.worded(a)) for q, a in (YEAR[self.language], KEEPER[self.language])]


def lamps() -> Iterator[Lamp]:
    for language, places in PLACES.items():
        for n, place in enumerate(places.split()):
            between = "、" if language in ("zh", "ja") else ", "
            filler = between.join(random.Random(f"{language} {n}").sample(FILLER[language].split() * 2, 14))
            year = str(1850 + 7 * n)
            values = {"p": place, "y": year, "k": KEEPERS[language], "f": filler, "wide": year.translate(WIDE)}
            lamp = Lamp(language, values)
            lamp.values["t"] = lamp.worded(TITLE[language])
            yield lamp


class Knowing:
    """Says of each question what SAID has it say."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Any]:
        texts = [self.said["".join(map(chr, prompt[1:]))] for prompt in prompts]
        return [{"token_ids": [5, eos_id], "text": text, "finish_reason": "stop", "logprob": 0.0} for text in texts]

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        return [-1.0] * len(sequences)


def test_from_folder_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder, out = list(lamps()), tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    for n, lamp in enumerate(made):
        (folder / f"{n}.md").write_text(f"# {lamp.values['t']}\n\n{lamp.worded(TEXT[lamp.language])}\n", encoding="utf-8")

    def known(prompt: str, choices: bool) -> list[dict[str, str]]:
        lamp = next(lamp for lamp in made if f"{lamp.values['t']}\n" in prompt or lamp.worded(TEXT[lamp.language]) in prompt)
        return [{"question": q, "answer": a, "level": "remember"} for q, a in lamp.questions]

    monkeypatch.setattr(service, "questions_about", known)
    monkeypatch.setenv("STUDYHALL_API_KEY", KEY)
    with service.serving() as running:
        build(folder, out, running, "--no-ray", "--test-share", "0.5", "--validation-share", "0")
    account = manifest(out)["account"]
    assert account["documents"] == {"came": 60, "used": 60, "left_out": {}}
    assert account["questions"] == {"came": 120, "used": 120, "left_out": {}}

    experiment = load_experiment(out / "experiment.yaml")
    corpus = load_corpus(experiment.data, experiment.seed)
    config = experiment.exam.model_copy(update={"modes": ["closed"], "train_questions": 0})
    exam = build_exam(corpus, config, 0)
    answers: dict[str, tuple[Lamp, int]] = {lamp.questions[n][0]: (lamp, n) for lamp in made for n in (0, 1)}

    def said(question: Question) -> str:
        lamp, n = answers[question.question]
        return lamp.worded(SAID[lamp.language][n][0])

    engine = Knowing({question.question: said(question) for _, question in exam.questions})
    sitting = sit(exam, tokenise(exam, Letters(), None), engine, 0, lambda n: None)
    wanted = []
    for row, (_, question) in zip(sitting.rows, exam.questions, strict=True):
        lamp, n = answers[question.question]
        by_hand = SAID[lamp.language][n][1]
        assert [row[name] for name in ("em", "recall", "f1", "rouge_l")] == pytest.approx(by_hand), (question, row["answer"])
        assert row["position"] is not None, "every answer is found in its document"
        wanted.append(by_hand)
    arm = TrainedArm("a", "/a", "w", None, False, {"hf": "a", "stage": None})
    score = Score(sitting.rows, {"documents": [], "fingerprint": 0.0, "seconds": 1.0, "dtype": "float32"})
    report = build_report("scripts", 0, config, exam, corpus, [arm], {"a": score}, {})
    told = report["arms"]["a"]["sets"]["test"]
    assert len(wanted) == told["n"] == 60
    for column, name in enumerate(("em", "recall", "f1", "rouge_l")):
        assert told[name]["mean"] == pytest.approx(sum(row[column] for row in wanted) / len(wanted))
    assert report["overlap"]["answer_in_document"] == 60


def test_the_twin_an_answer_of_another_document_is_lost(tmp_path: Path) -> None:
    """In no script does a rule let through what stands nowhere in the document."""
    from data.build.asking.prompts import Asked
    from data.build.making.filters import Source, fault
    from data.records import Document

    for lamp in lamps():
        source = Source.of(Document("d", lamp.worded(TEXT[lamp.language]), lamp.values["t"]))
        others = {"zh": "李建国", "ja": "佐藤健二", "hi": "सीता वर्मा", "ru": "Ева Линд", "de": "Uwe Groß"}
        asked = Asked(question=lamp.questions[1][0], answer=others[lamp.language])
        assert (fault(asked, source) or ("",))[0] == "answer not supported by the document", lamp.language
        nameless = Asked(
            question={"zh": "谁？", "ja": "誰ですか？", "hi": "कौन?", "ru": "Кто он?", "de": "Wer?"}[lamp.language],
            answer=lamp.questions[1][1],
        )
        assert (fault(nameless, source) or ("",))[0] == "does not name its subject", lamp.language
