"""Sources of facial landmarks: 68 points (iBUG order) for every frame of a video."""
