"""A short clip: the camera pans over the package's sample photograph."""

from fractions import Fraction

import av
import PIL.Image

from querypose_hf.assets import SAMPLE_IMAGE


def panned_scene(num_frames=6, size=(160, 120), step=4):
    """Frame i shows the scene from `step` * i pixels to the right on."""
    with PIL.Image.open(SAMPLE_IMAGE) as opened:
        scene = opened.convert("RGB").resize((2 * size[0], size[1]))
    return [scene.crop((step * i, 0, step * i + size[0], size[1])) for i in range(num_frames)]


def write_clip(path, frames, rate=10, container_format=None):
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
