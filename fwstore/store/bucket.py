"""The address of a bucket, and what is asked of an object store client.

Invariant: holds no secret, so it can be shown, logged and stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketAddress:
    """Where an object store is.

    Attributes:
        kind: "s3", "gcs" or "azure".
        scheme: As in the URL.
        bucket: Bucket or container.
        prefix: What all keys begin with, without slashes at its ends; may be empty.
        endpoint: URL of the service, when it is not the default one.
        region: Region, when it is not that of the environment.
    """

    kind: str
    scheme: str
    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None

    @property
    def url(self) -> str:
        """The address as `open_store` takes it."""
        path = f"/{self.prefix}" if self.prefix else ""
        named = {"endpoint": self.endpoint, "region": self.region}
        query = urlencode({name: value for name, value in named.items() if value}, safe=":/")
        return f"{self.scheme}://{self.bucket}{path}" + (f"?{query}" if query else "")
