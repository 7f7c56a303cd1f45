"""Files opened by a program of others: three.js in a headless browser shows the right picture."""

from __future__ import annotations

import functools
import http.server
import io
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .boxes import BLUE, RED, coloured, painted

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
THREE = [path for path in os.environ.get("NODE_PATH", "").split(":") if path]
THREE = [Path(path, "three") for path in THREE if Path(path, "three", "build").is_dir()]
FLAGS = (
    "--headless=new --no-sandbox --use-gl=angle --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1 "
    "--window-size=400,400 --virtual-time-budget=20000"
)
# Ambient light of pi falls on a matt surface: what leaves it is its base colour.
PAGE = """<!doctype html><body style="margin:0"><script type="importmap">{"imports":
{"three": "/three/build/three.module.js", "three/addons/": "/three/examples/jsm/"}}</script>
<script type="module">
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer({ antialias: true, preserveDrawingBuffer: true });
renderer.setPixelRatio(1); renderer.setSize(256, 256); document.body.append(renderer.domElement);
const scene = new THREE.Scene(); scene.background = new THREE.Color("#ffffff");
scene.add(new THREE.AmbientLight(0xffffff, Math.PI));
const camera = new THREE.PerspectiveCamera(35, 1, 0.1, 10);
camera.position.set(0, 1, 1.6); camera.lookAt(0, 0, 0);
new GLTFLoader().load("/object.glb", (file) => {
  scene.add(file.scene); renderer.render(scene, camera); });
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and THREE),
        reason="needs Chromium, and three.js: npm install three, NODE_PATH=.../node_modules",
    ),
]


def screenshot(folder: Path, keep: str) -> np.ndarray:
    (folder / "index.html").write_text(PAGE)
    (folder / "three").symlink_to(THREE[0].resolve())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        extensions_map = {
            **http.server.SimpleHTTPRequestHandler.extensions_map,
            ".js": "text/javascript",
        }

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        picture = folder / f"{keep}.png"
        subprocess.run(
            [
                CHROMIUM,
                *FLAGS.split(),
                f"--user-data-dir={folder / 'profile'}",
                f"--screenshot={picture}",
                f"http://127.0.0.1:{server.server_port}/index.html",
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
        return np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"))[:256, :256]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("make", [coloured, painted])
def test_a_browser_shows_the_red_side_above_and_the_blue_one_in_front(make, tmp_path):
    """Colours of COLOR_0 are linear light, of a texture sRGB: both must look as they were given."""
    make().save(tmp_path / "object.glb")
    picture = screenshot(tmp_path, make.__name__).astype(int)
    assert (picture[4, 4] == 255).all()
    for (row, column), color in (((85, 128), RED), ((170, 128), BLUE)):
        patch = picture[row - 5 : row + 6, column - 20 : column + 21].reshape(-1, 3)
        assert np.abs(patch - color).max() <= 4, (row, column, patch.mean(axis=0))
