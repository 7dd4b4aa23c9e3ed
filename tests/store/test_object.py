"""What only object stores do: requests sent once or again, errors, secrets, forks."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from fwstore.base.config import Environment, Limits
from fwstore.base.errors import (
    AlreadyExists,
    Corrupt,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from fwstore.base.units import GIB, MIB
from fwstore.sched.runtime import Runtime, system_runtime
from fwstore.store.address import open_store
from fwstore.store.base import ReadInto, Store
from fwstore.store.create import create_once
from support.hasty import hasty_runtime
from support.moto import MotoServer
from support.proxy import Proxy, serve_proxy
from support.trouble import EMPTY, HTML, Answer, Plan, Request, Rule, Trouble, any_of

pytestmark = pytest.mark.s3


@pytest.fixture
def proxy(moto_server: MotoServer) -> Iterator[Proxy]:
    with serve_proxy(moto_server.endpoint) as made:
        yield made


@pytest.fixture
def runtime(s3_bucket: str) -> Iterator[Runtime]:
    made = hasty_runtime()
    yield made
    made.scheduler.close()


@pytest.fixture
def url(s3_bucket: str, proxy: Proxy) -> str:
    return f"s3://{s3_bucket}/pre?endpoint={proxy.endpoint}"


@pytest.fixture
def store(url: str, runtime: Runtime) -> Iterator[Store]:
    made = open_store(url, runtime)
    yield made
    made.close()


def first(spoil: Trouble) -> Plan:
    return lambda request: spoil if request.number == 1 else None


def always(spoil: Trouble) -> Plan:
    return lambda request: spoil


def error_body(code: str, more: str = "") -> bytes:
    return f"<Error><Code>{code}</Code><Message>said so</Message>{more}</Error>".encode()


AMBIGUOUS: list[Trouble] = [
    "drop",
    "lose",
    Answer(500, error_body("InternalError")),
    Answer(503, error_body("SlowDown")),
    Answer(429),
]


@pytest.mark.parametrize("spoil", AMBIGUOUS, ids=str)
def test_create_is_sent_once(store: Store, proxy: Proxy, spoil: Trouble) -> None:
    proxy.reset(first(spoil))
    with pytest.raises(Unavailable, match="slot"):
        store.put("slot", [b"ours"], mode="create")
    assert proxy.methods() == ["PUT"]
    assert proxy.requests[0].headers["if-none-match"] == "*"


@pytest.mark.parametrize("spoil", AMBIGUOUS, ids=str)
def test_create_once_finds_out(
    store: Store, proxy: Proxy, runtime: Runtime, spoil: Trouble
) -> None:
    proxy.reset(first(spoil))
    assert create_once(store, "slot", [b"ours"], runtime, write_id="ab")
    assert store.get("slot", limit_bytes=4) == b"ours"
    assert store.head("slot").write_id == "ab"


def test_create_once_takes_a_conflict_in_progress_for_what_it_is(
    store: Store, proxy: Proxy, runtime: Runtime
) -> None:
    # S3 answers 409 when another conditional write is under way; that one may yet fail.
    proxy.reset(first(Answer(409, error_body("ConditionalRequestConflict"))))
    assert create_once(store, "slot", [b"ours"], runtime)
    assert proxy.methods() == ["PUT", "GET", "PUT"]


@pytest.mark.parametrize("spoil", [*AMBIGUOUS, "cut"], ids=str)
def test_what_is_idempotent_is_repeated(store: Store, proxy: Proxy, spoil: Trouble) -> None:
    calls: list[tuple[Callable[[], object], object]] = [
        (lambda: store.put("a", [b"12345"], mode="overwrite"), None),
        (lambda: store.get("a", limit_bytes=5), b"12345"),
        (lambda: store.get_range("a", 1, 2), b"23"),
        (lambda: store.get_range("a", -2, 2), b"45"),
        (lambda: store.head("a").size, 5),
        (lambda: [info.key for info in store.list("")], ["a"]),
        (lambda: store.delete(["a"]), None),
    ]
    for call, expected in calls:
        proxy.reset(first(spoil))
        assert call() == expected
        assert len(proxy.requests) in (1, 2)


def test_repeating_ends_at_the_deadline(store: Store, proxy: Proxy, runtime: Runtime) -> None:
    proxy.reset(always(Answer(503)))
    began = runtime.clock.monotonic()
    with pytest.raises(Unavailable, match="503"):
        store.head("a")
    assert 60 < runtime.clock.monotonic() - began <= runtime.limits.request_timeout_s
    assert 10 < len(proxy.requests) < 200


def test_an_unreachable_store_is_unavailable(s3_bucket: str, runtime: Runtime) -> None:
    store = open_store(f"s3://{s3_bucket}?endpoint=http://127.0.0.1:1", runtime)
    for call in (
        lambda: store.put("a", [b""], mode="create"),
        lambda: store.get("a", limit_bytes=1),
        lambda: store.delete(["a", "b"]),
    ):
        with pytest.raises(Unavailable):
            call()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(403, error_body("AccessDenied")), PermissionDenied),
        (Answer(403, error_body("SignatureDoesNotMatch")), PermissionDenied),
        (Answer(400, error_body("ExpiredToken")), PermissionDenied),
        (Answer(401), PermissionDenied),
        (Answer(403, error_body("RequestTimeTooSkewed")), PermissionDenied),
        (Answer(404, error_body("NoSuchBucket")), InvalidInput),
        (Answer(404, error_body("NoSuchKey")), NotFound),
        (Answer(301, error_body("PermanentRedirect")), InvalidInput),
        (Answer(403, error_body("QuotaExceeded")), LimitExceeded),
        (Answer(507), LimitExceeded),
        (Answer(400, error_body("EntityTooLarge")), LimitExceeded),
        (Answer(400, error_body("Whatever")), InvalidInput),
        (Answer(416, error_body("InvalidRange")), Corrupt),
        (Answer(200, b"<html>welcome to the hotel network</html>"), Corrupt),
    ],
    ids=str,
)
def test_every_answer_has_its_error(
    store: Store, proxy: Proxy, answer: Answer, expected: type[FwstoreError]
) -> None:
    proxy.reset(always(answer))
    with pytest.raises((expected, Unavailable)) as caught:
        store.get_range("a", 0, 1)
    # A whole page in place of a range is not known to be final, so it is asked for again.
    assert caught.type is (Unavailable if answer.status == 200 else expected)
    assert "a in s3://" in str(caught.value)


def test_a_taken_key_is_told_from_a_missing_bucket(store: Store, proxy: Proxy) -> None:
    store.put("a", [b"1"], mode="create")
    with pytest.raises(AlreadyExists):
        store.put("a", [b"2"], mode="create")
    proxy.reset(always(Answer(404, error_body("NoSuchBucket"))))
    with pytest.raises(InvalidInput, match="create it"):
        store.put("b", [b"2"], mode="create")


def test_a_server_that_ignores_ranges_is_not_believed(store: Store, proxy: Proxy) -> None:
    store.put("a", [b"0123456789"], mode="create")
    proxy.reset(always("whole"))
    for offset, length in ((2, 3), (-2, 2)):
        with pytest.raises(Unavailable):
            store.get_range("a", offset, length)


def test_a_short_answer_is_not_believed(store: Store, proxy: Proxy) -> None:
    store.put("a", [b"0123456789"], mode="create")
    proxy.reset(always("short"))
    with pytest.raises((Unavailable, Corrupt)):
        store.get_range("a", 2, 3)
    found = bytearray(4)
    with pytest.raises((Unavailable, Corrupt)):
        store.read_into("a", [ReadInto(0, [memoryview(found)])])


@pytest.mark.parametrize("spoil", ["lose", "drop", Answer(500)], ids=str)
def test_a_lost_completion_of_an_upload_is_found_out(
    store: Store, proxy: Proxy, spoil: Trouble
) -> None:
    def plan(request: Request) -> Trouble | None:
        if request.method != "POST" or "uploadId" not in request.path:
            return None
        completing.append(request)
        return spoil if len(completing) == 1 else None

    completing: list[Request] = []
    proxy.reset(plan)
    upload = store.upload("big")
    content = os.urandom(49 * MIB)
    upload.write([content])
    upload.commit()
    assert store.get("big", limit_bytes=len(content)) == content
    assert completing


def test_an_aborted_upload_leaves_no_parts(store: Store, proxy: Proxy) -> None:
    upload = store.upload("big")
    upload.write([bytes(49 * MIB)])
    upload.abort()
    assert proxy.methods()[-1] == "DELETE"
    with pytest.raises(InvalidInput, match="aborted"):
        upload.commit()
    proxy.reset(always("drop"))
    upload = store.upload("other")
    upload.write([b"1"])
    upload.abort()


def test_requests_of_an_upload(store: Store, proxy: Proxy, runtime: Runtime) -> None:
    upload = store.upload("small")
    upload.write([b"1" * MIB])
    upload.commit()
    assert proxy.methods() == ["PUT"]
    proxy.reset()
    upload = store.upload("big")
    for _ in range(32):
        upload.write([bytes(4 * MIB)])
    upload.commit()
    limits = runtime.limits
    parts = -(-128 * MIB // limits.part_bytes)
    assert sorted(proxy.methods()) == ["POST", "POST", *["PUT"] * parts]
    assert GIB // limits.pack_bytes * (2 + -(-limits.pack_bytes // limits.part_bytes)) <= 36


def test_requests_of_reads(store: Store, proxy: Proxy, runtime: Runtime) -> None:
    size = 2 * runtime.limits.read_request_bytes + 5
    store.put("a", [bytes(size)], mode="create")
    proxy.reset()
    store.read_into("a", [ReadInto(0, [memoryview(bytearray(size))])])
    assert proxy.methods() == ["GET"] * 3
    proxy.reset()
    store.read_into("a", [ReadInto(start * 100, [memoryview(bytearray(10))]) for start in range(7)])
    assert proxy.methods() == ["GET"] * 7
    proxy.reset()
    store.delete([f"gone/{number}" for number in range(1500)])
    assert proxy.methods() == ["POST"] * 2
    proxy.reset()
    store.get("a", limit_bytes=size)
    store.get_range("a", -5, 5)
    assert proxy.methods() == ["GET"] * 2


def test_a_listing_begins_at_its_prefix(store: Store, proxy: Proxy) -> None:
    for key in ("d/a1", "d/b1", "d/b2", "d/c1"):
        store.put(key, [b""], mode="create")
    proxy.reset()
    assert [info.key for info in store.list("d/b")] == ["d/b1", "d/b2"]
    assert "start-after=pre%2Fd%2Fa" in proxy.requests[0].path


CANARIES = {
    "access_key_id": "AKIACANARYCANARY",
    "secret_access_key": "canary/secret+canary",
    "session_token": "canary-session-token",
}


def test_secrets_are_never_shown(
    url: str, proxy: Proxy, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = open_store(url, runtime, CANARIES)
    secrets = "".join(
        f"<{tag}>{' '.join(CANARIES.values())}</{tag}>"
        for tag in ("AWSAccessKeyId", "StringToSign", "CanonicalRequest", "Odd")
    )
    shown = [repr(store), store.url, str(vars(store).get("_address"))]
    for answer in (
        Answer(403, error_body("SignatureDoesNotMatch", secrets)),
        Answer(400, error_body("InvalidToken", secrets)),
        Answer(500, secrets.encode()),
    ):
        proxy.reset(always(answer))
        for call in (
            lambda: store.put("a", [b"1"], mode="create"),
            lambda: store.get("a", limit_bytes=1),
            lambda: store.delete(["a"]),
            lambda: list(store.list("")),
        ):
            with pytest.raises(FwstoreError) as caught:
                call()
            shown += [repr(caught.value), "".join(traceback.format_exception(caught.value))]
    shown.append(caplog.text)
    for text in shown:
        assert not any(secret in text for secret in CANARIES.values())
    assert proxy.requests[0].headers["x-amz-security-token"] == CANARIES["session_token"]


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIACANARYCANARY:canary-secret@bucket/prefix",
        "s3://bucket/prefix?endpoint=https://AKIACANARYCANARY:canary-secret@host",
        "s3://bucket?access_key_id=AKIACANARYCANARY&secret_access_key=canary-secret",
        "s3://bucket?region=x&token=canary-secret",
    ],
)
def test_an_address_with_secrets_is_refused_without_repeating_them(
    address: str, runtime: Runtime
) -> None:
    with pytest.raises(InvalidInput) as caught:
        open_store(address, runtime)
    text = "".join(traceback.format_exception(caught.value))
    assert "canary-secret" not in text.replace(address, "")
    assert "canary-secret" not in str(caught.value)


def test_an_unknown_option_is_refused(url: str, runtime: Runtime) -> None:
    with pytest.raises(InvalidInput, match="option"):
        open_store(url, runtime, {"no_such_thing": "value"}).head("a")


def test_an_endpoint_is_given_once(url: str, runtime: Runtime) -> None:
    with pytest.raises(InvalidInput, match="endpoint"):
        open_store(url, runtime, {"endpoint": "http://elsewhere"}).head("a")


def in_child(function: Callable[[], None]) -> int:
    """Run a function in a forked child and return its exit code."""
    process = os.fork()
    if process == 0:
        code = 1
        # A library that waits for threads it lost waits for ever.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            function()
            code = 0
        except BaseException:  # noqa: BLE001 - a child of a test must not return into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_store_works_in_a_forked_child(store: Store, runtime: Runtime) -> None:
    store.put("parent", [b"1"], mode="create")

    def grandchild() -> None:
        assert store.get("child", limit_bytes=1) == b"2"

    def child() -> None:
        assert store.get("parent", limit_bytes=1) == b"1"
        found = bytearray(1)
        store.read_into("parent", [ReadInto(0, [memoryview(found)])])
        assert found == b"1"
        with pytest.raises(AlreadyExists):
            store.put("parent", [b"2"], mode="create")
        with pytest.raises(NotFound):
            store.head("absent")
        upload = store.upload("child")
        upload.write([b"2"])
        upload.commit()
        assert in_child(grandchild) == 0

    assert in_child(child) == 0
    assert store.get("child", limit_bytes=1) == b"2"


def test_requests_have_a_time_limit(url: str, proxy: Proxy) -> None:
    runtime = hasty_runtime(Limits(request_timeout_s=0.2))
    store = open_store(url, runtime)
    proxy.reset(always("stall"))
    try:
        with pytest.raises(Unavailable):
            store.get("a", limit_bytes=1)
        with pytest.raises(Unavailable):
            store.put("a", [b"1"], mode="create")
    finally:
        store.close()
        runtime.scheduler.close()


def test_a_silent_connection_leaves_time_for_another(url: str, proxy: Proxy) -> None:
    limits = Limits(request_timeout_s=8.0)
    with closing(open_store(url, system_runtime(limits))) as store:
        store.put("a", [b"1"], mode="create")
        for silence in ("stall", "freeze"):
            proxy.reset(first(silence))
            assert store.get("a", limit_bytes=1) == b"1"
        proxy.reset(first("lose_stall"))
        assert create_once(store, "b", [b"2"], system_runtime(limits))


def test_a_captive_portal_is_no_store(store: Store, proxy: Proxy, runtime: Runtime) -> None:
    """To everything it answers 200 and a page; a page is no object, and no empty listing either."""
    store.put("some/key", [b"1"], mode="create")
    calls: list[tuple[Callable[[], object], object]] = [
        (lambda: store.get("some/key", limit_bytes=100), b"1"),
        (lambda: store.head("some/key").size, 1),
        (lambda: store.get_range("some/key", -1, 1), b"1"),
        (lambda: [info.key for info in store.list("some/")], ["some/key"]),
        (lambda: create_once(store, "slot", [b"2"], runtime), True),
    ]
    for answer in (HTML, EMPTY):
        for call, expected in calls:
            proxy.reset(Rule(answer))
            assert call() == expected
        proxy.reset(always(answer))
        for call, _ in calls:
            with pytest.raises(Unavailable):
                call()


def test_an_empty_listing_is_asked_for_twice(store: Store, proxy: Proxy) -> None:
    assert list(store.list("some/")) == []
    assert proxy.methods() == ["GET", "HEAD", "GET"]
    proxy.reset()
    assert list(store.list("some/", limit=1)) == []
    assert proxy.methods() == ["GET"], "a part of a listing is a lower bound"
    store.put("some/key", [b"1"], mode="create")
    proxy.reset()
    assert [info.key for info in store.list("some/")] == ["some/key"]
    assert proxy.methods() == ["GET"]


def test_what_changed_on_its_way_to_the_store_is_sent_again(
    store: Store, proxy: Proxy, runtime: Runtime
) -> None:
    body = error_body("XAmzContentSHA256Mismatch")
    for call in (
        lambda: store.put("a", [b"1"], mode="overwrite"),
        lambda: create_once(store, "b", [b"1"], runtime),
    ):
        proxy.reset(first(Answer(400, body)))
        call()
        assert proxy.methods() == ["PUT", "PUT"]


def test_a_taken_slot_is_looked_at_twice(store: Store, proxy: Proxy, runtime: Runtime) -> None:
    """The answer to the create was lost, and a byte of what is read back changes: it is ours all the same."""
    proxy.reset(any_of(Rule("lose", method="PUT"), Rule("flip", method="GET")))
    assert create_once(store, "slot", [b"ours"], runtime)
    store.put("taken", [b"else"], mode="create")
    assert not create_once(store, "taken", [b"ours"], runtime)


def test_a_profile_is_read_by_boto3(
    url: str,
    proxy: Proxy,
    runtime: Runtime,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path_factory.mktemp("aws") / "credentials"
    file.write_text(
        "[mine]\naws_access_key_id = PROFILEKEY\naws_secret_access_key = profile-secret\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    variables = {"AWS_PROFILE": "mine", "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    store = open_store(url, replace(runtime, environment=Environment(variables)))
    store.put("a", [b"1"], mode="create")
    assert "Credential=PROFILEKEY/" in proxy.requests[-1].headers["authorization"]
    variables["AWS_PROFILE"] = "absent"
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(PermissionDenied, match="absent"):
        open_store(url, replace(runtime, environment=Environment(variables))).head("a")
