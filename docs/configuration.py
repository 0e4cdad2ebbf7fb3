"""Print docs/configuration.md, made from the models that read fleet.yaml.

python docs/configuration.py > docs/configuration.md
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from a0backup.fleet.example import EXAMPLE
from a0backup.fleet.kinds import EXPORT_FIELDS
from a0backup.fleet.models import (
    FIRST_SPLIT_BUILD,
    MEANINGS,
    A0cliSettings,
    ContentsLimits,
    Fleet,
    Node,
    PasswordSource,
    Polling,
)

SECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "the file": (Fleet, "What stands at the outermost level."),
    "a0cli": (A0cliSettings, "May be left out as a whole."),
    "password": (PasswordSource, "Exactly one of the four is written. The password itself never stands in this file."),
    "polling": (Polling, "May be left out as a whole."),
    "contents": (ContentsLimits, "May be left out as a whole."),
    "nodes": (Node, "A list; each entry has these keys."),
}

HEAD = """\
# fleet.yaml

Made by `python docs/configuration.py > docs/configuration.md` from the models in `a0backup/fleet/models.py`.

The file is validated as a whole before anything is touched. An error names the file, the line, the key and what would
be right; a key that is not listed here is an error. Durations are written `15s`, `2m`, `6h`, `1d` or `1h30m`, sizes
`500GB` or `2TB` (in powers of 1000) or `500GiB` (of 1024); a bare number is refused. Relative paths start at the folder
of the file; `~` is the home of the user who runs it.

`a0backup init` writes the example at the end, `a0backup schema` prints the JSON Schema for editors, `a0backup check`
tries the file on the nodes without changing anything.
"""

MORE = f"""\
## Sealed or shared

With `sealed_to` each backup gets a new random password, which only the holder of a recovery key's private part can
read; that part stays off the machine that makes backups. With more than one recovery key any of them opens each
backup. `a0backup key create` makes a key pair.

```yaml
password:
  sealed_to: [recovery.pub.pem, colleague.pub.pem]
```

With `file`, `env` or `secret_block` all backups share one password. That is weaker: a0cli encrypts with AES-256-CTR,
its key and IV made from the password alone, without a salt. One password thus gives one keystream, and the XOR of two
artifacts is the XOR of what is in them: who has two artifacts, and knows or guesses parts of one, reads those parts of
the other without the password. `a0backup check` and the report of a run say so.

## kinds

| entry | what is made |
| --- | --- |
| `backup` | The backup of the node. From build {FIRST_SPLIT_BUILD} on it leaves out the encryption keys. |
| `backup-sensitive` | The encryption keys, from build {FIRST_SPLIT_BUILD} on. A full recovery needs both. |
| `user-export: [FIELD, …]` | An export of the users with these fields: {
    ", ".join(f"`{field}`" for field in EXPORT_FIELDS)
}. |

```yaml
kinds:
  - backup
  - backup-sensitive
  - user-export: [_id, email]
```

`backup-sensitive` is left out for nodes whose `build` is below {FIRST_SPLIT_BUILD}. Where only one half of a later
build is made or stored, `a0backup check` and the report of the run warn that an installation cannot be fully recovered
from it.

## existing

What a run does with a finished backup that it finds on a node and that this vault did not start. `--existing` of
`a0backup run` overrides it once.

| value | what happens |
| --- | --- |
| `preserve` | It is retrieved, verified, stored with password `unknown`, deleted on the node; then a new one is made. |
| `replace` | It is deleted on the node **unkept**; then a new one is made. |
| `fail` | The node is left alone and fails with `ForeignBackupError`. |

One that is still in progress is awaited and then dealt with as above; with `fail` the node fails at once.

## a0cli.replies

What a0cli prints in many situations is not documented. A reply that is not known never counts as success: the step
fails with `UnknownReplyError` and quotes it, and `a0backup check` prints the line that teaches it:

```yaml
a0cli:
  replies: {{absent: ["Nothing stored"]}}
```

The meanings are {", ".join(f"`{meaning}`" for meaning in MEANINGS)}; each takes a list of wordings.
A wording is the whole message; case, white space, colours and the final full stop do not count.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, (model, remark) in SECTIONS.items():
        parts.append(f"## {name}\n\n{remark}\n\n" + "\n".join(table(model)) + "\n")
    parts += [MORE, f"## The file that `a0backup init` writes\n\n```yaml\n{EXAMPLE}```\n"]
    return "\n".join(parts)


def table(model: type[BaseModel]) -> Iterator[str]:
    """Yield the table of a model's keys."""
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {values(field, properties[name])} | {default(field)} | {meaning} |"


def values(field: FieldInfo, shape: dict[str, Any]) -> str:
    """Return in words what may be written as the value of *field*, whose JSON Schema is *shape*."""
    for mark in field.metadata:
        if hasattr(mark, "least"):
            return f"{'size' if field.annotation is int else 'duration'}, {mark.least} to {mark.most}"
    forms = [form for form in shape.get("anyOf", []) if form.get("type") != "null"]
    if len(forms) == 1:
        return values(field, forms[0])
    if forms:
        return " or ".join(values(field, form) for form in forms)
    if "enum" in shape:
        return ", ".join(f"`{choice}`" for choice in shape["enum"])
    if shape.get("format") == "path":
        return "path"
    match shape.get("type"):
        case "integer":
            return f"whole number, {shape['minimum']} to {shape['maximum']}"
        case "number":
            return f"number, {shape['minimum']} to {shape['maximum']}"
        case "array" if shape["items"].get("format") == "path":
            return f"list of {shape['minItems']} to {shape['maxItems']} paths"
        case "array":
            return "list, see below"
        case "string":
            return "text"
        case _:
            return "see below"


def default(field: FieldInfo) -> str:
    """Return the default of *field* as one would write it."""
    value = field.default
    if field.is_required():
        return "**required**"
    if value is PydanticUndefined or value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{value.as_posix() if isinstance(value, Path) else value}`"


if __name__ == "__main__":
    print(page(), end="")
