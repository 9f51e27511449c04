"""Data that every installation has: the photographs that ship with scikit-image, as a shard."""

from pathlib import Path

import numpy as np
from PIL import Image

from kintsugi.pipeline.data.decode import resize_crop, to_rgb
from kintsugi.pipeline.data.pictures import encode
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish

SCIKIT_IMAGE = "builtin:scikit-image"
# fmt: off
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
    "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "camera.png", "moon.png", "coins.png", "gravel.png",
)
# fmt: on


def scikit_image_shard(folder: Location, size: int) -> Location:
    """The shard with the photographs, each resized and cropped to size × size; made if not there."""
    from skimage import data
    from webdataset import TarWriter

    target = folder / f"scikit-image-{size}.tar"
    if target.exists():
        return target
    photographs = Path(data.__file__).parent
    with publish(target) as temporary, TarWriter(str(temporary), mtime=0) as writer:
        for name in PHOTOGRAPHS:
            with Image.open(photographs / name) as image:
                # One is in Adobe RGB, and was always taken for sRGB: what runs are made of does not change.
                image.info.pop("icc_profile", None)
                writer.write(
                    {"__key__": Path(name).stem, "png": encode(np.asarray(resize_crop(to_rgb(image), size)))}
                )
    return target
