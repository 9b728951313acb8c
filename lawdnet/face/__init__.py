"""Face geometry: where a face goes in the crop, how it is cut out and pasted back."""
