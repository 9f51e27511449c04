"""The pages: the site builds without a warning, its reference is that of the code, and commands are ones."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from kintsugi.jobs.cli import app
from kintsugi.jobs.files import load_job, ready_jobs
from kintsugi.jobs.list import TOPICS, contents
from kintsugi.jobs.suite_file import read_suite

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GROUP = typer.main.get_command(app)
assert isinstance(GROUP, TyperGroup)


def build(pages: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Sphinx over some pages, by our settings."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", ROOT / "docs", pages, out]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """All of it."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_site_has_every_name_that_a_job_can_say(site):
    for topic in set(TOPICS) - {"schema"}:
        page = (site / f"docs/reference/{'operators' if topic == 'draws' else topic}.html").read_text()
        for name, *_ in contents(topic)[1]:
            assert f'<span class="pre">{name}</span>' in page, name
    commands = (site / "docs/reference/commands.html").read_text()
    for name in GROUP.commands:
        assert f"kintsugi {name}" in re.sub("<.*?>", "", commands)
    assert "--retry-failed" in commands
    assert 'href="docs/index.html"' in (site / "README.html").read_text()


@pytest.mark.slow
def test_a_broken_link_or_a_page_out_of_the_order_ends_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# I\n\n## Menu\n\n- [A](a.md): first\n")
    (docs / "a.md").write_text("# A\n\n## B c\n\n[good](#b-c), [bad](#b-d), [worse](none.md)\n")
    (docs / "left.md").write_text("# Left\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 3, done.stderr
    for said in ("'b-d'", "'none.md'", "left.md: WARNING: document isn't included in any toctree"):
        assert said in done.stderr


def commands(page: Path) -> list[list[str]]:
    """The words of the commands of a page's blocks, without what a shell does with their output."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    ours = [re.split(r" >|&&|\||  #", line)[0] for line in lines if line.startswith("kintsugi ")]
    return [shlex.split(line)[1:] for line in ours]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_these_names_options_and_fields(page):
    for name, *words in commands(page):
        command = GROUP.commands[name]
        with command.make_context(name, list(words)) as context:
            job, sets = context.params.get("job"), context.params.get("sets")
        if job in ready_jobs() and sets:
            load_job(job, sets)


def test_the_files_of_the_tutorial_are_a_job_and_a_suite(tmp_path, monkeypatch):
    page = (ROOT / "docs/tutorial.md").read_text()
    files = dict(re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", page, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        Path(name).write_text(text)
    assert load_job("job.yaml", []).metrics == ["psnr", "ssim", "spectrum_ratio"]
    assert len(read_suite("suite.yaml", []).cells) == 4


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = re.findall(r"pip install -e '\.\[test\]'(.*)", (ROOT / "README.md").read_text())
    assert f"pip install -q -e '.[test]'{command}" in (ROOT / ".ci/run").read_text()
