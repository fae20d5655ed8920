"""Videos: frames a second, CPU time, memory, flicker and resuming, measured on this machine.

    python benchmarks/video.py [-o benchmarks/video.json] [--parts speed cores encoding flicker resume ...]

The videos are synthetic: a public-domain photograph (scikit-image's astronaut; of closed lips a synthetic
portrait) that moves, grows and turns slowly before a background, with expressions by the muscles' warp and
with a sensor's noise. Speed and memory are those of `magicedit video` in processes of their own. Parts that
are not measured anew are kept from the file, with the circumstances under which they were. `--before FOLDER`
measures the part `cores` also with the package in FOLDER, an earlier checkout, in turn with this one.
"""

import argparse
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
from machine import circumstances
from skimage import data
from skimage.metrics import structural_similarity

from magicedit.action_units import NAMES
from magicedit.editor import ExpressionEditor
from magicedit.faces import load_backend
from magicedit.imaging import open_photo
from magicedit.request import EditRequest
from magicedit.video.analysis import analyse, scan
from magicedit.video.edit import EditMaker, edit_video
from magicedit.video.job import VideoJob
from magicedit.video.rendering import PIECE
from magicedit.video.settings import DEFAULTS, VideoSettings
from magicedit.video.smoothing import OneEuro, Smoothing
from magicedit.video.writing import PRESETS, Encoding, PieceWriter
from magicedit.video_reading import Video, split_planes
from magicedit.warping import displacement_fields, warp_photo

RATE = 25  # frames a second
FACE_SCALE = 2.2  # of the photograph's 512 px: the face is about 250 px high
NOISE = 2.5  # levels of 255, standard deviation: a camera's in a lit room
SOUND_HZ = 44_100
SHORT, LONG = 150, 1200  # frames
OPENINGS = ("0:AU26=0", "2.5:AU26=4", "5:AU26=0", "7.5:AU26=4", "10:AU26=0")  # keys of ten seconds
CONTROLS = {  # keys of four seconds
    "wink": ("0.5:AU43L=0", "1:AU43L=5", "1.5:AU43L=5", "2:AU43L=0"),
    "gaze": ("0:gaze_yaw=0", "1:gaze_yaw=15", "3:gaze_yaw=-15", "4:gaze_yaw=0"),
    "head": ("0:head_yaw=0", "1:head_yaw=10", "3:head_yaw=-10", "4:head_yaw=0"),
}
CLOSED = Path(__file__).resolve().parents[1] / "tests" / "portraits" / "closed_mouth.jpg"
FLICKER_FRAMES = 100
CORE_SIZES, CORE_FRAMES = ((640, 360), (1280, 720), (1920, 1080)), 24
ENCODED_FRAMES, CLEAN = 24, 0.7  # levels of noise: daylight
EDIT = {"AU12": -2.0, "AU26": 3.0, "AU1": 2.0}  # an opened mouth, whose inside is painted


