"""The handler of Inference Endpoints, called as they call it."""

import base64
import importlib.util
import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import PIL.Image
import pytest
import torch
from tiny import tiny_config

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.hub.checkpoint_files import copy_handler


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A checkpoint's folder with `handler.py` in it, and the class that a service takes from there."""
    folder = tmp_path_factory.mktemp("repository")
    torch.manual_seed(0)
    QueryPoseForPoseEstimation(tiny_config()).save_pretrained(folder)
    QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    specification = importlib.util.spec_from_file_location("handler", copy_handler(folder))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return folder, module.EndpointHandler


@pytest.fixture(scope="module")
def handler(repository):
    folder, kind = repository
    return kind(str(folder), device="cpu")


@pytest.fixture(scope="module")
def content():
    image = PIL.Image.open(SAMPLE_IMAGE)
    image.thumbnail((160, 160))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server(content):
    class Images(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            if self.path == "/redirect.png":
                self.send_response(302)
                self.send_header("Location", "/image.png")
                self.end_headers()
            elif self.path == "/file":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
            elif self.path == "/image.png":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)
            elif self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(bytes(65536))
                except OSError:
                    pass
            else:
                self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Images)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_every_form_of_an_image_gives_the_same_people(repository, handler, content, server, monkeypatch):
    expected = handler.pose_estimator(PIL.Image.open(io.BytesIO(content)), threshold=0.0)
    assert len(expected) > 1
    assert set(expected[0]) == {"score", "label", "box", "keypoints"}
    encoded = base64.b64encode(content).decode()
    monkeypatch.setattr(handler, "_opener", repository[1](str(repository[0]), allow_private_urls=True)._opener)
    forms = {
        "PIL image": PIL.Image.open(io.BytesIO(content)),
        "bytes": content,
        "base64": encoded,
        "base64 in lines": "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76)),
        "data URL": f"data:image/png;base64,{encoded}",
        "URL": f"{server}/image.png",
        "redirected URL": f"{server}/redirect.png",
    }
    for name, form in forms.items():
        assert handler({"inputs": form, "parameters": {"threshold": 0.0}}) == expected, name


def assert_same_people(found, expected):
    """Another number of decoded queries may be rounded otherwise."""
    assert [person["label"] for person in found] == [person["label"] for person in expected]
    for person, other in zip(found, expected, strict=True):
        assert person["score"] == pytest.approx(other["score"], abs=1e-5)
        assert person["box"] == pytest.approx(other["box"], abs=1e-3)
        for point, other_point in zip(person["keypoints"], other["keypoints"], strict=True):
            assert point["name"] == other_point["name"]
            assert [point["x"], point["y"]] == pytest.approx([other_point["x"], other_point["y"]], abs=1e-3)


def test_parameters(handler, content):
    people = handler({"inputs": content, "parameters": {"threshold": 0.0}})
    assert_same_people(handler({"inputs": content, "parameters": {"threshold": 0.0, "top_k": 1}}), people[:1])
    assert handler({"inputs": content, "parameters": {"threshold": 1.0}}) == []
    assert handler({"inputs": content, "parameters": {"threshold": 0.0, "top_k": None}}) == people
    both = handler({"inputs": [content, content], "parameters": {"threshold": 0.0, "top_k": 2}})
    for found in both:
        assert_same_people(found, people[:2])
    assert handler({"inputs": content}) == handler({"inputs": content, "parameters": {"threshold": 0.3}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the request has no `inputs`"),
        ({"image": b""}, "the request has no `inputs`"),
        ({"inputs": 7}, "`inputs` is of int; expected base64 text, a URL, bytes or a PIL image"),
        ({"inputs": []}, "`inputs` has 0 images; expected from 1 to 16"),
        ({"inputs": [b""] * 17}, "`inputs` has 17 images"),
        ({"inputs": "/etc/passwd"}, "expected an image as base64 text or a URL"),
        ({"inputs": str(SAMPLE_IMAGE)}, "expected an image as base64 text or a URL"),
        ({"inputs": "file:///etc/passwd"}, "expected an image as base64 text or a URL"),
        ({"inputs": base64.b64encode(b"no image").decode()}, "`inputs` is not a readable image"),
        ({"inputs": [b"%!PS-Adobe-3.0 EPSF-3.0\n"]}, r"`inputs\[0\]` is not a readable image"),
    ],
)
def test_malformed_requests_are_refused(handler, data, message):
    with pytest.raises(ValueError, match=message):
        handler(data)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (0.3, "`parameters` is 0.3; expected an object"),
        ({"treshold": 0.3}, "`parameters` has 'treshold'; expected any of"),
        ({"threshold": 30}, r"`parameters\.threshold` is 30; expected a number from 0 to 1"),
        ({"threshold": "0.3"}, r"`parameters\.threshold` is '0.3'"),
        ({"top_k": 0}, r"`parameters\.top_k` is 0; expected an integer of at least 1"),
        ({"top_k": 2.5}, r"`parameters\.top_k` is 2.5"),
        ({"top_k": True}, r"`parameters\.top_k` is True"),
    ],
)
def test_wrong_parameters_are_refused(handler, content, parameters, message):
    with pytest.raises(ValueError, match=message):
        handler({"inputs": content, "parameters": parameters})


def test_truncated_image_is_refused(handler, content):
    with pytest.raises(ValueError, match="is not a readable image"):
        handler({"inputs": content[: len(content) // 2]})


def huge_png(side):
    """A decompression bomb: a PNG header of `side` x `side` pixels, and almost no bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_limits(repository, handler, content, server, monkeypatch):
    with pytest.raises(ValueError, match="`inputs` has 10000 x 10000 pixels; expected at most 50000000"):
        handler({"inputs": huge_png(10_000)})
    with pytest.raises(ValueError, match=r"is not a readable image|pixels"):
        handler({"inputs": huge_png(60_000)})
    monkeypatch.setattr(handler, "max_request_bytes", len(content) + 10)
    assert handler({"inputs": content}) == handler({"inputs": [content]})[0]
    encoded = base64.b64encode(content).decode()
    for two in ([content, content], [encoded, encoded]):
        with pytest.raises(
            ValueError, match=rf"`inputs\[1\]` takes .* over the limit; expected at most {len(content) + 10} bytes"
        ):
            handler({"inputs": two})
    with pytest.raises(ValueError, match="over the limit"):
        handler({"inputs": "A" * 3_000_000})
    monkeypatch.setenv("QUERYPOSE_MAX_PIXELS", "100")
    monkeypatch.setenv("QUERYPOSE_ALLOW_PRIVATE_URLS", "1")
    strict = repository[1](str(repository[0]), max_request_bytes=200_000)
    with pytest.raises(ValueError, match="expected at most 100 in all"):
        strict({"inputs": PIL.Image.open(io.BytesIO(content))})
    with pytest.raises(ValueError, match="at most 200000 bytes"):
        strict({"inputs": f"{server}/endless"})
    with pytest.raises(ValueError, match="cannot be fetched: HTTP Error 404"):
        strict({"inputs": f"{server}/nothing"})
    with pytest.raises(ValueError, match="cannot be fetched"):
        strict({"inputs": f"{server}/file"})
    monkeypatch.setenv("QUERYPOSE_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="QUERYPOSE_MAX_PIXELS is 'many'; expected an integer of at least 1"):
        repository[1](str(repository[0]))


def test_private_addresses_are_refused(handler, server):
    for url in (f"{server}/image.png", server.replace("127.0.0.1", "localhost") + "/image.png"):
        with pytest.raises(ValueError, match="is not a public address"):
            handler({"inputs": url})
