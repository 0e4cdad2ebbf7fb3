"""What is handed out for a restore carries no markup of the node's."""

from pathlib import Path

import pytest

from a0backup.upkeep.handoff import page
from tests.support.stored import store


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "[open](https://elsewhere.example/x)",
        "![](https://elsewhere.example/seen.png)",
        "a | b\n\n# A heading",
        "`code` **bold** https://elsewhere.example www.elsewhere.example",
        "```\n</table><img src=x>",
    ],
)
def test_the_page_shows_the_name_from_the_node_as_text_only(tmp_path: Path, name: str) -> None:
    manifest = store(tmp_path / "vault", "Passw0rd").model_copy(update={"name_on_node": name})
    [line] = [line for line in page(manifest).splitlines() if line.startswith("| name on the node |")]
    shown = line.removeprefix("| name on the node | ").removesuffix(" |")
    for markup in ("<", ">", "://", "www.", "|", "`", "*", "[", "]", "!", "#"):
        assert markup not in shown.replace(f"\\{markup}", "").replace("\\://", "").replace("www\\.", ""), shown
    assert len(page(manifest).splitlines()) == len(page(manifest.model_copy(update={"name_on_node": "a"})).splitlines())
