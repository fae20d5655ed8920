"""Tables of action units as tools, spreadsheets and people write them: the right values, or a typed error."""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attacks import Attack, typed
from magicedit.data.labels import read_label_file
from magicedit.errors import ActionUnitError, DatasetError, MagicEditError
from magicedit.expression import Expression
from magicedit.tables import read_table
from magicedit.video import Curve

TITLE = "Tables of action units (values, or a typed error)"

UNITS = (1, 2, 4, 6, 12, 25)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")
WAYS = [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), ("|", ",")]  # separator, decimal mark
MISSING = ("", "nan", "-nan(ind)", "1.#QNAN", "NA", "FIT_FAILED", "FIND_FAILED", "Unknown")
AFFDEX = dict(
    zip(
        UNITS,
        ("Inner Brow Raise", "Brow Raise", "Brow Furrow", "Cheek Raise", "Smile", "Mouth Open"),
        strict=True,
    )
)
ARKIT = {1: ("browInnerUp",), 12: ("mouthSmileLeft", "mouthSmileRight"), 26: ("jawOpen",)}

Levels = Mapping[int, float]  # action unit -> intensity 0 to 5


class Writer:
    """Writes rows of one photograph or moment each in the way of a tool.

    columns: action unit -> header. scale: number of full intensity. extra: further columns and their cells.
    above: lines above the header.
    """

    def __init__(
        self,
        columns: Mapping[int, str],
        scale: float,
        extra: Mapping[str, str],
        name: str = "input",
        time: str = "timestamp",
        above: str = "",
        letters: bool = False,
    ):
        self.columns, self.scale, self.extra = columns, scale, extra
        self.name, self.time, self.above, self.letters = name, time, above, letters

    def cell(self, level: float, mark: str) -> str:
        if self.letters:
            return "NotActive" if level == 0 else "ABCDE"[round(level) - 1]
        return f"{level / 5 * self.scale:.4f}".replace(".", mark)

    def text(
        self,
        rows: Sequence[tuple[str, str, Levels | None]],
        separator: str,
        mark: str,
        word: str,
        eol: str = "\n",
        spaced: bool = False,
    ) -> str:
        """rows: name, time, levels (None: the tool found no face, and writes `word`)."""
        glue = separator + (" " if spaced else "")

        def line(cells: Sequence[str]) -> str:
            return glue.join(f'"{cell}"' if separator in cell else cell for cell in cells) + eol

        header = [self.name, self.time, *self.extra, *self.columns.values()]
        text = self.above.replace(",", separator).replace("\n", eol) + line(header)
        for name, time, levels in rows:
            cells = [word if levels is None else self.cell(levels[unit], mark) for unit in self.columns]
            extra = [cell.replace(".", mark) for cell in self.extra.values()]
            text += line([name, time.replace(".", mark), *extra, *cells])
        return text


def _writers() -> dict[str, Writer]:
    openface = {"confidence": "0.98", "x_0": "100.0", "x_16": "200.0"} | {
        f"AU{u:02}_c": "1.00" for u in UNITS
    }
    feat = {
        "FaceRectX": "1",
        "FaceRectWidth": "50",
        "FaceRectHeight": "50",
        "FaceScore": "0.9",
        "anger": "0.1",
    }
    shown = {"Happy": "0.9"}
    named = {u: f"Action Unit {u:02} - Some Muscle" for u in UNITS}
    log = "Video analysis detailed log\nFace Model:,General\n\n"
    libre = {"yaw": "2.0"} | {f"au_{u}": "1" for u in (*UNITS, 14, 23)}
    affdex, study = {"EventSource": "AFFDEX", "Joy": "98.2"}, "#INFO,,\n#Study name,Demo,\n#DATA,,\n"
    return {
        "OpenFace": Writer({u: f"AU{u:02}_r" for u in UNITS}, 5, openface, "filename"),
        "py-feat": Writer({u: f"AU{u:02}" for u in UNITS}, 1, feat),
        "LibreFace": Writer(
            {u: f"au_{u}_intensity" for u in UNITS}, 5, libre, "image_path", "frame_time_in_ms"
        ),
        "FaceReader": Writer(named, 1, shown, "Image", "Video Time", log),
        "FaceReader letters": Writer(named, 1, shown, "Filename", "Video Time", letters=True),
        "Affdex": Writer(AFFDEX, 100, affdex, "filename", "Timestamp", study),
    }


