import math

import pytest
import torch

from lawdnet.training.alarms import NonFiniteLoss, Plateau, check_finite
from lawdnet.training.losses import contrast, contrast_chance, equal_audio, gradient_shares, image_gradients, rivals
from lawdnet.training.stages import FULL, PUBLISHED, micro_batches, scaled_lr


def audio(count: int) -> torch.Tensor:
    return torch.arange(count * 18.0).view(count, 2, 9)


def loss(score: torch.Tensor, compared: torch.Tensor) -> torch.Tensor:
    """The contrast of all faces."""
    count = len(score)
    return contrast(score, score[:, :count].T, compared) / count


@pytest.mark.parametrize(("faces", "kinds"), [(1, 2), (2, 2), (16, 3)])
def test_the_chance_of_a_contrast_is_what_it_gives_where_all_scores_are_equal(faces: int, kinds: int) -> None:
    clips = audio(faces * kinds)
    compared = rivals(equal_audio(clips), None, faces)
    found = loss(torch.full((faces, len(clips)), 0.3), compared)
    assert float(found) == pytest.approx(float(contrast_chance(compared, faces)) / faces)
    assert float(found) == pytest.approx((math.log(len(clips)) + math.log(faces)) / 2)


def test_a_single_pair_is_at_ln_2() -> None:
    compared = rivals(equal_audio(audio(2)), None, 1)
    assert 2 * float(contrast_chance(compared, 1)) == pytest.approx(math.log(2)), "the choice of the audio alone"


def test_the_same_audio_drawn_twice_is_no_mistake() -> None:
    clips = audio(4)
    clips[1] = clips[0]  # two faces with the same audio
    clips[3] = clips[0]  # and a negative that is the same silence
    score = torch.eye(2, 4) * 0.9
    score[:, 3] = 1.0
    score[0, 1] = score[1, 0] = 1.0
    spoiled = loss(score, rivals(equal_audio(clips), None, 2))
    score[:, 3] = score[0, 1] = score[1, 0] = -1.0
    torch.testing.assert_close(loss(score, rivals(equal_audio(clips), None, 2)), spoiled)
    assert float(spoiled) < 0.1
    clips[3] += 1
    score[:, 3] = 1.0
    assert float(loss(score, rivals(equal_audio(clips), None, 2))) > 0.5


def test_only_other_moments_of_the_same_recording_are_rivals() -> None:
    """Own audio, audio one frame off, far off, and of somebody else; then a negative of each of two faces."""
    origin = torch.tensor([(1, 0), (1, 1), (1, 5), (2, 30), (1, 40), (2, 60)])
    compared = rivals(equal_audio(audio(6)), origin, 4)
    assert compared.tolist() == [
        [True, False, True, False, True, False],
        [False, True, False, False, True, False],  # frame 5 is 4 frames from frame 1
        [True, False, True, False, True, False],
        [False, False, False, True, False, True],
    ]
    scores = torch.rand(4, 6)
    spoiled = scores.masked_fill(~compared, 1.0)
    torch.testing.assert_close(loss(scores, compared), loss(spoiled, compared))


def test_the_contrast_of_all_faces_is_the_sum_of_its_rows() -> None:
    """As each rank computes its own."""
    origin = torch.tensor([(i % 2, 6 * i) for i in range(12)])
    kind, score, back = equal_audio(audio(12)), torch.rand(4, 12), torch.rand(4, 4)
    parts = [slice(0, 1), slice(1, 4)]
    rows = [rivals(kind, origin, 4, part) for part in parts]
    whole = rivals(kind, origin, 4)
    assert torch.equal(torch.cat(rows), whole)
    for one in (contrast, lambda score, back, compared, first: contrast_chance(compared, 4)):
        summed = sum(one(score[p], back[p], row, p.start) for p, row in zip(parts, rows, strict=True))
        torch.testing.assert_close(summed, one(score, back, whole, 0))


