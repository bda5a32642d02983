"""Requests to the handler of Inference Endpoints: an answer, or a ValueError whose message is for the client."""

import base64
import importlib.util
import json
import math
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import image_cases
import numpy as np
import PIL.Image
from image_cases import require_people
from mutations import ODD_VALUES, damage_json, pick
from sandbox import Fault, describe
from tiny import save_tiny_checkpoint

from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.hub.checkpoint_files import copy_handler


URLS = (
    "http://public.example/image.png",
    "https://public.example/image.png",
    "http://private.example/image.png",
    "http://mixed.example/image.png",
    "http://nowhere.example/",
    "http://127.0.0.1/",
    "http://127.1:80/",
    "http://2130706433/",
    "http://0x7f.0.0.1/",
    "http://0/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[fe80::1%25eth0]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/",
    "http://192.168.1.1:22/",
    "http://100.64.0.1/",
    "http://user:secret@10.0.0.1/",
    "http://public.example@10.0.0.1/",
    "http://public.example:99999/",
    "http://public.example:abc/",
    "http://[::1/",
    "http://",
    "https://",
    "http:///etc/passwd",
    "HTTP://public.example/",
    "http://public.example/\r\nHost: other",
    "http://public.example/a b",
    "http://\u00e4.example/",
    "http://xn--.example/",
    "http://" + "a" * 300 + ".example/",
    "http://public.example/" + "a" * 100_000,
    "file:///etc/passwd",
    "ftp://public.example/x",
    "gopher://127.0.0.1:6379/_x",
    "data:image/png;base64,",
    "data:,text",
    "/etc/passwd",
    "../../etc/passwd",
    "image.png",
)
_NAMES = {
    "public.example": ["93.184.216.34"],
    "private.example": ["10.1.2.3"],
    "mixed.example": ["93.184.216.34", "127.0.0.1"],
}


@dataclass
class State:
    handler: Any
    scene: PIL.Image.Image
    what: str = ""


def prepare(folder: Path) -> State:
    repository = folder / "repository"
    save_tiny_checkpoint(repository, class_bias=0.5)
    specification = importlib.util.spec_from_file_location("querypose_handler", copy_handler(repository))
    module = importlib.util.module_from_spec(specification)  # type: ignore[arg-type]
    sys.modules["querypose_handler"] = module
    specification.loader.exec_module(module)  # type: ignore[union-attr]
    handler = module.EndpointHandler(str(repository), device="cpu", timeout=3)
    with PIL.Image.open(SAMPLE_IMAGE) as opened:
        scene = opened.convert("RGB").resize((128, 72))
    return State(handler, scene)


@contextmanager
def names_known():
    """Names resolve without a network: a few have addresses, numbers stand for themselves, all others are unknown."""
    original = socket.getaddrinfo

    def resolve(host, port, family=0, kind=0, proto=0, flags=0):
        name = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
        addresses = _NAMES.get(name.lower())
        if addresses is None:
            try:
                addresses = [socket.inet_ntoa(socket.inet_aton(name))]
            except (OSError, ValueError):
                try:
                    socket.inet_pton(socket.AF_INET6, name.partition("%")[0])
                    addresses = [name]
                except (OSError, ValueError):
                    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]

    socket.getaddrinfo = resolve
    try:
        yield
    finally:
        socket.getaddrinfo = original


def _image(rng: np.random.Generator, state: State) -> tuple[Any, str]:
    draw = rng.random()
    if draw < 0.3:
        url = pick(rng, URLS)
        return url, url[:60]
    if draw < 0.4:
        value = pick(rng, ODD_VALUES)
        return value, f"{str(value)[:30]!r}"
    content, suffix, what, _ = image_cases.make(rng, state)
    if draw < 0.7:
        text = base64.b64encode(content).decode()
        form = pick(rng, ("plain", "url", "lines", "cut", "urlsafe", "prefix"))
        if form == "url":
            text = f"data:image/{suffix[1:]};base64,{text}"
        elif form == "lines":
            text = "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
        elif form == "cut":
            text = text[: int(rng.integers(len(text) + 1))]
        elif form == "urlsafe":
            text = text.replace("+", "-").replace("/", "_")
        elif form == "prefix":
            text = "base64," + text
        return text, f"base64 {form} of {what}"
    if draw < 0.9:
        return (content if rng.random() < 0.7 else bytearray(content)), f"bytes of {what}"
    mode = pick(rng, ("RGB", "L", "RGBA", "P", "1", "I", "F", "CMYK"))
    image = image_cases.picture(rng, state.scene)
    return image_cases.to_mode(image, mode), f"PIL {mode} {image.size}"


def make(rng: np.random.Generator, state: State) -> tuple[Any, str]:
    """A request, and what it is."""
    if rng.random() < 0.05:
        value = pick(rng, ODD_VALUES)
        return value, f"request {str(value)[:30]!r}"
    count = 1 if rng.random() < 0.6 else int(pick(rng, (0, 1, 2, 3, 4, 17)))
    images, descriptions = zip(*(_image(rng, state) for _ in range(max(count, 1))), strict=True)
    request: dict[str, Any] = {"inputs": images[0] if count == 1 and rng.random() < 0.7 else list(images[:count])}
    what = "; ".join(descriptions[:2])
    if rng.random() < 0.5:
        parameters = {"threshold": round(float(rng.random()), 2), "top_k": int(rng.integers(1, 20))}
        if rng.random() < 0.5:
            parameters["keypoint_top_k"] = int(rng.integers(1, 20))
        if rng.random() < 0.5:
            parameters, done = damage_json(parameters, rng)
            what += f"; parameters {done}"
        request["parameters"] = parameters if rng.random() < 0.95 else pick(rng, ODD_VALUES)
    return request, what


def answer(request: Any, state: State) -> tuple[bool, str]:
    """Whether the handler answers a request, or what it says.

    Raises:
        Fault: neither, or the answer is not JSON of people.
    """
    try:
        with names_known():
            found = state.handler(request)
    except ValueError as error:
        if not str(error).strip():
            raise Fault("silent", describe(error)) from error
        if len(str(error)) > 2000:
            raise Fault("unclear", f"a message of {len(str(error))} characters") from error
        return False, str(error)
    except Exception as error:
        raise Fault("traceback", describe(error)) from error
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Fault("wrong", describe(error)) from error
    several = isinstance(request["inputs"], list | tuple)
    for people in found if several else [found]:
        require_people(people, 10**9, 10**9)
        if not all(math.isfinite(person["score"]) for person in people):
            raise Fault("wrong", "a score that is not finite")
    return True, ""


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    request, what = make(rng, state)
    state.what = what
    right, said = answer(request, state)
    return what, right, said
