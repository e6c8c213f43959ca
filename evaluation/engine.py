"""The engine on the driver: an examiner in a Ray actor (evaluation/examiner.py, evaluation/generate.py) that is replaced when it fails,
keeps old weights, or computes another network than the one that was trained.
"""

import contextlib
import logging
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from console import RunError, error_line, raised_in, say
from evaluation.engines.agreement import Saying, agree, apart, moved
from evaluation.engines.lengths import answer_by_length, likelihoods_by_length
from evaluation.engines.network import Network, network, read_network
from evaluation.engines.options import Answer, EngineOptions
from evaluation.examiner import Examiner
from evaluation.generate import Generator

log = logging.getLogger(__name__)

_PASSING = ("memory", "CUDA error", "NCCL", "OSError", "ConnectionError", "Timeout")
"""Words of failures that say nothing about the model."""
WITHOUT_VLLM = "exam.engine=transformers (--engine transformers) asks without vLLM"


class EngineFailure(RunError):
    """The engine crashed or hung twice on one checkpoint: nothing is known about it."""


class Engine:
    """An examiner that is replaced when it crashes, hangs, or keeps old weights. Needs a running Ray; use it as a context manager.

    Each checkpoint may cost one replacement; a second failure raises EngineFailure with the cause. The first engine of each network is
    compared with transformers, and so is the first swap of weights that moved anything (evaluation/engines/agreement.py).
    """

    def __init__(self, options: EngineOptions, examiner: type | None = None) -> None:
        """`examiner`: None: by the model that is opened."""
        self._options, self._examiner = options, examiner
        self.by = ""
        """What answers, and why, for people."""
        self._class: Any = examiner
        self._actor: Any = None
        self._checkpoint: tuple[str, str | None, int] = ("", None, 0)
        self._network, self._key = Network(), ""
        self._longest = 0
        """Tokens that the open checkpoint may be asked about, the next one included."""
        self._long = False
        """Whether the engine has the rope's factors for long sequences."""
        self._weights = ""
        self._fingerprint: float | None = None
        self._replacements_left = 0
        self._without_vllm: dict[str, str] = {}
        """Networks that vLLM refused or computed otherwise, and how."""
        self._compared: set[str] = set()
        self._swaps: dict[str, bool] = {}
        """Networks whose weights were swapped and compared, and whether that was right."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kill()

    def open(self, path: str, weights: str, max_model_len: int, revision: str | None = None) -> float:
        """Makes the checkpoint at `path` (folder or hub id) the one that answers; returns its fingerprint.

        `weights` names them (a hash): a swap to other weights that leaves the fingerprint the same was none, and the
        engine is built anew.
        """
        self._replacements_left = 1
        self._network = read_network(path, revision) if self._examiner is None else Network()
        self._key, self._longest = network(path) or f"{path}@{revision}", max_model_len
        if self._choose() is not self._class:
            self._kill()
        self._class = self._choose()
        length = self._length(long=False)
        fits = self._actor is not None and not self._long and length <= self._checkpoint[2] and self._swaps.get(self._key, True)
        checked = hasattr(self._class, "by_transformers")
        unproven = fits and checked and self._key not in self._swaps
        before, known = self._fingerprint, self._weights
        self._checkpoint, self._long = (path, revision, self._checkpoint[2] if fits else length), False
        said_before: list[Saying] = []
        swapped = fits and self._swap(said_before if unproven else None)
        if not swapped:
            self._kill()
        actor = self._actor
        self._fingerprint = self._call("probe")
        swapped = swapped and self._actor is actor
        if swapped and weights != known and self._fingerprint == before:
            log.warning("%s: same fingerprint as the weights before it: a new engine is built", path)
            self._new()
        elif swapped and unproven:
            self._prove_swap(said_before)
        elif checked and self._class is not Generator and self._key not in self._compared:
            self._compare()
        self._weights = weights
        assert self._fingerprint is not None
        return self._fingerprint

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        """See Examiner.answer. Raises EngineFailure."""
        if short := self._two_engines():
            return answer_by_length(self._at, short, prompts, max_tokens, eos_id)
        return self._call("answer", prompts, max_tokens, eos_id)

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        """See Examiner.log_likelihoods. Raises EngineFailure."""
        if short := self._two_engines():
            return likelihoods_by_length(self._at, short, self._long, sequences, starts or [1] * len(sequences))
        return self._call("log_likelihoods", sequences, starts)

    def _two_engines(self) -> int | None:
        """The longest sequence with the rope's short factors, where longer ones are asked too and one engine cannot do both."""
        short = self._network.short
        return short if short and self._class.one_rope and self._longest > short + 1 else None

    def _length(self, long: bool) -> int:
        """The max_model_len of the engine for short or for long sequences."""
        short = self._two_engines()
        return short + 1 if short and not long else self._longest

    def _at(self, long: bool, method: str, *args: Any) -> Any:
        """A call to the engine with the factors for long or short sequences; another than the last one is built for it."""
        if long != self._long:
            say(f"a new engine for {'more than' if long else 'at most'} {self._network.short} tokens: the rope has other factors there")
            self._kill()
            self._long, self._checkpoint = long, (*self._checkpoint[:2], self._length(long))
        return self._call(method, *args)

    def _compare(self) -> None:
        """A fresh engine with transformers: where they differ, transformers answers, unless vLLM was asked for by name."""
        self._compared.add(self._key)
        said: list[Saying] = self._call("sayings")
        truth = self._by_transformers(said)
        if truth is None or agree(said, truth, self._options.dtype):
            return
        why = f"vLLM's log-probabilities are up to {apart(said, truth):.2g} nats a token from transformers'"
        if self._options.backend != "auto" or self._examiner:
            say(f"warning: {self._checkpoint[0]}: {why}; {WITHOUT_VLLM}")
            return
        self._leave_vllm(why)
        self._fingerprint = self._call("probe")

    def _prove_swap(self, before: list[Saying]) -> None:
        """Weights that were swapped in with transformers, or where that says nothing with a new engine; kept for later swaps of the network."""
        said: list[Saying] = self._call("sayings")
        truth, other = self._by_transformers(said), "transformers"
        if truth is None:
            self._new()
            truth, other = self._call("log_likelihoods", [s.ids for s in said], [s.start for s in said]), "a new engine"
        right = agree(said, truth, self._options.dtype)
        if right and not moved(before, truth, self._options.dtype):
            return
        self._swaps[self._key] = right
        if not right:
            off = f"{apart(said, truth):.2g} nats a token from {other}"
            say(f"weights that were swapped into vLLM are {off}: every model of this network gets a new engine")
            self._new()

    def _by_transformers(self, said: list[Saying]) -> list[float] | None:
        """None where they cannot be had; a copy that was too much for the machine has cost the engine only."""
        asked = (*self._checkpoint[:2], [s.ids for s in said], [s.start for s in said])
        try:
            return ray.get(self._actor.by_transformers.remote(*asked), timeout=self._options.timeout_s)  # type: ignore[no-any-return]
        except RayError as error:
            log.warning("%s: not compared with transformers: %s", self._checkpoint[0], error_line(error))
            self._new()
            return None

    def _new(self) -> None:
        self._kill()
        self._fingerprint = self._call("probe")

    def _swap(self, said: list[Saying] | None) -> bool:
        """Whether the running engine took the weights; a failure means no. `said`: gets what it said before, where that is to be compared."""
        try:
            if said is not None:
                said += ray.get(self._actor.sayings.remote(), timeout=self._options.timeout_s)
            return bool(ray.get(self._actor.load.remote(self._checkpoint[0]), timeout=self._options.timeout_s))
        except RayError as error:
            log.warning("swapping weights failed: %s", error_line(error))
            return False

    def _call(self, method: str, *args: Any) -> Any:
        """One call with a time-out; builds the engine where there is none, once more where it fails."""
        while True:
            new = self._actor is None
            try:
                if new:
                    self._actor = self._start()
                return ray.get(getattr(self._actor, method).remote(*args), timeout=self._options.timeout_s)
            except RayError as error:
                self._kill()
                cause = self._no_reply() if isinstance(error, GetTimeoutError) else error_line(error)
                if new and self._class is Examiner and _is_refusal(error):
                    if self._options.backend != "auto":
                        raise EngineFailure(f"{self._checkpoint[0]}: vLLM refuses it: {cause}; {WITHOUT_VLLM}") from None
                    self._leave_vllm(f"vLLM refuses the model ({cause})")
                    continue
                if not self._replacements_left:
                    way_out = f"; {WITHOUT_VLLM}" if new and self._class is Examiner else ""
                    raise EngineFailure(f"{self._checkpoint[0]}: {cause}{way_out}") from None
                self._replacements_left -= 1
                log.warning("engine for %s failed (%s); trying once more", self._checkpoint[0], cause)

    def _choose(self) -> Any:
        """The class that answers for the open network."""
        if self._examiner:
            return self._examiner
        return Generator if self._key in self._without_vllm else choose_examiner(self._network, self._options)[0]

    def _leave_vllm(self, why: str) -> None:
        self._kill()
        self._without_vllm[self._key], self._class = why, Generator

    def _start(self) -> Any:
        by = "" if self._examiner else choose_examiner(self._network, self._options)[1]
        if self._key in self._without_vllm:
            by = f"transformers' generate: {self._without_vllm[self._key]}"
        if by != self.by:
            self.by = by
            say(f"examined by {by}")
        environment = self._options.environment(self._checkpoint[0])
        own: Any = {"runtime_env": {"env_vars": environment}} if environment else {}
        actor: Any = ray.remote(self._class).options(num_cpus=self._options.cpus, num_gpus=self._options.gpus, max_restarts=0, **own)
        return actor.remote(*self._checkpoint, self._options)

    def _no_reply(self) -> str:
        free = ray.available_resources()
        wanted = f"{self._options.cpus:g} CPUs and {self._options.gpus} GPUs"
        return f"no reply within {self._options.timeout_s:g} s (it needs {wanted}; free: {free.get('CPU', 0):g} and {free.get('GPU', 0):g})"

    def _kill(self) -> None:
        if self._actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(self._actor)
        self._actor = None
        self._fingerprint = None


def choose_examiner(of: Network, options: EngineOptions) -> tuple[type, str]:
    """(class, why, for people), as far as the config tells."""
    if options.backend == "transformers":
        return Generator, "transformers' generate, as exam.engine says"
    if options.backend == "auto" and (lack := of.not_in_vllm(options.gpus)):
        return Generator, f"transformers' generate: {lack}"
    return Examiner, "vLLM"


def _is_refusal(error: RayError) -> bool:
    """Whether a new engine raised an exception about the model: no crash, no lack of memory, and no failure that may pass."""
    raised = raised_in(str(error))
    return raised is not None and not any(word in raised for word in _PASSING)
