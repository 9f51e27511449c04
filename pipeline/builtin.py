"""Data that every installation has: the photographs that ship with scikit-image, as a shard."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.commit import publish
from pipeline.read import resize_crop, to_rgb

SCIKIT_IMAGE = "builtin:scikit-image"
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "camera.png",
    "moon.png",
    "coins.png",
    "gravel.png",
)


def scikit_image_shard(folder: Path, size: int) -> Path:
    """The shard with the photographs, each resized and cropped to size × size; made if not there."""
    from skimage import data
    from webdataset import TarWriter

    target = folder / f"scikit-image-{size}.tar"
    if target.exists():
        return target.absolute()
    photographs = Path(data.__file__).parent
    with publish(target) as temporary, TarWriter(str(temporary), mtime=0) as writer:
        for name in PHOTOGRAPHS:
            with Image.open(photographs / name) as image:
                writer.write({"__key__": Path(name).stem, "png": png(resize_crop(to_rgb(image), size))})
    return target.absolute()


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
