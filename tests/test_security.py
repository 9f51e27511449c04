"""The threats of docs/security.md: what is malicious is refused in words, runs nothing and stays inside."""

import json
import os
import re
import tarfile
import zipfile
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from kit.hostile import (
    ARRAYS,
    CASES,
    GOOD,
    IMAGES,
    MEASURED,
    MEASUREMENTS,
    OUT,
    SECRET,
    SHARD,
    Case,
    cell,
    folder_of,
    job,
    npy,
    repacked,
    rows_of,
    shard,
    tar_of,
    told,
    torch_file,
    tree,
    zip_of,
)
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.errors import JobError, redacted
from kintsugi.jobs.files import load_job
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.data import decode, read
from kintsugi.pipeline.data import make as sharding
from kintsugi.pipeline.data.shards import why_unsafe
from kintsugi.pipeline.data.tar import DamagedShard, Tar
from kintsugi.pipeline.execution import ledger
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.storage.location import Remote
from kintsugi.pipeline.storage.records import sealed, unsealed
from kintsugi.priors import checkpoint
from kintsugi.priors.checkpoint import CheckpointError, tensors

ROOT = Path(__file__).parent.parent

EXPECTED: dict[str, dict[str, tuple[int, str]]] = {
    "Tars": {
        "name that steers the terminal, twice": (1, r"'\\x1b\[2J' in "),
        "name of 20 kB": (1, "headers of more than 16,384 bytes"),
        "symbolic link to /etc/passwd": (2, "a link to '/etc/passwd', which is no file of this tar"),
        "hard link to ../../x": (2, r"a link to '\.\./\.\./x', which is no file of this tar"),
        "devices and pipes": (0, "b.png: no file"),
        "sparse member of 100 GB": (1, "is sparse"),
        "member of negative size": (1, "impossible size"),
        "PAX header that claims 8 GiB": (1, "headers of more than 16,384 bytes"),
        "GNU long names, 200 in a row": (1, "headers of more than 16,384 bytes"),
        "gzip-compressed tar": (1, "compressed with gzip; unpack it first"),
        "a pipe among the shards": (1, "neither a file nor a folder"),
        "SHA256SUMS that is no text": (1, "SHA256SUMS, line 1: expected"),
    },
    "kintsugi shard: zips, folders, LMDBs, lists": {
        "zip bomb: member that claims 4 GiB": (2, "4,294,967,294 bytes, more than"),
        "encrypted zip": (2, "left out b.png: ValueError: it is encrypted"),
        "zip slip: ../, /tmp, \\, ESC, __meta__, 300 characters": (2, r"left out \\x1b\[2J.png: a name with"),
        "folder with links out of it, to /dev/zero, to itself, and a pipe": (
            2,
            "loop.png: a link that leads nowhere",
        ),
        "list with a line of 200,000 folders": (1, "a line of 400,000 characters"),
        "LMDB, cut": (1, "cut at 20000 of"),
        "output as a URL with a secret": (1, "shard: s3:/…@bucket/x: only files of this machine"),
    },
    "Checkpoints": {
        "pickle with code, in torch's zip": (1, "only tensors are read, never code"),
        "pickle with code, in torch's old format": (1, "only tensors are read, never code"),
        "bare pickle with code": (1, "only tensors are read, never code"),
        "bomb: 10¹² values from one": (1, "has shape .1000000000000,., more than the file"),
        "safetensors with a header of 2⁶³ bytes": (1, "header too large"),
        "safetensors whose header steers the terminal": (1, r"`\\x1b\[2J`"),
    },
    "Job files and settings": {
        "tag that calls a function": (1, "the tag .* is not read"),
        "aliases that grow (billion laughs)": (1, r"aliases \(\*name\) are not read"),
        "a field twice": (1, "'seed' is there twice"),
        "10,000 brackets": (1, "nested too deep"),
        "date that there is none of": (1, "seed: .*valid integer"),
        "number of 5,000 digits": (1, "--set 'seed=9+…: not valid YAML"),
        "tag of a date": (1, "the tag 'tag:yaml.org,2002:timestamp' is not read"),
        "mask of measurements, `known` forgotten": (1, "known: say which pixels"),
        "output named `exp #2`": (0, "3 restored, 0 failed .*out/exp #2"),
        "shards named *.tar and {a,b}.tar": (1, "no such file: .*/t\\*.tar"),
        "seed 010": (0, "3 restored"),
        "!!int of text": (1, "not valid YAML: a value that is none of its type"),
        "empty file": (1, "expected fields such as data:"),
        "10¹¹ shards": (1, "more than 1,000,000 shards"),
        "1,200 nested braces": (1, "recursion"),
    },
    "URLs": {case.name: (1, ".") for case in CASES if case.group == "URLs"},
}


