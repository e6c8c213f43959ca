"""Asks an OpenAI-compatible endpoint (/chat/completions) for JSON that follows a schema. Runs in Ray workers."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from console import UserError
from data.build.exchange import Declined, Reply, Request

_TIMEOUT_S = 300.0
_LONGEST_WAIT_S = 60.0
_NOT_THIS_ONE = (400, 413, 422)
_NOT_YOU = (401, 402, 403, 404, 405)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EndpointFailure(RuntimeError):
    """The endpoint answers nobody: a wrong key, name or address, or it stayed silent through every try."""


class _Again(Exception):
    """Worth another try, after so many seconds where the endpoint said so."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


def check_endpoint(url: str, has_key: bool) -> str:
    """The address without a slash at its end. Raises UserError for one that cannot be used, or that would send a key in the clear."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(f"--endpoint {url}: expected http(s)://HOST[:PORT]/v1")
    if parts.username or parts.password or parts.query:
        raise UserError("--endpoint: holds a name, a password or a query; give the key with --key-file or STUDYHALL_API_KEY")
    if has_key and parts.scheme == "http" and host not in _LOOPBACK:
        raise UserError(f"--endpoint {url}: would send the key unencrypted; use https, or no key")
    return url.rstrip("/")


class Endpoint:
    """`parallel` requests at a time. Waits and tries again where that helps: 429, 5xx, a broken connection."""

    def __init__(self, url: str, model: str, key: SecretStr | None, parallel: int = 8, tries: int = 6, first_wait_s: float = 1.0) -> None:
        self._url, self._model, self._parallel, self._tries = f"{url}/chat/completions", model, parallel, tries
        self._secret = key
        self._backoff = wait_exponential_jitter(initial=first_wait_s, max=_LONGEST_WAIT_S, jitter=first_wait_s)
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._client = httpx.Client(timeout=httpx.Timeout(_TIMEOUT_S, connect=20.0), headers=headers, follow_redirects=False)

    def ask(self, requests: list[Request]) -> Iterator[tuple[Request, Reply | Declined]]:
        """In the order in which they are answered. Raises EndpointFailure, after those that were on their way and are answered all the same."""
        failure: BaseException | None = None
        waiting, under_way = iter(requests), dict[Future[Reply | Declined], Request]()
        with ThreadPoolExecutor(self._parallel) as pool:
            try:
                while True:
                    if failure is None:  # no more than `parallel` are ever paid and not yet taken: that is what a kill can cost
                        for request in islice(waiting, self._parallel - len(under_way)):
                            under_way[pool.submit(self._one, request)] = request
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        request, error = under_way.pop(future), future.exception()
                        if error is None:
                            yield request, future.result()
                        failure = failure or error
            finally:
                pool.shutdown(cancel_futures=True)
        if failure:
            raise failure

    def _one(self, request: Request) -> Reply | Declined:
        retrying = Retrying(retry=retry_if_exception_type(_Again), stop=stop_after_attempt(self._tries), wait=self._wait, reraise=True)
        try:
            return retrying(self._once, request)
        except _Again as error:
            raise EndpointFailure(f"{self._url}: {error} ({self._tries} tries)") from None

    def _once(self, request: Request) -> Reply | Declined:
        try:
            response = self._client.post(self._url, json=self._body(request))
        except httpx.HTTPError as error:
            raise _Again(f"{type(error).__name__}: {self._masked(str(error))}") from None
        if response.status_code in _NOT_THIS_ONE:
            return Declined(f"the endpoint declined: {response.status_code} {self._quoted(response)}")
        if response.status_code in _NOT_YOU or response.is_redirect:
            raise EndpointFailure(f"{self._url}: {response.status_code} {self._quoted(response)}")
        if response.status_code != 200:
            raise _Again(f"{response.status_code} {self._quoted(response)}", _seconds(response.headers.get("retry-after")))
        return self._reply(response)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": request.messages,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "questions", "schema": request.schema, "strict": True},
            }
        return body

    def _reply(self, response: httpx.Response) -> Reply:
        try:
            answer = response.json()
            choice = answer["choices"][0]
            usage = answer.get("usage") or {}
            return Reply(
                text=str(choice["message"]["content"] or ""),
                finish=str(choice.get("finish_reason") or ""),
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                answer_tokens=int(usage.get("completion_tokens") or 0),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Again(f"an answer that is none: {self._quoted(response)}") from None

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        said = error.after_s if isinstance(error, _Again) else None
        return min(said, _LONGEST_WAIT_S) if said is not None else self._backoff(state)

    def _quoted(self, response: httpx.Response) -> str:
        return self._masked(" ".join(response.text[:200].split()))

    def _masked(self, text: str) -> str:
        return text.replace(self._secret.get_secret_value(), "***") if self._secret else text


def _seconds(header: str | None) -> float | None:
    """Of Retry-After in seconds; its other form, a date, is not waited for."""
    return float(header) if header and header.isdecimal() else None
