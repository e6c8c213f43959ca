"""What is measured beside the exam: general benchmarks, multiple choice, conversation. One object, so that the door stays short."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console import chatter_to
from data.ground.durable import write_text
from data.records import Corpus
from evaluation import harness
from evaluation.config import ExamConfig
from evaluation.exam import embedder_contents
from evaluation.examining import conversation
from evaluation.examining.retrieval import open_store, store_key
from evaluation.score_files import TrainedArm


class Extras:
    """Raises UserError for settings that cannot be."""

    def __init__(self, arms: Sequence[TrainedArm], corpus: Corpus, config: ExamConfig, folder: Path, seed: int) -> None:
        self._arms, self._corpus, self._config, self._folder, self._seed = arms, corpus, config, folder, seed
        passages = _passages(corpus, config, folder, seed) if config.choices.passages else None
        self._measures = harness.plan_measures(corpus, config, folder, seed, passages)
        self._missing: dict[str, dict[str, str]] = {}
        self._silent: dict[str, str] = {}

    def todo(self) -> bool:
        """Whether anything has no result yet."""
        return bool(self._to_measure() or self._to_ask())

    def run(self, options: Any) -> None:
        """Measures what has no result yet; options: evaluation.engines.options.EngineOptions. Needs a running Ray."""
        if todo := self._to_measure():
            self._missing = harness.measure(self._arms, todo, self._measures, self._config, self._folder, self._seed, options.gpus)
        if unasked := self._to_ask():
            self._silent = conversation.converse(unasked, self._config.conversation, self._config.dtype, self._folder, options)

    def blocks(self) -> dict[str, Any]:
        """For report.json."""
        made = harness.blocks(self._arms, self._measures, self._missing, self._corpus, self._config, self._folder, self._seed)
        talk = conversation.block(self._arms, self._config.conversation, self._config.dtype, self._folder, self._silent)
        return {**made, **({"conversation": talk} if talk else {})}

    def reasons(self) -> dict[str, str]:
        """Of each arm why something is missing that was tried now."""
        tried = {arm: "; ".join(f"{name}: {why}" for name, why in of.items()) for arm, of in self._missing.items()}
        return {**tried, **{arm: f"conversation: {why}" for arm, why in self._silent.items() if arm not in tried}}

    def _to_measure(self) -> dict[str, list[str]]:
        return harness.pending(self._arms, self._measures, self._config, self._folder, self._seed)

    def _to_ask(self) -> list[TrainedArm]:
        return conversation.pending(self._arms, self._config.conversation, self._config.dtype, self._folder)


def _passages(corpus: Corpus, config: ExamConfig, folder: Path, seed: int) -> dict[str, list[str]]:
    """The passages for each multiple-choice question by its id; looked up once, for loading the embedder costs seconds."""
    asked = harness.asked_choices(corpus, config, seed)
    documents = {split: corpus.part(split).documents for split in config.retrieval.splits}
    if not asked or not any(documents.values()):
        return {}
    wanted = [[q.id, q.question] for q in asked]
    facts = [store_key({str(split): of for split, of in documents.items()}, config.retrieval), wanted, config.choices.passages]
    facts += [
        config.retrieval.query_prefix,
        embedder_contents(config.retrieval, folder),
    ]  # of what is asked; the store's key is of what it holds
    path = folder / "benchmarks" / f"passages-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        with chatter_to(folder / "logs" / "exam.log"):
            store = open_store(folder / "retrieval", {str(split): of for split, of in documents.items()}, config.retrieval)
            found = store.find([q.question for q in asked])
        texts = {q.id: [hit.text for hit in hits[: config.choices.passages]] for q, hits in zip(asked, found, strict=True)}
        write_text(path, json.dumps(texts))
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
