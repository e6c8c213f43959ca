"""Asks an OpenAI-compatible endpoint (/chat/completions) for JSON that follows a schema. Runs in Ray workers."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from console import UserError
from data.build.asking.exchange import Declined, Reply, Request
from data.ground.strict_json import JsonFault, StrictDecoder, decode_line
from data.ground.words import tokens_estimated

_TIMEOUT_S = 300.0
_REACHED_WITHIN_S = 2.0
_LONGEST_WAIT_S = 60.0
_NOT_THIS_ONE = (400, 413, 422, 501)
_NOT_YOU = (401, 402, 403, 404, 405)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


_OURS = ("model", "messages", "response_format", "stream", "n")


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a service wants to be asked: not all know JSON schemas, call the longest reply alike, or let a seed be chosen."""

    schema: Literal["json_schema", "json_object", "none"] = "json_schema"
    allowance: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    without: frozenset[str] = frozenset()

    def after(self, said: str, has_schema: bool) -> "_Dialect | None":
        """What to try when a service has declined with these words; None: nothing is left that could be the cause."""
        if self.allowance == "max_tokens" and re.search(r"max_(completion_)?tokens", said):
            return replace(self, allowance="max_completion_tokens")
        for name in ("temperature", "seed"):
            if name not in self.without and re.search(rf"\b{name}\b", said):
                return replace(self, without=self.without | {name})
        if has_schema and self.schema != "none":
            return replace(self, schema="json_object" if self.schema == "json_schema" else "none")
        return None


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
        host = parts.hostname if parts.port != 0 else None
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):  # a UnicodeError of a host's name is one
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(f"--endpoint {url}: expected http(s)://HOST[:PORT]/v1")
    if parts.username or parts.password or parts.query:
        raise UserError("--endpoint: holds a name, a password or a query; give the key with --key-file or STUDYHALL_API_KEY")
    if has_key and parts.scheme == "http" and host not in _LOOPBACK:
        raise UserError(f"--endpoint {url}: would send the key unencrypted; use https, or no key")
    return url.rstrip("/")


def reach_endpoint(url: str) -> None:
    """Raises UserError where nobody listens, before anything is read for it. Whatever is answered will do."""
    try:
        httpx.get(f"{url}/models", timeout=_REACHED_WITHIN_S)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        reason = str(error) or f"nobody answers within {_REACHED_WITHIN_S:g} s"
        raise UserError(f"--endpoint {url}: cannot be reached: {reason}; start the service, or mend the address") from None
    except UnicodeError:
        raise UserError(f"--endpoint {url}: its host has a name that cannot be; mend the address") from None
    except httpx.HTTPError:
        return  # slow or odd: it may answer what it is for


def read_extra(text: str) -> dict[str, Any]:
    """More fields of the body, from a JSON object. Raises UserError."""
    try:
        extra = decode_line(text, StrictDecoder())
    except JsonFault as fault:
        raise UserError(f'--extra-body: {fault.reason}; expected one JSON object, e.g. {{"reasoning_effort": "low"}}') from None
    if not isinstance(extra, dict):
        raise UserError('--extra-body: expected one JSON object, e.g. {"reasoning_effort": "low"}')
    if taken := [name for name in _OURS if name in extra]:
        raise UserError(f"--extra-body: {taken[0]} is said by other options")
    return extra


class Endpoint:
    """`parallel` requests at a time. Waits and tries again where that helps: 429, 5xx, a broken connection; but not for one that was never
    there. What a service declines is asked in other words until it has answered once: then its objections are to the request.

    extra: more fields of every body.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: SecretStr | None,
        parallel: int = 8,
        tries: int = 6,
        first_wait_s: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._url, self._model, self._parallel, self._tries = f"{url}/chat/completions", model, parallel, tries
        self._secret, self._extra = key, dict(extra or {})
        self._dialect, self._understood, self._answered = _Dialect(), set[tuple[_Dialect, bool]](), False
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
        dialect, has_schema, first = self._dialect, request.schema is not None, None
        while True:
            response = self._sent(self._body(request, dialect))
            if response.status_code not in _NOT_THIS_ONE:
                break
            first = first or Declined(f"the endpoint declined: {response.status_code} {self._quoted(response)}")
            other = dialect.after(response.text, has_schema) if (dialect, has_schema) not in self._understood else None
            if other is None or response.status_code == 413:
                return first
            dialect = other
        if response.status_code in _NOT_YOU or response.is_redirect:
            raise EndpointFailure(f"{self._url}: {response.status_code} {self._quoted(response)}")
        if response.status_code != 200:
            raise _Again(f"{response.status_code} {self._quoted(response)}", _seconds(response.headers.get("retry-after")))
        reply = self._reply(response, request)
        self._understood.add((dialect, has_schema))
        self._dialect = dialect
        return reply

    def _sent(self, body: dict[str, Any]) -> httpx.Response:
        try:
            response = self._client.post(self._url, json=body)
        except httpx.HTTPError as error:
            said = f"{type(error).__name__}: {self._masked(str(error))}"
            if isinstance(error, httpx.ConnectError) and not self._answered:
                raise EndpointFailure(f"{self._url}: {said}; nobody answers there") from None
            raise _Again(said) from None
        self._answered = True
        return response

    def _body(self, request: Request, dialect: _Dialect) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": request.messages,
            dialect.allowance: request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.schema is not None and dialect.schema != "none":
            named = {"json_schema": {"name": "questions", "schema": request.schema, "strict": True}}
            body["response_format"] = {"type": dialect.schema, **(named if dialect.schema == "json_schema" else {})}
        return {name: value for name, value in (body | self._extra).items() if name not in dialect.without}

    def _reply(self, response: httpx.Response, request: Request) -> Reply:
        """What a service does not count is estimated: a budget must hold there too."""
        try:
            answer = response.json()
            choice = answer["choices"][0]
            usage, text = answer.get("usage") or {}, _text(choice["message"]["content"])
            return Reply(
                text=text,
                finish=str(choice.get("finish_reason") or ""),
                prompt_tokens=int(usage.get("prompt_tokens") or sum(tokens_estimated(one["content"]) for one in request.messages)),
                answer_tokens=int(usage.get("completion_tokens") or tokens_estimated(text)),
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


def _text(content: Any) -> str:
    """Of a message: a text, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def _seconds(header: str | None) -> float | None:
    """Of Retry-After in seconds; its other form, a date, is not waited for."""
    return float(header) if header and header.isdecimal() else None
