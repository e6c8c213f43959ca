"""Settings of the data room: where records come from, and what a curriculum is."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data.ground.adapters import Adapter
from data.ground.formats import Format, format_of
from data.ground.strict import Strict
from data.ground.teaching import Anchor, Before, Teach

Split = Literal["train", "test", "replay"]
# What a mixture may name. test_questions is absent on purpose: the exam is never trained on.
Kind = Literal["train_documents", "train_questions", "test_documents", "replay_documents", "replay_questions"]


UnitShare = Annotated[float, Field(ge=0, le=1)]


class Source(Strict):
    """One file of records, or a Hugging Face dataset."""

    path: str
    """Below data.root; for `huggingface` a hub id or a local dataset folder."""
    split: Split
    holds: Literal["documents", "questions", "choices", "both"]
    """What a row is. `both` only for `interleaved` and `wiki_pages`."""
    format: Format = "jsonl"
    """Default: by the path's ending (.jsonl, .ndjson, .json, .csv, .tsv, .xlsx, .parquet; text also with .gz behind), else jsonl. `json`: one list
    [{…}, …], or an object a line; `interleaved`: [{"type": "doc"}, {"type": "qna"}, …]; `wiki_pages`: [{"evidence_text", "qa_pairs"}, …];
    `choices`: [{"question", "choices", "answer": "B"}, …]."""
    columns: dict[str, str] = {}
    """Our field name → the file's column, e.g. {id: wiki_id}."""
    numbers: Literal["refuse", "text"] = "refuse"
    """What a number, a date or true/false is where a text is meant: a bad row, or with `text` the text that it is written as."""
    configuration: str | None = None
    """Of a hub data set: which of its configurations ("subsets"). Of a workbook: which of its sheets."""
    hub_split: str | None = None
    """Of a hub data set or a saved one: which of its splits is read, e.g. `validation`; default: the one that is called like `split`."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """By which a stage's `sources` call it; several sources may have one name. It changes no record."""
    stream: bool = False
    """For corpora larger than memory: documents of train or replay are read in passes and not held (data/corpus/streamed.py)."""

    @model_validator(mode="before")
    @classmethod
    def format_from_ending(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("format") or not isinstance(values.get("path"), str):
            return values
        return {**values, "format": format_of(values["path"]) or "jsonl"}


class Bios(Strict):
    """Synthetic biographies (Physics of Language Models 3.1, arXiv 2309.14316; by default in its hard form:
    one biography a person, sentences permuted, the name in the first sentence only). Beside data.sources: new people to read about."""

    replay_people: Annotated[int, Field(ge=0)] = 400
    """The older population: the base model knows them, documents and QA."""
    train_people: Annotated[int, Field(ge=0)] = 300
    test_people: Annotated[int, Field(ge=1)] = 100
    values: Annotated[int, Field(ge=2, le=20)] = 20
    """Size of each attribute's pool: chance is 1/values."""
    templates: Annotated[int, Field(ge=1, le=4)] = 4
    """Wordings of each attribute in biographies; questions have one."""
    moved: Annotated[int, Field(ge=0)] = 0
    """So many train and so many test people, from the first on, have another city than with 0: a later edition of the same world."""
    copies: Annotated[int, Field(ge=1, le=20)] = 1
    """Biographies of each person, each with its own wording; the questions are linked to the first."""
    forms: Annotated[int, Field(ge=0, le=7)] = 0
    """The facts of each test person also in so many other forms of text (data/corpus/bios_forms.py): what a writer makes of new documents.
    Biographies have the quality 1, forms 0, so that `best_share` of a stage can leave them out."""
    permute: bool = True
    """Each biography has its sentences in an order of its own; else all have one order. People and facts are the same either way."""
    options: Annotated[int, Field(ge=2, le=20)] | None = None
    """Each test question also as multiple choice, with so many options of the same attribute; empty: none."""

    @model_validator(mode="after")
    def can_be_made(self) -> "Bios":
        if self.options and self.options > self.values:
            raise ValueError(f"{self.options} options for a question, but an attribute has {self.values} values")
        if self.forms and self.moved:
            raise ValueError("forms tell the facts that moved would change; give one of the two")
        if self.copies > 1 and self.templates == 1 and not self.permute:
            raise ValueError("copies of one wording in one order would repeat word for word; give templates or permute")
        return self


class DataConfig(Strict):
    root: str | None = None
    """Folder of the sources; often given on the command line: data.root=DIR."""
    sources: list[Source] = []
    bios: Bios | None = None
    """Made data instead of sources; or beside them, then new people alone: what is learnt from the sources, asked about the people."""
    sample: dict[Split, Annotated[int, Field(ge=1)]] = {}
    """So many documents of a split, e.g. {train: 20, test: 10}, and the questions on them: a small size of the same experiment. Chosen by a hash
    of their ids, so fewer are part of more. Questions without a document stay."""
    counts: dict[str, int] = {}
    """Declared size of each kind, e.g. {train_documents: 1720}: checked when data are read (not with `sample`); without data a dry run plans
    from them."""
    tokens_each: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Declared mean tokens of an item of each kind, e.g. {train_documents: 650}: a dry run without data plans batch_tokens from them."""
    bad_rows: Literal["fail", "quarantine"] = "fail"
    """`quarantine` writes refused rows beside the run and goes on."""
    bad_rows_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a source's rows that may be quarantined before it is an error all the same."""
    overlap: Literal["refuse", "drop_from_train", "drop_from_exam", "allow"] = "refuse"
    """What to do with an exam question that also stands in training (same text after normalisation)."""
    drop_answers: list[str] = []
    """Answers that say nothing ("Information missing"): such questions are left out and counted."""
    cut_lines: list[str] = []
    """Lines of an answer that begin so ("Ref:") are cut and counted."""
    wordings: str | None = None
    """A file of other wordings of the questions below data.root, as `python -m data wordings` writes it: for `exam.looks: [wordings]` and a
    stage's `wordings`."""

    @model_validator(mode="after")
    def one_origin(self) -> "DataConfig":
        if not self.sources and not self.bios:
            raise ValueError("give either data.sources or data.bios")
        if self.sample and any(source.stream and source.split in self.sample for source in self.sources):
            raise ValueError("data.sample cannot choose among streamed documents; leave out stream, or the split")
        if self.sources and self.bios:
            if self.bios.train_people or self.bios.replay_people:
                raise ValueError(
                    "give either data.sources or data.bios, or beside sources new people alone: train_people: 0, replay_people: 0"
                )
            if any(source.split == "test" for source in self.sources):
                raise ValueError("data.bios beside data.sources makes the test split; leave out the sources with split: test")
        return self


class Mix(Strict):
    """How often each kind occurs per epoch of a stage."""

    train_documents: Annotated[int, Field(ge=0)] = 0
    train_questions: Annotated[int, Field(ge=0)] = 0
    test_documents: Annotated[int, Field(ge=0)] = 0
    replay_documents: Annotated[int, Field(ge=0)] = 0
    replay_questions: Annotated[int, Field(ge=0)] = 0

    def kinds(self) -> dict[Kind, int]:
        """Only what occurs, in the order above."""
        return {k: n for k, n in self.model_dump().items() if n}  # type: ignore[misc]


class Stage(Strict):
    """A mixture in an order, trained with one optimiser and one schedule.

    A field that is added here with a default leaves every existing plan and stage key as it is (tests/data/curriculum/test_stage_settings.py).
    """

    mix: Mix
    order: Literal[
        "shuffled", "sequential", "questions_first", "documents_first", "questions_grouped", "documents_grouped", "by_level", "spaced"
    ] = "shuffled"
    """`questions_first`: in each epoch the questions of a document just before it ("q d q d");
    `questions_grouped`: of each document first the questions of all epochs, then the document ("q q q d d d");
    `documents_…`: the other way round. All four need questions with a doc_id.
    `by_level`: in each epoch the questions from the lowest level to the highest, then the documents;
    `spaced`: items begin one after another and come back, each gap three times the one before."""
    sample_questions: Annotated[int, Field(ge=0)] = 0
    """So many train questions ride along in every epoch (PIT keeps the QA format alive with 64)."""
    sample_replay_questions: Annotated[int, Field(ge=0)] = 0
    """The same of replay questions."""
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the stage's items (with batch_tokens: of its tokens) that are documents of the replay split, drawn at random, each once
    before any comes again."""
    best_share: dict[Kind, Annotated[float, Field(gt=0, le=1)]] = {}
    """Of these kinds only the best-scored share by the records' `quality`, ties by id; e.g. {train_documents: 0.2}."""
    sources: dict[str, tuple[UnitShare, UnitShare]] = {}
    """Of every step's items, which of data.sources (by `name`; `bios`: made people) how many come from: {news: 0.3, wiki: 0.7}, or from the stage's first
    step to its last {news: [0.1, 0.5], wiki: [0.9, 0.5]}. Each item once before any of its source comes again. Needs steps and batch_items."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the mixture; or give steps."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps instead of epochs: as many passes as that takes, the last one cut."""
    batch_items: Annotated[int, Field(ge=1)] | None = None
    """Items a step, over all ranks; questions that ride along are not counted. Or give batch_tokens."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens a step, over all ranks: a step closes before the item that would exceed it; a longer item stands alone."""
    rate: Annotated[float, Field(gt=0)]
    """Initial learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """`cosine` ends at final_rate_share; `linear` at 0; `wsd` (warm-up, stable, decay) keeps the rate until the last
    decay_share of the steps and falls in a line to final_rate_share."""
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of the stage's steps, for `wsd`."""
    final_rate_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """In a line from 0, in every stage anew: a stage that goes on with a trained model re-warms and re-decays (arXiv 2403.08763)."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The same as a share of the stage's steps."""
    loss: Literal["example", "token"] = "example"
    """Mean per item, then over items (the paper's), or over all target tokens of the step."""
    loss_on: Literal["answers", "everything"] = "answers"
    """Which tokens of a question are learnt: the answer and its end, or the prompt too. Of a document always all."""
    other_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of document tokens that occur in no answer of a train question (`weighted_cpt`: 0.5); the others weigh 1.
    Answers of the exam are never looked at."""
    template: Literal["pit", "alpaca", "chat"] = "pit"
    """Wording of questions; `chat`: the model's own chat template. The exam asks in the wording of the last stage that trained questions."""
    wordings: Annotated[int, Field(ge=1)] = 1
    """Each question in so many wordings: its own and others of data.wordings (made people have eight), drawn anew each time it is trained. As many
    items and steps as with one."""
    prefix: Literal["none", "title", "url"] = "none"
    """A line before each document that has one; it is read, not learnt."""
    input_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each document's input tokens that are replaced by random ones; the targets stay (arXiv 2402.12170: 0.2)."""
    sentence_shuffle: bool = False
    """The sentences of a document stand in another order each time it is trained."""
    passages: Before | None = None
    """What stands before its questions, by share: `{document: 0.4, distracting: 0.1}`."""
    freeze_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each block's matrices and norms that stays as it is (half fine-tuning, arXiv 2404.18466: 0.5); trainer/step/freeze.py."""
    freeze_round: Annotated[int, Field(ge=0)] | None = None
    """Two stages of one round freeze the same; empty: the stage's number in its arm, so that each stage is a round."""
    adapter: Adapter | None = None
    """Train LoRA or another adapter of peft instead of the weights, and merge it when the stage ends; `full`: all weights, whatever the arm
    or trainer.adapter say (data/ground/adapters.py)."""
    teach: Teach | None = None
    """Train questions, or documents, by what a teacher with their document in view would say."""
    anchor: Anchor | None = None
    """Hold replay items to what the stage's start says to them."""

    @model_validator(mode="before")
    @classmethod
    def open_share_is_a_share_of_passages(cls, values: Any) -> Any:
        """As stages of earlier builds have it in their manifests, and files of their time."""
        if not isinstance(values, dict) or "open_share" not in values or values.get("passages"):
            return values
        found = {name: value for name, value in values.items() if name != "open_share"}
        return {**found, "passages": {"document": values["open_share"]}} if values["open_share"] else found

    @field_validator("sources", mode="before")
    @classmethod
    def one_share_is_the_same_throughout(cls, values: Any) -> Any:
        return (
            {name: [share, share] if isinstance(share, int | float) else share for name, share in values.items()}
            if isinstance(values, dict)
            else values
        )

    @model_validator(mode="after")
    def makes_sense(self) -> "Stage":
        if not self.mix.kinds():
            raise ValueError(
                "a stage must mix at least one of train_documents, train_questions, test_documents, replay_documents, replay_questions"
            )
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if (self.batch_items is None) == (self.batch_tokens is None):
            raise ValueError("give either batch_items or batch_tokens")
        if self.warmup_steps and self.warmup_share:
            raise ValueError("give either warmup_steps or warmup_share")
        if self.adapter and not self.adapter.trains_all and (why := self.refused_beside_adapter()):
            raise ValueError(why)
        if self.steps and self.order in ("questions_grouped", "documents_grouped", "spaced"):
            raise ValueError(f"order {self.order} lays out all repeats of an item over the stage, so it needs epochs, not steps")
        if self.sources:
            self._check_sources()
        self._refuse_without_effect()
        return self

    def _check_sources(self) -> None:
        for end, place in enumerate(("first", "last")):
            if abs(sum(shares[end] for shares in self.sources.values()) - 1) > 1e-6:
                raise ValueError(f"sources: the shares of the {place} step must be 1 together")
        if not (self.steps and self.batch_items) or self.order != "shuffled":
            raise ValueError("sources goes by the items of a step, so it needs steps, batch_items and order: shuffled")
        elsewhere = self.sample_questions or self.sample_replay_questions or self.replay_share
        if elsewhere or any(times != 1 for times in self.mix.kinds().values()):
            raise ValueError(
                "sources says how often items come: leave out sample_questions, sample_replay_questions and replay_share, and mix each kind once"
            )

    def trains_questions(self) -> bool:
        return bool(self.sample_questions or self.sample_replay_questions) or any(kind.endswith("questions") for kind in self.mix.kinds())

    def idle_fields(self) -> dict[str, str]:
        """Fields that act on nothing in this stage's mix → on what they would."""
        documents = bool(self.replay_share) or any(kind.endswith("documents") for kind in self.mix.kinds())
        idle = {} if documents else dict.fromkeys(("other_weight", "prefix", "input_noise", "sentence_shuffle"), "documents")
        return idle | ({} if self.trains_questions() else dict.fromkeys(("template", "loss_on", "wordings", "passages"), "questions"))

    def _refuse_without_effect(self) -> None:
        for name, what in self.idle_fields().items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} acts on {what}, and the stage mixes none")
        if self.replay_share and self.mix.replay_documents:
            raise ValueError("replay_share draws replay documents, and the mix holds all of them already; give one of the two")
        if idle := [kind for kind in self.best_share if kind not in self.mix.kinds()]:
            raise ValueError(f"best_share cuts {idle[0]}, and the stage mixes none")
        if self.freeze_round is not None and not self.freeze_share:
            raise ValueError("freeze_round chooses what freeze_share freezes, and that is nothing")
        if self.order == "by_level" and not any(kind.endswith("questions") for kind in self.mix.kinds()):
            raise ValueError("order by_level needs questions in the mix")
        if self.passages and self.loss_on == "everything":
            raise ValueError("passages puts texts before questions, which loss_on: everything would learn with them; give one of the two")
        if self.passages and self.anchor and not (self.sample_questions or self.mix.train_questions):
            raise ValueError(
                "passages stands before questions, and the replay questions that an anchor holds stand alone; mix train questions"
            )
        if self.teach and self.teach.answers == "own":
            for name in ("loss", "loss_on", "passages"):
                if getattr(self, name) != (usual := type(self).model_fields[name].default):
                    raise ValueError(
                        f"teach.answers: own goes with {name}: {usual or 'none'} alone; how long answers are is not known when rows are planned"
                    )
        self._refuse_idle_teachers()

    def _refuse_idle_teachers(self) -> None:
        if self.teach and not self.taught_kinds():
            what = {"questions": "train questions", "documents": "train or test documents", "everything": "train questions and documents"}
            raise ValueError(f"teach acts on {what[self.teach.on]}, and the stage mixes none")
        if self.anchor and not self.anchored_kinds():
            raise ValueError(
                "anchor acts on replay items, and the stage mixes none; give replay_share, sample_replay_questions or a mix of them"
            )
        if any(kind.endswith("documents") for kind in (*self.taught_kinds(), *self.anchored_kinds())):
            for name in ("input_noise", "sentence_shuffle"):
                if getattr(self, name):
                    raise ValueError(f"{name} reads a document otherwise each time, and a teacher has read it once; give one of the two")

    def refused_beside_adapter(self) -> str | None:
        """What of the stage acts on weights that an adapter leaves where they are; None: nothing."""
        acts = "freeze_share" if self.freeze_share else "anchor.ewc" if self.anchor and self.anchor.ewc else None
        return acts and f"{acts}: an adapter freezes all of the model's own weights; give one of the two"

    def rounds(self) -> "list[Stage]":
        """The stage as often as `teach.rounds` says, each time one round."""
        if not self.teach or self.teach.rounds == 1:
            return [self]
        return [self.model_copy(update={"teach": self.teach.model_copy(update={"rounds": 1})})] * self.teach.rounds

    def taught_kinds(self) -> list[Kind]:
        """Kinds of the stage whose items `teach` acts on."""
        if self.teach is None:
            return []
        taught: list[Kind] = [] if self.teach.on == "documents" else ["train_questions"]
        taught += [] if self.teach.on == "questions" else ["train_documents", "test_documents"]
        return [kind for kind in taught if kind in self.mix.kinds() or (kind == "train_questions" and self.sample_questions)]

    def anchored_kinds(self) -> list[Kind]:
        """Kinds of the stage whose items `anchor` acts on."""
        replayed: dict[Kind, bool] = {
            "replay_documents": bool(self.replay_share or self.mix.replay_documents),
            "replay_questions": bool(self.sample_replay_questions or self.mix.replay_questions),
        }
        return [kind for kind, there in replayed.items() if there and self.anchor]
