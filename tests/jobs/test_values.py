"""What job files and `--set` say, as a person reads it: YAML 1.2, and text where text is meant."""

import pytest
import yaml

from kintsugi.errors import JobError
from kintsugi.jobs.files import load_job
from kintsugi.jobs.trials import parse_vary
from kintsugi.jobs.values import parse_setting, parse_yaml, split
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.parts import Published

TEXTS = (
    """
runs/exp #2|#|*.tar|&a|{a,b}.tar|{0000..0049}.tar|[0-9]*.tar|%j|@home|`a`|12345|010|1e-3|0x1F|1_000|12:30:45
2024-01-01|yes|no|null|~nobody|true|a: b|- a|? a|! a|!!int 5|> a|--- a|a, b|it's|"a" and "b"|a\\tb|größe
""".strip()
    .replace("\n", "|")
    .split("|")
)


@pytest.mark.parametrize("text", [*TEXTS, "|"])
def test_a_value_for_a_text_field_is_its_text(text, tmp_path):
    job = load_job("quickstart", [f"output={text}", f"data.shards={text}", f"published={PUBLISHED}"])
    assert (job.output, job.data.shards) == (text, text)
    assert parse_vary(f"prior.path='{text}'")[1] == [text] or "'" in text
    if not text.startswith(("~", "{")):
        assert parse_setting(text, "--reference", [str, Published]) == text
        assert load_job("quickstart", [f"reference={text}"]).reference.endswith(text)
    written = tmp_path / "job.yaml"
    written.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    assert load_job(str(written), []) == job, "what a run directory holds is read as it was meant"
    assert Job.model_validate(yaml.safe_load(written.read_text())) == job


PUBLISHED = "[{method: 2024, nfe: 5, values: {fid: 1e1}, source: 010}]"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.shards='a #1.tar'", "a #1.tar"),
        ('data.shards="a #1.tar"', "a #1.tar"),
        ("data.shards=[a.tar, 'b #2.tar', 010]", ["a.tar", "b #2.tar", "010"]),
        ("data.shards=[]", []),
        ("data.shards={a,b}", "{a,b}"),
    ],
)
def test_quotes_around_all_of_a_text_and_lists_are_read(setting, expected):
    assert load_job("quickstart", [setting]).data.shards == expected


def test_groups_in_braces_are_read():
    sets = ["sampler={name: ddnm, steps: 5}", "reference={name: ffhq, split: x, resolution: 010}"]
    job = load_job(
        "quickstart", [*sets, "prior={name: diffusers, path: 010, revision: 1e5}", "data.subset={}"]
    )
    assert job.sampler == {"name": "ddnm", "steps": 5}
    assert job.reference.resolution == 10
    assert (job.prior["path"], job.prior["revision"]) == ("010", "1e5")
    assert job.data.subset.part == "evaluate"
    assert [it.method for it in load_job("quickstart", [f"published={PUBLISHED}"]).published] == ["2024"]


CORE = {
    "010": 10,
    "008": 8,
    "-7": -7,
    "+7": 7,
    "0o17": 15,
    "0x1F": 31,
    "1e-3": 0.001,
    "1E5": 1e5,
    "-.5": -0.5,
    "1.": 1.0,
    "~": None,
    "": None,
    "Null": None,
    "True": True,
    **dict(zip(*[["yes", "off", "1_000", "1:30", "0b11", "2024-01-01", "<<", "="]] * 2, strict=True)),
    "'010'": "010",
    "!!str 010": "010",
}


@pytest.mark.parametrize(("text", "value"), CORE.items())
def test_the_core_schema_of_yaml_1_2(text, value):
    found = parse_yaml(f"a: {text}", "job.yaml", [])["a"]
    assert (found, type(found)) == (value, type(value))
    found = parse_yaml(text, "--set", [])
    assert (found, type(found)) == (value, type(value))


def test_seeds_with_zeros_before_them_are_different_seeds():
    seeds = [load_job("quickstart", [f"seed={text}"]).seed for text in ("007", "008", "009", "010", "011")]
    assert seeds == [7, 8, 9, 10, 11]


