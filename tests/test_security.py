"""The threats of docs/security.md: what is malicious is refused in words, runs nothing and stays inside."""

import json
import os
import re
import tarfile
import zipfile
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from kit import hostile
from kit.hostile import (
    CASES,
    GOOD,
    MEASUREMENTS,
    OUT,
    SECRET,
    SHARD,
    Outcome,
    cell,
    repacked,
    seen,
    shard,
    shorten,
    torch_file,
    tree,
)
from kit.jobs import execute, told
from kit.shards import SIZE, encode, picture, tar_of, write_tar

from kintsugi import checkpoint
from kintsugi.checkpoint import CheckpointError, tensors
from kintsugi.errors import JobError, redacted
from kintsugi.jobs.files import load_job
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.data import read
from kintsugi.pipeline.data.shards import why_unsafe
from kintsugi.pipeline.execution import ledger
from kintsugi.pipeline.storage.location import Remote
from kintsugi.pipeline.storage.records import sealed, unsealed
from kintsugi.pipeline.wanted import Wanted

ROOT = Path(__file__).parent.parent

PAGE = (ROOT / "docs" / "bad-input.md").read_text()
TRIED = {
    "Tars": (
        "name that steers the terminal, twice",
        "name of 20 kB",
        "symbolic link to /etc/passwd",
        "hard link to ../../x",
        "devices and pipes",
        "sparse member of 100 GB",
        "member of negative size",
        "PAX header that claims 8 GiB",
        "GNU long names, 200 in a row",
        "gzip-compressed tar",
        "a pipe among the shards",
        "SHA256SUMS that is no text",
    ),
    "kintsugi shard: zips, folders, LMDBs, lists": (
        "zip bomb: member that claims 4 GiB",
        "encrypted zip",
        "zip slip: ../, /tmp, \\, ESC, __meta__, 300 characters",
        "folder with links out of it, to /dev/zero, to itself, and a pipe",
        "list with a line of 200,000 folders",
        "LMDB, cut",
        "output as a URL with a secret",
    ),
    "Checkpoints": (
        "pickle with code, in torch's zip",
        "pickle with code, in torch's old format",
        "bare pickle with code",
        "bomb: 10¹² values from one",
        "safetensors with a header of 2⁶³ bytes",
        "safetensors whose header steers the terminal",
    ),
    "Job files and settings": [name for name in CASES["Job files and settings"] if "exp #2" not in name],
    "URLs": CASES["URLs"],
}
"""What is tried here of all that the page tells; what `exp #2` is answered with has times in it."""


