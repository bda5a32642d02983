"""The handler of Inference Endpoints, called as they call it."""

import base64
import importlib.util
import io
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import PIL.Image
import pytest
import torch
from tiny import tiny_config

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.hub import endpoint_handler
from querypose_hf.hub.checkpoint_files import copy_handler
from querypose_hf.hub.endpoint_handler import fetch, is_public


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
            elif self.path == "/around":
                self.send_response(302)
                self.send_header("Location", "/around")
                self.end_headers()
                self.wfile.write(bytes(65536))
            elif self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
            elif self.path == "/cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(bytes(10))
            elif self.path in ("/slow-body", "/slow-head"):
                if self.path == "/slow-body":
                    self.send_response(200)
                    self.end_headers()
                try:
                    for _ in range(40):
                        self.wfile.write(b"H")
                        time.sleep(0.1)
                except OSError:
                    pass
            elif self.path.startswith("/headers"):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(str(self.headers).encode())
            else:
                self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Images)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_every_form_of_an_image_gives_the_same_people(handler, content, server, monkeypatch):
    expected = handler.pose_estimator(PIL.Image.open(io.BytesIO(content)), threshold=0.0)
    assert len(expected) > 1
    assert set(expected[0]) == {"score", "label", "box", "keypoints"}
    encoded = base64.b64encode(content).decode()
    monkeypatch.setattr(handler, "allow_private_urls", True)
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