def test_equal_audio_has_equal_numbers() -> None:
    clips = torch.randn(500, 6, 9)
    clips[7] = clips[3]
    clips[9], clips[11] = 0.0, -0.0
    clips[13] = clips[15].flip(0)  # the same values elsewhere
    clips[17] = clips[19]
    clips[17, 5, 8] += 1e-6
    number = equal_audio(clips)
    assert len(number.unique()) == 498
    assert number[7] == number[3]
    assert number[9] == number[11]


def test_shares_are_those_of_known_gradients() -> None:
    image = torch.ones(2, 2, requires_grad=True)
    generated = image * 2
    gradients = image_gradients({"a": 3 * generated.sum(), "b": generated.sum(), "c": 0 * generated.sum()}, generated)
    shares = gradient_shares(gradients)
    assert {k: float(v) for k, v in shares.items()} == pytest.approx({"share_a": 0.75, "share_b": 0.25, "share_c": 0})
    generated.backward(gradients["a"] + gradients["b"])  # the graph behind the image is still there
    assert image.grad is not None
    assert image.grad.tolist() == [[8, 8], [8, 8]]
    assert [float(share) for share in gradient_shares({"a": torch.zeros(2), "b": torch.zeros(2)}).values()] == [0, 0]


def test_nothing_to_choose_from_is_a_plateau() -> None:
    """All audio is the same silence."""
    told: list[str] = []
    plateau = Plateau(3, told.append, "look at the offsets")
    compared = rivals(equal_audio(torch.zeros(4, 2, 9)), None, 2)
    for _ in range(3):
        plateau.update(float(loss(torch.rand(2, 4), compared)), float(contrast_chance(compared, 2)) / 2)
    assert len(told) == 1


def test_a_plateau_is_told_once_and_only_at_chance() -> None:
    told: list[str] = []
    plateau = Plateau(5, told.append, "look at the offsets")
    for loss in (2.0, 1.97, 2.01, 2.3):
        plateau.update(loss, 2.0)
    assert not told, "too early to say"
    for _ in range(10):
        plateau.update(1.99, 2.0)
    assert len(told) == 1
    assert "at chance for 5 steps" in told[0]
    assert told[0].endswith("look at the offsets")

    learning = Plateau(5, told.append, "")
    for step in range(20):
        learning.update(2.0 - 0.02 * step, 2.0)
    assert len(told) == 1
    off = Plateau(0, told.append, "")
    for _ in range(20):
        off.update(2.0, 2.0)
    assert len(told) == 1


def test_what_is_not_finite_is_named() -> None:
    check_finite({"pixel": 1.0})
    with pytest.raises(NonFiniteLoss, match=r"not finite: pixel$"):
        check_finite({"pixel": float("nan"), "gan": 2.0})
    with pytest.raises(NonFiniteLoss, match="another rank"):
        check_finite({"pixel": 1.0}, is_elsewhere=True)


def test_workers_come_and_go_and_the_global_batch_stays() -> None:
    from dataclasses import replace

    stage = replace(FULL[1], batch_size=16, global_batch=64, lr=1e-4)
    taken = {world: micro_batches(stage, world) for world in (1, 2, 3, 4, 5, 100)}
    assert taken == {1: 4, 2: 2, 3: 1, 4: 1, 5: 1, 100: 1}
    rates = {world: scaled_lr(stage, world, count) for world, count in taken.items()}
    assert rates == pytest.approx({1: 1e-4, 2: 1e-4, 3: 0.75e-4, 4: 1e-4, 5: 1.25e-4, 100: 25e-4})


def test_without_a_global_batch_every_worker_adds_its_own() -> None:
    stage = PUBLISHED[0]
    assert (micro_batches(stage, 1), micro_batches(stage, 8)) == (stage.accumulate, stage.accumulate)
    assert scaled_lr(stage, 8, 3) == stage.lr
