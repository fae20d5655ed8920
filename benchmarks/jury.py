"""The blind jury: contact sheets of edited validation faces, and the table of their ratings.

    python benchmarks/jury.py sheets OUT --editor mini --editor warp [--faces london] [--requests openings]
    python benchmarks/jury.py edit OUT --editor before=mini
    python benchmarks/jury.py table OUT [--ratings RATINGS ...] [-o benchmarks/jury.json]
    python benchmarks/jury.py small --editor mini [-o benchmarks/jury_small.json]

The validation faces are ten people of the Face Research Lab London Set and 42 synthetic portraits; no model
is trained on them. `sheets` writes OUT/sheets (pictures), OUT/key.json (which editor made which picture; the
jury does not open it) and OUT/ratings.tsv, one row a picture to fill in:

    code               printed under the picture: request, face and a letter, such as 03-17b
    rating             0 grotesque, 1 visibly fake, 2 passes, 3 convincing
    reads_as_intended  yes, half or no: whether the face shows what the sheet's title says
    preferred          yes at one picture of a face and request, empty where none is better

Editors are those of `magicedit evaluate`: mini, warp, copy, a model folder, a hub id, module:name;
NAME=EDITOR gives a name. Pictures that exist are kept: an interrupted run resumes, and further faces and
requests join the same folder. An editor whose weights or code changed needs another folder or another name.
To compare two versions of the code, `edit` makes one editor's pictures with the other checkout, and `sheets`
takes them by `--made NAME`. `small` measures what small requests change around the mouth, on every face.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from machine import circumstances
from mini_quality import VALIDATION
from PIL import Image, ImageDraw, ImageFont

import magicedit
from magicedit.action_units import DESCRIPTIONS, EMOTIONS, FACS, NAMES, emotion_deltas
from magicedit.cli.evaluation import fingerprint, open_editor, short_name
from magicedit.errors import DatasetError, MagicEditError, NoFaceError, OutputError
from magicedit.evaluation.circumstances import without_folders
from magicedit.evaluation.editors import answer
from magicedit.evaluation.protocol import Edit
from magicedit.evaluation.run import safe_name
from magicedit.faces import Alignment, Face, FaceBackend, align, crop_face, load_backend, region_polygon
from magicedit.faces.frame import face_frame
from magicedit.files import replacing
from magicedit.imaging import Photo, open_photo
from magicedit.pipelines import pipeline_magicedit
from magicedit.vocabulary import whole_name

# Rooms and files of the package that no edit depends on
BESIDE = {"app", "batch", "cli", "data", "demo.py", "doctor.py", "evaluation", "hub", "pretrained", "video"}
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "faces"
KINDS = ("london", "synthetic")
GROUPS = ("openings", "others", "controls")
READINGS = ("yes", "half", "no")
COLUMNS = ("code", "rating", "reads_as_intended", "preferred")
MADE = "made.json"  # in an editor's folder of pictures: what they depend on
SEED = 0  # of every edit
MARGIN = 0.85  # the whole face fills 88 % of its picture
# Centre (below the eyes' line) and width of the enlarged parts, in interocular distances
MOUTH, BROWS = (1.15, 1.7), (-0.2, 2.6)
LIPS_GROW = 1.2  # the mouth's box is the lips' landmark box grown by this factor about its centre


@dataclass(frozen=True)
class Request:
    """What is asked for. number: its place among all requests, in codes. title: what should be seen."""

    number: int
    text: str
    group: str
    title: str

    @property
    def deltas(self) -> dict[str, float]:
        """Name of a control -> variation in intensity steps or degrees."""
        return emotion_deltas(self.text) if self.text in EMOTIONS else FACS.deltas(self.text)

    @property
    def edit(self) -> Edit:
        """For editors of emotions too, which know no action units."""
        if self.text in EMOTIONS:
            return Edit("emotion", self.deltas, SEED, self.text)
        return Edit("combination", self.deltas, SEED)

    @property
    def shows_brows(self) -> bool:
        """Whether brows and eyes are shown enlarged beside the mouth; of openings the mouth alone is."""
        shown = ("AU1", "AU2", "AU4", "AU5", "AU6", "AU9", "AU43")
        return self.group != "openings" and any(
            whole_name(name) in shown or FACS[whole_name(name)].is_angle for name in self.deltas
        )


def _requests() -> tuple[Request, ...]:
    openings = {
        "AU25=+3": "the lips part",
        "AU12=+4,AU25=+3": "a broad smile with parted lips",
        "AU26=+4": "the jaw drops",
        "happiness": "the face looks happy",
        "surprise": "the face looks surprised",
    }
    others = {f"{name}=+3": DESCRIPTIONS[name] for name in NAMES if name != "AU25"}
    others["AU12=+3"] = "a smile"
    others |= {
        "AU1=+3,AU2=+3": "the whole brows rise",
        "AU12L=+3": "a smile on the subject's left (right in the picture)",
        "AU12R=+3": "a smile on the subject's right (left in the picture)",
        "sadness": "the face looks sad",
        "fear": "the face looks afraid",
        "anger": "the face looks angry",
        "disgust": "the face looks disgusted",
    }
    controls = {
        "AU43=+5": "both eyes are closed",
        "AU43L=+5": "a wink: the subject's left eye (right in the picture) is closed",
        "gaze_yaw=+15": "the eyes look to the right of the picture",
        "gaze_yaw=-15": "the eyes look to the left of the picture",
        "gaze_pitch=+15": "the eyes look up",
        "gaze_pitch=-15": "the eyes look down",
        "head_yaw=+10": "the head is turned farther to the right of the picture",
        "head_yaw=-10": "the head is turned farther to the left of the picture",
        "head_pitch=+10": "the head is raised",
        "head_roll=+10": "the head is tilted clockwise",
        "AU10=+3": "the upper lip is raised",
        "AU14=+4": "the corners of the mouth are drawn in (dimples)",
        "AU18=+4": "the lips are puckered",
        "AU27=+4": "the mouth is wide open",
    }
    parts = openings, others, controls
    asked = [(text, title, group) for group, part in zip(GROUPS, parts, strict=True)
             for text, title in part.items()]  # fmt: skip
    return tuple(Request(n, text, group, title) for n, (text, title, group) in enumerate(asked, start=1))


REQUESTS = _requests()
# Request -> (limit of the median over faces or None, limit of every face), levels; see `small`
SMALL: dict[str, tuple[float | None, float]] = {
    "AU1=+0.5": (None, 1.5),
    "AU1=+1": (None, 1.5),
    "AU4=-0.5": (None, 1.5),
    "AU5=-0.1": (None, 1.5),
    "AU12=+0.25": (3.0, 5.0),
}


@dataclass(frozen=True)
class ValidationFace:
    """A photograph that is edited. number: its place among all 52, printed in codes."""

    number: int
    name: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Juror:
    """An editor under its name."""

    name: str
    spec: str

    def about(self, side: int) -> dict[str, object]:
        """What its pictures depend on: fingerprints of weights (None: no file) and code; their side in px."""
        return {"weights": fingerprint(self.spec), "code": code_fingerprint(), "side": side}


@dataclass(frozen=True)
class Tile:
    """One picture of the key: what a code stands for. error: why the editor made none, "" where it did."""

    code: str
    editor: str
    face: str
    kind: str
    request: str
    group: str
    error: str = ""

    @property
    def cell(self) -> tuple[str, str]:
        return self.request, self.face


# --- What is asked of whom ---


def validation_faces(photographs: Path) -> list[ValidationFace]:
    """The 52 faces, London first. DatasetError where the folder lacks them."""
    paths = [("london", person, photographs / "london" / person / "neutral.jpg") for person in VALIDATION]
    folder = photographs / "synthetic" / "validation"
    paths += [("synthetic", path.stem, path) for path in sorted(folder.glob("*.jpg"))]
    faces = [ValidationFace(n, name, kind, path) for n, (kind, name, path) in enumerate(paths, start=1)]
    present = [face for face in faces if face.path.is_file()]
    if not present:
        raise DatasetError(
            f"{photographs} has none of the validation faces (london/*/neutral.jpg, "
            "synthetic/validation/*.jpg); name their folder with --photographs"
        )
    return present


def chosen_faces(faces: Sequence[ValidationFace], words: str | None) -> list[ValidationFace]:
    """Those that `words` names: "london", "synthetic" or names, joined by commas; None: all."""
    return _chosen(faces, words, lambda face: (face.name, face.kind), "face")


def chosen_requests(words: str | None) -> list[Request]:
    """Those that `words` names: groups or requests, joined by semicolons; None: all."""
    return _chosen(REQUESTS, words, lambda request: (request.text, request.group), "request", separator=";")


def _chosen(everything: Sequence, words: str | None, names_of: Callable, what: str, separator=",") -> list:
    if words is None:
        return list(everything)
    wanted = {word.strip() for word in words.split(separator)}
    known = {name for item in everything for name in names_of(item)}
    if unknown := sorted(wanted - known):
        raise MagicEditError(f"no {what} {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [item for item in everything if wanted & set(names_of(item))]


def jurors(words: Sequence[str]) -> list[Juror]:
    """The editors of a command line, in the spelling of `magicedit evaluate --editor`."""
    found = []
    for text in words:
        name, is_named, spec = text.partition("=")
        name, spec = (name, spec) if is_named and "/" not in name else (short_name(text), text)
        if spec.startswith("pictures:"):
            raise MagicEditError("the jury edits photographs itself; it does not take pictures:MANIFEST")
        found.append(Juror(name, spec))
    names = [juror.name for juror in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise MagicEditError(f"two editors are called {', '.join(repeated)}; give names with NAME=EDITOR")
    return found


def code_fingerprint() -> str:
    """Of the sources that an edit depends on."""
    package = Path(magicedit.__file__).parent
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in BESIDE]
    files += Path(pipeline_magicedit.__file__).parent.glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def blind_codes(request: Request, face: ValidationFace, editors: Sequence[str], seed: int) -> dict[str, str]:
    """Code -> editor of one cell, in the order of the letters.

    The order depends on seed, request and face alone, so that a cell keeps it whatever else is chosen.
    """
    shuffled = sorted(editors)
    digest = hashlib.sha256(f"{seed} {request.text} {face.name}".encode()).digest()
    random.Random(digest).shuffle(shuffled)
    return {f"{request.number:02d}-{face.number:02d}{chr(97 + n)}": name for n, name in enumerate(shuffled)}


# --- Pictures ---


@dataclass(frozen=True, eq=False)
class Looking:
    """How one face is shown, by the landmarks of the unedited photograph, in every picture of it."""

    photo: Photo
    face: Face
    side: int

    @classmethod
    def at(cls, path: Path, side: int, backend: FaceBackend) -> "Looking":
        """NoFaceError where the photograph shows none."""
        photo = open_photo(path)
        faces = backend.detect(photo.pixels)
        if not faces:
            raise NoFaceError(f"no face was found in {path.name}")
        return cls(photo, faces[0], side)

    def tile(self, pixels: np.ndarray, request: Request) -> np.ndarray:
        """(side, 2 * side, 3) uint8: the whole face, and beside it the mouth enlarged.

        Where the request touches brows or eyes these share the right half with the mouth.
        """
        whole = _crop(pixels, align(self.face, self.side, margin=MARGIN))
        if request.shows_brows:
            half = self.side // 2
            parts = [self._part(pixels, BROWS, half), self._part(pixels, MOUTH, self.side - half)]
            close = np.concatenate(parts)
            close[half - 1 : half + 1] = 255
        else:
            close = self._part(pixels, MOUTH, self.side)
        close[:, :2] = 255
        return np.concatenate([whole, close], axis=1)

    def _part(self, pixels: np.ndarray, window: tuple[float, float], height: int) -> np.ndarray:
        """(height, side, 3): a window of the upright face, its width as told or, if higher, its height."""
        below, width = window
        frame = face_frame(self.face.landmarks, self.face.scheme)
        if height < self.side and window == MOUTH:
            width *= 1.3  # the half as high picture still shows the chin's rise and the lips' fall
        scale = self.side / (width * frame.interocular)  # picture px a photograph px
        linear = scale * frame.rotation
        centre = frame.origin + frame.vectors_to_picture(np.array([0.0, below]))
        matrix = np.concatenate(
            [linear, (np.array([(self.side - 1) / 2, (height - 1) / 2]) - linear @ centre)[:, None]], axis=1
        )
        square = _crop(pixels, Alignment(_to_top(matrix, height, self.side), self.side))
        return square[(self.side - height) // 2 :][:height]


def _crop(pixels: np.ndarray, alignment: Alignment) -> np.ndarray:
    """`crop_face`, white beyond the photograph: a reflected chin would look like a second one."""
    crop = crop_face(pixels, alignment)
    photograph = np.ones(pixels.shape[:2], np.uint8)
    crop[cv2.warpAffine(photograph, alignment.matrix, crop.shape[1::-1]) == 0] = 255
    return crop


def _to_top(matrix: np.ndarray, height: int, side: int) -> np.ndarray:
    """The similarity (2, 3) shifted so that a picture of `height` lies in the middle of one of `side`."""
    shifted = matrix.copy()
    shifted[1, 2] += (side - height) // 2
    return shifted


def mouth_box(face: Face, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the lips' landmark box, grown by `LIPS_GROW` and cut to the picture."""
    lips = region_polygon(face.landmarks, face.scheme, "lips")
    centre, half = (lips.max(0) + lips.min(0)) / 2, LIPS_GROW * (lips.max(0) - lips.min(0)) / 2
    (x0, y0), (x1, y1) = np.rint(centre - half).astype(int), np.rint(centre + half).astype(int) + 1
    return slice(max(0, y0), min(shape[0], y1)), slice(max(0, x0), min(shape[1], x1))


