"""What the demo does with the images and videos it is given; nothing here needs Gradio."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from ..files import write_image
from .explanation import PersonAttention, explain_people
from .explanation_drawing import overlay_part_attention
from .options import LOWEST_THRESHOLD, VideoOptions
from .records import count_people, image_record
from .tracking import PersonTracker, find_people_in_video
from .video import VideoReader, VideoWriter
from .visualization import draw_poses, keypoint_threshold_for


#: What can be drawn.
BOXES, SKELETON, NAMES = DRAWINGS = ("boxes", "skeleton", "names")
_MOST_PEOPLE = 50


@dataclass(frozen=True)
class SeenImage:
    """An image and everyone in it down to the lowest threshold, best first.

    Attributes:
        image (`PIL.Image.Image`): as it was given.
        found (`list[PersonAttention]`): where the model looked, per person.
        people (`list[dict]`): the same people as the pipeline describes them.
    """

    image: PIL.Image.Image
    found: list[PersonAttention]
    people: list[dict[str, Any]]


class PoseDemo:
    """The model, and a folder with the files that each visitor can download.

    Args:
        pose_estimator ([`PoseEstimationPipeline`]): what `pipeline("pose-estimation", ...)` returns.
        max_frames (`int`, *optional*, defaults to 300): how many frames of a video are looked at.
    """

    def __init__(self, pose_estimator: Any, max_frames: int = 300):
        self.pose_estimator = pose_estimator
        self.max_frames = max_frames
        self._downloads = tempfile.TemporaryDirectory(prefix="querypose-demo-")

    def look_at(self, image: PIL.Image.Image | None) -> SeenImage | None:
        """Finds everyone in an image once, so that the threshold can change without the model."""
        if image is None:
            return None
        model, image_processor = self.pose_estimator.model, self.pose_estimator.image_processor
        found = explain_people(model, image_processor, image, threshold=LOWEST_THRESHOLD, top_k=_MOST_PEOPLE)
        return SeenImage(image, found, [self.pose_estimator._describe(each.person) for each in found])

    def show(
        self,
        seen: SeenImage | None,
        threshold: float,
        drawings: list[str],
        attention: bool,
        part: str | None,
        visitor: str | None,
    ) -> tuple:
        """Draws those of an image's people who are above a threshold.

        Args:
            seen ([`SeenImage`]): from [`look_at`].
            threshold (`float`): people with a higher score are drawn.
            drawings (`list[str]`): which of [`DRAWINGS`].
            attention (`bool`): whether to lay the attention maps over the image.
            part (`str`): of this body part; any other text stands for the strongest of all parts.
            visitor (`str`): the visitor's session.

        Returns:
            `tuple`: the drawn image, a sentence, the people, and the paths of their JSON file and of the image.
        """
        if seen is None:
            return None, "", None, None, None
        kept = [index for index, person in enumerate(seen.people) if person["score"] > threshold]
        people = [seen.people[index] for index in kept]
        image = seen.image
        if attention:
            found = [seen.found[index] for index in kept]
            names = found[0].part_names if found else ()
            image = overlay_part_attention(image, found, part=names.index(part) if part in names else None)
        drawn = self._draw(image, people, threshold, drawings)
        people_path, image_path = (self._folder(visitor) / name for name in ("people.json", "people.png"))
        people_path.write_text(json.dumps(people, indent=2), encoding="utf-8")
        write_image(drawn, image_path)
        told = f"{self._count(person['label'] for person in people)} above {threshold:.2f}"
        return drawn, told, people, str(people_path), str(image_path)

    def follow(
        self, image: PIL.Image.Image | None, tracker: PersonTracker | None, threshold: float, drawings: list[str]
    ) -> tuple:
        """Draws the people of the webcam's next image; returns it and the tracker for the one after."""
        if image is None:
            return None, None
        if tracker is None or tracker.threshold != threshold:
            tracker = PersonTracker(threshold, frame_rate=5)
        people = tracker.update(self.pose_estimator(image, threshold=tracker.lowest_score))
        return self._draw(image, people, threshold, drawings), tracker

    def watch(
        self,
        video: str,
        threshold: float,
        drawings: list[str],
        on_frame: Callable[[int, int], Any],
        visitor: str | None,
    ) -> tuple[str, str, str]:
        """Finds and follows the people of a video.

        Args:
            video (`str`): the file.
            threshold, drawings, visitor: see [`show`].
            on_frame (`Callable`): is told how many frames are done, and of how many.

        Returns:
            `tuple[str, str, str]`: the path of the drawn video, a sentence, the path of the people as JSON lines.

        Raises:
            OSError, ValueError: the file is no video. One that is damaged gives the frames that can be read.
        """
        video_path, lines_path = (self._folder(visitor) / name for name in ("people.mp4", "people.jsonl"))
        labels_of: dict[int | None, str] = {}
        count = 0
        with (
            VideoReader(video) as reader,
            VideoWriter(video_path, reader.frame_rate) as writer,
            lines_path.open("w", encoding="utf-8") as lines,
        ):
            total = min(reader.num_frames or self.max_frames, self.max_frames)
            options = VideoOptions(threshold, max_frames=self.max_frames)
            for frame, people in _up_to_an_error(find_people_in_video(self.pose_estimator, reader, options), reader):
                writer.write(self._draw(frame.image, people, threshold, drawings), frame.time)
                record = image_record(Path(video).name, frame.index, frame.image.size, people, time=frame.time)
                lines.write(json.dumps(record) + "\n")
                labels_of |= {person["track_id"]: person["label"] for person in people}
                count += 1
                on_frame(count, total)
        labels_of.pop(None, None)
        damage = f"; damaged in {len(reader.damage)} places: {reader.damage[0]}" if reader.damage else ""
        return str(video_path), f"{count} frames, {self._count(labels_of.values())} followed{damage}", str(lines_path)

    def forget(self, visitor: str | None) -> None:
        """Removes the files of a visitor."""
        shutil.rmtree(self._folder(visitor), ignore_errors=True)

    def _count(self, labels: Iterable[str]) -> str:
        return count_people([*labels], [*self.pose_estimator.model.config.id2label.values()])

    def _draw(self, image: PIL.Image.Image, people: list, threshold: float, drawings: list[str]) -> PIL.Image.Image:
        return draw_poses(
            image,
            people,
            edges=self.pose_estimator.model.config.keypoint_edges,
            keypoint_threshold=keypoint_threshold_for(threshold) if SKELETON in drawings else math.inf,
            draw_boxes=BOXES in drawings,
            draw_scores=NAMES in drawings,
        )

    def _folder(self, visitor: str | None) -> Path:
        # letters and digits alone, so that a session cannot name a place outside
        folder = Path(self._downloads.name, "".join(filter(str.isalnum, visitor or "nobody")))
        folder.mkdir(exist_ok=True)
        return folder


def _up_to_an_error(frames: Iterator[Any], reader: VideoReader) -> Iterator[Any]:
    """The frames up to an error after the first; the error joins the reader's damage."""
    count = 0
    try:
        for frame in frames:
            count += 1
            yield frame
    except (OSError, ValueError) as error:
        if not count:
            raise
        reader.damage.append(str(error))
