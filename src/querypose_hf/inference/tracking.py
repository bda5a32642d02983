"""Following people from frame to frame, with ByteTrack of Roboflow's `trackers` (extra `video`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class PersonTracker:
    """Gives the people of consecutive frames numbers that stay theirs, by ByteTrack (Zhang et al., ECCV 2022).

    A track starts with a person of at least `threshold`; with less, down to `lowest_score`, it is only continued.
    Boxes are what is compared. The tracker knows one video: take a new one for the next.

    Args:
        threshold (`float`, *optional*, defaults to 0.3): least score of a person who starts a track.
        frame_rate (`float`, *optional*, defaults to 30): frames per second.
        lost_after (`float`, *optional*, defaults to 1): seconds that a person who is not found is waited for.

    Attributes:
        lowest_score (`float`): people down to this score should be passed to [`update`]: a third of `threshold`.

    Raises:
        ImportError: `trackers` is not installed.
        ValueError: an argument is out of range.

    Example:

    ```python
    >>> tracker = PersonTracker(threshold=0.3, frame_rate=25)
    >>> for picture in pictures:
    ...     people = tracker.update(pose_estimator(picture, threshold=tracker.lowest_score))
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
        """Takes the next frame's people and returns those who are sure enough or followed, each with a `track_id`.

        Args:
            people (`Sequence[dict]`): as the pipeline gives them, down to [`lowest_score`]; empty if there are none,
                which the tracker must know, too.
            time (`float`, *optional*): seconds, above those of the call before; by default one frame later.

        Returns:
            `list[dict]`: copies in the same order with `track_id` after `label`: an `int`, or `None` in the first
            frame that a person is seen in, because a number is given with the second. Whoever has neither `threshold`
            nor a number is left out.
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
