"""How an S3 bucket is set up, for advice.

Invariant: only reads the configuration of the bucket; what may not be read is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fwstore.store.object import ObjectStore
from fwstore.store.probe import Check

if TYPE_CHECKING:
    from fwstore.sched.runtime import Runtime

_CREDENTIALS = {
    "access_key_id": "aws_access_key_id",
    "secret_access_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
    "token": "aws_session_token",
}
_TIMEOUT_S = 10


def inspect_bucket(store: ObjectStore, runtime: Runtime) -> list[Check]:
    """Return what the versioning and the lifecycle rules of the bucket mean for checkpoints."""
    if find_spec("boto3") is None:
        return [_unknown("bucket settings", "boto3 is not installed: pip install 'fwstore[s3]'")]
    client = _client(store, runtime)
    try:
        return [
            _inspect("versioning", lambda: _versioning(client, store.address.bucket)),
            _inspect(
                "lifecycle", lambda: _lifecycle(client, store.address.bucket, store.address.prefix)
            ),
        ]
    finally:
        client.close()


def _client(store: ObjectStore, runtime: Runtime) -> Any:
    import boto3
    from botocore.config import Config

    options = store.options
    settings: dict[str, Any] = {
        theirs: options[ours] for ours, theirs in _CREDENTIALS.items() if ours in options
    }
    settings["endpoint_url"] = options.get("endpoint") or store.address.endpoint
    settings["region_name"] = options.get("region") or store.address.region or _region(runtime)
    settings["config"] = Config(
        connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"max_attempts": 2}
    )
    return boto3.client("s3", **settings)


def _region(runtime: Runtime) -> str | None:
    environment = runtime.environment
    return environment.text("AWS_REGION") or environment.text("AWS_DEFAULT_REGION")


def _inspect(name: str, inspect: Callable[[], Check]) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return inspect()
    except (BotoCoreError, ClientError) as error:
        return _unknown(name, f"may not be read ({type(error).__name__})")


def _versioning(client: Any, bucket: str) -> Check:
    status = client.get_bucket_versioning(Bucket=bucket).get("Status", "off")
    kept = status == "Enabled"
    return Check(
        "versioning",
        passed=not kept,
        detail=f"versioning is {status.lower()}",
        advice="add a lifecycle rule that expires noncurrent versions: deleted checkpoints are still paid for"
        if kept
        else "",
        required=False,
    )


def _lifecycle(client: Any, bucket: str, prefix: str) -> Check:
    from botocore.exceptions import ClientError

    try:
        rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
        rules = []
    active = [rule for rule in rules if rule["Status"] == "Enabled"]
    deleting = [
        rule.get("ID", "?") for rule in active if "Expiration" in rule and _meets(rule, prefix)
    ]
    if deleting:
        return Check(
            "lifecycle",
            passed=False,
            detail=f"the rules {', '.join(deleting)} delete objects by age",
            advice="remove them for this prefix: they delete parts of checkpoints that are still in use",
        )
    aborting = any(
        "AbortIncompleteMultipartUpload" in rule and _meets(rule, prefix) for rule in active
    )
    return Check(
        "lifecycle",
        passed=aborting,
        detail="unfinished uploads are aborted"
        if aborting
        else "nothing removes unfinished uploads",
        advice=""
        if aborting
        else "add a rule that aborts incomplete multipart uploads after 7 days",
        required=False,
    )


def _meets(rule: Mapping[str, Any], prefix: str) -> bool:
    condition = rule.get("Filter", {})
    named = condition.get("Prefix", condition.get("And", {}).get("Prefix", rule.get("Prefix", "")))
    return bool(prefix.startswith(named) or named.startswith(prefix))


def _unknown(name: str, detail: str) -> Check:
    return Check(name, passed=True, detail=detail, required=False)
