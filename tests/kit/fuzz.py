"""Fuzzing: seeded mutations of good files, what reads them, and what must hold of that.

A target takes bytes and says how that ended, or raises what it declares: a traceback, a hang, too much memory
or a planned key without exactly one row is a fault. `tests/test_fuzz.py` tries a few inputs of each,
`python benchmarks/fuzz.py` as many as there is time for.
"""

import collections
import io
import json
import pickle
import resource
import shutil
import signal
import struct
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import scipy.io
import torch
import yaml
from kit.edm import save_pickle
from kit.hostile import adm_state, torch_file
from kit.jobs import told
from kit.networks import make_lucidrains
from kit.shards import SIZE, encode, npy, picture, tar_of, zip_of
from PIL import Image, ImageCms

from kintsugi.errors import JobError, SpecError
from kintsugi.operators import kernels, masks
from kintsugi.pipeline.data.collection import as_it_is
from kintsugi.pipeline.data.convert import Images, Measurements
from kintsugi.pipeline.data.decode import decode
from kintsugi.pipeline.data.make import make_shards
from kintsugi.pipeline.data.make.choosing import Options
from kintsugi.pipeline.data.make.sources import Source
from kintsugi.pipeline.data.make.writing import store
from kintsugi.pipeline.data.pictures import png16
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.tar import DamagedShard, Tar
from kintsugi.pipeline.data.units import read_members, read_units
from kintsugi.pipeline.parts import Data
from kintsugi.priors.formats import adm, diffusers_model, edm_convert, lucidrains, rectified_flow

SECONDS = 10  # of processor time for one input at most: other processes may be in the way
MEMORY = 2 << 30  # bytes that a process may take more than before the first input
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


@dataclass(frozen=True)
class Target:
    """What reads bytes.

    Attributes:
        seeds: good files. check: reads one, asserts what must hold, and says how it ended: True where all
            was read, False where some of it failed, in rows that say so.
        declared: errors that it may raise, which refuse all of it.
    """

    seeds: list[bytes]
    check: Callable[[bytes], bool]
    declared: tuple[type[Exception], ...] = ()


def mutations(rng: np.random.Generator, content: bytes) -> bytes:
    """The bytes with one to four changes; half of the time inside a container, which stays whole.

    Chunks of a PNG and records of a zip then have checksums that fit; of JSON and YAML a value is changed.
    """
    if rng.random() < 0.5 and content.startswith(b"PK"):
        return in_zip(rng, content)
    if rng.random() < 0.5 and content.startswith(b"{"):
        return json.dumps(in_values(rng, json.loads(content))).encode()
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        changed = CHANGES[rng.integers(len(CHANGES))](rng, changed)
    result = bytes(changed)
    return with_checksums(result) if result.startswith(b"\x89PNG") and rng.random() < 0.5 else result


def place(rng: np.random.Generator, content: bytearray) -> int:
    """Anywhere, but half of the time near the beginning, where headers are."""
    return int(rng.integers(min(len(content), 512 if rng.random() < 0.5 else len(content)) or 1))


def flip(rng: np.random.Generator, content: bytearray) -> bytearray:
    if content:
        content[place(rng, content)] ^= 1 << int(rng.integers(8))
    return content


def extreme(rng: np.random.Generator, content: bytearray) -> bytearray:
    """A number of one to four bytes that is the largest, the smallest or beside them."""
    value, form = EXTREMES[rng.integers(len(EXTREMES))], ["B", "<H", ">H", "<I", ">I"][rng.integers(5)]
    size, start = struct.calcsize(form), place(rng, content)
    content[start : start + size] = struct.pack(form, value % (1 << 8 * size))
    return content


def cut(rng: np.random.Generator, content: bytearray) -> bytearray:
    return content[: place(rng, content)]


