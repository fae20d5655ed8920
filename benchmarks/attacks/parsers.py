"""Texts and tables that are malformed in seeded ways: every parser gives a value or a typed error."""

import contextlib
import io
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from attacks import Attack, typed
from magicedit.action_units import NAMES, parse_emotion, parse_regions
from magicedit.batch.rows import rows_of_manifest
from magicedit.data.identities import read_identities
from magicedit.data.labels import match_frames, read_label_file
from magicedit.evaluation.protocol import load_protocol
from magicedit.expression import Expression
from magicedit.hub.results import read_results
from magicedit.models.folder import ModelFolder
from magicedit.request import EditRequest
from magicedit.train.config import parse_config
from magicedit.video.curves import Curve

TITLE = "Parser fuzz (AUs, CSV, YAML, curves, manifests)"
EACH = 800  # of each parser in the long form
TOKENS = (
    *("", " ", "\t", "\n", "\r", "\0", "\ufeff", "\u2028", "\udcff", "é", "é", "١٢", "²", "½", "Ⅻ", "🙂"),
    *("nan", "inf", "-inf", "1e999", "-0", "1_0", "0x10", "+", "-", "--", "1e-400", "9" * 30, "9" * 5000),
    *(
        "=",
        "==",
        ",",
        ",,",
        ";",
        ":",
        "::",
        '"',
        "'",
        '"""',
        "#",
        "&a",
        "*a",
        "!!python/object",
        "{",
        "}",
        "[",
        "]",
    ),
    *(
        "AU12",
        "au012l",
        "AU99",
        "AU" + "9" * 5000,
        "AU12LR",
        "AU12_r",
        "AU12_c",
        "gaze_yaw",
        "L",
        "R",
        "AU",
        "12",
    ),
    *(
        "true",
        "null",
        "~",
        "2020-13-45",
        "<<",
        "- ",
        "? ",
        "|",
        ">",
        "../",
        "/dev/zero",
        "\\",
        "%s",
        "${HOME}",
    ),
    *("x" * 300, "x" * 20_000, "=" * 2000, "," * 2000, "[" * 3000, "{a: " * 300, "\n" * 2000, "a\n" * 500),
)

UNITS = "AU12=+3,AU4=-1.5,AU1L=2, au 25 = .5"
TABLE = (
    "photo,frame,time,AU01_r,AU12_r,AU04_r,AU12_c,confidence\n"
    "a.png,1,0.0,0.5,3,1.2,1,0.98\nb/c.png,2,0.5,0,4.9,0,0,0.9\n"
)
OURS = "photo,time,AU12,AU4,AU1L\na.png,0,3,1,0.5\nb.png,1.5,4,0,1\nc.png,2.5,0,0,0\n"
GERMAN = "photo;time;AU12;AU4\na.png;0;3,5;1\nb.png;1,5;4;0\n"
SHAPES = "timestamp,mouthSmileLeft,mouthSmileRight,jawOpen,browInnerUp\n0,0.5,0.6,0.1,0\n33,0.2,0.1,0.9,1\n"
FRAMES = "frame, timestamp, success, AU12_r\n1, 0.0, 1, 0.5\n2, 0.04, 0, 0\n31, 1.2, 1, 3\n"
WHO = "file,identity\nann/1.jpg,ann\nb.mp4,Jürgen\n"
MANIFEST = (
    "photo,output,au,set,emotion,seed,face,strength,steps\n"
    "a.png,x/a.png,AU12=+3,,,1,all,1,4\nb.png,,,AU4=2,surprise:0.5,2,0,,\n"
)
EXPRESSION = (
    "magicedit: expression/1\nkind: intensities\naction_units:\n  AU12: 3\n  AU1L: 0.5\n"
    "source: a face\nmodel: mini\n"
)
PROTOCOL = (
    "name: smiles\nversion: 1\ntitle: Smiles\ndescription: Two\nidentities: 1\naction_units: [AU12, AU4]\n"
    "levels: {values: [-2, 2]}\n"
)
CONFIG = (
    "train_data_dir: data\noutput_dir: run\nresolution: 64\nlearning_rate: 1e-4\n"
    "max_train_steps: 5\nseed: 3\n"
)
INDEX = (
    '{"_class_name": "MagicEditPipeline", "resolution": 128, "action_units": "AU12,smile", '
    '"controls": [{"name": "smile", "kind": "attribute", "range": [-5, 5], "has_sides": true}], '
    '"unet": ["diffusers", "UNet2DConditionModel"]}'
)
SUMMARY = (
    '{"editors": {"mini": {"status": "ran", "edits": 3, "failed": 0, "headline": {"achieved/a": '
    '{"mean": 0.5, "low": 0.4, "high": 0.6}}, "control": {"a": {"AU12": {"levels": [{"asked": 1, "mean": 1, '
    '"low": 0, "high": 2}]}}}, "settings": {}}}, '
    '"circumstances": {"date": "x", "command": "x", "hardware": {"cpu": "x"}}, '
    '"protocol": {"name": "x", "title": "X"}, "people": 1, "scorers": {}}'
)


def _file(name: str, parse: Callable[[Path], object]) -> Callable[[Path, str], object]:
    """A parser of files as one of texts; a byte that is no text is written as it is."""

    def run(folder: Path, text: str) -> object:
        path = folder / name
        path.write_bytes(_encoded(text))
        return parse(path)

    return run


def _without(table: str, *columns: str) -> str:
    """A table without these columns."""
    delimiter = ";" if ";" in table else ","
    rows = [line.split(delimiter) for line in table.splitlines()]
    kept = [place for place, name in enumerate(rows[0]) if name not in columns]
    return "".join(delimiter.join(row[place] for place in kept) + "\n" for row in rows)


