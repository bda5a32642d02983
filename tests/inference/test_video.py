"""Tests of reading, writing and drawing videos, and of `querypose predict` on them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from launching import start_process
from tiny import save_tiny_checkpoint
from transformers import pipeline

from querypose_hf.cli import main
from querypose_hf.inference.tracking import VideoOptions, find_people_in_video
from querypose_hf.inference.video import VideoReader, VideoWriter


av = pytest.importorskip("av", reason="PyAV is not installed", exc_type=ImportError)
pytest.importorskip("trackers", reason="trackers is not installed", exc_type=ImportError)
from clips import panned_scene, write_clip  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_checkpoint(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", panned_scene())


def difference(first, second):
    return np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean()


def test_reader_gives_every_frame_in_order(clip):
    expected = panned_scene()
    with VideoReader(clip, ahead=2) as reader:
        assert (reader.size, reader.frame_rate, reader.num_frames, reader.is_live) == ((160, 120), 10, 6, False)
        frames = list(reader)
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    for frame, picture in zip(frames, expected, strict=True):
        distances = [difference(frame.image, other) for other in expected]
        assert np.argmin(distances) == frame.index
        assert difference(frame.image, picture) < 6  # of 255, what the codec costs


def test_reader_decodes_no_further_than_asked(clip):
    reader = VideoReader(clip, ahead=2)
    frames = iter(reader)
    next(frames)
    reader._thread.join(0.5)
    assert reader._thread.is_alive()  # the queue is full, and frames are left
    assert reader._waiting.qsize() == 2
    before = threading.active_count()
    reader.close()
    assert threading.active_count() == before - 1


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A clip of 60 frames, the start of whose second third is overwritten."""
    path = write_clip(tmp_path_factory.mktemp("damaged") / "damaged.mp4", panned_scene(60))
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : third + third // 2] = bytes(third // 2)
    path.write_bytes(content)
    return path


def test_reader_goes_on_after_damage(damaged):
    with VideoReader(damaged) as reader:
        frames = list(reader)
    assert len(reader.damage) > 2 and "Invalid data" in reader.damage[0]
    assert len(frames) + len(reader.damage) == 60 and len(frames) > 20
    assert frames[-1].index == 59  # frames that cannot be decoded count
    with VideoReader(damaged, strict=True) as reader, pytest.raises(ValueError, match=r"damaged after \d+ frames: "):
        list(reader)