def remove(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = place(rng, content)
    del content[start : start + int(rng.integers(1, 64))]
    return content


def repeat(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = place(rng, content)
    end = start + int(rng.integers(1, 64))
    return content[:end] + content[start:end] * int(rng.integers(1, 8)) + content[end:]


def noise(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = place(rng, content)
    content[start : start + 16] = rng.bytes(16)
    return content


CHANGES = [flip, flip, extreme, extreme, cut, remove, repeat, noise]


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them, as far as it has chunks."""
    parts, start = [png[:8]], 8
    while start + 12 <= len(png):
        size = struct.unpack_from(">I", png, start)[0]
        body = png[start + 4 : start + 8 + size]
        if start + 12 + size > len(png):
            break
        parts.append(png[start : start + 4] + body + struct.pack(">I", zlib.crc32(body)))
        start += 12 + size
    return b"".join(parts) + png[start:]


def in_zip(rng: np.random.Generator, content: bytes) -> bytes:
    """A zip with one changed record, preferably what is pickled in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        pickled = [name for name in names if name.endswith(".pkl")]
        chosen = (pickled or names)[0] if rng.random() < 0.8 else names[rng.integers(len(names))]
        for name in names:
            record = old.read(name)
            new.writestr(name, mutations(rng, record) if name == chosen else record)
    return buffer.getvalue()


ODD: list[Any] = [
    None, True, "", " ", "0", "010", "..", "../x", "nan", "a" * 5000, "\x00", "\u202e", "{a,b}", "%j", "s3://",
    0, 1, -1, 7, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, [], {}, [[]], [None], {"": 0},
]  # fmt: skip


def in_values(rng: np.random.Generator, value: Any) -> Any:
    """A value of JSON of which one part is another, is left out, or is there twice."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return ODD[rng.integers(len(ODD))]
    if isinstance(value, list):
        place = int(rng.integers(len(value)))
        part = [] if rng.random() < 0.1 else [in_values(rng, value[place])] * (2 if rng.random() < 0.1 else 1)
        return [*value[:place], *part, *value[place + 1 :]]
    key = list(value)[rng.integers(len(value))]
    if rng.random() < 0.1:
        return {name: part for name, part in value.items() if name != key}
    if rng.random() < 0.1:
        return value | {str(ODD[rng.integers(len(ODD))]): value[key]}
    return value | {key: in_values(rng, value[key])}


# Images


def images() -> list[bytes]:
    """One of every format and kind."""
    image, other = Image.fromarray(picture(0)), Image.fromarray(picture(1))
    more = {"save_all": True, "append_images": [other]}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = picture(2).astype(np.uint16) * 257 + 5
    grey = Image.fromarray(deep[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *(encode(image, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")),
        *(encode(image, kind, **more) for kind in ("PNG", "WEBP", "TIFF", "GIF", "AVIF", "MPO")),
        *(encode(image, kind, icc_profile=profile) for kind in ("PNG", "JPEG", "TIFF")),
        encode(image, "TIFF", compression="tiff_lzw"),
        encode(image, "TIFF", compression="jpeg"),
        encode(image, "JPEG", exif=exif, progressive=True),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image.quantize(16), "PNG"),
        encode(image.convert("RGBA"), "PNG", exif=exif),
        *(encode(grey, kind) for kind in ("PNG", "TIFF", "PPM")),
        encode(image.convert("F"), "TIFF"),
        png16(deep),
        b"P6 32 32 65535\n" + deep.tobytes(),
    ]


def check_image(content: bytes) -> bool:
    """As an image, as a measurement, for `score`: pixels of the right kind, or an error, never both."""
    source, whole = Source({"a.png": len(content)}, lambda name: content, [], []), True
    for convert in (Images(SIZE, "resize_crop", "[0,1]"), Measurements(1), Measurements(3), as_it_is):
        sample = decode("key", 0, {"png": content}, convert, None)
        assert (sample.image is None) == bool(sample.error), sample
        whole &= not sample.error
        if sample.image is not None:
            assert sample.image.dtype in (np.uint8, np.float32)
            assert sample.image.ndim == 3
            assert np.isfinite(sample.image).all()
    for size in (None, SIZE):
        stored = store(source, "a.png", Options(size=size))
        assert isinstance(stored, str) or stored[1]
    return whole


def check_array(content: bytes) -> bool:
    sample = decode("key", 0, {"npy": content}, Measurements(3), None)
    assert (sample.image is None) == bool(sample.error), sample
    assert sample.image is None or (sample.image.dtype == np.float32 and np.isfinite(sample.image).all())
    return not sample.error


# Masks


def mask_check(suffix: str) -> Callable[[bytes], bool]:
    def check(content: bytes) -> bool:
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(content)
            file.flush()
            known = masks.from_file(file.name, SIZE, SIZE, "white")
        assert known.shape[-2:] == (SIZE, SIZE)
        assert known.any()
        assert not known.all()
        return True

    return check


HOLE = np.tri(SIZE, dtype=np.uint8)


def npz(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, m=HOLE)
    return buffer.getvalue()


# Kernels


def check_kernel(content: bytes) -> bool:
    with tempfile.NamedTemporaryFile(suffix=".mat") as file:
        file.write(content)
        file.flush()
        kernel = kernels.kernel_of(file.name, "f", normalise=True)
    assert kernel.isfinite().all()
    assert max(kernel.shape) <= kernels.MAX_SIDE
    return True


def mat(version: str, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    arrays = {"x": HOLE, "f": HOLE / 1.0}
    scipy.io.savemat(buffer, arrays, format=version, do_compression=compressed)
    return buffer.getvalue()


# Shards


def check_shard(content: bytes) -> bool:
    """Every key of the plan has one sample, in the plan's order, whatever is in the tar."""
    whole = True
    with tempfile.TemporaryDirectory() as folder:
        shard, plan = Path(folder) / "s.tar", Path(folder) / "plan.parquet"
        shard.write_bytes(content)
        make_plan(Data(shards="unused", size=SIZE, damaged="salvage"), [shard], 2, plan)
        for unit in read_units(plan):
            members = read_members(plan, unit)
            read = [s for batch in read_unit(unit, members, Images(8, "exact"), 2) for s in batch]
            assert [sample.key for sample in read] == list(members.keys)
            whole &= not any(sample.error for sample in read)
    return whole


def shards() -> list[bytes]:
    files = [(f"{n}.png", encode(picture(n, 8))) for n in range(4)]
    return [tar_of(*files), tar_of(*[(f"{'long' * 40}/{name}", file) for name, file in files])]


def check_headers(content: bytes) -> bool:
    """A tar alone, of which there are thousands in a second."""
    list(Tar(io.BytesIO(content), len(content)).samples())
    return True


def headers() -> list[bytes]:
    """Tars of which the headers are most."""
    return [
        tar_of(("a.png", b""), (f"{name}.png", b"1"), format=tarfile.PAX_FORMAT) for name in ("b", "é" * 120)
    ]


def check_zip(content: bytes) -> bool:
    """A source of shards, whose members are in them or left out."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "set.zip"
        source.write_bytes(content)
        made = make_shards(source, Path(folder) / "out", Options())
        assert made.images <= 2
    return not made.left_out


# Checkpoints


PRIORS = {"adm": adm, "lucidrains": lucidrains, "rectified_flow": rectified_flow}


def checkpoint_check(name: str, suffix: str) -> Callable[[bytes], bool]:
    diffusers_folder()  # what it imports is not the time of an input

    def check(content: bytes) -> bool:
        parameters = {"head_channels": 32} if name == "adm" else {}
        path = scratch("checkpoint") / f"x{suffix}"
        path.write_bytes(content)
        PRIORS[name].describe(path=path, **parameters)
        getattr(PRIORS[name], name)(path=path, **parameters)
        return True

    return check


@cache
def scratch(name: str) -> Path:
    """A folder that lasts as long as the process; one name of a file leaves one record of its checksum."""
    folder = tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-")
    KEPT.append(folder)
    return Path(folder.name)


KEPT: list[Any] = []


def checkpoints() -> list[bytes]:
    """A good one, and small ones in every format and wrapping, which are refused for what they lack."""
    small = {"time_embed.0.weight": torch.zeros(8, 2), "out.2.bias": torch.zeros(6, dtype=torch.float16)}
    shadow = {"decay": 0.9, "shadow_params": list(small.values())}
    shared = {"state_dict": small}
    return [
        torch_file(adm_state()),
        torch_file(small),
        torch_file(small, _use_new_zipfile_serialization=False),
        torch_file({"model": small, "ema": {f"module.{key}": value for key, value in small.items()}}),
        torch_file({"model": small, "ema": shadow, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}),
        torch_file({"again": shared, **shared}),
        pickle.dumps({"ema": torch.nn.Conv2d(3, 8, 3)}, 4),
        pickle.dumps({"ema": torch.nn.Conv2d(3, 8, 3)}, 2),
    ]


def lucidrains_files() -> list[bytes]:
    x, betas = torch.zeros(1, 3, 8, 8), torch.full((10,), 0.3).double()
    path, _ = make_lucidrains(scratch("lucidrains"), "good", "pred_v", betas, x, torch.ones(1))
    return [path.read_bytes()]


def edm_pickles() -> list[bytes]:
    settings = {
        "img_resolution": 4,
        "img_channels": 1,
        "model_channels": 4,
        "channel_mult": [1],
        "num_blocks": 1,
    }
    path = scratch("edm") / "good.pkl"
    return [save_pickle(path, "VPPrecond", settings, protocol=n).read_bytes() for n in (2, 4)]


def check_edm_pickle(content: bytes) -> bool:
    path = scratch("edm") / "x.pkl"
    path.write_bytes(content)
    edm_convert.read(path)
    return True


def diffusers_check(file: str) -> Callable[[bytes], bool]:
    def check(content: bytes) -> bool:
        pipeline = scratch(f"diffusers-{Path(file).name}")
        if not any(pipeline.iterdir()):
            shutil.copytree(diffusers_folder(), pipeline, dirs_exist_ok=True)
        (pipeline / file).write_bytes(content)
        diffusers_model.describe(path=str(pipeline))
        return True

    return check


@cache
def diffusers_folder() -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(16, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=8, **blocks)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(scratch("diffusers"))
    return scratch("diffusers")


# Job files and runs


def job_values(**fields: Any) -> dict[str, Any]:
    """The fields of a job on `shards()[0]` that takes a tenth of a second."""
    return {
        "data": {"shards": "s.tar", "size": 8},
        "degradation": {"operator": {"name": "average_pool", "factor": 2}, "sigma": 0.02},
        "sampler": {"name": "ddnm", "steps": 1},
        "metrics": ["psnr"],
        "compute": {"batch_size": 2, "unit_size": 2, "cpus_per_actor": 1},
        "output": "run",
    } | fields


def check_job(content: bytes) -> bool:
    """`plan` refuses it in words that begin with "error:", or plans it."""
    folder = scratch("job")
    (folder / "s.tar").write_bytes(shards()[0])
    (folder / "job.yaml").write_bytes(content)
    with chdir(folder):
        code, output = told("plan", "job.yaml", "--no-timing")
    assert code == 0 or "error:" in output, output
    if code:
        raise JobError(output)
    return True


def job_files() -> list[bytes]:
    measured = job_values(data={"kind": "measurements", "shards": "s.tar", "size": 8}, metrics=[])
    masked = {"name": "inpaint", "mask": "half"}
    several = job_values(
        degradation={"operator": {"name": "compose", "operators": [{"name": "denoise"}, masked]}, "sigma": 0},
        sampler={"name": "conjugate", "steps": 2, "w": 3.0, "jacobian": False},
    )
    values = [job_values(), measured, several]
    return [write(value).encode() for value in values for write in (json.dumps, yaml.safe_dump)]


@cache
def finished() -> Path:
    """A folder with a shard, a job, its run, and a copy of that which stays whole."""
    folder = scratch("finished")
    (folder / "s.tar").write_bytes(shards()[0])
    (folder / "job.yaml").write_text(json.dumps(job_values()))
    with chdir(folder):
        code, output = told("run", "job.yaml", "--address", "none")
    assert code == 0, output
    shutil.copytree(folder / "run", folder / "whole")
    return folder


def run_check(file: str) -> Callable[[bytes], bool]:
    """What opens a run with another file in it refuses it in words, or ends with one row for every key."""

    def check(content: bytes) -> bool:
        folder = finished()
        shutil.rmtree(folder / "run")
        shutil.copytree(folder / "whole", folder / "run")
        (folder / "run" / file).write_bytes(content)
        with chdir(folder):
            for words in (("status", "run"), ("verify", "run"), ("verify", "run", "--repair")):
                code, output = told(*words)
                assert code in (0, 1), output
            code, output = told("run", "job.yaml", "--address", "none")
            assert code in (0, 1, 2), output
            if code == 1:
                assert "error:" in output, output
                raise JobError(output)
            assert_one_row_each(Path("run"), [str(n) for n in range(4)])
        return code == 0

    return check


def assert_one_row_each(run: Path, keys: list[str]) -> None:
    """The committed rows are one for each key."""
    tables = [pq.read_table(file, columns=["key"]) for file in sorted((run / "data").glob("*.parquet"))]
    found = collections.Counter(key for table in tables for key in table["key"].to_pylist())
    assert found == collections.Counter(keys), found


def check_whole_run(content: bytes) -> bool:
    """A tar is planned and done: one row for each key that is planned, failed ones among them."""
    folder = scratch("whole")
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "s.tar").write_bytes(content)
    data = {"shards": "s.tar", "size": 8, "damaged": "salvage"}
    (folder / "job.yaml").write_text(json.dumps(job_values(data=data)))
    with chdir(folder):
        code, output = told("run", "job.yaml", "--address", "none")
        assert code in (0, 1, 2), output
        plan = Path("run/plan.parquet")
        if not plan.exists():
            assert "error:" in output, output
            raise JobError(output)
        keys = [key for unit in read_units(plan) for key in read_members(plan, unit).keys]
        if code != 1 or keys:
            assert_one_row_each(Path("run"), keys)
    return code == 0


def of_run(part: str) -> Target:
    """A run in which the first file of a part is another."""
    run = finished() / "whole"
    file = min((run / part).iterdir()) if (run / part).is_dir() else run / part
    return Target([file.read_bytes()], run_check(str(file.relative_to(run))), (JobError,))


def of_pipeline(file: str) -> Target:
    return Target([(diffusers_folder() / file).read_bytes()], diffusers_check(file), (SpecError,))


def arrays() -> list[bytes]:
    array = np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 8, 8)
    return [npy(array), npy(array.astype(float)), npy(np.asfortranarray(array))]


def safe() -> list[bytes]:
    return [safetensors.torch.save(state) for state in (adm_state(), {"a": torch.zeros(3)})]


TARGETS: dict[str, Callable[[], Target]] = {
    "images": lambda: Target(images(), check_image),
    "npy": lambda: Target(arrays(), check_array),
    "masks.png": lambda: Target([encode(HOLE * 255)], mask_check(".png"), (ValueError,)),
    "masks.npy": lambda: Target([npy(HOLE), npy(HOLE / 1.0)], mask_check(".npy"), (ValueError,)),
    "masks.npz": lambda: Target([npz(True), npz(False)], mask_check(".npz"), (ValueError,)),
    "kernels.mat": lambda: Target(
        [mat("5", True), mat("5", False), mat("4", False)], check_kernel, (ValueError,)
    ),
    "headers of tars": lambda: Target(headers(), check_headers, (DamagedShard,)),
    "zips": lambda: Target(
        [zip_of({f"{n}.png": encode(picture(n, 8)) for n in range(2)})], check_zip, (JobError,)
    ),
    "tars": lambda: Target(shards(), check_shard, (JobError, DamagedShard)),
    "checkpoints": lambda: Target(checkpoints(), checkpoint_check("adm", ".pt"), (SpecError,)),
    "checkpoints of flows": lambda: Target(
        checkpoints(), checkpoint_check("rectified_flow", ".pt"), (SpecError,)
    ),
    "checkpoints of lucidrains": lambda: Target(
        lucidrains_files(), checkpoint_check("lucidrains", ".pt"), (SpecError,)
    ),
    "pickles of EDM": lambda: Target(edm_pickles(), check_edm_pickle, (SpecError,)),
    "safetensors": lambda: Target(safe(), checkpoint_check("adm", ".safetensors"), (SpecError,)),
    "model_index.json": lambda: of_pipeline("model_index.json"),
    "unet/config.json": lambda: of_pipeline("unet/config.json"),
    "scheduler_config.json": lambda: of_pipeline("scheduler/scheduler_config.json"),
    "job files": lambda: Target(job_files(), check_job, (JobError,)),
    "commit records": lambda: of_run("commits"),
    "rows": lambda: of_run("data"),
    "plans": lambda: of_run("plan.parquet"),
    "job.yaml of a run": lambda: of_run("job.yaml"),
    "prior.json of a run": lambda: of_run("prior.json"),
    "whole runs": lambda: Target(shards(), check_whole_run, (JobError,)),
}


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """Mutations without end, of the seeds in turn."""
    rng = np.random.default_rng(seed)
    while True:
        for content in target.seeds:
            yield mutations(rng, content)


def memory() -> int:
    """Bytes that this process has ever held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Hang(BaseException):
    """Not caught by what catches errors."""


def hang(number: int, frame: Any) -> None:
    raise Hang(f"takes longer than {SECONDS} s")


@dataclass
class Tally:
    """How the inputs of a target ended.

    Attributes:
        read, refused, failed: of how many all was read; that were refused; with failed samples.
        faults: what was wrong, and the input.
        slowest: seconds.
    """

    read: int = 0
    refused: int = 0
    failed: int = 0
    faults: list[tuple[str, bytes]] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def tried(self) -> int:
        return self.read + self.refused + self.failed + len(self.faults)

    def add(self, target: Target, content: bytes) -> None:
        """Try an input."""
        started = time.perf_counter()
        before = signal.signal(signal.SIGPROF, hang)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            if target.check(content):
                self.read += 1
            else:
                self.failed += 1
        except target.declared:
            self.refused += 1
        except (Exception, Hang) as error:
            self.faults.append((f"{type(error).__name__}: {error}", content))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
        self.slowest = max(self.slowest, time.perf_counter() - started)
