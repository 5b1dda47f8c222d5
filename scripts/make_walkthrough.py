"""Run the commands of docs/walkthrough.md, and put what they print and draw into the page.

    python scripts/make_walkthrough.py

    python scripts/make_walkthrough.py --only-data --output DIR     # the data alone, anywhere

Commands are the `bash` blocks of the page, run in turn from the root of the repository; they write into
`output/walk`. The first one makes the data: tiles of the sample data with an XML file each, held-out tiles as photos,
and a video that moves over the held-out scene. Lines that a command prints go into the block `walk N` behind it. For
the picture of the report Chromium is needed. About half an hour on two cores, most of it training; with --go-on,
commands whose print is kept in the folder are not run again.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
from PIL import Image

from sparse_detr.analysis.tables import fill_readme
from sparse_detr.errors import UserError, run_script
from sparse_detr.files import make_folder, write_text_atomically

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "walkthrough.md"
SAMPLE = ROOT / "datasets" / "sample"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
LAST_LINES = {2: 40, 3: 6, 5: 14}
"""Lines of a command's print that the page shows, if not the last four."""
LINE_LENGTH = 160
OUTPUT = Path("output", "walk")
"""Where the commands of the page write."""
FRAME, FRAMES, STEP = 416, 24, 4  # a frame's side, how many, and pixels from one to the next
BROWSER_SECONDS = 60


def main() -> int:
    """Make the data, or run the commands and fill the page."""
    args = parse(sys.argv[1:])
    if args.only_data:
        print(make_data(args.output))
        return 0
    if args.output != OUTPUT:
        raise UserError(f"--output goes with --only-data: the commands of {PAGE.name} write into {OUTPUT}")
    make_folder(OUTPUT)
    for number, command in enumerate(commands_of(PAGE.read_text(encoding="utf-8")), start=1):
        kept = OUTPUT / f"printed_{number}.txt"
        if not (args.go_on and kept.is_file()):
            write_text_atomically(kept, run(command))
        lines = kept.read_text(encoding="utf-8").splitlines()[-LAST_LINES.get(number, 4) :]
        shown = "\n".join(line.rstrip()[:LINE_LENGTH] for line in lines)
        fill_readme(PAGE, f"walk {number}", f"```\n{shown}\n```")
    draw(OUTPUT, PAGE.with_suffix(""))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help=f"for the data ({OUTPUT})")
    parser.add_argument("--only-data", action="store_true", help="write the folder of pictures and the video alone")
    parser.add_argument("--go-on", action="store_true", help="do not run a command again whose print is kept")
    return parser.parse_args(arguments)


def commands_of(page: str) -> list[str]:
    """Return the shell commands of a page, in their order."""
    return BLOCK.findall(page)


def run(command: str) -> str:
    """Run a shell command from the root of the repository with this Python's programs; return what it printed.

    Raises:
        UserError: it failed.
    """
    print(f"$ {command}", flush=True)
    start = time.monotonic()
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-ec", f'PATH="{bin_folder}:$PATH"\n{command}'], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise UserError(f"a command of {PAGE.name} ended with status {done.returncode}: {command}")
    print(f"{done.stdout}({time.monotonic() - start:.0f} s)", flush=True)
    return done.stdout


