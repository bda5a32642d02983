"""Cases that do what none may do, one of each kind, to see that the campaign notices."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import sandbox
from sandbox import Fault


#: The end of each case; the last one opens the folder that it deletes in.
KINDS = (
    *("right", "error", "traceback", "wrong", "network", "outside", "program", "partial", "memory", "crash", "hang"),
    "right",
)


def prepare(folder: Path) -> None:
    pass


def run(rng: Any, folder: Path, state: None) -> tuple[str, bool, str]:
    number = int(folder.name.rpartition("-")[2])
    kind = KINDS[number]
    if number == len(KINDS) - 1:
        (folder / "tree" / "branch").mkdir(parents=True)
        shutil.rmtree(folder / "tree")
    if kind == "traceback":
        raise KeyError("a")
    if kind == "wrong":
        raise Fault("wrong", "another answer")
    if kind == "network":
        try:
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        except OSError:
            pass  # it is noticed all the same
    elif kind == "outside":
        (folder.parent / "elsewhere").write_text("")
    elif kind == "program":
        subprocess.run(["true"], check=True)
    elif kind == "partial":
        (folder / ".part.12.image.jpg").write_text("")
    elif kind == "memory":
        sandbox.MEMORY = 2**24  # less than the limit, which takes seconds to fill
        bytearray(b"x") * 2**27
    elif kind == "crash":
        os._exit(3)
    elif kind == "hang":
        time.sleep(300)
    return kind, kind == "right", "said"