def _levels(random_: random.Random, letters: bool) -> Levels:
    levels = {u: float(random_.randint(0, 5)) if letters else round(random_.uniform(0, 5), 2) for u in UNITS}
    return levels | {12: 4.0}  # above 1 in any scale but 0 to 1


def _written(folder: Path, text: str, encoding: str) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def _differs(found: Mapping[str, float], levels: Levels) -> str | None:
    expected = {f"AU{unit}": value for unit, value in levels.items()}
    if found.keys() != expected.keys() or any(abs(found[n] - v) > 0.01 for n, v in expected.items()):
        return f"expected {expected}, read {dict(found)}"
    return None


def _labels(folder: Path, tool: str, way: tuple[str, str], encoding: str, seed: int) -> str | None:
    """Named photographs, rows without a face or a name among them."""
    draw, writer = random.Random(seed), _writers()[tool]
    levels = [_levels(draw, writer.letters) for _ in range(3)]
    word = draw.choice(MISSING)
    rows = [("ann/1.jpg", "0", levels[0]), ("ann/2.jpg", "0", None), ("", "0", levels[2]),
            ("gr\u00fcn, blau.jpg", "0", levels[1])]  # fmt: skip
    text = writer.text(rows, *way, word, draw.choice(("\n", "\r\n")), draw.random() < 0.5)
    found = read_label_file(_written(folder, text, encoding)).intensities
    if found.keys() != {"ann/1.jpg", "gr\u00fcn, blau.jpg"}:
        return f"labels of {sorted(found)}"
    return _differs(found["ann/1.jpg"], levels[0]) or _differs(found["gr\u00fcn, blau.jpg"], levels[1])


def _expression(folder: Path, tool: str, way: tuple[str, str], encoding: str, seed: int) -> str | None:
    draw, writer = random.Random(seed), _writers()[tool]
    levels = _levels(draw, writer.letters)
    path = _written(folder, writer.text([("", "0", None), ("a", "1", levels)], *way, "nan"), encoding)
    try:
        return f"a row without a face is {Expression.from_csv(path, 0)}"
    except ActionUnitError as error:
        if "no face" not in str(error):
            return str(error)
    return _differs(Expression.from_csv(path, 1).values, levels)


def _curve(folder: Path, tool: str, way: tuple[str, str], encoding: str, seed: int) -> str | None:
    """Rows of a video, not in order."""
    draw, writer = random.Random(seed), _writers()[tool]
    levels = [_levels(draw, writer.letters) for _ in range(4)]
    seconds = [0.04 * index for index in range(4)]
    if tool in ("LibreFace", "Affdex"):
        times = [f"{1000 * time:.1f}" for time in seconds]
    elif writer.time == "Video Time":
        times = [f"00:00:00.{round(1000 * time):03}" for time in seconds]
    else:
        times = [f"{time:.3f}" for time in seconds]
    rows = [("a", time, level) for time, level in zip(times, levels, strict=True)] + [("a", "9", None)]
    draw.shuffle(rows)
    curve = Curve.from_csv(_written(folder, writer.text(rows, *way, "nan"), encoding))
    if len(curve.times) != 4 or abs(curve.times - seconds).max() > 1e-6:
        return f"times {curve.times.tolist()}"
    return next(
        (said for t, level in zip(seconds, levels, strict=True) if (said := _differs(curve.at(t), level))),
        None,
    )


