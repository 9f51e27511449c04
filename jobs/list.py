"""`kintsugi list`: what a job file can name."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from kintsugi.errors import JobError
from kintsugi.jobs.files import closest, describe, ready_jobs, variants_of
from kintsugi.jobs.options import beginning
from kintsugi.jobs.terminal import console

if TYPE_CHECKING:
    from kintsugi.pipeline.metrics import Metric
    from kintsugi.registry import Registry

TOPICS = ("fields", "jobs", "operators", "draws", "samplers", "priors", "metrics", "schema")


def list_(
    topic: Annotated[
        str, typer.Argument(help=f"{', '.join(TOPICS)}.", autocompletion=beginning(lambda: TOPICS))
    ],
) -> None:
    """List what a job file can name, with parameters and defaults; or the JSON Schema of metrics.json.

    Examples:

        kintsugi list operators

        kintsugi list schema > metrics.schema.json
    """
    if topic not in TOPICS:
        meant = closest(topic, TOPICS)
        raise JobError(f"list: no {topic!r}; {f'{meant} ' if meant else ''}choose from {', '.join(TOPICS)}")
    if topic == "schema":
        from kintsugi.pipeline.analysis.report.stored import schema

        typer.echo(json.dumps(schema(), indent=1))
        return
    from kintsugi import samplers

    columns, rows = contents(topic)
    table = Table(show_lines=True)
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0)  # a name, to be copied whole
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if topic == "samplers":
        *_, shared = (samplers.__doc__ or "").split("\n\n")
        console.print(reflow(shared))


def contents(topic: str) -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    """The columns and rows of the table of a topic; the first column holds names."""
    from kintsugi import operators, priors, samplers
    from kintsugi.jobs.fields import fields
    from kintsugi.operators import draws
    from kintsugi.pipeline import metrics
    from kintsugi.registry import Registry, parameters

    if topic == "fields":
        of_fields = ((field.name, field.type, field.default, field.about) for field in fields())
        return ("field", "type", "default", "what it is"), of_fields
    if topic == "jobs":
        return ("job", "what it does"), ((name, about_job(path)) for name, path in ready_jobs().items())
    if topic == "metrics":
        better = {"one": "near 1", None: ""}
        of_metrics = [
            (name, of, better.get(metric.better, metric.better or ""), about_of(metric))
            for of, kind in (("image", metrics.IMAGE), ("set", metrics.SETS), ("clips", metrics.CLIPS))
            for name, metric in kind.items()
        ]
        of_others = [(name, "", "", what) for name, what in plugins(metrics.REGISTRY)]
        return ("name", "of", "better", "what it is"), of_metrics + of_others
    registries: dict[str, Mapping[str, Any]] = {
        "operators": operators.REGISTRY,
        "draws": draws.REGISTRY,
        "samplers": samplers.REGISTRY,
        "priors": priors.REGISTRY,
    }
    registry, rows = registries[topic], []
    for name, entry in registry.items():
        factory = entry.load if topic == "priors" else entry
        settings = [p.name if p.required else f"{p.name}={p.default}" for p in parameters(factory)]
        what, _, _ = (inspect.getdoc(factory) or "").partition("\n\nRaises:")
        rows.append((name, "\n".join(settings), reflow(what)))
    if isinstance(registry, Registry):
        rows += [(name, "", what) for name, what in plugins(registry)]
    return ("name", "parameters", "what it is"), rows


def about_job(path: Path) -> str:
    """What a job file does, and its variants."""
    variants = variants_of(path)
    return describe(path) + (
        f"\n\nVariants, as in {path.stem}:{variants[0]}: " + ", ".join(variants) if variants else ""
    )


def about_of(metric: Metric) -> str:
    """What a metric is, in paragraphs, with what installs a package that it needs."""
    needs = f"\n\nNeeds {metric.extra.command}" if metric.extra else ""
    return metric.about.replace("\n", "\n\n", 1) + needs


def plugins(registry: Registry[Any]) -> Iterator[tuple[str, str]]:
    """Name and package of each plug-in, which is not imported: a list runs no code of others."""
    from kintsugi.registry import package

    for plugin in registry.plugins():
        refused = "; not used, since the name is built in" if plugin.name in registry.builtin else ""
        yield plugin.name, f"plug-in of {package(plugin)}{refused}"


def reflow(text: str) -> str:
    """Paragraphs without the line breaks of the source, but a line for each of a docstring's arguments."""
    return "\n\n".join(
        "\n".join(" ".join(entry.split()) for entry in re.split(r"\n {4}(?! )", paragraph))
        for paragraph in text.split("\n\n")
    )