def make_data(output: Path) -> str:
    """Write the folder of pictures with XML files, the photos and the video; return a sentence about them."""
    if not (SAMPLE / "train.json").is_file():
        raise UserError(f"{SAMPLE} has no sample data; make it with `make sample-data`")
    content = json.loads((SAMPLE / "train.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    for folder in ("trees/Annotations", "trees/JPEGImages", "photos"):
        make_folder(output / folder)
    for image in content["images"]:
        boxes = [
            (names[row["category_id"]], row["bbox"]) for row in content["annotations"] if row["image_id"] == image["id"]
        ]
        stem = Path(image["file_name"]).stem
        save_jpeg(SAMPLE / "train" / image["file_name"], output / "trees" / "JPEGImages" / f"{stem}.jpg")
        text = voc_text(f"{stem}.jpg", image["width"], image["height"], boxes)
        write_text_atomically(output / "trees" / "Annotations" / f"{stem}.xml", text)
    tiles = sorted((SAMPLE / "val").iterdir())
    for tile in tiles:
        save_jpeg(tile, output / "photos" / f"{tile.stem}.jpg")
    write_video(scene_of(tiles), output / "flight.mp4")
    count = len(content["annotations"])
    return f"{len(content['images'])} pictures with {count} boxes, {len(tiles)} photos and a video are in {output}"


def voc_text(file_name: str, width: int, height: int, boxes: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Return the XML of Pascal VOC for boxes of (class, [x, y, width, height])."""
    objects = "".join(
        f"<object><name>{escape(name)}</name><bndbox><xmin>{x:g}</xmin><ymin>{y:g}</ymin>"
        f"<xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax></bndbox></object>"
        for name, (x, y, w, h) in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{escape(file_name)}</filename>{size}{objects}</annotation>\n"


def save_jpeg(source: Path, target: Path, width: int | None = None) -> None:
    """Save a picture as JPEG, at most `width` pixels wide."""
    picture = Image.open(source).convert("RGB")
    if width:
        picture.thumbnail((width, 4 * width))
    picture.save(target, quality=82 if width else 95)


def scene_of(tiles: Sequence[Path]) -> np.ndarray:
    """Return the scene (H, W, 3) RGB that tiles named ..._xX_yY were cut from."""
    corners = [tuple(map(int, re.findall(r"_x(\d+)_y(\d+)$", tile.stem)[0])) for tile in tiles]
    pictures = [np.asarray(Image.open(tile).convert("RGB")) for tile in tiles]
    placed = list(zip(corners, pictures, strict=True))
    height = max(y + picture.shape[0] for (_, y), picture in placed)
    width = max(x + picture.shape[1] for (x, _), picture in placed)
    scene = np.zeros((height, width, 3), dtype=np.uint8)
    for (x, y), picture in placed:
        scene[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return scene


def write_video(scene: np.ndarray, path: Path) -> None:
    """Write a video that moves to the right over a scene, at half of its height."""
    top = (scene.shape[0] - FRAME) // 2
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8, (FRAME, FRAME))
    if not video.isOpened():
        raise UserError(f"{path} cannot be written; this OpenCV has no encoder for MPEG-4")
    for left in range(0, FRAMES * STEP, STEP):
        video.write(np.ascontiguousarray(scene[top : top + FRAME, left : left + FRAME, ::-1]))
    video.release()


def draw(output: Path, folder: Path) -> None:
    """Put the pictures of the page into its folder."""
    make_folder(folder)
    save_jpeg(output / "samples.png", folder / "samples.jpg", 1100)
    shutil.copyfile(output / "curves.png", folder / "curves.png")
    save_jpeg(sorted((output / "found" / "pictures").rglob("*_y0345.jpg"))[0], folder / "photo.jpg", 800)
    write_strip(output / "found" / "videos" / "flight.mp4", folder / "flight.jpg")
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch, "report.png")
        photograph(output / "run" / "report" / "report.html", shot)
        save_jpeg(shot, folder / "report.jpg", 1000)


def write_strip(video: Path, path: Path, count: int = 4) -> None:
    """Write every second frame from the middle of a video on, beside each other."""
    reader = cv2.VideoCapture(str(video))
    frames = []
    while True:
        found, frame = reader.read()
        if not found:
            break
        frames.append(frame)
    if len(frames) < 4 * count:
        raise UserError(f"{video} has {len(frames)} frames, {4 * count} are needed")
    chosen = frames[len(frames) // 2 :: 2][:count]
    strip = cv2.resize(np.concatenate(chosen, axis=1), None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), strip, [cv2.IMWRITE_JPEG_QUALITY, 85])


def photograph(page: Path, path: Path) -> None:
    """Write a picture of the top of a page in Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise UserError("the picture of the report needs Chromium; install it, and run again with --go-on")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command = [browser, *flags, "--window-size=1100,1500", f"--screenshot={path}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=BROWSER_SECONDS)


if __name__ == "__main__":
    run_script(main)
