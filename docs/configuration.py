"""Print docs/configuration.md, made from the models that read fleet.yaml.

python docs/configuration.py > docs/configuration.md
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from a0backup.fleet import EXAMPLE, MEANINGS, A0cliSettings, Fleet, Node, PasswordSource, Polling

SECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "the file": (Fleet, "What stands at the outermost level."),
    "a0cli": (A0cliSettings, "May be left out as a whole."),
    "password": (PasswordSource, "Exactly one of the three is written. The password itself never stands in this file."),
    "polling": (Polling, "May be left out as a whole."),
    "nodes": (Node, "A list; each entry has these keys."),
}

HEAD = """\
# fleet.yaml

Made by `python docs/configuration.py > docs/configuration.md` from the models in `a0backup/fleet.py`.

The file is validated as a whole before anything is touched. An error names the file, the line, the key and what would
be right; a key that is not listed here is an error. Durations are written `15s`, `2m`, `6h`, `1d` or `1h30m`; a bare
number is refused. Relative paths start at the folder of the file; `~` is the home of the user who runs it.

`a0backup init` writes the example at the end, `a0backup schema` prints the JSON Schema for editors, `a0backup check`
tries the file on the nodes without changing anything.
"""

MORE = f"""\
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
            return f"duration, {mark.least} to {mark.most}"
    shape = next((any_of for any_of in shape.get("anyOf", []) if any_of["type"] != "null"), shape)
    if "enum" in shape:
        return ", ".join(f"`{choice}`" for choice in shape["enum"])
    if shape.get("format") == "path":
        return "path"
    match shape.get("type"):
        case "integer":
            return f"whole number, {shape['minimum']} to {shape['maximum']}"
        case "array" if "enum" in shape["items"]:
            return "list of " + ", ".join(f"`{choice}`" for choice in shape["items"]["enum"])
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
