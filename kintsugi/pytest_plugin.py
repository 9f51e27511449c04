"""`pytest --kintsugi-sampler mine`: the properties of an installed plug-in, as tests beside one's own."""

from typing import Any

import pytest

KINDS = ("operator", "sampler", "prior", "metric")


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for each kind of plug-in, which may be there several times."""
    group = parser.getgroup("kintsugi", "properties of plug-ins for Kintsugi")
    for kind in KINDS:
        group.addoption(
            f"--kintsugi-{kind}",
            action="append",
            default=[],
            metavar="SPEC",
            help=f"check this {kind}: its name, or a spec in YAML such as '{{name: mine, strength: 2}}'",
        )


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """A test for each spec, after those that were found."""
    for kind in KINDS:
        for spec in config.getoption(f"--kintsugi-{kind}"):
            items.append(
                Properties.from_parent(session, name=f"kintsugi-{kind}[{spec}]", kind=kind, spec=spec)
            )


class Properties(pytest.Item):
    """What `kintsugi.testing` asserts of a spec, given as text."""

    def __init__(self, *, kind: str, spec: str, **options: Any):
        super().__init__(**options)
        self.kind, self.spec = kind, spec

    def runtest(self) -> None:
        """Raise an AssertionError for a property that does not hold, SpecError for no such plug-in."""
        import yaml

        from kintsugi import testing  # loads torch

        spec = yaml.safe_load(self.spec)
        spec = spec if isinstance(spec, dict) else {"name": str(spec)}
        getattr(testing, f"check_{self.kind}")(spec["name"] if self.kind == "metric" else spec)

    def reportinfo(self) -> tuple[str, None, str]:
        """Where it is, and its name."""
        return "kintsugi", None, self.name
