"""Generating the mouths of a template's frames and pasting them, with what is remembered of each template.

Shape letters: B batch, C channels, H W frame or crop, h w the generated part of the crop, 33 a matrix that takes frame
px to crop px.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lawdnet.face.align import part_of_crop, paste_face, scale_matrix
from lawdnet.face.colour import match_colour
from lawdnet.face.geometry import stage_size
from lawdnet.face.mask import HIDDEN, inside_jaw, keep_mask, paste_alpha
from lawdnet.inference.fast import MouthGenerator, References
from lawdnet.inference.template import Template
from lawdnet.models.device import images_to_tensor
from lawdnet.models.generator import Generator
from lawdnet.models.parts import Box
from lawdnet.types import Bool, Float32, UInt8

MEMORY_BYTES = 256 << 20
"""For what is remembered of one template; at mouth 256, the image features of 7 minutes."""


@dataclass
class _Memory:
    """What was computed for a template; what does not fit is computed again each time."""

    references: References
    left: int
    features: dict[int, Tensor] = field(default_factory=dict)
    """Tick → image features."""
    still: dict[int, UInt8] = field(default_factory=dict)
    """Tick → mouth at rest."""

    def keep(self, kept: dict[int, Any], tick: int, value: Tensor | UInt8) -> None:
        if value.nbytes <= self.left and tick not in kept:
            self.left -= value.nbytes
            kept[tick] = value


class Mouths:
    """Generates mouths and pastes them into frames. Safe to use from several threads.

    Args:
        generator: in evaluation mode, on its device.
        mouth_px: its mouth size.
        crop_width: width in px of the crops in its training data.
        region: what is pasted; see `paste_alpha`.
        match_colour: give the mouth the colour of the frame along the seam.

    Raises:
        ValueError: there is no such region.
    """

    def __init__(
        self, generator: Generator, *, mouth_px: int, crop_width: int, region: str, match_colour: bool
    ) -> None:
        self.size = stage_size(mouth_px)
        self.crop_width = crop_width
        self.match_colour = match_colour
        self.device = next(generator.parameters()).device
        keep_HW = keep_mask(*self.size).copy()
        keep_HW[keep_HW <= HIDDEN] = 0
        alpha_HW = paste_alpha(*self.size, region)
        self.network = MouthGenerator(generator, self.size, _bounds(alpha_HW > 0), _bounds(keep_HW == 0))
        self.box = self.network.box
        self._alpha_hw = alpha_HW[self.box.slices]
        self._keep_HW = torch.from_numpy(keep_HW).to(self.device)
        self._bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self._memories: WeakKeyDictionary[Template, _Memory] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def complete(
        self, template: Template, ticks: Sequence[int], crops: Sequence[UInt8], audio_BC5: Float32, still_B: Bool
    ) -> list[UInt8]:
        """Generate the mouths of B ticks.

        Args:
            template: whose frames they are.
            ticks: their numbers.
            crops: H×W×3 at the network's size; the mouth is hidden here.
            audio_BC5: feature windows.
            still_B: which of them have the window of silence, so that their mouths are remembered.

        Returns:
            B images h×w×3, the part `box` of the crops.
        """
        memory = self._memory(template)
        made = {n: memory.still[tick] for n, tick in enumerate(ticks) if still_B[n] and tick in memory.still}
        new = [n for n in range(len(ticks)) if n not in made]
        if new:
            generated = self._generate(memory, [ticks[n] for n in new], [crops[n] for n in new], audio_BC5[new])
            made |= dict(zip(new, generated, strict=True))
        for n in new:
            if still_B[n]:
                memory.keep(memory.still, ticks[n], made[n])
        return [made[n] for n in range(len(ticks))]

    def paste(self, template: Template, tick: int, frame_HW3: UInt8, crop_HW3: UInt8, mouth_hw3: UInt8) -> None:
        """Paste a mouth into its frame, which is changed.

        Args:
            template: whose frame it is.
            tick: its number.
            frame_HW3: the frame.
            crop_HW3: its crop at the network's size.
            mouth_hw3: as `complete` returns it.
        """
        alpha_hw = self._alpha_hw
        if template.jaw_T17x2 is not None:
            scale = self.size[1] / self.crop_width
            jaw_17x2 = (template.jaw_T17x2[tick] + 0.5) * scale - 0.5
            alpha_hw = alpha_hw * inside_jaw(*self.size, jaw_17x2)[self.box.slices]
        if self.match_colour:
            mouth_hw3 = match_colour(mouth_hw3, crop_HW3[self.box.slices], alpha_hw)
        matrix_33 = scale_matrix(template.matrix_T33[tick], self.crop_width, self.size[1])
        matrix_33 = part_of_crop(matrix_33, self.box.left, self.box.top)
        paste_face(frame_HW3, mouth_hw3, matrix_33, alpha_hw, in_place=True)

    @torch.inference_mode()
    def _generate(
        self, memory: _Memory, ticks: Sequence[int], crops: Sequence[UInt8], audio_BC5: Float32
    ) -> list[UInt8]:
        source_B3HW = images_to_tensor(np.stack(crops), self.device) * self._keep_HW
        audio = torch.from_numpy(audio_BC5).to(self.device)
        known = [memory.features.get(tick) for tick in ticks]
        known_BC86 = None if any(feature is None for feature in known) else torch.stack(known)  # type: ignore[arg-type]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            sources = self.network.sources(source_B3HW, memory.references, known_BC86)
            made_B3hw = self.network.mouths(memory.references, sources, audio)
        for tick, feature_C86 in zip(ticks, sources.image_BC86, strict=True):
            memory.keep(memory.features, tick, feature_C86.clone())
        return list((made_B3hw.float() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())

    def _memory(self, template: Template) -> _Memory:
        with self._lock:
            memory = self._memories.get(template)
            if memory is None:
                reference_15HW = images_to_tensor(template.reference_5HW3, self.device).flatten(0, 1)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                    references = self.network.references(reference_15HW)
                memory = self._memories[template] = _Memory(references, MEMORY_BYTES)
            return memory


def _bounds(mask_HW: Bool) -> Box:
    """Return the smallest box around the true cells."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
