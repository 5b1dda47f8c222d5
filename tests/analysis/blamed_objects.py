"""Objects that were found and missed, for tables and pictures."""

from sparse_detr.analysis.blame import BEATEN, FOUND, LOW_SCORE, MISCLASSIFIED, NOT_SELECTED, TAKEN
from sparse_detr.analysis.blame_report import BlamedObject

NAN = float("nan")


def made(
    verdict, *, image=1, size="small", name="cat", detail="", tide="Miss", shares=(0.5, NAN), hit=True, seen="dog"
):
    return BlamedObject(
        image_id=image,
        annotation_id=7,
        file_name=f"{image}.png",
        class_name=name,
        size=size,
        box=(0.0, 1.0, 2.0, 3.5),
        verdict=verdict,
        detail=detail,
        tide="" if verdict == FOUND else tide,
        best_iou=0.25,
        seen_as=seen,
        token_share=shares[0],
        token_shares=shares,
        is_hit=hit,
    )


OBJECTS = [
    made(FOUND, size="large", shares=(1.0, 1.0)),
    made(FOUND, image=2, name="dog"),
    made(NOT_SELECTED, image=2, shares=(0.0, NAN), hit=False),
    made(BEATEN, image=2, detail=LOW_SCORE, tide="Loc"),
    made(BEATEN, image=3, detail=TAKEN, size="large", shares=(1.0, 0.0)),
    made(MISCLASSIFIED, image=3, tide="Cls", name="dog", seen="cat"),
]
