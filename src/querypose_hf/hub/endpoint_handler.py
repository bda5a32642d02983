"""`handler.py` of a repository, which Inference Endpoints run beside the checkpoint, without this package.

The service makes one `EndpointHandler` with the repository's folder and calls it with the content of each request.
"""

import base64
import binascii
import http.client
import io
import ipaddress
import os
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
import torch
from transformers import pipeline


#: Formats that are read. Pillow's other decoders, such as PostScript's, are not for files of strangers.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
PARAMETERS = ("threshold", "top_k", "keypoint_top_k")


class EndpointHandler:
    """Finds people in the images of a request.

    Args:
        path (`str`): the repository's folder.
        max_request_bytes (`int`, *optional*): bytes of all images of a request, as files; by default the environment
            variable `QUERYPOSE_MAX_REQUEST_BYTES` or 20 million.
        max_pixels (`int`, *optional*): pixels of one image; by default `QUERYPOSE_MAX_PIXELS` or 50 million.
        max_images (`int`, *optional*): images of a request; by default `QUERYPOSE_MAX_IMAGES` or 16.
        allow_private_urls (`bool`, *optional*): also fetch images from addresses that are not public, such as those of
            the machine's own network; by default only if `QUERYPOSE_ALLOW_PRIVATE_URLS` is 1.
        timeout (`float`, defaults to 10): seconds for fetching an image.
        device (`str`, *optional*): the first accelerator by default.

    Raises:
        ValueError: a limit is not an integer of at least 1.

    Example:

    ```python
    >>> handler = EndpointHandler("path/to/checkpoint")
    >>> handler({"inputs": "https://example.org/photo.jpg", "parameters": {"threshold": 0.5, "top_k": 10}})
    [{'score': 0.93, 'label': 'person', 'box': {...}, 'keypoints': [{'name': 'nose', ...}, ...]}]
    ```
    """

    def __init__(
        self,
        path: str = "",
        *,
        max_request_bytes: int | None = None,
        max_pixels: int | None = None,
        max_images: int | None = None,
        allow_private_urls: bool | None = None,
        timeout: float = 10,
        device: str | None = None,
    ):
        self.max_request_bytes = _limit("QUERYPOSE_MAX_REQUEST_BYTES", max_request_bytes, 20_000_000)
        self.max_pixels = _limit("QUERYPOSE_MAX_PIXELS", max_pixels, 50_000_000)
        self.max_images = _limit("QUERYPOSE_MAX_IMAGES", max_images, 16)
        if allow_private_urls is None:
            allow_private_urls = os.environ.get("QUERYPOSE_ALLOW_PRIVATE_URLS") == "1"
        self.timeout = timeout
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPRedirectHandler(),
            _HTTPHandler(allow_private_urls),
            _HTTPSHandler(allow_private_urls),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)
        # the repository is deployed to run its code; transformers' annotations know its own tasks alone
        self.pose_estimator = pipeline(  # type: ignore[call-overload]
            "pose-estimation", model=path, trust_remote_code=True, device=device
        )

    def __call__(self, data: Mapping[str, Any]) -> list[Any]:
        """Answers one request.

        Args:
            data (`Mapping`): `inputs`, an image or a list of images, each as base64 text, data URL, `http(s)` URL,
                bytes of a file or PIL image; and, *optional*, `parameters` of the pipeline: `threshold`, `top_k`
                and `keypoint_top_k`.

        Returns:
            `list[dict]`: the people of the image, best first, each with `score`, `label`, `box` and `keypoints`; for a
            list of images a list of these lists.

        Raises:
            ValueError: the request is malformed or exceeds a limit; the message is for the client.
        """
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise ValueError(
                "the request has no `inputs`; expected an image as base64 text, URL or bytes, or a list of them."
            )
        parameters = self._check_parameters(data.get("parameters"))
        inputs = data["inputs"]
        is_list = isinstance(inputs, list | tuple)
        sources = list(inputs) if is_list else [inputs]
        if not 1 <= len(sources) <= self.max_images:
            raise ValueError(f"`inputs` has {len(sources)} images; expected from 1 to {self.max_images}.")
        left = self.max_request_bytes
        images = []
        for index, source in enumerate(sources):
            place = f"inputs[{index}]" if is_list else "inputs"
            image, size = self._read(source, place, left)
            left -= size
            images.append(image)
        with torch.inference_mode():
            people = self.pose_estimator(images, **parameters)
        return people if is_list else people[0]

    def _check_parameters(self, parameters: Any) -> dict[str, Any]:
        if parameters is None:
            return {}
        if not isinstance(parameters, Mapping):
            raise ValueError(f"`parameters` is {parameters!r}; expected an object with any of {list(PARAMETERS)}.")
        given = {str(name): value for name, value in parameters.items() if value is not None}
        for name, value in given.items():
            if name not in PARAMETERS:
                raise ValueError(f"`parameters` has {name!r}; expected any of {list(PARAMETERS)}.")
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if name.endswith("threshold") and not (is_number and 0 <= value <= 1):
                raise ValueError(f"`parameters.{name}` is {value!r}; expected a number from 0 to 1.")
            if name.endswith("top_k") and not (is_number and isinstance(value, Integral) and int(value) >= 1):
                raise ValueError(f"`parameters.{name}` is {value!r}; expected an integer of at least 1.")
        return given

    def _read(self, source: Any, place: str, left: int) -> tuple[PIL.Image.Image, int]:
        """The image and its size in bytes, of which `left` are allowed."""
        if isinstance(source, PIL.Image.Image):
            self._check_size(source, place)
            return source, 0
        if isinstance(source, str):
            # never a path: clients must not read the server's files
            content = self._fetch(source, place, left) if _is_url(source) else self._decode(source, place, left)
        elif isinstance(source, bytes | bytearray):
            content = bytes(source)
        else:
            raise ValueError(
                f"`{place}` is of {type(source).__name__}; expected base64 text, a URL, bytes or a PIL image."
            )
        if len(content) > left:
            raise self._too_large(place)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # the limit here is our own
                image = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
            self._check_size(image, place)  # from the header, before the pixels take memory
            image.load()
        except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, OSError, SyntaxError) as error:
            raise ValueError(f"`{place}` is not a readable image ({', '.join(FORMATS)}): {error}") from error
        return image, len(content)

    def _check_size(self, image: PIL.Image.Image, place: str) -> None:
        if image.width * image.height > self.max_pixels:
            raise ValueError(
                f"`{place}` has {image.width} x {image.height} pixels; expected at most {self.max_pixels} in all."
            )

    def _too_large(self, place: str) -> ValueError:
        return ValueError(
            f"`{place}` takes the request's images over the limit; expected at most {self.max_request_bytes} bytes."
        )

    def _decode(self, text: str, place: str, left: int) -> bytes:
        encoded = text.partition("base64,")[2] if text.startswith("data:") else text
        if len(encoded) * 3 // 4 > left + 1_000_000:  # far over the limit, whatever its line breaks
            raise self._too_large(place)
        try:
            return base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            shown = repr(text if len(text) <= 60 else f"{text[:60]}...")
            raise ValueError(f"`{place}` is {shown}; expected an image as base64 text or a URL: {error}") from error

    def _fetch(self, url: str, place: str, left: int) -> bytes:
        deadline = time.monotonic() + self.timeout
        pieces, size = [], 0
        try:
            with self._opener.open(url, timeout=self.timeout) as response:
                while piece := response.read(1 << 16):
                    pieces.append(piece)
                    size += len(piece)
                    if size > left:
                        raise self._too_large(place)
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"it took longer than {self.timeout:g} seconds")
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"`{place}`: {url[:200]} cannot be fetched: {error}") from error
        return b"".join(pieces)


