"""Requests spread over a cluster with Ray Data; every reply is committed by the worker that got it, before anything else happens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from console import RunError, error_line, progress
from data.build.asking.endpoint import EndpointFailure
from data.build.asking.exchange import Answers, Declined, Pending, Reply, Request, read_pending


class Asker(Protocol):
    """What answers requests: data.build.asking.endpoint.Endpoint, data.build.asking.local_model.LocalModel."""

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
    allowed: int | None = None
    """Tokens that may be read and written; None: as many as it takes."""

    def check(self, waiting: int) -> None:
        """RunError where something is still to be asked and no token is left for it."""
        if self.allowed is not None and waiting and self.prompt_tokens + self.answer_tokens >= self.allowed:
            raise RunError(
                f"--budget: spent, and {waiting:,} requests are not made; what has been answered is kept: give more, or ask for less"
            )


def generate(
    pending: list[Pending], requests: Path, answers: Answers, crew: Crew, what: str, spent: Spent, use_ray: bool
) -> dict[str, str]:
    """Has every request answered; returns why some cannot be (key → reason). Needs a running Ray, unless not `use_ray`.

    Interrupted or failed, what has been answered stays: at most one batch a worker is asked again, and of an endpoint
    only what was on its way. A budget is kept to within a batch a worker: replies that have been paid for are taken.
    Raises RunError with the first cause where the model or the endpoint does not answer at all.
    """
    declined: dict[str, str] = {}
    if not pending:
        return declined
    spent.check(len(pending))
    outcomes = _with_ray(pending, requests, answers, crew) if use_ray else _in_process(pending, requests, answers, crew)
    with progress() as bar:
        task = bar.add_task(what, total=len(pending), note="starting")
        for number, row in enumerate(outcomes, 1):
            if row["declined"]:
                declined[row["key"]] = row["declined"]
            else:
                spent.replies += 1
            spent.prompt_tokens += int(row["prompt_tokens"])
            spent.answer_tokens += int(row["answer_tokens"])
            note = f"{spent.prompt_tokens:,} + {spent.answer_tokens:,} tokens" + (f", {len(declined)} declined" if declined else "")
            bar.update(task, advance=1, note=note)
            spent.check(len(pending) - number)
    if len(declined) == len(pending) and answers.are_none():
        raise RunError(f"every request was declined; the first: {next(iter(declined.values()))}")
    return declined


def _with_ray(pending: list[Pending], requests: Path, answers: Answers, crew: Crew) -> Iterator[dict[str, Any]]:
    import ray
    import ray.data
    from ray.exceptions import RayError

    num_batches = -(-len(pending) // crew.batch)
    dataset = ray.data.from_items([{"key": one.key, "offset": one.offset} for one in pending], override_num_blocks=num_batches).map_batches(
        Worker,
        fn_constructor_args=(crew.make, str(requests.absolute()), str(answers.folder.absolute())),
        batch_size=crew.batch,
        compute=ray.data.ActorPoolStrategy(size=min(crew.workers, num_batches)),
        num_cpus=crew.cpus,
        num_gpus=crew.gpus,
    )
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise _failed(error_line(error)) from None


def _in_process(pending: list[Pending], requests: Path, answers: Answers, crew: Crew) -> Iterator[dict[str, Any]]:
    worker = Worker(crew.make, str(requests), str(answers.folder))
    for at in range(0, len(pending), crew.batch):
        batch = pending[at : at + crew.batch]
        try:
            rows = worker({"key": [one.key for one in batch], "offset": [one.offset for one in batch]})
        except EndpointFailure as error:
            raise _failed(str(error)) from None
        yield from (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))


def _failed(cause: str) -> RunError:
    return RunError(f"{cause}; what has been answered is kept, and the same command goes on")