def editor_folder(out: Path, editor: str) -> Path:
    return out / "tiles" / safe_name(editor)


def tile_path(out: Path, editor: str, face: ValidationFace, request: Request) -> Path:
    return editor_folder(out, editor) / face.name / f"{request.number:02d}.png"


def make_tiles(
    out: Path,
    juror: Juror,
    faces: Sequence[ValidationFace],
    requests: Sequence[Request],
    side: int,
    device: str | None,
) -> None:
    """Edits what has no picture yet; an edit that fails leaves a grey picture and its reason beside it.

    OutputError where the folder holds pictures of this name that other weights or code made.
    """
    about, made = juror.about(side), made_by(out, juror.name)
    if made is not None and made != about:
        changed = ", ".join(name for name in about if made.get(name) != about[name])
        raise OutputError(
            f"{out} has pictures of {juror.name} with another {changed}; choose another folder or NAME=EDITOR"
        )
    folder = editor_folder(out, juror.name)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / MADE) as file:
        file.write(json.dumps(about).encode())
    editor, backend = None, None
    for face in faces:
        looking = None
        for request in requests:
            path = tile_path(out, juror.name, face, request)
            reason = path.with_suffix(".txt")
            if not path.is_file():
                editor = editor or open_editor(juror.spec, device=device)
                backend = backend or load_backend("mediapipe")
                looking = looking or Looking.at(face.path, side, backend)
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    pixels = np.asarray(answer(editor, looking.photo, request.edit))
                    tile = looking.tile(pixels, request)
                except MagicEditError as error:
                    reason.write_text(without_folders(str(error)))
                    tile = np.full((side, 2 * side, 3), 128, np.uint8)
                _write(path, Image.fromarray(tile))
        print(f"{juror.name}: {face.name}", flush=True)


