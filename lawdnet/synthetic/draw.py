"""Draw a talking head: smooth filled outlines through the 68 points, soft shading, light and film grain."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lawdnet.face import points as ibug
from lawdnet.synthetic.identity import Colour, Identity, Pose, mix
from lawdnet.synthetic.shape import Points, curve, face_shape, lens, project
from lawdnet.types import Float32, UInt8

OVERSAMPLING = 3
SUBPIXEL_BITS = 4
MOUTH_INTERIOR: Colour = (44, 5, 10)
"""The same dark red in every mouth, far darker than any lip, so that the opening can be measured in images."""
TONGUE: Colour = (88, 18, 27)
TEETH: Colour = (184, 178, 166)
EYE_WHITE: Colour = (236, 232, 228)
HAIRLINE_PX = 0.3
"""Gaps narrower than this show no mouth interior."""
BARED_GAP = 0.06
"""Gap at which teeth and tongue begin to show; at twice this gap they show fully."""


def _darker(colour: Colour, share: float) -> Colour:
    return mix(colour, (0, 0, 0), share)


class Pen:
    """Fills outlines, given in px of the final image, on a canvas that is `scale` times as large."""

    def __init__(self, canvas: NDArray[Any], scale: float) -> None:
        self.canvas = canvas
        self.scale = scale

    def fixed(self, points_Mx2: Points) -> NDArray[np.int32]:
        """Return canvas px with SUBPIXEL_BITS fractional bits; pixel centres are at integers on both grids."""
        on_canvas = (points_Mx2 + 0.5) * self.scale - 0.5
        return np.round(on_canvas * (1 << SUBPIXEL_BITS)).astype(np.int32)

    def fill(self, points_Mx2: Points, colour: Colour | float) -> None:
        outline = _inset(points_Mx2, 0.5 / self.scale)
        cv2.fillPoly(self.canvas, [self.fixed(outline)], colour, cv2.LINE_8, SUBPIXEL_BITS)

    def line(self, points_Mx2: Points, colour: Colour | float, width: float, *, closed: bool = False) -> None:
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.canvas, [self.fixed(points_Mx2)], closed, colour, thickness, cv2.LINE_8, SUBPIXEL_BITS)

    def fill_inside(self, points_Mx2: Points, outline_Mx2: Points, colour: Colour) -> None:
        """Fill the intersection of two outlines, such as an iris between the lids."""
        outline = self.fixed(outline_Mx2)
        low = np.maximum(outline.min(0) >> SUBPIXEL_BITS, 0)
        high = (outline.max(0) >> SUBPIXEL_BITS) + 2
        region = self.canvas[low[1] : high[1], low[0] : high[0]]
        if not region.size:
            return
        inside = np.zeros((2, *region.shape[:2]), np.uint8)
        origin = low << SUBPIXEL_BITS
        for mask, points in zip(inside, (outline, self.fixed(points_Mx2)), strict=True):
            cv2.fillPoly(mask, [points - origin], 1, cv2.LINE_8, SUBPIXEL_BITS)
        region[(inside[0] & inside[1]).astype(bool)] = colour


def _ellipse(x: float, y: float, z: float, rx: float, ry: float, points: int = 24) -> Points:
    angle = np.arange(points) * (2 * np.pi / points)
    return np.column_stack([x + rx * np.cos(angle), y + ry * np.sin(angle), np.full(points, z)])


def _flat(points: list[tuple[float, float]], z: float) -> Points:
    """Return points in a plane at depth z."""
    return np.column_stack([np.array(points), np.full(len(points), z)])


def _inset(points_Mx2: Points, distance: float) -> Points:
    """Shrink an outline by a distance: fillPoly also paints the border px, half a px more than the outline covers."""
    before = np.roll(points_Mx2, 1, axis=0)
    after = np.roll(points_Mx2, -1, axis=0)
    along = after - before
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6)[:, None]
    clockwise = np.sum(points_Mx2[:, 0] * after[:, 1] - points_Mx2[:, 1] * after[:, 0]) > 0
    inwards = along[:, ::-1] * (-1, 1) / length
    return points_Mx2 + distance * (inwards if clockwise else -inwards)


def _fill_band(pen: Pen, edge: Points, depth: Points, margin: int, colour: Colour) -> None:
    """Fill a band inwards from an edge, thinner towards its ends, which stay `margin` samples away from the corners."""
    core = slice(margin, len(edge) - margin)
    taper = np.sin(np.linspace(0, np.pi, len(edge[core])))[:, None] ** 0.5
    pen.fill(np.concatenate([edge[core], (edge[core] + taper * depth[core])[::-1]]), colour)


class TalkingHead:
    """Draws a person in any pose with any mouth opening.

    Args:
        identity: the person.
        size: (height, width) of the frames in px.
        flat: use plain colours without shading, light, grain, teeth or tongue, to measure outlines.
    """

    def __init__(self, identity: Identity, size: tuple[int, int] = (320, 256), *, flat: bool = False) -> None:
        self.identity = identity
        self.size = size
        self.flat = flat
        height, width = size
        self.unit = identity.face_width * min(width, height / 1.2) / (2 * 0.93 * identity.jaw_width)
        rng = np.random.default_rng((identity.seed, 4))
        self._room = self._make_room(rng)
        self._light_HW = self._make_light()
        self._grain = rng.normal(0, identity.grain, (height + 64, width + 64, 1)).astype(np.float32)

    def draw(self, pose: Pose, opening: float, spread: float) -> tuple[UInt8, Float32]:
        """Draw one frame.

        Args:
            pose: position of the head.
            opening: opening of the lips, 0 … 1.
            spread: spread of the mouth's corners, -1 rounded … 1 wide.

        Returns:
            The frame, uint8 RGB H×W×3, and its 68 landmarks (x, y) in px, pixel centres at integers.

        Raises:
            ValueError: opening or spread is out of range.
        """
        if not (0 <= opening <= 1 and -1 <= spread <= 1):
            raise ValueError(f"opening {opening}, spread {spread}: expected 0 … 1 and -1 … 1")
        height, width = self.size
        shape_68x3 = face_shape(self.identity, pose, opening, spread)
        points = self._project(shape_68x3, pose)
        canvas = cv2.resize(
            self._room_at(pose.tick), (width * OVERSAMPLING, height * OVERSAMPLING), interpolation=cv2.INTER_LINEAR
        )
        pen = Pen(canvas, OVERSAMPLING)
        self._draw_body(pen, pose)
        self._draw_head(pen, pose, points)
        self._draw_eyes(pen, pose, points)
        self._draw_mouth(pen, pose, points)
        self._draw_hair(pen, pose)
        frame = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
        if not self.flat:
            frame = self._lit(frame, pose, points)
        return frame, points.astype(np.float32)

    def centre(self, pose: Pose) -> tuple[float, float]:
        """Return the position of the head's origin, such that the aligned crop stays in the frame if it fits at all."""
        height, width = self.size
        cos, sin = abs(np.cos(pose.roll)), abs(np.sin(pose.roll))
        reach = self.unit * pose.scale
        free_x = max(0.0, width / 2 - reach * (cos + ibug.CROP_RATIO * sin))
        free_y = max(0.0, 0.45 * height - reach * (ibug.CROP_RATIO * cos + sin))
        return (
            (width - 1) / 2 + pose.shift[0] * min(free_x, 0.08 * width),
            0.55 * height - 0.5 + pose.shift[1] * min(free_y, 0.04 * height),
        )

    def _project(self, points_Kx3: Points, pose: Pose) -> Points:
        return project(points_Kx3, pose, self.unit, self.centre(pose))

    def _make_room(self, rng: np.random.Generator) -> UInt8:
        """Draw a blurred room at quarter size: a gradient, a few soft shapes, a mottled wall."""
        height, width = (side // 4 + 24 for side in self.size)
        top, bottom = (np.array(colour, np.float32) for colour in self.identity.room)
        share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        room = np.repeat((1 - share) * top + share * bottom, width, axis=1)
        for _ in range(rng.integers(2, 6)):
            low = rng.uniform(0, 0.9, 2) * (width, height)
            high = low + rng.uniform(0.1, 0.5, 2) * (width, height)
            colour = (top + bottom) / 2 * rng.uniform(0.6, 1.4)
            cv2.rectangle(room, low.astype(int).tolist(), high.astype(int).tolist(), colour.tolist(), cv2.FILLED)
        room = cv2.GaussianBlur(room, (0, 0), rng.uniform(1.0, 4.0))
        mottle = cv2.GaussianBlur(rng.normal(0, 30, (height, width)).astype(np.float32), (0, 0), 3)
        return np.clip(room + mottle[..., None], 0, 255).astype(np.uint8)

    def _room_at(self, tick: int) -> UInt8:
        """Return the part of the room that is behind this frame; it moves by less than a pixel per frame."""
        height, width = (side // 4 for side in self.size)
        reach = 110 * self.identity.room_drift
        right = 12 + reach * np.sin(0.021 * tick)
        down = 12 + 0.4 * reach * np.sin(0.013 * tick)
        move = np.array([[1, 0, right], [0, 1, down]], np.float32)
        return cv2.warpAffine(self._room, move, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)

    def _make_light(self) -> Float32:
        """Return the brightness over the frame: a gradient from the side of the lamp."""
        height, width = (side // 2 for side in self.size)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        angle = self.identity.light_angle
        slope = x * np.cos(angle) + y * np.sin(angle)
        return (1 + self.identity.light_strength * slope).astype(np.float32)

    def _draw_body(self, pen: Pen, pose: Pose) -> None:
        """Draw the hair at the back, neck and shoulders; the body follows half of the head's movement."""
        who = self.identity
        if who.hair_style in ("long", "bob"):
            length = 1.5 if who.hair_style == "long" else 0.55
            half = [(-0.25, -1.62), (-0.8, -1.45), (-1.12, -0.9), (-1.18, -0.2), (-1.15, length), (-0.5, length + 0.08)]
            back = half[::-1] + [(-x, y) for x, y in half]
            pen.fill(curve(self._project(_flat(back, -0.5), pose), closed=True), _darker(who.hair, 0.2))
        half_neck = [(-0.52, 0.2), (-0.5, 0.9), (-0.6, 1.35), (-0.8, 1.8)]
        still = Pose(shift=(pose.shift[0] / 2, pose.shift[1] / 2), scale=(1 + pose.scale) / 2, roll=pose.roll / 3)
        neck = self._project(_flat(half_neck + [(-x, y) for x, y in half_neck[::-1]], -0.3), still)
        pen.fill(neck, _darker(who.skin, 0.12))
        half_body = [(-0.55, 1.22), (-0.75, 1.32), (-1.3, 1.5), (-1.85, 1.75), (-2.1, 2.6), (-2.1, 4.0)]
        collar = [(0.3, 1.5), (0.0, 1.62), (-0.3, 1.5)]
        body = half_body[::-1] + collar[::-1] + [(-x, y) for x, y in half_body]
        pen.fill(curve(self._project(_flat(body, -0.3), still)), who.clothes)

    def _draw_head(self, pen: Pen, pose: Pose, points: Points) -> None:
        """Draw ears, the outline of the face, beard, brows and nose."""
        who = self.identity
        ear = 0.96 * who.jaw_width
        for side in (-1, 1):
            pen.fill(self._project(_ellipse(side * ear, -0.42, -0.5, 0.13, 0.25), pose), _darker(who.skin, 0.08))
            pen.fill(self._project(_ellipse(side * ear, -0.42, -0.5, 0.07, 0.16), pose), _darker(who.skin, 0.22))
        pen.fill(self._face_outline(pose, points), who.skin)
        self._draw_beard(pen, pose, points)
        for brow, sign in ((points[ibug.LEFT_BROW], 1), (points[ibug.RIGHT_BROW][::-1], -1)):
            self._draw_brow(pen, brow, sign)
        shadow = _darker(who.skin, 0.3)
        nostrils = points[ibug.NOSTRILS]
        pen.line(curve(nostrils), _darker(who.skin, 0.2), 0.02 * self.unit)
        for inner, outer in ((1, 0), (3, 4)):
            middle = 0.6 * nostrils[inner] + 0.4 * nostrils[outer]
            nostril = middle + (points[ibug.NOSE_BASE] - points[ibug.NOSE_TIP]) * 0.02 + self._oval(0.05, 0.026, pose)
            pen.fill(nostril, _darker(shadow, 0.35))

    def _oval(self, rx: float, ry: float, pose: Pose) -> Points:
        """Return an ellipse around 0 in px that rolls with the head."""
        flat = Pose(scale=pose.scale, roll=pose.roll)
        return project(_ellipse(0, 0, 0, rx, ry), flat, self.unit, (0.0, 0.0))

    def _face_outline(self, pose: Pose, points: Points) -> Points:
        half = [(-0.95, -0.75), (-0.88, -1.1), (-0.68, -1.42), (-0.35, -1.58)]
        top = [(x * self.identity.jaw_width, y) for x, y in half]
        forehead = self._project(_flat([*top, (0.0, -1.62)] + [(-x, y) for x, y in top[::-1]], -0.15), pose)
        return curve(np.concatenate([points[ibug.JAW], forehead[::-1]]), closed=True)

    def _draw_brow(self, pen: Pen, brow_5x2: Points, sign: int) -> None:
        """Draw a tapering stroke through the five points, thickest near the nose."""
        along = brow_5x2[-1] - brow_5x2[0]
        across = sign * np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6)
        width = 0.045 * self.unit * self.identity.brow_weight * np.array([0.2, 0.7, 0.9, 1.0, 0.8])[:, None]
        arcs = curve(brow_5x2 - across * width), curve(brow_5x2 + across * width)
        pen.fill(np.concatenate([arcs[0], arcs[1][::-1]]), mix(self.identity.hair, self.identity.skin, 0.15))

    def _draw_beard(self, pen: Pen, pose: Pose, points: Points) -> None:
        who = self.identity
        if who.beard == "none":
            return
        colour = mix(who.hair, who.skin, {"stubble": 0.75, "full": 0.35, "moustache": 0.3}[who.beard])
        lip = points[ibug.OUTER_LIP_UPPER]
        under_nose = points[ibug.NOSE_BASE] + 0.45 * (points[ibug.UPPER_LIP_TOP] - points[ibug.NOSE_BASE])
        top = [lip[0], 0.5 * (lip[1] + under_nose) + 0.2 * (lip[0] - under_nose), under_nose]
        top += [0.5 * (lip[5] + under_nose) + 0.2 * (lip[6] - under_nose), lip[6]]
        arc = curve(np.array(top))
        if who.beard == "moustache":
            pen.fill(np.concatenate([arc, curve(lip)[::-1]]), colour)
            return
        jaw = points[ibug.JAW]
        left = 0.8 * jaw[2] + 0.2 * lip[0], 0.35 * jaw[3] + 0.65 * lip[0]
        right = 0.35 * jaw[13] + 0.65 * lip[6], 0.8 * jaw[14] + 0.2 * lip[6]
        inner = curve(np.array([jaw[1], *left, *top, *right, jaw[15]]))
        pen.fill(np.concatenate([inner, curve(jaw[15:0:-1])]), colour)

    def _draw_eyes(self, pen: Pen, pose: Pose, points: Points) -> None:
        who = self.identity
        for upper, lower in ((ibug.LEFT_EYE_UPPER, ibug.LEFT_EYE_LOWER), (ibug.RIGHT_EYE_UPPER, ibug.RIGHT_EYE_LOWER)):
            upper_arc, lower_arc = lens(points, upper, lower)
            lids = np.concatenate([upper_arc, lower_arc[::-1]])
            pen.fill(lids, EYE_WHITE)
            across = points[upper[-1]] - points[upper[0]]
            middle = points[[*upper, *lower[1:-1]]].mean(0) + across * 0.18 * pose.gaze[0]
            middle = middle + np.array([-across[1], across[0]]) * 0.1 * pose.gaze[1]
            for radius, colour in ((0.088, _darker(who.iris, 0.3)), (0.074, who.iris), (0.038, (14, 12, 12))):
                pen.fill_inside(middle + self._oval(radius, radius, pose), lids, colour)
            if not self.flat:
                spark = middle + across * -0.06 + self._oval(0.016, 0.016, pose) - (0, 0.03 * self.unit)
                pen.fill_inside(spark, lids, (250, 250, 250))
            pen.line(lower_arc, _darker(who.skin, 0.2), 0.012 * self.unit)
            pen.line(upper_arc, _darker(who.skin, 0.7), 0.028 * self.unit)
            fold = upper_arc - (points[ibug.NOSE_TIP] - points[ibug.NOSE_ROOT]) * 0.12
            pen.line(fold, _darker(who.skin, 0.18), 0.014 * self.unit)

    def _draw_mouth(self, pen: Pen, pose: Pose, points: Points) -> None:
        """Draw the lips, then the gap between them with upper teeth and tongue, which take a fixed share of it."""
        who = self.identity
        outer_up, outer_low = lens(points, ibug.OUTER_LIP_UPPER, ibug.OUTER_LIP_LOWER)
        up, low = lens(points, ibug.INNER_LIP_UPPER, ibug.INNER_LIP_LOWER)
        middle = (up + low) / 2
        pen.fill(np.concatenate([outer_up, middle[::-1]]), who.lip if self.flat else _darker(who.lip, 0.1))
        pen.fill(np.concatenate([middle, outer_low[::-1]]), who.lip)
        pen.line(middle, _darker(who.lip, 0.3), 0.012 * self.unit)
        gap_px = float(np.hypot(*(low - up).T).max())
        if gap_px > HAIRLINE_PX:
            pen.fill(np.concatenate([up, low[::-1]]), MOUTH_INTERIOR)
        bared = np.clip(gap_px / (self.unit * pose.scale) / BARED_GAP - 1, 0, 1)
        if bared and not self.flat:
            _fill_band(pen, up, bared * who.teeth * (low - up), 3, TEETH)
            _fill_band(pen, low, bared * 0.35 * (up - low), 6, TONGUE)

    def _draw_hair(self, pen: Pen, pose: Pose) -> None:
        """Draw the hair over the forehead, and glasses."""
        who = self.identity
        fringe = {
            "short": [(-0.95, -0.72), (-0.86, -1.12), (-0.5, -1.32), (0.0, -1.36), (0.5, -1.32), (0.86, -1.12)],
            "parted": [(-0.98, -0.6), (-0.84, -1.12), (-0.5, -1.4), (-0.32, -1.5), (0.35, -1.2), (0.8, -1.12)],
            "long": [(-1.08, 0.2), (-0.9, -0.85), (-0.45, -1.34), (0.0, -1.5), (0.45, -1.34), (0.9, -0.85)],
            "bob": [(-1.08, 0.3), (-0.87, -0.9), (-0.6, -1.1), (0.0, -1.14), (0.6, -1.1), (0.87, -0.9)],
        }.get(who.hair_style)
        if fringe:
            last = (-fringe[0][0], fringe[0][1])
            outer = [(1.08, -0.85), (1.02, -1.35), (0.66, -1.74), (0.0, -1.9), (-0.66, -1.74), (-1.02, -1.35)]
            around = self._project(_flat([*fringe, last, *outer, (-1.08, -0.85)], -0.2), pose)
            pen.fill(curve(around, closed=True), who.hair)
        if who.glasses:
            for side in (-1, 1):
                lens_rim = self._project(_ellipse(side * 0.42, -0.68, 0.25, 0.27, 0.22), pose)
                pen.line(lens_rim, (34, 30, 34), 0.035 * self.unit, closed=True)
                arm = self._project(np.array([[side * 0.69, -0.7, 0.2], [side * 0.98, -0.66, -0.5]]), pose)
                pen.line(arm, (34, 30, 34), 0.035 * self.unit)
            bridge = self._project(_flat([(-0.15, -0.7), (0.0, -0.74), (0.15, -0.7)], 0.3), pose)
            pen.line(curve(bridge), (34, 30, 34), 0.035 * self.unit)

    def _lit(self, frame: UInt8, pose: Pose, points: Points) -> UInt8:
        """Multiply by the light and soft shadows, then add grain; this moves no edges."""
        height, width = self.size
        shade_HW = self._light_HW + self._shadows(pose, points)
        shade_HW = cv2.resize(shade_HW, (width, height), interpolation=cv2.INTER_LINEAR)
        down = (pose.tick * 37 + self.identity.seed) % 64
        right = (pose.tick * 23) % 64
        grain = self._grain[down : down + height, right : right + width]
        lit = frame * shade_HW[..., None] + grain
        return np.clip(lit + 0.5, 0, 255).astype(np.uint8)

    def _shadows(self, pose: Pose, points: Points) -> Float32:
        """Return soft shadows at half size: darker where the head is turned away from the viewer and the lamp."""
        pen = Pen(np.zeros_like(self._light_HW), 0.5)
        angle = self.identity.light_angle
        lamp = 0.1 * np.array([np.cos(angle), np.sin(angle)])

        def blob(x: float, y: float, z: float, rx: float, ry: float, level: float) -> None:
            pen.fill(self._project(_ellipse(x, y, z, rx, ry), pose), level)

        blob(0, 0.95, -0.3, 0.55, 0.35, -0.3)
        pen.fill(self._face_outline(pose, points), -0.2)
        blob(lamp[0], -0.35 + lamp[1], 0.1, 0.7, 1.0, 0.02)
        blob(lamp[0], -1.2, 0.1, 0.4, 0.2, 0.1)
        for side in (-1, 1):
            blob(side * 0.42, -0.78, 0.1, 0.24, 0.1, -0.12)
            blob(side * 0.5, -0.28, 0.1, 0.2, 0.14, 0.1)
            blob(side * 0.14, -0.35, 0.2, 0.06, 0.26, -0.1 if side * lamp[0] < 0 else -0.04)
        blob(0, -0.36, 0.4, 0.05, 0.28, 0.14)
        blob(0, -0.0, 0.25, 0.14, 0.05, -0.14)
        lip = points[ibug.LOWER_LIP_BOTTOM]
        pen.fill(lip + self._oval(0.2, 0.05, pose) + (points[ibug.CHIN] - lip) * 0.25, -0.14)
        return cv2.GaussianBlur(pen.canvas, (0, 0), 0.045 * self.unit)