def told_by_the_page(group: str, name: str) -> tuple[str, str]:
    """The exit code, and what a user then sees."""
    _, _, section = PAGE.partition(f"\n## {group}\n")
    start = f"| {cell(name)} | "
    (line,) = (line for line in section.partition("\n## ")[0].splitlines() if line.startswith(start))
    code, _, words = line.removeprefix(start).removesuffix(" |").partition(" | ")
    return code, words


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of a command, with room around it for what leads out."""
    folder = tmp_path / "around" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in TRIED for name in TRIED[group]])
def test_malicious_input_is_refused_in_words_and_leaves_nothing(group, name, folder):
    arguments = CASES[group][name](folder)
    before = tree(folder)
    code, output = told(*arguments)
    outcome = Outcome(code, output, hostile.rows_of(folder), [])
    assert (str(code), cell(seen(outcome, folder))) == told_by_the_page(group, name)
    said = "\n".join([output, *(row["error"] or row["key"] for row in outcome.rows)])
    for never in ("Traceback", "\x1b", SECRET):
        assert never not in said
    assert tree(folder) == before


def assert_each_ends_as_the_page_says(arguments: list[str], group: str, names: list[str], folder: Path):
    """Samples one beside another in a shard, in the order of their keys."""
    before = tree(folder)
    code, output = told(*arguments)
    assert code == 2, output
    rows = sorted(hostile.rows_of(folder), key=lambda row: row["key"])
    ended = [row["error"] or f"restored ({row['source']})" for row in rows]
    for what, name in zip(ended, names, strict=True):
        assert cell(shorten(f"b: {what}", 300)) == told_by_the_page(group, name)[1], name
    assert tree(folder) == before


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("options", [{}, hostile.CROPPED], ids=["exact", "cropped"])
def test_hostile_images_fail_alone(options, folder):
    """All but those that are large when they are decoded."""
    images = {
        name: (suffix, content() if callable(content) else content)
        for name, (suffix, content, *others) in hostile.IMAGES.items()
        if dict(*others) == options and not (options and callable(content))
    }
    members = [(f"{i:02d}.{suffix}", content) for i, (suffix, content) in enumerate(images.values())]
    arguments = shard(tar_of(*members), folder, **options)
    assert_each_ends_as_the_page_says(arguments, "Images", list(images), folder)


def test_hostile_arrays_fail_alone_and_run_nothing(folder):
    members = [(f"{i:02d}.npy", content) for i, content in enumerate(hostile.ARRAYS.values())]
    arguments = shard(tar_of(*members), folder, **MEASUREMENTS)
    assert_each_ends_as_the_page_says(arguments, "Measurements (.npy)", list(hostile.ARRAYS), folder)


@pytest.mark.slow
def test_hostile_files_of_a_folder_fail_alone(folder):
    names = {file: name for name, file in hostile.FILES.items() if file != "folder"}
    arguments = hostile.folder_of(list(names), folder, **MEASUREMENTS)
    before = tree(folder)
    assert told(*arguments)[0] == 2
    for row in hostile.rows_of(folder):
        if row["key"] != "c":  # which is fine
            _, words = told_by_the_page("Folders of images", names[row["key"]])
            assert cell(f"{row['key']}: {row['error']}") in words
    assert tree(folder) == before
    assert [path.name for path in (folder / OUT / "restored" / "in").iterdir()] == ["c.png"]


def test_the_page_has_every_case():
    names = [name for makes in CASES.values() for name in makes]
    assert PAGE.count("\n| ") == len(names) + len(CASES), "and the heads of the tables"
    assert [name for name in names if f"| {cell(name)} | " not in PAGE] == []
    assert f"{len(names)} cases; 0 ended with a traceback" in PAGE


def test_the_page_names_tests_that_exist():
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`([\w/]*test_\w+)\.py::(test_\w+)`", page)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}::{test}"


# Names


@pytest.mark.slow
def test_restored_shards_hold_no_name_that_leads_out(folder):
    names = ["../../evil", "/tmp/evil", "./a/../../evil", "a/..", "..", "a//b", "./b", "fine/c"]
    arguments = shard(tar_of(*((f"{name}.png", GOOD) for name in names)), folder, **MEASUREMENTS)
    before = tree(folder)
    code, output = told(*arguments)
    assert code == 2, output
    with tarfile.open(folder / OUT / "restored" / "s.tar") as tar:
        assert tar.getnames() == ["__/__/evil.png", "a/__/__/evil.png", "a/b.png", "b.png", "fine/c.png"]
        inside = (folder / OUT / "unpacked").resolve()
        assert all(
            member.isreg() and (inside / member.name).resolve().is_relative_to(inside) for member in tar
        )
    assert tree(folder) == before


@pytest.mark.parametrize(
    "name", ["../../evil.png", "a/../../evil.png", "/etc/evil.png", "a//b.png", "./a.png"]
)
def test_objects_whose_names_lead_out_of_their_folder_are_not_read(name):
    assert "not that of one file" in why_unsafe(Remote("s3", "bucket/photos"), name)
    assert why_unsafe(Remote("s3", "bucket/photos"), "a/b.png") is None


# Checkpoints


@pytest.mark.parametrize("name", ["record", "overlap", "tensor"])
def test_checkpoints_that_unpack_to_more_than_they_are_are_refused(name, tmp_path):
    file = tmp_path / "x.pt"
    content = torch_file({"a": torch.zeros(1000)})
    if name == "record":
        file.write_bytes(repacked(content, lambda _, record: record + bytes(1 << 24), zipfile.ZIP_DEFLATED))
        message = "is compressed"
    elif name == "overlap":
        place = content.index(b"PK\1\2")  # the first record's entry: its size, packed and not
        sizes = (1 << 30).to_bytes(4, "little") * 2
        file.write_bytes(content[: place + 20] + sizes + content[place + 28 :])
        message = "its records claim more bytes than it has"
    else:
        file.write_bytes(torch_file({"a": torch.zeros(1).expand(10**6, 10**6)}))
        message = "'a' has shape .*, more than the file"
    with pytest.raises(CheckpointError, match=message):
        tensors(checkpoint.read(file, "meta"), file)


# Reports

MARKUP = [
    "<script>alert(1)</script>",
    "`<img src=x onerror=alert(1)>`",
    "x\\|<img src=x onerror=alert(2)>",
    "|\n\n<img src=x onerror=alert(3)>",
    "![x](http://evil/x)",
    "[x](javascript:alert(4))",
    "</code></td></table><b onclick=alert(5)>",
    "&lt;img src=x&gt;",
    "<http://evil>",
]


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def assert_harmless(page: str, pictures: str) -> None:
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "iframe", "object", "b" if "onclick" in attributes else "embed"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert not attributes.get("href"), attributes
        if tag == "img":
            # One without a source is given that of the same picture at the top, by our script.
            source = attributes.get("src") or pictures * ("data-of" in attributes)
            assert source.startswith(pictures), attributes


@pytest.fixture
def hostile_report(make_job, tmp_path):
    """The folder of a report with markup in keys, errors, labels, paths of shards and commit records."""
    members = []
    for i, markup in enumerate(MARKUP):
        members += [
            (f"{i}{markup}.png", encode(picture(i))),
            (f"{i}{markup}.cls", markup.encode()),
            (f"bad{i}{markup}.{markup}.png", b"<script>"),
        ]
    shards = [
        write_tar(tmp_path / "<img src=x onerror=alert(6)>`|.tar", members),
        write_tar(tmp_path / "[empty](javascript:alert(7)) <i>.tar", []),
    ]
    cut = tmp_path / "<u>.tar"
    cut.write_bytes(write_tar(cut, [("<img src=x onerror=alert(8)>|`.png", GOOD)]).read_bytes()[:1000])
    patterns = [re.sub(r"([\[\]])", r"[\1]", str(path)) for path in (*shards, cut)]
    job = make_job(data={"shards": patterns, "size": SIZE, "damaged": "salvage"})
    run = execute(job)
    for record in (run.folder / "commits").iterdir():
        content = json.loads(unsealed(record.read_bytes()))
        content["made_by"]["host"] = "<img src=x onerror=alert(9)>|`"
        content["notes"] = ["<script>alert(10)</script>"]
        record.write_bytes(sealed(content))
    return write_report(run).parent


@pytest.mark.slow
def test_html_in_keys_errors_and_records_is_text_in_the_page(hostile_report):
    page = (hostile_report / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    script = (ROOT / "pipeline" / "analysis" / "report" / "report.js").read_text()
    page, found, rest = page.partition(f"<script>{script}</script>")
    assert found, "our own, of which no letter depends on data"
    assert b64encode(sha256(script.encode()).digest()).decode() in page, (
        "is the only one that the page allows"
    )
    assert_harmless(page + rest, "data:image/webp;base64,")


@pytest.mark.slow
def test_html_and_markdown_in_keys_errors_and_records_is_text_in_the_markdown(hostile_report):
    markdown = pytest.importorskip("markdown_it")
    text = (hostile_report / "report.md").read_text()
    page = markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "&lt;script&gt;alert(1)" in page
    assert_harmless(page, "pictures.png")
    rows = [line for line in text.splitlines() if line.startswith("| bad")]
    assert len(rows) == len(MARKUP)
    assert all(line.count("|") == 4 for line in rows), "nothing in a cell ends it"


# Secrets


def leaks(folder: Path, secret: str) -> list[Path]:
    """The files below a folder that hold a text, inside of Parquet too."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            content += repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()
        if secret.encode() in content or secret in path.name:
            found.append(path)
    return found


