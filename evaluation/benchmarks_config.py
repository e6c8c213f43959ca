"""Settings of what lm-evaluation-harness measures, of multiple choice, of conversation, and of trackers."""

from typing import Annotated, Literal

from pydantic import Field

from data.ground.strict import Strict


class BenchmarksConfig(Strict):
    """General benchmarks before and after (forgetting), by lm-evaluation-harness; its engine and time limit serve multiple choice too."""

    tasks: list[str] = []
    """Names that lm-eval knows, e.g. [ifeval, mmlu, mmlu_pro, gsm8k, winogrande, hellaswag, arc_easy, piqa, truthfulqa_mc2]; empty: none."""
    shots: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Solved examples before each question; else 5 for mmlu, mmlu_pro and gsm8k (arXiv 2410.10739), and the task's own number."""
    tasks_folder: str | None = None
    """Folder of further task files (YAML), e.g. with data sets on this disk."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """So many questions of each task; all where there are fewer. A first look, not a score to publish."""
    offline: bool = False
    """Never ask the hub: data sets come from this machine's cache or from tasks_folder, and what is not there is missing."""
    chat: bool = False
    """Ask in the model's chat template."""
    backend: Literal["auto", "hf", "vllm"] = "auto"
    """auto: vLLM on GPUs, transformers on CPUs and for what vLLM lacks or would ask with another rope (docs/exam.md)."""
    batch_items: Annotated[int, Field(ge=1)] = 16
    """Of the hf backend; vLLM batches by itself."""
    timeout_s: Annotated[float, Field(gt=0)] = 7200
    """Longest time for one arm; then its scores are missing, with this reason."""


class ChoicesConfig(Strict):
    """Multiple choice, where the test split holds choices: log-likelihood of the letter and of the option's text."""

    questions: Annotated[int, Field(ge=1)] | None = None
    """Cut for trials; empty: all."""
    passages: Annotated[int, Field(ge=0)] = 0
    """Also with so many retrieved passages in front; 0: without retrieval only."""
    collapse_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """One letter in more than this share of the predictions is called a collapse."""
    leakage_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """More exam questions than this that also stand in training are called leakage."""


class ConversationConfig(Strict):
    """A few fixed requests, answered before and after: does the model still converse?"""

    prompts: Annotated[int, Field(ge=0)] = 0
    """So many of evaluation/examining/conversation_prompts.txt; 0: none."""
    answer_tokens: Annotated[int, Field(ge=1)] = 200


class SinksConfig(Strict):
    """Trackers that get the scores as well; keys and passwords come from their own environment variables and are never read here."""

    mlflow: str | None = None
    """Tracking URI, e.g. file:///shared/mlruns or http://host:5000; needs the package mlflow."""
    wandb: str | None = None
    """Project; needs the package wandb and its WANDB_API_KEY."""