def test_a_job_file_means_what_a_person_reads(tmp_path):
    (tmp_path / "job.yaml").write_text(
        "data: {shards: [010, 1e3], size: 032}\n"
        "degradation: {operator: {name: inpaint, mask: random, keep: 5e-1},\n"
        "  sigma: 1e-3, sigma_range: [-1, 1]}\n"
        "sampler: {name: conjugate, steps: 05, w: 1e1}\n"
        "metrics: [psnr]\nseed: 010\noutput: 2024-01-01\n"
    )
    job = load_job(str(tmp_path / "job.yaml"), [])
    assert (job.data.shards, job.data.size, job.seed, job.output) == (["010", "1e3"], 32, 10, "2024-01-01")
    assert (job.degradation.sigma, job.degradation.sigma_range) == (0.001, "[-1,1]")
    assert job.sampler == {"name": "conjugate", "steps": 5, "w": 10.0}
    assert job.degradation.operator["keep"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!timestamp 2024-01-01", "the tag .*timestamp' is not read"),
        ("a: !!binary AAAA", "the tag .*binary' is not read"),
        ("a: !!set {x}", "the tag .*set' is not read"),
        ("a: !mine x", "the tag '!mine' is not read"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("1: a\n'1': b", "'1' is there twice"),
        ("? [a]\n: b", "a list or group as the name"),
        ("a: !!int x", "none of its type"),
    ],
)
def test_what_is_not_read_is_refused(text, message):
    with pytest.raises(JobError, match=f"(?s)not valid YAML: .*{message}"):
        parse_yaml(text, "job.yaml", [])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sampelr.w=3", r"sampelr: no such field; did you mean sampler\?"),
        ("data.shard=x", r"data\.shard: no such field; did you mean shards\?"),
        ("compute.batch_sise=3", r"did you mean batch_size\?"),
        ("zzz=3", "zzz: no such field; see `kintsugi list fields`"),
        ("data.limit.x=3", r"'limit' is a value|data\.limit"),
    ],
)
def test_a_field_that_is_not_there_is_answered_with_the_nearest(setting, message):
    with pytest.raises(JobError, match=message):
        load_job(
            "quickstart", [setting, "data.limit=3"] if "limit" not in setting else ["data.limit=3", setting]
        )


def test_a_job_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(JobError, match=r"did you mean quickstart\?"):
        load_job("quikstart", [])


WITH_VARIANTS = """
data: {shards: "0.tar"}
degradation: {operator: {name: denoise}, sigma: 0.2}
sampler: {name: covariance}
output: runs/mine
variants:
  fine-3: {sampler.steps: 3, sampler.eta: 0.5}
  elsewhere: {output: runs/other}
"""


def test_a_variant_sets_fields_and_is_no_part_of_the_job(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(WITH_VARIANTS)
    plain = tmp_path / "plain.yaml"
    plain.write_text(WITH_VARIANTS[: WITH_VARIANTS.index("variants")])
    assert load_job(str(path), []) == load_job(str(plain), [])
    job = load_job(f"{path}:fine-3", ["sampler.eta=0.6"])
    assert job.sampler == {"name": "covariance", "steps": 3, "eta": 0.6}
    assert job.output == "runs/mine-fine-3"
    assert load_job(f"{path}:elsewhere", []).output == "runs/other"
    odd = tmp_path / "a:fine-3"
    odd.write_text(plain.read_text())
    assert load_job(str(odd), []).output == "runs/mine", "a file whose name looks like a variant"


@pytest.mark.parametrize(
    ("variants", "asked", "message"),
    [
        ("{fine-3: {sampler.steps: 3}}", "fine-4", r"no variant 'fine-4'; did you mean fine-3\?"),
        ("{}", "fine", r"no variant 'fine'; there are none"),
        ("[fine]", "fine", r"variants: expected names, each with fields such as"),
        ("{fine: {sampler.name.x: 3}}", "fine", r"variants\.fine\.sampler\.name\.x: 'name' is a value"),
        ("{fine: {sampler.stepps: 3}}", "fine", r"sampler.stepps: .*no such parameter"),
    ],
)
def test_variants_that_do_not_fit_are_refused(tmp_path, variants, asked, message):
    path = tmp_path / "mine.yaml"
    path.write_text(WITH_VARIANTS[: WITH_VARIANTS.index("variants")] + f"variants: {variants}")
    with pytest.raises(JobError, match=message):
        load_job(f"{path}:{asked}", [])


def test_values_between_commas():
    assert split("5,10") == ["5", "10"]
    assert split("{name: a, w: 1},{name: b}") == ["{name: a, w: 1}", "{name: b}"]
    assert split("'a,b', [1,2]") == ["'a,b'", "[1,2]"]
    assert parse_vary("sampler.w=010,1e-3") == ("sampler.w", [10, 0.001])
    assert parse_vary("prior.path=a #1.pt,010") == ("prior.path", ["a #1.pt", "010"])
    assert parse_vary("restoration.format=png,png16") == ("restoration.format", ["png", "png16"])


def test_a_run_whose_job_has_numbers_as_text_goes_on(make_job, tmp_path):
    """Before YAML 1.2, 1e-3 was text, and the operators and samplers took it for a number."""
    sampler = {"name": "conjugate", "steps": 2, "w": "1.5e1"}
    operator = {"name": "inpaint", "mask": "freeform", "holes": ["1e-1", 0.5]}
    before = make_job(sampler=sampler, degradation={"operator": operator})
    run = open_or_plan(before)
    text = (run.folder / "job.yaml").read_text()
    assert "w: 1.5e1\n" in text, "without quotes, as PyYAML writes it"
    again = load_job(str(run.folder / "job.yaml"), [])
    assert (again.sampler["w"], again.degradation.operator["holes"]) == (15.0, [0.1, 0.5])
    assert open_or_plan(again).config_hash == run.config_hash == config_hash(before)
    assert Run.open(run.folder).config_hash == run.config_hash
    with pytest.raises(JobError, match=r"sampler\.w: '1\.5e1' → 14"):
        open_or_plan(load_job(str(run.folder / "job.yaml"), ["sampler.w=14"]))