def found(group: str, name: str) -> Case:
    return next(case for case in CASES if (case.group, case.name) == (group, name))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of a command, with room around it for what leads out."""
    folder = tmp_path / "around" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in EXPECTED for name in EXPECTED[group]])
def test_malicious_input_is_refused_in_words_and_leaves_nothing(group, name, folder):
    code, message = EXPECTED[group][name]
    arguments = found(group, name).make(folder)
    before = tree(folder)
    result, output = told(arguments)
    said = "\n".join([output, *(row["error"] or row["key"] for row in rows_of(folder))])
    assert result == code, said
    assert re.search(message, said, re.MULTILINE), said
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert SECRET not in said
    assert tree(folder) == before


HOSTILE_IMAGES = {
    "bomb: PNG that claims 65535×65535": "DecompressionBombError",
    "bomb: PNG that claims 12000×12000": "12000x12000 pixels, more than 100,000,000",
    "bomb: zTXt chunk of 200 MiB": "too large",
    "bomb: iCCP chunk of 200 MiB": "too large",
    "EPS, which would start Ghostscript, named .png": "none of PNG, JPEG, WEBP, BMP, TIFF, PPM",
    "SVG with a script, named .png": "none of PNG, JPEG",
    "PDF named .png": "none of PNG, JPEG",
    "PSD named .png": "none of PNG, JPEG",
    "TIFF of floating point numbers": "floating point numbers",
    "PFM named .ppm": "floating point numbers",
    "animated WebP": "a file of several images, pages or frames .WEBP.",
    "animated PNG": "a file of several images, pages or frames .PNG.",
    "TIFF of two pages": "a file of several images, pages or frames .TIFF.",
    "broken EXIF": "",
}
HOSTILE_ARRAYS = {
    "pickled objects with code": "an array of object",
    "header that claims 10¹² values": "more than 300,000,000 values",
    "header that claims 1 GiB": "cut: .* do not hold an array of shape",
    "header of negative shape": "cut: .* do not hold an array of shape",
    "header of 60 kB": "a header that numpy.save does not write$",
    "header with code": "a header that numpy.save does not write$",
    "header of 9,000 brackets": "a header that numpy.save does not write$",
    "float64, fine": "",
}
HOSTILE_FILES = {
    "outside": "a link that leads out of the folder",
    "zeros": "a link that leads out of the folder",
    "loop": "a link that leads nowhere",
    "nowhere": "a link that leads nowhere",
    "pipe": "not a regular file",
    "large": "2,147,483,648 bytes, more than 1,073,741,824",
}


def assert_each_fails_as_expected(arguments: list[str], expected: list[str], folder: Path) -> None:
    before = tree(folder)
    code, output = told(arguments)
    assert code == 2, output
    errors = [row["error"] for row in sorted(rows_of(folder), key=lambda row: row["key"])]
    assert len(errors) == len(expected)
    for error, message in zip(errors, expected, strict=True):
        assert re.search(message, error) if message else error is None, (error, message)
    assert tree(folder) == before


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_images_fail_alone(folder):
    members = [(f"{i:02d}.{IMAGES[name][0]}", IMAGES[name][1]) for i, name in enumerate(HOSTILE_IMAGES)]
    assert_each_fails_as_expected(shard(tar_of(*members), folder), list(HOSTILE_IMAGES.values()), folder)


def test_hostile_arrays_fail_alone_and_run_nothing(folder):
    members = [(f"{i:02d}.npy", ARRAYS[name]) for i, name in enumerate(HOSTILE_ARRAYS)]
    arguments = shard(tar_of(*members), folder, **MEASUREMENTS)
    assert_each_fails_as_expected(arguments, list(HOSTILE_ARRAYS.values()), folder)


def test_hostile_files_of_a_folder_fail_alone(folder):
    arguments = folder_of(list(HOSTILE_FILES), folder, **MEASUREMENTS)
    expected = ["", *(HOSTILE_FILES[name] for name in sorted(HOSTILE_FILES))]  # c.png is fine
    assert_each_fails_as_expected(arguments, expected, folder)
    assert [path.name for path in (folder / OUT / "restored" / "in").iterdir()] == ["c.png"]


def test_the_overview_has_every_case():
    page = (ROOT / "docs" / "bad-input.md").read_text()
    assert len(CASES) >= 60
    assert [case.name for case in CASES if f"| {cell(case.name)} | " not in page] == []
    assert f"{len(CASES)} cases; 0 ended with a traceback" in page


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
    code, output = told(arguments)
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


# Broken bytes


def corrupted(content: bytes, count: int, first: int, last: int):
    """The content with a few bytes of a range changed, each time others."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        changed = bytearray(content)
        for place in rng.integers(first, last, rng.integers(1, 6)):
            changed[place] = rng.choice([0, 32, 45, 48, 55, 57, 76, 83, 120, 128, 255])
        yield bytes(changed)


