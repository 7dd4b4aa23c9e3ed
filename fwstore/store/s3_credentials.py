"""AWS credentials that only the AWS library can find: profiles, SSO, assumed roles.

Invariant: keys in the environment, and the roles of a machine or container, need no boto3.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fwstore.base.config import Environment
from fwstore.base.errors import PermissionDenied, Unsupported

_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
# obstore follows these by itself.
_NATIVE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def find_provider(environment: Environment) -> object | None:
    """Return a source of credentials for obstore, or None when it finds them without help.

    Raises:
        Unsupported: A profile is named, but boto3 is not installed.
        PermissionDenied: The profile does not exist or has no credentials.
    """
    profile = environment.text("AWS_PROFILE") or environment.text("AWS_DEFAULT_PROFILE")
    if profile is None and (_is_native(environment) or not _has_files(environment)):
        return None
    if find_spec("boto3") is None:
        if profile is None:
            return None
        raise Unsupported(
            f"the AWS profile {profile!r} needs boto3: pip install 'fwstore[s3]', or set AWS_ACCESS_KEY_ID"
        )
    return _boto3_provider(profile)


def _boto3_provider(profile: str | None) -> object | None:
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=profile))
    except ValueError:
        # The files configure no credentials: leave it to the roles of the machine.
        return None
    except BotoCoreError as error:
        raise PermissionDenied(f"the AWS profile {profile!r} cannot be used: {error}") from error


def _is_native(environment: Environment) -> bool:
    return any(environment.text(name) for name in _NATIVE)


def _has_files(environment: Environment) -> bool:
    paths = (environment.text(name) or default for name, default in _FILES.items())
    return any(Path(path).expanduser().is_file() for path in paths)
