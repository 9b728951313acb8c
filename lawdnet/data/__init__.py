"""Datasets: from a video to stored segments, and from stored segments to training samples."""
