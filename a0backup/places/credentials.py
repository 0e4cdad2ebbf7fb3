"""The credentials of a place, where a Prefect Secret block has them.

They are loaded each time the place is opened, and kept nowhere. No error ever quotes them, not even in part.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from a0backup.errors import PlaceError
from a0backup.fleet.copies import Copy

_LOADED_WITHIN = 60.0  # seconds

# Reads the value of a Secret block of the engine by its name.
ReadBlock = Callable[[str], Awaitable[object]]


class S3Credentials(BaseModel):
    """What opens an s3:// place; the names are those of ~/.aws/credentials."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aws_access_key_id: str = Field(min_length=1)
    aws_secret_access_key: SecretStr = Field(min_length=1)
    aws_session_token: SecretStr | None = None

    def keys(self) -> tuple[str, str, str | None]:
        """Return them in the order in which a session of boto3 takes them."""
        token = self.aws_session_token.get_secret_value() if self.aws_session_token else None
        return self.aws_access_key_id, self.aws_secret_access_key.get_secret_value(), token


class SftpCredentials(BaseModel):
    """What opens an sftp:// place: a private key, as text, and its passphrase, if any; or a password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    private_key: SecretStr | None = Field(default=None, min_length=1)
    passphrase: SecretStr | None = None
    password: SecretStr | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.private_key is None) == (self.password is None) or (self.passphrase and not self.private_key):
            raise ValueError("private_key or password")
        return self


Credentials = S3Credentials | SftpCredentials

FORMS = {
    "s3": '{"aws_access_key_id": "…", "aws_secret_access_key": "…"}, with "aws_session_token" for a temporary key',
    "sftp": '{"private_key": "…"}, with "passphrase" if it has one, or {"password": "…"}',
}


async def load(copy: Copy, blocks: ReadBlock | None) -> Credentials | None:
    """Return the credentials from the Secret block of *copy*; None if they come from elsewhere. Raise PlaceError.

    Without *blocks*, there is no engine that could be asked.
    """
    name = copy.secret_block
    if name is None:
        return None
    if blocks is None:
        raise PlaceError(
            copy.name,
            f"its credentials are in the Secret block {name}, which only a run of Prefect can read",
            "start the deployment that does the same, such as copy-vault/daily-copy or verify-vault/nightly-verify; or "
            "use a copy of fleet.yaml without `secret_block`, and credentials from the environment, ~/.aws or ~/.ssh",
        )
    failure = ""
    try:
        async with asyncio.timeout(_LOADED_WITHIN):
            value = await blocks(name)
    except Exception as error:  # noqa: BLE001 - the engine's many errors may quote the value of the block
        failure = type(error).__name__
    # Raised here, because an error raised in the handler would keep the other one as its context.
    if failure:
        reason = f"its Secret block {name} cannot be loaded ({failure})"
        raise PlaceError(copy.name, reason, f"store it with `a0backup engine register --secret {name}=FILE`")
    return credentials_in(copy, value)


def credentials_in(copy: Copy, value: object) -> Credentials:
    """Return the credentials in *value*, JSON or what was parsed from it. Raise PlaceError, which never quotes it."""
    kind: type[Credentials] = S3Credentials if copy.scheme == "s3" else SftpCredentials
    try:
        return kind.model_validate(json.loads(value) if isinstance(value, str) else value)
    except (ValueError, RecursionError):  # ValidationError is a ValueError
        pass
    raise PlaceError(
        copy.name, f"its Secret block {copy.secret_block} does not hold credentials", f"store {FORMS[copy.scheme]}"
    )
