"""Videos as sources of a dataset: their names, and the keys of the frames that are chosen from them."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

DEFAULT_FRAMES, MOST_FRAMES = 16, 1000  # of each person of a video
_FACE = "#face="
_DIGITS = (28, 8, 8, 4, 8, 8)  # of the parts of a key
_ENDS = tuple(itertools.accumulate(_DIGITS))
_RULES = 1  # of choosing frames, see `magicedit.data.frames`; other rules choose anew


class FrameKey(NamedTuple):
    """Identifies a chosen frame as the SHA-256 of its file identifies a photograph: 64 hexadecimal digits.

    video: 28 digits, see `VideoFile.sha256`. index: of the frame, from 0. milliseconds: its time. face: the
    person's number, 0 is the largest by area and time. chosen: number of frames chosen from the whole video,
    so that a part of them is not taken for all. frames: number of frames of the video.
    """

    video: str
    index: int
    milliseconds: int
    face: int
    chosen: int
    frames: int

    def __str__(self) -> str:
        numbers = zip(self[1:], _DIGITS[1:], strict=True)
        return self.video + "".join(f"{number:0{digits}x}" for number, digits in numbers)

    @staticmethod
    def parse(key: str) -> "FrameKey":
        """Reads what `str` wrote."""
        video, *numbers = (key[end - digits : end] for end, digits in zip(_ENDS, _DIGITS, strict=True))
        return FrameKey(video, *(int(number, 16) for number in numbers))

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000


@dataclass(frozen=True)
class VideoFile:
    """A video in the folder.

    name, folder, path: as of `Source`. identity: the person of its folder or list; None: its people are
    identities of their own. content: SHA-256 of the file. frames: how many are chosen of each person at most.
    """

    name: str
    folder: Path
    identity: str | None
    content: str
    frames: int

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def sha256(self) -> str:
        """Hash of its content and of how its frames are chosen."""
        choice = [_RULES, self.content, self.frames, self.identity is not None]
        return hashlib.sha256(json.dumps(choice).encode()).hexdigest()

    def key(self, index: int, seconds: float, face: int, chosen: int, frames: int) -> FrameKey:
        """Returns the key of a chosen frame."""
        return FrameKey(self.sha256[: _DIGITS[0]], index, round(1000 * seconds), face, chosen, frames)

    def person(self, face: int) -> str:
        """Returns the identity of a person of this video."""
        if self.identity is not None:
            return self.identity
        return f"{self.name}{_FACE}{face}" if face else self.name

    def frame_name(self, key: FrameKey) -> str:
        """Returns the name of a chosen frame, such as `alice/talk.mp4#t=12.480`."""
        return f"{self.name}#t={key.seconds:.3f}" + (f"&face={key.face}" if key.face else "")


def video_of(identity: str) -> str:
    """Returns the video's name of an identity that is a person of a video; another identity as it is."""
    return identity.rpartition(_FACE)[0] or identity


def known_frames(videos: Sequence[VideoFile], keys: Iterable[str]) -> dict[str, list[FrameKey]]:
    """Returns by `VideoFile.sha256` the frames that earlier runs chose, of the videos whose frames are all
    there. keys: of measured photographs and frames."""
    wanted = {video.sha256[: _DIGITS[0]]: video.sha256 for video in videos}
    found: dict[str, list[FrameKey]] = {}
    for key in keys if wanted else ():
        if video := wanted.get(key[: _DIGITS[0]]):
            found.setdefault(video, []).append(FrameKey.parse(key))
    return {
        video: sorted(frames, key=lambda frame: (frame.index, frame.face))
        for video, frames in found.items()
        if len(frames) == frames[0].chosen
    }