@pytest.mark.parametrize(
    ("suffix", "codec", "sound", "seconds"),
    [
        (".mkv", "mpeg4", None, 6),
        (".mkv", "mpeg4", "pcm_s16le", 6),
        (".avi", "mpeg4", "pcm_s16le", 6),
        (".webm", "libvpx", "libopus", 6),
        (".mp4", "mpeg4", "aac", 6),
        (".mkv", "mpeg4", "pcm_s16le", 9),  # longer than the images
    ],
)
def test_reader_tells_a_file_that_breaks_off(suffix, codec, sound, seconds, tmp_path):
    path = tmp_path / f"clip{suffix}"
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        audio = None if sound is None else container.add_stream(sound, rate=48000)
        for number, image in enumerate(panned_scene(60)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(video.encode(frame))
            for index in range(number * seconds // 6, (number + 1) * seconds // 6) if audio is not None else ():
                kind = audio.format.name
                silence = np.zeros((1, 4800), np.int16 if kind.startswith("s16") else np.float32)
                samples = av.AudioFrame.from_ndarray(silence, kind if kind.startswith("s16") else "fltp", "mono")
                samples.sample_rate, samples.pts, samples.time_base = 48000, index * 4800, Fraction(1, 48000)
                container.mux(audio.encode(samples))
        for stream in container.streams:
            container.mux(stream.encode())
    with VideoReader(path) as reader:
        assert len(list(reader)) == 60 and not reader.damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(path) as reader:
        assert 0 < len(list(reader)) < 50
    assert re.fullmatch(rf"it breaks off after \d\.\d of {seconds}\.\d seconds", reader.damage[-1])


def test_reader_refuses_a_codec_that_ffmpeg_does_not_know(tmp_path):
    path = write_clip(tmp_path / "clip.mov", panned_scene(2))
    content = path.read_bytes()
    assert content.count(b"avc1") >= 1
    path.write_bytes(content.replace(b"avc1", b"zzzz"))
    with pytest.raises(ValueError, match="holds no images of a codec that FFmpeg knows"):
        VideoReader(path)


@pytest.mark.parametrize(
    ("ratio", "size"), [((4, 3), (214, 120)), ((1, 2), (160, 240)), ((1, 1), (160, 120)), ((999, 1), (160, 120))]
)
def test_pixels_become_square(tmp_path, ratio, size):
    path, frames = tmp_path / "clip.mp4", panned_scene(3)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(*ratio)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    with VideoReader(path) as reader, VideoWriter(tmp_path / "out.mp4", 10) as writer:
        width, height = reader.size
        assert (abs(width - size[0]) <= 1, height) == (True, size[1])
        for frame in reader:
            assert frame.image.size == reader.size
            assert difference(frame.image, frames[frame.index].resize(frame.image.size)) < 12
            writer.write(frame.image, frame.time)
    with av.open(str(tmp_path / "out.mp4")) as container:
        video = container.streams.video[0]
        assert video.sample_aspect_ratio in (None, 1)
        assert (abs(video.width - size[0]) <= 1, video.height) == (True, size[1])


def test_predict_keeps_what_it_found_in_a_damaged_video(model, damaged, tmp_path, capsys):
    panned_scene(1)[0].save(tmp_path / "a.png")
    arguments = ["predict", str(damaged), str(tmp_path / "a.png"), "--model", model, "--device", "cpu", "--save-video"]
    arguments += ["--output", str(tmp_path / "out"), "--jsonl", str(tmp_path / "people.jsonl"), "--batch-size", "4"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert re.search(r"2 sources read, \d of them empty; 0 skipped, 1 read in part \(.*damaged in \d+", said)
    lines = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    assert lines[-1]["source"] == str(tmp_path / "a.png") and lines[-2]["index"] == 59
    with VideoReader(tmp_path / "out" / "damaged_poses.mp4") as reader:
        assert len(list(reader)) == len(lines) - 1


def test_predict_keeps_what_it_found_before_it_stops(model, tmp_path, capsys):
    clip = write_clip(tmp_path / "clip.mkv", panned_scene(60))
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    arguments = ["predict", str(clip), "--model", model, "--device", "cpu", "--save-video", "--strict"]
    arguments += ["--output", str(tmp_path / "out"), "--jsonl", str(tmp_path / "people.jsonl"), "--batch-size", "4"]
    assert main(arguments) == 2
    assert "breaks off after" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    assert len(lines) > 4 and [line["index"] for line in lines] == list(range(len(lines)))
    with VideoReader(tmp_path / "out" / "clip_poses.mp4") as reader:
        assert len(list(reader)) == len(lines)


@pytest.fixture
def stream():
    """The address of a live stream of 30 frames, which waits for whoever connects."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    # a process: PyAV waits for a listener with Python's lock held
    send = f"from clips import *; write_clip('{address}?listen', panned_scene(30), 30, 'mpegts')"
    sender = subprocess.Popen([sys.executable, "-c", send], cwd=Path(__file__).parents[1])
    yield address
    try:
        assert sender.wait(60) == 0
    finally:
        sender.kill()


def open_stream(address):
    for _ in range(300):
        try:
            return VideoReader(address, ahead=2)
        except ValueError:  # nobody listens yet
            time.sleep(0.1)
    raise AssertionError(f"nobody listens at {address}")


def test_reader_of_a_live_stream_drops_what_is_not_taken_in_time(stream):
    with open_stream(stream) as reader:
        assert reader.is_live and reader.num_frames is None and reader.size == (160, 120)
        frames = iter(reader)
        seen = [next(frames)]
        reader._thread.join(20)  # the sender is through, and the queue takes two
        seen += frames
    assert not reader._thread.is_alive()
    # frames that were dropped count; the newest are kept
    assert seen[0].index == 0 and seen[-1].index == 29 and len(seen) <= 4
    expected = panned_scene(30)
    for frame in seen:
        assert frame.time == pytest.approx(frame.index / 30, abs=0.002)
        assert np.argmin([difference(frame.image, other) for other in expected]) == frame.index


def test_predict_on_a_live_stream(model, stream, tmp_path, capsys):
    saved = tmp_path / "drawn"
    arguments = ["predict", stream, "--model", model, "--device", "cpu", "--threshold", "0.01", "--output", str(saved)]
    arguments += ["--save-video", "--jsonl", str(tmp_path / "people.jsonl")]
    for _ in range(300):
        code = main(arguments)
        if code == 0:
            break
        assert "cannot be opened" in capsys.readouterr().err  # nobody listens yet
        time.sleep(0.2)
    assert code == 0
    indices = [json.loads(line)["index"] for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    assert indices == sorted(set(indices)) and indices[0] == 0 and indices[-1] == 29
    [video] = saved.glob("*.mp4")
    with VideoReader(video) as reader:
        assert len(list(reader)) == len(indices)


@pytest.fixture
def camera(tmp_path):
    """The address of a camera's stream: three seconds at 20 frames a second, in their own time, from GStreamer."""
    python = next((path for path in ("/usr/bin/python3", sys.executable) if can_serve_rtsp(path)), None)
    if python is None:
        pytest.skip("GStreamer's RTSP server and its Python bindings are not installed")
    clip = write_clip(tmp_path / "scene.mp4", panned_scene(60, step=2), rate=20)
    program = Path(__file__).parents[1] / "rtsp_server.py"
    with subprocess.Popen([python, str(program), str(clip)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def can_serve_rtsp(python):
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return Path(python).exists() and subprocess.run([python, "-c", check], capture_output=True).returncode == 0


def test_reader_of_a_camera_over_rtsp(camera):
    assert camera.startswith("rtsp://")
    with VideoReader(camera, ahead=100) as reader:
        assert reader.is_live and reader.num_frames is None and reader.size == (160, 120)
        start = time.monotonic()
        frames = list(reader)
        took = time.monotonic() - start
    # from the first key frame to the end, as they were sent
    assert len(frames) >= 50 and [frame.index for frame in frames] == list(range(len(frames)))
    assert took > 1.5  # a file would be read at once
    assert [frame.time for frame in frames] == pytest.approx([i / 20 for i in range(len(frames))], abs=0.03)
    expected = panned_scene(60, step=2)
    first = np.argmin([difference(frames[0].image, other) for other in expected])
    for frame in frames[::10]:
        assert np.argmin([difference(frame.image, other) for other in expected]) == first + frame.index


def test_predict_on_a_camera_over_rtsp(model, camera, tmp_path):
    arguments = ["predict", camera, "--model", model, "--device", "cpu", "--threshold", "0.01", "--max-frames", "5"]
    assert (
        main([*arguments, "--output", str(tmp_path), "--save-video", "--jsonl", str(tmp_path / "people.jsonl")]) == 0
    )
    lines = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and all(line["source"] == camera for line in lines)
    [video] = tmp_path.glob("*_poses.mp4")
    with VideoReader(video) as reader:
        assert len(list(reader)) == 5


def test_reader_turns_frames_upright(tmp_path):
    picture = panned_scene(1)[0]
    path = write_clip(tmp_path / "upright.mp4", [picture] * 2)
    content = path.read_bytes()
    # the matrix in the track's header: the identity, and one that turns by 90 degrees
    one = (1 << 16).to_bytes(4, "big")
    minus, zero, last = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4), (1 << 30).to_bytes(4, "big")
    identity = one + zero * 3 + one + zero * 3 + last
    turned = zero + one + zero + minus + zero * 4 + last
    start = content.index(identity, content.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(content[:start] + turned + content[start + len(identity) :])
    with VideoReader(tmp_path / "turned.mp4") as reader:
        image = next(iter(reader)).image
    # a player shows this file turned clockwise
    assert image.size == (120, 160)
    assert difference(image, picture.transpose(PIL.Image.Transpose.ROTATE_270)) < 6


def test_reader_refuses(tmp_path, clip):
    (tmp_path / "text.mp4").write_text("no video " * 100)
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be opened as a video"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(FileNotFoundError, match=r"no video file .*missing\.mp4"):
        VideoReader(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError, match="no webcam 77"):
        VideoReader(77)
    with pytest.raises(ValueError, match="`ahead` must be at least 1, but is 0"):
        VideoReader(clip, ahead=0)


def test_writer_keeps_images_and_times(tmp_path):
    pictures = [picture.resize((161, 119)) for picture in panned_scene()]  # sides that the codec has to pad
    times = [0.0, 0.1, 0.2, 0.7, 0.8, 0.9]
    with VideoWriter(tmp_path / "deep" / "out.mp4", 10) as writer:
        for picture, time in zip(pictures, times, strict=True):
            writer.write(picture, time)
        assert not (tmp_path / "deep" / "out.mp4").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.mp4"]
    with av.open(str(tmp_path / "deep" / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-4)
        for frame, picture in zip(frames, pictures, strict=True):
            assert difference(frame.to_image().crop((0, 0, 161, 119)), picture) < 10


def write_and_die(path):
    with VideoWriter(path, 10) as writer:
        for number, image in enumerate(panned_scene(10) * 20):
            writer.write(image, number / 10)
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_wrote_can_be_read(tmp_path):
    process = start_process(tmp_path / "printed", {}, write_and_die, tmp_path / "out.mp4")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    [path] = tmp_path.glob(".part.*.out.mp4")
    with VideoReader(path) as reader:
        assert len(list(reader)) > 100 and not reader.damage  # what the codec holds back is lost


def test_writer_keeps_what_was_written_before_an_error(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_text("before")
    with pytest.raises(RuntimeError), VideoWriter(path, 10):
        raise RuntimeError
    assert path.read_text() == "before"
    with pytest.raises(RuntimeError), VideoWriter(path, 10) as writer:
        for number, picture in enumerate(panned_scene(3)):
            writer.write(picture, number / 10)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [path]
    with VideoReader(path) as reader:
        assert len(list(reader)) == 3
    with pytest.raises(ValueError, match=r"written as \.mp4"):
        VideoWriter(tmp_path / "out.gif", 10)


def test_batches_change_nothing(model, clip):
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")
    found = {}
    for batch_size in (1, 4):
        with VideoReader(clip) as reader:
            options = VideoOptions(threshold=0.01, track=False, batch_size=batch_size)
            frames = find_people_in_video(pose_estimator, reader, options)
            found[batch_size] = [(frame.index, people) for frame, people in frames]
    assert [index for index, _ in found[1]] == list(range(6))
    for (_, one), (_, many) in zip(found[1], found[4], strict=True):
        assert len(one) == len(many) > 0
        for a, b in zip(one, many, strict=True):
            assert a["box"] == pytest.approx(b["box"], abs=1e-2)


def test_the_score_threshold_of_the_image_processor(model, clip):
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")

    def first_frame(**options):
        with VideoReader(clip) as reader:
            return next(iter(find_people_in_video(pose_estimator, reader, VideoOptions(track=False, **options))))[1]

    first, second = (person["score"] for person in first_frame(threshold=0.0, top_k=2))
    pose_estimator.image_processor.score_threshold = (first + second) / 2
    assert [person["score"] for person in first_frame()] == pytest.approx([first])


def test_predict_follows_people_and_saves_the_video(model, clip, tmp_path, capsys):
    arguments = ["predict", str(clip), "--model", model, "--device", "cpu", "--threshold", "0.01"]
    arguments += ["--output", str(tmp_path / "out")]
    assert main([*arguments, "--save-video", "--jsonl", str(tmp_path / "people.jsonl")]) == 0
    printed, said = capsys.readouterr()
    assert re.search(r"^6 frames, [\d.]+ per second; of [\d.]+ s \d+ % \w+, ", said, re.MULTILINE)
    assert all(part in said for part in ("% reading", "% model", "% writing"))
    lines = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert {line["source"] for line in lines} == {str(clip)}
    numbers = {person["track_id"] for line in lines for person in line["people"]} - {None}
    followed = re.escape(f"{clip}: 6 frames, {len(numbers)} people followed, drawn to ")
    assert re.match(followed, printed)
    assert len(numbers) > 1
    # the same people in consecutive frames, for the camera moves little
    assert {p["track_id"] for p in lines[2]["people"]} & {p["track_id"] for p in lines[3]["people"]} - {None}
    for line in lines:
        known = [person["track_id"] for person in line["people"] if person["track_id"] is not None]
        assert len(set(known)) == len(known)
    [drawn] = (tmp_path / "out").iterdir()
    assert drawn.name == "clip_poses.mp4"
    with VideoReader(drawn) as reader:
        drawn_frames = [frame.image for frame in reader]
    assert len(drawn_frames) == 6
    assert all(difference(a, b) > 6 for a, b in zip(drawn_frames, panned_scene(), strict=True))

    assert main([*arguments, "--no-track", "--max-frames", "2", "--jsonl", "-"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert all(person["track_id"] is None for line in lines for person in line["people"])
    assert main([*arguments, "--max-frames", "1"]) == 0
    assert capsys.readouterr().out.startswith("frame 0 (0.00 s): person ")


def test_predict_folders_and_patterns(model, clip, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "b.mp4").write_bytes(Path(clip).read_bytes())
    panned_scene(1)[0].save(folder / "a.png")
    (folder / "notes.txt").write_text("not a picture")
    arguments = ["--model", model, "--device", "cpu", "--jsonl", "-", "--max-frames", "1"]
    arguments += ["--output", str(tmp_path / "out")]
    for source in (folder, folder / "*.*[g4]"):
        assert main(["predict", str(source), *arguments]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [Path(line["source"]).name for line in lines] == ["a.png", "b.mp4"]
        assert [line["drawn"] is not None for line in lines] == [True, False]


def test_predict_refuses_videos_before_it_writes(model, clip, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 1000)
    (tmp_path / "empty").mkdir()
    picture = tmp_path / "a.png"
    panned_scene(1)[0].save(picture)
    before = sorted(tmp_path.rglob("*"))
    cases = [
        ([clip, "--json"], "--json is for images"),
        ([clip, "--max-frames", "-1"], "`max_frames` is -1; expected at least 1"),
        ([tmp_path / "broken.mp4"], "broken.mp4 cannot be opened as a video"),
        ([tmp_path / "missing.mp4"], "no video file .*missing.mp4"),
        ([tmp_path / "empty"], "the folder .*empty holds neither"),
        ([tmp_path / "*.webm"], "nothing matches"),
        ([picture, "--save-video"], "--save-video needs a video"),
        ([picture, "--jsonl", tmp_path], "--jsonl must be a file"),
    ]
    for arguments, message in cases:
        options = ["--model", model, "--output", tmp_path / "out"]
        assert main([str(argument) for argument in ["predict", *arguments, *options]]) == 2
        assert re.search(message, capsys.readouterr().err), arguments
    assert sorted(tmp_path.rglob("*")) == before
