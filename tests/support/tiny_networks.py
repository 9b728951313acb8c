"""Small random weights in the published file formats, for the real loaders of the extractors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawdnet.audio import AudioExtractor, make_extractor
from lawdnet.audio.deepspeech import import_tensorflow

NEEDS = {"deepspeech": "tensorflow", "hubert": "transformers", "whisper": "ctranslate2"}
NAMES = ["mel", "deepspeech", "deepspeech2", "hubert", "whisper"]
DECAY = 0.7
"""Factor by which the small DeepSpeech graph remembers the previous row."""


def need(package: str) -> None:
    """Skip the test if an optional package is not installed; the package is not imported."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def tiny(name: str, folder: Path, **options: Any) -> AudioExtractor:
    """Return an extractor with small weights, which are written to the folder."""
    if name in NEEDS:
        need(NEEDS[name])
    if name == "deepspeech":
        write_graph(folder / "output_graph.pb", deepspeech_weights())
    if name == "deepspeech2":
        write_checkpoint(folder / "librispeech_pretrained_v3.ckpt")
    if name == "hubert":
        write_hubert(folder / "tiny")
        options = {"model": "tiny"} | options
    if name == "whisper":
        write_whisper(folder / "whisper-tiny.en.bin")
    if name != "mel":
        options = {"weights_dir": folder, "device": "cpu"} | options
    return make_extractor(name, **options)


def deepspeech_weights() -> np.ndarray:
    """Return 494×29 weights; the nearest rows count most, as in a trained network."""
    weights = np.random.default_rng(0).normal(size=(19, 26, 29)) / 26
    return (weights * np.exp(-np.abs(np.arange(19) - 9))[:, None, None]).reshape(494, 29).astype(np.float32)


def deepspeech_output(input_TD: np.ndarray) -> np.ndarray:
    """Compute in numpy what the graph of `write_graph` returns for a whole file: T×29."""
    ahead, back = (input_TD @ deepspeech_weights() for _ in range(2))
    for t in range(1, len(ahead)):
        ahead[t] += DECAY * ahead[t - 1]
        back[-1 - t] += DECAY * back[-t]
    return ahead + back


def write_graph(path: Path, weights: np.ndarray, batch: int | None = None) -> None:
    """Write a frozen graph with the tensor names of DeepSpeech 0.1.0: a leaky sum in both directions."""
    tf = import_tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        rows = v1.placeholder(tf.float32, [batch, None, 494], name="input_node")
        lengths = v1.placeholder(tf.int32, [batch], name="input_lengths")
        matrix = v1.get_variable("h1", initializer=weights, use_resource=False)
        mask = tf.transpose(tf.sequence_mask(lengths, tf.shape(rows)[1], tf.float32))[..., None]
        hidden = tf.transpose(tf.tensordot(rows, matrix, 1), [1, 0, 2]) * mask
        both = [tf.scan(lambda past, new: DECAY * past + new, hidden, reverse=back) for back in (False, True)]
        tf.add(*both, name="logits")
        session.run(v1.global_variables_initializer())
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
    path.write_bytes(frozen.SerializeToString())


def deepspeech2_state(classes: int = 29) -> dict[str, Any]:
    """Return a small DeepSpeech 2 that is symmetric in time and whose normalisation layers have an effect."""
    import torch

    from lawdnet.audio.deepspeech2_model import DeepSpeech2Model

    torch.manual_seed(0)
    state = DeepSpeech2Model(hidden=16, layers=3, classes=classes).state_dict()
    for key in state:
        if key.endswith("running_mean"):
            state[key] = 0.1 * torch.randn_like(state[key])
        if key.endswith("running_var"):
            state[key] = 1 + torch.rand_like(state[key])
        if key.endswith("_reverse"):
            state[key] = state[key.removesuffix("_reverse")]
        if state[key].ndim == 4:
            state[key] = state[key] + state[key].flip(3)
    return state


def write_checkpoint(path: Path, **more: Any) -> None:
    """Write a checkpoint as Lightning does."""
    import torch

    torch.save({"state_dict": deepspeech2_state(), "epoch": 7, **more}, path)


def write_hubert(folder: Path, kind: str = "Hubert", **more: Any) -> Any:
    """Save a small random HuBERT, Wav2Vec2 or WavLM with transformers, and return the network."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = getattr(transformers, f"{kind}Config")(**(sizes | more))
    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(folder)
    return model


def write_whisper(path: Path) -> Any:
    """Convert a small random Whisper network of transformers to CTranslate2's format, and return the network."""
    need("transformers")
    import torch
    import transformers
    from ctranslate2.converters.transformers import WhisperLoader

    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3, max_target_positions=20,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    encoder = model.model.encoder
    with torch.no_grad():  # as in a trained network, near rows count most, and their positions little
        for weight in (encoder.embed_positions.weight, *(layer.self_attn.out_proj.weight for layer in encoder.layers)):
            weight.mul_(0.02)
        encoder.conv1.weight.mul_(10)
        encoder.conv2.weight.mul_(10)
    model.generation_config.alignment_heads = [[0, 0]]
    spec = WhisperLoader().get_model_spec(model)
    spec.register_vocabulary([str(number) for number in range(60)])
    spec.validate()
    spec.optimize()
    folder = path.with_name(f"{path.name}.folder")
    folder.mkdir()
    spec.save(str(folder))
    (folder / "model.bin").rename(path)
    return model
