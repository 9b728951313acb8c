from dataclasses import replace
from itertools import pairwise

import pytest

from lawdnet.training.config import make_config, valid_keys
from lawdnet.training.stages import FULL, PUBLISHED, SMALL, Stage


def test_the_published_numbers() -> None:
    """The table of LawDNet 2024: mouth, frames, samples, batch, epochs, parent."""
    rows = {
        s.name: (s.mouth_px, s.num_frames, s.samples_per_segment, s.batch_size, s.epochs_constant, s.epochs_decay,
                 s.init_from)
        for s in PUBLISHED if s.kind == "gan"
    }  # fmt: skip
    assert rows == {
        "frame_64": (64, 1, 32, 16, 5, 5, None),
        "frame_128": (128, 1, 100, 8, 5, 5, "frame_64"),
        "frame_256": (256, 1, 20, 4, 5, 5, "frame_128"),
        "clip_256": (288, 5, 3, 1, 85, 85, "frame_256"),
    }
    clip = PUBLISHED[-1].weights
    assert (clip.pixel, clip.perceptual, clip.gan, clip.clip_gan, clip.sync) == (1, 10, 1, 1, 0.1)
    assert {s.lr for s in PUBLISHED} == {1e-4}


def test_the_presets_have_the_same_kinds_of_stages_in_the_same_order() -> None:
    def kinds(rows: tuple[Stage, ...]) -> list[tuple[str, int, int | None]]:
        names = [s.name for s in rows]
        return [(s.kind, s.num_frames, names.index(s.init_from) if s.init_from else None) for s in rows]

    assert kinds(SMALL) == kinds(FULL) == kinds(PUBLISHED)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (SMALL, ["syncnet", "frame_32", "frame_64", "frame_96", "clip_96"]),
        (FULL, ["syncnet", "frame_64", "frame_128", "frame_256", "clip_288"]),
    ],
)
def test_the_names_tell_the_size(rows: tuple[Stage, ...], names: list[str]) -> None:
    assert [s.name for s in rows] == names
    assert [s.mouth_px for s in rows[1:]] == [int(name.rpartition("_")[2]) for name in names[1:]]


def test_full_has_the_published_sizes_and_rates_of_its_own() -> None:
    def sizes(stage: Stage) -> tuple[int, ...]:
        return stage.mouth_px, stage.num_frames, stage.batch_size, stage.samples_per_segment, stage.epochs

    assert list(map(sizes, FULL)) == list(map(sizes, PUBLISHED))
    assert [replace(s.weights, lips=0.0) for s in FULL] == [s.weights for s in PUBLISHED]
    assert all(s.weights.lips for s in FULL if s.kind == "gan")
    rates = [s.lr for s in FULL[1:]]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 4
    assert all(s.warmup_steps for s in FULL)
    assert not any(s.warmup_steps or s.global_batch for s in PUBLISHED)


def test_a_stage_starts_from_one_of_its_preset_that_comes_before_it() -> None:
    with pytest.raises(ValueError, match=r"frame_96.init_from: unknown 'frame_128'; choose from syncnet, frame_32"):
        make_config("small", settings=["frame_96.init_from=frame_128"])
    with pytest.raises(ValueError, match="frame_64 starts from frame_96, which must come before it"):
        make_config("small", settings=["frame_64.init_from=frame_96"])


def test_a_stage_keeps_its_position_where_only_some_are_chosen() -> None:
    assert make_config("small", ["frame_64"]).index("frame_64") == 2


@pytest.mark.parametrize(("constant", "decay"), [(5, 5), (1, 0), (85, 85), (2, 9), (0, 3)])
def test_the_learning_rate_falls_and_is_never_negative(constant: int, decay: int) -> None:
    stage = replace(FULL[1], epochs_constant=constant, epochs_decay=decay)
    factors = [stage.lr_factor(epoch) for epoch in range(stage.epochs + 100)]
    assert factors[: max(0, constant - 1)] == [1.0] * max(0, constant - 1)
    assert all(a >= b >= 0 for a, b in pairwise(factors))
    assert factors[stage.epochs - 1] > 0, "the last epoch still learns"


def test_settings_reach_their_field() -> None:
    config = make_config(
        "small", settings=["seed=7", "frame_32.batch_size=3", "stages.lr=1e-4", "clip_96.weights.sync=2"]
    )
    assert config.seed == 7
    assert config.stage("frame_32").batch_size == 3
    assert {s.lr for s in config.stages} == {1e-4}
    assert config.stage("clip_96").weights.sync == 2.0
    assert config.stage("frame_32").weights.sync == 0.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense=1", r"unknown key 'nonsense'.*seed.*batch_size"),
        ("frame_32.bach_size=1", r"did you mean frame_32.batch_size\?"),
        ("seed", "write key=value"),
        ("seed=abc", "'abc' is not a whole number"),
        ("frame_32.lr=fast", "'fast' is not a number"),
        ("frame_32.batch_size=0", r"frame_32.batch_size: must be at least 1"),
        ("frame_32.mouth_px=33", r"frame_32.mouth_px: must be a multiple of 32, not 33"),
        ("sync_share=0", "sync_share: must be above 0"),
        ("precision=fp8", "not one of auto, fp32, tf32, bf16, fp16"),
    ],
)
def test_a_bad_setting_says_what_is_wrong(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config("small", settings=[setting])


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="full, published, small"):
        make_config("medium")
    with pytest.raises(ValueError, match=r"unknown 'frame_16'.*frame_32"):
        make_config("small", stages=["frame_16"])


def test_stages_keep_their_order() -> None:
    config = make_config("small", stages=["frame_64", "frame_32"])
    assert [s.name for s in config.stages] == ["frame_32", "frame_64"]


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
