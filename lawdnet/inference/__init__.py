"""Inference: from a checkpoint, a template video and audio to a video in which the template speaks."""
