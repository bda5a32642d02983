"""People in videos, followed from frame to frame by ByteTrack of Roboflow's `trackers` (extra `video`)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np

from .options import VideoOptions
from .video import VideoFrame, VideoReader


class PersonTracker:
    """Follows the people of one video with ByteTrack (Zhang et al., ECCV 2022), which compares boxes.

    A person of at least `threshold` starts a track; people with less, down to `lowest_score`, only continue one. Take
    a new tracker for each video.

    Args:
        threshold (`float`, *optional*, defaults to 0.3): least score of a person who starts a track.
        frame_rate (`float`, *optional*, defaults to 30): frames per second.
        lost_after (`float`, *optional*, defaults to 1): a track ends when its person is not found for so many seconds.

    Attributes:
        lowest_score (`float`): a third of `threshold`. Pass people down to this score to [`update`].

    Raises:
        ImportError: `trackers` is not installed.
        ValueError: an argument is out of range.

    Example:

    ```python
    >>> tracker = PersonTracker(threshold=0.3, frame_rate=25)
    >>> for image in images:
    ...     people = tracker.update(pose_estimator(image, threshold=tracker.lowest_score))
    ```
    """

    def __init__(self, threshold: float = 0.3, frame_rate: float = 30.0, lost_after: float = 1.0):
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be from 0 to 1, but is {threshold}.")
        if not frame_rate > 0:
            raise ValueError(f"`frame_rate` must be above 0, but is {frame_rate}.")
        if not lost_after >= 0:
            raise ValueError(f"`lost_after` must not be negative, but is {lost_after}.")
        try:
            from supervision import Detections
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ImportError('following people needs trackers: pip install "querypose-hf[video]".') from error
        self.threshold = threshold
        self.lowest_score = threshold / 3
        self._detections = Detections
        self._tracker = ByteTrackTracker(
            # the library counts frames of a 30th of a second and scales them by `frame_rate`
            lost_track_buffer=max(1, round(30 * lost_after)),
            frame_rate=frame_rate,
            track_activation_threshold=threshold,
            high_conf_det_threshold=threshold,
            minimum_consecutive_frames=1,
        )

    def update(self, people: Sequence[dict[str, Any]], time: float | None = None) -> list[dict[str, Any]]:
        """Takes the people of the next frame and adds their `track_id`.

        Args:
            people (`Sequence[dict]`): as the pipeline gives them, down to `lowest_score`. Call this for frames without
                people, too.
            time (`float`, *optional*): of the frame, in seconds; by default one frame after the call before.

        Returns:
            `list[dict]`: copies in the same order with `track_id` after `label`. It is `None` in the first frame of a
            person, because ByteTrack gives a number with the second. People below `threshold` without a number are
            left out.
        """
        sides = ("xmin", "ymin", "xmax", "ymax")
        boxes = np.array([[person["box"][side] for side in sides] for person in people], dtype=np.float32)
        detections = self._detections(
            xyxy=boxes.reshape(-1, 4),
            confidence=np.array([person["score"] for person in people], dtype=np.float32),
            class_id=np.zeros(len(people), dtype=int),
            data={"position": np.arange(len(people))},
        )
        followed = self._tracker.update(detections, timestamp=time)
        track_ids = () if followed.tracker_id is None else followed.tracker_id
        numbers = {
            int(position): int(number)
            for position, number in zip(followed.data.get("position", ()), track_ids, strict=False)
            if number >= 0
        }
        result = []
        for position, person in enumerate(people):
            if position in numbers or person["score"] >= self.threshold:
                first = {"score": person["score"], "label": person["label"], "track_id": numbers.get(position)}
                result.append({**first, **person})
        return result


def find_people_in_video(
    pose_estimator: Any,
    reader: VideoReader,
    options: VideoOptions | None = None,
    *,
    timed: Callable[[str], Any] = nullcontext,
) -> Iterator[tuple[VideoFrame, list[dict[str, Any]]]]:
    """Finds the people of a video frame by frame, and follows them.

    Args:
        pose_estimator ([`PoseEstimationPipeline`]): what `pipeline("pose-estimation", ...)` returns.
        reader ([`VideoReader`]): the video.
        options ([`VideoOptions`], *optional*): by default the image processor's score threshold, with tracking.
        timed (`Callable`, *optional*): makes a context manager of "reading" or "model", such as `TimeSpent.of`.

    Yields:
        `tuple[VideoFrame, list[dict]]`: each frame with its people, as the pipeline gives them. With tracking each has
        a `track_id`, and people with less than the threshold are kept, too, while they are followed.

    Example:

    ```python
    >>> with VideoReader("clip.mp4") as reader:
    ...     for frame, people in find_people_in_video(pose_estimator, reader, VideoOptions(top_k=20)):
    ...         print(frame.time, [person["track_id"] for person in people])
    ```
    """
    options = options or VideoOptions()
    threshold = options.threshold
    if threshold is None:
        threshold = pose_estimator.score_threshold
    tracker = PersonTracker(threshold, frame_rate=float(reader.frame_rate)) if options.track else None
    if tracker is not None:
        threshold = tracker.lowest_score
    batch_size = 1 if reader.is_live else options.batch_size
    batches = _batches(islice(reader, options.max_frames), batch_size)
    while True:
        with timed("reading"):
            batch = next(batches, None)
        if batch is None:
            return
        with timed("model"):
            found = pose_estimator(
                [frame.image for frame in batch], threshold=threshold, top_k=options.top_k, batch_size=batch_size
            )
            if tracker is not None:
                found = [tracker.update(people, frame.time) for frame, people in zip(batch, found, strict=True)]
        yield from zip(batch, found, strict=True)


def _batches(frames: Iterable[VideoFrame], size: int) -> Iterator[list[VideoFrame]]:
    """The frames in batches; those before an error come before the error."""
    batch: list[VideoFrame] = []
    try:
        for frame in frames:
            batch.append(frame)
            if len(batch) == size:
                yield batch
                batch = []
    except (OSError, ValueError):
        if batch:
            yield batch
        raise
    if batch:
        yield batch
