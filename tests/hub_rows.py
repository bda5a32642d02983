"""A small dataset of the `datasets` library."""

import io

import datasets
from PIL import Image


def _image(i):
    buffer = io.BytesIO()
    Image.new("RGB", ((30, 20)[i % 2], 24), (10 * i, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_rows(num_rows=4, as_dicts=False, broken=(), image_ids=True, label=None, **changes):
    """Row i has i people of two keypoints; `changes` replace columns of the objects."""
    objects = []
    for i in range(num_rows):
        fields = {
            "bbox": [[1.0 * j, 2.0, 10.0, 12.0] for j in range(i)],
            "keypoints": [[3.0 + j, 4.0, 2.0, 0.0, 0.0, 0.0] for j in range(i)],
            "category": [j % 2 for j in range(i)],
        }
        fields.update({name: change(i) for name, change in changes.items()})
        fields = {name: value for name, value in fields.items() if value is not None}
        objects.append([dict(zip(fields, row, strict=True)) for row in zip(*fields.values())] if as_dicts else fields)  # noqa: B905
    images = [{"bytes": b"broken", "path": None} if i in broken else _image(i) for i in range(num_rows)]
    columns = {"image": images, "objects": objects}
    if image_ids:
        columns["image_id"] = [50 + i for i in range(num_rows)]
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    if label is not None:
        features = data.features.copy()
        features["objects"]["category"] = datasets.List(label)
        data = data.cast(features)
    return data
