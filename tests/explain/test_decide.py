"""Whose rounding made a child, of evidence put together by hand."""

from msgspec.structs import replace

from chimerakit.explain.encoders import decide
from chimerakit.explain.evidence import Evidence, Mixture
from chimerakit.numerics.cells import OTHERS
from chimerakit.records import Role

FLOAT32, APART, BF16, *_ = (rounding.name for rounding in OTHERS)


def mixture(share: float, encoder: str = "") -> Mixture:
    return Mixture({"v3": 1 - share, "r1": share}, {}, (), 0.0, encoder)


def copy(number: int) -> Evidence:
    return Evidence(f"copy {number}", Role("attention", layer=number), 8, ("v3",), ())


def missed(number: int, *encoders: str, is_touched: bool = False) -> Evidence:
    """A unit that chimerakit's arithmetic does not give."""
    others = tuple(mixture(0.75, encoder) for encoder in encoders)
    return replace(copy(number), unit=f"missed {number}", equal=(), others=others, is_touched=is_touched)


def given(number: int, share: float, *encoders: str) -> Evidence:
    """A unit that it gives."""
    others = tuple(mixture(0.75, encoder) for encoder in encoders)
    return replace(copy(number), unit=f"given {number}", equal=(), mixture=mixture(share), others=others)


def encoders(evidence: list[Evidence]) -> list[str]:
    return [found.mixture.encoder if found.mixture is not None else "none" for found in decide(evidence)]


def test_without_others_nothing_changes() -> None:
    """A child of copies and mixes is what it was."""
    evidence = [copy(0), given(1, 0.75), given(2, 0.5)]
    assert decide(evidence) == evidence


def test_the_tightest_that_does_for_nearly_all_is_taken() -> None:
    """A unit that by chance allows a tighter one is no reason to think of it; one that does not allow it keeps its own."""
    evidence = [missed(n, BF16) for n in range(29)]
    assert encoders([*evidence, missed(29, APART, BF16)]) == [BF16] * 30
    assert encoders([*evidence, missed(29, FLOAT32, BF16)]) == [BF16] * 30
    assert encoders([*evidence, missed(29, APART)]) == [BF16] * 29 + [APART]
    assert encoders([missed(n, FLOAT32, BF16) for n in range(30)]) == [FLOAT32] * 30


def test_one_unit_with_few_odd_numbers_was_changed_by_hand() -> None:
    """It stays unexplained, and nothing else is doubted; with many odd numbers it is estimated."""
    others = [given(n, 0.75, FLOAT32) for n in range(60)]
    assert encoders([*others, missed(60, FLOAT32, is_touched=True)]) == [""] * 60 + ["none"]
    assert encoders([*others, missed(60, FLOAT32)]) == [""] * 60 + [FLOAT32]


def test_shares_that_give_bytes_by_chance_give_way() -> None:
    """Where another encoder made the child, a unit that it could have made is its work, too."""
    evidence = [missed(n, FLOAT32, is_touched=True) for n in range(10)]
    found = decide([*evidence, given(10, 0.7499998, FLOAT32), given(11, 0.75)])
    assert [each.mixture.shares["r1"] for each in found if each.mixture] == [0.75] * 12
    assert [each.mixture.encoder for each in found if each.mixture] == [FLOAT32] * 11 + [""]


def test_shares_that_do_not_sum_to_1_give_way_to_such_as_nearly_give_it() -> None:
    """Bytes by chance: where shares of few decimals that sum to 1 miss a number or two, another program used them."""
    odd = Mixture({"v3": 0.5399, "r1": 0.4599}, {}, (), 1e-5)
    near = Mixture({"v3": 0.54, "r1": 0.46}, {}, (), 1e-5, FLOAT32)
    evidence = [*[copy(number) for number in range(60)], replace(missed(60, FLOAT32), mixture=odd, others=(near,))]
    assert decide(evidence)[-1].mixture == near
    whole = Mixture({"v3": 0.54001, "r1": 0.45999}, {}, (), 1e-5)
    assert decide([*evidence[:-1], replace(evidence[-1], mixture=whole)])[-1].mixture == whole