def test_whatever_tar_headers_say_the_answer_is_samples_or_damage():
    pax = BytesIO()
    with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("é" * 120 + ".png"))
    for whole, last in ((SHARD, 512), (pax.getvalue(), 2048)):
        damaged = 0
        for content in corrupted(whole, 300, 0, last):
            try:
                list(Tar(BytesIO(content), len(content)).samples())
            except DamagedShard:
                damaged += 1
        assert damaged > 10


def test_whatever_arrays_say_the_sample_fails_alone():
    convert = decode.Measurements(3)
    for content in corrupted(npy(MEASURED), 500, 0, 128):
        sample = decode.decode("b", 0, {"npy": content}, convert, None)
        assert (sample.image is None) == (sample.error is not None)


def test_whatever_zips_say_they_are_refused_or_members_left_out(tmp_path):
    whole = zip_of({"a.png": GOOD, "b.png": GOOD})
    directory = whole.index(b"PK\1\2")
    for i, content in enumerate(corrupted(whole, 100, directory, len(whole))):
        (tmp_path / f"{i}.zip").write_bytes(content)
        try:
            result = sharding.make_shards(tmp_path / f"{i}.zip", tmp_path / str(i), sharding.Options())
        except JobError:
            continue
        assert result.images <= 2


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
            assert attributes["src"].startswith(pictures), attributes


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
    run = open_or_plan(job)
    list(in_process(job, run.folder, run.outstanding(), Live()))
    for record in (run.folder / "commits").iterdir():
        content = json.loads(unsealed(record.read_bytes()))
        content["made_by"]["host"] = "<img src=x onerror=alert(9)>|`"
        content["notes"] = ["<script>alert(10)</script>"]
        record.write_bytes(sealed(content))
    return write_report(run).parent


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
    code, output = told(shard(SHARD, folder))
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
    code, output = told(arguments)
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
    code, output = told(job(folder, shards="in/*.tar"))
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


def test_a_job_read_from_its_file_is_the_job_that_was_written(make_job, tmp_path):
    job = make_job()
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")))
    assert load_job(str(tmp_path / "job.yaml"), []) == job


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

    first, second = read.in_folder(Unit, ["a.png", "b.png"])
    assert str(first) == "the file may not be read"
    assert second == {"png": GOOD}
