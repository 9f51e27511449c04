"""What the pages of docs/reference say: the registries, the model of a job and the commands, as Markdown."""

import re
from collections.abc import Iterator

TOPICS = {
    "operators": ("operators", "draws"),
    "samplers": ("samplers",),
    "priors": ("priors",),
    "metrics": ("metrics",),
    "fields": ("fields",),
    "jobs": ("jobs",),
}
"""Of a page, the topics of `kintsugi list` on it."""

OF = {"image": "of an image", "set": "of a set", "clips": "of clips"}
TITLES = {"draws": "What `draw` names"}


def content(page: str) -> str:
    """What a page says below its introduction."""
    return commands() if page == "commands" else "\n".join(text for t in TOPICS[page] for text in topic(t))


def commands() -> str:
    """The help of every command."""
    import typer
    from typer.cli import get_docs_for_click

    from kintsugi.jobs.cli import app

    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="kintsugi")
    _, _, each = text.partition("\n## ")
    return "## " + re.sub(r"\n\*\*Usage\*\*:\n\n```console\n\$ (.*)\n```", r"\n```sh\n\1\n```", each)


def topic(name: str) -> Iterator[str]:
    """A topic of `kintsugi list`, entry by entry."""
    from kintsugi.jobs.list import contents

    if title := TITLES.get(name):
        yield f"## {title}\n"
    columns, rows = contents(name)
    group = ""
    for row in rows:
        if name == "fields" and group != (group := row[0].partition(".")[0]):
            yield f"## {group}\n"
        yield (term if name in ("fields", "jobs") else section)(dict(zip(columns, row, strict=True)))
    if name == "samplers":
        from kintsugi import samplers

        yield "## Parameters that samplers share\n"
        yield plain((samplers.__doc__ or "").split("\n\n")[-1])


def section(row: dict[str, str]) -> str:
    """An entry of a registry under a heading of its own: its parameters with their defaults, what it is."""
    settings = " · ".join(f"`{one}`" for one in row.get("parameters", "").splitlines())
    facts = {"of": OF.get(row.get("of", "")), "better": row.get("better")}
    if "of" in row:
        settings = "; ".join(filter(None, (facts["of"], facts["better"] and f"better: {facts['better']}")))
    return f"## `{row['name']}`\n\n{settings}\n\n{plain(row['what it is'])}\n"


def term(row: dict[str, str]) -> str:
    """A field of a job, or a ready job, as a term and its explanation."""
    name, *facts, about = row.values()
    facts = [facts[0], facts[1] if facts[1] == "must be given" else f"default `{facts[1]}`"] if facts else []
    text = " ".join(filter(None, ("; ".join(facts) + "." if facts else "", about)))
    return f"`{name}`\n: {plain(text)}\n"


def plain(text: str) -> str:
    """Text of docstrings, in which Markdown would take some characters for its own."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if i % 2 else re.sub(r"([*<\[|$])", r"\\\1", part) for i, part in enumerate(parts))
