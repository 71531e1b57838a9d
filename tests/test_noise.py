"""Noise: the published known answers, what a draw may depend on, and whether the numbers are normal."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta

import cftime
import numpy as np
import pytest
import torch
from scipy import stats

from polynya.emulators import philox
from polynya.emulators.noise import Draws, GivenNoise, Noise

NOISE = Noise(seed=7).stream("perturb")
DAY = cftime.DatetimeJulian(1975, 1, 3)
MANY = 400_000
# Random123's kat_vectors for philox4x32 with ten rounds: counter, key, answer.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.fixture(scope="module")
def sample():
    return NOISE.normal([0, 1], DAY, (MANY,), dtype=torch.float64)


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    got = philox.philox4x32(tuple(map(torch.tensor, words(counter))), tuple(words(key)))
    assert [int(word) for word in got] == words(answer)


def test_philox_broadcasts_and_leaves_its_counter_alone():
    row, column, zero = torch.arange(3)[:, None], torch.arange(5), torch.tensor(0)
    got = philox.philox4x32((column, row, zero, zero), (1, 2))
    assert all(word.shape == (3, 5) and word.min() >= 0 and word.max() <= philox.WORD for word in got)
    alone = philox.philox4x32((column[3:4], row[2], zero, zero), (1, 2))
    assert [int(word[2, 3]) for word in got] == [int(word) for word in alone]
    assert torch.equal(column, torch.arange(5)) and zero == 0


# --- what a draw depends on, and what not -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (2, 90, 181)])
def test_a_member_alone_is_the_member_in_any_batch(kind, shape):
    draw = getattr(NOISE, kind)
    members = [4, 0, 17, 1_000_003, 2**32 - 1]
    batch = draw(members, DAY, shape)
    assert batch.shape == (5, *shape) and batch.dtype == torch.float32 and batch.is_contiguous()
    for row, member in zip(batch, members, strict=True):
        assert torch.equal(draw([member], DAY, shape)[0], row)
    assert torch.equal(draw(members[::-1], DAY, shape), batch.flip(0))
    assert torch.equal(draw(np.array(members), DAY, shape), batch)


@pytest.mark.parametrize("block", [1, 5, 64, 2**14])
def test_blocks_leave_no_trace(monkeypatch, block):
    wanted = NOISE.normal([0, 1, 2], DAY, (101,))
    monkeypatch.setattr(philox, "_CPU_BLOCK", block)
    assert torch.equal(NOISE.normal([0, 1, 2], DAY, (101,)), wanted)


def test_a_shorter_draw_begins_a_longer_one():
    long = NOISE.normal([3, 4], DAY, (11, 9))
    for size in (1, 2, 3, 4, 50, 99):
        assert torch.equal(NOISE.normal([3, 4], DAY, (size,)), long.reshape(2, 99)[:, :size])


def test_nothing_to_draw():
    assert NOISE.normal([], DAY, (3, 4)).shape == (0, 3, 4)
    assert NOISE.normal([1], DAY, (3, 0)).shape == (1, 3, 0)


def test_asking_twice_copies_and_processes_change_nothing():
    again = pickle.loads(pickle.dumps(NOISE))
    assert again == NOISE and hash(again) == hash(NOISE)
    assert torch.equal(again.normal([1], DAY, (9,)), NOISE.normal([1], DAY, (9,)))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    NOISE.normal([1], DAY, (9,))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_numbers_do_not_change_between_versions():
    """An alarm: members of stored experiments are re-created from these."""
    got = Noise(1).stream("a").normal([0, 5], cftime.DatetimeNoLeap(2000, 1, 1), (2,), dtype=torch.float64)
    wanted = torch.tensor(
        [[-0.2637052554427424, 0.40952085502115926], [0.034375332778042576, -0.2959166209087156]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


OTHERS = {
    "seed": lambda: Noise(8).stream("perturb").normal([0], DAY, (MANY,)),
    "large seed": lambda: Noise(7 + 2**64).stream("perturb").normal([0], DAY, (MANY,)),
    "stream": lambda: Noise(7).stream("sampler").normal([0], DAY, (MANY,)),
    "nested stream": lambda: NOISE.stream("perturb").normal([0], DAY, (MANY,)),
    "no stream": lambda: Noise(7).normal([0], DAY, (MANY,)),
    "next member": lambda: NOISE.normal([1], DAY, (MANY,)),
    "far member": lambda: NOISE.normal([2**31], DAY, (MANY,)),
    "next second": lambda: NOISE.normal([0], cftime.DatetimeJulian(1975, 1, 3, 0, 0, 1), (MANY,)),
    "next step": lambda: NOISE.normal([0], cftime.DatetimeJulian(1975, 1, 13), (MANY,)),
    "no time": lambda: NOISE.normal([0], None, (MANY,)),
    "kind": lambda: NOISE.uniform([0], DAY, (MANY,)) - 0.5,
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_draws_are_uncorrelated(what, sample):
    here, there = sample[0], OTHERS[what]()[0].double()
    for a, b in ((here, there), (here.square() - 1, there.square()), (here[1:], there[:-1])):
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / MANY**0.5


def test_many_members_are_uncorrelated_with_each_other():
    draws = NOISE.normal(range(200), DAY, (5000,), dtype=torch.float64)
    off = torch.corrcoef(draws)[~torch.eye(200, dtype=torch.bool)] * 5000**0.5
    assert off.abs().max() < 5.5 and abs(off.std() - 1) < 0.02
    assert len(draws.flatten().unique()) > 200 * 5000 - 5  # 64 bits each: no two alike


def test_streams_nest_and_a_slash_nests_too():
    assert NOISE.stream("a").stream("b") == NOISE.stream("a/b")
    assert Noise(1).stream("12") != Noise(11).stream("2")
    one, other = (noise.normal([0], None, (4,)) for noise in (Noise(1).stream("12"), Noise(11).stream("2")))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian"])
def test_every_date_of_every_calendar_has_its_own_numbers(calendar):
    start = cftime.datetime(1999, 12, 30, calendar=calendar)
    dates = [start + n * timedelta(days=1) for n in range(400)]
    firsts = torch.stack([NOISE.normal([0], date, (1,)) for date in dates])
    assert len(firsts.unique()) == 400


def test_dates_far_and_before_year_zero():
    years = [-5000, -1, 1, 99_999]
    dates = [cftime.DatetimeNoLeap(year, 1, 1, has_year_zero=True) for year in years]
    assert len({NOISE.normal([0], date, (1,)).item() for date in [*dates, None]}) == 5
    assert torch.equal(NOISE.normal([0], datetime(1975, 1, 3), (4,)), NOISE.normal([0], DAY, (4,)))


# --- distribution -----------------------------------------------------------------------------------


def test_moments(sample):
    for z in sample:
        error = MANY**-0.5
        assert abs(z.mean()) < 4 * error
        assert abs(z.var() - 1) < 4 * 2**0.5 * error
        assert abs(z.pow(3).mean()) < 4 * 15**0.5 * error
        assert abs(z.pow(4).mean() - 3) < 4 * 96**0.5 * error


def test_kolmogorov_smirnov(sample):
    for z in sample:
        assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
        for lane in range(4):  # of the four numbers made from one counter
            assert stats.kstest(z[lane::4].numpy(), "norm").pvalue > 1e-4
    u = NOISE.uniform([0], DAY, (MANY,), dtype=torch.float64)
    assert stats.kstest(u[0].numpy(), "uniform").pvalue > 1e-3


def test_tails_are_populated(sample):
    beyond = int((sample.abs() > 4).sum())
    expected = sample.numel() * 2 * stats.norm.sf(4)
    assert abs(beyond - expected) < 5 * expected**0.5


def test_the_four_numbers_of_a_counter_are_independent(sample):
    lanes = sample[0].reshape(-1, 4).T
    for z in (lanes, lanes.square()):
        off = torch.corrcoef(z) - torch.eye(4)
        assert off.abs().max() < 5 / (MANY / 4) ** 0.5


def test_extreme_words_give_finite_numbers():
    low, high = torch.tensor([0]), torch.tensor([philox.WORD])
    for radius in (low, high):
        for angle in (low, high):
            for dtype in (torch.float32, torch.float64):
                out = torch.empty(1, 4, dtype=dtype)
                philox.box_muller((radius, angle, angle, radius), out)
                assert out.isfinite().all() and out.abs().max() < 6.77
    out = torch.empty(1, 4, dtype=torch.float64)
    philox.uniforms((low, high, low, high), out)
    assert out.min() == 2.0**-33 and out.max() == 1 - 2.0**-33


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_differ_by_rounding_only(dtype, sample):
    assert torch.equal(NOISE.normal([0, 1], DAY, (MANY,), dtype=dtype), sample.to(dtype))
    u = NOISE.uniform([0], DAY, (MANY,), dtype=dtype)
    assert u.dtype == dtype and u.min() > 0 and u.max() < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_devices_agree():
    here, there = (NOISE.normal([0, 9], DAY, (1001,), dtype=torch.float64, device=d) for d in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-12, atol=1e-14)


# --- given noise ------------------------------------------------------------------------------------


def energy(noise: Draws, members: list[int]) -> torch.Tensor:
    eps = noise.stream("sampler").stream("eps").normal(members, DAY, (3,), dtype=torch.float64)
    return (eps * torch.tensor([1.0, 2.0, 3.0])).square().sum()


def test_given_noise_takes_the_place_of_noise_with_a_gradient():
    eps = NOISE.stream("sampler/eps").normal([4, 9], DAY, (3,), dtype=torch.float64).requires_grad_()
    given = GivenNoise({"sampler/eps": eps}, members=(4, 9))
    assert torch.equal(energy(given, [4, 9]), energy(NOISE, [4, 9]))
    energy(given, [9]).backward()
    scale = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(eps.grad[1], 2 * scale * eps[1].detach())
    assert (eps.grad[0] == 0).all()
    assert torch.autograd.gradcheck(lambda e: energy(GivenNoise({"sampler/eps": e}, (4, 9)), [9, 4]), eps)


def test_given_noise_selects_members_by_number():
    eps = torch.arange(6.0).reshape(3, 2)
    given = GivenNoise({"": eps}, members=(10, 20, 30))
    assert torch.equal(given.normal([30, 10], None, (2,)), eps[[2, 0]])
    assert given.normal([10], None, (2,), dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.stream("b").normal([1], None, (2,)), r"asked for noise of stream 'b', but .* 'a'"),
        (
            lambda g: g.stream("a").normal([1], None, (3,)),
            r"asked for shape \(3,\) .* has \(2,\)",
        ),
        (lambda g: g.stream("a").normal([1, 5], None, (2,)), r"asked for members \[5\], but has \(1, 2\)"),
        (lambda g: GivenNoise(g.draws, (1, 1)), "every member once"),
        (lambda g: GivenNoise(g.draws, (1, 2, 3)), r"one row for each of 3 members, got shape \(2, 2\)"),
        (lambda g: g.stream(""), "a stream name is text"),
    ],
)
def test_given_noise_says_what_was_wanted_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call(GivenNoise({"a": torch.zeros(2, 2)}, members=(1, 2)))


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Noise(-1), ValueError, "a seed is an integer >= 0, got -1"),
        (lambda: Noise(1.0), TypeError, "a seed is an integer, got 1.0 of type float"),
        (lambda: NOISE.normal([-1], None, (2,)), ValueError, "a member number is .* got -1"),
        (lambda: NOISE.normal([2**32], None, (2,)), ValueError, "from 0 to 4294967295, got 4294967296"),
        (lambda: NOISE.normal([0, 1.5], None, (2,)), TypeError, "a member number is an integer, got 1.5"),
        (lambda: NOISE.normal([0], "2000-01-01", (2,)), TypeError, "got '2000-01-01' of type str"),
        (
            lambda: NOISE.normal([0], None, (2,), dtype=torch.int32),
            TypeError,
            "floating dtype .* got torch.int32",
        ),
        (lambda: NOISE.normal([0], None, (2**34, 2)), ValueError, "at most 2\\*\\*34 numbers per member"),
        (lambda: NOISE.stream("a//b"), ValueError, "such as \"perturb\" .* got 'a//b'"),
        (lambda: NOISE.stream(""), ValueError, "a stream name is text"),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