def made_by(out: Path, editor: str) -> dict[str, object] | None:
    """What an editor's pictures in the folder depend on, see `Juror.about`; None where there are none."""
    path = editor_folder(out, editor) / MADE
    return json.loads(path.read_text()) if path.is_file() else None


def failure(out: Path, editor: str, face: ValidationFace, request: Request) -> str:
    """Why the editor made no picture, "" where it did. DatasetError where it was never asked."""
    path = tile_path(out, editor, face, request)
    if not path.is_file():
        raise DatasetError(
            f"{out} has no picture of {face.name}, {request.text}, by {editor}; run `jury.py edit` for it"
        )
    reason = path.with_suffix(".txt")
    return reason.read_text() if reason.is_file() else ""


def _write(path: Path, image: Image.Image) -> None:
    """PNG or JPEG by the name's suffix, whole or not at all."""
    with replacing(path) as file:
        if path.suffix == ".png":
            image.save(file, "PNG")
        else:
            image.save(file, "JPEG", quality=95)


def contact_sheet(
    title: str, blocks: Sequence[Sequence[tuple[np.ndarray, str]]], columns: int
) -> Image.Image:
    """A titled grid of blocks; a block is a row of pictures of one size (height, width, 3), with captions."""
    height, width = blocks[0][0][0].shape[:2]
    gap, caption, head = 6, 20, 34
    block_width = len(blocks[0]) * (width + gap) + 2 * gap
    rows = -(-len(blocks) // columns)
    sheet = Image.new("RGB", (columns * block_width, head + rows * (height + caption + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, head / 2), title, fill="black", font=ImageFont.load_default(size=20), anchor="lm")
    font = ImageFont.load_default(size=14)
    for number, block in enumerate(blocks):
        top = head + number // columns * (height + caption + gap)
        for place, (picture, label) in enumerate(block):
            left = number % columns * block_width + place * (width + gap)
            sheet.paste(Image.fromarray(picture), (left, top))
            draw.text(
                (left + width / 2, top + height + caption / 2), label, fill="black", font=font, anchor="mm"
            )
    return sheet


def write_sheets(
    out: Path,
    faces: Sequence[ValidationFace],
    requests: Sequence[Request],
    editors: Sequence[str],
    options: argparse.Namespace,
) -> int:
    """One or several sheets for each request; returns how many."""
    folder = out / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    backend, originals = None, {}
    count = 0
    for request in requests:
        per_sheet = options.rows * options.columns
        for page, part in enumerate(_batches(faces, per_sheet), start=1):
            blocks = []
            for face in part:
                path = out / "tiles" / ".originals" / face.name / f"{request.shows_brows:d}.png"
                if not path.is_file():
                    backend = backend or load_backend("mediapipe")
                    if face.name not in originals:
                        originals = {face.name: Looking.at(face.path, options.tile, backend)}
                    looking = originals[face.name]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(path, Image.fromarray(looking.tile(looking.photo.pixels, request)))
                block = [(_read(path), f"{face.name}, unedited")]
                for code, editor in blind_codes(request, face, editors, options.seed).items():
                    block.append((_read(tile_path(out, editor, face, request)), code))
                blocks.append(block)
            title = f"{request.number:02d}  {request.text}: {request.title}"
            sheet = contact_sheet(title, blocks, options.columns)
            _write(folder / f"{request.number:02d}-{page}.{options.format}", sheet)
            count += 1
    return count


def _batches(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# --- The key and the ratings ---


def read_key(out: Path) -> dict:
    """What `sheets` wrote; DatasetError where there is none."""
    path = out / "key.json"
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        key["tiles"] = [Tile(**tile) for tile in key["tiles"]]
    except FileNotFoundError as error:
        raise DatasetError(f"{out} has no key.json; make sheets first: jury.py sheets {out} ...") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is no key of a jury ({error}); make the sheets again") from error
    return key


def update_key(out: Path, tiles: Sequence[Tile], about: Mapping[str, object]) -> list[Tile]:
    """Joins tiles to the folder's key and writes it; all tiles, in the order of their codes.

    OutputError where the folder's sheets were made with other editors, weights, seed or size.
    """
    known: dict[str, Tile] = {}
    if (out / "key.json").exists():
        key = read_key(out)
        for name, value in about.items():
            if name not in ("command", "date", "hardware", "versions") and key.get(name) != value:
                raise OutputError(
                    f"{out} was made with {name} {_named(key.get(name))}, this run has {_named(value)}"
                    f"{', or other weights or code' if name == 'editors' else ''}; choose another folder"
                )
        known = {tile.code: tile for tile in key["tiles"]}
    known |= {tile.code: tile for tile in tiles}
    merged = [known[code] for code in sorted(known)]
    content = {**about, "tiles": [dataclasses.asdict(tile) for tile in merged]}
    with replacing(out / "key.json") as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    return merged


def _named(value: object) -> str:
    return ", ".join(sorted(value)) if isinstance(value, dict) else str(value)


def write_form(path: Path, tiles: Iterable[Tile]) -> None:
    """Adds a row for each picture that has none; rows that are there, filled in or not, stay as they are."""
    rows = _table_rows(path) if path.exists() else []
    known = {row.get("code") for row in rows}
    rows += [{"code": tile.code} for tile in tiles if tile.code not in known and not tile.error]
    with replacing(path) as file:
        lines = ["\t".join(COLUMNS)]
        lines += ["\t".join(row.get(column) or "" for column in COLUMNS) for row in rows]
        file.write(("\n".join(lines) + "\n").encode())


def _table_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV or TSV with the columns of a form; DatasetError where it cannot be read or lacks any."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the ratings {path}: {error}") from error
    delimiter = next((mark for mark in "\t;," if lines and mark in lines[0]), ",")
    reader = csv.DictReader(lines, delimiter=delimiter)
    if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
        raise DatasetError(
            f"{path} lacks the columns {', '.join(missing)}; its first line must be {' '.join(COLUMNS)}"
        )
    return list(reader)


def read_ratings(path: Path, tiles: Sequence[Tile], *, partial: bool = False) -> tuple[list[dict], list[str]]:
    """Rows of one juror, and what is wrong with the file, a line each.

    Args:
        tiles: the key; those with an error need no row and are rated 0.
        partial: pictures without a rating are left out, not reported.

    Returns:
        rows: the tile's fields, `rating` (0 to 3), `reads` ("yes", "half" or "no"), `preferred` (bool).
    """
    by_code = {tile.code: tile for tile in tiles}
    rows, problems, seen = [], [], set()
    for number, written in enumerate(_table_rows(path), start=2):
        where = f"{path.name} line {number}"
        code, rating, reads, preferred = ((written[name] or "").strip().lower() for name in COLUMNS)
        if code not in by_code:
            problems.append(f"{where}: unknown code {code!r}")
            continue
        if code in seen:
            problems.append(f"{where}: a second row of {code}")
            continue
        seen.add(code)
        if not rating and not reads and not preferred:
            if not partial:
                problems.append(f"{where}: {code} has no rating")
            continue
        wrong = _wrong_values(rating, reads, preferred)
        problems += [f"{where}: {code}: {reason}" for reason in wrong]
        if not wrong:
            row = dataclasses.asdict(by_code[code]) | {"juror": path.stem, "rating": float(rating)}
            rows.append(row | {"reads": reads, "preferred": preferred == "yes"})
    for tile in tiles:
        if tile.error:
            row = dataclasses.asdict(tile) | {"juror": path.stem, "rating": 0.0, "reads": "no"}
            rows.append(row | {"preferred": False})
        elif tile.code not in seen and not partial:
            problems.append(f"{path.name}: no row of {tile.code}")
    chosen = [(row["request"], row["face"]) for row in rows if row["preferred"]]
    for request, face in sorted({cell for cell in chosen if chosen.count(cell) > 1}):
        problems.append(f"{path.name}: two pictures of {face}, {request}, are preferred; choose one or none")
    return rows, problems


def _wrong_values(rating: str, reads: str, preferred: str) -> list[str]:
    wrong = []
    try:
        value = float(rating)
    except ValueError:
        wrong.append(f"the rating must be 0 to 3, got {rating!r}")
    else:
        if not 0 <= value <= 3:
            wrong.append(f"the rating must be 0 to 3, got {rating}")
    if reads not in READINGS:
        wrong.append(f"reads_as_intended must be yes, half or no, got {reads!r}")
    if preferred not in ("yes", "no", ""):
        wrong.append(f"preferred must be yes or empty, got {preferred!r}")
    return wrong


# --- The table ---


def summary_of(rows: Sequence[Mapping]) -> dict[str, dict]:
    """Group ("all", "openings" and so on) or request -> kind of face ("all" or one) -> editor -> figures."""
    names = [*GROUPS, *(r.text for r in REQUESTS)]
    asked = {"all": rows} | {
        name: part
        for name in names
        if (part := [row for row in rows if name in (row["group"], row["request"])])
    }
    return {
        name: {
            kind: figures_of(part)
            for kind in ("all", *KINDS)
            if (part := [row for row in found if kind in ("all", row["kind"])])
        }
        for name, found in asked.items()
    }


def figures_of(rows: Sequence[Mapping]) -> dict[str, dict]:
    """Editor -> n, mean rating, shares of 0 and of each reading, preference over each other editor.

    Preference counts cells of which one of the two pictures was preferred; `better` are cells whose ratings
    differ, the higher one counted.
    """
    cells: dict[tuple, dict[str, Mapping]] = {}
    for row in rows:
        cells.setdefault((row["juror"], row["request"], row["face"]), {})[row["editor"]] = row
    editors = sorted({row["editor"] for row in rows})
    figures = {}
    for editor in editors:
        own = [row for row in rows if row["editor"] == editor]
        readings = [row["reads"] for row in own]
        figures[editor] = {
            "n": len(own),
            "mean": round(statistics.mean(row["rating"] for row in own), 3),
            "share_0": round(sum(row["rating"] == 0 for row in own) / len(own), 4),
            "failed": sum(bool(row["error"]) for row in own),
            **{f"reads_{word}": round(readings.count(word) / len(own), 4) for word in READINGS},
            "over": {
                other: _against(editor, other, list(cells.values())) for other in editors if other != editor
            },
        }
    return figures


def _against(
    editor: str, other: str, cells: Sequence[Mapping[str, Mapping]]
) -> dict[str, float | int | None]:
    both = [(cell[editor], cell[other]) for cell in cells if editor in cell and other in cell]
    preferred = [a["preferred"] for a, b in both if a["preferred"] != b["preferred"]]
    better = [a["rating"] > b["rating"] for a, b in both if a["rating"] != b["rating"]]
    return {
        "cells": len(both),
        "chosen": len(preferred),
        "preferred": round(sum(preferred) / len(preferred), 4) if preferred else None,
        "differ": len(better),
        "better": round(sum(better) / len(better), 4) if better else None,
    }


def table_of(summary: Mapping[str, Mapping]) -> str:
    """Markdown: a row for each request and editor; London and synthetic faces beside all."""
    editors = list(summary["all"]["all"])
    lines = [
        "| request | editor | n | mean (London / synthetic) | rated 0 | reads yes | half | preferred |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for request, kinds in summary.items():
        for editor in editors:
            if editor not in kinds["all"]:
                continue
            found = kinds["all"][editor]
            apart = " / ".join(
                f"{kinds[kind][editor]['mean']:.2f}" if editor in kinds.get(kind, {}) else "-"
                for kind in KINDS
            )
            preferred = ", ".join(
                f"{against['preferred']:.0%} of {against['chosen']} over {other}"
                for other, against in found["over"].items()
                if against["chosen"]
            )
            lines.append(
                f"| {request} | {editor} | {found['n']} | {found['mean']:.2f} ({apart}) | "
                f"{found['share_0']:.1%} | {found['reads_yes']:.0%} | {found['reads_half']:.0%} | "
                f"{preferred} |"
            )
    return "\n".join(lines)


# --- Small requests ---


def small_rows(
    juror: Juror, faces: Sequence[ValidationFace], requests: Iterable[str], device: str | None
) -> list[dict]:
    """Mean absolute change of each small request in the mouth's box of each face, levels (0..255).

    `levels`: all of it. `painted`: what movement does not explain, after the picture before is moved by the
    optical flow between the two; ghosts of other mouths are that, and a moved edge is not.
    """
    editor, backend = open_editor(juror.spec, device=device), load_backend("mediapipe")
    rows = []
    for face in faces:
        looking = Looking.at(face.path, 1, backend)
        before = looking.photo.pixels
        box = mouth_box(looking.face, before.shape)
        for request in requests:
            after = np.asarray(editor(looking.photo, FACS.deltas(request), SEED))
            change = np.abs(after[box].astype(int) - before[box]).mean()
            painted = np.abs(after[box].astype(int) - moved_onto(before, after)[box]).mean()
            rows.append(
                {"editor": juror.name, "face": face.name, "kind": face.kind, "request": request}
                | {"levels": round(float(change), 4), "painted": round(float(painted), 4)}
            )
        print(f"{juror.name}: {face.name}", flush=True)
    return rows


def moved_onto(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the picture before, moved by the optical flow onto the one after; (height, width, 3) uint8."""
    grey = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (after, before))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    places = np.indices(flow.shape[:2], np.float32)[::-1].transpose(1, 2, 0) + flow
    return cv2.remap(before, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def small_summary(rows: Sequence[Mapping]) -> dict[str, dict[str, dict]]:
    """Editor -> request -> median and max over faces, how many exceed the limit, whether both limits hold."""
    found: dict[str, dict[str, dict]] = {}
    for editor, request in dict.fromkeys((row["editor"], row["request"]) for row in rows):
        own = [row for row in rows if (row["editor"], row["request"]) == (editor, request)]
        levels, painted = ([row[name] for row in own] for name in ("levels", "painted"))
        median_limit, limit = SMALL[request]
        median = statistics.median(levels)
        found.setdefault(editor, {})[request] = {
            "n": len(levels),
            "median": round(median, 3),
            "max": max(levels),
            "worst_face": max(own, key=lambda row: row["levels"])["face"],
            "painted_median": round(statistics.median(painted), 3),
            "painted_max": max(painted),
            "limit": limit,
            "over_limit": sum(value >= limit for value in levels),
            "median_limit": median_limit,
            "reached": max(levels) < limit and (median_limit is None or median < median_limit),
        }
    return found


def small_table(summary: Mapping[str, Mapping[str, Mapping]]) -> str:
    """Markdown."""
    lines = [
        "| editor | request | median | max (face) | painted: median, max | faces over the limit | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for editor, requests in summary.items():
        for request, row in requests.items():
            lines.append(
                f"| {editor} | {request} | {row['median']:.2f} | {row['max']:.2f} ({row['worst_face']}) | "
                f"{row['painted_median']:.2f}, {row['painted_max']:.2f} | "
                f"{row['over_limit']} of {row['n']} over {row['limit']:g} | "
                f"{'yes' if row['reached'] else 'no'} |"
            )
    return "\n".join(lines)


# --- Commands ---


def run_edit(args: argparse.Namespace) -> None:
    faces = chosen_faces(validation_faces(args.photographs), args.faces)
    for juror in jurors(args.editor):
        make_tiles(args.out, juror, faces, chosen_requests(args.requests), args.tile, args.device)


def run_sheets(args: argparse.Namespace) -> None:
    # 1. The pictures; a folder of other editors ends the run before anything is edited
    entrants = jurors(args.editor)
    names = [*(juror.name for juror in entrants), *args.made]
    if not names or len(set(names)) < len(names):
        raise MagicEditError(
            f"name each editor once, by --editor or --made, got {', '.join(names) or 'none'}"
        )
    faces = chosen_faces(validation_faces(args.photographs), args.faces)
    requests = chosen_requests(args.requests)
    editors = {juror.name: juror.about(args.tile) for juror in entrants}
    for name in args.made:
        made = made_by(args.out, name)
        if made is None or made["side"] != args.tile:
            raise DatasetError(f"{args.out} has no pictures of {name} of {args.tile} px; run `jury.py edit`")
        editors[name] = made
    about = {**circumstances(), "editors": editors, "seed": args.seed}
    args.out.mkdir(parents=True, exist_ok=True)
    update_key(args.out, [], about)
    for juror in entrants:
        make_tiles(args.out, juror, faces, requests, args.tile, args.device)

    # 2. The key, the sheets, the form
    tiles = [
        Tile(code, editor, face.name, face.kind, request.text, request.group,
             failure(args.out, editor, face, request))
        for request in requests
        for face in faces
        for code, editor in blind_codes(request, face, names, args.seed).items()
    ]  # fmt: skip
    everything = update_key(args.out, tiles, about)
    count = write_sheets(args.out, faces, requests, names, args)
    write_form(args.out / "ratings.tsv", everything)
    lost = sum(bool(tile.error) for tile in tiles)
    print(
        f"{count} sheets in {args.out / 'sheets'}; "
        f"{len(tiles) - lost} pictures to rate in {args.out / 'ratings.tsv'}"
    )
    if lost:
        print(f"{lost} edits failed and count as rated 0; their reasons stand in {args.out / 'key.json'}")


def run_table(args: argparse.Namespace) -> None:
    key = read_key(args.out)
    rows, problems = [], []
    for path in args.ratings or [args.out / "ratings.tsv"]:
        found, wrong = read_ratings(path, key["tiles"], partial=args.partial)
        rows, problems = rows + found, problems + wrong
    if problems:
        raise DatasetError("\n".join(problems))
    if not any(not row["error"] for row in rows):
        raise DatasetError("no picture is rated; fill in the ratings")
    summary = summary_of(rows)
    result = {
        **circumstances(),
        "editors": key["editors"],
        "sheets_made": {name: key[name] for name in ("command", "date")},
        "summary": summary,
        "rows": rows,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table_of(summary))


def run_small(args: argparse.Namespace) -> None:
    faces = chosen_faces(validation_faces(args.photographs), args.faces)
    entrants = jurors(args.editor)
    rows = [row for juror in entrants for row in small_rows(juror, faces, SMALL, args.device)]
    summary = small_summary(rows)
    editors = {juror.name: fingerprint(juror.spec) for juror in entrants}
    result = {**circumstances(), "editors": editors, "summary": summary, "rows": rows}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(small_table(summary))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sheets = commands.add_parser("sheets", help="edit the faces and write contact sheets")
    edit = commands.add_parser("edit", help="only edit, for sheets that another checkout completes")
    small = commands.add_parser("small", help="measure what small requests change around the mouth")
    for command in (sheets, edit):
        command.add_argument("out", type=Path, metavar="OUT", help="folder to write")
        command.add_argument(
            "--requests",
            metavar="A;B",
            help="only these, joined by semicolons; openings and others are groups",
        )
        command.add_argument("--tile", type=int, default=256, metavar="PX", help="side of a picture (256)")
    for command in (sheets, edit, small):
        command.add_argument(
            "--editor",
            action="append",
            required=command is not sheets,
            default=None if command is not sheets else [],
            metavar="EDITOR",
            help="whom to judge; several: again",
        )
        command.add_argument(
            "--faces", metavar="A,B", help="only these, joined by commas; london and synthetic are groups"
        )
        command.add_argument("--photographs", type=Path, default=PHOTOGRAPHS, help="folder of the faces")
        command.add_argument("--device", metavar="D", help="of models: cpu, cuda, mps (the best present)")
    sheets.add_argument(
        "--made", action="append", default=[], metavar="NAME", help="an editor that `edit` ran in OUT"
    )
    sheets.add_argument("--seed", type=int, default=0, help="of the order in which editors are shown (0)")
    sheets.add_argument("--columns", type=int, default=1, help="faces beside each other on a sheet (1)")
    sheets.add_argument("--rows", type=int, default=6, help="rows of faces on a sheet (6)")
    sheets.add_argument("--format", choices=("png", "jpg"), default="png", help="of the sheets (png)")
    small.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("jury_small.json"))
    sheets.set_defaults(run=run_sheets)
    edit.set_defaults(run=run_edit)
    small.set_defaults(run=run_small)
    table = commands.add_parser("table", help="print the table of filled-in ratings")
    table.add_argument("out", type=Path, metavar="OUT", help="a folder of `sheets`")
    table.add_argument(
        "--ratings", type=Path, action="append", help="one file a juror (OUT/ratings.tsv); several: again"
    )
    table.add_argument("--partial", action="store_true", help="leave pictures without a rating out")
    table.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    table.set_defaults(run=run_table)
    return parser


def main() -> int:
    args = make_parser().parse_args()
    try:
        args.run(args)
    except MagicEditError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