@pytest.fixture
def secret(monkeypatch) -> str:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    return SECRET


def test_credentials_of_the_environment_are_nowhere_in_a_run(folder, secret):
    code, output = told(*shard(SHARD, folder))
    assert code == 0
    assert (folder / OUT / "report" / "report.html").is_file()
    assert secret not in output
    assert leaks(folder, secret) == []


def test_an_error_of_storage_that_holds_a_secret_does_not_pass_it_on(folder, secret, monkeypatch):
    url = f"s3://AKIA:{secret}@bucket/x.tar"
    message = f"GET {url} https://bucket.s3/x.tar?X-Amz-Signature={secret}&x=1 failed"

    def broken(*_):
        raise OSError(message)

    arguments = shard(SHARD, folder)
    monkeypatch.setattr(read, "in_tar", broken)
    monkeypatch.setattr(ledger, "pause", lambda attempt: 0.0)
    code, output = told(*arguments)
    assert (code, secret in output) == (1, False)
    assert "error: storage: GET s3://…@bucket/x.tar https://bucket.s3/x.tar?… failed" in output
    assert leaks(folder, secret) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://k:SECRET@bucket/x", "s3://…@bucket/x"),
        ("'s3:/k:SECRET@bucket/x'", "'s3:/…@bucket/x'"),
        ("s3://bucket/x?sig=SECRET&y=SECRET end", "s3://bucket/x?… end"),
        ("https:/host/m?sig=SECRET.png", "https:/host/m?…"),
        ("https://k:SECRET@host/m?sig=SECRET", "https://…@host/m?…"),
        ("me@example.org asks: why?", "me@example.org asks: why?"),
        ("\x1b[2Jred\u202etxt\x9b1m\ndone\t", "\\x1b[2Jred\\u202etxt\\x9b1m\ndone\t"),
    ],
)
def test_messages_are_without_secrets_and_control_characters(text, expected):
    assert redacted(text) == expected
    assert str(JobError(text)) == expected


