"""Face geometry: landmarks, tracks, and how a face is cropped and pasted back."""