def _limit(variable: str, value: int | None, default: int) -> int:
    if value is None:
        text = os.environ.get(variable, str(default))
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{variable} is {text!r}; expected an integer of at least 1.") from None
    if value < 1:
        raise ValueError(f"{variable} is {value}; expected an integer of at least 1.")
    return value


def _is_url(text: str) -> bool:
    return urlsplit(text[:2000]).scheme in ("http", "https")


class _CheckedConnection(http.client.HTTPConnection):
    """A connection to public addresses only.

    It checks the address that it is connected to, so that neither a redirect nor a name that resolves differently the
    second time leads elsewhere.
    """

    allow_private = False

    def connect(self) -> None:
        super().connect()
        address = ipaddress.ip_address(self.sock.getpeername()[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        if not self.allow_private and not (mapped or address).is_global:
            self.close()
            raise urllib.error.URLError(f"{self.host} is not a public address")


class _CheckedTLSConnection(_CheckedConnection, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, allow_private: bool):
        super().__init__()
        self.connection: Any = type("Connection", (_CheckedConnection,), {"allow_private": allow_private})

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self.connection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, allow_private: bool):
        super().__init__()
        self.connection: Any = type("Connection", (_CheckedTLSConnection,), {"allow_private": allow_private})

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self.connection, request)
