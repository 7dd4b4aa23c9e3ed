"""The obstore clients of one bucket.

Invariant: a conditional request is sent at most once. A client that repeats it by itself could meet its
own first attempt and report that another one has won.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fwstore.base.config import Environment, Limits
from fwstore.base.errors import InvalidInput
from fwstore.base.units import MIB
from fwstore.sched.loans import Loans
from fwstore.store.bucket import BucketAddress
from fwstore.store.library import load_obstore
from fwstore.store.seam import Seam

_PART_BYTES_MIN = 5 * MIB
_CONNECT_TIMEOUT_S = 5
_SILENCE_SHARE = 0.25
_RETRIES_MAX = 20
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
)
_PUBLIC_OPTIONS = frozenset({"endpoint", "region", "allow_http"})
_SECRET_CHARACTERS_MIN = 6


@dataclass(frozen=True)
class Clients:
    """Two clients of one bucket, and the library they belong to.

    Attributes:
        library: The package `obstore` of this process.
        once: Sends each request once.
        patient: Repeats requests; for uploads in parts, whose requests nothing else can repeat.
        part_bytes: Size of a part of an upload.
        parts: Memory for them.
        process: The process whose threads serve them.
    """

    library: Any
    once: Any
    patient: Any
    part_bytes: int
    parts: Loans
    process: int


class ClientMaker:
    """Makes the clients of one bucket, anew in each forked process.

    Args:
        address: The bucket.
        options: As given to `open_store`.
        limits: Timeouts.
        environment: Where credentials and endpoints may be named.

    Attributes:
        seam: Translates the errors of these clients.
        options: As given.
    """

    def __init__(
        self,
        address: BucketAddress,
        options: Mapping[str, object],
        limits: Limits,
        environment: Environment,
    ) -> None:
        self._address = address
        self.options = dict(options)
        self._limits = limits
        self._environment = environment
        self._clients: Clients | None = None
        self.seam = Seam(address.url, _secrets(options, environment))

    def clients(self) -> Clients:
        """Return the clients of this process."""
        if self._clients is None or self._clients.process != os.getpid():
            library = load_obstore()
            part_bytes = max(self._limits.part_bytes, _PART_BYTES_MIN)
            with self.seam.translated(library, "open", ""):
                make = self._constructor(library)
                self._clients = Clients(
                    library=library,
                    once=make({"max_retries": 0}, read_timeout=self._silence()),
                    patient=make(self._retries()),
                    part_bytes=part_bytes,
                    parts=Loans(part_bytes, self._limits.inflight_bytes // part_bytes),
                    process=os.getpid(),
                )
        return self._clients

    def close(self) -> None:
        """Drop the clients; they are made anew when needed."""
        self._clients = None

    def _constructor(self, library: Any) -> Callable[..., Any]:
        address = self._address
        config = self._config()
        allow_http = config.pop("allow_http", None)
        client_options = {
            "timeout": timedelta(seconds=self._limits.request_timeout_s),
            "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
            "user_agent": "fwstore",
            "allow_http": self._is_plain_http(config) if allow_http is None else bool(allow_http),
        }
        extra = {"credential_provider": provider} if (provider := self._provider()) else {}
        kinds = {"s3": "S3Store", "gcs": "GCSStore", "azure": "AzureStore"}
        kind = getattr(library.store, kinds[address.kind])

        def make(retries: dict[str, object], **more: timedelta) -> Any:
            return kind(
                address.bucket,
                prefix=address.prefix or None,
                config=config,
                client_options=client_options | more,
                retry_config=retries,
                **extra,
            )

        return make

    def _config(self) -> dict[str, object]:
        config = dict(self.options)
        for name in ("endpoint", "region"):
            value = getattr(self._address, name)
            if value is not None and config.setdefault(name, value) != value:
                raise InvalidInput(
                    f"{name} of {self._address.url} differs between address and options"
                )
        return config

    def _is_plain_http(self, config: Mapping[str, object]) -> bool:
        names = (config.get("endpoint"), *map(self._environment.text, _ENDPOINTS))
        return next((str(name) for name in names if name), "").startswith("http://")

    def _silence(self) -> timedelta:
        # A request that nobody answers leaves time for another one.
        return timedelta(seconds=self._limits.request_timeout_s * _SILENCE_SHARE)

    def _retries(self) -> dict[str, object]:
        return {
            "max_retries": _RETRIES_MAX,
            "retry_timeout": timedelta(seconds=self._limits.request_timeout_s),
        }

    def _provider(self) -> object | None:
        if self._address.kind != "s3" or "access_key_id" in self.options:
            return None
        from fwstore.store.s3_credentials import find_provider

        return find_provider(self._environment)


def _secrets(options: Mapping[str, object], environment: Environment) -> list[str]:
    given = [str(value) for name, value in options.items() if name not in _PUBLIC_OPTIONS]
    found = [environment.text(name) or "" for name in _SECRET_VARIABLES]
    # Shorter ones are flags and numbers, whose removal would garble messages.
    return [text for text in (*given, *found) if len(text) >= _SECRET_CHARACTERS_MIN]
