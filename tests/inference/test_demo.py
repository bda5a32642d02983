"""Tests of the demo's page: through its programming interface, and in a real browser."""

import json
import re
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from tiny import tiny_config
from transformers import pipeline

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.cli import main
from querypose_hf.inference.demo import DemoOptions, build_demo, launch_options


@pytest.fixture(scope="module")
def pose_estimator(tmp_path_factory):
    """A model that finds a dozen people in any image, some of them surely and some not."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config())
    with torch.no_grad():
        for layer in model.model.decoder.box_layers:
            layer.class_head.weight.mul_(3)
            layer.class_head.bias.fill_(0.0)
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 128}
    QueryPoseImageProcessor(size=size, score_threshold=0.25).save_pretrained(folder)
    return pipeline("pose-estimation", model=str(folder), device="cpu")


def test_the_slider_starts_at_the_score_threshold(pose_estimator):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    components = build_demo(pose_estimator).blocks.values()
    [slider] = [one for one in components if getattr(one, "elem_id", None) == "threshold"]
    assert slider.value == 0.25


@pytest.fixture(scope="module")
def page_address(pose_estimator):
    pytest.importorskip("gradio", reason="Gradio is not installed")
    blocks = build_demo(pose_estimator)
    blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    yield blocks.local_url
    blocks.close()


def test_page_finds_people_in_a_video(page_address, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("trackers", reason="trackers is not installed")
    from clips import panned_scene, write_clip
    from gradio_client import Client, handle_file

    clip = handle_file(str(write_clip(tmp_path / "clip.mp4", panned_scene(3))))
    client = Client(page_address, verbose=False, download_files=str(tmp_path))
    drawn, summary, lines = client.predict(clip, 0.3, ["boxes"], api_name="/watch")
    assert str(drawn).endswith(".mp4")
    assert re.match(r"3 frames, \d+ people followed", summary)
    assert [json.loads(line)["index"] for line in Path(lines).read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.01}, r"`threshold` is 0\.01; expected a number from 0\.05 to 1"),
        ({"max_frames": 0}, "`max_frames` is 0; expected at least 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DemoOptions(**options)


def test_command_says_when_the_page_is_there(pose_estimator, monkeypatch, capsys):
    gradio = pytest.importorskip("gradio", reason="Gradio is not installed")
    addresses = []

    def visit(blocks):  # in place of waiting for Ctrl-C
        with urllib.request.urlopen(blocks.local_url) as answer:
            assert b"QueryPose" in answer.read()
        addresses.append(blocks.local_url)
        blocks.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", visit)
    folder = pose_estimator.model.name_or_path
    assert main(["demo", "--model", folder, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"Loading {folder} ...", f"Ready: open {addresses[0]} in a browser. Ctrl-C ends it."]


def people_shown(text):
    return int(re.search(r"(\d+) (?:people|person) above", text).group(1))


@pytest.fixture
def browse():
    """Opens Chromium with further arguments."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    browser_path = shutil.which("chromium")
    if browser_path is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        usual = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        yield lambda *more: playwright.chromium.launch(executable_path=browser_path, args=[*usual, *more])


def test_page_in_a_browser(page_address, pose_estimator, browse, tmp_path):
    import playwright.sync_api as api

    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"broken" * 20)
    with PIL.Image.open(SAMPLE_IMAGE) as opened:
        PIL.ImageOps.mirror(opened).save(tmp_path / "mirrored.png")
    sample, mirrored = (
        len(pose_estimator(str(path), threshold=0.25)) for path in (SAMPLE_IMAGE, tmp_path / "mirrored.png")
    )
    asked = []
    browser = browse()
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(40_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_address)

    # the page opens with the sample and its people
    summary = page.locator("#summary")
    api.expect(summary).to_contain_text("above 0.25", timeout=40_000)
    assert people_shown(summary.inner_text()) == sample
    api.expect(page.locator("#image img")).to_be_visible()
    for place, label in (("#image", "Your image"), ("#drawn", "People found")):
        api.expect(page.locator(place).get_by_text(label, exact=True)).to_be_visible()
    before = page.locator("#drawn img").get_attribute("src")

    page.locator("#image").get_by_label("Remove Image").click()
    api.expect(summary).not_to_contain_text("above")
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "mirrored.png"))
    api.expect(summary).to_contain_text("above 0.25", timeout=40_000)
    assert people_shown(summary.inner_text()) == mirrored
    assert page.locator("#drawn img").get_attribute("src") != before
    before = page.locator("#drawn img").get_attribute("src")

    number = page.locator("#threshold input[type=number]")
    number.fill("0.47")
    number.press("Tab")
    api.expect(summary).to_contain_text("above 0.47", timeout=40_000)
    assert people_shown(summary.inner_text()) < mirrored
    assert page.locator("#drawn img").get_attribute("src") != before
    with page.expect_download() as download:
        page.locator("#people_file").click()
    assert len(json.loads(download.value.path().read_text())) == people_shown(summary.inner_text())

    page.reload()
    api.expect(summary).to_contain_text("above 0.25", timeout=40_000)
    page.locator("#image").get_by_label("Remove Image").click()
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "broken.png"))
    api.expect(page.get_by_text("This file cannot be read as an image.")).to_be_visible(timeout=40_000)
    browser.close()
    elsewhere = [url for url in asked if url.startswith("http") and not url.startswith(page_address)]
    assert elsewhere == []


def test_webcam_in_a_browser(page_address, browse, tmp_path):
    """Chromium's own stand-in for a camera shows the scene, and people are drawn on it."""
    with PIL.Image.open(SAMPLE_IMAGE) as opened:
        scene = opened.convert("RGB").resize((320, 240))
    scene.save(tmp_path / "camera.mjpeg", "JPEG")
    browser = browse(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={tmp_path / 'camera.mjpeg'}",
    )
    page = browser.new_context(permissions=["camera"]).new_page()
    page.set_default_timeout(40_000)
    page.goto(page_address)
    page.get_by_role("tab", name="Webcam").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#webcam").get_by_text("Record").click()
    drawn = page.locator("#live img")
    with urllib.request.urlopen(drawn.get_attribute("src")) as answer, PIL.Image.open(answer) as opened:
        picture = np.asarray(opened.convert("RGB").resize(scene.size), dtype=float)
    # as in a mirror; lines and names on it are of colours of their own
    changed = np.abs(picture - np.asarray(PIL.ImageOps.mirror(scene), dtype=float)).max(axis=2) > 60
    assert 0.01 < changed.mean() < 0.5
    page.locator("#webcam").get_by_text("Stop").click()
    browser.close()
