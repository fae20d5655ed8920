"""The report on a finished edit: the face measured again, the second scorer and the warnings."""

from magicedit.editor.changer import Edit
from magicedit.editor.closed_loop import Pursuit
from magicedit.editor.doubts import beyond_reach, doubts_of_edit, unreached
from magicedit.editor.finding import FaceFinder
from magicedit.editor.results import FaceEdit, measured_as_asked
from magicedit.faces import geometric_change, identity_crop
from magicedit.request import EditRequest


def judged(
    edit: Edit,
    number: int,
    resolution: int,
    finder: FaceFinder,
    asked: EditRequest,
    pursuit: Pursuit | None = None,
) -> FaceEdit:
    """Returns the report on one chosen face, by its number.

    Args:
        resolution: px, of the model's crop.
        finder: found the face, and finds and measures it in the result if that is `asked`.
        pursuit: state of the closed loop, if there was one.
    """
    pixels, face, sent = edit.chosen.photo.pixels, edit.faces[number], edit.requests[number]
    requested = sent if pursuit is None else pursuit.asked
    change, glasses = edit.changes.get(number), edit.glasses.get(number, 0.0)
    covered = finder.covered_parts(pixels, face) if any(requested.values()) else []
    recipe = asked.of_recipe(requested)
    warnings = doubts_of_edit(pixels, face, change, requested, resolution, glasses, covered, recipe)
    moved = identity = after = None
    before = measured_as_asked(face, requested)
    if asked.measure:
        again = face if edit.pixels is pixels else finder.find_again(edit.pixels, face)
        if again is None:
            warnings.append("the face was not found again in the result: check it by eye")
        else:
            own = finder.identity(pixels, face)
            crops = own, own if again is face else identity_crop(edit.pixels, again)
            identity = None if None in crops else crops
            after = measured_as_asked(again, requested)
            if face.scheme == again.scheme == "mediapipe478":
                moved = geometric_change(face.landmarks, again.landmarks)
            told = beyond_reach(face, requested)  # in `doubts_of_edit`
            possible = {name: value for name, value in requested.items() if name not in told}
            brought = {name: possible.pop(name) for name in [*possible] if name in recipe}
            warnings += unreached(possible, before, after, moved or {})
            warnings += [f"{asked.emotion[0]}: {w}" for w in unreached(brought, before, after, moved or {})]
    if pursuit is not None:
        warnings += pursuit.shortfall(asked.tolerance)
    return FaceEdit(
        index=edit.chosen.indices[number],
        box=face.box,
        pose=face.pose,
        requested=requested,
        before=before,
        after=after,
        moved=moved,
        identity=identity,
        warnings=tuple(warnings),
        edits=1 if pursuit is None else pursuit.edits,
        sent=sent,
        reached=None if pursuit is None else pursuit.error <= asked.tolerance,
    )
