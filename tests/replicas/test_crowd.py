"""Who may still come in when all places are taken."""

from __future__ import annotations

from jaxsgl.replicas.crowd import Crowd


def crowd(**counts: int) -> Crowd:
    crowd = Crowd()
    for tenant, count in counts.items():
        for _ in range(count):
            crowd.join(tenant)
    return crowd


def test_alone_a_tenant_has_every_place_and_no_more():
    assert crowd(a=10).has_its_share("a", 10)
    assert crowd().has_its_share("a", 10)


def test_another_may_have_as_many_as_if_all_were_shared_out():
    full = crowd(a=10)
    for _ in range(5):
        assert not full.has_its_share("b", 10)
        full.join("b")
    assert full.has_its_share("b", 10) and full.has_its_share("a", 10)


def test_shares_shrink_with_those_who_come_and_grow_with_those_who_go():
    full = crowd(a=10, b=4)
    assert not full.has_its_share("b", 10)
    full.join("c")
    assert full.has_its_share("b", 10)
    full.leave("c")
    assert not full.has_its_share("b", 10)


def test_never_twice_as_many_as_places():
    full = crowd(a=100)
    for tenant in (f"t{n % 40}" for n in range(4000)):
        if not full.has_its_share(tenant, 100):
            full.join(tenant)
    assert full._counts.total() <= 200
