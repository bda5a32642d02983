"""`handler.py` of a repository, which Inference Endpoints run beside the checkpoint, without this package.

The service makes one `EndpointHandler` with the repository's folder and calls it with the content of each request.
"""

import base64
import binascii
import contextlib
import http.client
import io
import ipaddress
import os
import queue
import socket
import ssl
import string
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

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
        max_request_pixels (`int`, *optional*): pixels of all images of a request, which are in memory together; by
            default `QUERYPOSE_MAX_REQUEST_PIXELS` or 200 million.
        max_images (`int`, *optional*): images of a request; by default `QUERYPOSE_MAX_IMAGES` or 16.
        allow_private_urls (`bool`, *optional*): also fetch images from addresses that are not public, such as those of
            the machine's own network; by default only if `QUERYPOSE_ALLOW_PRIVATE_URLS` is 1.
        timeout (`float`, defaults to 10): seconds for fetching an image, redirects included.
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
        max_request_pixels: int | None = None,
        max_images: int | None = None,
        allow_private_urls: bool | None = None,
        timeout: float = 10,
        device: str | None = None,
    ):
        self.max_request_bytes = _limit("QUERYPOSE_MAX_REQUEST_BYTES", max_request_bytes, 20_000_000)
        self.max_pixels = _limit("QUERYPOSE_MAX_PIXELS", max_pixels, 50_000_000)
        self.max_request_pixels = _limit("QUERYPOSE_MAX_REQUEST_PIXELS", max_request_pixels, 200_000_000)
        self.max_images = _limit("QUERYPOSE_MAX_IMAGES", max_images, 16)
        if allow_private_urls is None:
            allow_private_urls = os.environ.get("QUERYPOSE_ALLOW_PRIVATE_URLS") == "1"
        self.allow_private_urls = allow_private_urls
        self.timeout = timeout
        # the repository is deployed to run its code; transformers' annotations know its own tasks alone
        self.pose_estimator = pipeline(  # type: ignore[call-overload]
            "pose-estimation", model=path, trust_remote_code=True, device=device, optimize=True
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
        left, pixels = self.max_request_bytes, self.max_request_pixels
        images = []
        for index, source in enumerate(sources):
            place = f"inputs[{index}]" if is_list else "inputs"
            image, size = self._read(source, place, left, pixels)
            left -= size
            pixels -= image.width * image.height
            images.append(image)
        with torch.inference_mode():
            people = self.pose_estimator(images, **parameters)
        return people if is_list else people[0]

    def _check_parameters(self, parameters: Any) -> dict[str, Any]:
        if parameters is None:
            return {}
        if not isinstance(parameters, Mapping):
            raise ValueError(
                f"`parameters` is {_shown(parameters)}; expected an object with any of {list(PARAMETERS)}."
            )
        given = {str(name): value for name, value in parameters.items() if value is not None}
        for name, value in given.items():
            if name not in PARAMETERS:
                raise ValueError(f"`parameters` has {_shown(name)}; expected any of {list(PARAMETERS)}.")
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if name.endswith("threshold") and not (is_number and 0 <= value <= 1):
                raise ValueError(f"`parameters.{name}` is {_shown(value)}; expected a number from 0 to 1.")
            if name.endswith("top_k") and not (is_number and isinstance(value, Integral) and int(value) >= 1):
                raise ValueError(f"`parameters.{name}` is {_shown(value)}; expected an integer of at least 1.")
        return given

    def _read(self, source: Any, place: str, left: int, pixels: int) -> tuple[PIL.Image.Image, int]:
        """The image and its size in bytes, of which `left` are allowed, as are so many pixels."""
        if isinstance(source, PIL.Image.Image):
            self._check_size(source, place, pixels)
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
        with _readable(place):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # the limit here is our own
                image = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
        self._check_size(image, place, pixels)  # from the header, before the pixels take memory
        with _readable(place):
            image.load()
        return image, len(content)

    def _check_size(self, image: PIL.Image.Image, place: str, pixels: int) -> None:
        if image.width * image.height > self.max_pixels:
            raise ValueError(
                f"`{place}` has {image.width} x {image.height} pixels; expected at most {self.max_pixels} in all."
            )
        if image.width * image.height > pixels:
            raise ValueError(
                f"`{place}` takes the request's images over the limit; expected at most {self.max_request_pixels} "
                "pixels in all of them."
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
        try:
            return fetch(url, left, self.timeout, self.allow_private_urls)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"`{place}`: {url[:200]} cannot be fetched: {error}") from error


def _shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


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


@contextlib.contextmanager
def _readable(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what Pillow's decoders raise has no end: zlib's errors, struct's, KeyError
        raise ValueError(f"`{place}` is not a readable image ({', '.join(FORMATS)}): {error}") from error


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def fetch(url: str, max_bytes: int, timeout: float, allow_private: bool = False) -> bytes:
    """Downloads what a stranger's URL leads to.

    A host is looked up once, all of its addresses are checked, and one of them is connected to, so that nothing but a
    lookup is done for an address that is refused. Redirects are followed in the same way. Proxies are not used.

    Args:
        url (`str`): an `http(s)` URL.
        max_bytes (`int`): reading stops once there are more.
        timeout (`float`): seconds for everything.
        allow_private (`bool`): also connect to addresses that are not public.

    Returns:
        `bytes`: the content; if it is longer than `max_bytes`, the beginning of it, of more than `max_bytes`.

    Raises:
        OSError, ValueError, http.client.HTTPException: it cannot be fetched. One text stands for a host that is
            refused, for whatever reason, and for one that does not exist: clients learn nothing about the network.
    """
    deadline = time.monotonic() + timeout
    for _ in range(1 + _MAX_REDIRECTS):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an http or https URL with a host")
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        addresses = _look_up(parts.hostname, port, deadline)
        if not addresses or not (allow_private or all(is_public(address[0]) for _, address in addresses)):
            raise PermissionError("its host is not a public address, or is unknown")
        connection = _Connection(parts.hostname, port, addresses, deadline, is_tls=parts.scheme == "https")
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        with contextlib.closing(connection):
            connection.request("GET", quote(target, safe=string.punctuation), headers=_HEADERS)
            with connection.getresponse() as response:
                location = response.headers["Location"]
                if response.status in (301, 302, 303, 307, 308) and location:
                    url = urljoin(url, quote(location, safe=string.punctuation, encoding="latin-1"))
                elif not 200 <= response.status < 300:
                    raise OSError(f"HTTP Error {response.status}: {response.reason}")
                else:
                    return _content(response, max_bytes)
    raise OSError(f"it leads through more than {_MAX_REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and no service of a cloud's own network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            # others carry IPv4 addresses (6to4, NAT64), or are local ones
            return ip in _GLOBAL_UNICAST and ip.sixtofour is None and ip.is_global
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _CLOUD_NETWORKS)


_MAX_REDIRECTS = 5
_HEADERS = {"User-Agent": "querypose-hf", "Accept": "image/*", "Connection": "close"}
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# of Oracle's metadata service, and of Azure's host
_CLOUD_NETWORKS = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("168.63.129.16/32"))
_Address = tuple[int, tuple[Any, ...]]


def _seconds_to(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _look_up(host: str, port: int, deadline: float) -> list[_Address]:
    """Families and socket addresses of a host; none if it is unknown."""
    answers: queue.SimpleQueue[list[_Address]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        answers.put([(family, address) for family, _, _, _, address in found])

    # in a thread, because the resolver has no time limit of its own
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=_seconds_to(deadline))
    except queue.Empty:
        raise TimeoutError("timed out") from None


def _content(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    pieces, size = [], 0
    while size <= max_bytes and (piece := response.read1(1 << 16)):
        pieces.append(piece)
        size += len(piece)
    if size <= max_bytes and response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


class _Connection(http.client.HTTPConnection):
    """A connection to one of the addresses that were looked up; certificate and `Host` are of the host's name."""

    def __init__(self, host: str, port: int, addresses: list[_Address], deadline: float, is_tls: bool):
        super().__init__(host, port)
        self.addresses = addresses
        self.deadline = deadline
        self.is_tls = is_tls
        if is_tls:
            self.default_port = 443

    def connect(self) -> None:
        for index, (family, address) in enumerate(self.addresses):
            connected = _Socket(family, socket.SOCK_STREAM)
            try:
                connected.deadline = self.deadline
                connected.settimeout(_seconds_to(self.deadline) / (len(self.addresses) - index))
                connected.connect(address)
            except OSError:
                connected.close()
                if index == len(self.addresses) - 1:
                    raise
            else:
                break
        self.sock = connected
        self.sock.settimeout(_seconds_to(self.deadline))
        if self.is_tls:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            context.sslsocket_class = _TLSSocket
            encrypted: Any = context.wrap_socket(connected, server_hostname=self.host)
            encrypted.deadline = self.deadline
            self.sock = encrypted


class _Deadline:
    """A socket that reads up to a deadline; the timeout alone would begin anew with every byte."""

    deadline: float

    def recv_into(self: Any, *arguments: Any) -> int:
        self.settimeout(_seconds_to(self.deadline))
        return super().recv_into(*arguments)  # type: ignore[misc]


class _Socket(_Deadline, socket.socket):
    pass


class _TLSSocket(_Deadline, ssl.SSLSocket):
    pass
