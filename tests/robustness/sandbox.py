"""What a case may do: a time, an amount of memory, files of its own folder, and no network.

An audit hook sees what Python opens, renames, deletes, connects to and starts; the kernel measures memory.
"""

import contextlib
import io
import ipaddress
import os
import resource
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


#: Limits of one case. Time is for two cores that others use, too; memory is what the case adds to the process.
SECONDS = 120
MEMORY = 4 * 2**30
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# positions of a path, and of the open folder it is relative to, among the arguments of an event that changes files
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
}
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")


class Fault(Exception):
    """What no case may end in. `kind` is a word of the table of results."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Blocked(OSError):
    """The network is out of reach, as it is without a cable."""


@dataclass
class _Watch:
    folders: tuple[str, ...] = ()
    addresses: bool = False  # whether public ones may be tried, which fails then
    active: bool = False
    faults: list[tuple[str, str]] | None = None


_WATCH = _Watch()


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCH.active:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes) and (flags or 0) & _WRITING:
            _see_change(os.fsdecode(path))
    elif event in _CHANGES:
        for position, of_folder in _CHANGES[event]:
            path, folder = arguments[position], -1 if of_folder is None else arguments[of_folder]
            if isinstance(path, str | bytes | os.PathLike):
                within = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else ""
                _see_change(os.path.join(within, os.fsdecode(path)))
    elif event == "socket.connect":
        _see_connection(arguments[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto"):
        if not _WATCH.addresses:
            _WATCH.faults.append(("network", f"{event} {arguments[1:2] or arguments}"))
        raise Blocked("the network is unreachable")
    elif event in _PROGRAMS:
        _WATCH.faults.append(("program", f"{event} {str(arguments)[:200]}"))


def _see_change(path: str) -> None:
    path = os.path.abspath(path)
    if path != os.devnull and not path.startswith(_WATCH.folders):
        _WATCH.faults.append(("outside", path))


def _see_connection(address: Any) -> None:
    if not isinstance(address, tuple):
        return  # of a socket within the machine, as processes of Python have
    is_public = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global
    if not (_WATCH.addresses and is_public):
        _WATCH.faults.append(("network", f"connect {address}"))
    raise Blocked("the network is unreachable")


def use_cache(cache: Path) -> None:
    """Has Hugging Face's libraries, whether imported or not, keep their files in `cache`."""
    os.environ["HF_HOME"] = str(cache)
    import datasets.config

    datasets.config.HF_CACHE_HOME = str(cache)
    datasets.config.HF_DATASETS_CACHE = str(cache / "datasets")
    datasets.config.HF_MODULES_CACHE = str(cache / "modules")


def install(cache: Path) -> None:
    """Prepares this process, once; `cache` is where libraries may keep files of their own."""
    sys.addaudithook(_see)
    _WATCH.folders = (str(cache) + os.sep,)
    # beyond the limit, so that a case can tell itself where memory ends, and the machine is safe
    resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + MEMORY + 2**31,) * 2)


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


@contextlib.contextmanager
def watched(folder: Path, addresses: bool = False, programs: bool = False) -> Iterator[dict[str, Any]]:
    """Runs a block that may write into `folder` alone; the mapping gets `peak`, the bytes that it added.

    Raises:
        Fault: the block did what it must not.
    """
    measured: dict[str, Any] = {"peak": 0}
    kept = _WATCH.folders
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    _WATCH.folders = (*kept, str(folder) + os.sep)
    _WATCH.faults, _WATCH.addresses = [], addresses
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    start = _memory("VmRSS")
    _WATCH.active = not programs
    try:
        yield measured
    finally:
        _WATCH.active = False
        _WATCH.folders = kept
        tempfile.tempdir = before
        measured["peak"] = max(0, _memory("VmHWM") - start)
    if _WATCH.faults:
        raise Fault(*_WATCH.faults[0])
    if measured["peak"] > MEMORY:
        raise Fault("memory", f"{measured['peak'] / 2**20:.0f} MiB")
    left = sorted(path.name for path in temporary.iterdir())
    if left:
        raise Fault("partial", f"temporary files are left: {left[:3]}")


class _Text(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)

    def value(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]


def command(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Runs `querypose` in this process; returns the exit status and what it printed.

    Raises:
        Fault: it ended in a traceback, or failed without saying why.
    """
    from querypose_hf.cli import main

    output, errors = _Text(), _Text()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(list(arguments))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 2
        except Exception as error:
            raise Fault("traceback", describe(error)) from error
    said = errors.value()
    if status and not reason(said):
        raise Fault("silent", f"status {status}: {said[-200:]!r}")
    return status, output.value(), said


def reason(said: str) -> str:
    """The line of the standard error that says why a command failed or what it skipped."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    wanted = [line for line in lines if line.startswith("querypose ") or "skipped" in line or "read in part" in line]
    return wanted[-1] if wanted else ""


def describe(error: BaseException) -> str:
    """Class, message and the innermost place of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "querypose" in frame.filename] or list(frames)
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__} at {place}: {str(error)[:300]}"


def contents(folder: Path) -> dict[str, bytes | int]:
    """The files of a folder, to see that a case left them as they were."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def require_no_partial_files(folder: Path) -> None:
    left = [path.name for path in folder.rglob("*") if ".part." in path.name]
    if left:
        raise Fault("partial", f"{left[:3]}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
