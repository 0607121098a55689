"""Faces: the detector's network and suppression, tracks, smoothing, crop rectangles and crops."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import description, every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import face_boxes, face_tracks, lip_sync
from mova_engine.scores.face_boxes import Face
from mova_engine.scores.face_tracks import CropConfig, FaceTrack, TrackConfig
from mova_engine.scores.features.picture_size import resize_bilinear_u8
from mova_engine.scores.networks import s3fd

_PICTURE = re.compile(r"picture of (\d+) x (\d+)")
_FACE = re.compile(r"out\.crop\.face(\d+)(_\d+)?")
_COMPARED = 20  # detections; a later one may differ by a choice of the suppression


def run_faces(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every tensor of the case; numbers of tracks and crops come from the case."""
    case.require("conf_network", face_boxes.NETWORK_LEAST_SCORE)
    case.require("nms_network", face_boxes.NETWORK_OVERLAP)
    case.require("top_k", face_boxes.NETWORK_FACES)
    case.require("nms_top_k", face_boxes.NETWORK_CANDIDATES)
    case.require("nms_final", face_boxes.FINAL_OVERLAP)
    case.require("variances", list(s3fd.VARIANCES))
    case.require("min_sizes", list(s3fd.PRIOR_SIDES))
    case.require("steps", list(s3fd.STEPS))
    case.require("fps", lip_sync.FPS)
    case.describes("scene")
    tracks, values = _tracks(case)
    crops, cut = _crops(case)
    network, detected = _network(case, device)
    rows, shown = _rows(case)
    overlaps = [{"iou": face_boxes.overlap(pair["a"], pair["b"])} for pair in case.values["iou"]]
    values |= {"iou": overlaps} | cut | detected | shown
    return EvaluationOutcome(tracks | crops | network | rows, values)


def _tracks(case: StatedCase) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config = TrackConfig(
        least_overlap=case.parameter("track.iou"),
        longest_gap=case.parameter("track.max_missed_frames"),
        least_boxes=case.parameter("track.min_track"),
        least_size=case.parameter("track.min_face_size"),
    )
    pictures = case.values["detections_per_frame"]
    faces = [[Face(frame, (a, b, c, d), s) for frame, a, b, c, d, s in picture] for picture in pictures]
    found = face_tracks.find_tracks(faces, config)
    tensors = {}
    for index, track in enumerate(found):
        tensors[f"out.track{index}.frames"] = torch.from_numpy(track.frames)
        tensors[f"out.track{index}.boxes"] = torch.from_numpy(track.boxes)
    return tensors, {"tracks_found": len(found)}


def _crops(case: StatedCase) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config = CropConfig(
        margin=case.parameter("crop.crop_scale"),
        grey=case.parameter("crop.border_grey"),
        smoothing=case.parameter("crop.median_filter"),
        side=case.parameter("crop.output"),
    )
    pictures = case.tensors["in.crop.frames"].numpy()
    track = FaceTrack(case.tensors["in.crop.track_frames"].numpy(), case.tensors["in.crop.boxes"].numpy())
    smoothed = face_tracks.smooth(track, config)
    rectangles = face_tracks.crop_rectangles(smoothed, config)
    made: dict[str, np.ndarray] = {
        "mid.crop.s_smoothed": smoothed.half_side,
        "mid.crop.x_smoothed": smoothed.x,
        "mid.crop.y_smoothed": smoothed.y,
        "out.crop.rectangles": rectangles,
    }
    for name in case.tensors:
        if stated := _FACE.fullmatch(name):
            position = int(stated[1])
            picture = face_tracks.crop(pictures[track.frames[position]], rectangles[position], config.grey)
            if stated[2]:
                step = every(case, name, "rows and columns")
                picture = resize_bilinear_u8(picture, config.side, config.side)[::step, ::step]
            made[name] = picture
    start, end = track.sound_seconds(lip_sync.FPS)
    first, last = int(track.frames[0]), int(track.frames[-1])
    sound = {"first_frame": first, "last_frame": last, "start_s": start, "end_s": end}
    return {name: torch.from_numpy(array) for name, array in made.items()}, {"sound_of_the_track": sound}


def _network(case: StatedCase, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    network = case.load("s3fd", s3fd.S3FD()).to(device)
    picture = face_boxes.network_picture(case.tensors["in.s3fd.image"].numpy(), 1)
    maps = network(picture.to(device))
    rows = face_boxes.network_faces(maps)
    # The recorded table has a fixed length and ends with zeros where there are fewer detections.
    shown = torch.zeros_like(case.tensors["out.s3fd.detections"])
    shown[: len(rows)] = rows[: len(shown)]
    tensors = {
        "mid.s3fd.input": picture[0],
        "mid.s3fd.loc": maps.regression[0],
        "mid.s3fd.conf": maps.faces[0],
        "mid.s3fd.priors": maps.priors,
        "mid.s3fd.decoded": maps.boxes()[0],
        "out.s3fd.detections": shown,
    }
    return tensors, {"s3fd_detections": len(rows)}


def _rows(case: StatedCase) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Faces from a network's answer for a picture of which only the size is stated."""
    if not (stated := _PICTURE.search(description(case, "in.detect.rows"))):
        raise MovaError(f"{case.case.path}: tensors.in.detect.rows does not state the size of its picture")
    height, width = int(stated[1]), int(stated[2])
    boxes = face_boxes.faces_of_rows(case.tensors["in.detect.rows"], height, width, case.parameter("conf_threshold"))
    seen = face_boxes.network_picture(np.zeros((height, width, 3), np.uint8), case.parameter("facedet_scale"))
    return {"out.detect.boxes": torch.from_numpy(boxes)}, {"detect_network_input_shape": list(seen.shape)}


CASE = CaseRunner(
    run_faces,
    {
        "out.crop.face*": Bound(0.0, "absolute"),
        "out.crop.rectangles": Bound(0.0, "absolute"),
        "out.track*.frames": Bound(0.0, "absolute"),
        "out.s3fd.detections": Bound(1e-4, rows=_COMPARED),
        "*.s3fd.*": Bound(1e-4),
        # Suppression is discrete: of hundreds of boxes a few may change places with their neighbours.
        "values.s3fd_detections": Bound(0.02, "relative"),
        "out.detect.boxes": Bound(1e-9),
        "out.track*.boxes": Bound(1e-9),
        "mid.crop.*": Bound(1e-9),
        "values.iou.*": Bound(1e-9, "absolute"),
        "values.sound_of_the_track.*_s": Bound(1e-9, "relative"),
    },
    unjudged={
        "values.detections_per_frame*": "given to the run",
        "values.iou.*.a": "given to the run",
        "values.iou.*.b": "given to the run",
    },
)
