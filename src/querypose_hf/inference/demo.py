"""The web page of `querypose demo`, with Gradio (extra `demo`): people in an image, the webcam and a video."""

import os
from dataclasses import dataclass
from typing import Any

import PIL.Image

from ..assets import SAMPLE_CREDIT, SAMPLE_IMAGE
from .demo_actions import DRAWINGS, PoseDemo, SeenImage
from .explanation import name_parts
from .loading import load_pipeline
from .options import LOWEST_THRESHOLD, DemoOptions


_STRONGEST = "strongest of all"


@dataclass(frozen=True)
class _Controls:
    """What all tabs share: the actions, the slider and the choice of what is drawn."""

    actions: PoseDemo
    threshold: Any
    drawings: Any


def build_demo(
    model: str | os.PathLike | Any, options: DemoOptions | None = None, *, device: str | None = None
) -> Any:
    """Builds the page, which opens with the sample photograph and the people in it. It sends nothing to third parties.

    Args:
        model: a checkpoint's folder or Hub id, or a [`PoseEstimationPipeline`].
        options ([`DemoOptions`], *optional*): what the page starts with.
        device (`str`, *optional*): by default the first accelerator.

    Returns:
        `gradio.Blocks`: to be launched with `launch(**launch_options())`.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: `model` is no QueryPose checkpoint.

    Example:

    ```python
    >>> build_demo("path/to/checkpoint").launch(**launch_options())
    ```
    """
    gr = import_gradio()
    options = options or DemoOptions()
    pose_estimator = load_pipeline(model, device) if isinstance(model, str | os.PathLike) else model
    actions = PoseDemo(pose_estimator, options.max_frames)
    start = options.threshold
    if start is None:
        start = max(LOWEST_THRESHOLD, round(pose_estimator.score_threshold, 2))
    with PIL.Image.open(SAMPLE_IMAGE) as opened:
        sample = actions.look_at(opened.convert("RGB"))
    with gr.Blocks(title="QueryPose", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown("# QueryPose\nFinds every person in an image, with a box and keypoints, in one pass.")
        with gr.Row():
            threshold = gr.Slider(
                LOWEST_THRESHOLD, 1.0, start, step=0.01, label="Score threshold", elem_id="threshold"
            )
            drawings = gr.CheckboxGroup([*DRAWINGS], value=[*DRAWINGS], label="Draw", elem_id="drawings")
        controls = _Controls(actions, threshold, drawings)
        with gr.Tab("Image"):
            _image_tab(gr, controls, sample, blocks)
        with gr.Tab("Webcam"):
            _webcam_tab(gr, controls)
        with gr.Tab("Video"):
            _video_tab(gr, controls)

        # Gradio passes the request to parameters with this annotation
        def forget(request: gr.Request) -> None:  # type: ignore[name-defined]
            actions.forget(request.session_hash)

        blocks.unload(forget)
    return blocks


def launch_options() -> dict[str, Any]:
    """Arguments for `launch`: fonts of the visitor's own machine, error messages shown, no second server."""
    gr = import_gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Soft(**fonts), "show_error": True, "ssr_mode": False, "max_file_size": "200mb"}


def import_gradio() -> Any:
    """Gradio, with its reports to its makers turned off.

    Raises:
        ImportError: it is not installed.
    """
    # read when Gradio is imported
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the demo needs Gradio: pip install "querypose-hf[demo]".') from error
    return gradio


def _image_tab(gr: Any, controls: _Controls, sample: SeenImage | None, blocks: Any) -> None:
    seen = gr.State()
    with gr.Row():
        image = _image_input(
            gr, value=str(SAMPLE_IMAGE), sources=["upload", "clipboard"], label="Your image", elem_id="image"
        )
        drawn = gr.Image(type="pil", format="png", label="People found", interactive=False, elem_id="drawn")
    summary = gr.Markdown(elem_id="summary")
    config = controls.actions.pose_estimator.model.config
    with gr.Row():
        attention = gr.Checkbox(label="Show where the model looks", elem_id="attention")
        parts = [_STRONGEST, *name_parts(config.keypoint_names, config.keypoint_parts)]
        part = gr.Dropdown(parts, value=_STRONGEST, label="Body part", elem_id="part")
    with gr.Row():
        people_file = gr.DownloadButton("Download people (JSON)", elem_id="people_file")
        image_file = gr.DownloadButton("Download image (PNG)", elem_id="image_file")
    with gr.Accordion("People as JSON", open=False):
        people = gr.JSON(label="People", show_label=False)
    gr.Markdown(f"The image that the page opens with: {SAMPLE_CREDIT}")

    def show(
        seen: Any,
        threshold: float,
        drawings: list[str],
        attention: bool,
        part: str,
        request: gr.Request,  # type: ignore[name-defined]
    ) -> tuple:
        return controls.actions.show(seen, threshold, drawings, attention, part, request.session_hash)

    shown = {
        "fn": show,
        "inputs": [seen, controls.threshold, controls.drawings, attention, part],
        "outputs": [drawn, summary, people, people_file, image_file],
        "api_name": False,
    }
    blocks.load(lambda: sample, None, seen, api_name=False).then(**shown)
    image.change(controls.actions.look_at, image, seen, api_name="look_at").then(**shown)
    gr.on([controls.threshold.release, controls.drawings.change, attention.change, part.change], **shown)


def _webcam_tab(gr: Any, controls: _Controls) -> None:
    tracker = gr.State()
    with gr.Row():
        webcam = _image_input(gr, sources=["webcam"], streaming=True, label="Webcam", elem_id="webcam")
        live = gr.Image(type="pil", label="People found", interactive=False, elem_id="live")
    webcam.stream(
        controls.actions.follow,
        [webcam, tracker, controls.threshold, controls.drawings],
        [live, tracker],
        stream_every=0.2,
        concurrency_limit=1,
        api_name=False,
    )


def _video_tab(gr: Any, controls: _Controls) -> None:
    with gr.Row():
        video = gr.Video(sources=["upload"], label="Your video", elem_id="video")
        followed = gr.Video(label="People found", interactive=False, elem_id="followed")
    title = f"Find people (the first {controls.actions.max_frames} frames)"
    start = gr.Button(title, variant="primary", elem_id="start")
    summary = gr.Markdown(elem_id="video_summary")
    lines_file = gr.DownloadButton("Download people (JSON lines)")

    def watch(
        video: str | None,
        threshold: float,
        drawings: list[str],
        request: gr.Request,  # type: ignore[name-defined]
        progress: Any = gr.Progress(),  # noqa: B008 (Gradio passes one where this is the default)
    ) -> tuple:
        if video is None:
            raise gr.Error("Choose a video first.")

        def on_frame(count: int, total: int) -> None:
            progress((count, total), desc="Finding people", unit="frames")

        try:
            return controls.actions.watch(video, threshold, drawings, on_frame, request.session_hash)
        except (OSError, ValueError) as error:
            raise gr.Error(f"This video cannot be read: {error}") from error

    inputs = [video, controls.threshold, controls.drawings]
    start.click(watch, inputs, [followed, summary, lines_file], api_name="watch")


def _image_input(gr: Any, **options: Any) -> Any:
    """A component for images that says when a file is none."""
    component = gr.Image(type="pil", **options)
    read = component.preprocess

    # replaced on the object, because Gradio writes a stub file beside the module of every subclass
    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except Exception as error:
            raise gr.Error("This file cannot be read as an image.", title="Not an image") from error

    component.preprocess = preprocess
    return component