def _live_link(folder: Path, rate: int, start: int) -> str | None:
    """Timecodes, the smile rising by a tenth a frame, over the end of a second."""
    lines = ["Timecode,BlendShapeCount,MouthSmileLeft,MouthSmileRight,JawOpen,BrowInnerUp,HeadYaw"]
    for index in range(8):
        frame = start + index
        code = f"23:59:{59 if frame < rate else 0:02}:{frame % rate:02}.000"
        code = code if frame < rate else code.replace("23:59", "00:00")
        lines.append(f"{code},61,{index / 10},{index / 10},0.5,0.1,-0.3")
    curve = Curve.from_csv(_written(folder, "\n".join(lines) + "\n", "utf-8"))
    if abs(curve.times * rate - range(8)).max() > 1e-3:
        return f"times {curve.times.tolist()} of {rate} frames a second"
    return _differs({n: curve.at(3 / rate)[n] for n in ("AU1", "AU12", "AU26")}, {1: 0.5, 12: 1.5, 26: 2.5})


def _faces(folder: Path, tool: str, seed: int) -> str | None:
    """Several faces a photograph: the largest counts."""
    draw = random.Random(seed)
    sizes = draw.sample(range(20, 200), 4)
    values = [draw.randint(1, 9) / 10 for _ in sizes]
    if tool == "py-feat":
        header, row, scale = "FaceRectWidth,FaceRectHeight,FaceScore,AU12,input", "{0},{0},0.9,{1},a.jpg", 5
    else:
        header, row, scale = (
            "filename, face, confidence, success, x_0, x_16, AU12_r",
            "a.jpg,0,0.9,1,5,{0},{1}",
            1,
        )
    rows = [row.format(size, value) for size, value in zip(sizes, values, strict=True)]
    path = _written(folder, "\n".join([header, *rows]), "utf-8")
    return _differs(read_label_file(path).intensities["a.jpg"], {12: scale * values[sizes.index(max(sizes))]})


def _refused(read: Callable[[Path], object], text: bytes, said: str, folder: Path) -> str | None:
    path = folder / "table.csv"
    path.write_bytes(text)
    try:
        return f"read: {read(path)}"
    except MagicEditError as error:
        return None if said in str(error) else f"expected {said!r} in: {error}"


REFUSED = {  # name -> reader, content, what the error says
    "LibreFace 0-1, labels": (read_label_file, b"input,au_12_intensity\na,0.8\nb,0.1\n", "0-1 may be meant"),
    "LibreFace 0-1, expression": (Expression.from_csv, b"input,au_12_intensity\na,0.8\n", "0-1 may be meant"),
    "LibreFace 0-1, curve": (Curve.from_csv, b"timestamp,au_12_intensity\n0,0.8\n", "0-1 may be meant"),
    "Affdex 0-1": (Expression.from_csv, b"Smile,Brow Furrow\n0.9,0.1\n", "0-1 may be meant"),
    "py-feat 0-5": (read_label_file, b"FaceScore,input,AU12\n0.9,a,3\n", "outside the scale 0-1"),
    "OpenFace 0-100": (read_label_file, b"filename,AU12_r\na,60\n", "outside the scale 0-5"),
    "ARKit 0-100": (Expression.from_csv, b"mouthSmileLeft,mouthSmileRight\n60,60\n", "outside the scale 0-1"),
    "no scale": (read_label_file, b"filename,AU12\na,0.5\n", "--labels-scale"),
    "presence only": (read_label_file, b"filename,AU12_c,AU25_c\na,1,1\n", "presence only"),
    "presence only of LibreFace": (read_label_file, b"filename,au_12\na,1\n", "presence only"),
    "frames without names": (read_label_file, b"frame,timestamp,AU12_r\n1,0,1\n2,1,2\n", "frames of a video"),
    "cp1252": (read_table, "photo,AU12\nann/J\u00fcrgen.jpg,-2\n".encode("cp1252"), "save it as UTF-8"),
    "shift-jis": (read_table, "photo,AU12\n\u65e5\u672c.jpg,-2\n".encode("shift-jis"), "save it as UTF-8"),
    "half a character of UTF-16": (read_table, "photo,AU12\n".encode("utf-16") + b"a", "no text in UTF-16"),
    "thousands": (read_label_file, b'filename,AU12_r\na,"1,500"\n', "expected a number"),
    "5000 digits": (read_label_file, b"filename,AU12_r\na," + b"9" * 5000 + b"\n", "expected a"),
    "infinite": (Expression.from_csv, b"AU12_r\n1e999\n", "expected a finite number"),
    "NUL": (read_table, b"a,b\n\0,1\n", "zero bytes"),
    "two columns of one unit": (Expression.from_csv, b"AU12_r,AU012_r\n1,2\n", "two columns for AU12"),
    "times that descend": (Curve.from_csv, b"time,AU12\n2,1\n1,1\n", "sort them"),
    "a time that is none": (Curve.from_csv, b"time,AU12\n1:x,1\n", "expected a number"),
    "no face in any row": (Curve.from_csv, b"timestamp,success,AU12_r\n0,0,1\n", "no row holds a face"),
}  # fmt: skip


