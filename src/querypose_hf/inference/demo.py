"""The Gradio app of `querypose demo`: people in a picture, before the webcam and in a video (extra `demo`)."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import PIL.Image

from .explanation import explain_people, overlay_part_attention
from .loading import load_pipeline
from .tracking import PersonTracker
from .video import VideoReader, VideoWriter, find_people_in_frames
from .visualization import draw_poses


_LOWEST_THRESHOLD = 0.05
_MOST_PEOPLE = 50
_EVERYTHING = ["boxes", "skeleton", "names"]
_STRONGEST = "strongest of all"


class PoseDemo:
    """What the app does with what it is given; holds the model and the folder for downloads.

    Args:
        pose_estimator ([`PoseEstimationPipeline`]): what `pipeline("pose-estimation", ...)` returns.
        threshold (`float`, *optional*, defaults to 0.3): where the slider stands in the beginning.
        max_frames (`int`, *optional*, defaults to 300): how much of a video is looked at.
    """

    def __init__(self, pose_estimator: Any, threshold: float = 0.3, max_frames: int = 300):
        self.gradio = _import_gradio()
        if not _LOWEST_THRESHOLD <= threshold <= 1:
            raise ValueError(f"`threshold` must be from {_LOWEST_THRESHOLD} to 1, but is {threshold}.")
        if max_frames < 1:
            raise ValueError(f"`max_frames` must be at least 1, but is {max_frames}.")
        self.pose_estimator = pose_estimator
        self.threshold = threshold
        self.max_frames = max_frames
        self._downloads = tempfile.TemporaryDirectory(prefix="querypose-demo-")

    def look_at(self, picture: PIL.Image.Image | None) -> dict[str, Any] | None:
        """Finds everyone in a picture once, so that the threshold can change without the model."""
        if picture is None:
            return None
        people = explain_people(
            self.pose_estimator.model,
            self.pose_estimator.image_processor,
            picture,
            threshold=_LOWEST_THRESHOLD,
            top_k=_MOST_PEOPLE,
        )
        described = [self.pose_estimator._describe(found.person) for found in people]
        return {"picture": picture, "found": people, "people": described}

    def show(
        self, seen: dict[str, Any] | None, threshold: float, what: list[str], attention: bool, part: str, request: Any
    ) -> tuple:
        """The drawn picture, a sentence, the people and the two files to download."""
        if seen is None:
            return None, "", None, None, None
        kept = [index for index, person in enumerate(seen["people"]) if person["score"] > threshold]
        people = [seen["people"][index] for index in kept]
        picture = seen["picture"]
        if attention:
            found = [seen["found"][index] for index in kept]
            names = found[0].part_names if found else ()
            number = names.index(part) if part in names else None
            picture = overlay_part_attention(picture, found, part=number)
        drawn = self._draw(picture, people, threshold, what)
        folder = self._folder(request)
        (folder / "people.json").write_text(json.dumps(people, indent=2), encoding="utf-8")
        drawn.save(folder / "people.png")
        text = f"{len(people)} {'person' if len(people) == 1 else 'people'} above {threshold:.2f}"
        return drawn, text, people, str(folder / "people.json"), str(folder / "people.png")

    def follow(
        self, picture: PIL.Image.Image | None, tracker: PersonTracker | None, threshold: float, what: list[str]
    ) -> tuple:
        """One picture of the webcam."""
        if picture is None:
            return None, None
        if tracker is None or tracker.threshold != threshold:
            tracker = PersonTracker(threshold, frame_rate=5)
        people = tracker.update(self.pose_estimator(picture, threshold=tracker.lowest_score))
        return self._draw(picture, people, threshold, what), tracker

    def watch(self, video: str | None, threshold: float, what: list[str], progress: Any, request: Any) -> tuple:
        """A whole video: the drawn one, a sentence and the people as JSON lines."""
        if video is None:
            raise self.gradio.Error("Choose a video first.")
        folder = self._folder(request)
        seen: set[int] = set()
        count = 0
        try:
            with (
                VideoReader(video) as reader,
                VideoWriter(folder / "people.mp4", reader.frame_rate) as writer,
                (folder / "people.jsonl").open("w", encoding="utf-8") as lines,
            ):
                total = min(reader.num_frames or self.max_frames, self.max_frames)
                tracker = PersonTracker(threshold, frame_rate=float(reader.frame_rate))
                for frame, people in find_people_in_frames(
                    self.pose_estimator, reader, threshold=threshold, tracker=tracker
                ):
                    writer.write(self._draw(frame.image, people, threshold, what), frame.time)
                    lines.write(json.dumps({"frame": frame.index, "time": frame.time, "people": people}) + "\n")
                    seen |= {person["track_id"] for person in people} - {None}
                    count += 1
                    progress((count, total), desc="Finding people", unit="frames")
                    if count >= self.max_frames:
                        break
        except ValueError as error:
            raise self.gradio.Error(f"This video cannot be read: {error}") from error
        text = f"{count} frames, {len(seen)} {'person' if len(seen) == 1 else 'people'} followed"
        return str(folder / "people.mp4"), text, str(folder / "people.jsonl")

    def forget(self, request: Any) -> None:
        """Removes what a visitor could download."""
        shutil.rmtree(self._folder(request), ignore_errors=True)

    def _draw(self, picture: PIL.Image.Image, people: list, threshold: float, what: list[str]) -> PIL.Image.Image:
        return draw_poses(
            picture,
            people,
            edges=self.pose_estimator.model.config.keypoint_edges,
            keypoint_threshold=min(0.3, threshold) if "skeleton" in what else math.inf,
            draw_boxes="boxes" in what,
            draw_scores="names" in what,
        )

    def _folder(self, request: Any) -> Path:
        # the hash names a visitor; nothing else of it may name a place
        name = "".join(filter(str.isalnum, str(getattr(request, "session_hash", "") or "nobody")))
        folder = Path(self._downloads.name, name)
        folder.mkdir(exist_ok=True)
        return folder


def build_demo(
    model: str | os.PathLike | Any,
    *,
    device: str | None = None,
    threshold: float = 0.3,
    max_frames: int = 300,
) -> Any:
    """Builds the app; nothing of it reports to anybody.

    Args:
        model: a checkpoint's folder or Hub id, or a [`PoseEstimationPipeline`].
        device (`str`, *optional*): by default the first accelerator.
        threshold (`float`, *optional*, defaults to 0.3): where the slider stands in the beginning.
        max_frames (`int`, *optional*, defaults to 300): how much of a video is looked at.

    Returns:
        `gradio.Blocks`: to be launched with `launch(**launch_options())`.

    Raises:
        ImportError: Gradio is not installed.

    Example:

    ```python
    >>> build_demo("path/to/checkpoint").launch(**launch_options())
    ```
    """
    gr = _import_gradio()
    if isinstance(model, str | os.PathLike):
        model = load_pipeline(model, device)
    app = PoseDemo(model, threshold, max_frames)
    config = model.model.config

    from .explanation import name_parts

    def picture_input(**options: Any) -> Any:
        component = gr.Image(type="pil", **options)
        read = component.preprocess

        # on the object, because Gradio writes a stub file beside the module of every class made from one of its own
        def preprocess(payload: Any) -> Any:
            try:
                return read(payload)
            except Exception as error:
                raise gr.Error("This file cannot be read as a picture.", title="Not a picture") from error

        component.preprocess = preprocess
        return component

    # annotations tell Gradio to pass the request and the progress bar
    def show(
        seen: Any,
        threshold: float,
        what: list[str],
        attention: bool,
        part: str,
        request: gr.Request,  # type: ignore[name-defined]
    ) -> tuple:
        return app.show(seen, threshold, what, attention, part, request)

    def watch(
        video: str | None,
        threshold: float,
        what: list[str],
        request: gr.Request,  # type: ignore[name-defined]
        progress: Any = gr.Progress(),  # noqa: B008 (how Gradio is told to pass one)
    ) -> tuple:
        return app.watch(video, threshold, what, progress, request)

    def forget(request: gr.Request) -> None:  # type: ignore[name-defined]
        app.forget(request)

    with gr.Blocks(title="QueryPose", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown("# QueryPose\nFinds every person in a picture, with a box and keypoints, in one pass.")
        with gr.Row():
            slider = gr.Slider(
                _LOWEST_THRESHOLD, 1.0, threshold, step=0.01, label="Least score of a person", elem_id="threshold"
            )
            what = gr.CheckboxGroup(_EVERYTHING, value=_EVERYTHING, label="Draw", elem_id="what")
        with gr.Tab("Image"):
            seen = gr.State()
            with gr.Row():
                picture = picture_input(sources=["upload", "clipboard"], label="Photograph", elem_id="picture")
                drawn = gr.Image(
                    type="pil", format="png", label="People", show_label=False, interactive=False, elem_id="drawn"
                )
            summary = gr.Markdown(elem_id="summary")
            with gr.Row():
                attention = gr.Checkbox(label="Show where the model looks", elem_id="attention")
                part = gr.Dropdown(
                    [_STRONGEST, *name_parts(config.keypoint_names, config.keypoint_parts)],
                    value=_STRONGEST,
                    label="Body part",
                    elem_id="part",
                )
            with gr.Row():
                people_file = gr.DownloadButton("Download people (JSON)", elem_id="people_file")
                picture_file = gr.DownloadButton("Download picture (PNG)", elem_id="picture_file")
            with gr.Accordion("People as JSON", open=False):
                people = gr.JSON(show_label=False)
            shown = {
                "fn": show,
                "inputs": [seen, slider, what, attention, part],
                "outputs": [drawn, summary, people, people_file, picture_file],
            }
            picture.change(app.look_at, picture, seen, api_name="look_at").then(**shown, api_name=False)
            gr.on([slider.release, what.change, attention.change, part.change], **shown, api_name=False)
        with gr.Tab("Webcam"):
            tracker = gr.State()
            with gr.Row():
                webcam = picture_input(sources=["webcam"], streaming=True, label="Webcam", elem_id="webcam")
                live = gr.Image(type="pil", label="People", interactive=False, elem_id="live")
            webcam.stream(
                app.follow,
                [webcam, tracker, slider, what],
                [live, tracker],
                stream_every=0.2,
                concurrency_limit=1,
                api_name=False,
            )
        with gr.Tab("Video"):
            with gr.Row():
                video = gr.Video(sources=["upload"], label="Video", elem_id="video")
                followed = gr.Video(label="People", interactive=False, elem_id="followed")
            start = gr.Button(f"Find people (the first {max_frames} frames)", variant="primary", elem_id="start")
            story = gr.Markdown(elem_id="story")
            lines_file = gr.DownloadButton("Download people (JSON lines)")
            start.click(watch, [video, slider, what], [followed, story, lines_file], api_name="watch")
        blocks.unload(forget)
    return blocks


def launch_options() -> dict[str, Any]:
    """What `launch` should be given: fonts of the visitor's own machine, messages shown, no second server."""
    gr = _import_gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Soft(**fonts), "show_error": True, "ssr_mode": False, "max_file_size": "200mb"}


def _import_gradio() -> Any:
    # read when Gradio is imported
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the demo needs Gradio: pip install "querypose-hf[demo]".') from error
    return gradio
