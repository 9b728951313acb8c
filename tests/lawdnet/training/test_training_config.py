from dataclasses import replace
from itertools import pairwise

import pytest

from lawdnet.training.config import TrainConfig, make_config, valid_keys
from lawdnet.training.stages import FULL, NAMES, PRESETS, SMALL


def test_the_published_numbers() -> None:
    """The table of LawDNet 2024: mouth, frames, samples, batch, epochs, parent."""
    rows = {
        s.name: (s.mouth_px, s.num_frames, s.samples_per_segment, s.batch_size, s.epochs_constant, s.epochs_decay,
                 s.init_from)
        for s in FULL if s.kind == "gan"
    }  # fmt: skip
    assert rows == {
        "frame_64": (64, 1, 32, 16, 5, 5, None),
        "frame_128": (128, 1, 100, 8, 5, 5, "frame_64"),
        "frame_256": (256, 1, 20, 4, 5, 5, "frame_128"),
        "clip_256": (288, 5, 3, 1, 85, 85, "frame_256"),
    }
    clip = FULL[-1].weights
    assert (clip.pixel, clip.perceptual, clip.gan, clip.clip_gan, clip.sync) == (1, 10, 1, 1, 0.1)
    assert {s.lr for s in FULL} == {1e-4}


def test_the_presets_have_the_same_stages_in_the_same_order() -> None:
    assert [s.name for s in SMALL] == list(NAMES)
    assert [(s.kind, s.num_frames, s.init_from) for s in SMALL] == [(s.kind, s.num_frames, s.init_from) for s in FULL]


@pytest.mark.parametrize(("constant", "decay"), [(5, 5), (1, 0), (85, 85), (2, 9), (0, 3)])
def test_the_learning_rate_falls_and_is_never_negative(constant: int, decay: int) -> None:
    stage = replace(FULL[1], epochs_constant=constant, epochs_decay=decay)
    factors = [stage.lr_factor(epoch) for epoch in range(stage.epochs + 100)]
    assert factors[: max(0, constant - 1)] == [1.0] * max(0, constant - 1)
    assert all(a >= b >= 0 for a, b in pairwise(factors))
    assert factors[stage.epochs - 1] > 0, "the last epoch still learns"


def test_settings_reach_their_field() -> None:
    config = make_config(
        "small", settings=["seed=7", "frame_64.batch_size=3", "stages.lr=1e-4", "clip_256.weights.sync=2"]
    )
    assert config.seed == 7
    assert config.stage("frame_64").batch_size == 3
    assert {s.lr for s in config.stages} == {1e-4}
    assert config.stage("clip_256").weights.sync == 2.0
    assert config.stage("frame_64").weights.sync == 0.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense=1", r"unknown key 'nonsense'.*seed.*batch_size"),
        ("frame_64.bach_size=1", r"did you mean frame_64.batch_size\?"),
        ("seed", "write key=value"),
        ("seed=abc", "'abc' is no int"),
        ("frame_64.lr=fast", "'fast' is no number"),
        ("frame_64.batch_size=0", r"frame_64.batch_size: must be at least 1"),
        ("frame_64.mouth_px=33", r"frame_64.mouth_px: 33"),
        ("sync_share=0", "sync_share: must be above 0"),
        ("precision=fp8", "none of auto, fp32, bf16, fp16"),
    ],
)
def test_a_bad_setting_says_what_is_wrong(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config("small", settings=[setting])


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="full, small"):
        make_config("medium")
    with pytest.raises(ValueError, match=r"unknown 'frame_32'.*frame_64"):
        make_config("small", stages=["frame_32"])


def test_stages_keep_their_order() -> None:
    config = make_config("small", stages=["frame_128", "frame_64"])
    assert [s.name for s in config.stages] == ["frame_64", "frame_128"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_json(preset: str) -> None:
    import json

    config = make_config(preset, settings=["frame_64.lr=0.5"])
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_listed_key_can_be_set() -> None:
    config = make_config("small")
    for key in valid_keys(config):
        if key.startswith("stages."):
            continue
        target, _, rest = key.partition(".")
        value = getattr(config, target) if not rest else config.stage(target)
        for name in rest.split(".") if rest else []:
            value = getattr(value, name)
        text = "null" if value is None else str(value) or '""'
        assert make_config("small", settings=[f"{key}={text}"]) == config, key
