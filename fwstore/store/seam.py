"""Errors of object stores, as errors of fwstore: the one seam.

Invariant: what leaves here holds no credential, neither in its text nor in the error it is chained to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fwstore.base.errors import (
    AlreadyExists,
    Corrupt,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)

_DETAIL_CHARACTERS = 300
_STATUS = re.compile(r"status code: ([0-9]{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_SECRET_TAGS = re.compile(
    r"<(AWSAccessKeyId|StringToSign|StringToSignBytes|CanonicalRequest|CanonicalRequestBytes"
    r"|SignatureProvided|Token-0|SecurityToken)>.*?</\1>",
    re.DOTALL,
)
_SECRET_PARAMETERS = re.compile(
    r"(?i)\b(x-amz-signature|x-amz-credential|x-amz-security-token|authorization|sig|signature)=[^&\s\"]+"
)
_NO_CREDENTIALS = re.compile(r"169\.254\.16[89]\.|metadata\.google\.internal|\[fd00:ec2::254\]")
_OTHER_REGION = "redirect without LOCATION"

Reaction = tuple[type[FwstoreError], str]

_BUCKET = "the bucket does not exist; create it or correct the address"
_REGION = "the bucket is in another region; set region"
_KEYS = "the credentials are not accepted; check that they are set, complete and not expired"
_ACCESS = (
    "the credentials do not allow it; grant get, put, list and delete on the bucket and prefix"
)
_FULL = "the store is full or the quota is used up"
_SHORT = "the object is too short"
_CHANGED = "what arrived is not what was sent"

_BY_CODE: dict[str, Reaction] = {
    "NoSuchBucket": (InvalidInput, _BUCKET),
    "InvalidBucketName": (InvalidInput, _BUCKET),
    "ContainerNotFound": (InvalidInput, _BUCKET),
    "PermanentRedirect": (InvalidInput, _REGION),
    "AuthorizationHeaderMalformed": (InvalidInput, _REGION),
    "ExpiredToken": (PermissionDenied, _KEYS),
    "InvalidToken": (PermissionDenied, _KEYS),
    "InvalidAccessKeyId": (PermissionDenied, _KEYS),
    "SignatureDoesNotMatch": (PermissionDenied, _KEYS),
    "RequestTimeTooSkewed": (PermissionDenied, "the clock of this host is wrong; set it"),
    "QuotaExceeded": (LimitExceeded, _FULL),
    "EntityTooLarge": (LimitExceeded, "the store allows no object of that size"),
    "InvalidRange": (Corrupt, _SHORT),
    "NotImplemented": (Unsupported, "the store does not implement this"),
    "RequestTimeout": (Unavailable, "the store did not get the request in time"),
    "BadDigest": (Unavailable, _CHANGED),
    "IncompleteBody": (Unavailable, _CHANGED),
    "XAmzContentSHA256Mismatch": (Unavailable, _CHANGED),
    "XAmzContentChecksumMismatch": (Unavailable, _CHANGED),
    "OperationAborted": (Unavailable, "the store was doing something else with the key"),
}
_BY_STATUS: dict[int, Reaction] = {
    301: (InvalidInput, _REGION),
    400: (InvalidInput, "the store refuses the request"),
    401: (PermissionDenied, _KEYS),
    403: (PermissionDenied, _ACCESS),
    404: (NotFound, "no such object"),
    405: (Unsupported, "the store does not implement this"),
    409: (AlreadyExists, "the key is taken, or being written"),
    412: (AlreadyExists, "the key is taken"),
    416: (Corrupt, _SHORT),
    501: (Unsupported, "the store does not implement this"),
    507: (LimitExceeded, _FULL),
}
_BY_CLASS: dict[str, Reaction] = {
    "FileNotFoundError": (NotFound, "no such object"),
    "NotFoundError": (NotFound, "no such object"),
    "AlreadyExistsError": (AlreadyExists, "the key is taken"),
    "PreconditionError": (AlreadyExists, "the key is taken"),
    "PermissionDeniedError": (PermissionDenied, _ACCESS),
    "UnauthenticatedError": (PermissionDenied, _KEYS),
    "NotSupportedError": (Unsupported, "the store does not implement this"),
    "NotImplementedError": (Unsupported, "the store does not implement this"),
    "InvalidPathError": (InvalidInput, "the store cannot hold such a key"),
    "UnknownConfigurationKeyError": (InvalidInput, "there is no such option"),
    "ValueError": (InvalidInput, "an option or argument is wrong"),
}
_TRY_AGAIN: Reaction = (Unavailable, "the store did not answer, or asked to try again")


class Seam:
    """Translates the errors of one store.

    Args:
        url: Of the store, without credentials.
        secrets: Texts that must never be shown.
    """

    def __init__(self, url: str, secrets: Iterable[str]) -> None:
        self._url = url
        self._secrets = tuple(sorted(filter(None, secrets), key=len, reverse=True))

    @contextmanager
    def translated(self, library: Any, action: str, key: str) -> Iterator[None]:
        """Turn an error of obstore into the error of the reaction it asks for."""
        try:
            yield
        except FwstoreError:
            raise
        except (library.exceptions.BaseError, OSError, ValueError, RuntimeError) as error:
            raw = str(error)
            reaction, advice = _reaction(type(error).__name__, raw)
            detail = self._scrub(raw.partition("\n\nDebug source:")[0])[:_DETAIL_CHARACTERS]
            where = f"{key} in {self._url}" if key else self._url
            message = f"cannot {action} {where}: {advice} ({detail})"
            raise reaction(message) from (error if self._scrub(raw) == raw else None)

    def _scrub(self, text: str) -> str:
        text = _SECRET_TAGS.sub(r"<\1>***</\1>", text)
        text = _SECRET_PARAMETERS.sub(r"\1=***", text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _reaction(class_name: str, text: str) -> Reaction:
    code = _CODE.search(text)
    if code and code[1] in _BY_CODE:
        return _BY_CODE[code[1]]
    status = _STATUS.search(text)
    if class_name in _BY_CLASS:
        return _BY_CLASS[class_name]
    if _OTHER_REGION in text:
        return InvalidInput, _REGION
    if _NO_CREDENTIALS.search(text):
        return PermissionDenied, "no credentials were found, and this host has no role; set them"
    return _BY_STATUS.get(int(status[1]), _TRY_AGAIN) if status else _TRY_AGAIN
