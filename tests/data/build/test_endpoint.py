"""The HTTP client against a service on this machine: retries, refusals, and a key that is never shown."""

import time
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from data.build.endpoint import Endpoint, EndpointFailure
from data.build.exchange import Declined, Request
from data.build.prompts import schema
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
    service.statuses = [400]
    replies = [reply for _, reply in endpoint(service).ask([request(n) for n in range(3)])]
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
    with pytest.raises(EndpointFailure, match="ConnectError"):
        list(Endpoint("http://127.0.0.1:9/v1", "m", None, tries=2, first_wait_s=0.01).ask([request()]))


def test_a_redirect_is_not_followed(service: Service) -> None:
    """It could carry the key to another host."""
    service.statuses = [307]
    with pytest.raises(EndpointFailure, match="307"):
        list(endpoint(service).ask([request()]))
    assert len(service.bodies) == 1 and httpx.codes.is_redirect(307)
