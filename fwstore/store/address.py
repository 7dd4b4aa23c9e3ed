"""From an address to a store.

Invariant: an address never carries a secret; one that does is refused without being repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from fwstore.base.errors import InvalidInput
from fwstore.store.base import Store
from fwstore.store.directory import DirectoryStore
from fwstore.store.memory import MemoryStore
from fwstore.store.naming import PREFIX_BYTES_MAX, is_key

if TYPE_CHECKING:
    from fwstore.sched.runtime import Runtime
    from fwstore.store.bucket import BucketAddress

_BUCKET_KINDS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "azure": "azure",
}
REMOTE_SCHEMES = frozenset(_BUCKET_KINDS)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
_MALFORMED = re.compile(r"[A-Za-z0-9+.-]+:/")
_QUERY = frozenset({"endpoint", "region"})
_KNOWN = "a path, file://, memory://name, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"


def open_store(url: str, runtime: Runtime, options: Mapping[str, object] | None = None) -> Store:
    """Return the store at an address; nothing is read or written yet.

    Args:
        url: A path or a URL; for object stores `?endpoint=...&region=...` may follow.
        runtime: Clock, ids, threads and limits.
        options: For object stores: what the `obstore` configuration of that store takes, such as
            `access_key_id`, `secret_access_key`, `session_token`, `region`, `endpoint`.

    Raises:
        InvalidInput: The address or an option is wrong.
    """
    if "\0" in url:
        raise InvalidInput(f"{url!r} is not an address: it holds a null character")
    match = _SCHEME.match(url)
    scheme = match["scheme"].lower() if match else "file"
    if scheme in _BUCKET_KINDS:
        # Imported when needed: a repository in a directory does not pay for it.
        from fwstore.store.object import ObjectStore

        return ObjectStore(parse_bucket(url), runtime, options or {})
    if options:
        raise InvalidInput(
            f"a {scheme} store takes no options, but got {', '.join(sorted(options))}"
        )
    if scheme == "memory":
        return MemoryStore(runtime, url.partition("://")[2])
    if scheme == "file":
        return DirectoryStore(_path(url) if match else _plain_path(url), runtime)
    raise InvalidInput(f"{scheme}:// is not a scheme that fwstore knows; write {_KNOWN}")


def parse_bucket(url: str) -> BucketAddress:
    """Return the parts of the URL of an object store.

    Raises:
        InvalidInput: It has no bucket, an unusable prefix, an unknown parameter, or a secret.
    """
    from fwstore.store.bucket import BucketAddress

    parts = urlsplit(url)
    _refuse_secrets(parts)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(query.keys() - _QUERY)
    if unknown or parts.fragment:
        raise InvalidInput(
            f"the address of bucket {parts.netloc} has the parameter {', '.join(unknown) or '#'}; only endpoint "
            "and region are known, credentials come from the environment or from options"
        )
    prefix = parts.path.removeprefix("/").removesuffix("/")
    if not parts.netloc or (prefix and not _is_prefix(prefix)):
        raise InvalidInput(
            f"{parts.scheme}://{parts.netloc}{parts.path} is not an address; write {_KNOWN}"
        )
    return BucketAddress(
        kind=_BUCKET_KINDS[parts.scheme],
        scheme=parts.scheme,
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=query.get("endpoint"),
        region=query.get("region"),
    )


def _is_prefix(prefix: str) -> bool:
    return is_key(prefix) and len(prefix.encode()) <= PREFIX_BYTES_MAX


def _refuse_secrets(parts: SplitResult) -> None:
    endpoint = urlsplit(dict(parse_qsl(parts.query)).get("endpoint", ""))
    if "@" in parts.netloc or "@" in endpoint.netloc:
        host = parts.netloc.rpartition("@")[2]
        raise InvalidInput(
            f"the address of bucket {host} holds credentials (not shown); addresses are logged and stored, so pass "
            "credentials by environment or options, and replace these: they may have been seen"
        )


def _plain_path(path: str) -> Path:
    if not path or _MALFORMED.match(path):
        raise InvalidInput(f"{path!r} is not an address; write {_KNOWN}")
    return Path(path).expanduser()


def _path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path:
        raise InvalidInput(f"{url!r} is not the URL of a local directory; write file:///path")
    return unquote(parts.path)
