"""Who is who by dlib's descriptor: purity and completeness by threshold on faces of known people, and speed.

    python benchmarks/identities.py faces FACES    # rows by threshold
    python benchmarks/identities.py scale          # 100,000 descriptors

Each writes its part of identities.json. `faces`: of each photograph a second one is made as a film would show
it: the face 80 px wide, darker or brighter by a gamma of 0.6 or 1.6, JPEG at quality 40. `synthetic` are
portraits of nobody, each a person of their own. purity: share of photographs in a group that are of the
person most frequent there; completeness: share of the pairs of one person's photographs that are in one
group; mixed: groups of several people.
"""

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from machine import circumstances
from tqdm.auto import tqdm

from magicedit.data.identities import SAME_PERSON, cluster
from magicedit.faces import Face, load_backend
from magicedit.faces.identity import identity_descriptor
from magicedit.imaging import open_photo

RESULTS = Path(__file__).with_suffix(".json")
THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
FILMED_WIDTH, FILMED_QUALITY, GAMMAS = 80, 40, (0.6, 1.6)  # px of the face, of JPEG
ITEMS = 100_000


def agreement(groups: Sequence[int], people: Sequence[str]) -> dict[str, float]:
    """Returns purity and completeness of groups of photographs of known people."""
    members: dict[int, Counter] = {}
    for group, person in zip(groups, people, strict=True):
        members.setdefault(group, Counter())[person] += 1
    pairs = sum(n * (n - 1) // 2 for n in Counter(people).values())
    joined = sum(n * (n - 1) // 2 for counts in members.values() for n in counts.values())
    purest = sum(max(counts.values()) for counts in members.values())
    return {"purity": round(purest / len(people), 4), "completeness": round(joined / max(pairs, 1), 4)}


def filmed(pixels: np.ndarray, face: Face, gamma: float) -> np.ndarray:
    """Returns a photograph (height, width, 3) uint8 RGB as a film of small faces would show it."""
    scale = FILMED_WIDTH / (face.box[2] - face.box[0])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    toned = np.rint(255 * (small / 255.0) ** gamma).astype(np.uint8)
    _, code = cv2.imencode(".jpg", toned, [cv2.IMWRITE_JPEG_QUALITY, FILMED_QUALITY])
    return cv2.imdecode(code, cv2.IMREAD_COLOR)


def people_in(folder: Path) -> list[tuple[Path, str]]:
    """Returns photographs and whose they are, real people first."""
    return [
        *((path, f"london/{path.parent.name}") for path in sorted(folder.glob("london/*/*.jpg"))),
        *((path, f"canada/{path.stem}") for path in sorted(folder.glob("canada/*.jpg"))),
        *((path, "lisa") for path in sorted(folder.glob("lisa/*.jpg"))),
        *((path, f"synthetic/{path.stem}") for path in sorted(folder.glob("synthetic/*/*.jpg"))),
    ]


def measure_faces(folder: Path) -> dict:
    backend = load_backend()
    descriptors, people, unseen = [], [], 0
    for number, (path, person) in enumerate(tqdm(people_in(folder))):
        pixels = open_photo(path).pixels
        face = backend.detect(pixels)[0]
        film = filmed(pixels, face, GAMMAS[number % 2])
        for picture, found in ((pixels, [face]), (film, backend.detect(film))):
            if found:
                descriptors.append(identity_descriptor(picture, found[0]))
                people.append(person)
            unseen += not found
    descriptors, real = np.stack(descriptors), [not person.startswith("synthetic") for person in people]
    rows = []
    for name, used in (("real people", np.array(real)), ("with synthetic people", np.ones(len(real), bool))):
        whose = [person for person, wanted in zip(people, used, strict=True) if wanted]
        for threshold in THRESHOLDS:
            groups = cluster(descriptors[used], threshold).tolist()
            mixed = Counter(group for group, _ in set(zip(groups, whose, strict=True)))
            rows.append(
                {
                    "faces": name,
                    "photographs": len(whose),
                    "people": len(set(whose)),
                    "threshold": threshold,
                    "groups": len(set(groups)),
                    "mixed": sum(count > 1 for count in mixed.values()),
                    **agreement(groups, whose),
                }
            )
    return {"threshold": SAME_PERSON, "no_face_found_in_film": unseen, "rows": rows}


def measure_scale(items: int = ITEMS) -> dict:
    """Descriptors of unit length: a fifth as many people, and as many people as descriptors."""
    rng, rows = np.random.default_rng(0), []
    for people in (items // 5, items):
        centres = rng.normal(size=(people, 128)).astype(np.float32)
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        person = rng.permutation(np.arange(items) % people)
        descriptors = centres[person]
        descriptors += rng.normal(size=descriptors.shape).astype(np.float32) * np.float32(0.1 / 128**0.5)
        started = time.process_time()
        groups = cluster(descriptors)
        seconds = time.process_time() - started
        rows.append(
            {
                "descriptors": items,
                "people": people,
                "groups": int(groups.max()) + 1,
                "cpu_seconds": round(seconds, 1),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("faces").add_argument("folder", type=Path)
    parts.add_parser("scale")
    args = parser.parse_args()
    found = measure_faces(args.folder) if args.part == "faces" else measure_scale()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[args.part] = circumstances() | found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for row in found["rows"]:
        print(row)


if __name__ == "__main__":
    main()