class MovingPhotograph:
    """Frames of a person who moves slowly.

    width, height: px. motion: how much, 1: up to 50 px a second and 4 degrees; 0: none but the noise.
    expression: seconds -> variations of action units; None: none. photo: (height, width, 3) uint8 RGB, whose
    face fills half of the frame's height or less; default: the astronaut.
    """

    def __init__(
        self,
        width: int = 1280,
        height: int = 720,
        motion: float = 1.0,
        expression: Callable[[float], dict[str, float]] | None = None,
        noise: float = NOISE,
        photo: np.ndarray | None = None,
    ):
        self.width, self.height, self.motion, self.noise = width, height, motion, noise
        self.photo = data.astronaut() if photo is None else photo
        (face,) = load_backend().detect(self.photo)[:1]
        self.landmarks, self.expression = face.landmarks, expression
        self.fields = displacement_fields(face.landmarks, len(self.photo)) if expression else None
        rng = np.random.default_rng(0)
        self.backdrop = cv2.resize(
            rng.integers(60, 160, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
        )

    def frame(self, seconds: float) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        photo = self.photo
        if self.expression:
            asked = self.expression(seconds)
            vector = np.array([asked.get(name, 0.0) for name in NAMES], np.float32)
            photo = warp_photo(photo, self.fields, vector, self.landmarks)
        x, y = self.landmarks.mean(0)
        scale = FACE_SCALE * self.height / 720 * (1 + 0.05 * self.motion * np.sin(0.9 * seconds))
        matrix = cv2.getRotationMatrix2D((x, y), 4 * self.motion * np.sin(1.1 * seconds), scale)
        matrix[:, 2] += (
            self.width * (0.5 + 0.03 * self.motion * np.sin(1.3 * seconds)) - x,
            self.height * (0.45 + 0.02 * self.motion * np.cos(0.8 * seconds)) - y,
        )
        picture = self.backdrop.copy()
        cv2.warpAffine(
            photo, matrix, (self.width, self.height), dst=picture, flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_TRANSPARENT,
        )  # fmt: skip
        rng = np.random.default_rng(round(1000 * seconds))
        noisy = picture + self.noise * rng.standard_normal(picture.shape, np.float32)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)

    def save(self, path: Path, frames: int) -> Path:
        """Writes a film of that many frames, with a tone, nearly without loss."""
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            stream.options = {"crf": "12", "preset": "veryfast"}
            sound = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
            for index in range(frames):
                picture = av.VideoFrame.from_ndarray(self.frame(index / RATE), "rgb24")
                container.mux(stream.encode(picture))
                samples = np.arange(index * SOUND_HZ // RATE, (index + 1) * SOUND_HZ // RATE)
                tone = (8000 * np.sin(2 * np.pi * 440 / SOUND_HZ * samples)).astype(np.int16)
                piece = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
                piece.sample_rate, piece.pts = SOUND_HZ, int(samples[0])
                piece.time_base = Fraction(1, SOUND_HZ)
                container.mux(sound.encode(piece))
            container.mux(stream.encode())
            container.mux(sound.encode())
        return path


def talking(seconds: float) -> dict[str, float]:
    """Smile down and up, brows, and a jaw that opens four times a second and a half."""
    return {
        "AU12": -2 + 2 * np.sin(1.5 * seconds),
        "AU1": 1.5 + 1.5 * np.sin(0.9 * seconds),
        "AU4": max(0.0, 2 * np.sin(0.6 * seconds)),
        "AU26": 1 + 1 * np.sin(2 * np.pi * 2.5 * seconds),
    }


# --- A command in a process of its own ----------------------------------------------------------------------


class Watched:
    """`magicedit` with these words, and what it and its children need meanwhile."""

    def __init__(self, *words: str | Path):
        self.peak_rss = 0
        self.process = psutil.Popen(
            [sys.executable, "-m", "magicedit.cli", *map(str, words), "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._cpu: dict[int, float] = {}
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()

    def _sample(self) -> None:
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            rss = 0
            try:
                for one in (self.process, *self.process.children(recursive=True)):
                    with one.oneshot():
                        rss += one.memory_info().rss
                        times = one.cpu_times()
                        self._cpu[one.pid] = times.user + times.system
            except psutil.Error:
                continue
            self.peak_rss = max(self.peak_rss, rss)
            time.sleep(0.05)

    def report(self) -> dict:
        """Its JSON; peak RSS and CPU seconds are of all its processes together."""
        load = psutil.getloadavg()[0]
        started = time.perf_counter()
        out, _ = self.process.communicate()
        self._watch.join()
        if self.process.returncode:
            raise SystemExit(f"the command failed with {self.process.returncode}")
        report = json.loads(out)
        return {
            "frames": report["frames"],
            "frames_per_second": report["frames_per_second"],
            "frames_per_second_with_loading": round(report["frames"] / (time.perf_counter() - started), 2),
            "cpu_seconds_per_frame": round(sum(self._cpu.values()) / report["frames"], 4),
            "peak_rss_mb": round(self.peak_rss / 1e6),
            "flicker": report["flicker"],
            "load_of_the_machine_before_and_after": [round(load, 2), round(psutil.getloadavg()[0], 2)],
        }


def measure_speed(folder: Path) -> dict:
    """Frames a second, CPU and memory of a short and a long video, by quality, and without an edit's work."""
    edit = ("--au", ",".join(f"{name}={delta}" for name, delta in EDIT.items()))
    film = MovingPhotograph(expression=talking)
    short, long = film.save(folder / "short.mp4", SHORT), film.save(folder / "long.mp4", LONG)
    result: dict = {"video": "1280 x 720 px, one face of 250 px, moving and talking, with sound"}
    for quality in ("live", "fast", "balanced"):
        words = ("video", short, "-o", folder / f"out-{quality}.mp4", *edit, "--quality", quality)
        result[f"short, {quality}"] = Watched(*words).report()
    result["long, fast"] = Watched("video", long, "-o", folder / "out-long.mp4", *edit).report()
    return result


def closed_film(folder: Path, seconds: int) -> Path:
    """A person with closed lips, who moves a little."""
    portrait = open_photo(CLOSED).pixels
    portrait = cv2.resize(portrait, (512, 512), interpolation=cv2.INTER_CUBIC)
    return MovingPhotograph(motion=0.3, photo=portrait).save(folder / "closed.mp4", seconds * RATE)


def measure_opening(folder: Path) -> dict:
    """A mouth that opens and closes twice in ten seconds."""
    keys = [word for key in OPENINGS for word in ("--key", key)]
    words = ("video", closed_film(folder, 10), "-o", folder / "out.mp4", *keys)
    return {"keys": OPENINGS, **Watched(*words).report()}


def measure_controls(folder: Path) -> dict:
    """A wink, eyes and a head that follow curves."""
    film, reports = closed_film(folder, 4), {}
    for name, points in CONTROLS.items():
        keys = [word for key in points for word in ("--key", key)]
        report = Watched("video", film, "-o", folder / f"{name}.mp4", *keys).report()
        reports[name] = {"keys": points, **report}
    return reports


def edit_once(film: str, output: str) -> dict:
    """CPU seconds a frame of all threads while a film is edited with the quality `fast`, without loading."""
    editor = ExpressionEditor.from_pretrained("mini")
    editor.edit(data.astronaut(), "AU12=1", measure=False)  # loads the face finder
    started = time.process_time()
    result = edit_video(editor, film, output, EDIT, quality="fast")
    return {
        "cpu_seconds_per_frame": (time.process_time() - started) / result.frames,
        "flicker": result.flicker.ratio,
        "kb_per_frame": Path(output).stat().st_size / result.frames / 1e3,
    }


def measure_cores(folder: Path, before: Path | None, turns: int) -> dict:
    """CPU time of a frame at three sizes, one thread a stage; now and before at the same time, in turns."""
    packages = {"now": Path(__file__).resolve().parents[1]} | ({"before": before} if before else {})
    films = {
        f"{width} x {height} px": MovingPhotograph(width, height, expression=talking).save(
            folder / f"{height}.mp4", CORE_FRAMES
        )
        for width, height in CORE_SIZES
    }

    def once(work: tuple[str, str]) -> dict:
        size, name = work
        words = [sys.executable, __file__, "--once", films[size], folder / f"{films[size].stem}-{name}.mp4"]
        env = os.environ | {"PYTHONPATH": str(packages[name]), "OMP_NUM_THREADS": "1"}
        out = subprocess.run(words, env=env, cwd=folder, stdout=subprocess.PIPE, check=True, text=True)
        return json.loads(out.stdout.splitlines()[-1])

    works = list(itertools.product(films, packages))
    with ThreadPoolExecutor(len(works)) as pool:
        found_in = [list(pool.map(once, works)) for _ in range(turns)]
    rows: list[dict] = [
        {"video": size, "film_mbit_per_second": round(film.stat().st_size * 8e-6 * RATE / CORE_FRAMES, 1)}
        for size, film in films.items()
    ]
    for (size, name), found in zip(works, zip(*found_in, strict=True), strict=True):
        row = {key: round(float(np.median([one[key] for one in found])), 4) for key in found[0]}
        row["frames_per_second_of_a_core"] = round(1 / row["cpu_seconds_per_frame"], 2)
        rows[list(films).index(size)][name] = row
    return {"frames": CORE_FRAMES, "turns": turns, "quality": "fast", "edit": EDIT, "rows": rows}


def measure_encoding(folder: Path) -> dict:
    """Time, size and likeness (SSIM of luma) of x264's presets at crf 17, for a noisy and a clean film."""
    result: dict = {"frames": ENCODED_FRAMES, "crf": Encoding().crf, "rows": []}
    for name, noise in (("noisy", NOISE), ("clean", CLEAN)):
        film = MovingPhotograph(expression=talking, noise=noise)
        video = Video(film.save(folder / f"{name}.mp4", ENCODED_FRAMES))
        frames = [frame.planes for frame in video.frames()]
        step = round(1 / (video.info.rate * video.info.time_base))
        for preset in PRESETS[: PRESETS.index("fast") + 1]:
            path = folder / "piece.mp4"
            started = time.process_time()
            writer = PieceWriter(path, video.info, Encoding(preset=preset), PIECE)
            for index, planes in enumerate(frames):
                writer.write(planes, index * step)
            writer.close()
            seconds = time.process_time() - started
            likeness = [
                structural_similarity(split_planes(a)[0], split_planes(b.planes)[0])
                for a, b in zip(frames, Video(path).frames(), strict=True)
            ]
            row = {"video": name, "preset": preset, "ms_per_frame": round(1e3 * seconds / len(frames), 1)}
            row |= {"kb_per_frame": round(path.stat().st_size / len(frames) / 1e3, 1)}
            result["rows"].append(row | {"ssim": round(float(np.mean(likeness)), 5)})
    return result


def measure_reenact(folder: Path) -> dict:
    """The same of `magicedit reenact`, on a photograph of 1024 px."""
    film = MovingPhotograph(expression=talking).save(folder / "driving.mp4", SHORT)
    photo = cv2.resize(data.astronaut(), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "photo.png"), photo[..., ::-1])
    words = ("reenact", "--source", folder / "photo.png", "--driving", film, "-o", folder / "alive.mp4")
    return {"photograph": "1024 x 1024 px", **Watched(*words).report()}


# --- Flicker ------------------------------------------------------------------------------------------------


def measure_flicker(folder: Path) -> dict:
    """By motion, quality and what is smoothed; see `FlickerMeter`, on the frames before they are encoded."""
    open_filter = OneEuro(min_cutoff=1e9, beta=0)
    nothing = Smoothing(place=open_filter, landmarks=open_filter, action_units=open_filter, change=None)
    usual = DEFAULTS.smoothing
    ways = {
        "nothing": nothing,
        "faces": replace(usual, change=None),
        "changes": replace(nothing, change=usual.change),
        "both": usual,
    }
    films = {
        "still": MovingPhotograph(motion=0),
        "moving": MovingPhotograph(motion=0.3),
        "moving and talking": MovingPhotograph(expression=talking),
    }
    editors = {name: ExpressionEditor.from_pretrained(name, device="cpu") for name in ("mini", "mini-live")}
    result: dict = {"frames": FLICKER_FRAMES, "edit": EDIT, "rows": []}
    for name, film in films.items():
        video = Video(film.save(folder / f"{name}.mp4", FLICKER_FRAMES))
        rows = folder / f"{name}.jsonl"
        analysis = analyse(video, editors["mini"].backend, rows, DEFAULTS.tracking)
        tracks = scan(analysis.rows(), float(video.info.time_base))
        runs = [("mini", "fast", way) for way in ways]
        runs += [("mini", "live", "both"), ("mini", "balanced", "both"), ("mini-live", "live", "both")]
        for model, quality, way in runs:
            editor = editors[model]

            def requested(current, seconds, names=editor.action_units):
                return EditRequest(EDIT).deltas(names, current)

            settings = VideoSettings(smoothing=ways[way])
            job = VideoJob(editor, video.path, folder / "out.mp4", quality=quality, settings=settings)
            maker = EditMaker(job, analysis, tracks, requested)
            for _ in maker.frames(0):
                pass
            row = {"video": name, "model": model, "quality": quality, "smoothed": way}
            result["rows"].append(row | maker.meter.result().to_json())
    return result


# --- Resuming -----------------------------------------------------------------------------------------------


def measure_resume(folder: Path) -> dict:
    """A run killed twice and gone on with, against one that was not: are the decoded frames equal?"""
    film = MovingPhotograph(expression=talking).save(folder / "film.mp4", SHORT)
    edit = ("--au", ",".join(f"{name}={delta}" for name, delta in EDIT.items()))
    Watched("video", film, "-o", folder / "whole.mp4", *edit).report()
    work = folder / ".killed.mp4.partial"
    stops = {
        "while faces are looked for": lambda: (
            (work / "faces.jsonl").is_file() and (work / "faces.jsonl").read_bytes().count(b"\n") > SHORT // 3
        ),
        "while frames are made": (work / "piece-00001.json").is_file,
    }
    for reached in stops.values():
        killed = Watched("video", film, "-o", folder / "killed.mp4", *edit).process
        while not reached():
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        if (folder / "killed.mp4").exists():
            raise SystemExit("a killed run left an output")
    Watched("video", film, "-o", folder / "killed.mp4", *edit).report()
    digests = [
        [hashlib.blake2b(frame.planes).hexdigest() for frame in Video(folder / name).frames()]
        for name in ("whole.mp4", "killed.mp4")
    ]
    return {
        "killed": list(stops),
        "frames": len(digests[0]),
        "equal_decoded_frames": sum(a == b for a, b in zip(*digests, strict=True)),
    }


PARTS = {
    "speed": measure_speed,
    "cores": measure_cores,
    "encoding": measure_encoding,
    "opening": measure_opening,
    "controls": measure_controls,
    "reenact": measure_reenact,
    "flicker": measure_flicker,
    "resume": measure_resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--before", type=Path, metavar="FOLDER")
    parser.add_argument("--turns", type=int, default=5, help="of the part cores")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(edit_once(*args.once)))
        return
    result = json.loads(args.output.read_text()) if args.output.is_file() else {}
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            options = {}
            if part == "cores":
                options = {"before": args.before and args.before.resolve(), "turns": args.turns}
            found = PARTS[part](Path(folder), **options)
            result[part] = {**circumstances(), "av": av.__version__, **found}
        args.output.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result[part], indent=2), flush=True)


if __name__ == "__main__":
    main()