def test_parameters(handler, content, monkeypatch):
    people = handler({"inputs": content, "parameters": {"threshold": 0.0}})
    assert_same_people(handler({"inputs": content, "parameters": {"threshold": 0.0, "top_k": 1}}), people[:1])
    assert handler({"inputs": content, "parameters": {"threshold": 1.0}}) == []
    assert handler({"inputs": content, "parameters": {"threshold": 0.0, "top_k": None}}) == people
    both = handler({"inputs": [content, content], "parameters": {"threshold": 0.0, "top_k": 2}})
    for found in both:
        assert_same_people(found, people[:2])
    between = (people[0]["score"] + people[1]["score"]) / 2
    monkeypatch.setattr(handler.pose_estimator.image_processor, "score_threshold", between)
    assert_same_people(handler({"inputs": content}), people[:1])


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
    monkeypatch.delenv("QUERYPOSE_MAX_PIXELS")
    several = repository[1](str(repository[0]), max_request_pixels=250)
    images = [PIL.Image.new("RGB", (10, 10)) for _ in range(3)]
    assert len(several({"inputs": images[:2]})) == 2
    with pytest.raises(ValueError, match=r"`inputs\[2\]` takes .* over the limit; expected at most 250 pixels"):
        several({"inputs": images})
    monkeypatch.setenv("QUERYPOSE_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="QUERYPOSE_MAX_PIXELS is 'many'; expected an integer of at least 1"):
        repository[1](str(repository[0]))


def test_addresses():
    public = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"]
    private = [
        "127.0.0.1",
        "127.8.8.8",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.1.1",
        "240.0.0.1",
        # metadata of clouds
        "169.254.169.254",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
        # IPv6: loopback, unspecified, link-local, site-local, unique local, multicast, documentation
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        # IPv4 in IPv6: mapped, compatible, NAT64, 6to4, Teredo
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ]
    assert [address for address in public if not is_public(address)] == []
    assert [address for address in private if is_public(address)] == []


@pytest.fixture
def network(monkeypatch):
    """127.0.0.1 counts as public. Gives the addresses of names, lookup by lookup, and what was looked up."""
    names: dict[str, list[list[str]]] = {}
    asked = []
    look_up = socket.getaddrinfo

    def patched(host, port, *args, **options):
        asked.append(host)
        if host not in names:
            return look_up(host, port, *args, flags=socket.AI_NUMERICHOST)
        addresses = names[host].pop(0)
        return [entry for address in addresses for entry in look_up(address, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", patched)
    monkeypatch.setattr(endpoint_handler, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    return names, asked


def refusal(url, **options):
    with pytest.raises(OSError, match="not a public address") as caught:
        fetch(url, 1000, timeout=5, **options)
    return str(caught.value)


def test_refused_addresses_are_not_connected_to_and_all_answered_alike(network, server, handler):
    names, _ = network
    names["secret.test"] = [["127.0.0.2"], ["127.0.0.1", "127.0.0.2"]]
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        listener.setblocking(False)
        urls = [
            f"http://127.0.0.2:{port}/",
            "http://127.0.0.2:1/",  # nobody listens
            f"http://[::ffff:127.0.0.2]:{port}/",
            f"http://0.0.0.0:{port}/",
            f"http://2130706434:{port}/",  # other notations of the same address
            f"http://0x7f.2:{port}/",
            f"http://user@127.0.0.2:{port}/",
            f"https://127.0.0.2:{port}/",
            f"http://secret.test:{port}/",
            f"http://secret.test:{port}/",  # public and private
            "http://unknown.test/",
            f"{server}/to/http://127.0.0.2:{port}/",
            f"{server}/to/http://127.0.0.2:1/",
            f"{server}/to/http://unknown.test/",
            f"http://{'a' * 70}.test/",
        ]
        assert len({refusal(url) for url in urls}) == 1
        with pytest.raises(BlockingIOError):
            listener.accept()
    for url in urls[:2]:
        with pytest.raises(
            ValueError, match=rf"`inputs`: {re.escape(url)} cannot be fetched: .* not a public address"
        ):
            handler({"inputs": url})


def test_a_name_is_looked_up_once_and_its_checked_address_connected_to(network, server, monkeypatch):
    """A name that would lead elsewhere at the second lookup."""
    names, asked = network
    port = server.rpartition(":")[2]
    names["rebinding.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    told = fetch(f"http://rebinding.test:{port}/headers?a=b c", 1000, timeout=5).decode()
    assert f"Host: rebinding.test:{port}\n" in told
    assert asked.count("rebinding.test") == 1
    # a redirect is looked up anew
    assert refusal(f"{server}/to/http://rebinding.test:{port}/headers")
    # an address where nobody listens does not matter if another one answers
    monkeypatch.setattr(endpoint_handler, "is_public", lambda address: True)
    names["two.test"] = [["127.0.0.2", "127.0.0.1"]]
    assert fetch(f"http://two.test:{port}/headers", 1000, timeout=5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/around", "more than 5 redirects"),
        ("/file", "expected an http or https URL"),
        ("/to/ftp://127.0.0.1/", "expected an http or https URL"),
        ("/cut", "990 more expected"),
        ("/nothing", "HTTP Error 404"),
        ("/slow-head", "timed out"),
        ("/slow-body", "timed out"),
    ],
)
def test_what_cannot_be_fetched(server, path, message):
    start = time.monotonic()
    with pytest.raises((OSError, ValueError, endpoint_handler.http.client.HTTPException), match=message):
        fetch(f"{server}{path}", 1000, timeout=1, allow_private=True)
    assert time.monotonic() - start < 3


def test_looking_up_takes_no_longer_than_allowed(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: time.sleep(3) or [])
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="timed out"):
        fetch("http://slow.test/", 1000, timeout=0.2)
    assert time.monotonic() - start < 2


def test_malformed_urls_are_refused(handler):
    for url in ("http://[::1/", "http://host:port/", "http://host:99999/", "http://", "HTTP:///photo.jpg"):
        with pytest.raises(ValueError, match=rf"`inputs`: {re.escape(url)} cannot be fetched"):
            handler({"inputs": url})


@pytest.fixture
def certificate(tmp_path):
    """The files of a certificate for photos.test that is its own authority, and of its key."""
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=photos.test"
    command += f" -addext subjectAltName=DNS:photos.test -out {paths[0]} -keyout {paths[1]}"
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return paths


def test_certificates_are_of_the_host_name(network, certificate, monkeypatch):
    class Host(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.headers['Host']} {self.path}".encode())

    asked_for = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.sni_callback = lambda connection, name, _: asked_for.append(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    port = server.server_address[1]
    names, _ = network
    names["photos.test"] = [["127.0.0.1"], ["127.0.0.1"]]
    names["other.test"] = [["127.0.0.1"]]
    with pytest.raises(ssl.SSLCertVerificationError):  # nobody vouches for it
        fetch(f"https://photos.test:{port}/", 1000, timeout=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert fetch(f"https://photos.test:{port}/a?b", 1000, timeout=5) == f"photos.test:{port} /a?b".encode()
    assert asked_for[-1] == "photos.test"
    with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.test"):
        fetch(f"https://other.test:{port}/", 1000, timeout=5)
    server.shutdown()
    server.server_close()
