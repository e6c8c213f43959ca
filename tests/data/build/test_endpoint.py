"""The HTTP client against a service on this machine: retries, refusals, and a key that is never shown."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from console import UserError
from data.build.asking.endpoint import Endpoint, EndpointFailure, check_endpoint, reach_endpoint, read_extra
from data.build.asking.exchange import Declined, Request
from data.build.asking.prompts import schema
from tests.data.build.service import KEY, Service, serving


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as running:
        yield running


def request(n: int = 0) -> Request:
    text = f"generate about the subject Halley {n}, generate. Summary: one two three four five six seven eight"
    return Request("d", [{"role": "user", "content": text}], schema("open", 3, bounded=False), 99, 7, "m", 0.5)


def endpoint(service: Service, key: str = KEY, tries: int = 4) -> Endpoint:
    return Endpoint(service.url, "by-rule", SecretStr(key), parallel=3, tries=tries, first_wait_s=0.01)


def test_what_is_sent(service: Service) -> None:
    ((_, reply),) = endpoint(service).ask([request()])
    assert not isinstance(reply, Declined) and reply["prompt_tokens"] == 100 and "questions" in reply["text"]
    (body,) = service.bodies
    assert {name: body[name] for name in ("model", "max_tokens", "temperature", "seed")} == {
        "model": "by-rule", "max_tokens": 99, "temperature": 0.5, "seed": 7,
    }  # fmt: skip
    assert body["response_format"]["json_schema"]["strict"] is True and body["messages"] == request().messages


def test_tokens_that_a_service_does_not_count_are_estimated(service: Service) -> None:
    service.usage = (0, 0)
    ((_, reply),) = endpoint(service).ask([request()])
    assert not isinstance(reply, Declined) and 15 < reply["prompt_tokens"] < 40 and reply["answer_tokens"] > 40


def test_too_fast_and_broken_are_tried_again(service: Service) -> None:
    service.statuses = [429, 503, 500]
    replies = list(endpoint(service).ask([request(n) for n in range(4)]))
    assert len(replies) == 4 and len(service.bodies) == 7 and len(service.paid) == 4


def test_no_more_is_paid_than_what_is_taken_and_on_its_way(service: Service) -> None:
    """What a kill can cost while the taker writes slowly: `parallel` replies."""
    ahead = []
    for taken, _ in enumerate(endpoint(service).ask([request(n) for n in range(15)])):
        time.sleep(0.05)
        ahead.append(len(service.paid) - taken)
    assert len(ahead) == 15 and max(ahead) == 3


def test_one_bad_request_does_not_stop_the_others(service: Service) -> None:
    asked = endpoint(service)
    assert len(list(asked.ask([request(9)]))) == 1  # it has been understood: what is declined now is the request
    service.statuses = [400]
    replies = [reply for _, reply in asked.ask([request(n) for n in range(3)])]
    declined = [reply for reply in replies if isinstance(reply, Declined)]
    assert len(declined) == 1 and "400" in declined[0].reason and KEY not in declined[0].reason and "***" in declined[0].reason


def test_it_gives_up(service: Service) -> None:
    service.statuses = [500] * 9
    with pytest.raises(EndpointFailure, match=r"500 .*\(4 tries\)"):
        list(endpoint(service).ask([request()]))
    assert len(service.bodies) == 4


def test_a_wrong_key_stops_at_once_and_is_not_shown(service: Service) -> None:
    with pytest.raises(EndpointFailure, match="401") as error:
        list(endpoint(service, key="sk-wrong-one").ask([request()]))
    assert "sk-wrong-one" not in str(error.value) and len(service.bodies) == 1
    assert "sk-wrong-one" not in repr(vars(endpoint(service, key="sk-wrong-one")))


def test_no_one_there() -> None:
    """Said at once, not after six tries and a minute."""
    start = time.monotonic()
    with pytest.raises(EndpointFailure, match="ConnectError.*nobody answers there"):
        list(Endpoint("http://127.0.0.1:9/v1", "m", None).ask([request(n) for n in range(9)]))
    with pytest.raises(UserError, match=r"--endpoint http://127.0.0.1:9/v1: cannot be reached: .*refused.*; start the service"):
        reach_endpoint("http://127.0.0.1:9/v1")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:abc/v1",
        "http://127.0.0.1:0/v1",
        "http:///v1",
        "127.0.0.1:8000",
        "http://" + "a" * 70 + ".org/v1",
        "http://xn--/v1",
    ],
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(UserError, match="--endpoint .*(expected http|a name that cannot be)"):
        reach_endpoint(check_endpoint(address, has_key=False))


def test_what_goes_away_is_waited_for(service: Service) -> None:
    """The twin: a service that has answered is tried again."""
    asked = endpoint(service, tries=2)
    assert len(list(asked.ask([request()]))) == 1
    asked._url = "http://127.0.0.1:9/v1/chat/completions"
    with pytest.raises(EndpointFailure, match=r"\(2 tries\)"):
        list(asked.ask([request(1)]))


def no_schema(body: dict[str, Any]) -> str | None:
    return "response_format.type: json_schema is not supported" if body.get("response_format", {}).get("type") == "json_schema" else None


def no_format(body: dict[str, Any]) -> str | None:
    return "Extra inputs are not permitted" if "response_format" in body else None


def other_allowance(body: dict[str, Any]) -> str | None:
    return "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead." if "max_tokens" in body else None


def reasons(body: dict[str, Any]) -> str | None:
    if "temperature" in body:
        return "Unsupported value: 'temperature' does not support 0.5 with this model."
    return "seed: unknown field" if "seed" in body else other_allowance(body)


@pytest.mark.parametrize(
    "declines, tries, left",
    [
        (no_schema, 2, {"model", "messages", "max_tokens", "temperature", "seed", "response_format"}),
        (no_format, 3, {"model", "messages", "max_tokens", "temperature", "seed"}),
        (other_allowance, 2, {"model", "messages", "max_completion_tokens", "temperature", "seed", "response_format"}),
        (reasons, 4, {"model", "messages", "max_completion_tokens", "response_format"}),
    ],
)
def test_services_that_want_to_be_asked_otherwise(service: Service, declines: Any, tries: int, left: set[str]) -> None:
    service.declines = declines
    asked = Endpoint(service.url, "by-rule", SecretStr(KEY), parallel=1, first_wait_s=0.01)
    replies = [reply for _, reply in asked.ask([request(n) for n in range(3)])]
    assert not any(isinstance(reply, Declined) for reply in replies) and len(replies) == 3
    assert set(service.bodies[-1]) == left and len(service.bodies) == tries + 2  # it is remembered


def test_a_request_that_is_too_long_is_declined_in_every_wording(service: Service) -> None:
    service.declines = lambda body: "This model's maximum context length is 4096 tokens, and max_tokens is too large"
    ((_, reply),) = Endpoint(service.url, "by-rule", SecretStr(KEY), first_wait_s=0.01).ask([request()])
    assert isinstance(reply, Declined) and "4096" in reply.reason and len(service.bodies) == 4


def test_more_fields_and_parts_of_text(service: Service) -> None:
    service.wording = lambda content: [{"type": "text", "text": content}, {"type": "refusal"}]
    asked = Endpoint(service.url, "by-rule", SecretStr(KEY), extra=read_extra('{"top_k": 1, "temperature": 0.2}'))
    ((_, reply),) = asked.ask([request()])
    assert not isinstance(reply, Declined) and reply["text"].startswith('{"questions"')
    assert service.bodies[0]["top_k"] == 1 and service.bodies[0]["temperature"] == 0.2
    for text, why in (
        ("{", "malformed JSON"),
        ("[1]", "expected one JSON object"),
        ('{"stream": true}', "stream is said by other options"),
    ):
        with pytest.raises(UserError, match=f"--extra-body: {why}"):
            read_extra(text)


def test_a_redirect_is_not_followed(service: Service) -> None:
    """It could carry the key to another host."""
    service.statuses = [307]
    with pytest.raises(EndpointFailure, match="307"):
        list(endpoint(service).ask([request()]))
    assert len(service.bodies) == 1 and httpx.codes.is_redirect(307)
