"""`health` in fleet.yaml: the health endpoints of the nodes."""

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from a0backup.fleet.fields import FilePath, Strict, printable
from a0backup.fleet.secrets import SecretSource

_FORM = "write https://{host}/health, where {host} stands for the node's host and {name} for its name"


def _url(value: str) -> str:
    """Return the form of an address; each node must have one of its own."""
    text = printable(value).rstrip("/")
    filled = _filled(text, host="host", name="name")
    try:
        parts = urlsplit(filled)
        _ = parts.port
    except ValueError:
        raise ValueError(_FORM) from None
    if parts.scheme == "http":
        raise ValueError("write https://: the key is sent with each request")
    if parts.username is not None or parts.password is not None:
        raise PydanticCustomError(
            "literal_password", "never write credentials into an address: the key has a source of its own, `key:`"
        )
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or set("{}") & set(filled):
        raise ValueError(_FORM)
    if filled == text:
        raise ValueError(f"is the same for all nodes: {_FORM}")
    return text


def _filled(form: str, *, host: str, name: str) -> str:
    return form.replace("{host}", f"[{host}]" if ":" in host else host).replace("{name}", name)


class HealthKey(SecretSource):
    """Where the key of the health endpoints comes from: exactly one source."""

    what: ClassVar[str] = "key"
    section: ClassVar[str] = "key"
    for_a0cli: ClassVar[bool] = False

    @property
    def sealed_to(self) -> None:
        """No recovery key seals it."""
        return


class Health(Strict):
    """The health endpoints of the nodes, which `check` asks, and a run before it starts a backup."""

    url: Annotated[str, AfterValidator(_url)] = Field(
        description="The address of a node's endpoints, such as https://{host}/health: {host} stands for the node's "
        "host, {name} for its name. `/status/disk` and the others are below it, `/testall` beside it.",
        json_schema_extra={"pattern": "^https://"},
    )
    key: HealthKey = Field(description="Where the key of the endpoints comes from.")
    ca_file: FilePath | None = Field(
        default=None,
        description="The certificates (PEM) to trust, relative to the fleet file; those of this machine without it.",
    )
    on_failure: Literal["refuse", "warn"] = Field(
        default="refuse",
        description="What a run does if a node's disk or replica set is not well. refuse: the node is not asked for a "
        "backup, and fails. warn: it is asked, with a warning.",
    )

    def url_of(self, host: str, name: str) -> str:
        """Return the address of the endpoints of the node *name* at *host*."""
        return _filled(self.url, host=host, name=name)
