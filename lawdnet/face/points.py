"""The 68 facial landmarks by name, and the proportions of a face crop. No other file writes these numbers.

The order is that of iBUG 300-W (Sagonas et al., "300 Faces in-the-Wild Challenge", ICCV 2013 workshops), counted from
0. Left and right are those of the image: the person's right eye is on the left. Groups are lists, because numpy reads a
tuple in brackets as one index per axis.
"""

from __future__ import annotations

CROP_RATIO = 1.3
"""Height of a face crop in crop widths."""

JAW = slice(0, 17)
"""From ear to ear, left to right, through the chin."""
JAW_ENDS = [0, 16]
CHIN = 8

LEFT_BROW = slice(17, 22)
RIGHT_BROW = slice(22, 27)
BROWS = slice(17, 27)

NOSE_BRIDGE = slice(27, 31)
"""From between the eyes down to the tip."""
NOSE_ROOT = 27
NOSE_TIP = 30
NOSTRILS = slice(31, 36)
"""Along the lower edge of the nose, left to right."""
NOSE_BASE = 33
"""The middle of the nostrils, where the nose meets the upper lip."""

LEFT_EYE_UPPER = [36, 37, 38, 39]
"""The upper lid from corner to corner, left to right; the lower lid has the same corners."""
LEFT_EYE_LOWER = [36, 41, 40, 39]
RIGHT_EYE_UPPER = [42, 43, 44, 45]
RIGHT_EYE_LOWER = [42, 47, 46, 45]
EYE_CORNERS = [36, 39, 42, 45]
OUTER_EYE_CORNERS = [36, 45]
"""The distance between these two is the unit of length in which faces of different sizes are compared."""

MOUTH = slice(48, 68)
MIRRORED_MOUTH = [6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 16, 15, 14, 13, 12, 19, 18, 17]
"""Where each of the 20 mouth landmarks in a mirror is among those of the true face."""
MOUTH_CORNERS = [48, 54]
OUTER_LIP_UPPER = [48, 49, 50, 51, 52, 53, 54]
"""From corner to corner, left to right, as the three below."""
OUTER_LIP_LOWER = [48, 59, 58, 57, 56, 55, 54]
INNER_LIP_UPPER = [60, 61, 62, 63, 64]
INNER_LIP_LOWER = [60, 67, 66, 65, 64]
UPPER_LIP_TOP = 51
LOWER_LIP_BOTTOM = 57
INNER_LIP_MIDDLES = [62, 66]
"""The middle of the upper and of the lower inner lip: they touch where the mouth is shut."""

ALIGN_POINTS = [*range(17, 36), *EYE_CORNERS, *MOUTH_CORNERS]
"""Brows, nose, eye corners and mouth corners: the 25 points that define a face's pose."""