def test_a_url_in_the_wrong_field_is_shown_without_its_secret():
    url = f"s3://AKIA:{SECRET}@bucket/with/a/very/long/path/to/a/checkpoint.pt"
    for override in (f"prior={url}", f"degradation={url}", f"compute.actors={url}", f"seed={url}"):
        with pytest.raises(JobError) as refused:
            load_job("quickstart", [override])
        assert SECRET[:5] not in str(refused.value)
        assert "AKIA" not in str(refused.value)


@pytest.mark.parametrize(("members", "expected"), [([("a.png", GOOD), ("a.png", GOOD)], 1), ([], 0)])
def test_names_of_files_do_not_steer_the_terminal(members, expected, folder):
    """An error names the one, and a warning the other, which is empty."""
    (folder / "in").mkdir()
    write_tar(folder / "in" / "\x1b[2J.tar", members)
    write_tar(folder / "in" / "good.tar", [("b.png", GOOD)])
    code, output = told(*hostile.job(folder, shards="in/*.tar"))
    assert code == expected
    assert "\\x1b[2J.tar" in output
    assert "\x1b" not in output


# Job files


@pytest.mark.parametrize(
    "text", ["seed: {a: 1, a: 2}", "data: {size: 32, shards: a, size: 64}", "1: 2\n1: 3"]
)
def test_a_field_given_twice_is_refused(text, tmp_path):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobError, match="is there twice"):
        load_job(str(tmp_path / "job.yaml"), [])


@pytest.mark.slow
def test_a_file_that_may_not_be_read_is_a_failed_row(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(GOOD)
    (tmp_path / "b.png").write_bytes(GOOD)
    original = Path.read_bytes

    def denied(self):
        if self.name == "a.png":
            raise PermissionError(13, "Permission denied", os.fspath(self))
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", denied)

    class Unit:
        shard = str(tmp_path)

    first, second = read.in_folder(Unit, ["a.png", "b.png"], Wanted())
    assert str(first) == "the file may not be read"
    assert second == {"png": GOOD}
