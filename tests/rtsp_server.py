"""Serves a clip over RTSP on loopback, by GStreamer's RTSP server: a program of its own, for the system's Python.

Debian's packages: gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good, gstreamer1.0-plugins-bad and python3-gi.
"""

import sys

import gi


gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main() -> None:
    clip = sys.argv[1]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")  # any port that is free
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f'( filesrc location="{clip}" ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 )')
    server.get_mount_points().add_factory("/scene", factory)
    server.attach(None)
    print(f"rtsp://127.0.0.1:{server.get_bound_port()}/scene", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
