"""Requests spread over a cluster with Ray Data; every reply is committed by the worker that got it, before anything else happens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from console import RunError, progress
from data.build.requests import Answers, Declined, Pending, Reply, Request, read_pending


class Asker(Protocol):
    """What answers requests: data.build.endpoint.Endpoint, data.build.local_model.LocalModel."""

    def ask(self, requests: list[Request]) -> Iterator[tuple[Request, Reply | Declined]]: ...


@dataclass(frozen=True, slots=True)
class Crew:
    """Ray workers that ask, and what each of them reserves."""

    make: Callable[[], Asker]
    """Called once in every worker; pickled on its way there."""
    workers: int
    cpus: float
    gpus: float
    batch: int
    """Requests handed to a worker at a time."""


class Worker:
    """The body of a Ray worker."""

    def __init__(self, make: Callable[[], Asker], requests: str, answers: str) -> None:
        self._asker = make()
        self._requests, self._answers = Path(requests), Answers(Path(answers))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """batch: key and offset of each request. Returns what came of each; the replies themselves are on disk."""
        todo = [
            int(offset) for key, offset in zip(batch["key"], batch["offset"], strict=True) if not self._answers.has(str(key))
        ]  # Ray gives a batch to another worker when the first one dies
        rows: dict[str, list[Any]] = {name: [] for name in ("key", "declined", "prompt_tokens", "answer_tokens")}
        for request, reply in self._asker.ask(list(read_pending(self._requests, todo))):
            declined = isinstance(reply, Declined)
            if not isinstance(reply, Declined):
                self._answers.put(request.key, reply)
            rows["key"].append(request.key)
            rows["declined"].append(reply.reason if isinstance(reply, Declined) else "")
            rows["prompt_tokens"].append(0 if declined else reply["prompt_tokens"])  # type: ignore[index]
            rows["answer_tokens"].append(0 if declined else reply["answer_tokens"])  # type: ignore[index]
        return rows


@dataclass
class Spent:
    """What a run has used. Replies that were there before cost nothing."""

    replies: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


def generate(pending: list[Pending], requests: Path, answers: Answers, crew: Crew, what: str, spent: Spent) -> dict[str, str]:
    """Has every request answered; returns why some cannot be (key → reason). Needs a running Ray.

    Interrupted or failed, what has been answered stays: at most one batch a worker is asked again, and of an endpoint
    only what was on its way.
    Raises RunError with the first cause where the model or the endpoint does not answer at all.
    """
    import ray
    import ray.data
    from ray.exceptions import RayError

    if not pending:
        return {}
    workers = min(crew.workers, -(-len(pending) // crew.batch))
    rows = [{"key": one.key, "offset": one.offset} for one in pending]
    declined: dict[str, str] = {}
    dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // crew.batch)).map_batches(
        Worker,
        fn_constructor_args=(crew.make, str(requests.absolute()), str(answers.folder.absolute())),
        batch_size=crew.batch,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=crew.cpus,
        num_gpus=crew.gpus,
    )
    with progress() as bar:
        task = bar.add_task(what, total=len(rows), note="starting")
        try:
            for row in dataset.iter_rows():
                if row["declined"]:
                    declined[row["key"]] = row["declined"]
                else:
                    spent.replies += 1
                spent.prompt_tokens += int(row["prompt_tokens"])
                spent.answer_tokens += int(row["answer_tokens"])
                note = f"{spent.prompt_tokens:,} + {spent.answer_tokens:,} tokens" + (f", {len(declined)} declined" if declined else "")
                bar.update(task, advance=1, note=note)
        except RayError as error:
            raise RunError(f"{_cause(error)}; what has been answered is kept, and the same command goes on") from None
    if len(declined) == len(rows):
        raise RunError(f"every request was declined; the first: {next(iter(declined.values()))}")
    return declined


def _cause(error: Exception) -> str:
    """The last line of a remote traceback: the exception itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
