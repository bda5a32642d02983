"""Results of finished images, kept until all are finished, so that an interrupted run can be taken up again.

Each process appends to a file of its own: a line of JSON for each image, a whole batch in one write. A line that was
cut off when the process was killed is not read.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import remove_unfinished, replacing_file


Results = dict[int, list[dict[str, Any]]]


class PartialResults:
    """The files of one run.

    Args:
        folder (`str` or `os.PathLike`): where they are; made when the first results are appended.
        settings (`Mapping`): all that the results depend on, as JSON has it. Results of other settings are refused.
        process (`int`, *optional*, defaults to 0): the number of this process among those that share the images.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any], process: int = 0):
        self.folder = Path(folder)
        self.settings = dict(settings)
        self._path = self._path_of(process)

    def read(self) -> Results:
        """Reads what all processes of earlier runs have finished, and moves it into the first process's file.

        Only one process may call this, before any of them appends. What a killed run left unfinished is removed.

        Returns:
            `dict[int, list]`: COCO results by the id of their image.

        Raises:
            ValueError: the results were made with other settings; the message names them.
        """
        remove_unfinished(self.folder)
        paths = sorted(self.folder.glob("predictions.part*.jsonl"))
        finished: Results = {}
        for path in paths:
            head, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]  # what follows the last line end was cut off
            if not head:
                continue
            self._check_settings(path, json.loads(head)["settings"])
            for line in lines:
                entry = json.loads(line)
                finished[entry["image_id"]] = entry["results"]
        if paths:
            target = self._path_of(0)
            with replacing_file(target) as temporary:
                temporary.write_bytes(self._head() + _lines(finished.items()))
            for path in paths:
                if path != target:
                    path.unlink()
        return finished

    def append(self, results: Mapping[int, list[dict[str, Any]]]) -> None:
        """Adds the results of finished images to this process's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write((b"" if file.tell() else self._head()) + _lines(results.items()))

    def remove(self) -> None:
        """Deletes the files of all processes."""
        for path in self.folder.glob("predictions.part*.jsonl"):
            path.unlink()

    def _path_of(self, process: int) -> Path:
        return self.folder / f"predictions.part{process}.jsonl"

    def _head(self) -> bytes:
        return json.dumps({"settings": self.settings}).encode() + b"\n"

    def _check_settings(self, path: Path, settings: Mapping[str, Any]) -> None:
        different = sorted(
            name for name in {*settings, *self.settings} if settings.get(name) != self.settings.get(name)
        )
        if different:
            name = different[0]
            raise ValueError(
                f"{path}: holds the results of an unfinished run with another {', '.join(map(repr, different))} "
                f"({name} was {settings.get(name)!r} and is now {self.settings.get(name)!r}); finish that run, delete "
                "the file or choose another folder."
            )


def _lines(entries: Iterable[tuple[int, list[dict[str, Any]]]]) -> bytes:
    return b"".join(
        json.dumps({"image_id": image_id, "results": results}, allow_nan=False).encode() + b"\n"
        for image_id, results in entries
    )