def _fuzz(folder: Path, seed: int, count: int) -> str | None:
    """Mutations of good tables, through every reader."""
    draw, path = random.Random(seed), folder / "table.csv"
    for _ in range(count):
        writer = draw.choice(list(_writers().values()))
        rows = [
            ("a", "0", _levels(draw, writer.letters)),
            ("b", "1", None),
            ("c", "2", _levels(draw, writer.letters)),
        ]
        content = bytearray(
            writer.text(rows, *draw.choice(WAYS), draw.choice(MISSING)).encode(draw.choice(ENCODINGS))
        )
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(content))
            kind = draw.randrange(4)
            if kind == 0:
                content[at] = draw.randrange(256)
            elif kind == 1:
                content[at:at] = draw.choice(
                    (b"\0", b'"', b"\r", b",", b"9" * 500, b"\xff", b":", b"-", b"AU12_r,")
                )
            elif kind == 2:
                del content[at : at + draw.randint(1, 30)]
            else:
                content[at:at] = content[: draw.randrange(len(content))]
            content = content or bytearray(b"x")
        path.write_bytes(bytes(content))
        for read in (
            read_table,
            read_label_file,
            Curve.from_csv,
            functools.partial(Expression.from_csv, row=draw.randrange(3)),
        ):
            if said := typed(functools.partial(read, path)):
                return f"{said}; the table is {bytes(content)[:300]!r}"
    return None


def attacks(seed: int, short: bool) -> list[Attack]:
    draw = random.Random(seed)
    found = []
    for tool in _writers():
        for kind, check in (("labels", _labels), ("expression", _expression), ("curve", _curve)):
            for way in [draw.choice(WAYS)] if short else WAYS:
                encoding = draw.choice(ENCODINGS)
                call = functools.partial(
                    check, tool=tool, way=way, encoding=encoding, seed=draw.randrange(2**32)
                )
                found.append(Attack(f"{kind} of {tool}, {way[0]!r}, 1{way[1]}5, {encoding}", call))
    for rate in (24, 25, 30, 50, 60):
        found.append(
            Attack(
                f"Live Link Face, {rate} frames/s", functools.partial(_live_link, rate=rate, start=rate - 4)
            )
        )
    for tool in ("OpenFace", "py-feat"):
        found.append(
            Attack(
                f"several faces of {tool}", functools.partial(_faces, tool=tool, seed=draw.randrange(2**32))
            )
        )
    for name, (read, text, said) in REFUSED.items():
        read = functools.partial(read, error=DatasetError) if read is read_table else read
        found.append(Attack(f"refused: {name}", functools.partial(_refused, read, text, said)))
    for index in range(2 if short else 20):
        found.append(
            Attack(
                f"mutations {index}",
                functools.partial(_fuzz, seed=draw.randrange(2**32), count=20 if short else 200),
                60,
            )
        )
    return found
