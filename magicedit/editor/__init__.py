"""The editor: changes the expressions of faces in whole photographs."""

from magicedit.editor.attention import AttentionMaps, named_places
from magicedit.editor.changer import Edit, FaceChanger, FaceCut, FacePlace
from magicedit.editor.doubts import unreached
from magicedit.editor.editor import ExpressionEditor
from magicedit.editor.finding import PhotoLike, measured_expression, select_faces
from magicedit.editor.results import EditResult, FaceEdit, face_pictures, face_to_json, sweep_strip
from magicedit.editor.settings import NO_TEETH, MouthSettings, SamplingSettings
from magicedit.models.face_model import usable_device, usable_dtype
from magicedit.request import QUALITIES

__all__ = [
    "NO_TEETH",
    "QUALITIES",
    "AttentionMaps",
    "Edit",
    "EditResult",
    "ExpressionEditor",
    "FaceChanger",
    "FaceCut",
    "FaceEdit",
    "FacePlace",
    "MouthSettings",
    "PhotoLike",
    "SamplingSettings",
    "face_pictures",
    "face_to_json",
    "measured_expression",
    "named_places",
    "select_faces",
    "sweep_strip",
    "unreached",
    "usable_device",
    "usable_dtype",
]