def _encoded(text: str) -> bytes:
    """UTF-8 mostly; texts of some lengths in the encodings of other programs."""
    kind = {3: "utf-16", 5: "utf-8-sig", 7: "cp1252"}.get(len(text) % 23, "utf-8")
    return text.encode(kind, "surrogateescape" if kind == "utf-8" else "replace")


def _manifest(path: Path) -> object:
    request = EditRequest()
    return rows_of_manifest(path, path.parent / "out", request, None, NAMES)


def _model(path: Path) -> object:
    folder = ModelFolder.find(path.parent)
    with contextlib.suppress(OSError):
        path.rename(path.parent / "model_index.json")
    return folder.action_units, folder.editable, folder.pipeline_class(), folder.fingerprint


def _config(path: Path) -> object:
    with contextlib.redirect_stderr(io.StringIO()):  # argparse prints what is wrong, and exits with 2
        try:
            return parse_config(["--config", str(path)])
        except SystemExit as end:
            if end.code != 2:
                raise
    return None


def _mapping(folder: Path, text: str) -> object:
    """Values of every type, picked by the text."""
    random_ = random.Random(repr(text))
    values = (10**5000, float("nan"), True, None, [], b"1", text, 3, -7.5, object(), 1j)
    names = ("AU12", "AU4", text, 5, None, ("AU12",))
    spec = {random_.choice(names): random_.choice(values) for _ in range(random_.randrange(1, 4))}
    which = random_.choice(("add", "set", "emotion", "steps", "seed", "face", "strength", "references"))
    return EditRequest(**{which: spec if random_.random() < 0.5 else random_.choice(values)})


def _frames(path: Path) -> object:
    labels = read_label_file(path, scale=5, videos=True).frames
    return [match_frames(frames, [(0, 0.0), (1, 0.04), (30, 1.2)]) for frames in labels.values()]


# name -> (parser of a text, texts that are right)
PARSERS: dict[str, tuple[Callable[[Path, str], object], Sequence[str]]] = {
    "added": (lambda folder, text: EditRequest(add=text), (UNITS,)),
    "set": (lambda folder, text: EditRequest(set=text), ("AU12=3,AU4=1,gaze_yaw=-5",)),
    "emotion": (lambda folder, text: parse_emotion(text), ("happiness:0.8", "aaa", "fear:1.25")),
    "regions": (lambda folder, text: parse_regions(text), ("eyes,brows", "mouth")),
    "mapping": (_mapping, ("AU12",)),
    "expression of a table": (_file("a.csv", Expression.from_csv), (TABLE, OURS, GERMAN, SHAPES)),
    "expression by name": (lambda folder, text: Expression.read(text), ("a.csv:3", "a.yaml")),
    "expression": (_file("a.yaml", Expression.load), (EXPRESSION,)),
    "curve": (
        _file("a.csv", Curve.from_csv),
        (TABLE, *(_without(text, "photo") for text in (OURS, GERMAN)), SHAPES),
    ),
    "keys": (lambda folder, text: Curve.from_keys(text.split("|")), ("0:AU12=0|1.5:AU12=+3,AU4=-1",)),
    "labels": (
        _file("labels.csv", partial(read_label_file, scale=5)),
        [_without(text, "frame", "time").replace("photo", "input") for text in (TABLE, OURS, GERMAN)],
    ),
    "labels of frames": (_file("film.csv", _frames), (TABLE, GERMAN, FRAMES)),
    "identities": (_file("who.csv", read_identities), (WHO, WHO.replace(",", ";"))),
    "manifest": (_file("a.csv", _manifest), (MANIFEST, MANIFEST.replace(",", ";"))),
    "protocol": (_file("a.yaml", load_protocol), (PROTOCOL,)),
    "training": (_file("a.yaml", _config), (CONFIG,)),
    "model": (_file("index.json", _model), (INDEX,)),
    "report": (_file("summary.json", read_results), (SUMMARY,)),
}


def attacks(seed: int, short: bool) -> list[Attack]:
    random_ = random.Random(seed)
    return [
        Attack(f"{name} {number}", partial(_check, name, random_.getrandbits(64)), 5, 500)
        for name in PARSERS
        for number in range(25 if short else EACH)
    ]


def _check(name: str, seed: int, folder: Path) -> str | None:
    parse, texts = PARSERS[name]
    random_ = random.Random(seed)
    text = mutated(random_.choice(texts), random_)
    problem = typed(lambda: parse(folder, text))
    return problem and f"{problem} <- {text[:200]!r}"


def mutated(text: str, random_: random.Random) -> str:
    """A text with one to six changes: tokens put in, parts lost, doubled, moved or replaced."""
    for _ in range(random_.choice((1, 1, 2, 3, 6))):
        place, other = random_.randrange(len(text) + 1), random_.randrange(len(text) + 1)
        end = min(len(text), place + random_.choice((1, 1, 2, 5, 20)))
        token = random_.choice(TOKENS)
        match random_.randrange(6):
            case 0:
                text = text[:place] + token + text[place:]
            case 1:
                text = text[:place] + token + text[end:]
            case 2:
                text = text[:place] + text[end:]
            case 3:
                text = text[:place] + text[place:end] * random_.choice((2, 100)) + text[end:]
            case 4:
                text = text[:place] + text[other : other + 10] + text[place:]
            case 5:
                text = token if random_.random() < 0.2 else text[:place]
    return text
